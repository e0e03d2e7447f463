"""Which rows go into which batch: similar lengths together, so that little is padding.

The order is a pure function of (seed, epoch): a run can go on in the middle of an epoch without a stored random state.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

WINDOW = 50  # batches


def shuffled(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """All rows once, in batches in random order. Rows are shuffled, sorted by length within windows of 50 batches, and cut.

    lengths: (N). Returns arrays of row numbers; of each window's batches only the last may be shorter than batch_size.
    """
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(lengths))
    window = WINDOW * batch_size
    batches = []
    for start in range(0, len(order), window):
        rows = order[start : start + window]
        batches += in_order(rows[np.argsort(lengths[rows], kind="stable")], batch_size)
    return [batches[i] for i in random.permutation(len(batches))]


def by_length(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """All rows once, the longest first: a memory that is too small shows at once, and nothing is random."""
    return in_order(np.argsort(-lengths, kind="stable"), batch_size)


def in_order(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    return [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]


@dataclass
class Batch:
    """Rows that go through the model together: as the body takes them, or as the state that a frozen trunk has left.

    Axes: B rows.
    """

    inputs: tuple[Tensor | None, ...]  # of the body's forward, (B, ...) each
    labels: Tensor | None  # (B) ids, or (B, C) shares of the classes where rows are mixed
    state: tuple | None = None  # the body's State after its first `done` stages; None: the body starts from `inputs`
    done: int = 0

    def to(self, device: torch.device) -> "Batch":
        def move(x):
            return x.to(device, non_blocking=True) if isinstance(x, Tensor) else x

        state = None if self.state is None else self.state._make(map(move, self.state))
        return Batch(tuple(map(move, self.inputs)), move(self.labels), state, self.done)
