"""What a run that was stopped continues from: its checkpoints, the signals that stop it, the lock on its directory.

checkpoints/epoch-E-step-S/     E epochs are over, S steps were taken
    state.safetensors           model/NAME, optimizer/NAME/PART, scaler/NAME, average/NAME, penalties/I/NAME: what trains, how far
                                its optimizer is
    progress.json               training.Progress, and the size of metrics.jsonl at that time
    model/                      the best epoch so far, as hard links to the run's model/, which take no space of their own
    manifest.json               size and sha256 of all of these

A checkpoint is written beside, flushed to the disk and renamed into place; only then are older ones deleted. One that is damaged is
recognised by its manifest and passed over. No random state is stored: see training.py.
Proved by tests/test_resume.py: runs that are killed at random and resumed end in the bits of a run that is left alone.
"""

import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from minift.distributed import count, largest, rank
from minift.errors import Diverged, Lost, Terminated, UserError, brief, ctrl_c_later, say
from minift.optim.precision import LossScaler
from minift.pretrained import recover, sha256, whole, write_json, write_tensors
from minift.training import Log, Progress, Saving, Training, out_of_patience

SHARE = 0.02  # of the time that saving at the end of epochs may cost
STATE, PROGRESS, MANIFEST = "state.safetensors", "progress.json", "manifest.json"


class Checkpoints(Saving):
    """Those of a run. run: from minift/runs.py. options: save_minutes, keep, epochs, patience. signals: what may stop the run."""

    def __init__(self, run, options, signals: "Signals"):
        self.run, self.options, self.signals = run, options, signals
        self.place = run.directory / "checkpoints"
        self.found = last_good(self.place)
        self.last = self.found and self.found.name  # the name of the one that was written or read last
        self.cost, self.hashes = 0.0, {}

    def begin(self, training: Training, scaler: LossScaler | None, progress: Progress) -> None:
        self.training, self.scaler, self.progress = training, scaler, progress
        if self.found:
            self.restore(self.found)
            if not rank():
                self.prune()  # what a kill between writing and pruning has left
        self.begun = self.saved = time.monotonic()

    def after_step(self, log: Log) -> None:
        told = self.signals.agree()
        if told is None and time.monotonic() - self.saved < 60 * self.options.save_minutes:
            return
        if log.pending:
            log.look()  # raises where training has diverged, so that what is saved is sound
        self.save()
        self.signals.stop(told)

    @contextmanager
    def scoring(self) -> Iterator[None]:
        try:
            with self.signals.at_once():
                yield
        except (KeyboardInterrupt, Lost):
            self.save()
            raise

    def after_epoch(self) -> None:
        told = self.signals.agree()
        cheap = self.cost < SHARE * (time.monotonic() - self.begun)
        due = time.monotonic() - self.saved >= 60 * self.options.save_minutes
        last = self.progress.epoch == self.options.epochs or out_of_patience(self.options, self.progress)
        if cheap or due or told is not None or (last and self.options.keep):
            self.save()
        self.signals.stop(told)

    # ---- writing ----

    def save(self) -> None:
        """Write where the run stands; what cannot be written is said, and the run goes on. The first process does."""
        if rank():
            return None
        name = f"epoch-{self.progress.epoch}-step-{self.progress.step}"
        if name == self.last:
            return None
        start = time.monotonic()
        try:
            self.write(name)
        except UserError as error:
            say(f"note: no checkpoint at step {self.progress.step}: {error}{self.before()}")
        else:
            self.last = name
            self.prune()
        self.saved = time.monotonic()
        self.cost += self.saved - start

    def prune(self) -> None:
        """Leave --keep checkpoints, of the last one and those before it."""
        newest = sorted(listed(self.place), key=position, reverse=True)
        kept = [path for path in newest if position(path) <= position(self.place / self.last)][: self.options.keep or 1]
        for path in newest:
            if path not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def before(self) -> str:
        return f"; the last one is {self.place / self.last}" if self.last else ""

    def write(self, name: str) -> None:
        tensors = self.tensors()
        needed, free = sum(tensor.nbytes for tensor in tensors.values()), free_space(self.place)
        if needed > free:
            raise UserError(f"it takes {megabytes(needed)}, and {self.place} has {megabytes(free)} free")
        size = self.run.sync()
        with whole(self.place / name) as fresh:
            write_tensors(fresh / STATE, tensors)
            write_json(fresh / PROGRESS, {"progress": asdict(self.progress), "metrics": size})
            link_files(self.run.directory / "model", fresh / "model")
            manifest = {}
            for path in sorted(fresh.rglob("*")):
                if path.is_file():
                    manifest[path.relative_to(fresh).as_posix()] = {"size": path.stat().st_size, "sha256": self.hash(path)}
            write_json(fresh / MANIFEST, manifest)

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint holds of them, on the CPU."""
        parts = {
            "model": self.run.trained(self.training.model),
            "optimizer": self.training.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else {},
            "average": self.training.average.state_dict() if self.training.average else {},
            "penalties": {f"{i}/{n}": t for i, one in enumerate(self.training.penalties) for n, t in one.state_dict().items()},
        }
        return {f"{part}/{name}": t.detach().cpu() for part, tensors in parts.items() for name, t in tensors.items()}

    def hash(self, path: Path) -> str:
        """The sha256 of a file; of one in model/, which never changes, it is computed once."""
        status = path.stat()
        key = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
        if status.st_nlink == 1:
            return sha256(path)
        if key not in self.hashes:
            self.hashes[key] = sha256(path)
        return self.hashes[key]

    # ---- reading ----

    def restore(self, path: Path) -> None:
        try:
            stored = json.loads((path / PROGRESS).read_text(encoding="utf-8"))
            with ctrl_c_later():
                tensors = load_file(path / STATE)
            seconds = self.progress.seconds_training  # those that this process has spent on frozen stages
            for name, value in stored["progress"].items():
                setattr(self.progress, name, tuple(value) if isinstance(value, list) else value)
            self.progress.seconds_training += seconds
            parts = {"model": {}, "optimizer": {}, "scaler": {}, "average": {}, "penalties": {}}
            for name, tensor in tensors.items():
                part, _, name = name.partition("/")
                parts[part][name] = tensor
            own = self.run.trained(self.training.model)
            if own.keys() != parts["model"].keys():
                raise ValueError(f"it has {len(parts['model'])} tensors of the model, expected {len(own)}")
            for name, tensor in parts["model"].items():
                own[name].copy_(tensor)
            self.training.optimizer.load_state_dict(parts["optimizer"])
            if self.scaler:
                self.scaler.load_state_dict(parts["scaler"])
            if self.training.average:
                self.training.average.load_state_dict(parts["average"])
            for i, one in enumerate(self.training.penalties):
                own = {name.partition("/")[2]: t for name, t in parts["penalties"].items() if name.startswith(f"{i}/")}
                one.load_state_dict(own)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise UserError(f"{path}: this is not a checkpoint of this run ({brief(error)})") from None
        self.run.rewind(stored["metrics"])
        if rank() == 0 and (path / "model").is_dir():  # the run's own may be of a later epoch, scored after this checkpoint
            with whole(self.run.directory / "model") as fresh:
                link_files(path / "model", fresh)
        where = (
            f"epoch {self.progress.epoch + 1}, batch {self.progress.batches}" if self.progress.batches else "the end of an epoch"
        )
        print(f"resumed from {path}: step {self.progress.step}, {where}", flush=True)


def listed(place: Path) -> list[Path]:
    """The checkpoints that lie here, sound or not."""
    return [path for path in place.iterdir() if position(path)] if place.is_dir() else []


def position(path: Path) -> tuple[int, int] | None:
    """(epochs that were over, steps taken) of a checkpoint, by its name."""
    numbers = re.fullmatch(r"epoch-(\d+)-step-(\d+)", path.name)
    return numbers and (int(numbers[1]), int(numbers[2]))


def last_good(place: Path) -> Path | None:
    """The newest sound checkpoint; None where there is none at all. Damaged ones are named. Raises UserError where all are."""
    found, wrong = sorted(listed(place), key=position, reverse=True), []
    for path in found:
        if not (why := problem_of(path)):
            return path
        wrong.append(f"{path}: {why}")
        print(f"note: {wrong[-1]}; passed over", file=sys.stderr)
    if found:
        raise UserError(f"{wrong[0]}, and there is no sound one to continue from; run it again with --config "
                        f"{place.parent / 'config.json'}")  # fmt: skip
    return None


def problem_of(path: Path) -> str | None:
    """What is wrong with a checkpoint; None: nothing."""
    try:
        if not (path / MANIFEST).is_file():  # a pipe would be waited for
            return f"incomplete, there is no {MANIFEST}"
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest.items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["size"]:
                return f"{name} has {file.stat().st_size:,} bytes, expected {expected['size']:,}"
            if sha256(file) != expected["sha256"]:
                return f"{name} is damaged (its sha256 is another one)"
        return None if {STATE, PROGRESS} <= manifest.keys() else f"{MANIFEST} does not name all files"
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} cannot be read ({brief(error)})"


def tidy(directory: Path) -> None:
    """Put back or delete what a killed process has left in the directory of a run."""
    recover(directory / "model")
    for place in (directory, directory / "checkpoints"):
        for path in place.glob(".minift-*.part"):
            shutil.rmtree(path, ignore_errors=True)
    for path in (directory / "checkpoints").glob(".epoch-*.old"):
        recover(path.with_name(path.name[1:].removesuffix(".old")))


def link_files(source: Path, target: Path) -> None:
    """The files of a directory, if there is one, as hard links; as copies where the file system has no links."""
    if not source.is_dir():
        return
    target.mkdir(exist_ok=True)
    for file in source.iterdir():
        try:
            os.link(file, target / file.name)
        except OSError:
            shutil.copyfile(file, target / file.name)


def free_space(place: Path) -> int:
    """Bytes that are free where a directory lies or is going to."""
    place = place.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


# ---- signals ----


class Signals:
    """Ctrl-C and SIGTERM, from entering this to leaving it.

    Within `patiently` the first one is noted in `came`, and `check` raises it where the run can be interrupted; a second one, and
    everywhere else the first, is raised at once: as KeyboardInterrupt or Terminated. A signal that the process was started to
    ignore, as a shell does for jobs in the background, is left ignored. Of several processes each gets one or two of a Ctrl-C, from
    the terminal and from torchrun, so a second one is not heard, and all stop after the same step.
    """

    def __init__(self):
        self.came: int | None = None
        self.patient = False
        self.before: dict[int, object] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # no other thread may set a handler
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self.before[number] = signal.signal(number, self.handle)
        return self

    def __exit__(self, kind, error: BaseException | None, traceback) -> None:
        """An error that follows a signal is put down to it: it has killed workers as well, for which others wait."""
        if isinstance(error, RuntimeError) and "killed by signal" in str(error):  # a worker; this process may be told after it
            self.patient = True
            time.sleep(0.2)
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if isinstance(error, Exception) and not isinstance(error, Diverged):
            self.check()

    def handle(self, number: int, frame) -> None:
        first, self.came = self.came is None, number
        if not self.patient or not (first or count() > 1):
            raise exception_of(number)
        if rank():
            return
        with suppress(OSError):
            again = b"" if count() > 1 else b"; again: at once"
            os.write(2, b"\nstopping after this step" + again + b"\n")  # print is not to be called from a handler

    def agree(self) -> int | None:
        """What any process has been told. What comes while they ask each other stays in `came`, for the next time."""
        return largest(self.came or 0) or None

    def stop(self, told: int | None) -> None:
        """Raise what all processes have agreed on; of a process that is alone, also what has come since."""
        if (number := told if count() > 1 else self.came) is not None:
            raise exception_of(number)

    def check(self) -> None:
        if self.came is not None:
            raise exception_of(self.came)

    @contextmanager
    def patiently(self) -> Iterator[None]:
        self.patient = True
        try:
            yield
        finally:
            self.patient = False
        self.check()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        self.patient = False
        try:
            self.check()
            yield
        finally:
            self.patient = True


def exception_of(number: int) -> KeyboardInterrupt:
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()


# ---- one process a run ----


class Lock:
    """A run's directory belongs to this process. The system frees it with the process, however that ends.

    It is a lock of the process (POSIX), which worker processes do not inherit.
    """

    def __init__(self, directory: Path):
        self.path = directory / "lock"
        while True:
            self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                lock(self.handle)
            except OSError:
                os.close(self.handle)
                raise UserError(
                    f"{directory}: another process is writing this run; stop it, or wait until it has finished"
                ) from None
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self.handle), os.stat(self.path)):
                    return
            os.close(self.handle)  # the process that had it has deleted it in the meantime

    def release(self) -> None:
        with suppress(OSError):  # Windows deletes no open file
            self.path.unlink()
        os.close(self.handle)


def lock(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
