"""Adapters (Houlsby et al. 2019, arXiv:1902.00751, section 2.1): a bottleneck behind each sub-layer, before its residual is added.

    x = LN(x + y + A(y)),    A(y) = W_up act(W_down y + b_down) + b_up,    y what the sub-layer gives

Of a model with LayerNorms before its sub-layers, as GPT-2, it is x + y + A(y), as in the adapters library; the paper has none.
The LayerNorms train too, as in the paper. On a ResNet or an EfficientNet y is what a block's branch gives, the bottleneck two 1x1
convolutions, and the BatchNorms stand still. By default W_up and the biases start as 0, so the model starts exactly as the
pretrained one; the paper's start is near that (`init=houlsby`: both N(0, 0.01), cut at two deviations); `init=bert` is the
adapters library's: both N(0, 0.02). Differs from the paper in that start; the paper does not name its activation, gelu is that of
its code.

Axes: B batch, S sequence, D width, C channels, Y height, X width of the map, M bottleneck.
Proved by tests/reference/test_houlsby.py: adapters' outputs and gradients, float64, 1e-10.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from minift.methods.surgery import Wrapper, find, plain, plain_modules, thaw, wrap

EPOCHS = 10
SITES = ("attention_branch/feed_forward_branch", "branch")
STARTS_AS_PRETRAINED = True
REDUCTION = 16.0
ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "swish": F.silu, "tanh": F.tanh}
STARTS = {"identity": (0.02, 0.0), "houlsby": (0.01, 0.01), "bert": (0.02, 0.02)}  # deviations of W_down and W_up

# Module here -> module in the adapters library's BertModel; {} and {i} = number of the layer, {name} = what the adapter is called
# there; weight and bias keep their names.
ADAPTERS = {
    "layers.{}.attention.adapter.down": "encoder.layer.{i}.attention.output.adapters.{name}.adapter_down.0",
    "layers.{}.attention.adapter.up": "encoder.layer.{i}.attention.output.adapters.{name}.adapter_up",
    "layers.{}.feed_forward.adapter.down": "encoder.layer.{i}.output.adapters.{name}.adapter_down.0",
    "layers.{}.feed_forward.adapter.up": "encoder.layer.{i}.output.adapters.{name}.adapter_up",
}
ADAPTERS_OF_GPT2 = {
    "layers.{}.attention.adapter.down": "h.{i}.attention_adapters.adapters.{name}.adapter_down.0",
    "layers.{}.attention.adapter.up": "h.{i}.attention_adapters.adapters.{name}.adapter_up",
    "layers.{}.feed_forward.adapter.down": "h.{i}.output_adapters.adapters.{name}.adapter_down.0",
    "layers.{}.feed_forward.adapter.up": "h.{i}.output_adapters.adapters.{name}.adapter_up",
}


def lr(optimizer: str, width: int) -> float:
    """SGD: 1e-1. AdamW: 1e-3 (Houlsby et al. 2019, section 3.2, try 3e-5 to 3e-3)."""
    return 1e-1 if optimizer == "sgd" else 1e-3


class Bottleneck(nn.Module):
    """A. size: M. channels_first: for maps (B, C, Y, X), else for (..., D)."""

    def __init__(self, width: int, size: int, activation: str, init: str, like: Tensor, channels_first: bool = False):
        super().__init__()
        kind = dict(dtype=like.dtype, device=like.device)
        self.down = nn.Conv2d(width, size, 1, **kind) if channels_first else nn.Linear(width, size, **kind)
        self.up = nn.Conv2d(size, width, 1, **kind) if channels_first else nn.Linear(size, width, **kind)
        self.activation = ACTIVATIONS[activation]
        for layer, deviation in zip((self.down, self.up), STARTS[init], strict=True):
            if init == "houlsby":
                nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
            else:
                nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.activation(self.down(x)))  # (..., D) -> (..., M) -> (..., D)


class Adapter(Wrapper):
    """A branch and the bottleneck behind it."""

    unmergeable = "its bottleneck is not linear"

    def __init__(self, base: nn.Module, size: int, reduction: float, activation: str, init: str):
        super().__init__(base)
        inner = [p for module in plain_modules(base).values() for p in plain(module).parameters(recurse=False)]
        last = inner[-1]  # the bias of the layer or the norm that the branch ends in: as wide as its output
        maps = any(isinstance(module, nn.Conv2d) for module in base.modules())
        self.adapter = Bottleneck(len(last), size_of(len(last), size, reduction), activation, init, last, maps)

    def forward(self, *inputs: Tensor | None) -> Tensor:
        y = self.base(*inputs)
        return y + self.adapter(y)


def size_of(width: int, size: int, reduction: float) -> int:
    return size or max(1, int(width // reduction))  # as the library: 16 // 3.2 is 4, as 3.2 in binary is a little more


def check(size: int, reduction: float, activation: str, init: str) -> None:
    """Raises ValueError for a value that no bottleneck could have."""
    if not (0 <= size <= 65_536 and 0.01 <= reduction < math.inf) or (size and reduction != REDUCTION):
        raise ValueError(f"size={size}, reduction={reduction:g}: 1 to 65,536, or 0.01 or more, is expected")
    for option, value, known in (("activation", activation, ACTIVATIONS), ("init", init, STARTS)):
        if value not in known:
            raise ValueError(f"{option}={value}: known are {', '.join(known)}")


def houlsby(
    body: nn.Module,
    *,
    reduction: float = REDUCTION,
    size: int = 0,
    activation: str = "gelu",
    init: str = "identity",
    norms: bool = True,
) -> None:
    """A bottleneck behind each sub-layer, and the LayerNorms; not mergeable.

    size: channels of the bottleneck; 0: the width divided by `reduction`, rounded down, at least 1.
    activation: gelu, relu, swish or tanh. init: identity, houlsby or bert, as above.
    norms: whether the LayerNorms train.
    """
    check(size, reduction, activation, init)
    branches = find(body, "", SITES)
    wrap(body, branches, lambda branch: Adapter(branch, size, reduction, activation, init))
    for module in body.modules():
        if norms and isinstance(module, nn.LayerNorm):
            thaw(module)
