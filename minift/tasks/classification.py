"""What the classification of texts and of images share: one label for an input.

    logits = W dropout(pooled) + b,    loss = -log softmax(logits)[label]

pooled is what the body's pooler makes of the last stage: of BERT the transformed [CLS] (as in transformers'
BertForSequenceClassification and in Devlin et al. 2019, section 4.1) or the mean over the tokens (as in Reimers & Gurevych 2019,
section 3), of ResNet the mean over the map.

Axes: B batch, C classes. Proved by tests/reference/test_trajectory.py.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from minift.data.batching import Batch, Data
from minift.data.examples import Examples
from minift.metrics.classification import classification_metrics, confusion_matrix, per_class
from minift.tables import table
from minift.tasks.task import Meter, PooledLinear, Task


@dataclass(frozen=True)
class Classification(Task):
    labels: list[str]  # by name, in the order of their ids
    pool: str  # what the body pools to: cls or mean

    METRICS: ClassVar = {"accuracy": True, "f1_macro": True, "matthews": True}

    def __post_init__(self):
        if len({*self.labels}) != len(self.labels):
            raise ValueError(f"labels {str(self.labels)[:80]}: expected names that differ")
        if self.pool not in ("cls", "mean"):
            raise ValueError(f"pool {self.pool!r}: expected cls or mean")

    def review(self, parts: dict[str, Examples], options) -> list[str]:
        notes = []
        if absent := [label for label in self.labels if "valid" in parts and label not in {*parts["valid"].labels}]:
            more = f" and {len(absent) - 5} more" if absent[5:] else ""
            notes.append(f"no validation row has the label {', '.join(absent[:5])}{more}: the figures of it say nothing")
        if len(self.labels) > 6:
            counts = Counter(parts["train"].labels).most_common()
            listed = ", ".join(f"{label} {n}" for label, n in counts[:6])
            notes.append(f"{len(self.labels)} labels in the training rows: {listed}, ... {counts[-1][0]} {counts[-1][1]}")
        return notes

    def columns(self, examples: Examples) -> dict[str, int]:
        counts = Counter(examples.labels)
        return {label: counts[label] for label in self.labels} if len(self.labels) <= 6 else {}

    def head(self, body: nn.Module) -> PooledLinear:
        return PooledLinear(body, len(self.labels))

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """logits: (B, C). batch.targets: (B) ids, or (B, C) shares of the classes.

        batch.smoothing: this share of every label is spread evenly over all classes (Szegedy et al. 2016, arXiv:1512.00567,
        section 7).
        """
        (labels,) = batch.targets
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=batch.smoothing)  # (B, C), (B) -> (B)

    def meter(self, data: Data) -> "Confusion":
        return Confusion(self.labels)

    def predict(self, outputs: Iterable[tuple[int, list[Tensor]]], data: Data) -> Iterator[dict]:
        """label, score (its probability), probabilities by label"""
        for _, (logits,) in outputs:  # (C)
            p = logits.double().softmax(-1).tolist()
            best = max(range(len(p)), key=p.__getitem__)
            yield {"label": self.labels[best], "score": p[best], "probabilities": dict(zip(self.labels, p, strict=True))}

    def show(self, prediction: dict) -> str:
        return f"{prediction['label']}  {prediction['score']:.3f}"

    def compare(self, examples: Examples, row: int, prediction: dict) -> str:
        label = examples.labels[row]
        right = f"{label} {prediction['probabilities'][label]:.3f}"
        return right if prediction["label"] == label else f"{right}, predicted {self.show(prediction).replace('  ', ' ')}"


class Confusion(Meter):
    """Rows by right and predicted class."""

    def __init__(self, labels: list[str]):
        self.labels = labels
        self.matrix = np.zeros((len(labels), len(labels)), dtype=np.int64)  # (right, predicted)

    def add(self, logits: Tensor, batch: Batch) -> None:
        self.matrix += confusion_matrix(batch.targets[0].numpy(), logits.argmax(-1).numpy(), len(self.labels))

    def merge(self, other: "Confusion") -> None:
        self.matrix += other.matrix

    def metrics(self) -> dict[str, float]:
        return classification_metrics(self.matrix)

    def table(self) -> str:
        """Precision, recall, F1 and rows of every class; the confusion matrix beside them where it is not too wide."""
        figures = per_class(self.matrix)
        header = ["label", *figures]
        rows = [
            [label, *(float(figures[name][i]) for name in ("precision", "recall", "f1")), int(figures["rows"][i])]
            for i, label in enumerate(self.labels)
        ]
        if len(self.labels) <= 8:
            header += [f"-> {label[:12]}" for label in self.labels]
            rows = [row + self.matrix[i].tolist() for i, row in enumerate(rows)]
        return table(header, rows)
