"""Pictures to batches: resize, crop, augment and mix through torchvision.transforms.v2, decoded in worker processes.

Training draws at random, yet every draw is a function of (seed, epoch, row): a run is the same with any number of workers, can go
on in the middle of an epoch without a stored random state, and takes nothing from torch's global stream.
"""

import functools
import importlib.metadata
import math
import multiprocessing
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from minift.data.batching import Batch, Labelled, without_lone
from minift.data.decoding import START, begin_worker, open_image
from minift.errors import UserError, brief, ctrl_c_later
from minift.fields import ranged, read_fields

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


@dataclass(frozen=True)
class Preprocessing:
    """What a checkpoint's pictures went through; a photo must go through the same. Sizes in pixels, colours as shares of white."""

    resize: int = ranged(least=1, most=10_000)  # of the shorter side
    crop: int = ranged(least=1, most=10_000)  # side of the square that is cut from the centre
    mean: tuple[float, float, float] = ranged(least=-100, most=100)  # red, green, blue
    std: tuple[float, float, float] = ranged(above=0, most=100)
    interpolation: str = "bilinear"
    antialias: bool = True

    def __post_init__(self):
        for name in ("mean", "std"):  # of a JSON file they are lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.interpolation not in INTERPOLATIONS:
            raise UserError(f"preprocessing: interpolation {self.interpolation!r}: known are {', '.join(INTERPOLATIONS)}")
        if self.crop > self.resize:
            raise UserError(
                f"preprocessing: crop {self.crop} of pictures whose shorter side is {self.resize}: the rest would be black"
            )
        if not self.antialias:
            raise UserError("preprocessing: antialias false: PIL, which resizes, always smooths what it shrinks; set it to true")

    def sized(self, crop: int) -> "Preprocessing":
        """The same for squares of another side; the share of the picture that is cut off stays."""
        return replace(self, crop=crop, resize=max(crop, round(self.resize * crop / self.crop)))

    @classmethod
    def of(cls, stored: dict) -> "Preprocessing":
        """That which a JSON file describes. Raises UserError for what is none."""
        return read_fields(cls, stored, "preprocessing")


IMAGENET_V1 = Preprocessing(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # torchvision's IMAGENET1K_V1
IMAGENET_V2 = replace(IMAGENET_V1, resize=232)  # IMAGENET1K_V2


def transforms() -> ModuleType:
    """torchvision.transforms.v2, imported on first use: the one place that tells of a torchvision made for another torch."""
    try:
        from torchvision.transforms import v2
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # Python 3.11 wraps one that comes in the midst of a class
            raise error.__cause__ from None
        raise UserError(mismatch(brief(error))) from None
    return v2


def mismatch(why: str) -> str:
    """What to do where torchvision cannot be imported. Its own metadata names the torch it was built for."""
    try:
        version = importlib.metadata.version("torchvision")
        needs = [need for need in importlib.metadata.requires("torchvision") or () if re.match(r"torch\b", need)]
    except importlib.metadata.PackageNotFoundError:
        return f"torchvision is needed for images ({why}); install it together with torch: pip install --upgrade torch torchvision"
    wants = f", which asks for {needs[0]}," if needs else ""
    return (
        f"torchvision {version}{wants} cannot be loaded beside torch {torch.__version__} ({why}); every torchvision is built for "
        "one torch (0.19 for 2.4, 0.21 for 2.6, and so on); install a pair: pip install --upgrade torch torchvision"
    )


# ---- transforms: a picture to (3, H, W) uint8 ----


def evaluation(p: Preprocessing):
    """Resize and centre crop: equal, after `normalise`, to torchvision's preset. Test: test_equals_torchvisions_preset."""
    v2 = transforms()
    how = v2.InterpolationMode(p.interpolation)
    return v2.Compose([v2.Resize(p.resize, how, antialias=p.antialias), v2.CenterCrop(p.crop), v2.PILToTensor()])


def standard(p: Preprocessing):
    """A crop of 8 to 100 % of the area and of ratio 3/4 to 4/3, resized, mirrored every second time (Szegedy et al. 2015)."""
    v2 = transforms()
    crop = v2.RandomResizedCrop(p.crop, interpolation=v2.InterpolationMode(p.interpolation), antialias=p.antialias)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()])


def drawn(p: Preprocessing, policy: str):
    """`standard`, then torchvision's policy at its own settings: RandAugment, or TrivialAugmentWide (Müller & Hutter 2021)."""
    v2 = transforms()
    crop, flip, to_tensor = standard(p).transforms
    return v2.Compose([crop, flip, getattr(v2, policy)(interpolation=v2.InterpolationMode(p.interpolation)), to_tensor])


def strong(p: Preprocessing):
    """`standard`, then RandAugment (Cubuk et al. 2020: 2 operations, magnitude 9) and, every tenth time, RandomErasing.

    The rectangle is erased before normalisation, in the rounded mean colour: the zero of torchvision's recipe but for half a level.
    """
    v2 = transforms()
    erase = v2.RandomErasing(p=0.1, value=[round(255 * share) for share in p.mean])
    return v2.Compose([*drawn(p, "RandAugment").transforms, erase])


AUGMENT = {
    "none": evaluation,
    "standard": standard,
    "strong": strong,
    "randaugment": functools.partial(drawn, policy="RandAugment"),
    "trivialaugment": functools.partial(drawn, policy="TrivialAugmentWide"),
}


@functools.lru_cache(maxsize=4)
def constants(p: Preprocessing, device: torch.device) -> tuple[Tensor, Tensor]:
    """(mean, deviation) of the colours, (3, 1, 1) each; made once, as a copy to a GPU would wait for it in every batch."""
    return torch.tensor(p.mean, device=device)[:, None, None], torch.tensor(p.std, device=device)[:, None, None]


def normalise(pixels: Tensor, p: Preprocessing) -> Tensor:
    """(B, 3, H, W) uint8 -> float32: (x / 255 - mean) / std for every colour, on the device where the pixels are."""
    mean, std = constants(p, pixels.device)
    return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)


# ---- random draws ----

PER_ROW, PER_BATCH = 0, 1  # streams of one seed and epoch


@contextmanager
def drawing(*key: int) -> Iterator[None]:
    """Within, torch's CPU stream is a function of `key`; afterwards it is what it was. Streams of CUDA devices are left alone."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
    try:
        yield
    finally:
        torch.set_rng_state(before)


# ---- batches ----


@dataclass
class Pictures(Labelled):
    """Image files, with or without classes, on their way into a model. A unit is a picture.

    views: epoch e takes the draws of epoch e % views, so that what frozen stages make of a picture recurs; mixing, which joins the
    pictures of a batch, goes on by the epoch itself.
    Raises UserError for a value of augment, mixup or cutmix that is not known.
    """

    files: list[Path]
    targets: tuple[np.ndarray, ...]  # what a batch has as targets, (N, ...) each; () in prediction
    preprocessing: Preprocessing
    classes: int = 0  # needed where pictures are mixed
    augment: str = "none"
    mixup: float = 0.0  # alpha of the Beta distribution from which the share of each picture is drawn (Zhang et al. 2018); 0: none
    cutmix: float = 0.0  # likewise of the area of the pasted rectangle (Yun et al. 2019); with mixup, one of the two a batch
    smoothing: float = 0.0  # label smoothing in training
    seed: int = 0
    views: int | None = None
    workers: int = 0  # processes that decode; 0: this one

    def __post_init__(self):
        if self.augment not in AUGMENT:
            raise UserError(f"--augment {self.augment}: known are {', '.join(AUGMENT)}")
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"--{name} {getattr(self, name)}: a number above 0 is expected, as 0.2 or 1, or 0 for none")
        self.lengths = np.ones(len(self.files), dtype=np.int64)

    def describe(self) -> dict[str, str]:
        return {"seen as": f"{self.preprocessing.crop} x {self.preprocessing.crop}"}

    @property
    def variants(self) -> int | None:
        """One without augmentation, `views`, or None: a new one each epoch."""
        if self.mixup or self.cutmix:
            return None
        return 1 if self.augment == "none" else self.views

    @property
    def as_evaluated(self) -> bool:
        return self.augment == "none" and self.variants is not None

    def take(self, chosen: np.ndarray) -> "Pictures":
        by_row = {name: None if (values := getattr(self, name)) is None else values[chosen] for name in ("counts", "even")}
        targets = tuple(values[chosen] for values in self.targets)
        return replace(self, files=[self.files[i] for i in chosen], targets=targets, **by_row)

    def order(self, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
        return without_lone(super().order(batch_size, seed, epoch))

    def batches(self, order: list[np.ndarray], device: torch.device, epoch: int | None = None) -> Iterator[Batch]:
        """Batches with inputs ((B, 3, H, W) float32, channels last,).

        epoch: of training, from 0, with augmentation and mixing, which makes targets (B, C) shares; None: evaluation, where nothing
        is random and targets are (B) ids. Raises UserError for a file that can no longer be decoded.
        Tests: tests/data/test_loading.py, test_workers_change_nothing, test_draws_are_a_function_of_seed_epoch_and_row.
        """
        transform = (evaluation if epoch is None else AUGMENT[self.augment])(self.preprocessing)
        drawn_epoch = epoch
        if epoch is not None and self.views:
            drawn_epoch = epoch % self.views
        mix = None if epoch is None else self.mixing()
        workers = min(self.workers, len(order)) if len(order) > 1 else 0  # one batch is what this process waits for in any case
        loader = DataLoader(
            Decoding(self.files, order, transform, self.seed, drawn_epoch),
            batch_size=None,
            num_workers=workers,
            collate_fn=as_it_is,
            worker_init_fn=begin_worker,
            multiprocessing_context=multiprocessing.get_context(START) if workers else None,
            generator=torch.Generator(),  # else the loader draws its workers' seeds from the global stream
        )
        with ctrl_c_later():
            items = iter(loader)  # which starts the workers
        try:
            for units in order:
                pixels = next_item(items, workers)
                # (B, H, W, 3) in memory seen as (B, 3, H, W) is channels last: nothing is moved
                pixels = torch.from_numpy(pixels)
                pixels = (pixels.pin_memory() if device.type == "cuda" else pixels).to(device, non_blocking=True)
                images = normalise(pixels.permute(0, 3, 1, 2), self.preprocessing)
                batch = self.outline(units, epoch).to(device)
                if mix is not None:
                    with drawing(self.seed, epoch, int(units[0]), PER_BATCH):
                        images, labels = mix(images, *batch.targets)
                    batch = replace(batch, targets=(labels,))
                    if batch.weights is not None:  # a share of a label counts as a row with that share of its weight
                        batch = replace(batch, counts=(labels.double() @ batch.weights).cpu())
                yield replace(batch, inputs=(images.contiguous(memory_format=torch.channels_last),))
        finally:
            with ctrl_c_later():
                del items  # which ends the workers

    def mixing(self):
        """(images, labels) -> both mixed within the batch, or None."""
        v2 = transforms()
        pairs = ((v2.MixUp, self.mixup), (v2.CutMix, self.cutmix))
        mixes = [kind(alpha=alpha, num_classes=self.classes) for kind, alpha in pairs if alpha]
        return v2.RandomChoice(mixes) if mixes else None


def next_item(items: Iterator, workers: int) -> np.ndarray:
    """The next batch of pixels. Raises UserError for a bad file, and where the system has killed a worker."""
    try:
        item = next(items)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):  # torch's word for a worker that is gone; a worker's own error is a bug
            raise
        raise UserError(
            f"a process that read images was killed, most often for lack of memory; {workers} ran at once: use fewer --workers"
        ) from None
    if isinstance(item, UserError):
        raise item
    return item


class Decoding(Dataset):
    """Item i is batch i: (B, H, W, 3) uint8, or the UserError that stopped it. epoch: None for evaluation.

    An array is pickled through a pipe, where a tensor would go through /dev/shm: 64 MB in a container, and a bus error when full.
    An exception is an item, for torch wraps one that is raised in a worker into a traceback of many lines.
    """

    def __init__(self, files: list[Path], order: list[np.ndarray], transform, seed: int, epoch: int | None):
        self.files, self.order, self.transform, self.seed, self.epoch = files, order, transform, seed, epoch

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, number: int) -> np.ndarray | UserError:
        try:
            return np.stack([self.pixels(int(row)) for row in self.order[number]])
        except UserError as error:
            return error

    def pixels(self, row: int) -> np.ndarray:  # (H, W, 3)
        image = open_image(self.files[row])
        if self.epoch is None:
            return as_array(self.transform(image))
        with drawing(self.seed, self.epoch, row, PER_ROW):
            return as_array(self.transform(image))


def as_array(pixels: Tensor) -> np.ndarray:
    return pixels.permute(1, 2, 0).numpy()


def as_it_is(item):
    return item
