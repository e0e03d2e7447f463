"""What the classification of texts and of images share: one label for an input.

    logits = W dropout(pooled) + b,    loss = -log softmax(logits)[label]

pooled is what the body's pooler makes of the last stage: of BERT the transformed [CLS] (as in transformers'
BertForSequenceClassification and in Devlin et al. 2019, section 4.1) or the mean over the tokens (as in Reimers & Gurevych 2019,
section 3), of ResNet the mean over the map.

Where classes are of unequal size, --class-weights balanced multiplies the loss of a row by the weight of its class, and counts the
row by that weight, so that the loss of a step is torch's weighted cross entropy of all its rows, however many batches they come in;
--sampler balanced draws from every class equally often instead. Both act in training alone: validation and test rows count alike.

Axes: N rows, B batch, C classes. Proved by tests/reference/test_trajectory.py, tests/reference/test_imbalance.py.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minift.data.balance import class_weights
from minift.data.batching import Batch, Data
from minift.data.examples import Examples
from minift.data.labels import label_ids, name_labels
from minift.metrics.classification import classification_metrics, confusion_matrix, per_class
from minift.tables import table
from minift.tasks.inputs import Pooled
from minift.tasks.task import Meter, PooledLinear


@dataclass(frozen=True)
class Classification(Pooled):
    labels: list[str]  # by name, in the order of their ids
    pool: str  # what the body pools to
    written: list[str] | None = field(default=None, kw_only=True)  # how data has the labels, as --label-names says; None: by name

    METRICS: ClassVar = {"accuracy": True, "f1_macro": True, "matthews": True}
    FISHER: ClassVar = ("drawn", "all", "data")

    def __post_init__(self):
        if len({*self.labels}) != len(self.labels):
            raise ValueError(f"labels {str(self.labels)[:80]}: expected names that differ")
        if self.written is not None and len(self.written) != len(self.labels):
            raise ValueError(f"{len(self.labels)} labels, and {len(self.written)} in the data")

    @staticmethod
    def named(train: Examples, options) -> dict[str, list[str] | None]:
        """The fields labels and written."""
        labels, written = name_labels(train, options.label_names)
        return {"labels": labels, "written": written}

    def rows_of(self, examples: Examples) -> dict[str, int]:
        """Label -> how many rows have it."""
        counts = Counter(examples.labels)
        return {label: counts[one] for label, one in zip(self.labels, self.written or self.labels, strict=True)}

    def review(self, parts: dict[str, Examples], options) -> list[str]:
        notes = []
        rows = self.rows_of(parts["train"])
        if absent := [label for label, n in rows.items() if not n]:
            notes.append(f"no training row has the label {listed(absent)}, which {options.label_names} names: it is never learned")
        if "valid" in parts and (absent := [label for label, n in self.rows_of(parts["valid"]).items() if rows[label] and not n]):
            notes.append(f"no validation row has the label {listed(absent)}: the figures of it say nothing")
        if len(self.labels) > 6:
            counts = Counter(rows).most_common()
            shown = ", ".join(f"{label} {n}" for label, n in counts[:6])
            notes.append(f"{len(self.labels)} labels in the training rows: {shown}, ... {counts[-1][0]} {counts[-1][1]}")
        if options.class_weights == "balanced":
            weights = class_weights(self.targets(parts["train"]), len(self.labels))
            notes.append("weights of the classes in training: " + weights_shown(self.labels, weights))
        if options.sampler == "balanced":
            n = len(parts["train"]) / sum(map(bool, rows.values()))
            least, most = (pick((label for label in rows if rows[label]), key=rows.get) for pick in (min, max))
            notes.append(f"an epoch draws {n:,.0f} rows of every class: each of the {rows[least]} of {least} {n / rows[least]:.3g} "
                         f"times, of the {rows[most]} of {most} {min(1.0, n / rows[most]):.0%}")  # fmt: skip
        return notes

    def columns(self, examples: Examples) -> dict[str, int]:
        return self.rows_of(examples) if len(self.labels) <= 6 else {}

    def targets(self, examples: Examples) -> np.ndarray:
        """(N) ids"""
        return label_ids(examples, self.written or self.labels)

    def counted(self, targets: tuple[np.ndarray, ...], options) -> dict:
        if options is None:
            return {}
        (ids,) = targets
        fields = {"smoothing": options.label_smoothing, "even": ids if options.sampler == "balanced" else None}
        if options.class_weights == "balanced":
            weights = class_weights(ids, len(self.labels))
            fields |= {"weights": weights, "counts": weights[ids]}
        return fields

    def head(self, body: nn.Module) -> PooledLinear:
        return PooledLinear(body, len(self.labels))

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """logits: (B, C). batch.targets: (B) ids, or (B, C) shares of the classes.

        batch.smoothing: this share of every label is spread evenly over all classes (Szegedy et al. 2016, arXiv:1512.00567,
        section 7). batch.weights: (C) of the classes. The counts are then the weights of the labels, by whose sum torch divides;
        of shares, which torch divides by the rows, the weights in these shares.
        """
        (labels,) = batch.targets
        weights = None if batch.weights is None else batch.weights.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, labels, weights, reduction="none", label_smoothing=batch.smoothing)  # (B, C), (B) -> (B)

    def drawn(self, logits: Tensor, batch: Batch, generator: torch.Generator) -> Batch:
        p = logits.double().softmax(-1).cpu()
        return replace(batch, targets=(p.multinomial(1, generator=generator)[:, 0].to(logits.device),))

    def outcomes(self, logits: Tensor, batch: Batch) -> list[tuple[float, Batch]]:
        p = logits[0].double().softmax(-1).tolist()
        return [(share, replace(batch, targets=(torch.tensor([c], device=logits.device),))) for c, share in enumerate(p)]

    def expected(self, batch: Batch, unit: int, tokenizer) -> dict[None, str]:
        right = batch.targets[0][unit].tolist()
        if isinstance(right, int):
            return {None: self.labels[right]}
        return {None: ", ".join(f"{label} {share:.3f}" for label, share in zip(self.labels, right, strict=True) if share)}

    def meter(self, data: Data) -> "Confusion":
        return Confusion(self.labels)

    def remarks(self, metrics: dict[str, float | None]) -> list[str]:
        even = math.log(len(self.labels))
        if metrics["loss"] < 1.5 * even:
            return []
        learned = (metrics.get("matthews") or 0) > 0.1
        advice = "right often enough, it is too sure where it is wrong; try fewer --epochs or --label-smoothing 0.1"
        return [f"the loss {metrics['loss']:.3g} is far above that of equal probabilities, ln {len(self.labels)} = {even:.3g}: "
                f"{advice if learned else 'training has gone astray; try a lower --lr'}"]  # fmt: skip

    def predict(self, outputs: Iterable[tuple[int, list[Tensor]]], data: Data) -> Iterator[dict]:
        """label, score (its probability), probabilities by label"""
        for _, (logits,) in outputs:  # (C)
            p = logits.double().softmax(-1).tolist()
            best = max(range(len(p)), key=p.__getitem__)
            yield {"label": self.labels[best], "score": p[best], "probabilities": dict(zip(self.labels, p, strict=True))}

    def show(self, prediction: dict) -> str:
        return f"{prediction['label']}  {prediction['score']:.3f}"

    def compare(self, examples: Examples, row: int, prediction: dict) -> str:
        label = self.labels[int(self.targets(examples.take([row]))[0])]
        right = f"{label} {prediction['probabilities'][label]:.3f}"
        return right if prediction["label"] == label else f"{right}, predicted {self.show(prediction).replace('  ', ' ')}"


def listed(labels: list[str]) -> str:
    return ", ".join(labels[:5]) + (f" and {len(labels) - 5} more" if labels[5:] else "")


def weights_shown(labels: list[str], weights: np.ndarray) -> str:
    """All of them, or of many the least and the greatest."""
    order = np.argsort(weights, kind="stable") if len(labels) > 6 else range(len(labels))
    shown = [f"{labels[i]} {weights[i]:.3g}" for i in order]
    return ", ".join(shown if len(labels) <= 6 else [*shown[:3], "...", *shown[-3:]])


class Confusion(Meter):
    """Rows by right and predicted class; and by their score, the probability of the predicted class, in bins of equal width."""

    BINS = 10

    def __init__(self, labels: list[str]):
        self.labels = labels
        self.bins = np.zeros((self.BINS, 3))  # of the rows of a bin: how many, the sum of their scores, how many are right
        self.matrix = np.zeros((len(labels), len(labels)), dtype=np.int64)  # (right, predicted)

    def add(self, logits: Tensor, batch: Batch) -> None:
        right, predicted = batch.targets[0], logits.argmax(-1)
        self.matrix += confusion_matrix(right.numpy(), predicted.numpy(), len(self.labels))
        score = logits.double().softmax(-1).amax(-1)  # (B, C) -> (B)
        bins = (score * self.BINS).long().clamp(0, self.BINS - 1).numpy()
        np.add.at(self.bins, bins, torch.stack([torch.ones_like(score), score, (right == predicted).double()], 1).numpy())

    def merge(self, other: "Confusion") -> None:
        self.matrix += other.matrix
        self.bins += other.bins

    def metrics(self) -> dict[str, float]:
        return classification_metrics(self.matrix)

    def details(self) -> dict:
        """by_label: precision, recall, F1 and rows of every class. confusion: right label -> predicted label -> rows, but for 0.

        calibration: the bins that are not empty, with the mean score and the accuracy of their rows; and the expected calibration
        error, sum_b n_b / N |accuracy_b - score_b| (Guo et al. 2017, arXiv:1706.04599, equation 3).
        """
        figures = {name: values.tolist() for name, values in per_class(self.matrix).items()}
        by_label = {label: {name: values[i] for name, values in figures.items()} for i, label in enumerate(self.labels)}
        confusion = {
            label: {self.labels[j]: int(row[j]) for j in np.flatnonzero(row)}
            for label, row in zip(self.labels, self.matrix, strict=True)
        }
        n = self.bins[:, 0]
        score, accuracy = (self.bins[:, 1:] / np.maximum(n, 1)[:, None]).T
        filled = [(b / self.BINS, int(n[b]), score[b].item(), accuracy[b].item()) for b in np.flatnonzero(n).tolist()]
        calibration = {
            "error": float((n * abs(accuracy - score)).sum() / max(n.sum(), 1)),
            "bins": [dict(zip(("above", "rows", "score", "accuracy"), one, strict=True)) for one in filled],
        }
        return {"by_label": by_label, "confusion": confusion, "calibration": calibration}

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
        left_out = (
            f"the confusion matrix, {len(self.labels)} x {len(self.labels)}, is too wide to print; result.json of a run holds it"
        )
        return f"{table(header, rows)}\n({left_out})"
