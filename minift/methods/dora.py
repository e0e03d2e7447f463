"""DoRA (Liu et al. 2024, arXiv:2402.09353, section 4): a weight is split into direction, which LoRA changes, and magnitude.

    y = m V x / |V| + b,    V = W + s B A,    |V| the norm of each row of V (of each filter of a convolution)

m starts as |W| and B as 0, so the model starts as the pretrained one. |V| counts as a constant in the backward pass (section 4.3).
Where dropout is active, all that differs from W x sees the dropped x, as in peft:

    y = W x + (m/|V| - 1) W drop(x) + (m/|V|) s B A drop(x) + b

Differs from the paper, as its authors' code and peft do: the paper takes the norm of each column, and has no s.

Axes as in lora.py.
Proved by tests/reference/test_dora.py: peft's outputs and gradients, float64, 1e-10.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minift.methods.lora import LoRA, change, scale_of
from minift.methods.surgery import Wrapper, find, wrap

EPOCHS = 10
SITES = ("query/value", "qkv", "conv2", "expand/project")
STARTS_AS_PRETRAINED = True
LR_FACTORS = {"B": "plus"}
PEFT_NAMES = {"A": "lora_A.weight", "B": "lora_B.weight", "m": "lora_magnitude_vector"}


def lr(optimizer: str, width: int) -> float:
    """LoRA's: SGD 1e-1, AdamW 5e-4."""
    return 1e-1 if optimizer == "sgd" else 5e-4


class DoRA(LoRA):
    """rank, scale, dropout: as of LoRA. m: (O)."""

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float):
        if not isinstance(base, nn.Linear | nn.Conv2d):
            wrapped = ", which wraps one: put dora first, or at other sites" if isinstance(base, Wrapper) else ""
            raise ValueError(f"DoRA splits the weight of a plain Linear or Conv2d, not of {type(base).__name__}{wrapped}")
        super().__init__(base, rank, scale, dropout)
        self.m = nn.Parameter(rows_norm(base.weight.detach()))

    def forward(self, x: Tensor) -> Tensor:
        layer, y, dropped = self.base, self.base(x), self.dropout(x)
        channels = (-1, *(1 for _ in layer.weight.shape[2:]))  # (O), or (O, 1, 1) before Y and X
        V = (layer.weight + change(layer, self.A, self.B, self.scale)).detach()
        ratio = (self.m / rows_norm(V)).view(channels)
        if self.dropout.training and self.dropout.p:
            Wx = self.without_bias(dropped)
        else:
            Wx = y if layer.bias is None else y - layer.bias.view(channels)
        return y + (ratio - 1) * Wx + ratio * self.beside(dropped)

    def without_bias(self, x: Tensor) -> Tensor:
        """W x"""
        layer = self.base
        if isinstance(layer, nn.Linear):
            return F.linear(x, layer.weight)
        return F.conv2d(x, layer.weight, None, layer.stride, layer.padding, layer.dilation)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        V = weight + change(self.base, self.A.to(weight), self.B.to(weight), self.scale)
        return V * (self.m.to(V) / rows_norm(V)).view(-1, *(1 for _ in V.shape[1:])), bias


def rows_norm(weight: Tensor) -> Tensor:
    return torch.linalg.vector_norm(weight.flatten(1), dim=1)  # (O, I) or (O, I, k, k) -> (O)


def dora(
    body: nn.Module,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    rslora: bool = False,
    sites: str = "",
    plus: float = 1.0,
) -> None:
    """LoRA for the direction of a weight, and its rows' lengths train too; mergeable.

    rank, alpha, dropout, rslora, plus: as of lora. sites: as of lora, without embeddings.
    """
    scale = scale_of(rank, alpha, dropout, rslora, plus)
    wrap(body, find(body, sites, SITES), lambda layer: DoRA(layer, rank, scale, dropout))
