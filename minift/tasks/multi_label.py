"""What the multi-label classification of texts and of images share: each of L labels is there or not, in any number.

    p_l = sigmoid(w_l . dropout(pooled) + b_l),    loss = - sum_l [ v_l y_l log p_l + (1 - y_l) log(1 - p_l) ]

The loss of a row is a sum over its L labels and counted as L, so that the loss of a step is the mean over rows x labels, as that of
transformers with problem_type "multi_label_classification": the gradient of a label falls as 1/L where labels are added. A row
without any label is a row. v_l, --pos-weight, is in the loss and not in the count, as in torch; it acts in training alone.

A row has the labels with p_l at or above their threshold. In training it is 0.5, at which rare labels are never predicted for long:
therefore the mean average precision, which needs none, chooses the epoch. Then thresholds are chosen on the validation rows
(--thresholds), whose F1 is optimistic from then on; so it is said, and the F1 at 0.5 stands beside.

Axes: N rows, B batch, L labels. Proved by tests/reference/test_multi_label.py (loss and gradients of transformers, the traps); the
metrics by tests/reference/test_metrics_multilabel.py.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minift.data.balance import positive_weights
from minift.data.batching import Batch, Data
from minift.data.examples import Examples
from minift.data.labels import label_sets, name_labels
from minift.errors import UserError
from minift.metrics.multilabel import (
    average_precision,
    label_counts,
    multilabel_metrics,
    per_class,
    subset_accuracy,
    tune_threshold,
    tune_thresholds,
)
from minift.tables import table
from minift.tasks.classification import listed, weights_shown
from minift.tasks.inputs import Pooled
from minift.tasks.task import Meter, PooledLinear

UNTUNED = 0.5


@dataclass(frozen=True)
class MultiLabel(Pooled):
    labels: list[str]  # by name, in the order of their ids
    pool: str  # what the body pools to
    written: list[str] | None = field(default=None, kw_only=True)  # how data has the labels, as --label-names says; None: by name
    thresholds: list[float] = field(kw_only=True)  # (L) of the probabilities from which on a row has the label
    tuning: str = field(kw_only=True)  # how they are chosen: one (for all), each (its own), fixed
    tuned_on: int = field(kw_only=True)  # validation rows on which they were; 0: they are not

    METRICS: ClassVar = {"mean_average_precision": True, "f1_micro": True, "f1_macro": True, "subset_accuracy": True}

    def __post_init__(self):
        L = len(self.labels)
        if len({*self.labels}) != L or len(self.thresholds) != L or (self.written is not None and len(self.written) != L):
            raise ValueError(f"labels {str(self.labels)[:80]}: expected names that differ, and a threshold for each")
        if self.tuning not in ("one", "each", "fixed"):
            raise ValueError(f"tuning {self.tuning!r}: expected one, each or fixed")

    @staticmethod
    def fields_of(train: Examples, options) -> dict:
        """The fields of this class but pool, of a task that has not been trained."""
        check_pos_weight(options.pos_weight)
        labels, written = name_labels(train, options.label_names)
        untuned = {"thresholds": [UNTUNED] * len(labels), "tuning": options.thresholds, "tuned_on": 0}
        return {"labels": labels, "written": written, **untuned}

    def rows_of(self, examples: Examples) -> dict[str, int]:
        """Label -> how many rows have it."""
        counts = Counter(one for several in examples.labels for one in several)
        return {label: counts[one] for label, one in zip(self.labels, self.written or self.labels, strict=True)}

    def review(self, parts: dict[str, Examples], options) -> list[str]:
        notes, rows = [], self.rows_of(parts["train"])
        if absent := [label for label, n in rows.items() if not n]:
            notes.append(f"no training row has the label {listed(absent)}, which {options.label_names} names: it is never learned")
        if "valid" in parts and (absent := [label for label, n in self.rows_of(parts["valid"]).items() if rows[label] and not n]):
            notes.append(f"no validation row has the label {listed(absent)}: its average precision and F1 are 0 and count in the "
                         "means; its threshold cannot be chosen by itself")  # fmt: skip
        sizes = Counter(map(len, parts["train"].labels))
        notes.append(f"{len(self.labels)} labels, {sum(rows.values()) / len(parts['train']):.2f} a training row; "
                     f"{sizes[0]:,} of the {len(parts['train']):,} have none")  # fmt: skip
        if sizes.keys() == {1}:
            notes.append("every training row has exactly one label; where labels exclude each other, text-classification and "
                         "image-classification are for that")  # fmt: skip
        if len(self.labels) > 6:
            counts = Counter(rows).most_common()
            notes.append("training rows by label: " + ", ".join(f"{label} {n}" for label, n in counts[:6])
                         + f", ... {counts[-1][0]} {counts[-1][1]}")  # fmt: skip
        if options.pos_weight == "balanced":
            shown = weights_shown(self.labels, positive_weights(self.targets(parts["train"])))
            notes.append(f"weights of having a label in training: {shown}")
        if "valid" not in parts and self.tuning != "fixed":
            notes.append(f"no validation rows: the threshold stays at {UNTUNED}")
        return notes

    def columns(self, examples: Examples) -> dict[str, int]:
        return self.rows_of(examples) if len(self.labels) <= 6 else {}

    def targets(self, examples: Examples) -> np.ndarray:
        """(N, L) truth values"""
        return label_sets(examples, self.written or self.labels)

    def counted(self, targets: tuple[np.ndarray, ...], options) -> dict:
        L = len(self.labels)
        if options is None or options.pos_weight == "none":
            return {"count": L}
        (sets,) = targets
        balanced = options.pos_weight == "balanced"
        return {"count": L, "weights": positive_weights(sets) if balanced else np.full(L, float(options.pos_weight))}

    def head(self, body: nn.Module) -> PooledLinear:
        return PooledLinear(body, len(self.labels))

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """logits: (B, L). batch.targets: (B, L) truth values. batch.weights: (L) of having each label."""
        (sets,) = batch.targets
        if logits.shape != sets.shape:
            raise ValueError(f"logits and targets are expected to be (B, L), found {logits.shape} and {sets.shape}")
        dtype = torch.promote_types(logits.dtype, torch.float32)
        weights = None if batch.weights is None else batch.weights.to(dtype)
        losses = F.binary_cross_entropy_with_logits(logits.to(dtype), sets.to(dtype), reduction="none", pos_weight=weights)
        return losses.sum(-1)  # (B, L) -> (B)

    def expected(self, batch: Batch, unit: int, tokenizer) -> dict[None, str]:
        has = batch.targets[0][unit].tolist()
        return {None: ", ".join(label for label, there in zip(self.labels, has, strict=True) if there) or "no label"}

    def meter(self, data: Data) -> "Sets":
        return Sets(self)

    def tune(self, meter: "Sets") -> "MultiLabel":
        if self.tuning == "fixed":
            return self
        gold, p = meter.all()
        if self.tuning == "each":
            found, least = tune_thresholds(gold, p, UNTUNED), p.min(0)
        else:
            found, least = np.full(len(self.labels), tune_threshold(gold, p, UNTUNED)), p.min()
        found = np.where(found <= least, found / 2, found)  # where all rows have it: between the lowest and 0, far from rounding
        return replace(self, thresholds=found.tolist(), tuned_on=len(gold))

    def predict(self, outputs: Iterable[tuple[int, list[Tensor]]], data: Data) -> Iterator[dict]:
        """labels (those at or above their threshold, the most probable first), probabilities by label"""
        for _, (logits,) in outputs:  # (L)
            p = dict(zip(self.labels, logits.double().sigmoid().tolist(), strict=True))
            threshold = dict(zip(self.labels, self.thresholds, strict=True))
            yield {"labels": [one for one in sorted(p, key=p.get, reverse=True) if p[one] >= threshold[one]], "probabilities": p}

    def show(self, prediction: dict) -> str:
        return ", ".join(f"{one} {prediction['probabilities'][one]:.3f}" for one in prediction["labels"]) or "no label"

    def compare(self, examples: Examples, row: int, prediction: dict) -> str:
        has = self.targets(examples.take([row]))[0]
        right = [one for one, there in zip(self.labels, has, strict=True) if there]
        shown = ", ".join(f"{one} {prediction['probabilities'][one]:.3f}" for one in right) or "no label"
        return shown if {*right} == {*prediction["labels"]} else f"{shown}; predicted {self.show(prediction)}"


def check_pos_weight(given: str) -> None:
    if given in ("none", "balanced"):
        return
    try:
        right = 0 < float(given) <= 1e6
    except ValueError:
        right = False
    if not right:
        raise UserError(f"--pos-weight {given}: expected none, balanced or a number above 0")


class Sets(Meter):
    """Probabilities and right labels of all rows: the average precision needs the order of all."""

    def __init__(self, task: MultiLabel):
        self.task = task
        self.gold: list[np.ndarray] = []  # (B, L) of each batch
        self.p: list[np.ndarray] = []  # likewise

    def add(self, logits: Tensor, batch: Batch) -> None:
        self.gold.append(batch.targets[0].numpy())
        self.p.append(logits.double().sigmoid().numpy())

    def merge(self, other: "Sets") -> None:
        self.gold += other.gold
        self.p += other.p

    def all(self) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate(self.gold), np.concatenate(self.p)

    def metrics(self) -> dict[str, float]:
        gold, p = self.all()
        predicted = p >= np.array(self.task.thresholds)
        f1 = multilabel_metrics(label_counts(gold, predicted))
        return {
            "mean_average_precision": float(average_precision(gold, p).mean()),
            "f1_micro": f1["f1_micro"],
            "f1_macro": f1["f1_macro"],
            "subset_accuracy": subset_accuracy(gold, predicted),
        }

    def details(self) -> dict:
        """by_label: precision, recall, F1, average precision, rows and threshold of every label."""
        gold, p = self.all()
        figures = per_class(label_counts(gold, p >= np.array(self.task.thresholds)))
        columns = {name: figures[name].tolist() for name in ("precision", "recall", "f1")}
        columns |= {"average precision": average_precision(gold, p).tolist(), "rows": figures["rows"].astype(int).tolist()}
        columns["threshold"] = self.task.thresholds
        return {
            "by_label": {label: {name: column[i] for name, column in columns.items()} for i, label in enumerate(self.task.labels)}
        }

    def table(self) -> str:
        """The same; F1 at 0.5."""
        by_label = self.details()["by_label"]
        rows = [[label, *figures.values()] for label, figures in by_label.items()]
        lines = table(["label", *next(iter(by_label.values()))], rows)
        if not self.task.tuned_on:
            return lines
        gold, p = self.all()
        plain = multilabel_metrics(label_counts(gold, p >= UNTUNED))
        return (
            f"{lines}\nthresholds chosen on the {self.task.tuned_on:,} validation rows, whose F1 is therefore optimistic; at "
            f"{UNTUNED} these rows have f1_micro {plain['f1_micro']:.4f}, f1_macro {plain['f1_macro']:.4f}"
        )
