"""A task that is awkward in every way: two windows a row, a head that reads targets, counts unequal to rows, a tuned threshold.

Each half of a text is a unit. Its target is 1 where the text is positive, its count the number of its tokens; in training a token
of each unit is left out, another one in each epoch, or in each of two variants. The score of a row is the mean over its windows.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from minift.data.batching import Batch, Data
from minift.data.layout import TextLayout
from minift.data.texts import Texts, read_texts
from minift.data.tokenising import encode, pad
from minift.flags import flag
from minift.tasks.flags import TextFlags
from minift.tasks.task import Meter, PooledLinear, Task


@dataclass(frozen=True)
class ToyFlags(TextFlags):
    anew: bool = flag(True, "leave out another token in each epoch; else one of two")


class Halves(Data):
    """tokens: of each unit."""

    def __init__(self, tokens: list[np.ndarray], targets: np.ndarray | None, seed: int | None, variants: int | None):
        self.tokens, self.targets, self.seed, self.variants = tokens, targets, seed, variants
        self.lengths = np.array([len(ids) - (seed is not None) for ids in tokens])
        self.as_evaluated = seed is None

    @property
    def rows(self) -> np.ndarray:
        return np.arange(len(self.tokens)) // 2

    def outline(self, units: np.ndarray, epoch: int | None) -> Batch:
        targets = () if self.targets is None else (torch.from_numpy(self.targets[units]),)
        counts = torch.tensor([float(len(self.tokens[i])) for i in units])
        return Batch((), targets, self.rows[units], counts)

    def batches(self, order, device, epoch=None) -> Iterator[Batch]:
        for units in order:
            tokens = [self.seen(int(i), epoch) for i in units]
            yield replace(self.outline(units, epoch), inputs=pad(tokens, 0)).to(device)

    def seen(self, unit: int, epoch: int | None) -> np.ndarray:
        ids = self.tokens[unit]
        if self.seed is None:
            return ids
        variant = 0 if epoch is None else epoch if self.variants is None else epoch % self.variants
        return np.delete(ids, np.random.default_rng((self.seed, variant, unit)).integers(len(ids)))


class Head(nn.Module):
    """outputs: score (B), and where there are targets how far it is from them, as with teacher forcing."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.linear = PooledLinear(body, 1)

    def forward(self, state: tuple, batch: Batch) -> dict[str, Tensor]:
        score = self.linear(state, batch).squeeze(-1)  # (B, 1) -> (B)
        return {"score": score} | ({"error": score - batch.targets[0].to(score)} if batch.targets else {})


@dataclass(frozen=True)
class Toy(Task):
    labels: list[str]
    pool: str
    max_length: int
    threshold: float = 0.5

    MODEL: ClassVar = "minilm-l6"
    OPTIMIZER: ClassVar = "adamw"
    WEIGHT_DECAY: ClassVar = 0.01
    METRICS: ClassVar = {"agreement": True}
    LAYOUT: ClassVar = TextLayout

    @classmethod
    def defaults(cls, method, checkpoint):
        return {"max_length": (20, "default"), "pool": ("mean", "default")}

    @staticmethod
    def read(source, layout, labelled=True) -> Texts:
        return read_texts(source, layout, labelled)

    @classmethod
    def learn(cls, train, options) -> "Toy":
        return cls(sorted({*train.labels}), options.pool, options.max_length)

    def prepare(self, examples, checkpoint, options=None, workers=0) -> Halves:
        tokens, _, _ = encode(checkpoint.tokenizer, examples.texts, None, self.max_length, checkpoint.config["pad_token_id"])
        halves = [half for ids in tokens for half in np.array_split(ids, 2)]
        targets = None
        if examples.labels is not None:
            targets = np.repeat([float(label == self.labels[1]) for label in examples.labels], 2)
        return Halves(halves, targets, options and options.seed, None if options and options.anew else 2 if options else 1)

    def head(self, body) -> Head:
        return Head(body)

    def loss(self, outputs, batch) -> Tensor:
        return outputs["error"].square() * batch.counts.to(outputs["error"])  # (B)

    def meter(self, data) -> "Agreement":
        return Agreement(self.threshold)

    def tune(self, meter: "Agreement") -> "Toy":
        return replace(self, threshold=meter.best())

    def predict(self, outputs, data) -> Iterator[dict]:
        for row, units in outputs:
            score = float(torch.stack([unit["score"] for unit in units]).mean())
            yield {"row": row, "score": score, "label": self.labels[int(score > self.threshold)]}


class Agreement(Meter):
    def __init__(self, threshold: float):
        self.threshold, self.scores, self.targets = threshold, {}, {}

    def add(self, outputs, batch: Batch) -> None:
        for row, score, target in zip(batch.rows.tolist(), outputs["score"].tolist(), batch.targets[0].tolist(), strict=True):
            self.scores.setdefault(row, []).append(score)
            self.targets[row] = target

    def merge(self, other: "Agreement") -> None:
        self.scores |= other.scores
        self.targets |= other.targets

    def agreement(self, threshold: float) -> float:
        right = [(np.mean(scores) > threshold) == (self.targets[row] > 0.5) for row, scores in self.scores.items()]
        return float(np.mean(right))

    def best(self) -> float:
        """Halfway between two scores, so that rounding does not decide."""
        scores = sorted(float(np.mean(scores)) for scores in self.scores.values())
        return max(((a + b) / 2 for a, b in itertools.pairwise(scores)), key=self.agreement)

    def metrics(self) -> dict[str, float]:
        return {"agreement": self.agreement(self.threshold)}
