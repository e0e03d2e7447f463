"""Mixout: in each step weights chosen by chance are the pretrained ones again (Lee, Cho & Kang 2020, arXiv:1909.11299)."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minift.penalties.penalty import Anchored, Penalty


class Mixout(Penalty):
    """In training every linear layer and convolution whose pretrained weight trains computes, instead of with w, with

        ((1 - M) w_0 + M w - p w_0) / (1 - p),    M ~ Bernoulli(1 - p) for each weight

    whose mean is w; evaluation uses w. As dropout shrinks weights towards 0, this pulls them towards w_0, the pretrained values
    (section 3, equation 5). Biases that train are mixed likewise. The gradient is that of the formula, M / (1 - p) times the
    gradient of what the layer has computed with. Embeddings, normalisation layers and new layers, the head among them, are not
    mixed.

    authors: as in the authors' code. One row of M is drawn for a layer, and all of its outputs share it, so that whole inputs go
    back to the pretrained weights, as in dropout; biases are not mixed; the gradient is multiplied by M alone, without
    1 / (1 - p), 10 times less at p = 0.9; and it stands in the place of dropout, which is off in body and head. (They mix the head
    with its random start too.) Under AdamW, which divides by the size of gradients, that factor is lost but for the clipping.

    The paper takes p from 0.7 to 0.9. p: from 0 to below 1.
    Raises ValueError where no such weight trains, and for p out of range.
    Proved by tests/optim/test_penalties.py: both by hand, the gradients too, and the mean.
    """

    ONCE = True  # a layer computes with one mixture

    def __init__(self, anchored: Anchored, p: float = 0.7, authors: bool = False):
        if not 0 <= p < 1:
            raise ValueError(f"p={p}: a share from 0 to below 1 is expected")
        values = {id(theta): theta_0 for theta, theta_0 in anchored.pretrained}
        layers = [m for m in anchored.model.body.modules() if isinstance(m, nn.Linear | nn.Conv2d) and id(m.weight) in values]
        if not layers:
            raise ValueError("no pretrained weight of a linear layer or convolution trains, so there is nothing to mix")
        for layer in layers:
            bias = None if authors else values.get(id(layer.bias))
            layer.forward = partial(mixed_forward, layer, values[id(layer.weight)], bias, p, authors)
        for module in anchored.model.modules() if authors else ():
            if hasattr(module, "p"):  # dropout, of attention too
                module.p = 0.0


def mixed_forward(layer: nn.Module, w_0: Tensor, b_0: Tensor | None, p: float, authors: bool, x: Tensor) -> Tensor:
    """Of a layer that `Mixout` has changed; w_0, b_0: its pretrained weight and bias, None for a bias that is not mixed."""
    w, b = layer.weight, layer.bias
    if layer.training:
        w = mixed(w, w_0, p, authors)
        b = b if b_0 is None else mixed(b, b_0, p, authors)
    return F.linear(x, w, b) if isinstance(layer, nn.Linear) else layer._conv_forward(x, w, b)


def mixed(w: Tensor, w_0: Tensor, p: float, authors: bool) -> Tensor:
    """M is drawn from the default generator."""
    M = torch.empty_like(w[:1] if authors else w).bernoulli_(1 - p)
    value = ((1 - M) * w_0 + M * w - p * w_0) / (1 - p)
    return M * w + (value - M * w).detach() if authors else value
