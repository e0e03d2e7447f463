"""What all optimisers share: groups, the walk over their parameters, state per parameter, and blocks that stay in the cache."""

from collections.abc import Iterator

import torch
from torch import Tensor

from minift.optim.groups import Group

BLOCK = 1 << 17  # elements: four blocks of float32 (theta, g, m, v) and one in between about fill a second-level cache


class Optimizer:
    """An update rule is a subclass: `moments`, the number of tensors it remembers of each parameter, and `update`.

    A parameter without a gradient is left alone: no decay, no state, and its own step count stands still, so that one thawed late
    starts at 1. On a CPU a parameter is updated block by block, so that the passes over it run in the cache.

    groups: from `make_groups`. state: parameter -> its step count t and its moments, which start as zeros.
    """

    moments: int

    def __init__(self, groups: list[Group]):
        self.groups = groups
        self.state: dict[Tensor, tuple] = {}

    @torch.no_grad()
    def step(self, factor: float = 1.0) -> None:
        """One update of every parameter that has a gradient; factor: eta, the schedule's."""
        for group in self.groups:
            for theta in group.parameters:
                if theta.grad is None:
                    continue
                t, *moments = self.state.get(theta) or (0, *(torch.zeros_like(theta) for _ in range(self.moments)))
                self.state[theta] = (t + 1, *moments)
                for block in blocks(theta, theta.grad, *moments):
                    self.update(t + 1, factor * group.lr, group.weight_decay, *block)

    def update(self, t: int, lr: float, weight_decay: float, theta: Tensor, g: Tensor, *moments: Tensor) -> None:
        """The t-th update of theta, or of a block of it, in place; lr: eta times the group's rate. g is left as it is."""
        raise NotImplementedError

    def zero_grad(self) -> None:
        for group in self.groups:
            for theta in group.parameters:
                theta.grad = None


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape, together: in views of BLOCK elements where all lie in memory in one piece and one order of their axes,
    as contiguous and channels_last tensors do, and on a CPU; else as they are.
    """
    order = sorted(range(tensors[0].dim()), key=tensors[0].stride, reverse=True)
    flat = [x.permute(order) for x in tensors]
    if all(x.device.type == "cpu" and x.is_contiguous() for x in flat):
        return zip(*(x.view(-1).split(BLOCK) for x in flat), strict=True)
    return iter([tensors])
