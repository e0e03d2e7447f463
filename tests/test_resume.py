"""Runs that are stopped at random moments and resumed end in the bits of a run that is left alone."""

import json
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
from contract.tasks import instructions_file, numbers_file, over_bytes, questions_file, sentences_file
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
        *TEXTS, "--precision", "float32", "--unfreeze", "gradual:every=5", "--epochs", 9, "--patience", 2, "--lr", 1e-5,
    ],
    "frozen features in memory": [*TEXTS, "--precision", "float32", "--method", "partial:stages=1", "--cache", "memory"],
    "images, augmented by workers": [
        *IMAGES, "--method", "full", "--precision", "float32", "--augment", "strong", "--mixup", 0.2, "--workers", 2,
    ],
    "frozen views of images on disk": [
        *IMAGES, "--precision", "bfloat16", "--method", "probe", "--augment", "standard", "--views", 2, "--cache", "disk",
        "--workers", 0,
    ],
    "classes drawn evenly, words left out": [
        *TEXTS, "--precision", "float32", "--sampler", "balanced", "--augment", "eda:deletion=0.2,swap=0.2",
    ],
    "token classification in windows": [
        "--task", "token-classification", *TEXTS, "--precision", "float32", "--max-length", 12, "--overlap", 3, "--accumulate", 2,
    ],
    "question answering in windows": [
        "--task", "question-answering", *TEXTS, "--precision", "float32", "--max-length", 20, "--overlap", 3,
    ],
    "masked LM": ["--task", "masked-lm", *TEXTS, "--precision", "bfloat16", "--masking", "coin"],
    "packed instructions": ["--task", "instruction-tuning", "--precision", "float32", "--packing", "--accumulate", 2],
    "regression, tokens hidden from frozen stages": [
        "--task", "text-regression", *TEXTS, "--precision", "float32", "--method", "probe", "--augment", "cutoff:rate=0.2",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """In memory where there is such a place: a flush to a disk takes longer than all the rest of a step."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path_factory.mktemp("runs")
        return
    directory = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def nursery(place):
    os.environ["XDG_CACHE_HOME"] = str(place / "cache")
    nursery = Nursery(place / "log")
    yield nursery
    nursery.close()
    del os.environ["XDG_CACHE_HOME"]


@pytest.fixture(scope="module")
def data(place):
    texts = ["--train", rows_file(place / "rows.csv"), "--model", converted_directory(place / "base", pool="mean")]
    sentences, numbers = sentences_file(place / "rows.conll"), numbers_file(place / "numbers.csv")
    return {
        "text-classification": texts,
        "masked-lm": texts,
        "image-classification": ["--train", photographs(place / "photos"), "--model", converted_resnet(place / "resnet")],
        "token-classification": ["--train", sentences, *texts[2:]],
        "question-answering": ["--train", questions_file(place / "questions.jsonl"), *texts[2:]],
        "text-regression": ["--train", numbers, *texts[2:]],
        "instruction-tuning": ["--train", instructions_file(place / "rows.jsonl"), "--model", over_bytes(place / "decoder")],
    }


@pytest.fixture
def out(place):
    directory = Path(tempfile.mkdtemp(dir=place))
    yield directory
    shutil.rmtree(directory)


def flags_of(scenario: str, data: dict) -> list:
    flags = SCENARIOS[scenario]
    task = flags[flags.index("--task") + 1] if "--task" in flags else "text-classification"
    return [*data[task], *flags]


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


def survive(nursery: Nursery, out: Path, flags: list, kills: int, seed: int) -> None:
    """Runs that are killed at random moments and resumed, until so many signals have hit one; each leaves the same as an
    undisturbed one.
    """
    expected, seconds = undisturbed(nursery, out / "undisturbed", flags)
    random_, hits, number = random.Random(seed), 0, 0
    while hits < kills:
        run, number, code = out / str(number), number + 1, None
        while code != 0:
            begun = (run / "config.json").is_file() and (run / "config.json").stat().st_size
            child = nursery.start(*(["--resume", run] if begun else [*flags, "--out", run]))
            if hits < kills:
                time.sleep(random_.uniform(0, seconds))
                send = random_.choice([os.kill, os.killpg])  # the process alone, or its workers as well
                send(child, random_.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
            code = nursery.wait(child)
            assert code in (0, -9, 130, 143), nursery.log.read_text()[-3000:]
            hits += code != 0
            wait_for(lambda group=child: not group_lives(group), 10)  # its workers are gone as well
            if not (run / "config.json").is_file() or not (run / "config.json").stat().st_size:
                shutil.rmtree(run, ignore_errors=True)  # killed before it began
        assert left_by(run) == expected
    print(f"{hits} kills in {number} runs")


@pytest.mark.parametrize(
    "scenario", [pytest.param(name, marks=[pytest.mark.slow] * (name == "packed instructions")) for name in SCENARIOS]
)
def test_killed_at_random(nursery, data, out, scenario):
    survive(nursery, out, [*flags_of(scenario, data), "--save-minutes", 0, "--keep", 1], 1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("minutes", [0, 10])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_at_random_300_times(nursery, data, out, scenario, minutes):
    survive(nursery, out, [*flags_of(scenario, data), "--save-minutes", minutes, "--keep", 1], 20, 1)
