"""The flags of train.py that all tasks share: help and range beside each. A task has its own in minift/tasks/flags.py."""

import os
import sys
from dataclasses import dataclass, fields, make_dataclass

from minift.data.layout import LAYOUTS, Layout
from minift.errors import UserError, look_up
from minift.flags import check_ranges, flag, spelled, typed
from minift.tasks import FLAGS


@dataclass(frozen=True)
class Options:
    train: str | None = flag(None, "training file, or directory of images by class; unset: the embedded sample of reviews")
    valid: str | None = flag(None, "validation file or directory; unset: 10 % of the training rows; none: keep the last epoch")
    test: str | None = flag(None, "test file or directory, scored once at the end")
    train_rows: int | None = flag(None, "rows drawn from --train, as many of each class as it has there; unset: all", least=2)
    test_rows: int | None = flag(None, "rows drawn from --test in the same way; unset: all", least=2)
    split_seed: int = flag(0, "seed of the split where --valid is unset, and of drawn rows; --seed does not change them", least=0)
    task: str = flag("text-classification", f"the task: {', '.join(FLAGS)}; --task NAME --help shows its own flags")
    model: str | None = flag(
        None,
        "converted directory, its name under weights/, or a finished run; unset: the task's own; with --init random also "
        "resnet50, gpt2, or a size of one's own, as gpt2:n_layer=4,n_embd=128,n_head=4,n_positions=256, over bytes",
    )
    init: str = flag("pretrained", "pretrained, or random: the same architecture from scratch", choices=("pretrained", "random"))
    reinit: int = flag(
        0,
        "stages from the top, and the pooler, that start from new random weights instead of the pretrained ones",
        least=0,
    )
    method: str = flag("full", "what trains: full, probe, lora:rank=4, ..., joined by +; help lists them")
    epochs: int | None = flag(
        None,
        "passes over the rows; unset: the method's own, more for few rows; 0: score untrained",
        least=0,
        most=1_000_000,
        several=True,
    )
    batch_size: int = flag(32, "rows per batch", least=1, most=1_000_000, several=True)
    accumulate: int = flag(1, "batches per step: their gradient is that of one batch of all their rows", least=1, most=1_000_000)
    optimizer: str | None = flag(None, "adamw, sgd, with options as in sgd:momentum=0.9,nesterov=True; unset: the task's own")
    lr: float | None = flag(
        None,
        "peak learning rate, or several joined by commas, of which the best is kept; unset: the method's own",
        above=0,
        most=1e6,
        several=True,
    )
    head_lr: float | None = flag(None, "peak learning rate of the head; unset: as --lr", above=0, most=1e6)
    layer_decay: float = flag(1.0, "factor on the learning rate from a stage to the one below; ULMFiT: 0.385", above=0, most=1)
    weight_decay: float | None = flag(
        None,
        "decay of the weights; biases and normalisation layers have none; unset: 0.01, for images 1e-4",
        least=0,
        most=1e6,
    )
    decay_rule: str = flag(
        "type",
        "which parameters decay; type: weights, by the type of their module; hf: as in transformers' Trainer",
        choices=("type", "hf"),
    )
    schedule: str = flag("linear", "constant, linear, cosine, polynomial:power=2,end=0, inverse-sqrt, slanted-triangular")
    warmup: float = flag(0.1, "steps in which the learning rate rises from 0: below 1 a share of all, else a number", least=0)
    penalty: str | None = flag(
        None,
        "against forgetting, joined by +: l2sp:alpha=0.1, mixout:p=0.7, distill:strength=1, ewc:strength=1000 (with --source-data)",
    )
    source_data: str | None = flag(
        None, "file or directory of the task that --model, a run, was trained on: how much of it is forgotten is measured"
    )
    rehearse: str | None = flag(None, "file of that task: its rows are mixed into every step and go through the head of --model")
    rehearse_share: float = flag(0.1, "share of the rows of a step that --rehearse gives", above=0, below=1)
    target_data: str | None = flag(
        None, "rows of another domain, whose labels are not read: training makes its features alike for both (DANN)"
    )
    target_strength: float = flag(1.0, "largest factor on the reversed gradient of --target-data", least=0)
    clip: float = flag(1.0, "largest norm of the gradient of all parameters together; a longer one is scaled down", above=0)
    cache: str = flag(
        "auto",
        "output of the stages below all that train, kept in memory, on disk, or off; auto: where it fits",
        choices=("auto", "memory", "disk", "off"),
    )
    unfreeze: str | None = flag(None, "stages that train: gradual (one more each epoch), chain, all-at:n=1; gradual:every=9: steps")
    average: str | None = flag(
        None, "weights that are scored and saved: ema:decay=0.99, a moving average; last:epochs=3, the mean over the last epochs"
    )
    monitor: str | None = flag(None, "metric that chooses the epoch to keep; unset: the task's first metric")
    patience: int | None = flag(None, "stop after so many epochs without a better --monitor; unset: never stop early", least=1)
    checkpoint_activations: bool = flag(False, "compute activations again in the backward pass: less memory, more time")
    on_nonfinite: str = flag(
        "stop",
        "an update whose loss or gradient is infinite or NaN is never made; stop: the run ends, skip: it is counted",
        choices=("stop", "skip"),
    )
    precision: str = flag(
        "auto",
        "float32, tf32 (of CUDA), bfloat16, float16; auto: bfloat16 where products of the model's shapes are faster in it",
        choices=("auto", "float32", "tf32", "bfloat16", "float16"),
    )
    compile: bool = flag(False, "compile the stages that train with torch.compile: for long runs on a GPU")
    seed: int = flag(42, "seed of the head's initial weights, the order of the rows and dropout", least=0, below=2**62)
    seeds: int = flag(1, "runs with --seed and the seeds after it, in OUT/seed-S; prints mean and deviation", least=1)
    plan: bool = flag(False, "show stages, learning rates, steps, estimates of time and memory; then stop")
    by: str | None = flag(None, "column: the figures of the last split also for each of its values; the embedded sample: kind")
    quiet: bool = flag(False, "print no tables of the model, the settings and the labels, and no rows with the largest loss")
    verbose: bool = flag(False, "print all settings, also those that are at their defaults")
    device: str | None = flag(None, "cpu, cuda, ...; unset: cuda where there is one")
    threads: int | None = flag(None, "CPU threads; unset: OMP_NUM_THREADS, else one for each core", least=1, below=1025)
    out: str | None = flag(None, "directory of the run; unset: runs/DATA-MODEL-METHOD")
    save_minutes: float = flag(
        10.0, "minutes from one checkpoint to the next, 0: after every step; --resume RUN continues from the last", least=0
    )
    keep: int | None = flag(
        None,
        "checkpoints to keep when the run has finished, so that --epochs can be raised; unset: one, deleted at the end",
        least=1,
    )


# Flags of gradient steps, with which an exact solver has nothing to do
GRADIENT = (
    *("epochs", "accumulate", "optimizer", "lr", "head_lr", "layer_decay", "weight_decay", "decay_rule", "schedule", "warmup"),
    *("penalty", "rehearse", "target_data", "average", "clip", "label_smoothing", "mixup", "cutmix", "patience"),
    *("class_weights", "sampler", "unfreeze", "on_nonfinite", "save_minutes"),
)
# Those that have no effect either where nothing is trained
TRAINING = ("compile", "checkpoint_activations", "augment", "paraphrases")
READING = {f.name for kind in LAYOUTS for f in fields(kind)}
GRID = [f.name for f in fields(Options) if f.metadata["several"]]


def options_of(task: str) -> type:
    """The flags of train.py for a task: the shared ones and its own."""
    own = look_up(FLAGS, task, "--task")
    return make_dataclass("TaskOptions", [], bases=(own, Options), frozen=True)


def flags_of_other_tasks(task: str) -> dict[str, str]:
    """Flag -> to which tasks it belongs, of the flags that this task does not have."""
    own = {f.name for f in fields(options_of(task))}
    strange: dict[str, list[str]] = {}
    for name in FLAGS:
        for f in fields(look_up(FLAGS, name, "--task")):
            if f.name not in own:
                strange.setdefault(f.name, []).append(name)
    return {spelled(flag): f"belongs to {', '.join(names)}, and the task is {task}" for flag, names in strange.items()}


def layout_of(options, kind: type[Layout]) -> Layout:
    """The part of a run's flags that says how files are read."""
    return kind(**{f.name: getattr(options, f.name) for f in fields(kind)})


def is_set(options, name: str) -> bool:
    """Whether the options have this flag, and with another value than its default."""
    return hasattr(options, name) and getattr(options, name) != getattr(type(options), name)


def check(options) -> None:
    """Raises UserError for values that no run could use, and for flags that exclude each other, before anything is loaded."""
    check_ranges(options)
    if options.warmup >= 1 and not float(options.warmup).is_integer():
        raise UserError(f"--warmup {options.warmup:g}: expected a share of the steps below 1, or a whole number of steps")
    if options.schedule.startswith("slanted-triangular") and is_set(options, "warmup"):
        raise UserError(f"--warmup {options.warmup:g}: slanted-triangular has its own rise; write slanted-triangular:cut_frac=0.2")
    several = [name for name in GRID if isinstance(getattr(options, name), tuple)]
    for name in several:
        if len({*getattr(options, name)}) < len(getattr(options, name)):
            raise UserError(f"{typed(name, getattr(options, name))}: a value stands there twice")
    if several and (options.seeds > 1 or options.plan):
        raise UserError(f"{spelled(several[0])} with several values: give one with {'--seeds' if options.seeds > 1 else '--plan'}")
    if several and options.valid == "none":
        raise UserError(f"{spelled(several[0])} with several values and --valid none: nothing to choose the best by")
    if options.epochs == 0 and (idle := [spelled(name) for name in (*GRADIENT[1:], *TRAINING) if is_set(options, name)]):
        print(f"note: --epochs 0: nothing is trained, so these have no effect: {', '.join(idle)}", file=sys.stderr)
    if options.compile and options.checkpoint_activations:
        raise UserError("--compile with --checkpoint-activations: a compiled stage keeps its activations; give one of them")
    if options.verbose and options.quiet:
        raise UserError("--verbose with --quiet: one prints all settings, the other none; give one of them")
    if options.reinit and options.init == "random":
        raise UserError(f"--reinit {options.reinit} with --init random: all weights are new already")
    if options.seeds > 1 and options.train is not None and options.valid == "none" and options.test is None:
        raise UserError("--seeds with --valid none and without --test: there would be nothing to compare")
    if getattr(options, "solver", "gradient") == "lbfgs":
        check_lbfgs(options)
    elif is_set(options, "l2"):
        raise UserError(f"--l2 {options.l2}: it is the penalty of --solver lbfgs; add that flag")
    if is_set(options, "class_weights") and is_set(options, "sampler"):
        raise UserError("--class-weights balanced with --sampler balanced: a rare class would count twice over; give one of them")
    if options.by is not None and options.valid == "none" and options.test is None:
        raise UserError(f"--by {options.by} with --valid none and without --test: no split is scored")
    if options.patience is not None and options.valid == "none":
        raise UserError("--patience with --valid none: without validation rows no epoch is better than another")
    if options.rehearse is None and is_set(options, "rehearse_share"):
        raise UserError(f"--rehearse-share {options.rehearse_share:g} without --rehearse: there is nothing to rehearse")
    if options.target_data is None and is_set(options, "target_strength"):
        raise UserError(f"--target-strength {options.target_strength:g} without --target-data: there is no other domain")
    if options.patience is not None and (options.average or "").startswith("last"):
        raise UserError(f"--average {options.average} with --patience: which epochs are the last is not known beforehand")
    described = sorted(name for name in {*READING, "valid", "test", "split_seed"} if is_set(options, name))
    if options.train is None and described:
        raise UserError(f"{', '.join(map(spelled, described))} without --train: the embedded sample has its own layout and "
                        "split; give --train FILE")  # fmt: skip
    files = (options.train, options.valid)
    if all(path and os.path.exists(path) for path in files) and os.path.samefile(*files):
        print(f"note: --valid {options.valid} is the training file: its figures say nothing of other rows", file=sys.stderr)
    if options.test_rows is not None and options.test is None:
        raise UserError("--test-rows without --test: there is nothing to draw from")
    drawn = options.train_rows is not None or options.test_rows is not None
    if options.valid is not None and is_set(options, "split_seed") and not drawn:
        raise UserError("--split-seed with --valid: nothing is split off the training file")
    if options.valid == "none" and options.monitor is not None:
        raise UserError("--monitor with --valid none: without validation rows there is nothing to choose by")


def check_lbfgs(options) -> None:
    if options.method != "probe":
        raise UserError(f"--solver lbfgs with --method {options.method}: it solves a linear head alone; add --method probe")
    if options.valid == "none" and options.l2 is None:
        raise UserError("--solver lbfgs with --valid none: nothing to choose the penalty by; give it with --l2")
    if getattr(options, "paraphrases", None) or (getattr(options, "augment", None) and not hasattr(options, "views")):
        raise UserError("--solver lbfgs with --augment or --paraphrases: it sees the texts once, and these are new in every epoch")
    if getattr(options, "augment", None) not in (None, "none") and options.views is None:
        raise UserError(f"--solver lbfgs with --augment {options.augment}: it sees the rows once; say how often with --views")
    if options.l2 is not None and options.monitor is not None:
        raise UserError("--monitor with --l2: the penalty is given, so there is nothing to choose")
    if options.seeds > 1 and getattr(options, "views", None) is None:
        raise UserError("--seeds with --solver lbfgs: the solution is the same for every seed")
    if options.plan:
        raise UserError("--plan with --solver lbfgs: a plan is of gradient steps")
    idle = [name for name in GRADIENT if is_set(options, name)]
    if idle:
        raise UserError(f"{spelled(idle[0])} with --solver lbfgs: it takes no gradient steps")
