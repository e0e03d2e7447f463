"""A trained model in use: load it from a run, label texts or images with it, score it."""

import difflib
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minift.adapting import names_of
from minift.bar import each
from minift.cache import FrozenStages, OnTheFly
from minift.cli import script
from minift.cli import spelled as command_of
from minift.data.batching import Data
from minift.data.examples import Examples
from minift.data.layout import Layout
from minift.errors import UserError
from minift.fields import read_fields
from minift.methods.surgery import wrappers
from minift.optim.precision import by_name
from minift.options import Options, check, options_of
from minift.pretrained import Checkpoint, read, read_config, read_description, recover
from minift.tasks.task import Model, task_from
from minift.training import Scores, evaluate, outputs_by_row


@dataclass(repr=False)
class FineTuned:
    """A trained model with all that it takes to use it."""

    model: nn.Module
    task: object
    checkpoint: Checkpoint  # without its tensors
    precision: AbstractContextManager  # as `optim.precision.autocast` makes it
    frozen: FrozenStages | None  # the stages that were frozen in training, run as they were then
    attached: dict[str | None, "FineTuned"] = field(default_factory=dict)  # other runs over the same base; None: the one loaded

    def __repr__(self) -> str:
        """One line: what it does, with which model."""
        labels = f", {len(self.labels)} labels" if self.labels else ""
        weights = sum(p.numel() for p in self.model.parameters())
        device = next(self.model.parameters()).device
        method = f", {names_of(self.checkpoint.method)}" if self.checkpoint.method else ""
        body = f"{self.checkpoint.architecture}{method}, {weights:,} parameters"
        return f"<minift run of {self.checkpoint.task['name']}: {body}{labels}, {device}>"

    @property
    def labels(self) -> list[str] | None:
        """The names of the classes or tags, in the order of their ids; None for a task that has none."""
        return getattr(self.task, "labels", None)

    def attach(self, directory: str | Path, name: str) -> None:
        """Read another run's delta over the base that is in memory already. `use` then switches to it. name: one not in use.

        Raises UserError where either run holds a whole model, or the other belongs to another base.
        """
        self.check_name("attach", name)
        theirs = read_description(place_of(directory))
        for is_delta, run in ((self.checkpoint.delta, "the run that was loaded"), (theirs.get("delta"), directory)):
            if not is_delta:
                raise UserError(f"attach: {run} holds a whole model and not a delta, so there is no base to share")
        if theirs["base"] != self.checkpoint.base:
            names = f"{theirs['base_name']} ({theirs['base'][:12]}...), not to {self.checkpoint.base_name}"
            raise UserError(f"attach: {directory} belongs to {names} ({self.checkpoint.base[:12]}...)")
        tokenizers = {self.checkpoint.base_tokenizer, theirs.get("base_tokenizer")} - {None}  # older runs do not know theirs
        if len(tokenizers) > 1:
            raise UserError(f"attach: {directory} was trained with another tokenizer over the same weights")
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
        self.precision, self.frozen = one.precision, one.frozen

    def combine(self, weights: dict[str | None, float], name: str = "combined") -> None:
        """Attach the weighted sum of LoRAs as `name`: W + sum_i w_i s_i B_i A_i, and of heads sum_i w_i H_i.

        It is itself a LoRA, whose rank is the sum of theirs. The runs must have the same labels.
        """
        self.attached.setdefault(None, replace(self))
        self.check_name("combine", name)
        if not all(isinstance(weight, int | float) and math.isfinite(weight) for weight in weights.values()):
            raise UserError(f"combine: {weights} has a weight that is no finite number")
        if not weights or (absent := [one for one in weights if one not in self.attached]):
            raise UserError(f"combine: {f'no run is attached as {absent[0]!r}' if weights else 'expected a weight for each run'}")
        self.attached[name] = combined([(self.attached[one], weight) for one, weight in weights.items()])

    def check_name(self, caller: str, name: str) -> None:
        if not isinstance(name, str) or not name or name in self.attached:
            raise UserError(f"{caller}: {name!r} is {'taken' if name in self.attached else 'no name'}; give another one with name=")

    @property
    def settings(self) -> dict:
        """How the run read and batched its data."""
        return self.checkpoint.settings

    @property
    def layout(self) -> Layout:
        """How the run read its files."""
        return self.task.LAYOUT(**self.settings["layout"])

    def prepare(self, examples: Examples, workers: int = 0) -> Data:
        """Rows for the model, through the frozen stages as in training. workers: processes that read images."""
        data = self.task.prepare(examples, self.checkpoint, workers=workers)
        return data if self.frozen is None else OnTheFly(data, self.frozen)

    def score(self, examples: Examples, workers: int = 0) -> tuple[Scores, dict]:
        """(scores of labelled rows, figures of the data)"""
        data = self.prepare(examples, workers)
        return evaluate(self.model, self.task, data, self.settings["batch_size"], self.precision), data.describe()

    def predict(self, inputs: Iterable, pairs: Iterable | None = None) -> list[dict]:
        """One object for each text or image file, in order: of classification label, score (its probability), probabilities.

        inputs: any iterable. pairs: the second texts, for a run that was trained on pairs.
        """
        if isinstance(inputs, str | bytes | Path):
            raise UserError("predict: expected a list of texts or files, as predict(['one text', 'another'])")
        inputs = list(inputs)
        if pairs is not None:
            pairs = list(pairs)
            if len(pairs) != len(inputs):
                raise UserError(f"predict: {len(inputs)} texts and {len(pairs)} second texts")
            inputs = list(zip(inputs, pairs, strict=True))
        if not inputs:
            return []
        rows = self.task.read(inputs, self.layout, labelled=False)
        return list(each(self.predict_rows(rows), "predict", len(rows)))

    def predict_rows(self, examples: Examples, workers: int = 0, batch_size: int | None = None) -> Iterator[dict]:
        """The predictions in the order of the rows, as they come."""
        size = self.settings["batch_size"] if batch_size is None else batch_size
        return predictions(self.model, self.task, self.prepare(examples, workers), size, self.precision)


def predictions(model: nn.Module, task, data: Data, batch_size: int, precision: AbstractContextManager) -> Iterator[dict]:
    """What the task makes of every row, in order."""
    return task.predict(outputs_by_row(model, data, batch_size, precision), data)


def load(directory: str | Path, device: str | None = None) -> FineTuned:
    """A finished run, ready to predict. device: as torch names it; None: CUDA where there is one, else the CPU."""
    return assemble(read(place_of(directory)), device)


def finetune(**flags) -> FineTuned:
    """Train as train.py does; the trained model, as `load` reads it from the directory of the run. Prints what train.py prints.

    flags: those of train.py, with their values: finetune(train="reviews.csv", method="lora:rank=4", lr=1e-3, quiet=True).
    Raises UserError for a mistake in them; `seeds`, `plan` and several values of a flag belong to the command line.
    Proved by tests/test_finetuned.py: the weights are those of train.py.
    """
    from minift.runs import directory_of

    options = options_of(flags.get("task", Options.task))
    known = [f.name for f in fields(options)]
    if strange := [name for name in flags if name not in known]:
        near = " or ".join(difflib.get_close_matches(strange[0], known, 3))
        raise UserError(f"finetune: {strange[0]}: no such flag of train.py" + (f"; did you mean {near}?" if near else ""))
    given = {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}
    given = read_fields(options, given, "finetune")
    if given.plan or given.seeds > 1 or given.method == "help":
        raise UserError("finetune: it trains one model; --plan, --seeds and --method help are for the command line")
    check(given)
    given = replace(given, out=str(directory_of(given)))
    script("train").run_once(given)
    return load(given.out, given.device)


def place_of(directory: str | Path) -> Path:
    """The model/ of a run, or a directory with the same content."""
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; expected a run's directory, as runs/NAME")
    recover(directory / "model")
    place = directory / "model" if (directory / "model").is_dir() else directory
    if several := sorted(str(run.parent) for run in directory.glob("*/model") if place == directory):
        shown = ", ".join(several[:10]) + (", ..." if several[10:] else "")
        raise UserError(f"{directory} holds several runs; give one of them: {shown}")
    config = read_config(place)
    if config.get("task") is None:
        raise UserError(
            f"{directory}: a body without a head; train one first: {command_of('train')} --model {directory} --train FILE"
        )
    if read_description(place).get("settings") is None:
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
    task = task_from(checkpoint.task)
    with torch.random.fork_rng(devices=[]):  # new weights are drawn before those of the run take their place
        body = replace(checkpoint, tensors=tensors).tuned_body(copy=False)
        model = Model(body, task.head(body))
    model.head.load_state_dict({name: tensor.float() for name, tensor in checkpoint.head.items()})
    model = model.to(device, torch.float32, memory_format=torch.channels_last).eval()  # whatever the caller's default dtype is
    precision = by_name(checkpoint.settings["precision"], model)
    frozen = checkpoint.settings["frozen"]
    stages = FrozenStages(model.body, frozen, precision) if frozen else None
    return FineTuned(model, task, replace(checkpoint, tensors={}, head={}, grafts={}, origin=origin), precision, stages)


def combined(runs: list[tuple[FineTuned, float]]) -> FineTuned:
    """The weighted sum of runs of lora over one base as one run of lora: factors side by side, the weights in B."""
    first = runs[0][0]
    for run, _ in runs:
        if names_of(run.checkpoint.method) != "lora":
            raise UserError(f"combine: only LoRAs can be added up, and here is a run of {run.checkpoint.method}")
        if run.checkpoint.origin is None:
            raise UserError("combine: a run holds a whole model and not a delta, so there is no base to share")
        ours, theirs = (one.checkpoint.task | {"precision": one.settings["precision"]} for one in (first, run))
        for what in dict.fromkeys([*ours, *theirs]):
            one, other = ours.get(what), theirs.get(what)
            if one != other:
                raise UserError(f"combine: the runs differ, {what} {str(one)[:80]} and {str(other)[:80]}")
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
        settings=first.settings | {"frozen": min(run.settings["frozen"] for run, _ in runs)},
    )
    return assemble(checkpoint, str(next(first.model.parameters()).device))


def choose_device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        assert torch.ones(2, device=device).sum().item() == 2  # meta holds no numbers
    except Exception as error:  # each of torch's backends raises what it likes
        why = str(error).splitlines()[:1] or ["it does not compute"]
        raise UserError(f"--device {name}: not available here ({why[0][:150]})") from None
    return device
