"""The goals of speed and memory, and the runs that they compare. `python -m tests.bench` measures them.

A run is a whole process. What it works on are files that `Files` makes in a directory of its own, so that several benchmarks can go
on beside each other. Torch is not imported here: see `timed`.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cached_property, partial
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

from tests.bench.restartable import first_rows, last_epoch
from tests.bench.timing import timed

ROWS, DEV, SHORT, MANY, STEP_ROWS, STEP_IMAGES = 2000, 872, 20_000, 1_000_000, 16, 32
LR = {"full": 2e-4, "lora": 5e-4, "probe": 1e-2, "partial": 2e-4}  # minift's own, on both sides
AS_TRAIN_PY = {"THP_MEM_ALLOC_ENABLE": "1", "GOMP_SPINCOUNT": "10000"}  # what train.py sets for itself
SCRIPTS = "tests/bench"


class Files:
    """What the runs read. data: a directory with sst2 (GLUE's train.tsv and dev.tsv) and hymenoptera_data (train/CLASS, val/CLASS).
    rows: of SST-2 to train on; with fewer than ROWS all else shrinks alike.
    """

    def __init__(self, data: Path, rows: int, threads: int, directory: Path):
        self.data, self.rows, self.directory = data, rows, directory
        counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), str(threads))
        self.environment = counts | {
            "PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONDONTWRITEBYTECODE": "",  # compiled once, as where it is used; the peers' files are since their installation
            "HF_HUB_OFFLINE": "1",
        }

    def scaled(self, n: int) -> int:
        return max(2, n * self.rows // ROWS)

    def timed(self, *command: object, **environment: str) -> dict:
        return timed(list(map(str, command)), self.environment | environment)

    def prepare(self, *command: object) -> None:
        """Run what is not measured."""
        line = [sys.executable, *map(str, command)]
        subprocess.run(line, check=True, env=os.environ | self.environment, stdout=subprocess.DEVNULL)

    @cached_property
    def train(self) -> Path:
        return first_rows(self.data / "sst2" / "train.tsv", self.rows, True, self.directory)

    @cached_property
    def dev(self) -> Path:
        return first_rows(self.data / "sst2" / "dev.tsv", self.scaled(DEV), True, self.directory)

    @cached_property
    def hf(self) -> Path:
        """The embedded model as a directory of transformers."""
        self.prepare("convert.py", "minilm-l6", "--to", "hf", "--out", self.directory / "hf")
        return self.directory / "hf"

    @cached_property
    def short(self) -> Path:
        """Rows to predict."""
        path = self.directory / "short"
        path.mkdir()
        return first_rows(self.data / "sst2" / "train.tsv", self.scaled(SHORT), True, path)

    @cached_property
    def many(self) -> Path:
        """A million rows: SST-2's, again and again."""
        header, *lines = (self.data / "sst2" / "train.tsv").read_bytes().splitlines(keepends=True)
        path = self.directory / "many.tsv"
        with path.open("wb") as file:
            file.write(header)
            file.writelines(islice(cycle(lines), self.scaled(MANY)))
        return path

    @cached_property
    def photographs(self) -> Path:
        photographs = self.data / "hymenoptera_data"
        if self.rows >= ROWS:
            return photographs
        for folder in photographs.glob("*/*/"):
            fewer = self.directory / "photographs" / folder.relative_to(photographs)
            fewer.mkdir(parents=True)
            for file in islice(sorted(folder.iterdir()), self.scaled(123)):
                shutil.copy(file, fewer)
        return self.directory / "photographs"

    @cached_property
    def resnet(self) -> Path:
        """A ResNet-50 with random weights for minift; resnet.pth beside it for torchvision."""
        weights = self.directory / "resnet.pth"
        code = "import sys, torch, torchvision; torch.save(torchvision.models.resnet50().state_dict(), sys.argv[1])"
        self.prepare("-c", code, weights)
        self.prepare("convert.py", weights, "--out", self.directory / "resnet")
        return self.directory / "resnet"

    def finished(self, precision: str) -> tuple[Path, Path]:
        """A run of minift, and the same for transformers."""
        run, hf = (self.directory / f"run-{precision}{end}" for end in ("", "-hf"))
        if not hf.exists():
            flags = ["--train", self.train, "--valid", "none", "--epochs", 1, "--precision", precision, "--quiet"]
            self.prepare("train.py", *flags, "--out", run)
            self.prepare("convert.py", run, "--to", "hf", "--out", hf)
        return run, hf


# ---- the runs: (files, seed) -> figures ----


def train(files: Files, *flags: object) -> dict:
    """train.py; the accuracy is that of the last epoch."""
    with tempfile.TemporaryDirectory(dir=files.directory) as out:
        figures = files.timed("train.py", *flags, "--quiet", "--out", f"{out}/run")
        run = Path(out, "run")
        precision = json.loads((run / "result.json").read_text())["precision"]
        return figures | {"accuracy": last_epoch(run)["accuracy"], "precision": precision}


def text(files: Files, seed: int, method: str, epochs: int) -> dict:
    spec = "partial:stages=2" if method == "partial" else method
    rows = ["--train", files.train, "--valid", files.dev]
    return train(files, *rows, "--method", spec, "--epochs", epochs, "--lr", LR[method], "--seed", seed)


def trainer(files: Files, seed: int, method: str, epochs: int, flags: tuple[str, ...] = ()) -> dict:
    rows = ["--model", files.hf, "--train", files.train, "--dev", files.dev]
    settings = ["--method", method, "--epochs", epochs, "--lr", LR[method], "--seed", seed]
    return files.timed(f"{SCRIPTS}/trainer_script.py", *rows, *settings, *flags)


def first_step(files: Files, seed: int) -> dict:
    with tempfile.TemporaryDirectory(dir=files.directory) as out:
        rows = ["--train", files.train, "--valid", files.dev, "--seed", seed, "--out", f"{out}/run"]
        return files.timed(f"{SCRIPTS}/minift_parts.py", "first-step", *rows, **AS_TRAIN_PY)


def step(files: Files, seed: int, side: str, *flags: object) -> dict:
    """seed: the count of the repetition; the weights are the same."""
    environment = AS_TRAIN_PY if side in ("minift", "products") else {}
    figures = files.timed(f"{SCRIPTS}/steps.py", side, *flags, **environment)
    return figures | ({"memory": None} if side == "products" else {})


def text_step(files: Files, seed: int, side: str, dtype: str) -> dict:
    return step(files, seed, side, "--dtype", dtype, "--rows", files.scaled(STEP_ROWS))


def image_step(files: Files, seed: int, side: str, dtype: str) -> dict:
    return step(files, seed, side, "--image", "--dtype", dtype, "--rows", files.scaled(STEP_IMAGES))


def predict(files: Files, seed: int, dtype: str) -> dict:
    run, _ = files.finished(dtype)
    labels = [line.split("\t")[1] for line in files.short.read_text(encoding="utf-8").splitlines()[1:]]
    with tempfile.TemporaryDirectory(dir=files.directory) as out:
        figures = files.timed("-m", "minift.predict", run, "--data", files.short, "--out", f"{out}/found.jsonl")
        found = [json.loads(line)["label"] for line in Path(out, "found.jsonl").read_text(encoding="utf-8").splitlines()]
    return figures | {"accuracy": sum(one == label for one, label in zip(found, labels, strict=True)) / len(labels)}


def pipeline(files: Files, seed: int, dtype: str) -> dict:
    _, hf = files.finished(dtype)
    with tempfile.TemporaryDirectory(dir=files.directory) as out:
        flags = ["--model", hf, "--data", files.short, "--out", f"{out}/found.jsonl", "--dtype", dtype]
        return files.timed(f"{SCRIPTS}/pipeline_script.py", *flags)


def images(files: Files, seed: int, augment: str) -> dict:
    photographs = ["--train", files.photographs / "train", "--valid", files.photographs / "val"]
    probe = ["--task", "image-classification", "--model", files.resnet, "--method", "probe", "--epochs", 5, "--lr", 0.1]
    return train(files, *photographs, *probe, "--augment", augment, "--seed", seed)


def torchvision(files: Files, seed: int, augment: str) -> dict:
    weights = files.resnet.with_suffix(".pth")
    flags = ["--data", files.photographs, "--weights", weights, "--augment", augment]
    return files.timed(f"{SCRIPTS}/torchvision_script.py", *flags)


def tokenise(files: Files, seed: int) -> dict:
    return files.timed(f"{SCRIPTS}/minift_parts.py", "tokenise", files.many)


def map_rows(files: Files, seed: int) -> dict:
    return files.timed(f"{SCRIPTS}/datasets_script.py", "--model", files.hf, "--data", files.many)


RUNS: dict[str, Callable[[Files, int], dict]] = {
    "train.py": lambda files, seed: train(files, "--seed", seed),
    "first step": first_step,
    "first step, Trainer": partial(trainer, method="full", epochs=3, flags=("--first-step",)),
    "tokenise": tokenise,
    "tokenise, datasets": map_rows,
    "image step": partial(image_step, side="minift", dtype="auto"),
    "image step, torchvision": partial(image_step, side="torchvision", dtype="float32"),
}
for method, epochs in {"full": 3, "lora": 3, "partial": 3, "probe": 5}.items():
    RUNS[method] = partial(text, method=method, epochs=epochs)
    RUNS[f"{method}, Trainer"] = partial(trainer, method=method, epochs=epochs)
for method in ("full", "lora"):
    RUNS[f"{method}, Trainer at its best, float32"] = partial(trainer, method=method, epochs=3, flags=("--best",))
    RUNS[f"{method}, Trainer at its best, bfloat16"] = partial(trainer, method=method, epochs=3, flags=("--best", "--bf16"))
for dtype in ("float32", "bfloat16"):
    for side in ("minift", "transformers", "products"):
        RUNS[f"step, {side}, {dtype}"] = partial(text_step, side=side, dtype=dtype)
    RUNS[f"predict, {dtype}"] = partial(predict, dtype=dtype)
    RUNS[f"predict, pipeline, {dtype}"] = partial(pipeline, dtype=dtype)
for augment in ("none", "standard"):
    RUNS[f"images, {augment}"] = partial(images, augment=augment)
    RUNS[f"images, torchvision, {augment}"] = partial(torchvision, augment=augment)


class Goal(NamedTuple):
    name: str  # of --only; several goals may have it
    job: str
    peer: str
    least: float | None  # so many times as fast as the peer; None: no goal, measured along
    ours: str  # of RUNS
    theirs: tuple[str, ...]  # likewise: several, of which the fastest counts; none: the peer is `limit` seconds
    once: bool = False  # instead of with every seed
    needs: str | None = None  # a library that the test extra does not bring
    limit: float = 0.0


def best(method: str) -> tuple[str, ...]:
    return tuple(f"{method}, Trainer at its best, {dtype}" for dtype in ("float32", "bfloat16"))


PRECISIONS = ("float32", "bfloat16")
GOALS = [
    Goal("full", "full, 3 epochs", "Trainer, default", 4.5, "full", ("full, Trainer",)),
    Goal("full", "full, 3 epochs", "Trainer at its best", 1.6, "full", best("full")),
    Goal("lora", "LoRA, 3 epochs", "Trainer and peft, default", 4, "lora", ("lora, Trainer",)),
    Goal("lora", "LoRA, 3 epochs", "Trainer and peft at their best", 1.6, "lora", best("lora")),
    Goal("probe", "probe, 5 epochs", "Trainer, body frozen", 8, "probe", ("probe, Trainer",)),
    Goal("partial", "top 2 layers, 3 epochs", "Trainer, the rest frozen", 5, "partial", ("partial, Trainer",)),
    *(
        goal
        for dtype in PRECISIONS
        for goal in (
            Goal(
                "step",
                f"step of BERT-base, {dtype}",
                "transformers, sdpa",
                1,
                f"step, minift, {dtype}",
                (f"step, transformers, {dtype}",),
            ),
            Goal(
                "step",
                f"step of BERT-base, {dtype}",
                "its products alone",
                0.8,
                f"step, minift, {dtype}",
                (f"step, products, {dtype}",),
            ),
        )
    ),
    *(
        Goal(
            "predict",
            f"predict short rows, {dtype}",
            "pipeline",
            4,
            f"predict, {dtype}",
            (f"predict, pipeline, {dtype}",),
            once=True,
        )
        for dtype in PRECISIONS
    ),
    Goal("start", "time to the first step", "Trainer script", 3, "first step", ("first step, Trainer",)),
    Goal("tokenise", "read and tokenise", "datasets.map", 1, "tokenise", ("tokenise, datasets",), once=True, needs="datasets"),
    Goal(
        "photographs",
        "probe of photographs, 5 epochs",
        "torchvision loop",
        10,
        "images, none",
        ("images, torchvision, none",),
        once=True,
    ),
    Goal(
        "photographs",
        "the same, augmented",
        "torchvision loop",
        None,
        "images, standard",
        ("images, torchvision, standard",),
        once=True,
    ),
    Goal("photographs", "full step of photographs", "torchvision loop", 3, "image step", ("image step, torchvision",), once=True),
    Goal("train", "python train.py", "60 s", 1, "train.py", (), limit=60.0),
]

# What grows -> flags of steps.py before and after, on top of GROWTH_FROM
GROWTH_FROM = {"rows": 16, "length": 32, "layers": 6, "width": 384}
GROWTH = {
    "rows x 10": ({}, {"rows": 160}),
    "length x 4": ({}, {"length": 128}),
    "layers x 2": ({}, {"layers": 12}),
    "rank of a LoRA x 8": ({"rank": 8}, {"rank": 64}),
}
