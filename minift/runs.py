"""The directory that a run leaves: config.json, metrics.jsonl, result.json and model/."""

import importlib.metadata
import json
import math
import platform
import re
import shutil
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy
import PIL
import safetensors
import tokenizers
import torch
from torch import nn

import minift
from minift.adapting import resolved
from minift.data.batching import Data
from minift.errors import UserError, look_up
from minift.methods.surgery import plain_name
from minift.options import layout_of
from minift.pretrained import Checkpoint, read_tensors, sha256, write, write_json
from minift.tables import table
from minift.tasks import TASKS
from minift.tasks.task import described
from minift.training import Progress, Scores, evaluate


class Run:
    """template: the checkpoint that is saved, all but its tensors. saved: which of the body's tensors; None: all."""

    def __init__(self, directory: Path, template: Checkpoint, saved: list[str] | None = None):
        self.directory = directory
        self.template = template
        self.saved = saved
        directory.mkdir(parents=True, exist_ok=True)
        try:
            (directory / "config.json").touch(exist_ok=False)
        except FileExistsError:
            raise UserError(f"{directory}: another run has just taken it; start again") from None

    @classmethod
    def create(cls, options, start, training) -> "Run":
        """The directory of a run that begins. start, training: from minift/setup.py."""
        layout = asdict(layout_of(options, start.task.LAYOUT))
        layout.pop("workers", None)  # the machine's, not the run's
        base, name = None, None
        if options.init == "pretrained":
            base, name = sha256(start.place / "model.safetensors"), options.model
            name = str(Path(name).resolve()) if Path(name).is_dir() else name
        template = replace(
            start.checkpoint,
            tensors={},  # the body has its own
            heads={},
            origin=None,
            base=base,
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
        run = cls(Path(options.out), template, training.saved)
        machine = {"versions": versions(), "threads": torch.get_num_threads(), "seconds_of_products": training.seconds}
        run.write_json("config.json", {"flags": asdict(options)} | machine)
        return run

    def write_json(self, name: str, content: dict) -> None:
        beside = self.directory / (name + ".part")
        write_json(beside, content)
        beside.replace(self.directory / name)

    def log(self, events: list[dict]) -> None:
        with (self.directory / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(event) + "\n" for event in events)

    def save(self, model: nn.Module, task) -> None:
        """Write model/. task: as it is now, with what it has tuned."""
        tensors, head = plain_state(model.body), model.head.state_dict()
        tensors = tensors if self.saved is None else {name: tensors[name] for name in self.saved}
        tensors, head = ({name: t.detach().cpu() for name, t in part.items()} for part in (tensors, head))
        stored = described(self.template.task["name"], task)
        write(self.directory / "model", replace(self.template, tensors=tensors, head=head, task=stored))

    def restore(self, model: nn.Module) -> None:
        """Put the weights that were saved last back into `model`."""
        tensors = read_tensors(self.directory / "model" / "model.safetensors")
        state = plain_state(model.body) | {f"head.{name}": tensor for name, tensor in model.head.state_dict().items()}
        for name, tensor in tensors.items():
            state[name].copy_(tensor)

    def score(self, training, data: dict[str, Data], options, progress: Progress) -> tuple[object, dict[str, Scores]]:
        """(the task, tuned on the validation rows where it has something to tune; the scores of the epoch that was kept)"""

        def scored(split: str) -> Scores:
            scores = evaluate(training.model, task, data[split], options.batch_size, training.precision)
            progress.seconds_evaluating += scores.seconds
            return scores

        self.restore(training.model)
        task, scores = training.task, {}
        if "valid" in data:
            scores["valid"] = scored("valid")
            check_recorded(scores["valid"].metrics, options.monitor, progress, next(training.model.parameters()).device)
            tuned = task.tune(scores["valid"].meter)
            if tuned != task:
                task = tuned
                scores["valid"] = scored("valid")
                self.save(training.model, task)
        if "test" in data:
            scores["test"] = scored("test")
        return task, scores

    def finish(self, training, scores: dict[str, Scores], progress: Progress, setup: float, device: torch.device) -> dict:
        """Write result.json. setup: seconds before training."""
        result = {split: s.metrics for split, s in scores.items()} | {
            "seconds": {"setup": setup, "train": progress.seconds_training, "evaluate": progress.seconds_evaluating},
            "peak_memory_mb": peak_memory_mb(device),
            "parameters": {
                "trainable": sum(p.numel() for group in training.optimizer.groups for p in group.parameters),
                "total": sum(p.numel() for p in training.model.parameters()),
            },
            "steps": progress.step,
            "best_epoch": progress.best_epoch,
            "best_step": progress.best_step,
            "precision": str(training.precision.dtype).removeprefix("torch."),
        }
        self.write_json("result.json", result)
        return result


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


@contextmanager
def stopped_in(directory: Path) -> Iterator[None]:
    """Ctrl-C within says what is left of the run."""
    try:
        yield
    except KeyboardInterrupt:
        kept = f"the best epoch so far is in {directory}" if (directory / "model").is_dir() else "before an epoch was over"
        raise KeyboardInterrupt(kept) from None


# ---- several runs ----


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
    write_json(directory / "result.json", {"seeds": seeds, "diverged": len(results) - len(done), **summary})
    rows = [[split, name, *list(f.values())[:-1]] for split, names in summary.items() for name, f in names.items()]
    return table(["split", "metric", "mean", "deviation", "median", "best", "worst"], rows)


def choose_best(directory: Path, results: dict[str, dict | None], monitor: str, higher: bool) -> str:
    """Move the run with the best `monitor` on the validation rows up into `directory`; the others lose their models.

    results: name of the run's own directory -> its result; None: it diverged. Returns all of them as a table.
    """
    values = {label: result["valid"][monitor] for label, result in results.items() if result is not None}
    ranked = {label: (value if higher else -value) for label, value in values.items() if value is not None}
    best = max(ranked, key=ranked.__getitem__) if ranked else next(iter(values))
    for label in results:
        if label == best:
            for file in (directory / label).iterdir():
                file.replace(directory / file.name)
            (directory / label).rmdir()
        else:
            shutil.rmtree(directory / label / "model", ignore_errors=True)
    write_json(directory / "grid.json", {"best": best, "monitor": monitor, "runs": results})
    names = list(results[best]["valid"])
    rows = [
        [label, *([result["valid"][name] for name in names] if result else ["diverged"] + [""] * (len(names) - 1)), mark]
        for label, result in results.items()
        for mark in ["kept" if label == best else ""]
    ]
    return table(["run", *(f"valid {name}" for name in names), ""], rows)


def versions() -> dict[str, str]:
    modules = (minift, torch, PIL, tokenizers, safetensors, numpy)
    others = {"torchvision": importlib.metadata.version("torchvision")}  # not imported: a run on texts has no use for it
    return {"python": platform.python_version()} | others | {module.__name__: str(module.__version__) for module in modules}


def describe_device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device}, {torch.get_num_threads()} threads"


def peak_memory_mb(device: torch.device) -> int | None:
    """Of the GPU's memory, or of the process on a CPU; None on Windows, which does not tell."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    if sys.platform == "win32":
        return None
    import resource  # is not there on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)
