"""Runs that are stopped at random moments and resumed end in the bits of a run that is left alone."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from processes import Nursery, group_lives, wait_for
from tiny import converted_directory, converted_resnet, photographs, rows_file

TEXTS = ["--epochs", 3, "--batch-size", 4, "--lr", 1e-2, "--max-length", 12]
IMAGES = ["--task", "image-classification", "--epochs", 3, "--batch-size", 4, "--lr", 1e-2]

SCENARIOS = {
    "full float32": [*TEXTS, "--precision", "float32"],
    "full bfloat16": [*TEXTS, "--precision", "bfloat16"],
    "float16 with loss scaling, accumulated": [*TEXTS, "--precision", "float16", "--accumulate", 3, "--optimizer", "sgd"],
    "lora": [*TEXTS, "--precision", "float32", "--method", "lora:rank=2,dropout=0.1"],
    "gradual unfreezing, early stopping": [
        *TEXTS, "--precision", "float32", "--unfreeze", "gradual:every=5", "--epochs", 30, "--patience", 2, "--lr", 1e-4,
    ],
    "frozen features in memory": [*TEXTS, "--precision", "float32", "--method", "partial:stages=1", "--cache", "memory"],
    "images, augmented by workers": [*IMAGES, "--precision", "float32", "--augment", "strong", "--mixup", 0.2, "--workers", 2],
    "frozen views of images on disk": [
        *IMAGES, "--precision", "bfloat16", "--method", "probe", "--augment", "standard", "--views", 2, "--cache", "disk",
        "--workers", 0,
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    nursery = Nursery(tmp_path_factory.mktemp("nursery") / "log")
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    os.environ["XDG_CACHE_HOME"] = str(directory / "cache")
    texts = ["--train", rows_file(directory / "rows.csv"), "--model", converted_directory(directory / "base", pool="mean")]
    images = ["--train", photographs(directory / "photos"), "--model", converted_resnet(directory / "resnet")]
    return {"texts": texts, "images": images}


def flags_of(scenario: str, data: dict) -> list:
    flags = SCENARIOS[scenario]
    return [*data["images" if "--task" in flags else "texts"], *flags]


def left_by(directory: Path) -> dict:
    """All that a run leaves, without times."""
    assert (directory / "result.json").is_file(), "it has not finished"
    untimed = {"examples_per_second", "seconds", "peak_memory_mb"}
    events = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    events.append(json.loads((directory / "result.json").read_text()))
    (last,) = (directory / "checkpoints").iterdir()
    progress = json.loads((last / "progress.json").read_text())["progress"]
    return {
        "kept": (directory / "model" / "model.safetensors").read_bytes(),
        "last": (last / "state.safetensors").read_bytes(),
        "events": [{name: value for name, value in event.items() if name not in untimed} for event in events],
        "progress": {name: value for name, value in progress.items() if not name.startswith("seconds")},
    }


def undisturbed(nursery: Nursery, out: Path, flags: list) -> tuple[dict, float]:
    """(what it leaves, the seconds it takes)"""
    start = time.monotonic()
    assert nursery.wait(nursery.start(*flags, "--out", out)) == 0, nursery.log.read_text()[-3000:]
    return left_by(out), time.monotonic() - start


def disturbed(nursery: Nursery, out: Path, flags: list, stops: list[tuple[float, int]]) -> int:
    """Start a run, and send it a signal after so many seconds, once for each of `stops`; how often that found it alive."""
    hits = 0
    for seconds, number in [*stops, (None, None)]:
        begun = (out / "config.json").is_file() and (out / "config.json").stat().st_size
        child = nursery.start(*(["--resume", out] if begun else [*flags, "--out", out]))
        if seconds is not None:
            time.sleep(seconds)
            if not group_lives(child):  # a zombie still counts
                break
            os.kill(child, number)
        code = nursery.wait(child)
        assert code in (0, -9, 130, 143), nursery.log.read_text()[-3000:]
        hits += code != 0
        wait_for(lambda child=child: not group_lives(child), 10)  # its workers are gone as well
    return hits


def stops_of(seed: int, number: int, longest: float) -> list[tuple[float, int]]:
    random_ = random.Random(seed)
    return [(random_.uniform(0, longest), random_.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])) for _ in range(number)]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_at_random(tmp_path, nursery, data, scenario):
    flags = [*flags_of(scenario, data), "--save-minutes", 0, "--keep", 1]
    expected, seconds = undisturbed(nursery, tmp_path / "a", flags)
    hits = disturbed(nursery, tmp_path / "b", flags, stops_of(0, 8, seconds))
    print(scenario, hits, seconds)
    assert left_by(tmp_path / "b") == expected
