"""A number for a text, or for a pair of texts, as the similarity of two sentences.

    s = w . dropout(pooled) + b,    t = (target - mean) / deviation,    loss = (s - t)^2,    prediction = s deviation + mean

mean and deviation are those of the training rows, the deviation over all N (as in numpy), so that the head starts near the
targets whatever their units; they are stored with the model. With --no-scale-targets 0 and 1 stand in their place, and the loss is
that of transformers' BertForSequenceClassification with problem_type "regression". The loss is in scaled units, the metric mse in
the targets' own: mse = deviation^2 loss. Outputs (B, 1) become (B) before they meet targets (B), which would broadcast to (B, B).

Folded into the head, W deviation and b deviation + mean give the same predictions without scaling.

Axes: N rows, B batch. Proved by tests/reference/test_regression.py (loss and gradients of transformers, the traps);
the metrics by tests/reference/test_metrics_regression.py.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minift.data.batching import Batch, Data
from minift.data.layout import TextLayout
from minift.data.texts import Texts, read_texts
from minift.errors import UserError
from minift.metrics.regression import mean_squared_error, regression_metrics
from minift.tables import as_text, table
from minift.tasks.inputs import OfTexts
from minift.tasks.task import Meter, PooledLinear


@dataclass(frozen=True)
class TextRegression(OfTexts):
    mean: float  # of the targets of the training rows
    deviation: float
    scaled: bool  # whether the model learns (target - mean) / deviation; else the targets as they are

    METRICS: ClassVar = {"mse": False, "pearson": True, "spearman": True, "pearson_spearman": True}

    def __post_init__(self):
        if not (math.isfinite(self.mean) and math.isfinite(self.deviation) and self.deviation > 0):
            raise ValueError(f"mean {self.mean}, deviation {self.deviation}: expected finite numbers, the deviation above 0")

    @staticmethod
    def read(source: str | Iterable, layout: TextLayout, labelled: bool = True) -> Texts:
        return read_texts(source, layout, labelled, "number")

    @classmethod
    def learn(cls, train: Texts, options) -> "TextRegression":
        targets = numbers(train)
        scale = np.abs(targets).max() or 1.0  # the square of 1e200 is no float64
        mean, deviation = float((targets / scale).mean() * scale), float((targets / scale).std() * scale)
        if (targets == targets[0]).all() or not deviation:
            raise UserError(f"{train.path}: every row has the target {targets[0]:g}; there is nothing to learn")
        return cls(options.pool, options.max_length, train.pairs is not None, mean, deviation, options.scale_targets)

    def review(self, parts: dict[str, Texts], options) -> list[str]:
        targets = numbers(parts["train"])
        least, greatest = targets.min(), targets.max()
        notes = [
            f"targets of the training rows: mean {self.mean:.4g}, deviation {self.deviation:.4g}, from {least:g} to "
            f"{greatest:g}; {'scaled to mean 0 and deviation 1' if self.scaled else 'not scaled'}"
        ]
        if ((targets == least) | (targets == greatest)).all():
            notes.append("the targets have two values only; for two classes there is --task text-classification")
        return notes

    def targets(self, examples: Texts) -> np.ndarray:
        """(N) in the units that the model learns."""
        offset, scale = self.scaling
        return (numbers(examples) - offset) / scale

    @property
    def scaling(self) -> tuple[float, float]:
        """(what a target of 0 is in its own units, what a difference of 1 is)"""
        return (self.mean, self.deviation) if self.scaled else (0.0, 1.0)

    def head(self, body: nn.Module) -> PooledLinear:
        return PooledLinear(body, 1)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """outputs: (B, 1). batch.targets: (B)."""
        (targets,) = batch.targets
        if outputs.shape != (*targets.shape, 1):
            raise ValueError(f"outputs (B, 1) and targets (B) are expected, found {outputs.shape} and {targets.shape}")
        targets = targets.to(torch.promote_types(outputs.dtype, torch.float32))
        return F.mse_loss(outputs.squeeze(-1).to(targets), targets, reduction="none")  # (B)

    def meter(self, data: Data) -> "Numbers":
        return Numbers(*self.scaling, self.mean)

    def predict(self, outputs: Iterable[tuple[int, list[Tensor]]], data: Data) -> Iterator[dict]:
        """value, in the units of the targets"""
        offset, scale = self.scaling
        for _, (output,) in outputs:  # (1)
            yield {"value": float(output.double()) * scale + offset}

    def show(self, prediction: dict) -> str:
        return f"{prediction['value']:.4g}"

    def compare(self, examples: Texts, row: int, prediction: dict) -> str:
        return f"{examples.labels[row]:g}, predicted {self.show(prediction)}"


def numbers(examples: Texts) -> np.ndarray:
    """(N) the targets in their own units; not by way of a list, whose objects would fill the memory."""
    return np.fromiter(examples.labels, np.float64, len(examples))


class Numbers(Meter):
    """Predictions and targets of all rows, in the units of the targets.

    offset, scale: what makes these of the model's. mean: of the training targets, the prediction of a model that reads nothing.
    """

    def __init__(self, offset: float, scale: float, mean: float):
        self.offset, self.scale, self.mean = offset, scale, mean
        self.parts: list[np.ndarray] = []  # (predicted, target) of each batch, (2, B)

    def add(self, outputs: Tensor, batch: Batch) -> None:
        both = torch.stack([outputs.squeeze(-1).double(), batch.targets[0].double()])
        self.parts.append(both.numpy() * self.scale + self.offset)

    def merge(self, other: "Numbers") -> None:
        self.parts += other.parts

    def metrics(self) -> dict[str, float | None]:
        return regression_metrics(*np.concatenate(self.parts, 1))

    def table(self) -> str:
        """Where predictions and targets lie, and what the mean of the training targets scores."""
        predicted, target = np.concatenate(self.parts, 1)
        rows = [
            [name, float(values.mean()), float(values.std()), float(values.min()), float(values.max())]
            for name, values in (("target", target), ("predicted", predicted))
        ]
        baseline = mean_squared_error(np.full_like(target, self.mean), target)
        lines = table(["", "mean", "deviation", "least", "greatest"], rows)
        return f"{lines}\nalways {self.mean:.4g}, the mean of the training rows: mse {as_text(baseline)}"
