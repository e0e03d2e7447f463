"""One label for a text, or for a pair of texts. Head, loss and metrics are in minift/tasks/classification.py."""

from collections.abc import Iterable
from dataclasses import dataclass

from minift.data.layout import TextLayout
from minift.data.texts import Texts, read_texts
from minift.tasks.classification import Classification
from minift.tasks.inputs import OfTexts


@dataclass(frozen=True)
class TextClassification(OfTexts, Classification):
    @staticmethod
    def read(source: str | Iterable, layout: TextLayout, labelled: bool = True) -> Texts:
        return read_texts(source, layout, labelled)

    @classmethod
    def learn(cls, train: Texts, options) -> "TextClassification":
        return cls(**cls.named(train, options), pool=options.pool, max_length=options.max_length, pairs=train.pairs is not None)
