"""Averages of the weights over training, which are scored and saved in the place of the last ones; training goes on from these.

Both average all that training changes: the parameters, and the statistics of BatchNorms that move.
Proved by tests/optim/test_averaging.py: torch's AveragedModel, float64, 1e-12.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

AVERAGING = {"ema": "minift.optim.averaging:EMA", "last": "minift.optim.averaging:Last"}


class Average:
    """mean: of each of the tensors, in its place while `in_place` lasts; empty: of nothing yet, and the weights stay."""

    def __init__(self, tensors: dict[str, Tensor]):
        self.tensors = {name: tensor.detach() for name, tensor in tensors.items() if tensor.is_floating_point()}
        self.mean: dict[str, Tensor] = {}
        self.count, self.epoch = 0, 0  # updates, or epochs, in the mean; the epoch after which it was changed last

    def after_step(self) -> None:
        """An update was made."""

    def after_epoch(self, epoch: int, epochs: int) -> None:
        """Epoch number `epoch` of `epochs`, counted from 1, is over; said again where a run goes on from just there."""

    @torch.no_grad()
    def add(self, share: float) -> None:
        """mean <- mean + share (theta - mean)"""
        if not self.mean:
            self.mean = {name: tensor.clone() for name, tensor in self.tensors.items()}
        for name, tensor in self.tensors.items():
            self.mean[name].lerp_(tensor, share)
        self.count += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the mean as its weights; afterwards the same bits as before."""
        own = {name: self.tensors[name].clone() for name in self.mean}
        self.put(self.mean)
        try:
            yield
        finally:
            self.put(own)

    @torch.no_grad()
    def put(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.tensors[name].copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        return {"at": torch.tensor([self.count, self.epoch]), **{f"mean/{name}": tensor for name, tensor in self.mean.items()}}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from `state_dict`. Raises ValueError where it is of other tensors."""
        self.count, self.epoch = state["at"].tolist()
        means = {name.removeprefix("mean/"): tensor for name, tensor in state.items() if name != "at"}
        if means and means.keys() != self.tensors.keys():
            raise ValueError(f"it has {len(means)} averages, expected {len(self.tensors)}")
        self.mean = {name: tensor.to(self.tensors[name].device, copy=True) for name, tensor in means.items()}


class EMA(Average):
    """mean <- decay mean + (1 - decay) theta after every update, from the weights after the first one on.

    It reaches back about 1 / (1 - decay) updates; where a run has fewer, it stays near where the run has started. decay: from 0 to
    below 1. Raises ValueError for another.
    """

    def __init__(self, tensors: dict[str, Tensor], decay: float = 0.99):
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: a number from 0 to below 1 is expected")
        super().__init__(tensors)
        self.decay = decay

    def after_step(self) -> None:
        self.add(1 - self.decay)


class Last(Average):
    """The mean of the weights at the ends of the last epochs, each counting alike (SWA, Izmailov et al. 2018, arXiv:1803.05407,
    algorithm 1, with the run's own schedule). Of a run whose --epochs is raised, it goes on from the epochs that it has.

    epochs: 1 or more. Raises ValueError for another number.
    """

    def __init__(self, tensors: dict[str, Tensor], epochs: int = 3):
        if epochs < 1:
            raise ValueError(f"epochs={epochs}: 1 or more is expected")
        super().__init__(tensors)
        self.epochs = epochs

    def after_epoch(self, epoch: int, epochs: int) -> None:
        if epoch > self.epoch and epoch > epochs - self.epochs:
            self.add(1 / (self.count + 1))
            self.epoch = epoch
