"""Parameter groups: what shares a learning rate and a weight decay. Clipping of their gradients."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minift.optim.rows import numbers

NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def no_decay_by_type(name: str, module: nn.Module) -> bool:
    """Biases, everything in a normalisation layer, and learned factors, one for each channel: what has one axis, or is a norm's.

    Decay would pull to 0 factors that start at 1. The type of the module decides, not its name.
    """
    return module.get_parameter(name.rpartition(".")[2]).ndim <= 1 or isinstance(module, NORMS)


def no_decay_by_huggingface(name: str, module: nn.Module) -> bool:
    """What transformers' Trainer does not decay: names with `bias` anywhere in them, and all of a LayerNorm or an RMSNorm.

    The Trainer leaves out `layernorm`, `rmsnorm` and `norm` by name as well. Read by type, as names differ here, these are the
    norms of transformers; a BatchNorm is called `normalization` or `bn` there, so that its weight decays.
    Proved by tests/reference/test_groups.py, on BERT and ResNet.
    """
    return "bias" in name.lower() or isinstance(module, (nn.LayerNorm, nn.RMSNorm))


# Rule -> function of a parameter's dotted name and the module that holds it: True where it gets no weight decay.
DECAY_RULES = {"type": no_decay_by_type, "hf": no_decay_by_huggingface}


@dataclass
class Group:
    stage: str  # a stage of the body, or "head"
    lr: float  # base learning rate; the schedule multiplies it, it does not change it
    weight_decay: float
    names: list[str]
    parameters: list[Tensor]


def unchanged(name: str) -> str:
    return name


def make_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    head_lr: float | None = None,
    layer_decay: float = 1.0,
    decay_rule: str = "type",
    lr_factors: Mapping[str, float] | None = None,
    plain_name: Callable[[str], str] = unchanged,
) -> list[Group]:
    """Every parameter of `model.body` and `model.head` that requires a gradient, in exactly one group.

    Groups of a stage of the body and of the head: parameters with weight decay and without, by learning rate.

        learning rate in stage i = lr layer_decay^(S - i) f,   i = 0 the lowest of S stages;   in the head: head_lr, else lr

    layer_decay: 0 < d <= 1, 1 for the same learning rate everywhere (discriminative fine-tuning, Howard & Ruder 2018,
    arXiv:1801.06146, section 3.2, whose factor 2.6 from layer to layer is d = 0.385). decay_rule: a key of DECAY_RULES.
    lr_factors: last segment of the names of parameters in the body -> f, 1 for all others; {"B": 16.0} is LoRA+ (Hayou et al.
    2024, arXiv:2402.12354). plain_name: gives a parameter of the body its name in the groups and in the optimiser's state;
    methods.surgery.plain_name leaves out what wrappers add.
    Raises ValueError for an unknown decay_rule, and for a factor that is not above 0 and finite, or that no parameter takes.

    Proved by tests/optim/test_groups.py; learning rates and partition are those of timm's param_groups_layer_decay, under `hf` the
    partition is that of transformers' Trainer, with lr_factors the learning rates of A and B are those of peft's
    create_loraplus_optimizer (tests/reference/test_groups.py). That one raises biases and norms too, here their names would say.
    """
    if decay_rule not in DECAY_RULES:
        raise ValueError(f"decay rule {decay_rule!r}: the known ones are {', '.join(DECAY_RULES)}")
    no_decay, factors, taken = DECAY_RULES[decay_rule], lr_factors or {}, set()
    for leaf, factor in factors.items():
        if not (math.isfinite(factor) and factor > 0):
            raise ValueError(f"factor {factor} on the learning rate of {leaf}: a number above 0 is expected")
    stages = list(model.body.stages)
    rates = {stage: lr * layer_decay ** (len(stages) - i) for i, stage in enumerate(stages)}
    rates["head"] = lr if head_lr is None else head_lr
    groups = {}
    prefixes = [(name + ".", stage) for stage, names in model.body.stages.items() for name in names]
    for part in ("body", "head"):
        for path, module in getattr(model, part).named_modules():
            for leaf, parameter in module.named_parameters(recurse=False):
                if not parameter.requires_grad:
                    continue
                name = f"{path}.{leaf}" if path else leaf
                if part == "head":
                    name, stage, factor = f"head.{name}", "head", 1.0
                else:
                    name, factor = plain_name(name), factors.get(leaf, 1.0)
                    stage = next(stage for prefix, stage in prefixes if name.startswith(prefix))
                    taken.add(leaf)
                decay, rate = 0.0 if no_decay(name, module) else weight_decay, rates[stage] * factor
                group = groups.setdefault((stage, rate, decay), Group(stage, rate, decay, [], []))
                group.names.append(name)
                group.parameters.append(parameter)
    if unused := sorted(factors.keys() - taken):
        raise ValueError(f"a factor on the learning rate of {unused[0]}, and no parameter that trains has such a name")
    found = [id(p) for group in groups.values() for p in group.parameters]
    trained = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(found) == sorted(trained), "a trainable parameter is in no group, or in two"
    return list(groups.values())


def switch(model: nn.Module, groups: list[Group], on: list[str]) -> bool:
    """Let the groups of the stages in `on` train and no others; returns whether that changed anything.

    The groups stay as they are: what is off has no gradient, so the optimiser passes it over.
    """
    changed = False
    for group in groups:
        for parameter in group.parameters:
            changed |= parameter.requires_grad != (group.stage in on)
            parameter.requires_grad_(group.stage in on)
    if changed:
        model.train()  # dropout and BatchNorm statistics rest where nothing trains: see methods.surgery.freeze
    return changed


def clip_gradients(parameters: list[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients by min(1, max_norm / (|g| + 1e-6)), |g| their norm taken together; returns |g|, 0 if there are none.

    Where |g| is infinite or NaN, all scaled gradients are worthless: give `norm.isfinite()` to `Optimizer.step`, which then leaves
    the update out. Equal to torch.nn.utils.clip_grad_norm_ (tests/reference/test_optim.py). Pascanu et al. 2013 (arXiv:1211.5063).
    """
    gradients = [numbers(p) for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm = torch.stack(torch._foreach_norm(gradients)).norm()
    torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
