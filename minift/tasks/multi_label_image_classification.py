"""Any number of labels for an image. Head, loss, metrics and thresholds are in minift/tasks/multi_label.py."""

from collections.abc import Iterable
from dataclasses import dataclass

from minift.data.decoding import processes, sound
from minift.data.images import Images, read_images
from minift.data.layout import ImageLayout
from minift.tasks.inputs import OfImages
from minift.tasks.multi_label import MultiLabel


@dataclass(frozen=True)
class MultiLabelImageClassification(OfImages, MultiLabel):
    @staticmethod
    def read(source: str | Iterable, layout: ImageLayout, labelled: bool = True) -> Images:
        return sound(read_images(source, layout, labelled, "names"), processes(layout.workers), layout.skip_bad_images)

    @classmethod
    def learn(cls, train: Images, options) -> "MultiLabelImageClassification":
        return cls(**cls.fields_of(train, options), pool="mean")
