"""What is added to the loss of a step, or acts beside it, so that training stays where it should.

Proved by tests/optim/test_penalties.py.

Axes: B units of a batch.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn


@dataclass
class Anchored:
    """The parameters that a run trains, as it starts."""

    pretrained: list[tuple[Tensor, Tensor]]  # (theta, theta_0): those with pretrained values, and these values
    new: list[Tensor]  # those without: the head, and a pooler that the checkpoint does not have


class Penalty:
    """A subclass defines one of the three methods. Proved by test_a_penalty_counts_once_a_step_or_once_a_unit."""

    REPLACES_DECAY: ClassVar[bool] = False  # whether it stands in the place of weight decay

    def term(self, model: nn.Module) -> Tensor | float:
        """A scalar, added once a step, however many batches the step has."""
        return 0.0

    def units(self, state: tuple, outputs, batch, progress) -> Tensor | None:
        """(B) a number for each unit; their mean over all units of the step is added."""
        return None

    def pull(self, groups: Iterable, factor: float, finite: Tensor) -> None:
        """Move the parameters that train, just before the update of a step.

        groups: of the optimizer. factor: the schedule's, on their learning rates. finite: a bool scalar on the device; where it is
        False the update is left out, and nothing may move.
        """
