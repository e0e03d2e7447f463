"""What the classification of texts and of images share: one label for an input.

    logits = W dropout(pooled) + b,    loss = -log softmax(logits)[label]

pooled is what the body's pooler makes of the last stage: of BERT the transformed [CLS] (as in transformers'
BertForSequenceClassification and in Devlin et al. 2019, section 4.1) or the mean over the tokens (as in Reimers & Gurevych 2019,
section 3), of ResNet the mean over the map.

Axes: B batch, D width, C classes. Proved by tests/reference/test_trajectory.py.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from minift.data.batching import Batch
from minift.metrics.classification import classification_metrics, confusion_matrix


class Classifier(nn.Module):
    """A body and the linear head on what it pools."""

    def __init__(self, body: nn.Module, classes: int):
        super().__init__()
        self.body = body
        self.dropout = nn.Dropout(body.config.head_dropout)
        self.head = nn.Linear(body.config.width, classes)
        body.initialise(self.head)

    def forward(self, batch: Batch) -> Tensor:
        state = self.body(*batch.inputs) if batch.state is None else self.body.resume(batch.state, batch.done)
        return self.head(self.dropout(state.pooled))  # (B, D) -> (B, C)


@dataclass(frozen=True)
class Classification:
    """What a run must know to train and to predict: the labels by name, in the order of their ids, and the pooling."""

    labels: list[str]
    pool: str  # of the body: cls or mean

    METRICS: ClassVar = ("accuracy", "f1_macro", "matthews")  # the first one chooses the best epoch

    def model(self, body: nn.Module) -> Classifier:
        return Classifier(body, len(self.labels))

    def count(self, batch: Batch) -> int:
        """What the loss of a batch is a sum over: its rows."""
        return len(batch.labels)

    def loss(self, logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> tuple[Tensor, int]:
        """(sum over the rows, number of rows); logits: (B, C), labels: (B) ids, or (B, C) shares of the classes.

        smoothing: this share of every label is spread evenly over all classes (Szegedy et al. 2016, arXiv:1512.00567, section 7).
        """
        return F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing), len(labels)

    def metrics(self, logits: Tensor, labels: np.ndarray) -> dict[str, float]:
        return classification_metrics(self.confusion(logits, labels))

    def confusion(self, logits: Tensor, labels: np.ndarray) -> np.ndarray:
        return confusion_matrix(labels, logits.argmax(-1).numpy(), len(self.labels))

    def decode(self, logits: Tensor) -> list[dict]:
        """One object a row: label, score (its probability), probabilities by label."""
        decoded = []
        for p in logits.double().softmax(-1).tolist():
            best = max(range(len(p)), key=p.__getitem__)
            decoded.append({"label": self.labels[best], "score": p[best], "probabilities": dict(zip(self.labels, p, strict=True))})
        return decoded
