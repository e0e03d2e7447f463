"""The training loop that every task shares: step, fit, evaluate.

The gradient of a step is that of sum(losses) / sum(counts) over its `accumulate` batches taken as one, in however many processes
(minift/distributed.py). What is random in the data is a function of (seed, epoch, unit), what is random in the model (dropout) of
(seed, step, batch of the step, process): the state of a run holds no random state, so that a run that is resumed in the middle of
an epoch takes the same steps, bit for bit. Proved by tests/reference/test_trajectory.py, tests/test_accumulate.py,
tests/contract/test_tasks.py and tests/test_resume.py.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from tqdm import tqdm

from minift.bar import bar
from minift.data.batching import Batch, Data, by_length, in_windows
from minift.distributed import (
    buffers_of_first,
    check_same,
    from_first,
    merge,
    my_units,
    rank,
    share,
    sum_gradients,
    summed,
    summed_arrays,
)
from minift.errors import Diverged, UserError
from minift.optim.averaging import Average
from minift.optim.groups import clip_gradients, switch
from minift.optim.optimizer import Optimizer
from minift.optim.precision import LossScaler
from minift.penalties.penalty import Penalty
from minift.tables import counted

LOOK = 10  # steps between two calls of `Log.look`, which makes the GPU finish all its work


@dataclass
class Progress:
    """The position of a run. With the weights and the states of optimizer and loss scaler it is all that `fit` needs to resume."""

    epoch: int = 0  # epochs that are finished and scored
    batches: int = 0  # of the next epoch that have been trained on
    total: float = 0.0  # of that epoch so far: the sum of the losses
    count: float = 0.0  # and the sum of their counts: the mean loss is total / count
    left_out: int = 0  # of that epoch so far: steps without an update
    step: int = 0  # steps taken, with or without an update
    skipped: int = 0  # steps without an update, because nothing in them counts or because gradients overflow in float16
    nonfinite: int = 0  # updates that were left out because the loss or its gradient is infinite or NaN
    changed: bool = False  # whether an update has changed a parameter
    best: tuple[float, float] | None = None  # of the best epoch, as `rank_of` gives it: higher is better
    best_epoch: int = 0
    best_step: int = 0
    seconds_training: float = 0.0
    seconds_evaluating: float = 0.0


@dataclass
class Training:
    """The parts of training, as minift/setup.py builds them."""

    model: nn.Module  # has body and head; called with a batch it gives (state, outputs)
    task: object
    optimizer: Optimizer  # of the groups that train
    schedule: Callable[[int], float]  # step -> factor on the learning rates
    precision: AbstractContextManager  # entered around every forward
    unfreezing: Callable[[list[str], int, int], list[str]] | None = None  # (stages, step, epoch) -> those that train; None: all
    penalties: tuple[Penalty, ...] = ()
    average: Average | None = None  # of the weights; scored and saved in their place


class Saving:
    """What `fit` calls so that a run can be interrupted and resumed. This class saves nothing; its subclass in
    minift/checkpoints.py does.
    """

    def begin(self, training: Training, scaler: LossScaler | None, progress: Progress) -> None:
        """Restore the checkpoint from which the run continues, if there is one."""

    def after_step(self, log: "Log") -> None:
        """Save if a checkpoint is due."""

    def scoring(self) -> AbstractContextManager:
        """The context in which an epoch is scored; it may be interrupted at any point."""
        return nullcontext()

    def after_epoch(self) -> None:
        """Save if that is cheap."""


@dataclass
class Step:
    """The result of one step."""

    loss: Tensor  # a scalar on the device
    norm: Tensor  # of all gradients together, before clipping; a scalar on the device
    count: float  # by which the sum of the losses was divided
    updated: bool  # False where nothing counts, and where gradients overflow in float16


class Log:
    """The losses of steps, which stay on the device until `look` fetches them together.

    skip: whether a step whose loss or gradient is not finite is counted and training goes on; else `look` raises Diverged.
    """

    def __init__(self, run, progress: Progress, skip: bool):
        self.run, self.progress, self.skip = run, progress, skip
        self.pending, self.looked = [], time.perf_counter()

    def add(self, taken: Step, lr: float, rows: np.ndarray) -> None:
        """lr: the learning rate of this update, in the last group. rows: (units) the number of the row of each unit of the step."""
        self.pending.append((self.progress.step, taken, lr, rows))

    def look(self) -> dict[str, float]:
        """Write the steps since the last call to metrics.jsonl. Returns the figures of the last step. Raises Diverged."""
        figures = torch.stack([torch.stack([t.loss, t.norm.to(t.loss)]) for _, t, _, _ in self.pending]).tolist()
        now, progress = time.perf_counter(), self.progress
        speed = sum(len(rows) for *_, rows in self.pending) / (now - self.looked)
        events, diverged = [], None
        for (loss, norm), (step, taken, lr, rows) in zip(figures, self.pending, strict=True):
            common = {"epoch": progress.epoch + 1, "split": "train", "examples_per_second": speed}
            events.append({"step": step, "loss": loss if math.isfinite(loss) else None, "lr": lr, **common})  # JSON has no NaN
            if taken.updated and math.isfinite(loss) and math.isfinite(norm):
                progress.total, progress.count = progress.total + loss * taken.count, progress.count + taken.count
            elif taken.updated:
                progress.nonfinite, progress.left_out = progress.nonfinite + 1, progress.left_out + 1
                what = f"the loss is {loss} and the norm of its gradient {norm} at step {step}, learning rate {lr:.3g}"
                diverged = diverged or Diverged(
                    f"{what}: training has diverged; try a lower --lr, a longer --warmup, --precision float32, or "
                    "--on-nonfinite skip",
                    rows,
                )
        self.run.log(events)
        self.pending, self.looked = [], now
        if diverged and not self.skip:
            raise diverged
        return events[-1]


def step(training: Training, batches: list[Batch], factor: float, options, scaler: LossScaler | None, progress: Progress) -> Step:
    """One update from the gradient of sum(losses) / sum(counts) over all the batches, plus that of the penalties.

    batches: of the step, those of this process; may be empty. factor: the schedule's. options: seed, clip.
    Nothing is updated where nothing counts, and where gradients in float16 are not finite.
    """
    optimizer = training.optimizer
    parameters = [p for group in optimizer.groups for p in group.parameters]
    total, units = summed(sum(batch.counts.sum().item() for batch in batches), sum(len(batch.rows) for batch in batches))
    loss = torch.zeros((), device=parameters[0].device)
    if not total:
        return Step(loss, loss, total, updated=False)
    for number, batch in enumerate(batches):
        seed_dropout(loss.device, options.seed, progress.step, number, rank())
        with training.precision:
            state, outputs = training.model(batch)
            part = training.task.loss(outputs, batch).sum() / total
            for penalty in training.penalties:
                by_unit = penalty.units(state, outputs, batch, progress)
                part = part if by_unit is None else part + by_unit.sum() / units
                part = part + penalty.term(training.model, progress) if number == 0 and rank() == 0 else part
        (part if scaler is None else scaler.scale(part)).backward()
        loss = loss + part.detach()
    loss = sum_gradients(parameters, loss)
    updated = scaler is None or scaler.unscale(parameters)
    norm = clip_gradients(parameters, options.clip)
    finite = norm.isfinite()
    before = digest(parameters) if updated and factor > 0 and not progress.changed else None
    if updated:
        for penalty in training.penalties:
            penalty.pull(optimizer.groups, factor, finite)
        optimizer.step(factor, finite)
    if before is not None and finite:
        if digest(parameters) == before:
            rate = factor * max(group.lr for group in optimizer.groups)
            raise UserError(f"the first update (step {progress.step + 1}, learning rate {rate:.3g}) has changed no parameter; "
                            "try a higher --lr")  # fmt: skip
        progress.changed = True
    if scaler is not None:
        scaler.update(updated)
    optimizer.zero_grad()
    return Step(loss, norm, total, updated)


def digest(parameters: list[Tensor]) -> list[int]:
    """The sum of the bits of every parameter, taken as integers: it shows whether an update has changed anything."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return torch.stack([p.detach().view(integers[p.dtype.itemsize]).sum(dtype=torch.int64) for p in parameters]).tolist()


def seed_dropout(device: torch.device, *key: int) -> None:
    """Seed torch's default generator of the device, from which dropout draws, as a function of the key."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def fit(
    training: Training, train: Data, valid: Data | None, run, options, progress: Progress, saving: Saving | None = None
) -> "Scores | None":
    """Train, score after every epoch and keep the best: at the end the run's model/ holds the epoch with the best `monitor`.

    Returns the scores of that epoch; None without validation rows, or where it was scored before the run was interrupted.
    valid: None keeps the last epoch. run: writes events and weights. options: epochs, batch_size, accumulate, clip, seed, monitor,
    patience, on_nonfinite. progress: where to continue. saving: writes checkpoints; None: no checkpoints.
    A tie in the monitored metric goes to the lower loss, then to the earlier epoch.
    """
    model, task, saving, averaged = training.model, training.task, saving or Saving(), nullcontext
    scaler = LossScaler() if training.precision.dtype == torch.float16 else None
    every, told = max(1, options.epochs // 20), -math.inf  # from 40 epochs on, not all that take less than a second are printed
    saving.begin(training, scaler, progress)
    kept = scores = None
    if options.epochs == 0:
        from_first(lambda: run.save(model, task))
    for epoch in range(progress.epoch, options.epochs):
        if out_of_patience(options, progress):
            print(f"stopped: no better {options.monitor} for {counted(options.patience, 'epoch')}")
            break
        line = train_epoch(training, train, run, options, progress, scaler, saving)
        check_same(lambda: digest([p for group in training.optimizer.groups for p in group.parameters]))
        buffers_of_first(model)
        figures = {name: value for penalty in training.penalties for name, value in penalty.figures().items()}
        if figures:
            run.log([{"step": progress.step, "epoch": epoch + 1, "split": "train", **figures}])
            line += "  " + "  ".join(f"{name} {figure(value)}" for name, value in figures.items())
        if training.average:
            training.average.after_epoch(epoch + 1, options.epochs)
            averaged = training.average.in_place
        better, ranked, why_not = valid is None, None, ""
        if valid is not None:
            with saving.scoring(), averaged():
                scores = evaluate(model, task, valid, options.batch_size, training.precision)
            progress.seconds_evaluating += scores.seconds
            run.log([{"step": progress.step, "epoch": epoch + 1, "split": "valid", **scores.metrics}])
            line += "  valid " + "  ".join(f"{name} {figure(value)}" for name, value in scores.metrics.items())
            ranked = rank_of(scores.metrics, options.monitor, task)
            better = progress.best is None or ranked > progress.best
        if better:
            with averaged():
                why_not = from_first(lambda: saved(run, model, task))
            if why_not:
                line += f"  not kept: {why_not}"
            else:
                progress.best, progress.best_epoch, progress.best_step, kept = ranked, epoch + 1, progress.step, scores
                line += "  kept"
        if why_not or (epoch + 1) % every == 0 or epoch + 1 == options.epochs or time.perf_counter() - told > 1:
            told = time.perf_counter()
            with suppress(OSError):  # a log on a full disk, or a closed pipe, costs the line and not the run
                print(line, flush=True)
        progress.epoch = epoch + 1
        progress.batches, progress.total, progress.count, progress.left_out = 0, 0.0, 0.0, 0
        saving.after_epoch()
    if options.epochs and progress.skipped + progress.nonfinite == progress.step:
        raise UserError(f"no step has updated a parameter{': try --precision bfloat16' if scaler else ''}")
    return kept


def saved(run, model: nn.Module, task) -> str:
    """Save the epoch. Returns why it could not be saved, or an empty string: a full disk costs this epoch, not the run."""
    try:
        run.save(model, task)
    except UserError as error:
        return str(error)
    return ""


def out_of_patience(options, progress: Progress) -> bool:
    return options.patience is not None and progress.epoch - progress.best_epoch >= options.patience


def train_epoch(
    training: Training, train: Data, run, options, progress: Progress, scaler: LossScaler | None, saving: Saving
) -> str:
    """The steps of an epoch from `progress.batches` on. Returns the line to print about them."""
    model, groups, start, before = training.model, training.optimizer.groups, time.perf_counter(), progress.seconds_training
    stages, epoch = list(dict.fromkeys(group.stage for group in groups)), progress.epoch
    device, row_of = next(model.parameters()).device, train.rows
    model.train()
    log, order = Log(run, progress, options.on_nonfinite == "skip"), train.order(options.batch_size, options.seed, epoch)
    done, order = sum(map(len, order[: progress.batches])), order[progress.batches :]
    of_steps = [order[start : start + options.accumulate] for start in range(0, len(order), options.accumulate)]
    units, steps, heading = sum(map(len, order)), len(of_steps), f"epoch {epoch + 1}/{options.epochs}"
    mine = [units for units in share(order) if len(units)]
    # closed here, where Ctrl-C is handled: in the garbage collector, the end of the worker processes would swallow it
    with bar(heading, done + units, done=done) as shown, closing(train.batches(mine, device, epoch)) as stream:
        for number, of_step in enumerate(of_steps, 1):
            if training.unfreezing and switch(model, groups, training.unfreezing(stages, progress.step, epoch)):
                on = dict.fromkeys(group.stage for group in groups if group.parameters[0].requires_grad)
                tqdm.write(f"step {progress.step + 1}: {', '.join(on)} train{'s' * (len(on) == 1)}")
            batches = list(islice(stream, sum(len(units) > 0 for units in share(of_step))))
            factor = training.schedule(progress.step - progress.skipped)
            taken = step(training, batches, factor, options, scaler, progress)
            if training.average and taken.updated:
                training.average.after_step()
            progress.step += 1
            progress.batches += len(of_step)
            progress.skipped += not taken.updated
            progress.left_out += not taken.updated
            rows = row_of[np.concatenate(of_step)]
            log.add(taken, factor * groups[-1].lr, rows)
            shown.update(len(rows))
            if number % LOOK == 0 or number == steps:
                last = log.look()
                shown.set_postfix(loss=f"{last['loss']:.3f}", lr=f"{last['lr']:.1e}")
            progress.seconds_training = before + time.perf_counter() - start
            saving.after_step(log)
    mean = progress.total / progress.count if progress.count else math.nan
    speed = f"{units / (time.perf_counter() - start):,.0f} rows/s  " if units else ""  # empty if resumed after the last step
    line = f"{heading}  {speed}train loss {mean:.4f}"
    if progress.left_out:
        why = "gradients beyond float16" if scaler else "nothing in them counts"
        why = "loss or gradient not finite" if progress.nonfinite else why
        line += f"  {counted(progress.left_out, 'step')} without an update: {why}"
    return line


def figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def rank_of(metrics: dict[str, float | None], monitor: str, task) -> tuple[float, float]:
    """The key by which epochs are ordered, higher is better: the monitored metric, then the loss. An undefined metric comes last.

    Raises Diverged where the loss is not finite: such a model is never the best.
    """
    loss, value = metrics["loss"], metrics[monitor]
    if not math.isfinite(loss):
        raise Diverged(f"the validation loss is {loss}: training has diverged; try a lower --lr")
    if value is None or math.isnan(value):
        return -math.inf, -loss
    return value if task.METRICS.get(monitor) else -value, -loss


# ---- evaluation ----


@dataclass
class Scores:
    """The metrics and losses of a split."""

    metrics: dict[str, float | None]  # the loss and the task's metrics
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
    """sum(losses) / sum(counts) and the task's metrics over all rows, never averaged over batches. data has targets.

    With several processes each evaluates a share of the rows; the first process holds the meter of all rows.
    """
    start, meter, rows = time.perf_counter(), task.meter(data), data.rows
    losses, counts, mine = np.zeros(rows[-1] + 1), np.zeros(rows[-1] + 1), my_units(rows)
    order = [mine[places] for places in by_length(data.lengths[mine], batch_size)]
    with bar("scoring", len(mine)) as shown:
        for units, outputs, batch in outputs_of(model, data, order, precision):
            with torch.inference_mode(), precision:
                loss = task.loss(outputs, batch)
            np.add.at(losses, batch.rows, loss.double().cpu().numpy())
            np.add.at(counts, batch.rows, batch.counts.numpy())
            meter.add(tree_map(on_cpu, outputs), replace(batch, inputs=(), state=None, targets=tree_map(on_cpu, batch.targets)))
            shown.update(len(units))
    losses, counts = summed_arrays(losses, counts)
    merge(meter, data)
    mean = losses.sum() / counts.sum() if counts.any() else math.nan
    metrics = from_first(lambda: {"loss": float(mean)} | meter.metrics())
    return Scores(metrics, losses / np.maximum(counts, 1e-12), meter, time.perf_counter() - start)


def outputs_by_row(model: nn.Module, data: Data, batch_size: int, precision: AbstractContextManager) -> Iterator[tuple[int, list]]:
    """For every row, in order: its number and the outputs of its units, on the CPU. Only a window of rows is in memory."""
    rows = data.rows
    for order in in_windows(data, batch_size):
        by_unit = {}
        for units, outputs, _ in outputs_of(model, data, order, precision):
            outputs = tree_map(on_cpu, outputs)
            for i, unit in enumerate(units):
                by_unit[unit] = tree_map(lambda x, i=i: x[i], outputs)
        by_row = {}
        for unit in sorted(by_unit):
            by_row.setdefault(int(rows[unit]), []).append(by_unit[unit])
        yield from by_row.items()


def on_cpu(x):
    """A tensor on the CPU, float32 where it was narrower; anything else as it is."""
    if not isinstance(x, Tensor):
        return x
    return x.float().cpu() if x.is_floating_point() and x.dtype.itemsize < 4 else x.cpu()
