"""Fine-tune a model: `python train.py` on the embedded sample, `python train.py --train FILE` on your own data.

`main` reads from top to bottom what a run is: data, model, method, optimiser, `fit`, results. `fit` is the training loop.
"""

import argparse
import gc
import math
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from minift.data.reading import LAYOUT_FLAGS, Layout
from minift.errors import UserError, command
from minift.flags import add_flags


@dataclass(frozen=True)
class Options(Layout):
    train: str | None = None  # training file, or directory of images by class; unset: the embedded sample of reviews
    valid: str | None = None  # the like for validation; unset: 10 % of the training rows, stratified; none: keep the last epoch
    test: str | None = None  # the like for a test, scored once at the end
    split_seed: int = 0  # of the split where --valid is unset; --seed has no part in it
    task: str = "text-classification"  # what is learnt: text-classification or image-classification
    model: str | None = None  # converted directory, its name under weights/, or a finished run; unset: minilm-l6 or resnet50
    init: str = "pretrained"  # pretrained, or random: the same architecture from scratch
    pool: str | None = None  # what the head reads, cls or mean; unset: cls, for probe what the checkpoint recommends
    method: str = "full"  # what trains: full (everything), probe (the head), lora:rank=4, ...; help lists them; joined by +
    epochs: int | None = None  # passes over the rows; unset: the method's own, more for few rows; 0 scores the untrained model
    batch_size: int = 32  # rows a step
    accumulate: int = 1  # batches whose gradients make one step, that of the one large batch
    solver: str = "gradient"  # gradient: steps of the optimiser; lbfgs: a probe solved exactly, its L2 penalty chosen by validation
    l2: float | None = None  # penalty of lbfgs; unset: the best of 45
    optimizer: str | None = None  # adamw, sgd, with options as in sgd:momentum=0.9,nesterov=True; unset: adamw, sgd for images
    lr: float | None = None  # peak learning rate; unset: the method's own
    head_lr: float | None = None  # peak learning rate of the head; unset: as --lr
    layer_decay: float = 1.0  # factor on the rate from each stage to the one below: 0.385 is ULMFiT's 2.6
    weight_decay: float | None = None  # of weights; biases and normalisation layers have none; unset: 0.01, for images 1e-4
    decay_rule: str = "type"  # what decays: type: weights by the type of their module; hf: what transformers' Trainer decays
    schedule: str = "linear"  # of the rate: constant, linear, cosine, polynomial:power=2,end=0, inverse-sqrt, slanted-triangular
    warmup: float = 0.1  # steps in which the rate rises from 0: below 1 a share of all, else a number
    clip: float = 1.0  # largest norm of all gradients together
    label_smoothing: float = 0.0  # share of every label that is spread evenly over all classes in training
    augment: str | None = None  # training images: none, standard (crop, flip), strong; unset: standard, for probe none
    mixup: float = 0.0  # alpha of Beta(alpha, alpha), by which pairs of training images are blended; 0: never
    cutmix: float = 0.0  # the like, by which a rectangle of one is put into the other
    cache: str = "auto"  # output of the stages below all that train, kept in memory, on disk, or off; auto: where it fits
    views: int | None = None  # augmented views of every training image, by turns; unset: new ones in each epoch
    unfreeze: str | None = None  # stages that train: gradual (one more each epoch), chain, all-at:n=1; gradual:every=9: steps
    monitor: str | None = None  # metric that chooses the epoch to keep; unset: the task's first
    patience: int | None = None  # epochs without a better one after which training stops; unset: never
    max_length: int | None = None  # tokens a row, special ones counted, longer rows are cut; unset: 128, or what the model can take
    checkpoint_activations: bool = False  # compute them again in the backward pass: less memory, more time
    precision: str = "auto"  # float32, bfloat16, float16; auto: bfloat16 where the device is faster with it
    seed: int = 42  # of the head's start, the order of the rows and dropout
    seeds: int = 1  # runs with this seed and the following ones, in OUT/seed-S; then mean, deviation, median, best and worst
    plan: bool = False  # show stages, rates, steps, and estimates of time and memory from a few timed steps; then stop
    device: str | None = None  # cpu, cuda, ...; unset: cuda where there is one
    out: str | None = None  # directory of the run; unset: runs/DATA-MODEL-METHOD


# Few rows need more passes: three over 500 rows leave BERT half trained (Mosbach et al. 2021, arXiv:2006.04884;
# Zhang et al. 2021, arXiv:2006.05987). --epochs unset makes at least this many steps.
LEAST_STEPS = 150

# Flags of gradient steps, with which an exact solver has nothing to do
GRADIENT = (
    *("epochs", "accumulate", "optimizer", "lr", "head_lr", "layer_decay", "weight_decay", "decay_rule", "schedule", "warmup"),
    *("clip", "label_smoothing", "mixup", "cutmix", "patience"),
)


@dataclass
class Progress:
    """Where a run stands; the order of the rows and what is drawn for images follow from seed and epoch."""

    epoch: int = 0  # finished ones
    step: int = 0
    best: float | None = None  # of the monitored metric
    best_epoch: int = 0
    best_step: int = 0
    seconds_training: float = 0.0
    seconds_evaluating: float = 0.0


def fit(
    model,
    task,
    train,
    valid,
    optimizer,
    schedule,
    run,
    progress=None,
    *,
    epochs,
    batch_size,
    accumulate,
    clip,
    seed,
    monitor,
    patience,
    label_smoothing=0.0,
    unfreezing=None,
    precision,
) -> Progress:
    """Train, score after every epoch, keep the best: what lies in the run's model/ at the end is the epoch that `monitor` chose.

    model: has body and head. train, valid: data with labels; valid None: the last epoch is kept. optimizer: of the groups that
    train. schedule: step -> factor on their rates. run: takes events and weights. progress: where the run stands. unfreezing:
    (stages, step, epoch) -> those of them that train now; None: all. precision: around every forward, as
    `optim.precision.around` makes it. A tie keeps the earlier epoch. The gradient of a step is that of its `accumulate` batches
    taken as one: a sum over all their rows, divided by their number.
    """
    import torch
    from tqdm import tqdm

    from minift.data.batching import shuffled
    from minift.finetuned import score
    from minift.metrics.classification import HIGHER_IS_BETTER
    from minift.optim.groups import clip_gradients, switch
    from minift.optim.precision import LossScaler

    every = 10  # steps from one look at the loss to the next: a look makes a GPU wait
    device = next(model.parameters()).device
    parameters = [p for group in optimizer.groups for p in group.parameters]
    scaler = LossScaler() if getattr(precision, "dtype", None) == torch.float16 else None
    progress = progress or Progress()
    stages = list(dict.fromkeys(group.stage for group in optimizer.groups))
    if epochs == 0:
        run.save(model)
    for epoch in range(progress.epoch, epochs):
        start = time.perf_counter()
        model.train()
        order = shuffled(train.lengths, batch_size, seed, epoch)
        stream, windows = train.batches(order, device, epoch), math.ceil(len(order) / accumulate)
        bar = tqdm(total=len(train), desc=f"epoch {epoch + 1}/{epochs}", unit="row", leave=False, disable=not sys.stderr.isatty())
        pending, marked, total_loss, skipped = [], start, 0.0, 0
        for number in range(1, windows + 1):
            batches = list(islice(stream, accumulate))
            if unfreezing is not None and switch(model, optimizer.groups, unfreezing(stages, progress.step, epoch)):
                on = dict.fromkeys(group.stage for group in optimizer.groups if group.parameters[0].requires_grad)
                tqdm.write(f"step {progress.step + 1}: {', '.join(on)} train{'s' * (len(on) == 1)}")
            count, loss = sum(map(task.count, batches)), 0.0
            for batch in batches:
                with precision:
                    part = task.loss(model(batch), batch.labels, label_smoothing)[0] / count
                (part if scaler is None else scaler.scale(part)).backward()
                loss = loss + part.detach()
            factor = schedule(progress.step)
            finite = scaler is None or scaler.unscale(parameters)
            skipped += not finite
            if finite:
                clip_gradients(parameters, clip)
                optimizer.step(factor)
                progress.step += 1
            if scaler is not None:
                scaler.update(finite)
            optimizer.zero_grad()
            pending.append((progress.step, loss, factor * optimizer.groups[-1].lr, sum(len(batch.labels) for batch in batches)))

            if number % every == 0 or number == windows:
                steps, losses, rates, counts = zip(*pending, strict=True)
                losses, now = torch.stack(losses).tolist(), time.perf_counter()
                common = {"epoch": epoch + 1, "split": "train", "examples_per_second": sum(counts) / (now - marked)}
                values = zip(steps, losses, rates, strict=True)
                run.log([{"step": step, "loss": value, "lr": lr, **common} for step, value, lr in values])
                total_loss += sum(value * n for value, n in zip(losses, counts, strict=True))
                bar.update(sum(counts))
                bar.set_postfix(loss=f"{losses[-1]:.3f}", lr=f"{rates[-1]:.1e}")
                if not math.isfinite(total_loss):
                    bar.close()
                    raise UserError(f"the loss is {losses[-1]} at step {progress.step}: the run has come apart; try a lower --lr")
                pending, marked = [], now
        stream.close()  # here, where Ctrl-C is heard: left to the garbage collector, an end of worker processes would swallow it
        bar.close()
        progress.epoch = epoch + 1
        seconds = time.perf_counter() - start
        progress.seconds_training += seconds
        line = f"epoch {epoch + 1}/{epochs}  {len(train) / seconds:,.0f} rows/s  train loss {total_loss / len(train):.4f}"
        if skipped:
            line += f"  {skipped} steps left out, their gradients being beyond float16"
        better = True
        if valid is not None:
            scores = score(model, task, valid, batch_size, precision)
            progress.seconds_evaluating += scores.seconds
            run.log([{"step": progress.step, "epoch": epoch + 1, "split": "valid", **scores.metrics}])
            line += "  valid " + "  ".join(f"{name} {value:.4f}" for name, value in scores.metrics.items())
            value = scores.metrics[monitor]
            better = progress.best is None or (value > progress.best if HIGHER_IS_BETTER[monitor] else value < progress.best)
            progress.best = value if better else progress.best
        if better:
            run.save(model)
            progress.best_epoch, progress.best_step = progress.epoch, progress.step
            line += "  kept"
        print(line, flush=True)
        if patience is not None and progress.epoch - progress.best_epoch >= patience:
            print(f"stopped: no better {monitor} for {patience} epochs")
            break
    if scaler is not None and epochs and not progress.step:
        raise UserError("no step had finite gradients in float16: the run has not trained; try --precision bfloat16")
    return progress


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="train.py", description="Fine-tune a model; without flags, on the embedded sample.")
    add_flags(parser, Options)
    given = Options(**vars(parser.parse_args(argv)))
    if given.method == "help":
        list_methods()
        return
    check(given)
    if given.seeds == 1:
        run_once(given)
    else:
        run_seeds(given)


def run_once(given: Options) -> dict | None:
    """One run from data to results: what it writes to result.json; None where --plan stops before training."""
    started = time.perf_counter()
    gc.collect()  # the model of the seed before
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # large tensors in huge pages: 4 % of a step on a CPU

    import torch

    from minift import cache
    from minift.adapting import adapt, default_epochs, default_lr, names_of, parse_methods
    from minift.checkpointing import checkpoint_activations
    from minift.errors import look_up
    from minift.finetuned import choose_device, score
    from minift.formats.huggingface import FAMILIES
    from minift.methods.surgery import delta, lengthened, mergeable
    from minift.optim import OPTIMIZERS
    from minift.optim import precision as precisions
    from minift.optim.groups import make_groups
    from minift.optim.schedules import SCHEDULES, warmup_steps
    from minift.optim.unfreezing import UNFREEZING
    from minift.plan import print_plan
    from minift.pretrained import find, read, sha256, untrained
    from minift.report import print_data, print_model, print_results, print_settings, shown
    from minift.runs import Run, choose_directory, describe_device, peak_memory_mb, versions
    from minift.solve import solve
    from minift.specs import parse
    from minift.tasks import TASKS

    # What the flags leave open
    task_class = look_up(TASKS, given.task, "--task")
    foreign = flags_of_other_tasks(given, task_class)
    parse_methods(given.method)  # a mistake in it is answered before anything is read
    method_name = names_of(given.method)
    optimizer_name = given.optimizer or task_class.OPTIMIZER
    make_optimizer = parse(optimizer_name, OPTIMIZERS, "--optimizer")
    schedule = parse(given.schedule, SCHEDULES, "--schedule")
    unfreezing = given.unfreeze and parse(given.unfreeze, UNFREEZING, "--unfreeze")
    device = choose_device(given.device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    model_name = given.model or task_class.MODEL
    checkpoint = untrained(model_name) if given.init == "random" else None
    place = None if checkpoint else find(model_name)
    checkpoint = checkpoint or read(place)
    if checkpoint.grafts:
        raise UserError(
            f"{model_name}: a run of {checkpoint.method}, whose layers are no longer plain; merge them first, if that can be: "
            f"python convert.py {model_name} --to minift --out DIR"
        )
    dtype = precisions.choose(given.precision, device)
    precision = precisions.around(dtype)
    if dtype == torch.float16 and device.type == "cpu":
        print("note: float16 on a CPU is slow; bfloat16 or float32 is faster", file=sys.stderr)
    open_ones = task_class.open_flags(method_name, checkpoint) | {
        "model": (model_name, f"{given.task}'s own"),
        "optimizer": (optimizer_name, f"{given.task}'s own"),
        "lr": (default_lr(given.method, optimizer_name.partition(":")[0], checkpoint.width), f"{method_name}'s own"),
        "weight_decay": (task_class.WEIGHT_DECAY, f"{given.task}'s own"),
        "monitor": (task_class.METRICS[0], f"first of {given.task}"),
        "device": (str(device), "found"),
        "out": (str(choose_directory(given.out, Path(given.train or "reviews"), model_name, given.method)), "free"),
    }
    open_ones = {name: pair for name, pair in open_ones.items() if getattr(given, name) is None}
    if given.precision == "auto":
        open_ones["precision"] = (str(dtype).removeprefix("torch."), "found")
    options = replace(given, **{name: value for name, (value, _) in open_ones.items()})
    known = ("loss", *task_class.METRICS)
    if options.monitor not in known:
        raise UserError(f"--monitor {options.monitor}: known are {', '.join(known)}")

    # Data
    parts, labels = read_parts(options, task_class)
    ids = {split: task_class.ids(rows, labels, split == "valid" and given.valid is not None) for split, rows in parts.items()}
    settings = task_class.settings(options, parts["train"])
    workers = options.workers or 0
    data = {split: task_class.prepare(rows, ids[split], checkpoint, settings, workers) for split, rows in parts.items()}
    print_data(parts, data, labels)
    data["train"] = task_class.for_training(data["train"], options, len(labels))
    steps_per_epoch = math.ceil(math.ceil(len(data["train"]) / options.batch_size) / options.accumulate)
    if given.solver == "lbfgs":
        open_ones["epochs"], options = (0, "none for lbfgs"), replace(options, epochs=0)
    elif given.epochs is None:
        own = default_epochs(given.method)
        epochs = max(own, math.ceil(LEAST_STEPS / steps_per_epoch))
        why = f"{method_name}'s own" if epochs == own else f"few rows: at least {LEAST_STEPS} steps"
        open_ones["epochs"] = (epochs, why)
        options = replace(options, epochs=epochs)

    # Model: freeze everything, then the method thaws or wraps
    torch.manual_seed(options.seed)
    body = checkpoint.body(options.pool) if options.init == "pretrained" else checkpoint.random_body(options.pool)
    plain = body.state_dict().keys()
    adapt(body, options.method)
    own = delta(body)
    if taken := lengthened(body):
        left = body.config.max_position_embeddings - taken
        if options.max_length > left:
            raise UserError(
                f"--max-length {options.max_length}: {options.method} takes {taken} of the model's positions, give {left} or less"
            )
    new_pooler = options.pool == "cls" and checkpoint.own_pool is None
    if new_pooler and not {name for name in plain if name.startswith("pooler.")} <= own.keys():
        raise UserError(f"{options.model} has no pooler, and {options.method} would not train a new one; add --pool mean")
    task = task_class(labels, options.pool)
    model = task.model(body).to(device, memory_format=torch.channels_last)  # the order in which convolutions are fast
    new = ["everything" if options.init == "random" else "head"] + ["pooler"] * new_pooler

    # Optimiser and schedule
    groups = make_groups(model, options.lr, options.weight_decay, options.head_lr, options.layer_decay, options.decay_rule)
    try:
        optimizer = make_optimizer(groups)
    except ValueError as error:
        raise UserError(f"--optimizer {options.optimizer}: {error}") from None
    steps = options.epochs * steps_per_epoch
    warmup = warmup_steps(options.warmup, steps)
    if warmup > steps > 0:
        raise UserError(f"--warmup {options.warmup:g}: the run has {steps} steps, so the rate would never reach its peak")
    schedule = partial(schedule, T=steps, W=warmup)
    try:
        schedule(0)
    except ValueError as error:
        raise UserError(f"--schedule {options.schedule}: {error}") from None
    if options.layer_decay != 1 and all(group.stage == "head" for group in groups):
        raise UserError(
            f"--layer-decay {options.layer_decay}: {options.method} trains the head alone, so there are no stages to step through"
        )
    origin = f"{shown(place)}, from {checkpoint.source}" if place else checkpoint.source
    print_model(model, groups, f"{origin}; newly initialised: {', '.join(new)}", options.accumulate)
    stages = list(dict.fromkeys(group.stage for group in groups))
    if stages == ["head"] and given.lr is not None and given.head_lr is not None:
        raise UserError(f"--lr with --head-lr: {options.method} trains the head alone, so one rate is enough")
    if unfreezing and stages == ["head"]:
        raise UserError(f"--unfreeze {options.unfreeze}: {options.method} trains the head alone, so there is nothing to switch")
    if unfreezing:
        try:
            reached = {stage for step in range(steps) for stage in unfreezing(stages, step, step // steps_per_epoch)}
        except ValueError as error:
            raise UserError(f"--unfreeze {options.unfreeze}: {error}") from None
        if never := [stage for stage in stages if stage not in reached]:
            print(
                f"note: --unfreeze {options.unfreeze}: {', '.join(never)} never train{'s' * (len(never) == 1)} in {steps} steps\n"
            )
    print_settings(given, options, open_ones, foreign)
    frozen = cache.depth(body)
    if options.cache != "auto" and not frozen:
        raise UserError(f"--cache {options.cache} with --method {options.method}: the lowest stage trains, nothing is to be kept")
    if options.checkpoint_activations and frozen == len(list(body.walk())):
        raise UserError(f"--checkpoint-activations with --method {options.method}: no stage trains, so none keeps activations")
    if options.checkpoint_activations:
        checkpoint_activations(body, precision)
    if options.plan:
        print_plan(model, task, data, optimizer, schedule, steps, options, precision)
        return None

    # Train
    settings |= {
        "batch_size": options.batch_size,
        "precision": options.precision,
        "frozen": frozen,
        "layout": {name: getattr(options, name) for name in LAYOUT_FLAGS if name != "workers"},  # the machine's, not the run's
    }
    described = {"name": options.task, "labels": labels, "pool": options.pool}
    base = sha256(place / "model.safetensors") if options.init == "pretrained" else None
    is_delta = base is not None and not plain <= own.keys()
    checkpoint = replace(
        checkpoint,
        tensors={},  # the body has its own
        origin=None,
        base=base,
        base_name=None if base is None else str(Path(model_name).resolve()) if Path(model_name).is_dir() else model_name,
        method=options.method,
        delta=is_delta,
        task=described,
        settings=settings,
        recipe=asdict(options) | {"train": options.train and str(Path(options.train).resolve())},
    )
    run = Run(Path(options.out), checkpoint, list(own) if is_delta else None)
    run.write_json("config.json", {"flags": asdict(options), "versions": versions()})
    seconds = {"setup": time.perf_counter() - started}
    rows = options.batch_size * options.accumulate
    where = f"{describe_device(device)}, {options.precision}"
    work = f"{steps:,} steps of {rows} rows, {options.epochs} epochs" if options.solver == "gradient" else "L-BFGS"
    print(f"{work}, on {where}", flush=True)
    torch.manual_seed(options.seed)  # dropout's stream does not depend on what was initialised before it
    limits = {
        name: getattr(options, name)
        for name in ("epochs", "batch_size", "accumulate", "clip", "seed", "monitor", "patience", "label_smoothing")
    }
    try:
        start = time.perf_counter()
        seen = cache.keep(data, body, precision, device, options.batch_size, options.cache, run.directory)
        progress = Progress(seconds_training=time.perf_counter() - start)
        if options.solver == "lbfgs":
            start = time.perf_counter()
            wanted = {name: getattr(options, name) for name in ("batch_size", "monitor", "l2")}
            solve(model, task, seen["train"], seen.get("valid"), run, precision=precision, **wanted)
            progress.seconds_training += time.perf_counter() - start
        else:
            progress = fit(
                model,
                task,
                seen["train"],
                seen.get("valid"),
                optimizer,
                schedule,
                run,
                progress,
                unfreezing=unfreezing,
                precision=precision,
                **limits,
            )
    except KeyboardInterrupt:
        kept = f"the best epoch so far is in {run.directory}" if (run.directory / "model").is_dir() else "before an epoch was over"
        raise KeyboardInterrupt(kept) from None

    # Results of what was saved
    run.restore(model)
    scores = {split: score(model, task, seen[split], options.batch_size, precision) for split in ("valid", "test") if split in data}
    seconds["train"] = progress.seconds_training
    seconds["evaluate"] = progress.seconds_evaluating + sum(s.seconds for s in scores.values())
    result = {split: s.metrics for split, s in scores.items()} | {
        "seconds": seconds,
        "peak_memory_mb": peak_memory_mb(device),
        "parameters": {
            "trainable": sum(p.numel() for group in groups for p in group.parameters),
            "total": sum(p.numel() for p in model.parameters()),
        },
        "steps": progress.step,
        "best_epoch": progress.best_epoch,
        "best_step": progress.best_step,
    }
    run.write_json("result.json", result)
    if progress.best is not None and not math.isclose(scores["valid"].metrics[options.monitor], progress.best, rel_tol=1e-6):
        raise AssertionError(f"what was saved scores {scores['valid'].metrics}, recorded was {options.monitor} {progress.best}")
    print_results(
        run.directory,
        parts,
        data,
        task,
        scores,
        progress,
        options,
        to_hf=options.pool == FAMILIES[checkpoint.architecture].pool and mergeable(body),
    )
    return result


def run_seeds(given: Options) -> None:
    """The same run with several seeds, and what they have in common."""
    import statistics

    from minift.errors import look_up
    from minift.metrics.classification import HIGHER_IS_BETTER
    from minift.report import table
    from minift.runs import choose_directory, write_json
    from minift.tasks import TASKS

    model = given.model or look_up(TASKS, given.task, "--task").MODEL
    directory = choose_directory(given.out, Path(given.train or "reviews"), model, given.method)
    seeds = range(given.seed, given.seed + given.seeds)
    results = []
    for seed in seeds:
        print(f"\n======== seed {seed}\n", flush=True)
        results.append(run_once(replace(given, seed=seed, out=str(directory / f"seed-{seed}"))))
    summary = {}
    for split in ("valid", "test"):
        for name in results[0].get(split, ()):
            values = [result[split][name] for result in results]
            best, worst = (max(values), min(values)) if HIGHER_IS_BETTER[name] else (min(values), max(values))
            figures = {"mean": statistics.mean(values), "deviation": statistics.stdev(values), "median": statistics.median(values)}
            summary.setdefault(split, {})[name] = figures | {"best": best, "worst": worst, "values": values}
    write_json(directory / "result.json", {"seeds": list(seeds), **summary})
    rows = [[split, name, *list(f.values())[:-1]] for split, metrics in summary.items() for name, f in metrics.items()]
    print(f"\n======== {given.seeds} seeds, in {directory}\n")
    print(table(["split", "metric", "mean", "deviation", "median", "best", "worst"], rows))


def flags_of_other_tasks(options: Options, task_class) -> set[str]:
    """Names of the flags that the task has no use for; one that was given all the same is a mistake."""
    from minift.errors import look_up
    from minift.tasks import TASKS

    strange = {f: name for name in TASKS for f in look_up(TASKS, name, "--task").FLAGS if f not in task_class.FLAGS}
    for f, name in strange.items():
        if getattr(options, f) != getattr(Options, f):
            raise UserError(f"--{f.replace('_', '-')} belongs to {name}, and the task is {options.task}")
    return set(strange)


def check(options: Options) -> None:
    """Values that no run could use, before anything is loaded."""
    wanted = {
        "init": (options.init in ("pretrained", "random"), "pretrained or random"),
        "pool": (options.pool in (None, "cls", "mean"), "cls or mean"),
        "epochs": (options.epochs is None or options.epochs >= 0, "0 or more"),
        "batch_size": (options.batch_size >= 1, "1 or more"),
        "lr": (options.lr is None or 0 < options.lr < math.inf, "above 0"),
        "weight_decay": (options.weight_decay is None or 0 <= options.weight_decay < math.inf, "0 or more"),
        "decay_rule": (options.decay_rule in ("type", "hf"), "type or hf"),
        "label_smoothing": (0 <= options.label_smoothing < 1, "0 or more, below 1"),
        "augment": (options.augment in (None, "none", "standard", "strong"), "none, standard or strong"),
        "mixup": (options.mixup >= 0, "0 or more"),
        "cutmix": (options.cutmix >= 0, "0 or more"),
        "cache": (options.cache in ("auto", "memory", "disk", "off"), "auto, memory, disk or off"),
        "views": (options.views is None or options.views >= 1, "1 or more"),
        "seeds": (options.seeds >= 1, "1 or more"),
        "workers": (options.workers is None or options.workers >= 0, "0 or more"),
        "precision": (options.precision in ("auto", "float32", "bfloat16", "float16"), "auto, float32, bfloat16 or float16"),
        "accumulate": (options.accumulate >= 1, "1 or more"),
        "head_lr": (options.head_lr is None or 0 < options.head_lr < math.inf, "above 0"),
        "layer_decay": (0 < options.layer_decay <= 1, "above 0, at most 1"),
        "warmup": (
            options.warmup >= 0 and (options.warmup < 1 or float(options.warmup).is_integer()),
            "a share of the steps below 1, or a whole number of steps",
        ),
        "patience": (options.patience is None or options.patience >= 1, "1 or more"),
        "clip": (options.clip > 0, "above 0"),
        "max_length": (
            options.max_length is None or options.max_length >= 3,
            "3 or more: two special tokens and one of the text",
        ),
        "seed": (0 <= options.seed < 2**62, "0 or more, below 2^62"),
        "split_seed": (options.split_seed >= 0, "0 or more"),
    }
    for name, (fits, what) in wanted.items():
        if not fits:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: {what} is wanted")
    if options.schedule.startswith("slanted-triangular") and options.warmup != Options.warmup:
        raise UserError(
            f"--warmup {options.warmup:g}: slanted-triangular has a rise of its own; say slanted-triangular:cut_frac=0.2"
        )
    if options.seeds > 1 and options.train is not None and options.valid == "none" and options.test is None:
        raise UserError("--seeds with --valid none and without --test: there would be nothing to compare")
    if options.plan and options.seeds > 1:
        raise UserError("--plan with --seeds: a plan is of one run")
    if options.solver not in ("gradient", "lbfgs"):
        raise UserError(f"--solver {options.solver}: known are gradient, lbfgs")
    if options.solver == "lbfgs":
        if options.method != "probe":
            raise UserError(f"--solver lbfgs with --method {options.method}: it solves a linear head alone; add --method probe")
        if options.valid == "none" and options.l2 is None:
            raise UserError("--solver lbfgs with --valid none: nothing to choose the penalty by; give it with --l2")
        if options.augment not in (None, "none") and options.views is None:
            raise UserError(f"--solver lbfgs with --augment {options.augment}: it sees the rows once; say how often with --views")
        if options.l2 is not None and options.monitor is not None:
            raise UserError("--monitor with --l2: the penalty is given, so there is nothing to choose")
        if options.seeds > 1 and options.views is None:
            raise UserError("--seeds with --solver lbfgs: the solution is the same for every seed")
        if options.plan:
            raise UserError("--plan with --solver lbfgs: a plan is of gradient steps")
        idle = [name for name in GRADIENT if getattr(options, name) != getattr(Options, name)]
        if idle:
            raise UserError(f"--{idle[0].replace('_', '-')} with --solver lbfgs: it takes no gradient steps")
    if options.l2 is not None and (options.solver != "lbfgs" or not 0 < options.l2 < math.inf):
        raise UserError(f"--l2 {options.l2}: a number above 0 is wanted, and --solver lbfgs")
    if options.patience is not None and options.valid == "none":
        raise UserError("--patience with --valid none: without validation rows no epoch is better than another")
    idle = {name for name in (*LAYOUT_FLAGS, "valid", "test", "split_seed") if getattr(options, name) != getattr(Options, name)}
    if options.train is None and idle:
        flags = ", ".join("--" + name.replace("_", "-") for name in sorted(idle))
        raise UserError(f"{flags} without --train: the embedded sample has its own layout and split; give --train FILE")
    if options.valid is not None and options.split_seed != Options.split_seed:
        raise UserError("--split-seed with --valid: nothing is split off the training file")
    if options.valid == "none" and options.monitor is not None:
        raise UserError("--monitor with --valid none: without validation rows there is nothing to choose by")


def read_parts(options: Options, task_class) -> tuple[dict, list[str]]:
    """(rows of the splits that there are: train, valid, test; labels by name)"""
    import numpy as np

    from minift.data.reading import check_table_flags, split_stratified
    from minift.data.samples import REVIEWS, reviews_split

    if options.train is None:
        if options.task != "text-classification":
            raise UserError(f"--task {options.task}: the embedded sample is one of texts; give --train")
        rows = task_class.read(REVIEWS, Layout())
        splits = np.array([reviews_split(f"{text}\t{label}") for text, label in zip(rows.texts, rows.labels, strict=True)])
        return {split: rows.take(np.flatnonzero(splits == split)) for split in ("train", "valid", "test")}, task_class.names(rows)
    given = [name for name in LAYOUT_FLAGS if getattr(options, name) != getattr(Options, name)]
    for path in filter(None, (options.train, options.valid, options.test)):
        check_table_flags(path, given)
    parts = {"train": task_class.read(options.train, options)}
    if options.label_part and not parts["train"].shortened:
        raise UserError(f"{options.train}: --label-part {options.label_part!r}: no label in the file contains it")
    labels = task_class.names(parts["train"])
    if options.valid is None:
        kept, held = split_stratified(parts["train"].labels, 0.1, options.split_seed)
        if not len(held):
            raise UserError(
                f"{options.train}: {len(kept)} rows are too few to hold 10 % back for validation; give --valid or --valid none"
            )
        parts = {"train": parts["train"].take(kept), "valid": parts["train"].take(held)}
    elif options.valid != "none":
        parts["valid"] = task_class.read(options.valid, options)
    if options.test is not None:
        parts["test"] = task_class.read(options.test, options)
    return parts, labels


def list_methods() -> None:
    from minift.errors import look_up
    from minift.methods import METHODS
    from minift.models import MODELS
    from minift.specs import as_option, options_of

    width = max(map(len, METHODS))
    for name in METHODS:
        function = look_up(METHODS, name, "--method")
        options = ",".join(f"{key}={as_option(value)}" for key, value in options_of(function).items())
        print(f"{name:{width}s} {function.__doc__.splitlines()[0]}")
        if options:
            print(f"{'':{width}s} {name}:{options}")
    print("\nSeveral in order, joined by +: prefix:length=5+lora:rank=4. What an option means stands in minift/methods/NAME.py.")
    print("sites=A/B: roles, or regular expressions that the names of modules match in full. Roles")
    for name in MODELS:
        print(f"  of {name}: {', '.join(look_up(MODELS, name, '').SITES)}")


if __name__ == "__main__":
    command(main, "train")
