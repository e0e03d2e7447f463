"""A trained model in use: load it from a run, label texts or images with it, score it."""

import math
import re
import time
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minift.adapting import names_of
from minift.cache import Recomputed, Trunk
from minift.data.batching import by_length
from minift.errors import UserError, look_up
from minift.methods.surgery import wrappers
from minift.optim.precision import around
from minift.pretrained import Checkpoint, read, read_config
from minift.tasks import TASKS


@dataclass
class FineTuned:
    """A trained model with all that it takes to use it."""

    model: nn.Module
    task: object
    checkpoint: Checkpoint  # without its tensors
    precision: AbstractContextManager  # as `optim.precision.around` makes it
    trunk: Trunk | None  # the stages that were frozen in training, run as they were then
    attached: dict[str | None, "FineTuned"] = field(default_factory=dict)  # other runs over the same base; None: the one loaded

    def attach(self, directory: str | Path, name: str) -> None:
        """Read another run's delta over the base that is in memory already. `use` then switches to it. name: one not in use.

        Raises UserError where either run holds a whole model, or the other belongs to another base.
        """
        self.check_name("attach", name)
        theirs = read_config(place_of(directory))
        for is_delta, run in ((self.checkpoint.delta, "the run that was loaded"), (theirs.get("delta"), directory)):
            if not is_delta:
                raise UserError(f"attach: {run} holds a whole model and not a delta, so there is no base to share")
        if theirs["base"] != self.checkpoint.base:
            names = f"{theirs['base_name']} ({theirs['base'][:12]}...), not to {self.checkpoint.base_name}"
            raise UserError(f"attach: {directory} belongs to {names} ({self.checkpoint.base[:12]}...)")
        device = str(next(self.model.parameters()).device)
        self.attached[name] = assemble(read(place_of(directory), self.checkpoint.origin), device)

    def use(self, name: str | None) -> None:
        """`predict` and `score` are from now on those of the run attached as `name`; None: of the run that was loaded."""
        self.attached.setdefault(None, replace(self))
        if name not in self.attached:
            known = ", ".join(filter(None, self.attached)) or "none yet"
            raise UserError(f"use: no run is attached as {name!r}; known are {known}")
        one = self.attached[name]
        self.model, self.task, self.checkpoint = one.model, one.task, one.checkpoint
        self.precision, self.trunk = one.precision, one.trunk

    def combine(self, weights: dict[str | None, float], name: str = "combined") -> None:
        """Attach the weighted sum of LoRAs as `name`: W + sum_i w_i s_i B_i A_i, and of heads sum_i w_i H_i.

        It is itself a LoRA, whose rank is the sum of theirs. The runs must have the same labels.
        """
        self.attached.setdefault(None, replace(self))
        self.check_name("combine", name)
        if not all(isinstance(weight, int | float) and math.isfinite(weight) for weight in weights.values()):
            raise UserError(f"combine: {weights} has a weight that is no finite number")
        if not weights or (absent := [one for one in weights if one not in self.attached]):
            raise UserError(f"combine: {f'no run is attached as {absent[0]!r}' if weights else 'a weight for each run is wanted'}")
        self.attached[name] = combined([(self.attached[one], weight) for one, weight in weights.items()])

    def check_name(self, caller: str, name: str) -> None:
        if not isinstance(name, str) or not name or name in self.attached:
            raise UserError(f"{caller}: {name!r} is {'taken' if name in self.attached else 'no name'}; give another one with name=")

    @property
    def settings(self) -> dict:
        """How the run read and batched its data."""
        return self.checkpoint.settings

    def prepare(self, rows, labels=None, workers: int = 0):
        """Rows as the task reads them -> data for `score`, through the frozen trunk as in training."""
        data = self.task.prepare(rows, labels, self.checkpoint, self.settings, workers)
        return data if self.trunk is None else Recomputed(data, self.trunk)

    def score(self, rows, labels, workers: int = 0) -> tuple["Scores", dict]:
        """(scores of labelled rows, figures of the data). labels: (N) ids. workers: processes that read images."""
        data = self.prepare(rows, labels, workers)
        return score(self.model, self.task, data, self.settings["batch_size"], self.precision), data.describe()

    def predict(self, inputs: list[str], pairs: list[str] | None = None) -> list[dict]:
        """One object a text or image file, in order: label, score (its probability), probabilities by label.

        pairs: the second texts, for a run that was trained on pairs.
        """
        return self.predict_rows(self.task.rows(inputs, pairs))

    def predict_rows(self, rows, workers: int = 0) -> list[dict]:
        if not len(rows):
            return []
        data = self.prepare(rows, None, workers)
        return self.task.decode(logits_of(self.model, data, self.settings["batch_size"], self.precision))


def load(directory: str | Path, device: str | None = None) -> FineTuned:
    """A finished run, ready to predict. device: as torch names it; None: CUDA where there is one, else the CPU."""
    return assemble(read(place_of(directory)), device)


def place_of(directory: str | Path) -> Path:
    """The model/ of a run, or a directory that holds the like."""
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; a run's directory is wanted, as runs/NAME")
    place = directory / "model" if (directory / "model").is_dir() else directory
    config = read_config(place)
    if config.get("task") is None:
        raise UserError(f"{directory}: a body without a head; train one first: python train.py --model {directory} --train FILE")
    if "batch_size" not in (config.get("settings") or {}):
        raise UserError(f"{place / 'config.json'}: settings do not say how the run read its data")
    return place


def assemble(checkpoint: Checkpoint, device: str | None) -> FineTuned:
    """The model of a run that has been read. What it shares with its base stays shared, also on another device."""
    device = choose_device(device)

    def placed(t: Tensor) -> Tensor:
        order = torch.channels_last if t.ndim == 4 else torch.preserve_format
        return t.to(device, torch.float32 if t.is_floating_point() else t.dtype, memory_format=order)

    tensors = {name: placed(t) for name, t in checkpoint.tensors.items()}
    moved = {id(t): tensors[name] for name, t in checkpoint.tensors.items()}
    origin = checkpoint.origin  # goes on holding the same tensors; what the run has replaced stays where it was
    origin = origin and replace(origin, tensors={name: moved.get(id(t), t) for name, t in origin.tensors.items()})
    named = dict(checkpoint.task)
    task = look_up(TASKS, named.pop("name"), "task")(**named)
    model = task.model(replace(checkpoint, tensors=tensors).tuned_body(copy=False))
    model.head.load_state_dict({name: tensor.float() for name, tensor in checkpoint.head.items()})
    model = model.to(device, memory_format=torch.channels_last).eval()
    precision = around(getattr(torch, checkpoint.settings.get("precision", "float32")))
    frozen = checkpoint.settings.get("frozen", 0)
    trunk = Trunk(model.body, frozen, precision) if frozen else None
    return FineTuned(model, task, replace(checkpoint, tensors={}, head={}, grafts={}, origin=origin), precision, trunk)


def combined(runs: list[tuple[FineTuned, float]]) -> FineTuned:
    """The weighted sum of runs of lora over one base as one run of lora: factors side by side, the weights in B."""
    first = runs[0][0]
    for run, _ in runs:
        if names_of(run.checkpoint.method) != "lora":
            raise UserError(f"combine: only LoRAs can be added up, and here is a run of {run.checkpoint.method}")
        if run.checkpoint.origin is None:
            raise UserError("combine: a run holds a whole model and not a delta, so there is no base to share")
        for what in ("labels", "pool"):
            one, other = first.checkpoint.task[what], run.checkpoint.task[what]
            if one != other:
                raise UserError(f"combine: the {what} of the runs differ, {str(one)[:80]} and {str(other)[:80]}")
        for what in ("pairs", "max_length", "precision"):
            one, other = first.settings.get(what), run.settings.get(what)
            if one != other:
                raise UserError(f"combine: the runs were trained with different settings, {what} {one} and {other}")
    found = [wrappers(run.model.body) for run, _ in runs]
    ranks = [len(next(iter(loras.values())).A) for loras in found]
    sites = list(dict.fromkeys(site for loras in found for site in loras))
    grafts = {}
    for site in sites:
        A, B = [], []
        like = next(loras[site] for loras in found if site in loras)
        for loras, (_, weight), r in zip(found, runs, ranks, strict=True):
            one = loras.get(site)
            A.append(like.A.new_zeros(r, *like.A.shape[1:]) if one is None else one.A)
            B.append(like.B.new_zeros(len(like.B), r, *like.B.shape[2:]) if one is None else one.B * (one.scale * weight))
        grafts |= {f"{site}.A": torch.cat(A).detach(), f"{site}.B": torch.cat(B, 1).detach()}
    heads = [{name: tensor * weight for name, tensor in run.model.head.state_dict().items()} for run, weight in runs]
    checkpoint = replace(
        first.checkpoint,
        tensors=first.checkpoint.origin.tensors,
        method=f"lora:rank={sum(ranks)},alpha={sum(ranks)},sites={'|'.join(map(re.escape, sites))}",
        grafts=grafts,
        head={name: sum(head[name] for head in heads) for name in heads[0]},
        settings=first.settings | {"frozen": min(run.settings.get("frozen", 0) for run, _ in runs)},
    )
    return assemble(checkpoint, str(next(first.model.parameters()).device))


def choose_device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name}: not to be had here ({str(error).splitlines()[0][:150]})") from None
    return device


def logits_of(model: nn.Module, data, batch_size: int, precision: AbstractContextManager) -> Tensor:
    """The logits of every row in the order of the rows, (N, C), on the CPU. The model is left in evaluation mode."""
    device = next(model.parameters()).device
    model.eval()
    order, logits = by_length(data.lengths, batch_size), None
    with torch.inference_mode(), closing(data.batches(order, device)) as stream:
        for rows, batch in zip(order, stream, strict=True):
            with precision:
                output = model(batch).cpu()
            output = output.float() if output.dtype.itemsize < 4 else output
            logits = output.new_empty(len(data), *output.shape[1:]) if logits is None else logits
            logits[rows] = output
    return logits


@dataclass
class Scores:
    metrics: dict[str, float]  # loss and the task's
    logits: Tensor  # (N, C)
    seconds: float


def score(model: nn.Module, task, data, batch_size: int, precision: AbstractContextManager) -> Scores:
    """Mean loss and metrics over all rows at once, never averaged over batches. data must have labels."""
    start = time.perf_counter()
    logits = logits_of(model, data, batch_size, precision)
    labels = torch.from_numpy(data.labels)
    total, count = task.loss(logits, labels)
    return Scores({"loss": total.item() / count} | task.metrics(logits, data.labels), logits, time.perf_counter() - start)
