"""A linear probe solved exactly: L-BFGS on the features of a frozen body, the L2 penalty chosen on the validation rows.

The protocol of Kornblith et al. 2019 (arXiv:1805.08974, appendix). Proved by tests/reference/test_logistic.py (the solution is
scikit-learn's) and tests/test_train_images.py (what is saved).
"""

import time

import numpy as np
import torch
from torch import Tensor

from minift.bar import bar
from minift.cache import OnTheFly
from minift.data.batching import Batch, Data, in_order
from minift.optim.logistic import fit_logistic, kornblith_grid, sweep_l2
from minift.training import Progress, Scores, evaluate, rank_of


def solve(training, train: OnTheFly, valid: OnTheFly | None, run, options, progress: Progress) -> Scores | None:
    """Put the best head into the model and save it; the scores of the validation rows, where there are some.

    train, valid: as seen through frozen stages that are the whole body. options: batch_size, monitor, and l2, the penalty; None: of
    45 the one with the best `monitor` on the validation rows, of equally good ones the one with the lowest loss.
    """
    start, model, task = time.perf_counter(), training.model, training.task
    features, labels = all_features(train, options.batch_size)
    classes, l2 = len(task.labels), options.l2
    if l2 is None:
        valid_features, valid_labels = all_features(valid, options.batch_size)
        with bar("penalties", len(kornblith_grid(len(labels))), "fit") as shown:
            fits = sweep_l2(features, labels, valid_features, valid_labels, classes, lambda fit: shown.update())
        scores = [{"loss": fit.loss} | metrics_of(task, valid, fit, valid_features, valid_labels) for fit in fits]
        run.log([{"split": "valid", "l2": fit.l2, **metrics} for fit, metrics in zip(fits, scores, strict=True)])
        best = max(range(len(fits)), key=lambda i: rank_of(scores[i], options.monitor, task))
        weight, bias = fits[best].weight, fits[best].bias
        whole = len(fits) == len(kornblith_grid(len(labels)))
        at_end = ", the end of the range" if best == 0 or (whole and best == len(fits) - 1) else ""
        ended = "" if whole else ", where validation became worse"
        print(f"best of {len(fits)} penalties from {fits[0].l2:.1e} to {fits[-1].l2:.1e}{ended}: l2 {fits[best].l2:.2e}{at_end}")
    else:
        weight, bias = fit_logistic(features, labels, classes, l2)
    model.head.load_state_dict({"weight": weight.to(model.head.weight), "bias": bias.to(model.head.bias)})
    run.save(model, task)
    progress.seconds_training += time.perf_counter() - start
    found = {}
    for split, data in (("train", train), ("valid", valid)):
        if data is not None:
            found[split] = scores = evaluate(model, task, data, options.batch_size, training.precision)
            progress.seconds_evaluating += scores.seconds
            print(f"{split}  " + "  ".join(f"{name} {value:.4f}" for name, value in scores.metrics.items()))
    return found.get("valid")


def metrics_of(task, data: Data, fit, features: Tensor, labels: Tensor) -> dict[str, float]:
    """The task's metrics of one fit on features (N, D)."""
    meter = task.meter(data)
    rows = np.arange(len(labels))
    meter.add(features @ fit.weight.T + fit.bias, Batch((), (labels,), rows, torch.ones(len(labels))))
    return meter.metrics()


def all_features(data: OnTheFly, batch_size: int) -> tuple[Tensor, Tensor]:
    """(features (N, D) float64, labels (N)) of all rows, of all variants one behind the other."""
    device = next(data.frozen.body.parameters()).device
    order, D = in_order(np.arange(len(data)), batch_size), data.frozen.body.config.width
    features = torch.empty(len(data) * data.variants, D, dtype=torch.float64)
    labels, filled = [], 0
    for variant in range(data.variants):
        for batch in data.batches(order, device, variant):
            features[filled : filled + len(batch.rows)] = batch.state.pooled.cpu()
            filled += len(batch.rows)
            labels.append(batch.targets[0].cpu())
    return features, torch.cat(labels)
