"""From the flags of train.py to what the training loop needs: defaults, the model, the optimizer, the schedule, the penalties."""

import math
import sys
from collections import Counter
from collections.abc import Callable, Set
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from minift import cache
from minift.adapting import adapt, default_epochs, default_lr, lr_factors, names_of, parse_methods
from minift.checkpointing import checkpoint_activations
from minift.cli import spelled as command_of
from minift.compiling import compile_stages
from minift.data.batching import Data
from minift.data.examples import Examples
from minift.distributed import from_first
from minift.errors import UserError, look_up
from minift.finetuned import choose_device
from minift.methods.surgery import delta, lengthened, plain_name, terms
from minift.models import MODELS
from minift.optim import OPTIMIZERS
from minift.optim.attention import cheap_attention
from minift.optim.averaging import AVERAGING, Average, Last
from minift.optim.dropout import cheap_dropout
from minift.optim.groups import Group, make_groups
from minift.optim.measure import choose
from minift.optim.precision import by_name
from minift.optim.rows import by_rows
from minift.optim.schedules import SCHEDULES, check_factors, warmup_steps
from minift.optim.unfreezing import UNFREEZING
from minift.options import layout_of
from minift.penalties import PENALTIES
from minift.penalties.dann import DANN
from minift.penalties.penalty import Anchored, Penalty
from minift.penalties.rehearsal import Rehearsal
from minift.pretrained import Checkpoint, check_path, check_shapes, find, read, untrained
from minift.runs import choose_directory
from minift.source import Source, read_source
from minift.specs import parse
from minift.tables import counted
from minift.tasks import TASKS
from minift.tasks.task import Model
from minift.training import Training

# Few rows need more epochs: three epochs of 500 rows leave BERT half trained (Mosbach et al. 2021, arXiv:2006.04884;
# Zhang et al. 2021, arXiv:2006.05987). Without --epochs a run has at least this many steps.
LEAST_STEPS = 150


@dataclass
class Start:
    """The task, the checkpoint and the device with which a run starts."""

    task: type  # the class of the task
    checkpoint: Checkpoint
    place: Path | None  # the directory of the checkpoint; None: an architecture by name
    device: torch.device
    random: bool = False  # --init random: the weights of the checkpoint are not used


@dataclass
class Setup(Training):
    """What the loop needs, and what is printed and saved about it."""

    steps: int = 0  # of the whole run
    new: tuple[str, ...] = ()  # parts with newly initialised weights
    saved: list[str] | None = None  # names of the body's tensors that the run saves; None: all, as they all train
    frozen: int = 0  # modules of `body.walk()` below all that trains
    source: Source | None = None  # the model and the head that the run starts from, where a penalty or --source-data needs them
    seconds: dict[str, float] = field(default_factory=dict)  # measured for --precision auto: dtype -> of the products of a step


class Terms(Penalty):
    """The terms that the wrappers of a method add to the loss."""

    def term(self, model: nn.Module, progress=None) -> Tensor:
        return terms(model.body)


def start(options) -> Start:
    """Look up the task and the device, read the checkpoint."""
    task = look_up(TASKS, options.task, "--task")
    parse_methods(options.method, typed=True)  # a mistake in it is reported before anything is read
    if options.out is not None:
        check_path(Path(options.out))
    device = choose_device(options.device)
    name = task.MODEL if options.model is None else options.model
    checkpoint = untrained(name) if options.init == "random" else None
    place = None if checkpoint else find(name)
    checkpoint = checkpoint or read(place)
    model = look_up(MODELS, checkpoint.architecture, "architecture")
    given = {name: getattr(options, name, None) for name in model.Config.DROPOUT}
    changed = {field: value for name, value in given.items() if value is not None for field in model.Config.DROPOUT[name]}
    checkpoint = replace(checkpoint, config=checkpoint.config | changed)
    try:
        model.check_pool(getattr(options, "pool", None))
    except ValueError as error:
        raise UserError(f"--{error}; {name} is one") from None
    if getattr(options, "solver", None) == "lbfgs" and not model.Config.head_bias:
        raise UserError(f"--solver lbfgs: it finds a weight and a bias, and the head on {name} has no bias")
    if (size := getattr(options, "image_size", None)) is not None and checkpoint.preprocessing is not None:
        checkpoint = at_size(checkpoint, size)
    if checkpoint.grafts:
        raise UserError(
            f"{name}: a run of {checkpoint.method}, whose layers are no longer plain; merge them first, where that is possible: "
            f"{command_of('convert')} {name} --to minift --out DIR"
        )
    return Start(task, checkpoint, place, device, options.init == "random")


def at_size(checkpoint: Checkpoint, size: int) -> Checkpoint:
    """The checkpoint for images of another size."""
    from minift.data.loading import Preprocessing

    inputs = Preprocessing.of(checkpoint.preprocessing).sized(size)
    config = {"image_size": size} if "image_size" in checkpoint.config else {}
    return replace(checkpoint, preprocessing=asdict(inputs), config=checkpoint.config | config)


def resolve(given, start: Start, directory: Path | None = None) -> tuple[object, dict[str, str]]:
    """(the options with a value for every flag but --epochs, flag -> where the value of an unset flag comes from)

    directory: of a run that is resumed.
    """
    task, method = start.task, names_of(given.method)
    model = task.MODEL if given.model is None else given.model
    optimizer = task.OPTIMIZER if given.optimizer is None else given.optimizer
    decay = (task.WEIGHT_DECAY, f"default of {given.task}")
    for one in penalties_of(given):
        if one.func.REPLACES_DECAY:
            if given.weight_decay:
                raise UserError(f"--weight-decay {given.weight_decay:g} with --penalty {given.penalty}: it pulls to 0 what the "
                                "penalty keeps near the pretrained weights; leave it out")  # fmt: skip
            decay = (0.0, "set by --penalty")
        if one.keywords.get("authors") and any(getattr(given, name, None) for name in ("dropout", "attention_dropout")):
            raise UserError(f"--dropout or --attention-dropout with --penalty {given.penalty}: it stands in their place")
    out = directory or from_first(lambda: choose_directory(given.out, Path(given.train or "reviews"), model, given.method))
    lr = default_lr(given.method, optimizer.partition(":")[0], start.checkpoint.width)
    defaults = task.defaults(method, start.checkpoint) | {
        "model": (model, f"default of {given.task}"),
        "optimizer": (optimizer, f"default of {given.task}"),
        "lr": (lr, f"default of {method}"),
        "weight_decay": decay,
        "monitor": (next(iter(task.METRICS)), f"default of {given.task}"),
        "device": (str(start.device), "detected"),
        "out": (str(out), "next free name"),
    }
    if given.train is None:
        defaults["by"] = ("kind", "default of the sample")
    defaults = {name: default for name, default in defaults.items() if getattr(given, name) is None}
    options = replace(given, **{name: value for name, (value, _) in defaults.items()})
    known = ("loss", *task.METRICS)
    if options.monitor not in known:
        raise UserError(f"--monitor {options.monitor}: known are {', '.join(known)}")
    if options.precision == "float16" and start.device.type == "cpu":
        print("note: float16 on a CPU is slow; bfloat16 or float32 is faster", file=sys.stderr)
    return options, {name: why for name, (_, why) in defaults.items()}


def penalties_of(options) -> list[Callable[[Anchored], Penalty]]:
    """The penalties of --penalty, options bound."""
    specs = [] if options.penalty is None else options.penalty.split("+")
    penalties = [parse(spec, PENALTIES, "--penalty") for spec in specs]
    for kind, times in Counter(one.func for one in penalties).items():
        if times > 1 and kind.ONCE:
            raise UserError(f"--penalty {options.penalty}: {kind.__name__.lower()} is given twice; give it once")
    return penalties


def prepare(options, task, parts: dict[str, Examples], checkpoint: Checkpoint) -> dict[str, Data]:
    """The splits as `Data`; the training rows with what is for training alone, such as augmentation."""
    workers = getattr(options, "workers", None) or 0
    return {
        split: task.prepare(examples, checkpoint, options if split == "train" else None, workers)
        for split, examples in parts.items()
    }


def choose_epochs(options, train: Data) -> tuple[object, dict[str, str], int]:
    """(the options with --epochs, where its value comes from if it was unset, steps per epoch)"""
    steps = math.ceil(len(train.order(options.batch_size, options.seed, 0)) / options.accumulate)
    if getattr(options, "solver", "gradient") == "lbfgs":
        return replace(options, epochs=0), {"epochs": "not used by lbfgs"}, steps
    if options.epochs is not None:
        return options, {}, steps
    own = default_epochs(options.method)
    epochs = max(own, math.ceil(LEAST_STEPS / steps))
    why = f"default of {names_of(options.method)}" if epochs == own else f"few rows: at least {LEAST_STEPS} steps"
    return replace(options, epochs=epochs), {"epochs": why}, steps


def build(options, given, start: Start, task, train: Data, steps_per_epoch: int) -> Setup:
    """Freeze everything, let the method unfreeze or wrap; then the head, the groups, the optimizer and the schedule.

    train: --precision auto is measured with a unit of it.
    """
    source, target = read_source(options, start, penalties_of(options)), read_target(options, task, start.checkpoint)
    torch.manual_seed(options.seed)
    checkpoint = start.checkpoint
    body = checkpoint.body(task.pool) if options.init == "pretrained" else checkpoint.random_body(task.pool)
    pretrained = body.state_dict().keys()
    adapt(body, options.method)
    trained = delta(body)
    check_positions(options, body)
    set_momentum(options, body, steps_per_epoch)
    new_pooler = task.pool == "cls" and checkpoint.own_pool is None
    if new_pooler and not {name for name in pretrained if name.startswith("pooler.")} <= trained.keys():
        raise UserError(f"{options.model} has no pooler, and {options.method} would not train a new one; add --pool mean")
    again = reinitialise(options, body, trained)
    head = task.head(body)
    known = task.pretrained_head(checkpoint) if options.init == "pretrained" else None
    if known is not None:
        check_shapes(start.place / "model.safetensors", known, head.state_dict(), options.task)
        head.load_state_dict(known)
    model = Model(body, head).to(start.device, memory_format=torch.channels_last)  # in which convolutions are fast
    groups = make_groups(
        model,
        options.lr,
        options.weight_decay,
        options.head_lr,
        options.layer_decay,
        options.decay_rule,
        lr_factors=lr_factors(options.method),
        plain_name=plain_name,
    )
    if not options.compile:  # torch compiles no gradients of some rows, and draws the bits of a compiled dropout by itself
        take_fast_paths(model)
    stages = list(dict.fromkeys(group.stage for group in groups))
    adversary = None if target is None else make_adversary(options, target, model, groups, options.epochs * steps_per_epoch)
    if stages == ["head"]:
        check_head_alone(options, given)
    try:
        optimizer = parse(options.optimizer, OPTIMIZERS, "--optimizer")(groups)
    except ValueError as error:
        raise UserError(f"--optimizer {options.optimizer}: {error}") from None
    steps = options.epochs * steps_per_epoch
    try:
        inputs = inputs_like(train, options.batch_size, start.device)
        choice = from_first(lambda: choose(options.precision, start.device, body, inputs))
    except ValueError as error:
        raise UserError(f"--precision {options.precision}: {error}") from None
    chosen = options.precision if options.precision != "auto" else str(choice.dtype).removeprefix("torch.")
    precision = by_name(chosen, model, compiled=options.compile)
    check_lone(options, body, train, start.device)
    frozen = cache.depth(body)
    nothing_trains = frozen == len(list(body.walk()))
    if options.cache != "auto" and not frozen:
        raise UserError(f"--cache {options.cache} with --method {options.method}: the lowest stage trains, so nothing can be kept")
    if options.checkpoint_activations:
        if nothing_trains:
            raise UserError(f"--checkpoint-activations with --method {options.method}: no stage trains, so none keeps activations")
        checkpoint_activations(body, precision)
    if options.compile:
        if nothing_trains:
            raise UserError(f"--compile with --method {options.method}: no stage trains, so none is compiled")
        with precision:
            compile_stages(body, inputs)
    has_base, whole = options.init == "pretrained", pretrained <= trained.keys()
    new = ("everything",) if not has_base else (*["head"] * (known is None), *["pooler"] * new_pooler, *again)
    fresh = {name for part in new for name in body.stages.get(part, (part,))}
    return Setup(
        model,
        task,
        optimizer,
        make_schedule(options, steps),
        precision,
        make_unfreezing(options, stages, steps, steps_per_epoch),
        (
            *make_penalties(options, model, source, groups, pretrained, fresh),
            *([adversary] if adversary else []),
            *([Terms()] if terms(body) is not None else []),
        ),
        make_average(options, model),
        steps=steps,
        seconds=choice.seconds,
        new=new,
        saved=list(trained) if has_base and not whole else None,
        frozen=frozen,
        source=source,
    )


def take_fast_paths(model: Model) -> None:
    """On a CPU, let what has a faster equal be computed by that."""
    by_rows(model)
    cheap_dropout(model)
    cheap_attention(model)


def reinitialise(options, body: nn.Module, trained: dict[str, Tensor]) -> list[str]:
    """Give the highest stages, and the pooler, new weights (Zhang et al. 2021, arXiv:2006.05987, section 5). Returns the stages."""
    stages = list(body.stages)[-options.reinit :] if options.reinit else []
    if options.reinit > len(body.stages):
        raise UserError(f"--reinit {options.reinit}: the model has {len(body.stages)} stages")
    modules = {name: body.get_submodule(name) for stage in stages for name in body.stages[stage]}
    if not {f"{name}.{leaf}" for name, module in modules.items() for leaf, _ in module.named_parameters()} <= trained.keys():
        raise UserError(f"--reinit {options.reinit}: --method {options.method} would not train all of the new weights")
    for module in modules.values():
        module.apply(body.initialise)
    return stages


def make_penalties(
    options, model: nn.Module, source: Source | None, groups: list[Group], plain: Set[str], new: Set[str]
) -> list[Penalty]:
    """--rehearse and --penalty. plain: names of the body's parameters before the method. new: modules with new weights."""
    rehearsal = []
    if options.rehearse:
        rows, data = options.batch_size * options.accumulate, source.rows(options.rehearse)
        try:
            rehearsal = [Rehearsal(model, source, data, options.rehearse_share, rows, options.seed)]
        except ValueError as error:
            raise UserError(f"--rehearse {options.rehearse} with --method {options.method}: {error}") from None
    if options.penalty is None:
        return rehearsal
    anchored = Anchored([], [], model=model, source=source)
    for group in groups:
        for name, theta in zip(group.names, group.parameters, strict=True):
            if any(name.startswith(f"{module}.") for module in new):
                anchored.new.append(theta)
            elif "everything" not in new and (name in plain or name.startswith("head.")):
                anchored.pretrained.append((theta, theta.detach().clone()))
                anchored.names.append(name)
    try:
        return [*(penalty(anchored) for penalty in penalties_of(options)), *rehearsal]
    except ValueError as error:
        raise UserError(f"--penalty {options.penalty}: {error}") from None


def read_target(options, task, checkpoint: Checkpoint) -> Data | None:
    """The rows of --target-data, without labels."""
    if options.target_data is None:
        return None
    if task.pool is None:
        raise UserError(f"--target-data {options.target_data}: the head of {options.task} reads no pooled features to make alike")
    rows = task.read(options.target_data, layout_of(options, task.LAYOUT), labelled=False)
    return task.prepare(rows, checkpoint, workers=getattr(options, "workers", None) or 0)


def make_adversary(options, target: Data, model: nn.Module, groups: list[Group], steps: int) -> DANN:
    """The domain classifier of --target-data. Its head is added to `groups` and trains with the head's learning rate."""
    if not any(p.requires_grad for p in model.body.parameters()):
        raise UserError(f"--target-data {options.target_data} with --method {options.method}: nothing of the body trains, so its "
                        "features cannot be made alike")  # fmt: skip
    rows, strength = options.batch_size * options.accumulate, options.target_strength
    adversary = DANN(target, model.body.config.width, rows, steps, options.seed, strength)
    adversary.head.to(next(model.parameters()).device)
    for name, parameter in adversary.head.named_parameters():
        decay = options.weight_decay if parameter.ndim > 1 else 0.0
        groups.append(Group("head", groups[-1].lr, decay, [f"domain.{name}"], [parameter]))
    return adversary


def make_average(options, model: nn.Module) -> Average | None:
    if options.average is None:
        return None
    tensors = delta(model.body) | {f"head.{name}": tensor for name, tensor in model.head.state_dict().items()}
    try:
        average = parse(options.average, AVERAGING, "--average")(tensors)
    except ValueError as error:
        raise UserError(f"--average {options.average}: {error}") from None
    if isinstance(average, Last) and 0 < options.epochs < average.epochs:
        run = counted(options.epochs, "epoch")
        print(f"note: --average {options.average}: the run has {run}, so the mean is over {run}\n")
    return average


def with_precision(options, training: Setup) -> tuple[object, dict[str, str]]:
    """(the options with the chosen precision, where it comes from if it was auto)"""
    if options.precision != "auto":
        return options, {}
    name = str(training.precision.dtype).removeprefix("torch.")
    return replace(options, precision=name), {"precision": "measured" if training.seconds else "chosen"}


def inputs_like(data: Data, rows: int, device: torch.device) -> tuple[Tensor | None, ...]:
    """The inputs of a batch of `rows` copies of the unit of median length."""
    middle = np.argsort(data.lengths, kind="stable")[len(data) // 2]
    batch = next(iter(data.batches([np.array([middle])], device)))
    return tuple(x if x is None else x.expand(rows, *x.shape[1:]) for x in batch.inputs)


def check_lone(options, body: nn.Module, train: Data, device: torch.device) -> None:
    """Raises UserError where a BatchNorm that trains would see a batch of one unit with a map of 1 x 1, which has no variance."""
    norms = [m for m in body.modules() if isinstance(m, _BatchNorm) and m.affine and m.weight.requires_grad]
    if not norms or min(map(len, train.order(options.batch_size, options.seed, 0))) > 1:
        return
    values = []
    hooks = [m.register_forward_pre_hook(lambda m, inputs: values.append(inputs[0].numel() // m.num_features)) for m in norms]
    training = body.training
    with torch.no_grad():
        body.eval()(*inputs_like(train, 1, device))
    body.train(training)
    for hook in hooks:
        hook.remove()
    if min(values) == 1:
        one = f"--batch-size {options.batch_size}" if options.batch_size == 1 else "one training row"
        raise UserError(f"{one}: BatchNorm takes its statistics from a batch, and the smallest maps of these images are 1 x 1, "
                        "so a batch must have two rows or more")  # fmt: skip


def set_momentum(options, body: nn.Module, steps_per_epoch: int) -> None:
    """Set the momentum of the BatchNorms that train. kornblith: statistics keep max(1 - 10 / steps, 0.9) of their old values
    (Kornblith et al. 2019, arXiv:1805.08974, appendix A).
    """
    given = getattr(options, "bn_momentum", None)
    if given is None:
        return
    try:
        momentum = min(0.1, 10 / steps_per_epoch) if given == "kornblith" else float(given)
    except ValueError:
        momentum = math.nan
    if not 0 <= momentum <= 1:
        raise UserError(f"--bn-momentum {given}: expected a number from 0 to 1, or kornblith")
    norms = [m for m in body.modules() if isinstance(m, _BatchNorm) and m.affine and m.weight.requires_grad]
    moving = norms if body.statistics_move else []
    if not moving:
        raise UserError(f"--bn-momentum {given} with --method {options.method}: no statistics of a BatchNorm move")
    for module in moving:
        module.momentum = momentum


def check_positions(options, body: nn.Module) -> None:
    """Raises UserError where virtual tokens before the text leave too few positions for it."""
    if taken := lengthened(body):
        left = body.config.max_length - taken
        if options.max_length > left:
            raise UserError(
                f"--max-length {options.max_length}: {options.method} takes {taken} of the model's positions, give {left} or less"
            )


def check_head_alone(options, given) -> None:
    """Raises UserError for flags without effect where only the head trains."""
    if options.layer_decay != 1:
        raise UserError(
            f"--layer-decay {options.layer_decay}: {options.method} trains the head alone, so there are no stages to step through"
        )
    if given.lr is not None and given.head_lr is not None:
        raise UserError(f"--lr with --head-lr: {options.method} trains the head alone, so one learning rate is enough")
    if options.unfreeze is not None:
        raise UserError(f"--unfreeze {options.unfreeze}: {options.method} trains the head alone, so there is nothing to switch")


def make_schedule(options, steps: int) -> Callable[[int], float]:
    """step -> factor on the learning rates, for a run of `steps` steps."""
    schedule = parse(options.schedule, SCHEDULES, "--schedule")
    try:
        warmup = warmup_steps(options.warmup, steps)
    except ValueError as error:
        raise UserError(f"--warmup {options.warmup:g}: {error}") from None
    schedule = partial(schedule, T=steps, W=warmup)
    try:
        schedule(0)
        check_factors(schedule, steps)
    except ValueError as error:
        raise UserError(f"--schedule {options.schedule}: {error}") from None
    return schedule


def make_unfreezing(options, stages: list[str], steps: int, steps_per_epoch: int) -> Callable | None:
    """(stages, step, epoch) -> the stages that train. Prints a note of stages that are never reached in `steps` steps."""
    if options.unfreeze is None:
        return None
    unfreezing = parse(options.unfreeze, UNFREEZING, "--unfreeze")
    try:
        reached = {stage for step in range(steps) for stage in unfreezing(stages, step, step // steps_per_epoch)}
    except ValueError as error:
        raise UserError(f"--unfreeze {options.unfreeze}: {error}") from None
    if never := [stage for stage in stages if stage not in reached]:
        print(f"note: --unfreeze {options.unfreeze}: {', '.join(never)} never train{'s' * (len(never) == 1)} in {steps} steps\n")
    return unfreezing
