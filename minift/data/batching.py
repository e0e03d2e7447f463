"""Units in batches: similar lengths together, so that little is padding; and what a task makes of its rows.

A unit is what goes through the model at once: a row, or a window of a row. All that is random here is a pure function of (seed,
epoch, unit): a run can go on in the middle of an epoch without a stored random state.

Axes: N units, B units of a batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from minift.data.balance import evenly

WINDOW = 50  # batches


@dataclass
class Batch:
    """Units that go through the model together: as the body takes them, or as the state that frozen stages have left."""

    inputs: tuple[Tensor | None, ...]  # of the body's forward, (B, ...) each
    targets: tuple[Tensor, ...]  # what the head and the loss read, (B, ...) each; () in prediction
    rows: np.ndarray  # (B) the number of the row of each unit; where units share a row of the inputs, of all of them
    counts: Tensor  # (B) floats on the CPU: what the loss of each unit is a sum over, as 1 label, n words; 0 where nothing counts
    smoothing: float = 0.0  # label smoothing: a training batch's
    weights: Tensor | None = None  # (C) of the classes in the loss: a training batch's; None: all 1
    state: tuple | None = None  # the body's State after its first `done` modules; None: the body starts from `inputs`
    done: int = 0

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; the counts stay on the CPU, where no one has to wait for them."""

        def moved(x):
            if not isinstance(x, Tensor):
                return x
            x = x.pin_memory() if device.type == "cuda" and x.device.type == "cpu" else x  # from there it is copied beside the work
            return x.to(device, non_blocking=True)

        def move(tensors):
            return map(moved, tensors)

        state = None if self.state is None else self.state._make(move(self.state))
        (weights,) = move((self.weights,))
        return replace(self, inputs=tuple(move(self.inputs)), targets=tuple(move(self.targets)), weights=weights, state=state)


class Data:
    """The rows of a split, ready for the model. A task's `prepare` returns a subclass.

    A subclass has `lengths`, `outline` and `batches`; where a row may have several units it has `rows` as well.
    """

    lengths: np.ndarray  # (N) of the units: tokens
    variants: int | None = 1  # of a unit in training, in turn over the epochs; None: a new one in each epoch

    as_evaluated: bool = True  # whether training sees a unit as evaluation does, so that variant 0 serves both

    @property
    def rows(self) -> np.ndarray:
        """(N) the number of the row of each unit. The units of a row stand together."""
        return np.arange(len(self.lengths))

    def __len__(self) -> int:
        return len(self.lengths)

    def order(self, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch of training, as arrays of unit numbers: a pure function of its arguments."""
        return shuffled(self.lengths, batch_size, seed, epoch)

    def outline(self, units: np.ndarray, epoch: int | None) -> Batch:
        """The batch of these units without its inputs, on the CPU: all that a cache of features does not hold."""
        raise NotImplementedError

    def batches(self, order: list[np.ndarray], device: torch.device, epoch: int | None = None) -> Iterator[Batch]:
        """A Batch on the device for every array of unit numbers in `order`. epoch None is evaluation, where nothing is random."""
        raise NotImplementedError

    def describe(self) -> dict[str, int | str]:
        """Figures for the table of the data."""
        return {}

    def sample(self) -> tuple[list[str], list[list]] | None:
        """A row of training as a table, token by token: (header, rows); None: there is nothing to show."""
        return None


@dataclass(kw_only=True)
class Labelled(Data):
    """Rows of one unit each, and how training counts them. Evaluation counts all rows alike.

    A subclass has the fields targets, a tuple of arrays (N, ...), and smoothing as well.
    """

    count: int = 1  # what the loss of a row is a sum over: 1 label, or L labels each of which it has or not
    weights: np.ndarray | None = None  # (C) of the classes in the loss of training
    counts: np.ndarray | None = None  # (N) what the loss of a row is a sum over in training; None: `count`
    even: np.ndarray | None = None  # (N) classes that an epoch of training draws equally often; None: every row once

    def order(self, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
        return shuffled(self.lengths, batch_size, seed, epoch, self.even)

    def outline(self, units: np.ndarray, epoch: int | None) -> Batch:
        targets = tuple(torch.from_numpy(values[units]) for values in self.targets)
        batch = Batch((), targets, units, torch.full((len(units),), float(self.count)))
        if epoch is None:
            return batch
        counts = batch.counts if self.counts is None else torch.from_numpy(self.counts[units])
        weights = None if self.weights is None else torch.from_numpy(self.weights)
        return replace(batch, counts=counts, smoothing=self.smoothing, weights=weights)


def shuffled(lengths: np.ndarray, batch_size: int, seed: int, epoch: int, even: np.ndarray | None = None) -> list[np.ndarray]:
    """All units once, in batches in random order. Units are shuffled, sorted by length within windows of 50 batches, and cut.

    lengths: (N). even: (N) the class of each unit; as many units are then drawn as there are, from all classes equally many.
    Returns arrays of unit numbers; of each window's batches only the last may be shorter than batch_size.
    """
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(lengths) if even is None else evenly(even, random))
    window = WINDOW * batch_size
    batches = []
    for start in range(0, len(order), window):
        units = order[start : start + window]
        batches += in_order(units[np.argsort(lengths[units], kind="stable")], batch_size)
    return [batches[i] for i in random.permutation(len(batches))]


def without_lone(batches: list[np.ndarray]) -> list[np.ndarray]:
    """The same batches, but a last one of a single unit, wherever it stands, has joined the one before it, or the first the next.

    BatchNorm takes its statistics from a batch, and those of one unit say nothing, or are not defined at all.
    """
    lone = next((i for i, units in enumerate(batches) if len(units) == 1), None)
    if lone is None or max(map(len, batches)) == 1:  # batches of one are what was asked for
        return batches
    other = lone - 1 if lone else 1
    joined = np.concatenate([batches[other], batches[lone]])
    return [joined if i == other else units for i, units in enumerate(batches) if i != lone]


def by_length(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """All units once, the longest first: a memory that is too small shows at once, and nothing is random."""
    return in_order(np.argsort(-lengths, kind="stable"), batch_size)


def in_windows(data: Data, batch_size: int) -> Iterator[list[np.ndarray]]:
    """The batches of prediction: windows of about 50 batches in the order of the rows, each sorted by length.

    No row is parted by the end of a window, so that after each window its rows are complete.
    """
    rows, start = data.rows, 0
    while start < len(rows):
        end = min(start + WINDOW * batch_size, len(rows))
        while end < len(rows) and rows[end] == rows[end - 1]:
            end += 1
        units = np.arange(start, end)
        yield in_order(units[np.argsort(-data.lengths[units], kind="stable")], batch_size)
        start = end


def whole_windows(rows: int, batch_size: int) -> int:
    """At most so many rows that fill the windows of prediction, but one window: of rows that are predicted so many at a time the
    batches are those of all together."""
    window = WINDOW * batch_size
    return max(rows // window, 1) * window


def in_order(units: np.ndarray, batch_size: int) -> list[np.ndarray]:
    return [units[i : i + batch_size] for i in range(0, len(units), batch_size)]
