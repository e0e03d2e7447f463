"""Adapters, once a layer (Pfeiffer et al. 2020, arXiv:2005.00247, appendix, and the adapters library's `seq_bn`).

    x = LN(s + A(LN(s))),    s = x + y the finished sum of the feed-forward half,    A as in houlsby.py, with relu

The same pretrained LayerNorm is applied twice and stays frozen; what goes round the bottleneck is s itself, not LN(s). By default A
starts as 0, so the model starts exactly as the pretrained one: LN(s). Of a model with LayerNorms before its branches, as GPT-2, the
sum is what the layer gives, and no LayerNorm follows: x = s + A(s), as in the library.
Differs from the library in that start; `init=bert` is its own.

Proved by tests/reference/test_pfeiffer.py: adapters' outputs and gradients, float64, 1e-10.
"""

from torch import Tensor, nn

from minift.methods.houlsby import REDUCTION, Bottleneck, check, size_of
from minift.methods.surgery import Wrapper, find, wrap

EPOCHS = 10
SITES = ("feed_forward_norm",)
STARTS_AS_PRETRAINED = True

# Module here -> module in the adapters library's BertModel, as in houlsby.py
ADAPTERS = {
    "layers.{}.feed_forward_norm.adapter.down": "encoder.layer.{i}.output.adapters.{name}.adapter_down.0",
    "layers.{}.feed_forward_norm.adapter.up": "encoder.layer.{i}.output.adapters.{name}.adapter_up",
}
ADAPTERS_OF_GPT2 = {
    "layers.{}.adapter.down": "h.{i}.output_adapters.adapters.{name}.adapter_down.0",
    "layers.{}.adapter.up": "h.{i}.output_adapters.adapters.{name}.adapter_up",
}


def lr(optimizer: str, width: int) -> float:
    """SGD: 1e-1. AdamW: 1e-3 (Pfeiffer et al. 2020 have 1e-4 and far more rows)."""
    return 1e-1 if optimizer == "sgd" else 1e-3


class DoubleNorm(Wrapper):
    """A LayerNorm, applied before the bottleneck and behind it."""

    unmergeable = "its bottleneck is not linear"

    def __init__(self, base: nn.Module, size: int, reduction: float, activation: str, init: str):
        super().__init__(base)
        gain = next(base.parameters())
        self.adapter = Bottleneck(len(gain), size_of(len(gain), size, reduction), activation, init, gain)

    def forward(self, s: Tensor) -> Tensor:
        return self.base(s + self.adapter(self.base(s)))


class Behind(Wrapper):
    """A layer, and the bottleneck behind its last sum."""

    unmergeable = "its bottleneck is not linear"

    def __init__(self, base: nn.Module, adapter: Bottleneck):
        super().__init__(base)
        self.adapter = adapter

    def forward(self, state):
        state = self.base(state)
        return state._replace(hidden=state.hidden + self.adapter(state.hidden))


def pfeiffer(
    body: nn.Module, *, reduction: float = REDUCTION, size: int = 0, activation: str = "relu", init: str = "identity"
) -> None:
    """One bottleneck a layer, behind the feed-forward half; not mergeable.

    size: channels of the bottleneck; 0: the width divided by `reduction`, rounded down, at least 1.
    activation: gelu, relu, swish or tanh. init: identity, houlsby or bert, as in houlsby.py.
    """
    check(size, reduction, activation, init)
    norms = find(body, "", SITES)
    if body.PRE_LN:
        like = next(body.parameters())
        width = body.config.width
        kind = size_of(width, size, reduction), activation, init, like
        wrap(body, find(body, "layer"), lambda layer: Behind(layer, Bottleneck(width, *kind)))
        return
    wrap(body, norms, lambda norm: DoubleNorm(norm, size, reduction, activation, init))
