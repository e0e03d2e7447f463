"""The training loop that every task shares: step, fit, evaluate.

The gradient of a step is that of sum(losses) / sum(counts) over its `accumulate` batches taken as one. What is random in the data
is a function of (seed, epoch, unit), what is random in the model (dropout) of (seed, step, batch of the step): the state of a run
holds no random state. Proved by tests/reference/test_trajectory.py, tests/test_accumulate.py and tests/contract/test_tasks.py.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from tqdm import tqdm

from minift.data.batching import Batch, Data, by_length, in_windows
from minift.errors import Diverged, UserError
from minift.optim.groups import clip_gradients, switch
from minift.optim.optimizer import Optimizer
from minift.optim.precision import LossScaler

LOOK = 10  # steps from one look at the losses to the next: a look makes a GPU wait


@dataclass
class Progress:
    """Where a run stands."""

    epoch: int = 0  # finished ones
    step: int = 0  # steps taken, skipped ones too
    skipped: int = 0  # steps without an update
    best: tuple[float, float] | None = None  # of the epoch that is kept: the monitored metric, higher is better, and minus the loss
    best_epoch: int = 0
    best_step: int = 0
    seconds_training: float = 0.0
    seconds_evaluating: float = 0.0


@dataclass
class Training:
    """All that trains, as minift/setup.py puts it together."""

    model: nn.Module  # has body and head; called with a batch it gives (state, outputs)
    task: object
    optimizer: Optimizer  # of the groups that train
    schedule: Callable[[int], float]  # step -> factor on the learning rates
    precision: AbstractContextManager  # entered around every forward
    unfreezing: Callable[[list[str], int, int], list[str]] | None = None  # (stages, step, epoch) -> those that train; None: all
    penalties: tuple["Penalty", ...] = ()


class Penalty:
    """What is added to the loss of a step. A subclass defines one of the two."""

    def term(self, model: nn.Module) -> Tensor | float:
        """A scalar, added once a step, however many batches the step has."""
        return 0.0

    def units(self, state: tuple, outputs, batch: Batch, progress: Progress) -> Tensor | None:
        """(B) a number for each unit; their mean over all units of the step is added."""
        return None


class Log:
    """Losses of steps, left on the device until `look` fetches them together."""

    def __init__(self, run, epoch: int):
        self.run, self.epoch = run, epoch
        self.pending, self.looked = [], time.perf_counter()
        self.total, self.count = 0.0, 0.0  # of the epoch so far: sum of losses, and what they count

    def add(self, step: int, taken: "Step", lr: float, units: int) -> None:
        self.pending.append((step, taken, lr, units))

    def look(self) -> dict[str, float]:
        """Write what has come since the last look; the figures of the last step. Raises Diverged for a loss that is not finite."""
        figures = torch.stack([torch.stack([t.loss, t.norm.to(t.loss)]) for _, t, _, _ in self.pending]).tolist()
        now = time.perf_counter()
        speed = sum(units for *_, units in self.pending) / (now - self.looked)
        events, diverged = [], None
        for (loss, norm), (step, taken, lr, _) in zip(figures, self.pending, strict=True):
            common = {"epoch": self.epoch, "split": "train", "examples_per_second": speed}
            events.append({"step": step, "loss": loss, "lr": lr, **common})
            if taken.updated:
                self.total, self.count = self.total + loss * taken.count, self.count + taken.count
                if diverged is None and not (math.isfinite(loss) and math.isfinite(norm)):
                    diverged = f"the loss is {loss} and the norm of its gradient {norm} at step {step}"
        self.run.log(events)
        if diverged:
            raise Diverged(f"{diverged}: training has diverged; try a lower --lr")
        self.pending, self.looked = [], now
        return events[-1]


@dataclass
class Step:
    """What one step has done."""

    loss: Tensor  # a scalar on the device
    norm: Tensor  # of all gradients, likewise
    count: float  # what the loss is a mean over
    updated: bool  # False where nothing counts, and where gradients overflow in float16


def step(training: Training, batches: list[Batch], factor: float, options, scaler: LossScaler | None, progress: Progress) -> Step:
    """One update from the gradient of sum(losses) / sum(counts) over all the batches, plus that of the penalties.

    factor: the schedule's. options: seed, clip. Nothing is updated where nothing counts, and where gradients in float16 are not
    finite.
    """
    optimizer = training.optimizer
    parameters = [p for group in optimizer.groups for p in group.parameters]
    count, units = sum(batch.counts.sum().item() for batch in batches), sum(len(batch.rows) for batch in batches)
    loss = torch.zeros((), device=parameters[0].device)
    if not count:
        return Step(loss, loss, count, updated=False)
    for number, batch in enumerate(batches):
        seed_dropout(options.seed, progress.step, number)
        with training.precision:
            state, outputs = training.model(batch)
            part = training.task.loss(outputs, batch).sum() / count
            for penalty in training.penalties:
                by_unit = penalty.units(state, outputs, batch, progress)
                part = part if by_unit is None else part + by_unit.sum() / units
                part = part + penalty.term(training.model) if number == 0 else part
        (part if scaler is None else scaler.scale(part)).backward()
        loss = loss + part.detach()
    updated = scaler is None or scaler.unscale(parameters)
    norm = clip_gradients(parameters, options.clip)
    if updated:
        optimizer.step(factor, norm.isfinite())
    if scaler is not None:
        scaler.update(updated)
    optimizer.zero_grad()
    return Step(loss, norm, count, updated)


def seed_dropout(*key: int) -> None:
    """Torch's default generators, from which dropout draws, as a function of the key."""
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))


def fit(training: Training, train: Data, valid: Data | None, run, options, progress: Progress) -> None:
    """Train, score after every epoch, keep the best: what lies in the run's model/ at the end is the epoch that `monitor` chose.

    valid: None keeps the last epoch. run: takes events and weights. options: epochs, batch_size, accumulate, clip, seed, monitor,
    patience. progress: where to go on. A tie in the monitored metric goes to the lower loss, then to the earlier epoch.
    """
    model, task, optimizer = training.model, training.task, training.optimizer
    device = next(model.parameters()).device
    scaler = LossScaler() if training.precision.dtype == torch.float16 else None
    stages = list(dict.fromkeys(group.stage for group in optimizer.groups))
    if options.epochs == 0:
        run.save(model, task)
    for epoch in range(progress.epoch, options.epochs):
        start = time.perf_counter()
        model.train()
        order, log = train.order(options.batch_size, options.seed, epoch), Log(run, epoch + 1)
        steps, skipped = math.ceil(len(order) / options.accumulate), progress.skipped
        bar = tqdm(total=sum(map(len, order)), desc=f"epoch {epoch + 1}/{options.epochs}", unit="row", leave=False, disable=None)
        # closed here, where Ctrl-C is heard: left to the garbage collector, an end of worker processes would swallow it
        with bar, closing(train.batches(order, device, epoch)) as stream:
            for number in range(1, steps + 1):
                if training.unfreezing and switch(model, optimizer.groups, training.unfreezing(stages, progress.step, epoch)):
                    on = dict.fromkeys(group.stage for group in optimizer.groups if group.parameters[0].requires_grad)
                    tqdm.write(f"step {progress.step + 1}: {', '.join(on)} train{'s' * (len(on) == 1)}")
                batches = list(islice(stream, options.accumulate))
                factor = training.schedule(progress.step - progress.skipped)
                taken = step(training, batches, factor, options, scaler, progress)
                progress.step += 1
                progress.skipped += not taken.updated
                units = sum(len(batch.rows) for batch in batches)
                log.add(progress.step, taken, factor * optimizer.groups[-1].lr, units)
                bar.update(units)
                if number % LOOK == 0 or number == steps:
                    last = log.look()
                    bar.set_postfix(loss=f"{last['loss']:.3f}", lr=f"{last['lr']:.1e}")
        progress.epoch = epoch + 1
        seconds = time.perf_counter() - start
        progress.seconds_training += seconds
        mean = log.total / log.count if log.count else math.nan
        line = f"epoch {epoch + 1}/{options.epochs}  {len(train) / seconds:,.0f} rows/s  train loss {mean:.4f}"
        if skipped := progress.skipped - skipped:
            line += f"  {skipped} steps skipped: {'gradients beyond float16' if scaler else 'nothing in them counts'}"
        better = valid is None
        if valid is not None:
            scores = evaluate(model, task, valid, options.batch_size, training.precision)
            progress.seconds_evaluating += scores.seconds
            run.log([{"step": progress.step, "epoch": epoch + 1, "split": "valid", **scores.metrics}])
            line += "  valid " + "  ".join(f"{name} {figure(value)}" for name, value in scores.metrics.items())
            rank = rank_of(scores.metrics, options.monitor, task)
            better = progress.best is None or rank > progress.best
            progress.best = rank if better else progress.best
        if better:
            run.save(model, task)
            progress.best_epoch, progress.best_step = progress.epoch, progress.step
            line += "  kept"
        print(line, flush=True)
        if options.patience is not None and progress.epoch - progress.best_epoch >= options.patience:
            print(f"stopped: no better {options.monitor} for {options.patience} epochs")
            break
    if options.epochs and progress.skipped == progress.step:
        raise UserError(f"no step has updated a parameter{': try --precision bfloat16' if scaler else ''}")


def figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def rank_of(metrics: dict[str, float | None], monitor: str, task) -> tuple[float, float]:
    """What orders epochs, higher is better: the monitored metric, then the loss. An undefined metric comes last.

    Raises Diverged where the loss is not finite: such a model is never the best.
    """
    loss, value = metrics["loss"], metrics[monitor]
    if not math.isfinite(loss):
        raise Diverged(f"the validation loss is {loss}: training has diverged; try a lower --lr")
    if value is None:
        return -math.inf, -loss
    return value if task.METRICS.get(monitor) else -value, -loss


# ---- evaluation ----


@dataclass
class Scores:
    """The figures of a split."""

    metrics: dict[str, float | None]  # loss and the task's
    losses: np.ndarray  # (rows) the mean loss of each row; 0 where nothing in it counts
    meter: object
    seconds: float


def outputs_of(model: nn.Module, data: Data, order: list[np.ndarray], precision: AbstractContextManager) -> Iterator[tuple]:
    """(units, outputs, batch) for every array of units in `order`. The model is left in evaluation mode."""
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode(), closing(data.batches(order, device)) as stream:
        for units, batch in zip(order, stream, strict=True):
            with precision:
                _, outputs = model(batch)
            yield units, outputs, batch


def evaluate(model: nn.Module, task, data: Data, batch_size: int, precision: AbstractContextManager) -> Scores:
    """sum(losses) / sum(counts) and the task's metrics over all rows, never averaged over batches. data has targets."""
    start, meter, rows = time.perf_counter(), task.meter(data), data.rows
    losses, counts = np.zeros(rows[-1] + 1), np.zeros(rows[-1] + 1)
    for _, outputs, batch in outputs_of(model, data, by_length(data.lengths, batch_size), precision):
        with torch.inference_mode(), precision:
            loss = task.loss(outputs, batch)
        np.add.at(losses, batch.rows, loss.double().cpu().numpy())
        np.add.at(counts, batch.rows, batch.counts.numpy())
        meter.add(tree_map(on_cpu, outputs), replace(batch, inputs=(), state=None, targets=tree_map(on_cpu, batch.targets)))
    mean = losses.sum() / counts.sum() if counts.any() else math.nan
    seconds = time.perf_counter() - start
    return Scores({"loss": float(mean)} | meter.metrics(), losses / np.maximum(counts, 1e-12), meter, seconds)


def outputs_by_row(model: nn.Module, data: Data, batch_size: int, precision: AbstractContextManager) -> Iterator[tuple[int, list]]:
    """For every row, in order: its number and the outputs of its units, on the CPU. Holds a window of rows, never all."""
    for order in in_windows(data, batch_size):
        by_unit = {}
        for units, outputs, _ in outputs_of(model, data, order, precision):
            outputs = tree_map(on_cpu, outputs)
            for i, unit in enumerate(units):
                by_unit[unit] = tree_map(lambda x, i=i: x[i], outputs)
        by_row = {}
        for unit in sorted(by_unit):
            by_row.setdefault(int(data.rows[unit]), []).append(by_unit[unit])
        yield from by_row.items()


def on_cpu(x):
    """A tensor on the CPU, float32 where it was narrower; anything else as it is."""
    if not isinstance(x, Tensor):
        return x
    return x.float().cpu() if x.is_floating_point() and x.dtype.itemsize < 4 else x.cpu()
