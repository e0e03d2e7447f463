"""A linear probe solved exactly: L-BFGS on the features of a frozen body, the L2 penalty chosen on the validation rows.

The protocol of Kornblith et al. 2019 (arXiv:1805.08974, appendix). Proved by tests/reference/test_logistic.py (the solution is
scikit-learn's) and tests/test_train_images.py (what is saved).
"""

from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor, nn

from minift.cache import Recomputed
from minift.data.batching import in_order
from minift.finetuned import score
from minift.metrics.classification import HIGHER_IS_BETTER
from minift.optim.logistic import fit_logistic, sweep_l2


def solve(
    model: nn.Module,
    task,
    train: Recomputed,
    valid: Recomputed | None,
    run,
    *,
    batch_size: int,
    monitor: str,
    l2: float | None,
    precision: AbstractContextManager,
) -> None:
    """Put the best head into `model` and save it.

    train, valid: as seen through a trunk that is the whole body. l2: the penalty; None: of 45 the one with the best `monitor` on
    the validation rows, of equally good ones the one with the lowest loss.
    """
    features, labels = all_features(train, batch_size)
    classes = len(task.labels)
    if l2 is None:
        valid_features, valid_labels = all_features(valid, batch_size)
        fits = sweep_l2(features, labels, valid_features, valid_labels, classes)
        scores = [{"loss": fit.loss} | task.metrics(valid_features @ fit.weight.T + fit.bias, valid_labels.numpy()) for fit in fits]
        run.log([{"split": "valid", "l2": fit.l2, **metrics} for fit, metrics in zip(fits, scores, strict=True)])
        sign = 1 if HIGHER_IS_BETTER[monitor] else -1
        best = max(range(len(fits)), key=lambda i: (sign * scores[i][monitor], -scores[i]["loss"]))
        weight, bias = fits[best].weight, fits[best].bias
        at_end = ", the end of the range" if best in (0, len(fits) - 1) else ""
        print(f"best of {len(fits)} penalties from {fits[0].l2:.1e} to {fits[-1].l2:.1e}: l2 {fits[best].l2:.2e}{at_end}")
    else:
        weight, bias = fit_logistic(features, labels, classes, l2)
    model.head.load_state_dict({"weight": weight.to(model.head.weight), "bias": bias.to(model.head.bias)})
    run.save(model)
    for split, data in (("train", train), ("valid", valid)):
        if data is not None:
            metrics = score(model, task, data, batch_size, precision).metrics
            print(f"{split}  " + "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))


def all_features(data: Recomputed, batch_size: int) -> tuple[Tensor, Tensor]:
    """(features (N, D) float64, labels (N)) of all rows, of all views one behind the other."""
    device = next(data.trunk.body.parameters()).device
    order = in_order(np.arange(len(data)), batch_size)
    batches = [batch for view in range(data.draws) for batch in data.batches(order, device, view)]
    return torch.cat([batch.state.pooled.double().cpu() for batch in batches]), torch.cat([b.labels.cpu() for b in batches])
