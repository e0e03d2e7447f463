"""LoRA (Hu et al. 2021, arXiv:2106.09685, section 4.1): a low-rank product trains beside a frozen weight.

    y = W x + b + s B A drop(x),    s = alpha / r, or alpha / sqrt(r) with rslora (Kalajdzievski 2023, arXiv:2312.03732)

    Linear      A (r, I), B (O, r)
    Conv2d      A (r, I, k, k), a convolution with W's stride, padding and dilation; B (O, r, 1, 1)
    Embedding   A (r, V), B (D, r): row t of the table gains s B A[:, t]; no dropout

plus (LoRA+, Hayou et al. 2024, arXiv:2402.12354, section 4): B has `plus` times the learning rate of A; the paper takes 16. peft's
optimizer gives this learning rate to all other vectors that train, too, and embeddings one of their own; here B alone has it.

A starts as U(+-1/sqrt(fan in)) and B as 0, so the model starts as the pretrained one; for an Embedding A is 0 and B is N(0, 1).
Differs from the paper, as its authors' code and peft do: A is uniform there, not Gaussian.

Axes: B batch, I inputs, O outputs, r rank, k kernel, V vocabulary, D width.
Proved by tests/reference/test_lora.py: peft's outputs and gradients, float64, 1e-10.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minift.methods.surgery import Wrapper, find, plain, wrap

EPOCHS = 10
# In a transformer query and value, as in the paper's section 7.1; in a GPT-2 the one matrix of query, key and value, as in peft; in
# a ResNet the 3x3 convolutions; in an EfficientNet the 1x1 convolutions of its blocks
SITES = ("query/value", "qkv", "conv2", "expand/project")
STARTS_AS_PRETRAINED = True
LR_FACTORS = {"B": "plus"}  # last segment of a parameter's name -> the option that holds the factor on its learning rate
PEFT_NAMES = {"A": "lora_A.weight", "B": "lora_B.weight"}  # parameter here -> in peft's layer
PEFT_NAMES_OF_EMBEDDING = {"A": "lora_embedding_A", "B": "lora_embedding_B"}


def lr(optimizer: str, width: int) -> float:
    """SGD: 1e-1. AdamW: 5e-4 (Hu et al. 2021, table 9: 4e-4 and 5e-4 for RoBERTa-base)."""
    return 1e-1 if optimizer == "sgd" else 5e-4


class LoRA(Wrapper):
    """rank: r, 1 or more. scale: s. dropout: its probability, on the input of A, 0 to below 1."""

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float):
        super().__init__(base)
        if isinstance(plain(base), nn.Embedding) and isinstance(base, Wrapper) and not isinstance(base, LoRA):
            raise ValueError(f"{type(base).__name__} has no row in the table for each id that comes in: put lora first")
        self.scale = scale
        self.A, self.B = factors(plain(base), rank)
        self.dropout = nn.Identity() if isinstance(plain(base), nn.Embedding) else nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.beside(self.dropout(x))

    def beside(self, x: Tensor) -> Tensor:
        """s B A x"""
        layer = plain(self.base)
        if isinstance(layer, nn.Linear):
            return F.linear(F.linear(x, self.A) * self.scale, self.B)  # (..., I) -> (..., r) -> (..., O)
        if isinstance(layer, nn.Conv2d):
            low = F.conv2d(x, self.A, None, layer.stride, layer.padding, layer.dilation)  # (B, I, Y, X) -> (B, r, Y', X')
            return F.conv2d(low * self.scale, self.B)  # -> (B, O, Y', X')
        return F.linear(F.embedding(x, self.A.T, layer.padding_idx) * self.scale, self.B)  # (...) -> (..., r) -> (..., D)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + change(plain(self.base), self.A.to(weight), self.B.to(weight), self.scale), bias


def factors(layer: nn.Module, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """The initial A and B of a layer. Raises ValueError for a layer that has no such factors."""
    if not isinstance(layer, nn.Linear | nn.Conv2d | nn.Embedding):
        raise ValueError(f"{type(layer).__name__} is neither Linear nor Conv2d nor Embedding")
    if isinstance(layer, nn.Conv2d) and (layer.groups > 1 or layer.padding_mode != "zeros"):
        kind = "a depthwise convolution" if layer.groups == layer.in_channels else "a convolution"
        raise ValueError(f"{kind} with groups={layer.groups} and padding_mode={layer.padding_mode} has no such factors")
    W = layer.weight
    if isinstance(layer, nn.Embedding):
        A, B = W.new_zeros(rank, W.shape[0]), torch.randn(W.shape[1], rank, dtype=W.dtype, device=W.device)
    else:
        A, B = W.new_empty(rank, *W.shape[1:]), W.new_zeros(W.shape[0], rank, *(1 for _ in W.shape[2:]))
        bound = 1 / math.sqrt(A[0].numel())
        nn.init.uniform_(A, -bound, bound)
    return nn.Parameter(A), nn.Parameter(B)


def change(layer: nn.Module, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """The change of the layer's weight: s B A."""
    if isinstance(layer, nn.Embedding):
        return (B @ A).T * scale  # (V, D)
    return (B.flatten(1) @ A.flatten(1)).view(B.shape[0], *A.shape[1:]) * scale  # (O, I) or (O, I, k, k)


def scale_of(rank: int, alpha: float, dropout: float, rslora: bool, plus: float) -> float:
    """s; raises ValueError for a value out of range."""
    if not 1 <= rank <= 65_536 or not 0 < alpha < math.inf or not 0 <= dropout < 1 or not 0 < plus < math.inf:
        raise ValueError(
            f"rank={rank}, alpha={alpha:g}, dropout={dropout:g}, plus={plus:g}: rank is 1 to 65,536, alpha and plus are above 0 "
            "and finite, dropout is from 0 to below 1"
        )
    return alpha / (math.sqrt(rank) if rslora else rank)


def lora(
    body: nn.Module,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    rslora: bool = False,
    sites: str = "",
    plus: float = 1.0,
) -> None:
    """A product of two low-rank matrices trains beside each frozen weight; mergeable.

    sites: roles or regular expressions joined by `/`; unset: query and value of a transformer, qkv of a GPT-2, the 3x3 convolutions
    of a ResNet, the 1x1 convolutions of an EfficientNet's blocks. A depthwise convolution is refused: it has no low-rank factors.
    """
    scale = scale_of(rank, alpha, dropout, rslora, plus)
    wrap(body, find(body, sites, SITES), lambda layer: LoRA(layer, rank, scale, dropout))
