"""Pixels as torchvision's presets make them; random draws that neither workers nor the global stream can change."""

import builtins
import json
import multiprocessing
import random
import re
import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import assert_stops_cleanly
from torchvision.models import ResNet50_Weights
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms._presets import ImageClassification

from minift.data.batching import by_length, in_order
from minift.data.decoding import open_image
from minift.data.loading import AUGMENT, IMAGENET_V1, IMAGENET_V2, Pictures, Preprocessing, next_item, normalise, strong, transforms
from minift.errors import UserError

CPU = torch.device("cpu")
SMALL = Preprocessing(40, 32, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
N = 12
LABELS = np.arange(N) % 3


def photo(path: Path, size: tuple[int, int], seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("photos")
    return [photo(root / f"{i}.jpg", (60 + 7 * i, 100 - 5 * i), i) for i in range(N)]


def pixels(pictures: Pictures, epoch: int | None, order: list | None = None) -> torch.Tensor:
    """(N, 3, H, W), the batches of 5 one after the other."""
    order = in_order(np.arange(len(pictures)), 5) if order is None else order
    return torch.cat([batch.inputs[0] for batch in pictures.batches(order, CPU, epoch)])


@pytest.mark.parametrize("size", [(500, 375), (333, 500), (224, 224), (90, 130), (700, 71), (257, 256)])
@pytest.mark.parametrize("version", ["IMAGENET1K_V1", "IMAGENET1K_V2"])
def test_equals_torchvisions_preset(tmp_path, version, size):
    preset = ResNet50_Weights[version].transforms()
    path = photo(tmp_path / "a.jpg", size)
    ours = {"IMAGENET1K_V1": IMAGENET_V1, "IMAGENET1K_V2": IMAGENET_V2}[version]
    assert (ours.resize, ours.crop) == (preset.resize_size[0], preset.crop_size[0])
    assert torch.equal(pixels(Pictures([path], (), ours), None)[0], preset(open_image(path)))


@pytest.mark.parametrize("interpolation", ["nearest", "bicubic", "lanczos"])
def test_other_interpolations_equal_torchvisions(files, interpolation):
    theirs = ImageClassification(
        crop_size=32, resize_size=40, mean=SMALL.mean, std=SMALL.std, interpolation=InterpolationMode(interpolation)
    )
    ours = pixels(Pictures(files, (), replace(SMALL, interpolation=interpolation)), None)
    assert torch.equal(ours, torch.stack([theirs(open_image(file)) for file in files]))
    assert not torch.equal(ours, pixels(Pictures(files, (), SMALL), None))


def test_normalise_by_its_equation():
    x = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 3, 16, 16)
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (SMALL.mean, SMALL.std))
    torch.testing.assert_close(normalise(x, SMALL).double(), (x.double() / 255 - mean) / std, rtol=0, atol=1e-6)


def test_preprocessing_goes_through_json():
    assert Preprocessing(**json.loads(json.dumps(asdict(IMAGENET_V2)))) == IMAGENET_V2
    with pytest.raises(UserError, match="interpolation 'spline': known are nearest, bilinear"):
        replace(SMALL, interpolation="spline")
    with pytest.raises(UserError, match="antialias false"):
        replace(SMALL, antialias=False)


def test_batches(files):
    pictures = Pictures(files, (LABELS,), SMALL)
    assert len(pictures) == N and [len(rows) for rows in by_length(pictures.lengths, 5)] == [5, 5, 2]
    order = [np.array([3, 1]), np.array([7]), np.array([0, 11, 2])]
    batches = list(pictures.batches(order, CPU))
    whole = pixels(pictures, None)
    for rows, batch in zip(order, batches, strict=True):
        (images,) = batch.inputs
        assert images.dtype == torch.float32 and images.shape == (len(rows), 3, 32, 32)
        assert images.is_contiguous(memory_format=torch.channels_last) and torch.equal(images, whole[rows])
        assert batch.targets[0].dtype == torch.int64 and batch.targets[0].tolist() == LABELS[rows].tolist()
    part = pictures.take(np.array([4, 9]))
    assert part.targets[0].tolist() == [1, 0] and torch.equal(pixels(part, None), whole[[4, 9]])
    assert next(Pictures(files, (), SMALL).batches(order, CPU)).targets == ()
    assert list(pictures.batches([], CPU)) == []


@pytest.mark.parametrize("augment", ["standard", "strong"])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_change_nothing(files, augment):
    pictures = Pictures(files, (LABELS,), SMALL, 3, augment, mixup=0.4, cutmix=1.0, seed=5)
    order = in_order(np.arange(N), 3)

    def run(workers: int, stream: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(stream)
        np.random.seed(stream)
        random.seed(stream)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        batches = list(replace(pictures, workers=workers).batches(order, CPU, 2))
        after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
        return torch.cat([batch.inputs[0] for batch in batches]), torch.cat([batch.targets[0] for batch in batches])

    images, labels = run(0, 0)
    for workers, stream in ((0, 1), (1, 2), (2, 3), (7, 4)):
        others = run(workers, stream)
        assert torch.equal(images, others[0]) and torch.equal(labels, others[1])


@pytest.mark.parametrize(("augment", "policy"), [("randaugment", v2.RandAugment), ("trivialaugment", v2.TrivialAugmentWide)])
def test_drawn_policies_are_torchvisions(files, augment, policy):
    """On the same draws, at their own settings."""
    how = InterpolationMode(SMALL.interpolation)
    crop = v2.RandomResizedCrop(SMALL.crop, interpolation=how)
    theirs = [crop, v2.RandomHorizontalFlip(), policy(interpolation=how), v2.PILToTensor()]
    for seed in range(5):
        found = []
        for transform in (AUGMENT[augment](SMALL), v2.Compose(theirs)):
            torch.manual_seed(seed)
            found.append(transform(open_image(files[0])))
        assert torch.equal(*found)


def test_another_size_cuts_off_the_same_share():
    assert replace(SMALL, resize=256, crop=224).sized(112) == replace(SMALL, resize=128, crop=112)
    assert replace(SMALL, resize=224, crop=224).sized(33) == replace(SMALL, resize=33, crop=33)


@pytest.mark.parametrize("augment", ["standard", "strong", "trivialaugment"])
def test_draws_are_a_function_of_seed_epoch_and_row(files, augment):
    pictures = Pictures(files, (LABELS,), SMALL, 3, augment, seed=5)
    first = pixels(pictures, 0)
    assert torch.equal(first, pixels(pictures, 0))
    backwards = np.arange(N)[::-1]
    assert torch.equal(first[backwards.copy()], pixels(pictures, 0, in_order(backwards, 7)))
    for other in (pixels(pictures, 1), pixels(replace(pictures, seed=6), 0), pixels(pictures, None)):
        assert all(not torch.equal(a, b) for a, b in zip(first, other, strict=True))
    one = replace(pictures, files=[files[0]] * N)  # the same picture in every row
    assert len({row.numpy().tobytes() for row in pixels(one, 0)}) == N
    assert torch.equal(pixels(pictures, None), pixels(replace(pictures, augment="none"), None))


def test_none_augments_nothing(files):
    pictures = Pictures(files, (LABELS,), SMALL)
    assert torch.equal(pixels(pictures, 3), pixels(pictures, None))


def test_views_recur(files):
    pictures = Pictures(files, (LABELS,), SMALL, 3, "standard", views=2)
    epochs = [pixels(pictures, epoch) for epoch in range(4)]
    assert torch.equal(epochs[0], epochs[2]) and torch.equal(epochs[1], epochs[3]) and not torch.equal(epochs[0], epochs[1])
    assert torch.equal(epochs[1], pixels(replace(pictures, views=None), 1))
    draws = dict.fromkeys(AUGMENT) | {"none": 1}
    assert {name: Pictures(files, (LABELS,), SMALL, 3, name).variants for name in AUGMENT} == draws
    assert (pictures.variants, replace(pictures, mixup=0.2).variants) == (2, None)


def test_standard_is_torchvisions_crop_and_mirror(files):
    """The mirrored halves of many draws agree: one of the pictures' crops is in the other order about every second time."""
    v2 = transforms()
    crop, flip, _ = AUGMENT["standard"](SMALL).transforms
    assert isinstance(crop, v2.RandomResizedCrop) and isinstance(flip, v2.RandomHorizontalFlip)
    assert (crop.scale, crop.ratio, crop.size, crop.antialias, flip.p) == ((0.08, 1.0), (3 / 4, 4 / 3), (32, 32), True, 0.5)


def test_strong_erases_with_the_mean_colour():
    erase = strong(SMALL).transforms[-1]
    erase.p = 1.0
    erased = erase(torch.full((3, 32, 32), 255, dtype=torch.uint8))
    assert erased.dtype == torch.uint8
    colours = set(map(tuple, erased.flatten(1).T.tolist()))
    assert colours == {(255, 255, 255), (128, 102, 76)}
    assert normalise(torch.tensor([128, 102, 76], dtype=torch.uint8)[None, :, None, None], SMALL).abs().max() < 0.011


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.5, 0.0), (0.0, 1.0), (0.5, 1.0)])
def test_mixing(files, mixup, cutmix):
    """Labels are shares that sum to 1, and the images are mixed by the same shares, pixel by pixel or by area."""
    plain, order = Pictures(files, (LABELS,), SMALL, 3), in_order(np.arange(N), 4)
    mixed = replace(plain, mixup=mixup, cutmix=cutmix)
    shares, kinds = set(), set()
    for epoch in range(6):
        for rows, batch, unmixed in zip(order, mixed.batches(order, CPU, epoch), plain.batches(order, CPU), strict=True):
            (x,), (y,) = unmixed.inputs, batch.inputs
            assert batch.targets[0].shape == (len(rows), 3) and y.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(batch.targets[0].sum(1), torch.ones(len(rows)))
            partner, row = x.roll(1, 0), int(np.flatnonzero(LABELS[rows] != np.roll(LABELS[rows], 1))[0])
            share = batch.targets[0][row, LABELS[rows][row]].item()
            pasted = ((y == x) | (y == partner)).all()
            if pasted:
                kept = (y == x).all(1).float().mean((1, 2))
                assert abs(kept[row].item() - share) < 0.01
            else:
                torch.testing.assert_close(y, share * x + (1 - share) * partner, rtol=1e-4, atol=1e-4)
            shares.add(share)
            kinds.add(bool(pasted))
    assert len(shares) > 10 and kinds == {pasted for pasted, alpha in ((False, mixup), (True, cutmix)) if alpha}
    assert next(mixed.batches(order, CPU)).targets[0].tolist() == LABELS[:4].tolist()  # never in evaluation
    again = [[batch.targets[0].tolist() for batch in mixed.batches(order, CPU, epoch)] for epoch in (0, 0, 1)]
    assert again[0] == again[1] != again[2] and again[0][0] != again[0][1]


@pytest.mark.parametrize(("order", "processes"), [([np.arange(3)], 0), ([np.arange(2), np.arange(1)], 2)])
def test_one_batch_starts_no_worker(files, order, processes):
    batches = Pictures(files, (), SMALL, workers=3).batches(order, CPU)
    next(batches)
    assert len(multiprocessing.active_children()) == processes
    batches.close()


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed.", UserError),
        ("The size of tensor a (3) must match b", RuntimeError),
    ],
)
def test_a_worker_s_own_error_is_not_told_as_lack_of_memory(said, kind):
    def items():
        raise RuntimeError(said)
        yield

    with pytest.raises(kind, match="lack of memory" if kind is UserError else re.escape(said)):
        next_item(items(), 2)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_breaks_is_one_line(files, tmp_path, workers):
    (tmp_path / "bad.jpg").write_bytes(b"")
    pictures = Pictures([*files[:3], tmp_path / "bad.jpg"], (), SMALL, workers=workers)
    batches = pictures.batches(in_order(np.arange(4), 2), CPU)
    next(batches)
    with pytest.raises(UserError) as error:
        next(batches)
    assert str(error.value) == f"{tmp_path}/bad.jpg: zero bytes; fix the file or take it out"


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ({"augment": "weak"}, "--augment weak: known are none, standard, strong"),
        ({"mixup": -0.1}, "--mixup -0.1: a number above 0"),
        ({"cutmix": float("nan")}, "--cutmix nan: a number above 0"),
    ],
)
def test_unknown_values(flags, wanted):
    with pytest.raises(UserError, match=wanted):
        Pictures([], (), SMALL, **flags)


def test_a_torchvision_for_another_torch_is_one_line(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest):
        if name.startswith("torchvision"):
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.21.0")
    monkeypatch.setattr("importlib.metadata.requires", lambda name: ["numpy", "torchfake", "torch==2.6.0", "pillow"])
    with pytest.raises(UserError) as error:
        transforms()
    said = str(error.value)
    assert said.startswith(
        f"torchvision 0.21.0, which asks for torch==2.6.0, cannot be loaded beside torch {torch.__version__} (operator"
    )
    assert said.endswith("pip install --upgrade torch torchvision") and "\n" not in said


SLOW = """
import sys, time
from pathlib import Path
import numpy as np, torch
from PIL import Image
from minift.data import loading
from minift.errors import command

def slow(file):
    Path(sys.argv[1]).touch()
    time.sleep(0.05)
    return Image.new("RGB", (40, 40))

def main(arguments):
    pictures = loading.Pictures([Path("x")] * 2000, (), loading.IMAGENET_V1, workers=2)
    for batch in pictures.batches(list(np.arange(2000).reshape(-1, 2)), torch.device("cpu"), 0):
        pass

if __name__ == "__main__":
    loading.open_image = slow
    command(main, "train")
"""


@pytest.mark.parametrize("step", ["__init__", "__del__"])
def test_ctrl_c_waits_for_the_start_and_the_end_of_workers(files, monkeypatch, step):
    loader = torch.utils.data.dataloader._MultiProcessingDataLoaderIter
    real, done = getattr(loader, step), []

    def interrupted(self, *arguments):
        signal.raise_signal(signal.SIGINT)
        real(self, *arguments)
        done.append(self)

    monkeypatch.setattr(loader, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(Pictures(files, (), SMALL, workers=1).batches([np.arange(2), np.arange(1)], CPU))
    assert len(done) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="process groups of POSIX")
def test_ctrl_c_leaves_no_process(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    assert_stops_cleanly([tmp_path / "slow.py", tmp_path / "begun"], tmp_path / "begun", "train: stopped")
