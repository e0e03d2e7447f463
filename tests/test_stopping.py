"""What stops a run, and what is left of it: signals, full disks, damaged files, flags and data that have changed, divergence."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from processes import assert_nobody_stays, wait_for
from safetensors.torch import load_file
from tiny import converted_directory, rows_file

import minift
import train
from minift import cache, checkpoints, runs, training
from minift.checkpoints import Checkpoints, listed, position
from minift.errors import Diverged, Terminated, UserError, ctrl_c_later, out_of_memory, terminate
from minift.pretrained import read
from minift.tasks.text_classification import TextClassification

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture
def base(tmp_path):
    return converted_directory(tmp_path / "base", pool="mean")


@pytest.fixture
def flags(tmp_path, base):
    """Of a run of 3 epochs of 11 steps, --out apart."""
    rows = rows_file(tmp_path / "rows.csv")
    flags = ["--train", rows, "--model", base, "--epochs", 3, "--batch-size", 4, "--lr", 1e-2, "--precision", "float32"]
    return [str(word) for word in flags]


def of_one_epoch(flags: list[str]) -> list[str]:
    at = flags.index("--epochs") + 1
    return [*flags[:at], "1", *flags[at + 1 :]]


def start(*arguments) -> None:
    train.main([str(argument) for argument in arguments])


def weights(directory: Path) -> bytes:
    return (directory / "model" / "model.safetensors").read_bytes()


def stop_at(monkeypatch, step: int, number: int | None = signal.SIGINT) -> None:
    """A signal that comes within the update of this step, counted from now."""
    real, taken = training.step, []

    def stopping(*arguments):
        taken.append(0)
        if len(taken) == step:
            signal.raise_signal(number)
        return real(*arguments)

    monkeypatch.setattr(training, "step", stopping)


@pytest.fixture
def stopped(tmp_path, flags, monkeypatch) -> Path:
    """A run that was stopped in epoch 2."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 15)
        start(*flags, "--out", tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_step_is_finished_saved_and_the_command_told(tmp_path, flags, monkeypatch, capsys, number):
    start(*flags, "--out", tmp_path / "a")
    with monkeypatch.context() as patch, pytest.raises(Terminated if number == signal.SIGTERM else KeyboardInterrupt) as stop:
        stop_at(patch, 15, number)
        start(*flags, "--out", tmp_path / "b")
    assert (
        str(stop.value) == f"the best epoch so far is in {tmp_path / 'b'}; to continue: python train.py --resume {tmp_path / 'b'}"
    )
    assert [path.name for path in listed(tmp_path / "b" / "checkpoints")] == ["epoch-1-step-15"]
    assert not (tmp_path / "b" / "lock").exists()
    capsys.readouterr()
    start("--resume", tmp_path / "b")
    assert "step 15, epoch 2, batch 4" in capsys.readouterr().out
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert not (tmp_path / "b" / "checkpoints").exists()


def test_an_epoch_that_was_stopped_behind_its_last_step_has_no_speed(tmp_path, flags, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 11)
        start(*flags, "--out", tmp_path / "run")
    capsys.readouterr()
    start("--resume", tmp_path / "run")
    printed = capsys.readouterr().out.splitlines()
    first, second = (next(line for line in printed if line.startswith(f"epoch {n}/3")) for n in (1, 2))
    assert first.startswith("epoch 1/3  train loss ") and "rows/s" not in first and "rows/s" in second


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_exit_codes_of_a_process(tmp_path, flags, number, code):
    arguments = [sys.executable, "train.py", *flags, "--epochs", "5000", "--out", str(tmp_path / "run")]
    run = subprocess.Popen(
        arguments, cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=default_handlers
    )
    wait_for((tmp_path / "run" / "model").is_dir, 60)
    run.send_signal(number)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == code and f"--resume {tmp_path / 'run'}" in errors and "Traceback" not in errors
    assert len(listed(tmp_path / "run" / "checkpoints")) == 1


def default_handlers() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it


def test_a_second_signal_stops_at_once_and_leaves_the_files_whole(tmp_path, flags, monkeypatch):
    start(*flags, "--out", tmp_path / "a")
    real = checkpoints.write_tensors

    def twice(*arguments):
        real(*arguments)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it went on")

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 15)
        start(*flags, "--out", tmp_path / "b", "--save-minutes", 1)
        patch.setattr(checkpoints, "write_tensors", twice)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 3)
        patch.setattr(checkpoints, "write_tensors", twice)
        start("--resume", tmp_path / "b")
    assert [path.name for path in (tmp_path / "b" / "checkpoints").iterdir()] == ["epoch-1-step-15"]
    start("--resume", tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


@pytest.mark.parametrize("scoring", [1, 2, 3])
def test_stopped_while_scoring(tmp_path, flags, monkeypatch, scoring):
    start(*flags, "--out", tmp_path / "a")
    real, calls = training.evaluate, []

    def stopping(*arguments):
        calls.append(0)
        if len(calls) == scoring:
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("it went on")
        return real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Terminated):
        patch.setattr(training, "evaluate", stopping)
        start(*flags, "--out", tmp_path / "b")
    assert [path.name for path in listed(tmp_path / "b" / "checkpoints")] == [f"epoch-{scoring - 1}-step-{11 * scoring}"]
    start("--resume", tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


@pytest.mark.parametrize("error", [OSError("Connection reset by peer"), EOFError(), UserError("a worker has died")])
def test_an_error_that_follows_a_signal_is_put_down_to_it(error):
    with pytest.raises(Terminated), checkpoints.Signals() as signals, signals.patiently():
        signal.raise_signal(signal.SIGTERM)
        raise error
    with pytest.raises(type(error)), checkpoints.Signals() as signals, signals.patiently():
        raise error
    with pytest.raises(Diverged), checkpoints.Signals() as signals, signals.patiently():
        signal.raise_signal(signal.SIGTERM)
        raise Diverged("the loss is nan")


@pytest.mark.parametrize("patient", [True, False])
def test_a_signal_that_waits_is_not_lost_beside_an_error(patient):
    with (
        pytest.raises(Terminated),
        checkpoints.Signals() as signals,
        signals.patiently() if patient else nullcontext(),
        ctrl_c_later(),
    ):
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated. ")


def test_a_worker_may_be_told_before_its_parent():
    later = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
    with pytest.raises(Terminated), checkpoints.Signals() as signals, signals.patiently():
        later.start()
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated. ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_file_is_read_is_no_damage_of_the_file(tmp_path, monkeypatch, number):
    """The library, written in another language, takes what a handler raises for a fault of the file."""
    base = converted_directory(tmp_path / "base")

    def interrupted(path):
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise TypeError("could not determine the shape") from None
        return load_file(path)

    monkeypatch.setattr("minift.pretrained.load_file", interrupted)
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        with pytest.raises(Terminated if number == signal.SIGTERM else KeyboardInterrupt):
            read(base)
        assert signal.getsignal(signal.SIGTERM) is terminate
    finally:
        signal.signal(signal.SIGTERM, before)


def test_stopped_while_it_loads(stopped, monkeypatch):
    monkeypatch.setattr(TextClassification, "prepare", lambda *arguments: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match=f"--resume {stopped}$"):
        start("--resume", stopped)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_the_test_rows_are_scored(tmp_path, flags, monkeypatch, number):
    """After training. What was trained is not lost, and the validation rows, scored once more, have the same figures."""
    flags = [*flags, "--test", flags[1]]
    start(*flags, "--out", tmp_path / "a")

    def stopping(*arguments):
        signal.raise_signal(number)
        pytest.fail("it went on")

    kind = Terminated if number == signal.SIGTERM else KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(kind, match=f"--resume {tmp_path / 'b'}$"):
        patch.setattr(runs, "evaluate", stopping)
        start(*flags, "--out", tmp_path / "b")
    assert not (tmp_path / "b" / "result.json").exists() and not (tmp_path / "b" / "lock").exists()
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    steps = (tmp_path / "b" / "metrics.jsonl").read_bytes()
    start("--resume", tmp_path / "b")
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in "ab"]
    assert results[0]["test"] == results[1]["test"] and results[0]["valid"] == results[1]["valid"]
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert steps.count(b"train") == (tmp_path / "b" / "metrics.jsonl").read_bytes().count(b"train") == 33


SCORING = """
import os, sys, time
import train
from minift import runs
from minift.errors import command

def slow(*arguments):
    open(os.environ["BEGUN"], "w").close()
    time.sleep(60)

runs.evaluate = slow
command(train.main, "train")
"""
LOADING = """
import os, time
import train
from minift.tasks.text_classification import TextClassification
from minift.errors import command

def slow(*arguments):
    open(os.environ["BEGUN"], "w").close()
    time.sleep(60)

TextClassification.prepare = slow
command(train.main, "train")
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("what", [SCORING, LOADING], ids=["scoring", "loading"])
def test_exit_codes_while_it_loads_and_scores(tmp_path, flags, number, code, what):
    arguments = [sys.executable, "-c", what, *flags, "--test", flags[1], "--epochs", "1", "--out", str(tmp_path / "run")]
    environment = {**os.environ, "BEGUN": str(tmp_path / "begun"), "PYTHONPATH": str(CHECKOUT)}
    run = subprocess.Popen(
        arguments, cwd=CHECKOUT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=default_handlers,
    )  # fmt: skip
    wait_for((tmp_path / "begun").is_file, 60)
    run.send_signal(number)
    _, errors = run.communicate(timeout=60)
    last = errors.strip().splitlines()[-1]
    assert run.returncode == code and "Traceback" not in errors and last.startswith("train: stopped")
    if what == SCORING:
        assert last.endswith(f"to continue: python train.py --resume {tmp_path / 'run'}")
        assert (tmp_path / "run" / "model").is_dir() and not (tmp_path / "run" / "result.json").exists()
    else:
        assert not (tmp_path / "run").exists()  # nothing was begun


PLACES = {"memory": (1 << 40, 1 << 40), "disk": (0, 1 << 40), "off": (0, 0)}  # bytes of memory, and on disk


@pytest.mark.parametrize(
    ("first", "then"), [("memory", "disk"), ("disk", "memory"), ("off", "memory"), ("off", "disk"), ("memory", "off")]
)
def test_frozen_features_may_be_kept_in_another_place(tmp_path, flags, monkeypatch, capsys, first, then):
    """The bits are those of the run that was left alone, though the machine has other room when it goes on."""
    flags = [*flags, "--method", "partial:stages=2", "--cache", "auto"]

    def room(place):
        memory, disk = PLACES[place]
        monkeypatch.setattr(cache, "memory_of_machine", lambda: memory)
        monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2 * disk if disk else 10**6}))
        monkeypatch.setattr(cache, "bytes_needed", lambda *_: 10**6)

    room(first)
    start(*flags, "--out", tmp_path / "a")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 15)
        start(*flags, "--out", tmp_path / "b")
    room(then)
    capsys.readouterr()
    start("--resume", tmp_path / "b")
    printed = capsys.readouterr()
    assert ("there is no room for them now: the last bits differ" in printed.err) == ((first, then) == ("memory", "off"))
    assert f"kept {'in memory' if then == 'memory' else 'on disk'}" in printed.out or "off" in (first, then)
    if then != "off":
        assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_what_was_scored_after_the_checkpoint_is_not_taken_for_the_best(tmp_path, flags, stopped):
    before = weights(stopped)
    (stopped / "model" / "model.safetensors").unlink()  # a link: the checkpoint has the file still
    (stopped / "model" / "model.safetensors").write_bytes(b"of an epoch that is not over at the checkpoint")
    start("--resume", stopped, "--epochs", 4)
    kept = json.loads((stopped / "result.json").read_text())["best_epoch"]
    assert (weights(stopped) == before) == (kept == 1)
    minift.load(stopped)


# ---- files ----

DAMAGE = {
    "cut": lambda file: os.truncate(file, file.stat().st_size // 2),
    "flipped": lambda file: file.write_bytes(file.read_bytes()[:-9] + b"#" + file.read_bytes()[-8:]),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("file", ["state.safetensors", "progress.json", "manifest.json", "model/config.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, flags, monkeypatch, capsys, damage, file):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 15)
        start(*flags, "--out", tmp_path / "run", "--keep", 2)
    old, new = sorted(listed(tmp_path / "run" / "checkpoints"))
    copy = new.with_name("copy")
    shutil.copytree(new, copy)  # the files of model/ are links that both checkpoints share
    shutil.rmtree(new)
    copy.rename(new)
    DAMAGE[damage](new / file)
    capsys.readouterr()
    start("--resume", tmp_path / "run")
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and f"{new}: " in printed.err and "passed over" in printed.err
    assert f"resumed from {old}" in printed.out
    start(*flags, "--out", tmp_path / "again")
    assert weights(tmp_path / "run") == weights(tmp_path / "again")


def test_killed_before_it_deletes_the_checkpoint_before_the_last(tmp_path, flags, monkeypatch):
    """At the end of the last epoch: the run that goes on has nothing left to save, and deletes it all the same."""
    with monkeypatch.context() as killed:
        killed.setattr(Checkpoints, "prune", lambda self: None)
        start(*flags, "--out", tmp_path / "run", "--save-minutes", 0, "--keep", 1)
    *_, last = sorted(listed(tmp_path / "run" / "checkpoints"), key=position)
    (tmp_path / "run" / "result.json").unlink()
    start("--resume", tmp_path / "run")
    assert listed(tmp_path / "run" / "checkpoints") == [last] and (tmp_path / "run" / "result.json").exists()


def test_where_all_are_damaged_nothing_is_overwritten(stopped):
    (only,) = listed(stopped / "checkpoints")
    (only / "state.safetensors").unlink()
    before = weights(stopped)
    with pytest.raises(UserError, match=r"state.safetensors is missing, and there is no sound one .* --config") as error:
        start("--resume", stopped)
    assert "\n" not in str(error.value) and weights(stopped) == before


def test_no_pickle_is_written(stopped):
    names = {path.name for path in stopped.rglob("*") if path.is_file()}
    assert names == {
        *("config.json", "metrics.jsonl", "model.safetensors", "tokenizer.json"),
        *("state.safetensors", "progress.json", "manifest.json"),
    }


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(tmp_path, flags, capsys):
    """A file-size limit that the model stays below and the state of its optimizer does not."""
    start(*flags, "--out", tmp_path / "a")
    capsys.readouterr()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        start(*flags, "--out", tmp_path / "b", "--save-minutes", 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err.splitlines()
    assert len(said) >= 33 and all("no checkpoint at step" in line and "too large" in line for line in said)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["config.json", "metrics.jsonl", "model", "result.json"]


def test_free_space_is_looked_at(tmp_path, flags, stopped, monkeypatch, capsys):
    monkeypatch.setattr(runs, "free_space", lambda place: 1000)
    with pytest.raises(UserError, match=r"the model takes 0.0 MB, and 0.0 MB are free there"):
        start(*flags, "--out", tmp_path / "b")
    assert not (tmp_path / "b").exists()
    capsys.readouterr()
    monkeypatch.setattr(checkpoints, "free_space", lambda place: 1000)
    (last,) = listed(stopped / "checkpoints")
    start("--resume", stopped, "--epochs", 4)
    said = capsys.readouterr().err
    assert "no checkpoint at step" in said and f"the last one is {last}" in said


def test_metrics_that_a_full_disk_has_cut_are_written_later(tmp_path):
    run = runs.Run(tmp_path / "run", None)
    run.log([{"step": 1}])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15, before[1]))
    try:
        run.log([{"step": 2}])
        assert (tmp_path / "run" / "metrics.jsonl").stat().st_size == 15
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    run.log([{"step": 3}])
    assert [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_a_directory_that_vanishes(tmp_path, flags, monkeypatch):
    real = training.evaluate

    def vanishing(*arguments):
        shutil.rmtree(tmp_path / "run")
        return real(*arguments)

    monkeypatch.setattr(training, "evaluate", vanishing)
    with pytest.raises(UserError, match="the directory is gone"):
        start(*flags, "--out", tmp_path / "run")


@pytest.fixture
def read_only(tmp_path):
    """A directory in which nobody can write: root can, whatever the mode says, so the file system has to refuse."""
    place = tmp_path / "read-only"
    place.mkdir()
    place.chmod(0o555)
    if not os.access(place, os.W_OK):
        yield place
    elif shutil.which("chattr") and not subprocess.run(["chattr", "+i", place], capture_output=True).returncode:
        yield place
        subprocess.run(["chattr", "-i", place], check=True)
    elif not subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", place], capture_output=True).returncode:
        yield place
        subprocess.run(["umount", place], check=True)
    else:
        place.chmod(0o755)
        pytest.skip("root writes everywhere, and neither chattr +i nor a read-only mount is allowed here")
    place.chmod(0o755)


def said_by(flags: list, out: Path) -> str:
    """The one line of a run that cannot write there."""
    arguments = [sys.executable, "train.py", *of_one_epoch(flags), "--out", str(out)]
    done = subprocess.run(arguments, cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_a_read_only_directory(flags, read_only):
    assert str(read_only) in said_by(flags, read_only / "run")


def test_a_file_in_the_place_of_a_directory(tmp_path, flags):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        assert str(tmp_path / "file") in said_by(flags, out)
    assert (tmp_path / "file").read_text() == "mine"


def test_checkpoints_that_cannot_be_written_cost_no_run(tmp_path, flags, capsys, monkeypatch):
    """A file in the place of checkpoints/: no place to write that even root has."""
    start(*flags, "--out", tmp_path / "a")
    real = checkpoints.Checkpoints.begin

    def begin(self, *arguments):
        real(self, *arguments)
        self.place.write_text("in the way")

    monkeypatch.setattr(checkpoints.Checkpoints, "begin", begin)
    capsys.readouterr()
    start(*flags, "--out", tmp_path / "b", "--save-minutes", 0)
    said = capsys.readouterr().err.splitlines()
    assert said and all("no checkpoint at step" in line for line in said)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_a_clock_that_goes_backwards(tmp_path, flags, monkeypatch):
    hours = iter(range(10**6, 0, -1))
    monkeypatch.setattr(time, "time", lambda: next(hours) * 3600.0)
    start(*flags, "--out", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["seconds"]["train"] > 0


def test_one_process_writes_a_run(stopped):
    holds = "import sys, time; from pathlib import Path; from minift.checkpoints import Lock; Lock(Path(sys.argv[1]))"
    other = subprocess.Popen(
        [sys.executable, "-c", holds + "; print('held', flush=True); time.sleep(60)", str(stopped)],
        stdout=subprocess.PIPE, cwd=CHECKOUT,
    )  # fmt: skip
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="another process is writing this run"):
            start("--resume", stopped)
    finally:
        other.kill()
        other.wait()
    start("--resume", stopped)


def test_two_runs_at_once_get_two_names(tmp_path, flags, monkeypatch):
    monkeypatch.chdir(tmp_path)
    others = [1]

    def meanwhile(*arguments):  # between the choice of the name and its claim
        if others.pop():
            others.append(0)
            start(*flags, "--epochs", 0)
        others.append(0)

    monkeypatch.setattr(runs, "check_space", meanwhile)
    start(*flags, "--epochs", 0)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["rows-base-full", "rows-base-full-2"]


@pytest.mark.skipif(sys.platform == "win32", reason="process groups of POSIX")
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    check = """
import sys, time
from pathlib import Path
from minift.data import decoding

def slow(file):
    Path(sys.argv[1]).touch()
    time.sleep(0.05)

decoding.verdict = slow
decoding.check_images([Path(str(i)) for i in range(100000)], 2, None)
"""
    (tmp_path / "slow.py").write_text(check)
    assert_nobody_stays([tmp_path / "slow.py", tmp_path / "begun"], tmp_path / "begun")


# ---- flags and data ----

REFUSED = {
    "another rate": (["--lr", "0.1"], "--lr 0.1: the run has 0.01; for another run: python train.py --config"),
    "another method": (["--method", "lora"], "--method lora: the run has full"),
    "another seed": (["--seed", "1"], "--seed 1: the run has 42"),
    "fewer epochs": (["--epochs", "2"], "it can only be raised"),
    "other data": (["--train", "other.csv"], "--train other.csv: its content has changed since the run began"),
    "another switch": (["--compile"], " with --compile: the run has False; for another run: python train.py --config"),
    "another flag": (["--lrr", "1"], "--lrr: no such flag"),
    "a config": (["--config", "x.json"], "--resume with --config"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_flags_than_the_run_s_are_refused(tmp_path, stopped, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    rows_file(tmp_path / "other.csv", 60)
    more, wanted = REFUSED[case]
    with pytest.raises(UserError) as error:
        start("--resume", stopped, *more)
    assert wanted in str(error.value) and "\n" not in str(error.value)
    assert listed(stopped / "checkpoints") and not (stopped / "result.json").exists()


def test_the_run_s_own_flags_are_no_others(stopped, flags):
    start("--resume", stopped, *flags, "--device", "cpu")
    assert (stopped / "result.json").is_file()


def test_changed_data_and_a_changed_base_are_refused_by_name(tmp_path, base, stopped):
    rows = tmp_path / "rows.csv"
    content = rows.read_text()
    rows.write_text(content.replace("hotel", "motel", 1))
    with pytest.raises(UserError, match=r"--train .*rows.csv: its content has changed"):
        start("--resume", stopped)
    rows.write_text(content)
    tokenizer = (base / "tokenizer.json").read_text()
    (base / "tokenizer.json").write_text(tokenizer + "\n")
    with pytest.raises(UserError, match="has other tokenizer than at the start"):
        start("--resume", stopped)
    (base / "tokenizer.json").write_text(tokenizer)
    rows.rename(tmp_path / "moved.csv")
    with pytest.raises(UserError, match=r"rows.csv: no such file"):
        start("--resume", stopped)
    start("--resume", stopped, "--train", tmp_path / "moved.csv")


@pytest.mark.parametrize("flag", ["--label-names", "--paraphrases"])
def test_files_beside_the_data_are_found_and_may_not_change(tmp_path, base, monkeypatch, flag):
    contents = {"--label-names": "bad\ngood\n", "--paraphrases": "text,paraphrase\nthe film was good,good\n"}
    rows = rows_file(tmp_path / "rows.csv")
    rows.write_text(rows.read_text().replace("positive", "1").replace("negative", "0"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside.csv").write_text(contents[flag])
    fixed = ["--train", "rows.csv", "--model", base, "--precision", "float32", "--valid", "none", "--quiet", "--out", "run"]
    start(*fixed, "--epochs", "1", "--keep", "1", flag, "beside.csv")
    monkeypatch.chdir("/")
    (tmp_path / "beside.csv").write_text(contents[flag].replace("good\n", "fine\n"))
    with pytest.raises(UserError, match=rf"^{flag} .*beside.csv: its content has changed .* or name it with {flag}$"):
        start("--resume", tmp_path / "run", "--epochs", "2")
    (tmp_path / "other.csv").write_text(contents[flag])
    start("--resume", tmp_path / "run", "--epochs", "2", flag, tmp_path / "other.csv")


def test_a_delta_belongs_to_one_tokenizer(tmp_path, flags, base):
    start(*flags, "--epochs", 0, "--method", "lora", "--out", tmp_path / "run")
    minift.load(tmp_path / "run")
    (base / "tokenizer.json").write_text((base / "tokenizer.json").read_text() + "\n")
    with pytest.raises(UserError, match="trained with another tokenizer"):
        minift.load(tmp_path / "run")


def test_epochs_can_be_raised_and_a_finished_run_says_so(tmp_path, flags, capsys):
    start(*flags, "--out", tmp_path / "run", "--keep", 1)
    capsys.readouterr()
    start("--resume", tmp_path / "run")
    assert "this run has finished, 3 epochs" in capsys.readouterr().out
    start("--resume", tmp_path / "run", "--epochs", 4)
    assert "--epochs 3 is now 4: from here on the schedule is that of 4 epochs" in capsys.readouterr().err
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["split"] == "train"] == list(range(1, 45))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["flags"]["epochs"] == 4
    start(*flags, "--out", tmp_path / "other")
    with pytest.raises(UserError, match="its checkpoints are deleted"):
        start("--resume", tmp_path / "other", "--epochs", 4)


def test_another_number_of_threads_is_said(stopped, monkeypatch, capsys):
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    start("--resume", stopped)
    assert f"{threads + 1} threads, and the run began with {threads}" in capsys.readouterr().err


def test_config_runs_it_again_and_other_flags_win(tmp_path, flags, monkeypatch):
    start(*flags, "--out", tmp_path / "a", "--seed", 3)
    monkeypatch.chdir(tmp_path / "base")  # paths are kept as seen from anywhere
    start("--config", tmp_path / "a" / "config.json", "--out", tmp_path / "b")
    start("--config", tmp_path / "a" / "config.json", "--out", tmp_path / "c", "--seed", 4)
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "c")


@pytest.mark.parametrize("several", [["--seeds", "3"], ["--lr", "1e-2,1e-3,1e-4"]])
def test_several_runs_go_on_with_the_one_that_was_interrupted(tmp_path, flags, monkeypatch, several):
    start(*flags, *several, "--out", tmp_path / "a")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match=f"--resume {tmp_path / 'b'}$"):
        stop_at(patch, 33 + 15)
        start(*flags, *several, "--out", tmp_path / "b")
    first = next(path for path in sorted((tmp_path / "b").iterdir()) if (path / "result.json").is_file())
    before = (first / "result.json").stat().st_mtime_ns
    start("--resume", tmp_path / "b")
    left = {name: sorted(str(path.relative_to(tmp_path / name)) for path in (tmp_path / name).rglob("*")) for name in "ab"}
    assert left["a"] == left["b"]
    for path in left["a"]:
        if path.endswith(".safetensors"):
            assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()
    assert not first.is_dir() or (first / "result.json").stat().st_mtime_ns == before
    start("--resume", tmp_path / "b")


# ---- training that goes wrong ----


def loss_that_fails(step: int):
    real, calls = TextClassification.loss, []

    def loss(self, outputs, batch):
        calls.append(0)
        return real(self, outputs, batch) * (float("nan") if len(calls) == step else 1.0)

    return loss


def test_an_update_that_is_not_finite_stops_the_run_and_names_the_rows(tmp_path, flags, monkeypatch):
    monkeypatch.setattr(TextClassification, "loss", loss_that_fails(5))
    with pytest.raises(UserError) as error:
        start(*flags, "--out", tmp_path / "run", "--valid", "none", "--save-minutes", 0)
    rows = tmp_path / "rows.csv"
    assert "at step 5, learning rate 0.0" in str(error.value) and str(error.value).count(f"{rows}:") == 4
    assert f"the last one is {tmp_path / 'run' / 'checkpoints' / 'epoch-0-step-4'}" in str(error.value)
    assert all(t.isfinite().all() for t in load_file(listed(tmp_path / "run" / "checkpoints")[0] / "state.safetensors").values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_or_is_skipped_and_counted(tmp_path, flags, monkeypatch, capsys, precision):
    monkeypatch.setattr(TextClassification, "loss", loss_that_fails(5))
    start(*flags, "--out", tmp_path / "run", "--on-nonfinite", "skip", "--precision", precision)
    assert "1 step without an update: loss or gradient not finite" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "result.json").read_text())["nonfinite"] == 1
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    assert all(t.isfinite().all() for t in read(tmp_path / "run" / "model").tensors.values())


def test_a_nan_is_never_the_best():
    task = type("Task", (), {"METRICS": {"pearson": True}})
    assert training.rank_of({"loss": 1.0, "pearson": float("nan")}, "pearson", task) < (-1.0, -2.0)
    with pytest.raises(UserError, match="diverged"):
        training.rank_of({"loss": float("nan"), "pearson": 1.0}, "pearson", task)


def test_one_line_each(tmp_path, flags, capsys):
    (tmp_path / "empty.csv").write_text("text,label\n")
    for more, wanted in (
        (["--lr", "1e-50"], "the first update (step 2, learning rate 2.5e-51) has changed no parameter; try a higher --lr"),
        (["--train", str(tmp_path / "empty.csv")], "empty.csv: there is a header and no row below it"),
    ):
        with pytest.raises(UserError) as error:
            start(*flags, *more, "--out", tmp_path / "run")
        assert wanted in str(error.value) and "\n" not in str(error.value)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
    start(*flags, "--valid", tmp_path / "rows.csv", "--epochs", 1, "--out", tmp_path / "run")
    said = f"note: --valid {tmp_path / 'rows.csv'} is the training file: its figures say nothing of other rows\n"
    assert [line for line in capsys.readouterr().err.splitlines(True) if "is given 2 times" not in line] == [said]


CUDA = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which 3.02 GiB is free. Including "
    "non-PyTorch memory, this process has 76.12 GiB memory in use."
)


def test_out_of_memory_is_one_line():
    said = out_of_memory(RuntimeError(CUDA), "train")
    assert "(tried to allocate 20.00 GiB; GPU 0 has a total capacity of 79.15 GiB of which 3.02 GiB is free)" in said
    assert all(flag in said for flag in ("--batch-size", "--accumulate", "--checkpoint-activations", "--max-length"))
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 55, dtype=torch.uint8)
    assert "tried to allocate 36028797018963968 bytes" in out_of_memory(error.value, "predict")
    assert out_of_memory(MemoryError(), "train") and not out_of_memory(RuntimeError("shapes differ"), "train")


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_closed_streams(tmp_path, flags, closed):
    number = {"stdout": 1, "stderr": 2}[closed]
    pipes = {name: subprocess.PIPE for name in ("stdout", "stderr") if name != closed}
    arguments = [sys.executable, "train.py", *of_one_epoch(flags), "--out", str(tmp_path / "run")]
    done = subprocess.run(arguments, cwd=CHECKOUT, preexec_fn=lambda: os.close(number), timeout=120, **pipes)
    assert done.returncode == 0 and not done.stderr and (tmp_path / "run" / "result.json").is_file()
