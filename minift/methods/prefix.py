"""Prefix tuning (Li & Liang 2021, arXiv:2101.00190, section 4): every attention sees P learned keys and values before the text's.

    attention = softmax(q [P_K; K]^T / sqrt(d)) [P_V; V]

flat (mlp=0):     P_K and P_V of every layer are the parameters, as in P-tuning v2 (Liu et al. 2022, arXiv:2110.07602)
mlp=h:            [P_K; P_V] of layer i = W_i tanh(W E + b) + b_i, with E (P, D) and W (h, D) common to all layers, W_i (2D, h)
                  (E and W count as the lowest layer's: for --layer-decay, for --unfreeze)

Two conventions are published for the positions of the text. With shift=false they stay 0, 1, ..., as in the paper's own equations
and in adapters; with shift=true they are P, P+1, ..., as in peft and P-tuning v2, which pass the prefix as a cache of the past.
The default is shift=false: the text keeps the position vectors that it was pretrained with, and the model its full length. For a
prefix that goes to peft, shift=true.
Starts as N(0, std^2), flat or E; W and W_i as torch's Linear. peft and adapters have std=1. No dropout, as in peft.

Axes: B batch, H heads, P prefix, S sequence, d width of a head, D = H d, h hidden.
Proved by tests/reference/test_prefix.py: outputs and gradients of peft and of adapters, flat and mlp, float64, 1e-10.
"""

import math

import torch
from torch import Tensor, nn

from minift.methods.surgery import Shared, Wrapper, find, wrap

EPOCHS = 10
SITES = ("attend",)
STARTS_AS_PRETRAINED = False
PEFT_NAME = "prompt_embeddings"  # of all layers' prefixes side by side


def lr(optimizer: str, width: int) -> float:
    """SGD: 1e-1. AdamW: 1e-2 (Liu et al. 2022 have 5e-3 to 1e-2)."""
    return 1e-1 if optimizer == "sgd" else 1e-2


class Encoder(nn.Module):
    """tanh(W E + b), which all layers share: (P, h)."""

    def __init__(self, length: int, width: int, hidden: int, std: float, kind: dict):
        super().__init__()
        self.E = nn.Parameter(torch.randn(length, width, **kind) * std)
        self.dense = nn.Linear(width, hidden, **kind)

    def forward(self) -> Tensor:
        return self.dense(self.E).tanh()  # (P, D) -> (P, h)


class Flat(nn.Module):
    """P_K and P_V of one layer as they are: (P, 2D)."""

    def __init__(self, length: int, width: int, std: float, kind: dict):
        super().__init__()
        self.keys_values = nn.Parameter(torch.empty(length, 2 * width, **kind))
        nn.init.normal_(self.keys_values, std=std)

    def forward(self) -> Tensor:
        return self.keys_values


class Projected(nn.Module):
    """P_K and P_V of one layer from the encoder that all layers share: (P, 2D)."""

    def __init__(self, encode: Shared, width: int, hidden: int, kind: dict):
        super().__init__()
        self.encode = encode
        self.dense = nn.Linear(hidden, 2 * width, **kind)

    def forward(self) -> Tensor:
        return self.dense(self.encode())  # (P, h) -> (P, 2D)


class Prefixed(Wrapper):
    """softmax(q K^T) V with a prefix."""

    unmergeable = "a prefix is no change of a weight"

    def __init__(self, base: nn.Module, prefix: nn.Module):
        super().__init__(base)
        self.prefix = prefix

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        B, H, _, d = k.shape
        keys, values = self.prefix().to(k.dtype).view(-1, 2, H, d).permute(1, 2, 0, 3)  # (P, 2D) -> 2 x (H, P, d)
        k, v = (torch.cat([p.expand(B, -1, -1, -1), x], 2) for p, x in ((keys, k), (values, v)))  # (B, H, P + S, d)
        if mask is not None:
            seen = mask.new_ones(*mask.shape[:-1], keys.shape[1])
            mask = torch.cat([seen, mask], -1)  # (B, S) -> (B, P + S), or (B, 1, S, S) -> (B, 1, S, P + S)
        return self.base(q, k, v, mask)


class Shifted(Wrapper):
    """Positions that start P higher. Has no parameters."""

    unmergeable = "a prefix is no change of a weight"

    def __init__(self, base: nn.Module, by: int):
        super().__init__(base)
        self.lengthens = by

    def forward(self, tokens: Tensor, mask: Tensor | None, given: Tensor | None) -> Tensor:
        return self.base(tokens, mask, given) + self.lengthens


def prefix(body: nn.Module, *, length: int = 10, mlp: int = 0, shift: bool = False, std: float = 1.0) -> None:
    """Learned keys and values before every attention's own; not mergeable.

    length: P. mlp: hidden width of the reparametrising network; 0: none. shift: whether the text's positions start at P.
    std: of what starts at random.
    """
    if not (1 <= length <= 65_536 and 0 <= mlp <= 65_536 and 0 < std < math.inf):
        raise ValueError(
            f"length={length}, mlp={mlp}, std={std:g}: a length up to 65,536, an mlp from 0 to that, a finite std above 0"
        )
    width, weight = body.config.width, next(body.parameters())
    kind = {"dtype": weight.dtype, "device": weight.device}
    sites = find(body, "", SITES)
    if mlp:
        encoder = Encoder(length, width, mlp, std, kind)
        prefixes = [Projected(Shared(encoder), width, mlp, kind) for _ in sites]
        prefixes[0].encoder = encoder  # the lowest layer registers it
    else:
        prefixes = [Flat(length, width, std, kind) for _ in sites]
    made = iter(prefixes)
    wrap(body, sites, lambda attend: Prefixed(attend, next(made)))
    if shift:
        wrap(body, find(body, "positions"), lambda positions: Shifted(positions, length))
