"""Any number of labels for a text or a pair of texts. Head, loss, metrics and thresholds are in minift/tasks/multi_label.py."""

from collections.abc import Iterable
from dataclasses import dataclass

from minift.data.layout import TextLayout
from minift.data.texts import Texts, read_texts
from minift.tasks.inputs import OfTexts
from minift.tasks.multi_label import MultiLabel


@dataclass(frozen=True)
class MultiLabelClassification(OfTexts, MultiLabel):
    @staticmethod
    def read(source: str | Iterable, layout: TextLayout, labelled: bool = True) -> Texts:
        return read_texts(source, layout, labelled, "names")

    @classmethod
    def learn(cls, train: Texts, options) -> "MultiLabelClassification":
        return cls(**cls.fields_of(train, options), pool=options.pool, max_length=options.max_length, pairs=train.pairs is not None)
