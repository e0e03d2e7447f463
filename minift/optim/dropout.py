"""Dropout from fewer random bits, on a CPU.

Torch draws 32 or more bits for every element, one after the other on a single core, while the other cores wait: the draws of a
LoRA's steps on SST-2 took 6 % of the processor's time. Here an element has 16 bits of its own, four of them to one draw of 64:

    keep_i = [bits_i >= round(65536 p)],  bits_i uniform in 0 .. 65535;   y = x keep / q,  q = 1 - round(65536 p) / 65536

so that what is kept has the probability q, which differs from 1 - p by 2^-17 at most, and E[y] = x. For the same seed the masks are
others than those of nn.Dropout (Srivastava et al. 2014, section 4); they come from the same generator of torch's, so that seeds
and recomputation work as they do there. What attention drops is in attention.py. Proved by tests/optim/test_dropout.py.
"""

import torch
from torch import Tensor, nn

LEVELS = 1 << 16


class SixteenBits(nn.Dropout):
    """nn.Dropout with 16 random bits for each element. p: from 0 to 1."""

    def forward(self, x: Tensor) -> Tensor:
        dropped = round(LEVELS * self.p)
        if not self.training or not dropped:
            return x
        if dropped == LEVELS:
            return x * 0.0
        keep = kept(bits_for(x), dropped, torch.empty_like(x))
        return x * keep.mul_(LEVELS / (LEVELS - dropped))


def bits_for(x: Tensor) -> Tensor:
    """int16 in the shape of x, every value with the same probability."""
    n = x.numel()
    words = torch.empty((n + 3) // 4, dtype=torch.int64).random_(-(2**63), None)  # None: to 2^63, all 64 bits
    return words.view(torch.int16)[:n].view(x.shape)


def kept(bits: Tensor, dropped: int, out: Tensor) -> Tensor:
    """1 in `out` where the bits are not of the lowest `dropped` of their 65,536 values, 0 elsewhere."""
    return torch.ge(bits, dropped - LEVELS // 2, out=out)


def cheap_dropout(model: nn.Module) -> None:
    """Replace every nn.Dropout of a model on a CPU."""
    if next(model.parameters()).device.type != "cpu":
        return
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, SixteenBits(child.p).train(child.training))
