"""The directory that a run leaves.

config.json     written at the start: the flags as given and as resolved, the sha256 of data and base, versions, threads
metrics.jsonl   a line for each step (split "train") and each scored epoch (split "valid"). Step n is the n-th update, from 1 on;
                its `loss` is from before that update, its `lr` that with which the update was made: the schedule at n - 1 (less
                the steps that were left out before), which with warm-up is 0 for step 1. Of several learning rates it is that of
                the head, or of the top stage if the head has no weights
result.json     written at the end: metrics of each split, seconds, memory, parameters and learning rates by stage, the best epoch
model/          the best epoch: weights of body and head, how to read and decode a row (layout in minift/pretrained.py)
checkpoints/    weights, optimizer and position, from which --resume goes on (minift/checkpoints.py); deleted at the end
"""

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import shlex
import shutil
import statistics
import sys
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy
import PIL
import safetensors
import tokenizers
import torch
from torch import nn

import minift
from minift.adapting import resolved
from minift.checkpoints import Lock, free_space, megabytes, tidy
from minift.cli import spelled as script
from minift.data.batching import Data
from minift.data.examples import Examples
from minift.distributed import count, from_first, rank, say_processes, wait
from minift.errors import Lost, UserError, is_there, look_up, say
from minift.fields import fits, shown
from minift.flags import spelled, typed
from minift.methods.surgery import plain_name
from minift.options import layout_of
from minift.pretrained import HEAD, Checkpoint, flush, read_object, read_tensors, sha256, whole_file, write, write_json
from minift.slices import scores_by
from minift.tables import counted, table
from minift.tasks import TASKS
from minift.tasks.task import described
from minift.training import Progress, Scores, evaluate

SEVERAL = "several.json"  # of several runs together: what they were started with


class Run:
    """template: the checkpoint that is saved, all but its tensors. saved: which of the body's tensors; None: all."""

    def __init__(self, directory: Path, template: Checkpoint, saved: list[str] | None = None):
        self.directory = directory
        self.template = template
        self.saved = saved
        self.lock: Lock | None = None
        self.record: dict = {}  # what config.json holds
        self.written, self.unwritten = 0, ""  # of metrics.jsonl: bytes that are in the file, and lines that are not yet
        directory.mkdir(parents=True, exist_ok=True)

    @classmethod
    def create(cls, options, given, start, training, parts: dict[str, Examples]) -> "Run":
        """The directory of a run that begins. given: the flags as they were typed. start, training: from minift/setup.py."""
        check_space(Path(options.out), training)
        options = replace(options, out=from_first(lambda: claim(options, given, "config.json").out))
        identity = base_of(start)
        if rank():
            return Reading(Path(options.out), template_of(options, start, training, identity), training.saved)
        run = cls(Path(options.out), template_of(options, start, training, identity), training.saved)
        run.lock = Lock(run.directory)
        known = {"data": fingerprints(options, parts), "base": identity}
        machine = {"versions": versions(), "threads": torch.get_num_threads(), "processes": count()}
        machine |= {"seconds_of_products": training.seconds}
        run.remember(given=portable(given), flags=asdict(options), **known, **machine)
        return run

    @classmethod
    def reopen(cls, directory: Path, record: dict, options, start, training, parts: dict[str, Examples]) -> "Run":
        """The directory of a run that goes on. record: its config.json. Raises UserError where what it stands on has changed."""
        identity = base_of(start)
        if identity != record["base"]:
            what = "tokenizer" if identity["weights"] == record["base"]["weights"] else "weights"
            raise UserError(f"{directory}: {start.place} has other {what} than at the start of the run; put the right ones back")
        for split, sha in fingerprints(options, parts).items():
            if sha != record["data"].get(split, sha):  # an older minift did not look at all of them
                raise UserError(
                    f"{spelled(split)} {getattr(options, split)}: its content has changed since the run began (sha256 "
                    f"{str(sha)[:12]}..., then {str(record['data'].get(split))[:12]}...); put the old file back, or name it with "
                    f"{spelled(split)}"
                )
        for name, value in record["flags"].items():
            if name not in (*FREE, "model") and (now := getattr(options, name, None)) != value:
                raise UserError(f"{directory}: {spelled(name)} was {value} at the start of the run and would be {now} now, with "
                                "this version or on this machine")  # fmt: skip
        if rank():
            run = Reading(directory, template_of(options, start, training, identity), training.saved)
            run.record = record
            return run
        run = cls(directory, template_of(options, start, training, identity), training.saved)
        is_there(directory / "metrics.jsonl")  # a pipe that nobody reads would be waited for
        run.lock, run.record = Lock(directory), record
        tidy(directory)
        run.rewind(0)
        if record["threads"] != torch.get_num_threads():
            print(f"note: {torch.get_num_threads()} threads, and the run began with {record['threads']}: sums differ in the last "
                  "bits", file=sys.stderr)  # fmt: skip
        if count() != (then := record.get("processes", 1)):
            print(f"note: {counted(count(), 'process')}, and the run began with {then}: the last bits and the dropout differ",
                  file=sys.stderr)  # fmt: skip
        for name, version in versions().items():
            if version != (then := record["versions"].get(name)):
                print(f"note: {name} {version}, and the run began with {then}: the last bits may differ", file=sys.stderr)
        if options.device != record["flags"]["device"]:
            print(f"note: --device {options.device}, and the run began on {record['flags']['device']}: the last bits differ",
                  file=sys.stderr)  # fmt: skip
        if options.epochs != (then := record["flags"]["epochs"]):
            print(f"note: --epochs {then} is now {options.epochs}: from here on the schedule is that of {options.epochs} epochs",
                  file=sys.stderr)  # fmt: skip
            changed = {"epochs": options.epochs}
            run.remember(**{part: record[part] | changed for part in ("given", "flags")})
        (directory / "result.json").unlink(missing_ok=True)
        return run

    def close(self) -> None:
        """Leave the directory to others."""
        if self.lock:
            self.lock.release()

    def remember(self, **more) -> None:
        """Add to config.json, or change what it says."""
        before, self.record = self.record, self.record | more
        if self.record != before:
            self.write_json("config.json", self.record)

    def write_json(self, name: str, content: dict) -> None:
        with whole_file(self.directory / name) as fresh:
            write_json(fresh, content)

    def log(self, events: list[dict]) -> None:
        """Add to metrics.jsonl. What cannot be written now, as on a full disk, is said and written later."""
        self.unwritten += "".join(json.dumps(event) + "\n" for event in events)
        try:
            self.write_lines()
        except OSError as error:
            if not self.directory.is_dir():
                raise UserError(f"{self.directory}: the directory is gone, so nothing can be saved any more") from None
            say(f"note: metrics.jsonl cannot be written ({error.strerror}); tried again later")

    def write_lines(self) -> None:
        content = self.unwritten.encode()
        with (self.directory / "metrics.jsonl").open("ab") as file:
            if file.tell() > self.written:
                file.truncate(self.written)  # what a full disk has cut, or what was written after the checkpoint
            file.write(content)
            file.flush()
            self.written = file.tell()
        self.unwritten = ""

    def sync(self) -> int:
        """The size of metrics.jsonl, with all of it on the disk. Raises UserError where it cannot be written."""
        try:
            self.write_lines()
            flush(self.directory / "metrics.jsonl")
        except OSError as error:
            raise UserError(f"{self.directory / 'metrics.jsonl'} cannot be written ({error.strerror})") from None
        return self.written

    def rewind(self, size: int) -> None:
        """Forget what metrics.jsonl holds beyond so many bytes, with the next write."""
        self.written = size

    def trained(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """The model's own tensors that training changes: of the body under its plain names, of the head as head.NAME."""
        tensors = plain_state(model.body)
        tensors = tensors if self.saved is None else {name: tensors[name] for name in self.saved}
        return tensors | {HEAD + name: tensor for name, tensor in model.head.state_dict().items()}

    def save(self, model: nn.Module, task) -> None:
        """Write model/. task: as it is now, with what it has tuned."""
        tensors = {name: tensor.detach().cpu() for name, tensor in self.trained(model).items()}
        head = {name.removeprefix(HEAD): tensors.pop(name) for name in list(tensors) if name.startswith(HEAD)}
        stored = described(self.template.task["name"], task)
        write(self.directory / "model", replace(self.template, tensors=tensors, head=head, task=stored))

    def restore(self, model: nn.Module) -> None:
        """Put the weights that were saved last back into `model`."""
        tensors = read_tensors(self.directory / "model" / "model.safetensors")
        state = plain_state(model.body) | {f"head.{name}": tensor for name, tensor in model.head.state_dict().items()}
        for name, tensor in tensors.items():
            state[name].copy_(tensor)

    def score(
        self, training, data: dict[str, Data], options, progress: Progress, valid: Scores | None = None
    ) -> tuple[object, dict[str, Scores]]:
        """(the task, tuned on the validation rows where it has something to tune; the scores of the epoch that was kept)

        valid: those of its validation rows, where they are known.
        """

        def scored(split: str) -> Scores:
            scores = evaluate(training.model, task, data[split], options.batch_size, training.precision)
            progress.seconds_evaluating += scores.seconds
            return scores

        wait()  # until the first process has written
        training.optimizer.load_state_dict({})  # its moments make room for the weights that are read
        self.restore(training.model)
        task, scores = training.task, {}
        if "valid" in data:
            scores["valid"] = valid or scored("valid")
            check_recorded(scores["valid"].metrics, options.monitor, progress, next(training.model.parameters()).device)
            tuned = from_first(lambda: task.tune(scores["valid"].meter))
            if tuned != task:
                task = tuned
                scores["valid"] = scored("valid")
                self.save(training.model, task)
        if "test" in data:
            scores["test"] = scored("test")
        return task, scores

    def score_by(self, training, task, parts: dict[str, Examples], options) -> dict[str, dict[str, float | None]]:
        """The figures of the last split for each value of the column --by."""

        def score(part: Examples) -> Scores:
            data = task.prepare(part, self.template, workers=getattr(options, "workers", None) or 0)
            return evaluate(training.model, task, data, options.batch_size, training.precision)

        return scores_by(list(parts.values())[-1], options.by, score)

    def finish(
        self,
        training,
        data: dict[str, Data],
        scores: dict[str, Scores],
        by: dict,
        progress: Progress,
        setup: float,
        device: torch.device,
        forgotten: dict | None = None,
    ) -> dict:
        """Write result.json, and delete the checkpoints.

        by: from `score_by`. setup: seconds before training. forgotten: from minift/source.py.
        """
        result = {split: s.metrics for split, s in scores.items()} | {
            "data": {split: {"rows": len({*rows.rows.tolist()}), **rows.describe()} for split, rows in data.items()},
            "seconds": {"setup": setup, "train": progress.seconds_training, "evaluate": progress.seconds_evaluating},
            "peak_memory_mb": peak_memory_mb(device),
            "parameters": {
                "trainable": sum(p.numel() for group in training.optimizer.groups for p in group.parameters),
                "total": sum(p.numel() for p in training.model.parameters()),
            },
            "steps": progress.step,
            "best_epoch": progress.best_epoch,
            "best_step": progress.best_step,
            "precision": self.template.settings["precision"],
            "stages": by_stage(training),
        }
        if details := {split: d for split, s in scores.items() if (d := s.meter.details())}:
            result["details"] = details
        if by:
            result["by"] = by
        if forgotten:
            result["source"] = forgotten
        if progress.nonfinite:
            result["nonfinite"] = progress.nonfinite
        self.write_json("result.json", result)
        if self.template.recipe["keep"] is None:
            shutil.rmtree(self.directory / "checkpoints", ignore_errors=True)
        return result


class Reading(Run):
    """Of a process other than the first: it reads the directory and writes nothing."""

    def write_json(self, name: str, content: dict) -> None: ...

    def log(self, events: list[dict]) -> None: ...

    def rewind(self, size: int) -> None: ...

    def save(self, model: nn.Module, task) -> None: ...


def by_stage(training) -> dict[str, dict]:
    """Each stage, and the head -> how many parameters it has, how many of them the method trains, and their learning rates."""
    found = {}
    for stage, modules in training.model.parts.items():
        groups = [group for group in training.optimizer.groups if group.stage == stage]
        found[stage] = {
            "parameters": sum(p.numel() for module in modules for p in module.parameters()),
            "trainable": sum(p.numel() for group in groups for p in group.parameters),
            "lr": sorted({group.lr for group in groups}),
        }
    return found


def check_recorded(metrics: dict, monitor: str, progress: Progress, device: torch.device) -> None:
    """What was saved scores as it did in its epoch. A GPU may choose other kernels, with other rounding."""
    if progress.best is None or metrics[monitor] is None:
        return
    close = 1e-6 if device.type == "cpu" else 1e-2
    assert math.isclose(abs(progress.best[0]), abs(metrics[monitor]), rel_tol=close, abs_tol=close), (
        f"what was saved scores {metrics}, recorded was {monitor} {progress.best[0]}"
    )


def plain_state(body: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict under the plain model's names."""
    return {plain_name(name): tensor for name, tensor in body.state_dict().items()}


def template_of(options, start, training, identity: dict | None) -> Checkpoint:
    """What model/ of the run holds besides tensors."""
    layout = asdict(layout_of(options, start.task.LAYOUT))
    layout.pop("workers", None)  # the machine's, not the run's
    name = None
    if identity:
        name = str(Path(options.model).resolve()) if Path(options.model).is_dir() else options.model
    return replace(
        start.checkpoint.without_tensors(),  # the body has its own
        base=identity and identity["weights"],
        base_tokenizer=identity and identity["tokenizer"],
        base_name=name,
        method=resolved(options.method, training.model.body),
        delta=training.saved is not None,
        task=described(options.task, training.task),
        settings={
            "batch_size": options.batch_size,
            "precision": options.precision,
            "frozen": training.frozen,
            "layout": layout,
        },
        recipe=asdict(options) | {"train": options.train and str(Path(options.train).resolve())},
    )


@contextmanager
def stopped_in(directory: Path) -> Iterator[None]:
    """A signal within says what is left of the run, and how to continue it."""
    try:
        yield
    except Lost as error:
        raise UserError(f"{error}; to continue: {resume_command(directory)}") from None
    except KeyboardInterrupt as stop:
        if stop.args:  # it is said already
            raise
        kept = f"the best epoch so far is in {directory}" if (directory / "model").is_dir() else "before an epoch was over"
        raise type(stop)(f"{kept}; to continue: {resume_command(directory)}") from None


def resume_command(directory: Path) -> str:
    return f"{script('train')} --resume {shlex.quote(str(directory))}"


# ---- what a run stands on ----

# Flags of files and directories
DATA = ("train", "valid", "test", "source_data", "rehearse", "target_data", "paraphrases", "label_names")
# Flags that may differ where a run goes on
FREE = ("epochs", "device", "threads", "workers", *DATA, "out", "quiet", "verbose")


def base_of(start) -> dict[str, str | None] | None:
    """The sha256 of the weights and of the tokenizer that a run starts from; None: from nothing."""
    if start.place is None or start.random:
        return None
    files = {"weights": "model.safetensors", "tokenizer": "tokenizer.json"}
    return {what: sha256(start.place / file) if (start.place / file).is_file() else None for what, file in files.items()}


def fingerprints(options, parts: dict[str, Examples]) -> dict[str, str | None]:
    """Flag of a file or directory -> digest of its content, and of the files that a table lists; None: standard input."""
    found = {}
    for name in DATA:
        path = getattr(options, name, None)
        if path not in (None, "none"):
            found[name] = fingerprint(Path(path), getattr(parts.get(name), "files", ()))
    return found


def fingerprint(path: Path, files: Sequence[Path] = ()) -> str | None:
    """Of a file the sha256. Of a directory, and of a table with the files that it lists, that of the names, the sizes and the
    first and last 32 KB of all files.
    """
    if path.is_dir():
        files = sorted(Path(place, name) for place, _, names in os.walk(path) for name in names if not name.startswith("."))
        files = [file for file in files if file.is_file()]  # a pipe would be waited for
        digest = hashlib.sha256()
    elif path.is_file():
        if not files:
            return sha256(path)
        digest = hashlib.sha256(sha256(path).encode())
    else:
        return None
    for file in files:
        size, name = file.stat().st_size, os.path.relpath(file, path if path.is_dir() else path.parent)
        digest.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
        with file.open("rb") as content:
            digest.update(content.read(ENDS))
            if size > ENDS:
                content.seek(max(ENDS, size - ENDS))
                digest.update(content.read(ENDS))
    return digest.hexdigest()


ENDS = 32 << 10


def portable(given) -> dict:
    """The flags as they were typed, with the paths as seen from anywhere."""
    flags = asdict(given)
    for name in (*DATA, "model"):
        if flags.get(name) is not None and Path(flags[name]).exists():
            flags[name] = str(Path(flags[name]).absolute())
    return flags


def read_record(path: Path) -> dict:
    """The config.json of a run, or the several.json of several runs together: what they were started with."""
    if not is_there(path):
        raise UserError(f"{path}: no such file, so this is no run that can be continued or repeated")
    if not path.stat().st_size:
        raise UserError(f"{path.parent}: this run was stopped before it began; delete the directory and start it again")
    record = read_object(path)
    given = record.get("given")
    if not isinstance(given, dict) or not isinstance(given.get("task"), str):
        raise UserError(f"{path}: it does not hold the flags that the run was started with (an older minift wrote it?)")
    record["given"] = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    if path.name == "config.json":
        parts = {"flags": dict, "data": dict, "versions": dict, "threads": int}
        if wrong := [name for name, kind in parts.items() if not isinstance(record.get(name), kind)]:
            raise UserError(f"{path}: {wrong[0]} is {shown(record.get(wrong[0]))}; was the file edited?")
        known = {"epochs": int, "device": str, "precision": str}
        if wrong := [name for name, kind in known.items() if not fits(record["flags"].get(name), kind)]:
            raise UserError(f"{path}: flags: {wrong[0]} is {shown(record['flags'].get(wrong[0]))}; was the file edited?")
        base = record.get("base")
        if base is not None and not (fits(base, dict[str, str | None]) and {"weights", "tokenizer"} <= base.keys()):
            raise UserError(f"{path}: base is {shown(base)}; was the file edited?")
        record["base"] = base
        if not fits(record.get("kept", {}), dict[str, bool]):
            raise UserError(f"{path}: kept is {shown(record['kept'])}; was the file edited?")
    return record


def repeated(options: type, record: dict, line: dict) -> object:
    """The flags of a run that is run again. line: those that were typed now, which win."""
    check_flags(options, record["given"], "given")
    flags = record["given"] | {"out": None}
    if "flags" in record and flags.get("precision", "auto") == "auto":
        flags["precision"] = record["flags"].get("precision", "auto")  # measured then; another one gives other bits
    return options(**flags | line)


def check_flags(options: type, stored: dict, what: str) -> None:
    """Raises UserError where flags that a run has recorded are not those of this version, or not of their types."""
    types, known = typing.get_type_hints(options), {f.name: f for f in fields(options)}
    for name, value in stored.items():
        if name not in known:
            raise UserError(f"{spelled(name)}: the run was started with this flag, which this version does not have")
        several = value if isinstance(value, tuple) and known[name].metadata["several"] else (value,)
        if not all(fits(one, types[name]) or (one is None and known[name].default is None) for one in several):
            raise UserError(f"{what}: {name} is {shown(value)}, which is no value of {spelled(name)}; was the file edited?")


def continued(options: type, record: dict, line: dict, directory: Path) -> object:
    """The flags of a run that goes on. line: those that were typed now. Raises UserError for those that must stay as they were."""
    then = record.get("flags", record["given"])
    check_flags(options, then, "flags")
    for name, value in line.items():
        if value == then.get(name) or (name in FREE and name not in ("epochs", "out")):
            continue
        if name == "epochs" and "flags" in record and value > then["epochs"]:
            continue
        lower = " (it can only be raised)" if name == "epochs" else ""
        raise UserError(
            f"--resume {directory} with {typed(name, value)}: the run has {then.get(name)}{lower}; for another run: "
            f"{script('train')} --config {shlex.quote(str(directory / 'config.json'))} {typed(name, value)}"
        )
    given = repeated(options, record, line)
    return replace(given, out=str(directory), device=line.get("device", then.get("device")))


def finished(directory: Path, record: dict, given) -> dict | None:
    """The result of a run that has finished, said; None where it has not, or goes on for more epochs."""
    if not is_there(directory / "result.json"):
        return None
    more = given.epochs is not None and given.epochs > record["flags"]["epochs"]
    if not more:
        print(f"{directory}: this run has finished, {counted(record['flags']['epochs'], 'epoch')}")
        return read_object(directory / "result.json")
    if not (directory / "checkpoints").is_dir():
        raise UserError(f"{directory}: this run has finished and its checkpoints are deleted (--keep 1 keeps one); train on from "
                        f"its weights: {script('train')} --model {directory}")  # fmt: skip
    return None


def check_space(out: Path, training) -> None:
    """Raises UserError where the model will not fit on the disk; notes where the checkpoints will not."""
    trained = sum(p.numel() * p.itemsize for group in training.optimizer.groups for p in group.parameters)
    model = trained if training.saved is not None else sum(t.nbytes for t in training.model.state_dict().values())
    checkpoint = model + trained * len(training.optimizer.moments)
    free = free_space(out)
    if free < model:
        raise UserError(
            f"{out}: the model takes {megabytes(model)}, and {megabytes(free)} are free there; make room, or give --out"
        )
    if free < 2 * (model + checkpoint):
        print(f"note: {out}: {megabytes(free)} are free; a checkpoint takes {megabytes(checkpoint)}, the model {megabytes(model)}; "
              "what does not fit will be left out", file=sys.stderr)  # fmt: skip


# ---- several runs ----


def claim(options, given, file: str):
    """Make the run's directory and in it an empty `file`, which no other run can have made. The options, with --out.

    Raises UserError where another process is faster; where --out was not given, the next free name is taken.
    """
    while True:
        directory = Path(options.out)
        try:
            directory.mkdir(parents=True, exist_ok=given.out is not None)
            (directory / file).touch(exist_ok=False)
            return options
        except FileExistsError:
            if given.out is not None:
                raise UserError(f"{directory}: another run has just taken it; start again") from None
        options = replace(options, out=str(directory_of(given)))
        print(f"note: another run has just taken {directory}; this one is in {options.out}")


def begin_several(given) -> Path:
    """The directory of several runs together, with what they are started with."""
    options = claim(replace(given, out=str(directory_of(given))), given, SEVERAL)
    with whole_file(Path(options.out) / SEVERAL) as fresh:
        write_json(fresh, {"given": portable(given)})
    return Path(options.out)


def delete_if_unused(directory: Path) -> None:
    """Delete what `begin_several` has made, where the first of the runs could not begin, as where a file is missing."""
    if [path.name for path in directory.iterdir()] == [SEVERAL]:
        (directory / SEVERAL).unlink()
        directory.rmdir()


def directory_of(options) -> Path:
    """Of a run, or of several together."""
    model = look_up(TASKS, options.task, "--task").MODEL if options.model is None else options.model
    return choose_directory(options.out, Path(options.train or "reviews"), model, options.method)


def choose_directory(out: str | None, data: Path, model: str, method: str) -> Path:
    """--out, which must be empty; else runs/DATA-MODEL-METHOD, numbered where it is taken."""
    if out is not None:
        directory = Path(out)
        if directory.is_file() or (directory.is_dir() and any(directory.iterdir())):
            raise UserError(f"--out {out}: exists and is not empty; give another directory or delete it")
        return directory
    stem = data.parent.resolve().name if data.stem.lower().startswith("train") else data.stem
    name = re.sub(r"[^\w.=-]+", "-", f"{stem}-{Path(model).name}-{method}")  # a colon is no letter of a name on Windows
    name = name.encode()[:100].decode(errors="ignore")  # file systems count bytes
    directory, number = Path("runs") / name, 1
    while directory.exists():
        number += 1
        directory = Path("runs") / f"{name}-{number}"
    return directory


def summarise(directory: Path, seeds: list[int], results: list[dict | None], higher: dict[str, bool]) -> str:
    """Write result.json of several seeds: mean, deviation, median, best and worst; the same as a table.

    results: of each seed; None: it diverged. higher: metric -> whether higher is better.
    """
    summary, done = {}, [result for result in results if result is not None]
    for split in ("valid", "test"):
        for name in done[0].get(split, ()):
            values = [result[split][name] for result in done if result[split][name] is not None]
            if not values:
                continue
            best, worst = (max(values), min(values)) if higher[name] else (min(values), max(values))
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            figures = {"mean": statistics.mean(values), "deviation": deviation, "median": statistics.median(values)}
            summary.setdefault(split, {})[name] = figures | {"best": best, "worst": worst, "values": values}
    with whole_file(directory / "result.json") as fresh:
        write_json(fresh, {"seeds": seeds, "diverged": len(results) - len(done), **summary})
    rows = [[split, name, *list(f.values())[:-1]] for split, names in summary.items() for name, f in names.items()]
    return table(["split", "metric", "mean", "deviation", "median", "best", "worst"], rows)


def choose_best(directory: Path, results: dict[str, dict | None], monitor: str, higher: bool) -> str:
    """Move the run with the best `monitor` on the validation rows up into `directory`; the others lose their models.

    results: name of the run's own directory -> its result; None: it diverged. Returns all of them as a table.
    """
    values = {label: result["valid"][monitor] for label, result in results.items() if result is not None}
    ranked = {label: (value if higher else -value) for label, value in values.items() if value is not None}
    best = max(ranked, key=ranked.__getitem__) if ranked else next(iter(values))
    with whole_file(directory / "grid.json") as fresh:
        write_json(fresh, {"best": best, "monitor": monitor, "runs": results})
    keep_best(directory)
    names = list(results[best]["valid"])
    rows = [
        [label, *([result["valid"][name] for name in names] if result else ["diverged"] + [""] * (len(names) - 1)), mark]
        for label, result in results.items()
        for mark in ["kept" if label == best else ""]
    ]
    return table(["run", *(f"valid {name}" for name in names), ""], rows)


def keep_best(directory: Path) -> None:
    """As grid.json says, the best run moves up and the others lose their models. Can be done again after a crash in the middle."""
    chosen = read_object(directory / "grid.json")
    for label in chosen["runs"]:
        if label != chosen["best"]:
            shutil.rmtree(directory / label / "model", ignore_errors=True)
        elif (directory / label).is_dir():
            for file in (directory / label).iterdir():
                file.replace(directory / file.name)
            (directory / label).rmdir()
    (directory / SEVERAL).unlink(missing_ok=True)


def versions() -> dict[str, str]:
    modules = (minift, torch, PIL, tokenizers, safetensors, numpy)
    others = {"torchvision": importlib.metadata.version("torchvision")}  # not imported: a run on texts has no use for it
    return {"python": platform.python_version()} | others | {module.__name__: str(module.__version__) for module in modules}


def describe_device(device: torch.device) -> str:
    one = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device}, {counted(torch.get_num_threads(), 'thread')}"
    return one + say_processes()


def peak_memory_mb(device: torch.device) -> int | None:
    """Of the GPU's memory, or of the process on a CPU; None on Windows, which does not tell."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    if sys.platform == "win32":
        return None
    with suppress(OSError, ValueError, StopIteration):  # Linux's own, which `forget_peak_memory` sets back
        lines = Path("/proc/self/status").read_text().splitlines()
        return round(int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024)
    import resource  # is not there on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)


def forget_peak_memory() -> None:
    """So that `peak_memory_mb` is that of this run, not of one before it in the process. Other systems than Linux keep theirs."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
