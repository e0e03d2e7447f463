"""IA3 (Liu et al. 2022, arXiv:2205.05638, section 3.3): keys, values and the hidden units of the feed-forward layers are rescaled.

    k = l_k * (W_k x + b),    v = l_v * (W_v x + b),    W_2 (l_ff * gelu(W_1 x + b)) + b

One learned number a channel, which starts as 1: the model starts as the pretrained one. l_k and l_v scale what their layer gives,
l_ff what its layer takes in, so each can be merged. Differs from the paper in nothing, but for a GPT-2, where one layer gives
queries, keys and values: all three are scaled, as in peft. `sites=peft` adds the attention's output as peft does for BERT, scaling
what that takes in.

Axes: I inputs, O outputs.
Proved by tests/reference/test_ia3.py: peft's outputs and gradients, float64, 1e-10.
"""

import torch
from torch import Tensor, nn

from minift.methods.surgery import Wrapper, find, plain, wrap

EPOCHS = 10
SITES = ("key/value/feed_forward_output", "qkv/feed_forward_output")  # the paper's; of a GPT-2
NAMED_SITES = {"peft": f"{SITES[0]}/attention_output"}
INPUTS = "feed_forward_output/attention_output"  # what is scaled where it takes in, not where it gives out
STARTS_AS_PRETRAINED = True
PEFT_NAMES = {"scale": "ia3_l"}


def lr(optimizer: str, width: int) -> float:
    """SGD: 1e-1. AdamW: 5e-3 (Liu et al. 2022, section 3.5, have 3e-3 with Adafactor)."""
    return 1e-1 if optimizer == "sgd" else 5e-3


class IA3(Wrapper):
    """scale: (I) where inputs are scaled, else (O)."""

    def __init__(self, base: nn.Module, inputs: bool):
        super().__init__(base)
        if not isinstance(plain(base), nn.Linear):
            raise ValueError(f"{type(plain(base)).__name__} is no Linear")
        self.inputs = inputs
        W = plain(base).weight
        self.scale = nn.Parameter(torch.ones(W.shape[1 if inputs else 0], dtype=W.dtype, device=W.device))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x * self.scale) if self.inputs else self.base(x) * self.scale

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        scale = self.scale.to(weight)
        if self.inputs:
            return weight * scale, bias  # (O, I) * (I)
        return weight * scale[:, None], None if bias is None else bias * scale


def ia3(body: nn.Module, *, sites: str = "") -> None:
    """One learned factor for each channel of keys, values and feed-forward units; mergeable.

    sites: `peft` adds the attention's output. Others by role or regular expression: the feed-forward and attention outputs are
    scaled where they take in, all others where they give out.
    """
    inputs = [*find(body, "", (INPUTS,)).values()]
    found = find(body, NAMED_SITES.get(sites, sites), SITES)
    wrap(body, found, lambda layer: IA3(layer, any(layer is one for one in inputs)))
