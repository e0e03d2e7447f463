"""One label for an image. Head, loss and metrics are in minift/tasks/classification.py."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from minift.data.decoding import processes, sound
from minift.data.images import Images, read_images
from minift.data.labels import label_ids, label_names
from minift.data.layout import ImageLayout
from minift.data.loading import Pictures, Preprocessing
from minift.errors import UserError
from minift.tasks.classification import Classification


@dataclass(frozen=True)
class ImageClassification(Classification):
    MODEL: ClassVar = "resnet50"
    OPTIMIZER: ClassVar = "sgd"
    WEIGHT_DECAY: ClassVar = 1e-4
    LAYOUT: ClassVar = ImageLayout

    @classmethod
    def defaults(cls, method: str, checkpoint) -> dict[str, tuple]:
        if checkpoint.preprocessing is None:
            raise UserError(f"{checkpoint.source} is a model of texts; expected a ResNet for images, as --model resnet50")
        return {
            "augment": ("none" if method == "probe" else "standard", f"{method}'s own"),
            "workers": (processes(None), "found"),
        }

    @staticmethod
    def read(source: str | Iterable, layout: ImageLayout, labelled: bool = True) -> Images:
        return sound(read_images(source, layout, labelled), processes(layout.workers), layout.skip_bad_images)

    @classmethod
    def learn(cls, train: Images, options) -> "ImageClassification":
        return cls(label_names(train), "mean")

    def review(self, parts: dict[str, Images], options) -> list[str]:
        if "valid" in parts and options.valid is not None:  # a class folder that was forgotten
            label_ids(parts["valid"], self.labels, complete=True)
        return super().review(parts, options)

    def prepare(self, examples: Images, checkpoint, options=None, workers: int = 0) -> Pictures:
        targets = () if examples.labels is None else (label_ids(examples, self.labels),)
        pictures = Pictures(examples.files, targets, Preprocessing(**checkpoint.preprocessing), workers=workers)
        if options is None:
            return pictures
        if options.views is not None and (options.mixup or options.cutmix):
            raise UserError("--views with --mixup or --cutmix: mixed pictures are new in every epoch and cannot be kept")
        if options.views is not None and options.augment == "none":
            raise UserError("--views with --augment none: there is one view of every picture")
        names = ("augment", "mixup", "cutmix", "views", "seed")
        chosen = {name: getattr(options, name) for name in names}
        return replace(pictures, **chosen, classes=len(self.labels), smoothing=options.label_smoothing)
