"""Several processes: the run of one, in float64; one that ends, or is told to stop, ends all; a run goes on in another number."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import wait_for
from tiny import converted_directory, rows_file
from together import SCENARIOS

import train
from minift import checkpoints
from minift.errors import Terminated
from minift.pretrained import read_tensors

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1"}
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and torch.distributed with gloo")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("together")
    done = subprocess.run([sys.executable, ROOT / "tests" / "together.py", place], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return {path.stem: torch.load(path, weights_only=False) for path in place.glob("*.pt")}


@pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name, scenario in SCENARIOS.items() for number in (2, 3)[: 1 + scenario.three]]
)
def test_several_processes_are_one(runs, name, number):
    one, several = runs[f"{name}-1-0"], [runs[f"{name}-{number}-{rank}"] for rank in range(number)]
    assert one["steps"] >= 20
    moved = 0
    for rank, other in enumerate(several):
        assert other["steps"] == one["steps"]
        np.testing.assert_allclose(other["losses"], one["losses"], rtol=0, atol=1e-10)
        np.testing.assert_allclose(other["row losses"], one["row losses"], rtol=0, atol=1e-10)
        for key, expected in one.items():
            if isinstance(expected, torch.Tensor):
                assert expected.dtype == torch.float64
                torch.testing.assert_close(other[key], expected, rtol=0, atol=1e-10)
                moved += 1
        for metric, value in one["metrics"].items():
            assert other["metrics"][metric] == (None if value is None else pytest.approx(value, abs=1e-10)), metric
        assert other["table"] == (one["table"] if rank == 0 else "")
    assert moved


# ---- the command line ----


def assert_alike(one: Path, other: Path) -> None:
    """The weights, and the losses of all steps, but for rounding."""
    weights = [read_tensors(place / "model" / "model.safetensors") for place in (one, other)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-4)
    losses = [[json.loads(line)["loss"] for line in (place / "metrics.jsonl").open()] for place in (one, other)]
    np.testing.assert_allclose(*losses, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    place = tmp_path_factory.mktemp("several")
    return ["--train", rows_file(place / "rows.csv"), "--model", converted_directory(place / "base"), "--precision", "float32",
            "--batch-size", 5, "--optimizer", "sgd", "--lr", "0.01", "--dropout", 0, "--attention-dropout", 0]  # fmt: skip


def torchrun(number: int, *arguments) -> list[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}"]
    return [str(part) for part in (*start, ROOT / "train.py", *arguments)]


def said(errors: str) -> list[str]:
    """The lines of minift's; torchrun has its own to say."""
    return [line for line in errors.splitlines() if line.startswith("train: ")]


def ended(number: int, *arguments, code: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run(torchrun(number, *arguments), env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert (done.returncode == 0) == (code == 0), done.stdout[-2000:] + done.stderr[-4000:]
    return done


def test_the_command_in_two_processes_writes_the_run_of_one(tmp_path, data):
    done = ended(2, *data, "--epochs", 3, "--out", tmp_path / "two")
    assert done.stdout.count("epoch 3/3") == 1 and "2 processes" in done.stdout
    train.main([*map(str, data), "--epochs", "3", "--out", str(tmp_path / "one")])
    assert_alike(tmp_path / "one", tmp_path / "two")
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two")]
    assert results[1]["valid"] == pytest.approx(results[0]["valid"], abs=1e-4)
    assert json.loads((tmp_path / "two" / "config.json").read_text())["processes"] == 2


def test_a_mistake_is_told_once(data):
    done = ended(2, *data[:1], "nothing.csv", code=2)
    assert said(done.stderr) == ["train: nothing.csv: no such file"]
    assert "Error: " not in done.stderr.replace("ChildFailedError: ", "")


def test_what_several_processes_cannot_do_is_refused(data):
    done = ended(2, *data, "--seeds", 2, code=2)
    assert said(done.stderr) == ["train: --seeds in several processes is not possible; start it without torchrun"]


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_one_process_that_ends_ends_all_and_the_run_goes_on_in_another_number(tmp_path, data, number):
    """--resume after it, in one process, ends in the weights of a run that was left alone."""
    flags = [*data, "--epochs", 40, "--valid", "none", "--save-minutes", 0.01]
    out = tmp_path / "stopped"
    with (tmp_path / "errors").open("w+") as errors:
        group = subprocess.Popen(torchrun(2, *flags, "--out", out), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=errors)
        wait_for(lambda: any((out / "checkpoints").glob("epoch-*")) and (out / "metrics.jsonl").exists(), 60)
        second = next(pid for pid in children_of(group.pid) if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
        os.kill(second, number)
        group.wait(60)
        errors.seek(0)
        lines = [line for line in errors.read().splitlines() if line.startswith("train: ")]
    assert len(lines) == 1 and lines[0].endswith(f"to continue: python train.py --resume {out}"), lines
    assert not (out / "result.json").exists()
    train.main(["--resume", str(out)])
    train.main([*map(str, flags), "--out", str(tmp_path / "alone")])
    assert_alike(tmp_path / "alone", out)


def test_a_signal_that_comes_while_the_processes_ask_each_other_is_not_lost(monkeypatch):
    signals = checkpoints.Signals()
    signals.patient = True

    def interrupted(value: int) -> int:
        signals.handle(signal.SIGTERM, None)
        return value

    monkeypatch.setattr(checkpoints, "count", lambda: 2)
    monkeypatch.setattr(checkpoints, "largest", interrupted)
    told = signals.agree()
    signals.stop(told)  # the others know nothing of it yet
    assert told is None
    monkeypatch.setattr(checkpoints, "largest", lambda value: value)
    with pytest.raises(Terminated):
        signals.stop(signals.agree())


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_the_readme_names_the_command():
    assert re.search(r"torchrun --nproc-per-node \d+ train\.py", (ROOT / "README.md").read_text())
