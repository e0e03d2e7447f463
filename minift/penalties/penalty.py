"""What is added to the loss of a step, or acts beside it, so that training stays where it should.

Proved by tests/optim/test_penalties.py.

Axes: B units of a batch.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn


@dataclass
class Anchored:
    """The parameters that a run trains, as it starts."""

    pretrained: list[tuple[Tensor, Tensor]]  # (theta, theta_0): those with pretrained values, and these values
    new: list[Tensor]  # those without: the head, and a pooler that the checkpoint does not have
    names: list[str] = field(default_factory=list)  # of `pretrained`: in the plain body, or head.NAME
    model: nn.Module | None = None  # that trains
    source: object = None  # minift/source.py: what the run starts from; None: random weights


class Beside:
    """Other rows than the run's, a batch a step: in epochs of their own, in an order that depends on (seed, step) alone.

    data: minift/data/batching.py's. rows: of a batch.
    """

    def __init__(self, data, rows: int, seed: int):
        self.data, self.rows, self.seed = data, rows, seed
        self.per_epoch = len(data.order(rows, seed, 0))
        self.epoch, self.order = -1, []

    def batch(self, step: int, device: torch.device):
        epoch, number = divmod(step, self.per_epoch)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, self.data.order(self.rows, self.seed, epoch)
        return next(iter(self.data.batches([self.order[number]], device, epoch)))


class Penalty:
    """A subclass defines one of the methods, or acts on the model as it is made. Proved by
    test_a_penalty_counts_once_a_step_or_once_a_unit."""

    REPLACES_DECAY: ClassVar[bool] = False  # whether it stands in the place of weight decay
    ONCE: ClassVar[bool] = False  # whether a second one beside it would not add to it
    ASKS_SOURCE: ClassVar[bool] = False  # whether it needs what the run starts from, besides the values of the weights

    def begin(self, directory: Path | None) -> None:
        """Before the first step: compute what it needs, and keep it in the run's directory for when the run goes on."""

    def term(self, model: nn.Module, progress=None) -> Tensor | float:
        """A scalar, added once a step, however many batches the step has. progress: training.Progress, before the step."""
        return 0.0

    def units(self, state: tuple, outputs, batch, progress) -> Tensor | None:
        """(B) a number for each unit; their mean over all units of the step is added."""
        return None

    def figures(self) -> dict[str, float]:
        """What to tell of the steps since this was asked last, as after an epoch."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """What a run that goes on needs of it."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from `state_dict`."""

    def pull(self, groups: Iterable, factor: float, finite: Tensor) -> None:
        """Move the parameters that train, just before the update of a step.

        groups: of the optimizer. factor: the schedule's, on their learning rates. finite: a bool scalar on the device; where it is
        False the update is left out, and nothing may move.
        """
