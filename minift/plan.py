"""What a run would take, from a few timed steps: --plan."""

import statistics
import time

import torch
from torch import nn

from minift import cache
from minift.data.batching import by_length, shuffled
from minift.optim.groups import clip_gradients
from minift.report import bars
from minift.runs import peak_memory_mb

TIMED = 4  # steps


def print_plan(model: nn.Module, task, data: dict, optimizer, schedule, steps: int, options, precision) -> None:
    """The schedule as a line, the steps, and estimates of time and memory. The timed steps have the rate 0.

    data: the splits. schedule: step -> factor. options: train.py's.
    """
    device, train = next(model.parameters()).device, data["train"]
    done = cache.depth(model.body)
    seen = cache.Recomputed(train, cache.Trunk(model.body, done, precision)) if done else train
    order = shuffled(train.lengths, options.batch_size, options.seed, 0)
    parameters = [p for group in optimizer.groups for p in group.parameters]
    loading, stepping = [], []
    model.train()
    stream = iter(seen.batches(order[: TIMED + 1], device, 0))
    for _ in order[: TIMED + 1]:
        start = now(device)
        batch = next(stream)
        middle = now(device)
        with precision:
            loss = task.loss(model(batch), batch.labels)[0] / task.count(batch)
        loss.backward()
        clip_gradients(parameters, options.clip)
        optimizer.step(0.0)
        optimizer.zero_grad()
        loading.append(middle - start)
        stepping.append(now(device) - middle)
    load, step = (statistics.median(seconds[1:] or seconds) for seconds in (loading, stepping))  # the first warms up
    kept = done > 0 and train.draws is not None and options.cache != "off"
    batches = len(order) * options.epochs
    seconds = step * batches + load * (len(order) * train.draws if kept else batches)
    factors = [schedule(s) for s in range(steps)]
    if factors:
        top = max(range(steps), key=factors.__getitem__)
        lr = optimizer.groups[-1].lr
        figures = f"highest {factors[top] * lr:.2g} at step {top + 1}, last {factors[-1] * lr:.2g}"
        print(f"rate      {bars(factors)}  {figures}")
    below = f", {load:.2f} s before it for the data{' and the frozen stages, once' if kept else ''}"
    print(f"steps     {steps:,} in {options.epochs} epochs; {step:.2f} s for a batch{below}")
    if options.unfreeze:
        print("          timed with all stages on")
    if "valid" in data:
        order = by_length(data["valid"].lengths, options.batch_size)
        model.eval()
        start = now(device)
        with torch.inference_mode(), precision:
            model(next(iter(data["valid"].batches([order[len(order) // 2]], device))))
        scoring, times = (now(device) - start) * len(order), 1 if kept else options.epochs
        seconds += scoring * times
        print(f"validate  {scoring:,.1f} s, {times} times")
    memory = peak_memory_mb(device)
    print(
        f"in all    about {seconds:,.0f} s; memory {f'{memory:,} MB' if memory else 'not told by this system'} in the timed steps"
    )


def now(device: torch.device) -> float:
    """The time when the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
