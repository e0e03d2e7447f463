"""Distillation from the pretrained model: on the new task's own rows it goes on giving what it gave.

Learning without forgetting (Li & Hoiem 2016, arXiv:1606.09282); of logits after Hinton et al. 2015 (arXiv:1503.02531, section 2).

Axes: B units of a batch, C classes of the source, D width.
"""

import torch
from torch import Tensor

from minift.penalties.penalty import Anchored, Penalty


class Distill(Penalty):
    """Added to the loss, as a mean over the units of a step; f are the features that the source's head reads, z its logits, both of
    the body that trains, and f_0, z_0 those of the pretrained one, in evaluation mode:

        of=features    strength |f - f_0|^2 / |f_0|^2
        of=logits      strength T^2 sum_c q_0 log(q_0 / q),    q = softmax(z / T), q_0 = softmax(z_0 / T), T the temperature

    Where the model comes without a head, f is what its own pooler gives, without one the mean over the tokens or the map; of a
    head that reads every token, their mean. No row of the source's task is needed. The second forward, without a graph, takes about
    a third of a step's time. The paper trains the source's head as well, on the labels that it gave; here it stays as it is. T^2
    keeps the gradient's size the same for every T.

    strength: 0 or above. temperature: from 1e-6 to 1e6, as z / T and T^2 are float32.
    Raises ValueError where nothing of the body trains, or for logits where the source's head gives none of one label a row.
    Proved by tests/optim/test_penalties.py: by hand, torch's kl_div, finite differences.
    """

    ASKS_SOURCE = True

    def __init__(self, anchored: Anchored, strength: float = 1.0, of: str = "features", temperature: float = 2.0):
        source, self.model = anchored.source, anchored.model
        if not 0 <= strength < float("inf") or not 1e-6 <= temperature <= 1e6:
            raise ValueError(f"strength={strength}, temperature={temperature}: expected 0 or above, and from 1e-6 to 1e6")
        if of not in ("features", "logits"):
            raise ValueError(f"of={of}: expected features or logits")
        if source is None:
            raise ValueError("the weights are random, so there is no pretrained model to learn from")
        if not any(p.requires_grad for p in anchored.model.body.parameters()):
            raise ValueError("nothing of the body trains, so it gives what it gave")
        if of == "logits" and (source.task is None or "all" not in source.task.FISHER):
            raise ValueError("of=logits: --model has no head that chooses one label for a row; of=features needs none")
        self.source, self.strength, self.of, self.T = source, strength, of, temperature

    def units(self, state: tuple, outputs, batch, progress) -> Tensor:
        body = self.source.body
        with torch.no_grad():
            before = body(*batch.inputs) if batch.state is None else body.resume(batch.state, batch.done)
        now = self.source.read(state, self.model.body)
        if self.of == "features":
            f, f_0 = (wide(self.source.features(one)) for one in (now, before))
            return self.strength * (f - f_0).square().sum(-1) / f_0.square().sum(-1)  # (B, D) -> (B)
        z, z_0 = (wide(self.source.head(one, batch)) / self.T for one in (now, before))
        log_q, log_q_0 = z.log_softmax(-1), z_0.detach().log_softmax(-1)
        return self.strength * self.T**2 * (log_q_0.exp() * (log_q_0 - log_q)).sum(-1)  # (B, C) -> (B)


def wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
