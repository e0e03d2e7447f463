"""What tests of the training loop share: batches, models and options made by hand."""

from types import SimpleNamespace

import numpy as np
import torch
from tiny import CONFIG
from torch import Tensor, nn

from minift.data.batching import Batch
from minift.data.tokenising import Encoded
from minift.optim.precision import Float32
from minift.tasks.classification import Classification
from minift.tasks.task import Model
from minift.training import Progress, Training, fit


def batch_of(inputs: tuple, labels: Tensor | None = None, rows: np.ndarray | None = None) -> Batch:
    """A batch of units of one label each."""
    size = len(inputs[0])
    targets = () if labels is None else (labels,)
    return Batch(inputs, targets, np.arange(size) if rows is None else rows, torch.ones(size))


def encoded(tokens: list[np.ndarray], labels: np.ndarray, types: list[np.ndarray] | None = None, most: int = 40) -> Encoded:
    lengths = np.array([len(ids) for ids in tokens])
    return Encoded(tokens, types, lengths, (labels,), CONFIG.pad_token_id, most, 0)


def classifier(body: nn.Module, classes: int = 2, pool: str = "cls") -> Model:
    return Model(body, Classification([*"abcdefgh"[:classes]], pool).head(body))


def logits(model: Model, batch: Batch) -> Tensor:
    return model(batch)[1]


def loop_options(**changes) -> SimpleNamespace:
    """The options that `fit` reads."""
    defaults = {"epochs": 1, "batch_size": 4, "accumulate": 1, "clip": 1.0, "seed": 0, "monitor": "loss", "patience": None}
    defaults["on_nonfinite"] = "stop"
    return SimpleNamespace(**defaults | changes)


class Nowhere:
    """Takes the place of a run that would be written to disk."""

    def log(self, events):
        pass

    def save(self, model, task):
        pass


def train_with(
    model: Model, task, data, optimizer, run, schedule=lambda step: 1.0, unfreezing=None, penalties=(), **changes
) -> Progress:
    """`fit` without validation rows, in the type of the weights."""
    progress = Progress(changed=True)  # an optimizer that takes the place of ours may change nothing
    training = Training(model, task, optimizer, schedule, Float32(), unfreezing, penalties)
    fit(training, data, None, run, loop_options(**changes), progress)
    return progress
