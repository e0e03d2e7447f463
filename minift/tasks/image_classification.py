"""One label for an image. Model, loss and metrics are in minift/tasks/classification.py."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from minift.data.decoding import processes, sound, verdict
from minift.data.images import Images, class_ids, class_names, read_images
from minift.data.loading import Pictures, Preprocessing
from minift.data.reading import LAYOUT_FLAGS, Layout
from minift.errors import UserError
from minift.tasks.classification import Classification


@dataclass(frozen=True)
class ImageClassification(Classification):
    pool: str = "mean"

    OPTIMIZER: ClassVar = "sgd"
    WEIGHT_DECAY: ClassVar = 1e-4
    MODEL: ClassVar = "resnet50"
    # Flags that another kind of input has no use for
    FLAGS: ClassVar = (*(f for f in LAYOUT_FLAGS if f != "pair_column"), "augment", "mixup", "cutmix", "views")

    @staticmethod
    def open_flags(method: str, checkpoint) -> dict[str, tuple]:
        """Flag -> (value where it is unset, where that comes from)."""
        if checkpoint.preprocessing is None:
            raise UserError(f"{checkpoint.source} is a model of texts; for images a ResNet is wanted, as --model resnet50")
        return {
            "augment": ("none" if method == "probe" else "standard", f"{method}'s own"),
            "workers": (processes(None), "found"),
            "pool": ("mean", "the one there is"),
        }

    @staticmethod
    def settings(options, rows: Images) -> dict:
        """What predictions must know of a run besides its labels and the preprocessing."""
        return {}

    @staticmethod
    def read(path: str, layout: Layout, labelled: bool = True) -> Images:
        return sound(read_images(path, labelled, layout), processes(layout.workers), layout.skip_bad_images)

    @staticmethod
    def for_training(data: Pictures, options, classes: int) -> Pictures:
        """The training pictures as training sees them: augmented and mixed."""
        if options.views is not None and (options.mixup or options.cutmix):
            raise UserError("--views with --mixup or --cutmix: mixed pictures are new in every epoch and cannot be kept")
        if options.views is not None and options.augment == "none":
            raise UserError("--views with --augment none: there is one view of every picture")
        return replace(
            data,
            classes=classes,
            augment=options.augment,
            mixup=options.mixup,
            cutmix=options.cutmix,
            views=options.views,
            seed=options.seed,
        )

    @staticmethod
    def rows(files: list[str], pairs: None = None) -> Images:
        """Files that come from no directory."""
        if isinstance(files, str) or not all(isinstance(file, str | Path) for file in files):
            raise UserError("predict: a list of files is wanted, as predict(['one.jpg', 'another.jpg'])")
        if pairs is not None:
            raise UserError("predict: an image has no second text")
        for file in map(Path, files):
            if not file.is_file():
                wrong = "a directory; for all images in it say --data" if file.is_dir() else "no such file"
                raise UserError(f"{file}: {wrong}")
            if problem := verdict(file):
                raise UserError(f"{file}: {problem}")
        return Images(Path("predict"), [Path(file) for file in files], None, None)

    @staticmethod
    def names(rows: Images) -> list[str]:
        return class_names(rows)

    @staticmethod
    def ids(rows: Images, names: list[str], complete: bool) -> np.ndarray:
        """complete: no class may be missing, as in a validation split of the user's own."""
        return class_ids(rows, names, complete)

    @staticmethod
    def prepare(rows: Images, labels: np.ndarray | None, checkpoint, settings: dict, workers: int = 0) -> Pictures:
        """checkpoint: has the preprocessing. workers: processes that read images. The pictures are as evaluation wants them."""
        return Pictures(rows.files, labels, Preprocessing(**checkpoint.preprocessing), workers=workers)
