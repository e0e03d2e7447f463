"""Parameter groups: what shares a learning rate and a weight decay. Clipping of their gradients."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def spared_by_type(name: str, module: nn.Module) -> bool:
    """Biases, all of a normalisation layer, and learned factors, one for each channel: what has one axis, or a norm's type.

    Decay would pull to 0 factors that start at 1. A module's type decides, not its name.
    """
    return module.get_parameter(name.rpartition(".")[2]).ndim <= 1 or isinstance(module, NORMS)


def spared_by_huggingface(name: str, module: nn.Module) -> bool:
    """What transformers' Trainer spares: names with `bias` anywhere in them, and all of a LayerNorm or an RMSNorm.

    The Trainer spares `layernorm`, `rmsnorm` and `norm` by name as well. Read by type, as names differ here, these are the norms
    of transformers; a BatchNorm is called `normalization` or `bn` there, so that its weight decays.
    Proved by tests/reference/test_groups.py, on BERT and ResNet.
    """
    return "bias" in name.lower() or isinstance(module, (nn.LayerNorm, nn.RMSNorm))


# Rule -> function of a parameter's dotted name and the module that holds it: True where it gets no weight decay.
DECAY_RULES = {"type": spared_by_type, "hf": spared_by_huggingface}


@dataclass
class Group:
    stage: str  # a stage of the body, or "head"
    lr: float  # base rate; the schedule multiplies it, it does not change it
    weight_decay: float
    names: list[str]
    parameters: list[Tensor]


def make_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    head_lr: float | None = None,
    layer_decay: float = 1.0,
    decay_rule: str = "type",
) -> list[Group]:
    """Every parameter of `model.body` and `model.head` that requires a gradient, in exactly one group.

    Per stage of the body and for the head: parameters with weight decay, and those that the rule spares.

        rate of stage i = lr layer_decay^(S - i),   i = 0 the lowest of S stages; of the head: head_lr, else lr

    layer_decay: 0 < d <= 1, 1 for the same rate everywhere (discriminative fine-tuning, Howard & Ruder 2018, arXiv:1801.06146,
    section 3.2, whose factor 2.6 from layer to layer is d = 0.385). decay_rule: a key of DECAY_RULES.
    Proved by tests/optim/test_groups.py; rates and partition are those of timm's param_groups_layer_decay, and under `hf` the
    partition is that of transformers' Trainer (tests/reference/test_groups.py).
    """
    if decay_rule not in DECAY_RULES:
        raise ValueError(f"decay rule {decay_rule!r}: the known ones are {', '.join(DECAY_RULES)}")
    spared = DECAY_RULES[decay_rule]
    stages = list(model.body.stages)
    rates = {stage: lr * layer_decay ** (len(stages) - i) for i, stage in enumerate(stages)}
    rates["head"] = lr if head_lr is None else head_lr
    groups = {}
    prefixes = [(name + ".", stage) for stage, names in model.body.stages.items() for name in names]
    parts = [("", name, module) for name, module in model.body.named_modules()]
    parts += [("head", name, module) for name, module in model.head.named_modules()]
    for part, path, module in parts:
        for leaf, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            name = ".".join(
                piece for piece in (part, *path.split("."), leaf) if piece not in ("", "base")
            )  # as surgery's plain_name
            stage = part or next(stage for prefix, stage in prefixes if name.startswith(prefix))
            decay = 0.0 if spared(name, module) else weight_decay
            group = groups.setdefault((stage, decay), Group(stage, rates[stage], decay, [], []))
            group.names.append(name)
            group.parameters.append(parameter)
    found = [id(p) for group in groups.values() for p in group.parameters]
    trained = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(found) == sorted(trained), "a trainable parameter is in no group, or in two"
    return list(groups.values())


def switch(model: nn.Module, groups: list[Group], on: list[str]) -> bool:
    """Let the groups of the stages in `on` train and no others; tells whether that changed anything.

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
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm = torch.stack([torch.linalg.vector_norm(g) for g in gradients]).norm()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for g in gradients:
        g.mul_(scale)
    return norm
