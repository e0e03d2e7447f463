"""What a run would take, from a few timed steps: --plan."""

import statistics
import time

import torch

from minift import cache
from minift.data.batching import Data, by_length
from minift.runs import peak_memory_mb
from minift.tables import bars, counted
from minift.training import Progress, step

TIMED = 4  # steps


def print_plan(training, data: dict[str, Data], options) -> None:
    """The schedule as a line, the steps, and estimates of time and memory. The timed steps have the learning rate 0.

    training: from minift/setup.py. data: the splits. options: train.py's.
    """
    model, train = training.model, data["train"]
    device = next(model.parameters()).device
    frozen = cache.FrozenStages(model.body, training.frozen, training.precision) if training.frozen else None
    for penalty in training.penalties:
        penalty.begin(None)
    order = train.order(options.batch_size, options.seed, 0)
    loading, stepping = [], []
    model.train()
    stream = iter((cache.OnTheFly(train, frozen) if frozen else train).batches(order[: TIMED + 1], device, 0))
    for _ in order[: TIMED + 1]:
        begin = now(device)
        batch = next(stream)
        middle = now(device)
        step(training, [batch], 0.0, options, None, Progress())
        loading.append(middle - begin)
        stepping.append(now(device) - middle)
    load, one = (statistics.median(seconds[1:] or seconds) for seconds in (loading, stepping))  # the first warms up
    kept = frozen is not None and train.variants is not None and options.cache != "off"
    batches = len(order) * options.epochs
    seconds = one * batches + load * (len(order) * train.variants if kept else batches)
    factors = [training.schedule(s) for s in range(training.steps)]
    if factors:
        top = max(range(len(factors)), key=factors.__getitem__)
        lr = training.optimizer.groups[-1].lr
        figures = f"highest {factors[top] * lr:.2g} at step {top + 1}, last {factors[-1] * lr:.2g}"
        print(f"lr        {bars(factors)}  {figures}, of the head")
    below = f", {load:.2f} s before it for the data{' and the frozen stages, once' if kept else ''}"
    print(f"steps     {training.steps:,} in {counted(options.epochs, 'epoch')}; {one:.2f} s for a batch{below}")
    if options.unfreeze:
        print("          timed with all stages on")
    if "valid" in data:
        loading, scoring = seconds_of_scoring(training, data["valid"], frozen, options, device)
        scoring = loading + scoring * options.epochs if kept else (loading + scoring) * options.epochs
        seconds += scoring
        print(f"validate  {scoring:,.1f} s for {counted(options.epochs, 'time')}{', the frozen stages once' if kept else ''}")
    memory = peak_memory_mb(device)
    several = f" a seed, {seconds * options.seeds:,.0f} s for {options.seeds}" if options.seeds > 1 else ""
    print(
        f"in all    about {seconds:,.0f} s{several}; "
        f"memory {f'{memory:,} MB' if memory else 'not told by this system'} in the timed steps"
    )


def seconds_of_scoring(training, data: Data, frozen, options, device: torch.device) -> tuple[float, float]:
    """(loading and frozen stages, all above) for the whole split, from its middle batch."""
    order = by_length(data.lengths, options.batch_size)
    middle_batch = [order[len(order) // 2]]
    training.model.eval()
    begin = now(device)
    batch = next(iter((cache.OnTheFly(data, frozen) if frozen else data).batches(middle_batch, device)))
    middle = now(device)
    with torch.inference_mode(), training.precision:
        training.model(batch)
    return (middle - begin) * len(order), (now(device) - middle) * len(order)


def now(device: torch.device) -> float:
    """The time when the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
