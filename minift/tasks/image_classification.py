"""One label for an image. Head, loss and metrics are in minift/tasks/classification.py."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from minift.data.decoding import processes, sound
from minift.data.images import Images, read_images
from minift.data.labels import label_ids
from minift.data.layout import ImageLayout
from minift.data.loading import Pictures
from minift.errors import UserError
from minift.tasks.classification import Classification
from minift.tasks.inputs import OfImages


@dataclass(frozen=True)
class ImageClassification(OfImages, Classification):
    @staticmethod
    def read(source: str | Iterable, layout: ImageLayout, labelled: bool = True) -> Images:
        return sound(read_images(source, layout, labelled), processes(layout.workers), layout.skip_bad_images)

    @classmethod
    def learn(cls, train: Images, options) -> "ImageClassification":
        return cls(**cls.named(train, options), pool="mean")

    def review(self, parts: dict[str, Images], options) -> list[str]:
        if "valid" in parts and options.valid is not None and self.written is None:  # a class folder that was forgotten
            label_ids(parts["valid"], self.labels, complete=True)
        return super().review(parts, options)

    def prepare(self, examples: Images, checkpoint, options=None, workers: int = 0) -> Pictures:
        if options is None:
            return super().prepare(examples, checkpoint, options, workers)
        if options.views is not None and (options.mixup or options.cutmix):
            raise UserError("--views with --mixup or --cutmix: mixed pictures are new in every epoch and cannot be kept")
        pictures = super().prepare(examples, checkpoint, options, workers)
        return replace(pictures, mixup=options.mixup, cutmix=options.cutmix, classes=len(self.labels))
