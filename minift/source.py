"""What a run starts from, as a source: the task and the head that its --model has, and how much of that task is forgotten.

A source is a finished run (`--model runs/trec`), or a converted checkpoint that has its pretrained head for masked words. Its head
never trains here, so that one and the same head measures before and after: only the body below it changes (of a head for masked
words the table of words too, as that is the body's). `--source-data FILE` measures:

    figures   of the source's task on the rows of FILE, through the source's head: with the pretrained body, with the trained one
    weights   of each stage |theta - theta_0| / |theta_0| over all its weights, where a method can be merged after merging
    CKA       of each stage, between the two bodies' outputs X and Y behind it, one row for each unit, their means taken off
              (linear CKA, Kornblith et al. 2019, arXiv:1905.00414, section 3):

                  |Y^T X|^2 / (|X^T X| |Y^T Y|),    1 where the outputs differ by a rotation and a factor alone

Axes: N units, B of a batch, D features. Proved by tests/test_forgetting.py.
"""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from minift.bar import each
from minift.cli import spelled as command_of
from minift.data.batching import Data, by_length
from minift.distributed import rank, wait
from minift.errors import UserError, say
from minift.methods.surgery import merge, mergeable, plain, plain_name, unmerge
from minift.models.bert import mean_of_tokens
from minift.optim.precision import autocast
from minift.penalties.ewc import fisher
from minift.pretrained import check_shapes, read_tensors, whole_file, write_tensors
from minift.tables import counted, table
from minift.tasks.task import Model, Task, task_from
from minift.training import evaluate

UNITS = 1000  # of the source's data, at most, between whose outputs CKA is computed
WORDS = "masked-lm"
FISHER = "fisher.safetensors"  # in the directory of a run


@dataclass
class Source:
    """The pretrained body, and the head that came with it; both are frozen and in evaluation mode."""

    body: nn.Module  # plain
    task: Task | None = None  # None: the model came without a head
    head: nn.Module | None = None
    rows: Callable[[str], Data] | None = None  # path -> the rows of the source's task
    data: Data | None = None  # of --source-data

    @property
    def model(self) -> Model:
        return Model(self.body, self.head)

    def on(self, body: nn.Module) -> Model:
        """The head on another body, which shares its modules; where the head reads what another pooler makes, with the source's."""
        if self.pools_otherwise(body):
            body = copy.copy(body)
            body._modules = dict(body._modules)
            body.pooler = self.body.pooler
        return Model(body, self.head)

    def pools_otherwise(self, body: nn.Module) -> bool:
        """Whether `body` does not pool as the head needs it."""
        return self.body.pooler is not None and type(plain(body.pooler)) is not type(self.body.pooler)

    def read(self, state: tuple, body: nn.Module) -> tuple:
        """The state that `body` has left, as the head reads it."""
        return self.body.pooler(state) if self.pools_otherwise(body) else state

    def features(self, state: tuple) -> Tensor:
        """(B, D) what the head reads of a unit; of a head that reads every token the mean over them."""
        return mean_over_places(state) if self.body.pooler is None else state.pooled

    def measure(self, body: nn.Module, precision: AbstractContextManager, batch_size: int) -> dict:
        """{"before": figures, "after": figures, "stages": {stage: {"weights": ..., "cka": ...}}}; body: as it has been trained."""
        models = {"before": self.model, "after": self.on(body)}
        contexts = {"before": autocast(precision.dtype, models["before"]), "after": precision}
        scores = {when: evaluate(model, self.task, self.data, batch_size, contexts[when]).metrics for when, model in models.items()}
        outputs = [outputs_by_stage(models[when].body, self.data, batch_size, contexts[when]) for when in models]
        changes = weights_changed(self.body, body)
        stages = {stage: {"weights": changes[stage], "cka": cka(X, outputs[1][stage])} for stage, X in outputs[0].items()}
        return scores | {"stages": stages}

    def fisher(self, names: list[str], rows: int, labels: str, path: str, directory: Path | None) -> list[Tensor]:
        """The Fisher information of the parameters with these names, as minift/penalties/ewc.py has it; 0 of those that the source
        does not have. directory: of the run, in which it is kept; None: nowhere."""
        own = dict(self.body.named_parameters()) | {f"head.{name}": p for name, p in self.head.named_parameters()}
        known, file = {name: own[name] for name in names if name in own}, directory and directory / FISHER
        if file is None:
            kept = self.new_fisher(known, rows, labels, path)
        else:
            if rank() == 0 and not file.is_file():
                with whole_file(file) as fresh:
                    write_tensors(fresh, self.new_fisher(known, rows, labels, path))
            else:
                say(f"fisher  as {file} has it")
            wait()
            try:
                kept = read_tensors(file)
            except UserError as error:  # its advice is for weights that were fetched
                raise UserError(f"{str(error).rpartition('; ')[0]}; delete it, and it is computed again") from None
            check_shapes(file, kept, known, "the weights that train")
        device = next(self.body.parameters()).device
        return [kept[name].to(device) if name in kept else torch.zeros((), device=device) for name in names]

    def new_fisher(self, parameters: dict[str, Tensor], rows: int, labels: str, path: str) -> dict[str, Tensor]:
        start, data = time.perf_counter(), self.rows(path) if path else self.data
        units = np.random.default_rng(0).permutation(len(data))[:rows]
        batches = data.batches([*units[:, None]], next(self.body.parameters()).device)
        for theta in parameters.values():
            theta.requires_grad_(True)
        F = fisher(self.model, self.task, each(batches, "fisher", len(units), "unit"), [*parameters.values()], labels)
        for theta in parameters.values():
            theta.requires_grad_(False)
        say(f"fisher  of {counted(len(units), 'unit')} of the source, labels={labels}, {time.perf_counter() - start:.0f} s")
        return {name: one.cpu() for name, one in zip(parameters, F, strict=True)}


def read_source(options, start, penalties: list[partial]) -> Source | None:
    """What --source-data, --rehearse and the penalties ask of the model that a run starts from; None: nothing. start: from
    minift/setup.py. penalties: those of --penalty, options bound.

    Raises UserError for --source-data where the model has no head, or the file is none of its task.
    """
    checkpoint, path = start.checkpoint, options.source_data
    flag = f"--source-data {path}" if path else options.rehearse and f"--rehearse {options.rehearse}"
    if start.random and flag:
        raise UserError(f"{flag} with --init random: nothing was known before, so nothing can be forgotten")
    if start.random or not (flag or any(penalty.func.ASKS_SOURCE for penalty in penalties)):
        return None
    stored, settings, head = checkpoint.task, checkpoint.settings or {}, checkpoint.head
    if stored is None and WORDS in checkpoint.heads:
        length = min(128, checkpoint.max_length)
        stored = {"name": WORDS, "pool": None, "max_length": length, "blocks": "within", "masking": "exact", "mask_share": 0.15}
        head = checkpoint.heads[WORDS]
    if stored is None and flag:
        train, model = command_of("train"), options.model
        fit = "masked-lm --method probe --train TEXTS"
        if checkpoint.tokenizer is None:
            fit = "image-classification --method probe --train DIRECTORY"
        elif checkpoint.causal:
            fit = "causal-lm --epochs 0 --train TEXTS"  # its head is its word vectors, and needs no training
        raise UserError(
            f"{flag}: {model} has no head, so its figures cannot be told; fit one on the frozen body first: {train} "
            f"--task {fit} --model {model} --out runs/source, then --model runs/source"
        )
    task = stored and task_from(stored)
    with torch.random.fork_rng(devices=[]):  # new weights are drawn before those of the source take their place
        body = placed(checkpoint.body(task.pool if task else checkpoint.own_pool or "mean", copy=False), start.device)
        own = task and placed(task.head(body), start.device)
    if task is None:
        return Source(body)
    own.load_state_dict({name: tensor.float() for name, tensor in head.items()})

    @cache
    def rows(path: str) -> Data:
        examples = task.read(path, task.LAYOUT(**settings.get("layout", {})))
        return task.prepare(examples, checkpoint, workers=getattr(options, "workers", None) or 0)

    if not (Path(options.out) / FISHER).is_file():
        for file in filter(None, (penalty.keywords.get("data") for penalty in penalties)):
            rows(file)  # a mistake in the file of ewc:data=FILE is reported before the run's directory is made
    return Source(body, task, own, rows, rows(path) if path else None)


def placed(module: nn.Module, device: torch.device) -> nn.Module:
    return module.to(device, memory_format=torch.channels_last).requires_grad_(False).eval()


# ---- drift ----


def weights_changed(before: nn.Module, after: nn.Module) -> dict[str, float]:
    """Of each stage |theta - theta_0| / |theta_0|, over the weights that both bodies have."""
    wrapped = merge(after) if mergeable(after) else None
    now = {plain_name(name): p for name, p in after.named_parameters()}
    if wrapped is not None:
        unmerge(after, wrapped)
    then = dict(before.named_parameters())
    return {stage: change or 0.0 for stage, change in changed_by_stage(before.stages, now, then).items()}


def changed_by_stage(
    stages: dict[str, tuple[str, ...]], now: dict[str, Tensor], then: dict[str, Tensor]
) -> dict[str, float | None]:
    """Of each stage `relative_change` of the weights that both have, by their plain names."""
    both = [name for name in then if name in now]
    inside = {stage: tuple(f"{module}." for module in modules) for stage, modules in stages.items()}
    return {stage: relative_change((now[n], then[n]) for n in both if n.startswith(of)) for stage, of in inside.items()}


def relative_change(pairs: Iterable[tuple[Tensor, Tensor]]) -> float | None:
    """|theta - theta_0| / |theta_0| over all pairs (theta, theta_0) together, in float64; None where every theta_0 is 0."""
    moved = size = 0.0
    for theta, theta_0 in pairs:
        theta_0 = theta_0.detach().double()
        moved += (theta.detach().double() - theta_0).square().sum().item()
        size += theta_0.square().sum().item()
    return math.sqrt(moved / size) if size else None


def outputs_by_stage(body: nn.Module, data: Data, batch_size: int, precision: AbstractContextManager) -> dict[str, Tensor]:
    """stage -> (N, D) in float64: what leaves it, the mean over the tokens or over the map of each unit."""
    device, found = next(body.parameters()).device, {stage: [] for stage in body.stages}
    units = np.sort(np.random.default_rng(0).permutation(len(data))[:UNITS])
    order = [units[batch] for batch in by_length(data.lengths[units], batch_size)]
    body.eval()
    with torch.inference_mode():
        for batch in data.batches(order, device):
            with precision:
                for stage, x in walked(body, batch):
                    found[stage].append(x.double().cpu())
    return {stage: torch.cat(parts) for stage, parts in found.items()}


def walked(body: nn.Module, batch) -> Iterator[tuple[str, Tensor]]:
    """(stage, (B, D)), input to output."""
    state = body.begin(*batch.inputs)
    for stage, names in body.stages.items():
        for name in names:
            state = body.get_submodule(name)(state)
            if name not in body.TOP:
                yield stage, mean_over_places(state)


def mean_over_places(state: tuple) -> Tensor:
    """hidden (B, S, D), the mean over the tokens that the mask has, or (B, D, Y, X) -> (B, D)"""
    h = state.hidden.to(torch.promote_types(state.hidden.dtype, torch.float32))
    return h.mean((2, 3)) if h.ndim == 4 else mean_of_tokens(h, state.mask)


def cka(X: Tensor, Y: Tensor) -> float | None:
    """X, Y: (N, D) and (N, D'). None where either is the same for all units."""
    X, Y = X - X.mean(0), Y - Y.mean(0)
    size = (X.T @ X).norm() * (Y.T @ Y).norm()
    return ((Y.T @ X).square().sum() / size).item() if size else None


def table_of(measured: dict) -> str:
    """What `measure` has found, to be printed."""
    figures = [[when, *measured[when].values()] for when in ("before", "after")]
    stages = [[stage, f["weights"], f["cka"]] for stage, f in measured["stages"].items()]
    return f"{table(['source', *measured['before']], figures)}\n\n{table(['stage', 'weights changed', 'CKA'], stages)}"
