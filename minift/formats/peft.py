"""Directories of the peft library, read and written: lora, dora, ia3, prefix or prompt, and the head of a task.

adapter_config.json        what the method is, and of which model
adapter_model.safetensors  its tensors and the head's; where old versions have left adapter_model.bin, that is read
minift.json                what peft has no place for: labels, how the run read its data, name and sha256 of minift's base; peft
                           passes it over

What is written here goes onto transformers' model of the base that the run started from, with the same logits:

    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels))
    model = peft.PeftModel.from_pretrained(model, directory)

Of other tasks it is the class that formats/heads.py names; the head of a regression is folded as there. peft has no place for the
names of labels: of directories of others they are said with --label-names. With the task_type QUESTION_ANS peft (0.21) hands no
token types to the model, so that a BERT cannot tell question and context. Such a directory is written without a task_type, in which
case peft passes on all inputs; one with it is refused.

The names of layers are transformers' own, by the maps in the models' files. Both ways are strict: every tensor is used, and what
a configuration asks for beyond minift's methods is refused by name.
Proved by tests/reference/test_peft.py: peft loads what is written here, and the other way round: logits, float64, 1e-10.

Axes: P virtual tokens, L layers, D width, I inputs, O outputs, C classes.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from minift.adapting import adapt, parse_methods
from minift.errors import UserError
from minift.formats.bases import (
    check_architecture,
    find_base,
    over,
    read_config,
    read_either,
    source_of_base,
    task_name,
    write_beside,
)
from minift.formats.heads import HEADS, folded, named_there
from minift.formats.huggingface import FAMILIES, Family, look_up_module
from minift.methods import dora, ia3, lora, prefix
from minift.methods.prefix import Prefixed
from minift.methods.prompt import Prompt
from minift.methods.surgery import delta, find, lengthened, plain, plain_modules, wrappers
from minift.pretrained import Checkpoint, check_shapes, whole, write_json, write_tensors
from minift.specs import options_of

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PEFT_TYPES = {"lora": "LORA", "dora": "LORA", "ia3": "IA3", "prefix": "PREFIX_TUNING", "prompt": "PROMPT_TUNING"}
VIRTUAL = ("PREFIX_TUNING", "PROMPT_TUNING")

LEAVES = lora.PEFT_NAMES | dora.PEFT_NAMES | ia3.PEFT_NAMES

LAST_COLUMN = "behind a prompt transformers' classifier of a GPT-2 takes the last column for the last token, padding or not"
TIED = "what peft changes of the word vectors does not reach the head that is tied to them, and minift's does"
QA = "qa_outputs"  # the module that is the head of question answering there

# peft's task_types that are read -> the usual task of such a head; without one it may also be QA
TASK_TYPES = {
    "bert": {
        "SEQ_CLS": "text-classification",
        "TOKEN_CLS": "token-classification",
        "QUESTION_ANS": "question-answering",
        None: "text-classification",
    },
    "gpt2": {"SEQ_CLS": "text-classification", "TOKEN_CLS": "token-classification", "CAUSAL_LM": "causal-lm"},
    "resnet": {None: "image-classification"},
}

# ---- what is read of adapter_config.json ----

NAMES = (str, list, type(None))

# peft_type -> field -> (its types in JSON, what peft takes where it is absent)
READ = {
    "LORA": {
        "r": ((int,), 8),
        "lora_alpha": ((int, float), 8),
        "lora_dropout": ((int, float), 0.0),
        "use_rslora": ((bool,), False),
        "use_dora": ((bool,), False),
        "init_lora_weights": ((bool, str), True),
        "target_modules": (NAMES, None),
        "exclude_modules": (NAMES, None),
        "layers_to_transform": ((int, list, type(None)), None),
        "layers_pattern": (NAMES, None),
    },
    "IA3": {"target_modules": (NAMES, None), "exclude_modules": (NAMES, None), "feedforward_modules": (NAMES, None)},
    "PREFIX_TUNING": {"num_virtual_tokens": ((int,), None)},
    "PROMPT_TUNING": {"num_virtual_tokens": ((int,), None)},
}
SILENT = (  # what was done in training, or is of an effect only with a field that is refused
    *("peft_type", "task_type", "peft_version", "revision", "auto_mapping", "base_model_name_or_path", "inference_mode"),
    *("modules_to_save", "megatron_core", "qalora_group_size", "runtime_config", "init_ia3_weights", "init_weights"),
    *("prefix_projection", "encoder_hidden_size", "prompt_tuning_init", "prompt_tuning_init_text"),
    *("tokenizer_name_or_path", "tokenizer_kwargs"),
)
NOTHING = (None, False, [], {}, "none")  # of a field that is in no table: as if it were absent
STARTS = (True, False, "gaussian", "orthogonal")  # of A and B alone; pissa, olora, corda, loftq, eva and others change more
WHY = {
    "bias": "minift's lora and dora train no biases",
    "fan_in_fan_out": "the weights of these models are (O, I)",
    "rank_pattern": "minift's lora has one rank at all its sites",
    "alpha_pattern": "minift's lora has one alpha at all its sites",
    "trainable_token_indices": "minift trains no rows of a table",
    "layer_replication": "minift's models have each layer once",
    "target_parameters": "minift's lora stands at layers, not at single tensors",
}


def is_peft(directory: Path) -> bool:
    """Whether this is a directory of peft's; those of the adapters library have a file of the same name."""
    try:
        return "peft_type" in read_config(directory / CONFIG)
    except (OSError, UserError):
        return False


# ---- out ----


def write(directory: Path, checkpoint: Checkpoint) -> None:
    """What a run of one of the five methods has learned. Raises UserError where peft cannot compute the same."""
    name, options = check_writable(checkpoint)
    checkpoint = folded(checkpoint)
    family, task = FAMILIES[checkpoint.architecture], checkpoint.task["name"]
    body = checkpoint.tuned_body(next(iter(checkpoint.grafts.values())).dtype, copy=False)
    if task_type_of(checkpoint.architecture, task) == "CAUSAL_LM" and changes_words(body):
        raise UserError(f"--method {checkpoint.method}: {TIED}; with --to hf it goes out as a plain model")
    if PEFT_TYPES[name] in VIRTUAL:
        config, tensors = virtual_tokens(body, options)
    else:
        config, tensors = layers(body, family, name, options)
    root = root_of(PEFT_TYPES[name])
    head = named_there(checkpoint.head, checkpoint.architecture, task)
    tensors |= {f"{root}{theirs}": tensor for theirs, tensor in head.items()}
    common = {
        "peft_type": PEFT_TYPES[name],
        "task_type": task_type_of(checkpoint.architecture, task),
        "base_model_name_or_path": source_of_base(checkpoint),
        "inference_mode": True,
        "modules_to_save": [next(iter(head)).partition(".")[0]] if head else None,
    }
    with whole(directory) as fresh:
        write_tensors(fresh / WEIGHTS[0], {theirs: tensor.detach() for theirs, tensor in tensors.items()})
        write_json(fresh / CONFIG, common | config)
        write_beside(fresh, checkpoint)


def task_type_of(architecture: str, task: str) -> str | None:
    """peft's name for the head of a task. Raises UserError where it has none."""
    kinds = {HEADS[usual].kind: task_type for task_type, usual in reversed(TASK_TYPES[architecture].items())}
    kinds |= {HEADS["question-answering"].kind: None}
    if HEADS[task].kind not in kinds:
        raise UserError(
            f"a run of {task}: peft has no task_type for its head; where the run can be merged, it goes out as a plain model "
            "with --to hf"
        )
    return kinds[HEADS[task].kind]


def check_writable(checkpoint: Checkpoint) -> tuple[str, dict]:
    """(name, options) of a run's method. Raises UserError for a run that a directory of peft's cannot hold."""
    if checkpoint.task is None or checkpoint.method is None:
        raise UserError(f"{checkpoint.source}: a plain model, and a directory of peft's holds what a run has learned; --to hf")
    check_architecture(checkpoint.architecture)
    method, family = checkpoint.method, FAMILIES[checkpoint.architecture]
    parts, name = parse_methods(method), method.partition(":")[0]
    if len(parts) > 1 or name not in PEFT_TYPES:
        raise UserError(
            f"--method {method}: a directory of peft's holds one of {', '.join(PEFT_TYPES)}; a run that can be merged is "
            "written as a plain model, with --to hf"
        )
    pool, options = checkpoint.task["pool"], options_of(parts[0])
    task_type_of(checkpoint.architecture, checkpoint.task["name"])
    if pool not in (None, family.pool):
        raise UserError(
            f"--method {method}: the head reads pool={pool}, which transformers' classifier cannot; train with --pool {family.pool}"
        )
    if options.get("shift") is False:
        raise UserError(f"--method {method}: the text's positions start at P in peft; train with prefix:shift=true")
    if checkpoint.task["name"] == "question-answering" and PEFT_TYPES[name] in VIRTUAL:
        raise UserError(
            f"--method {method}: peft hands no token types to a model for question answering with a prefix or a prompt, so the "
            "answers would be others; train with lora, dora or ia3"
        )
    if checkpoint.causal and pool is not None and PEFT_TYPES[name] == "PROMPT_TUNING":
        raise UserError(f"--method {method}: {LAST_COLUMN}; train with prefix:shift=true, lora, dora or ia3")
    if options.get("pooler") == "text" and pool is not None:
        raise UserError(f"--method {method}: the pooler sees the virtual tokens too in peft; train with prompt:pooler=all")
    if not checkpoint.delta or checkpoint.origin is None:
        raise UserError(f"--method {method}: the run has no base that peft could start from; train from one, without --init random")
    if pool == "cls" and checkpoint.own_pool is None:
        raise UserError(f"--method {method}: {checkpoint.base_name} has no pooler, so the run's is not available in transformers")
    return name, options


def changes_words(body: nn.Module) -> bool:
    """Whether lora stands at the table of the word vectors."""
    (words,) = find(body, "word").values()
    return isinstance(words, lora.LoRA)


def layers(body: nn.Module, family: Family, name: str, options: dict) -> tuple[dict, dict[str, Tensor]]:
    """(configuration, tensors under peft's names) of a method that stands beside single layers."""
    own, wrapped = delta(body), {name_there(body, family, site): wrapper for site, wrapper in wrappers(body).items()}
    config = {"target_modules": list(wrapped), **({"fan_in_fan_out": True} if body.TRANSPOSED else {})}
    if name == "ia3":
        config["feedforward_modules"] = [theirs for theirs, wrapper in wrapped.items() if wrapper.inputs]
    else:
        alpha = options["alpha"]
        alpha = int(alpha) if alpha.is_integer() else alpha  # an integer by peft's own type
        config |= {"r": options["rank"], "lora_alpha": alpha, "lora_dropout": options["dropout"]}
        config |= {"use_rslora": options["rslora"], "use_dora": name == "dora"}
    return config, {theirs: own[ours].reshape(shape) for ours, theirs, shape in parameters(body, family)}


def virtual_tokens(body: nn.Module, options: dict) -> tuple[dict, dict[str, Tensor]]:
    """The same of prefix and prompt. What a network has computed a prefix with is evaluated, as peft itself does on saving."""
    prefixes = [wrapper.prefix() for wrapper in wrappers(body).values() if isinstance(wrapper, Prefixed)]
    prompts = [wrapper.E for wrapper in wrappers(body).values() if isinstance(wrapper, Prompt)]
    config = {"num_virtual_tokens": options["length"], "num_transformer_submodules": 1}
    config |= of_the_base(body)
    if prefixes:
        config |= {"prefix_projection": options["mlp"] > 0, "encoder_hidden_size": options["mlp"] or body.config.width}
    else:
        config["prompt_tuning_init"] = "RANDOM"
    flat = torch.cat(prefixes or prompts, 1)  # L times (P, 2D) -> (P, L 2D): K of layer 0, V of layer 0, ...
    return config, {prefix.PEFT_NAME: flat}


def of_the_base(body: nn.Module) -> dict[str, int | None]:
    """What the configuration of a prefix or a prompt says of a transformer; None of another model."""
    layers = getattr(body, "layers", ())
    heads = layers[0].attention.heads if layers else None
    return {"token_dim": getattr(body.config, "width", None), "num_layers": len(layers) or None, "num_attention_heads": heads}


# ---- names and shapes ----


def root_of(peft_type: str) -> str:
    """Before transformers' names: where layers are replaced, peft keeps the model one level deeper."""
    return "base_model." if peft_type in VIRTUAL else "base_model.model."


def name_there(body: nn.Module, family: Family, site: str) -> str:
    """Of a layer in transformers' model with a head."""
    return family.prefix + look_up_module(site, body.HUGGINGFACE, body.numbering())


def parameters(body: nn.Module, family: Family) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(name here, name there, shape there) of all that lora, dora or ia3 has added."""
    for site, wrapper in wrappers(body).items():
        layer = plain(wrapper)
        leaves = lora.PEFT_NAMES_OF_EMBEDDING if isinstance(layer, nn.Embedding) else LEAVES
        for leaf, tensor in wrapper.named_parameters(recurse=False):
            shape = tuple(tensor.shape)
            if leaf == "m" and isinstance(layer, nn.Conv2d):
                shape = (1, *shape, 1, 1)
            if leaf == "scale":
                shape = (1, *shape) if wrapper.inputs else (*shape, 1)
            yield f"{site}.{leaf}", f"{root_of('LORA')}{name_there(body, family, site)}.{leaves[leaf]}", shape


# ---- in ----


def read(directory: Path, base_name: str | None, label_names: list[str] | None = None) -> Checkpoint:
    """A run, as pretrained.read gives it, over a base that has been converted already.

    base_name: by which the base is found; None: the one that is recorded, in minift.json or by peft. label_names: where the
    user has said them.
    """
    file = directory / CONFIG
    config = read_config(file)
    peft_type = str(config.get("peft_type"))
    if peft_type not in READ:
        raise UserError(f"{file}: peft_type is {peft_type!r}; minift reads {', '.join(READ)}")
    is_qa = config.get("task_type") == "QUESTION_ANS" or (config.get("task_type") is None and QA in saved_modules(config))
    hidden = is_qa or config.get("task_type") in ("TOKEN_CLS", "CAUSAL_LM")
    base, name = find_base(directory, base_name, config.get("base_model_name_or_path"), pooled=not hidden)
    family = FAMILIES[base.architecture]
    body = base.empty_body(None if hidden else family.pool)
    fields = checked(file, config, body, base.architecture)
    if config.get("task_type") == "QUESTION_ANS" and base.config["type_vocab_size"] > 1:
        raise UserError(
            f"{file}: task_type is 'QUESTION_ANS', with which peft hands no token types to the model, and minift tells question "
            f"and context by them; train it with task_type=None and modules_to_save=['{QA}']"
        )
    if base.causal and not hidden and peft_type == "PROMPT_TUNING":
        raise UserError(f"{file}: {LAST_COLUMN}, and minift does not; train it with another method")
    usual = "question-answering" if is_qa else TASK_TYPES[base.architecture][config.get("task_type")]
    task = task_name(directory, base, usual)
    method = METHODS[peft_type](file, fields, body, family)
    try:
        adapt(body, method)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    if config.get("task_type") == "CAUSAL_LM" and changes_words(body):
        raise UserError(f"{file}: {TIED}; merge it in peft, and convert the whole model")
    if peft_type == "IA3":
        check_sides(file, fields, body, family)

    path, tensors = read_either(directory, WEIGHTS)
    there, bias = HEADS[task].names[base.architecture], hidden or body.config.head_bias
    head = read_head(path, tensors, f"{root_of(peft_type)}{there['']}.", base.width, bias) if there else {}
    grafts = read_grafts(path, tensors, body, family, peft_type, f"{CONFIG} and the base {name}")
    return over(base, name, method, grafts, head, directory, task, label_names, taken=lengthened(body))


def checked(file: Path, config: dict, body: nn.Module, architecture: str) -> dict:
    """The fields of READ with their values; what minift cannot do is refused."""
    known = READ[config["peft_type"]]
    fields = {field: config.get(field, absent) for field, (_, absent) in known.items()}
    for field, value in fields.items():
        if type(value) not in known[field][0]:
            raise UserError(f"{file}: {field} is {shortened(value)}, which peft does not write; save the adapter with it again")
    known_types = list(TASK_TYPES[architecture])
    if known_types[1:] and config["peft_type"] in VIRTUAL:
        known_types = [name for name in known_types if name]  # without one it runs no classifier
    if config.get("task_type") not in known_types:
        named = " or ".join(map(repr, known_types))
        raise UserError(
            f"{file}: task_type is {config.get('task_type')!r}, and of {type(body).__name__} minift reads {named}; train the "
            "adapter with one of these"
        )
    wanted = of_the_base(body) | {"num_transformer_submodules": 1}
    silent = (*SILENT, "fan_in_fan_out") if body.TRANSPOSED else SILENT  # peft sees for itself how the weights are stored
    for field, value in config.items():
        if field in wanted and value not in (None, wanted[field]):
            raise UserError(f"{file}: {field} is {value!r}, and of the base {wanted[field]!r}; name the right one with --base")
        if field not in {*known, *wanted, *silent} and value not in NOTHING:
            why = WHY.get(field, "minift has no such thing")
            raise UserError(f"{file}: {field} {shortened(value)} is not supported: {why}; take an adapter that is without it")
    saved = saved_modules(config)
    own = (
        (QA,)
        if QA in saved and architecture == "bert" and config.get("task_type") in (None, "QUESTION_ANS")
        else ("classifier", "score")
    )
    if strange := [module for module in saved if module not in own]:
        raise UserError(f"{file}: modules_to_save has {strange[0]!r}, and minift reads the {own[0]} alone; train without it")
    if fields.get("init_lora_weights", True) not in STARTS:
        raise UserError(
            f"{file}: init_lora_weights {fields['init_lora_weights']!r} changes more than A and B; save it in peft with "
            "path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        )
    return fields


def saved_modules(config: dict) -> list:
    saved = config.get("modules_to_save") or []
    return saved if isinstance(saved, list) else [saved]


def shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:56]}..."


# ---- in: sites ----


def lora_of(file: Path, fields: dict, body: nn.Module, family: Family) -> str:
    name, sites = "dora" if fields["use_dora"] else "lora", sites_of(file, fields, body, family)
    alpha, dropout, rslora = float(fields["lora_alpha"]), float(fields["lora_dropout"]), str(fields["use_rslora"]).lower()
    return f"{name}:rank={fields['r']},alpha={alpha},dropout={dropout},rslora={rslora},sites={sites}"


def ia3_of(file: Path, fields: dict, body: nn.Module, family: Family) -> str:
    return f"ia3:sites={sites_of(file, fields, body, family)}"


def prefix_of(file: Path, fields: dict, body: nn.Module, family: Family) -> str:
    return f"prefix:length={fields['num_virtual_tokens']},shift=true"


def prompt_of(file: Path, fields: dict, body: nn.Module, family: Family) -> str:
    return f"prompt:length={fields['num_virtual_tokens']}{'' if body.pooler is None else ',pooler=all'}"


METHODS = {"LORA": lora_of, "IA3": ia3_of, "PREFIX_TUNING": prefix_of, "PROMPT_TUNING": prompt_of}


def sites_of(file: Path, fields: dict, body: nn.Module, family: Family) -> str:
    """The layers that a configuration names, as the option `sites`: by role where all of a role are among them."""
    own = [name for name, module in plain_modules(body).items() if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding)]
    try:
        sites = {site for site in own if is_target(fields, name_there(body, family, site))}
    except re.error as error:
        raise UserError(f"{file}: target_modules, exclude_modules or layers_pattern: no regular expression ({error})") from None
    if not sites:
        raise UserError(f"{file}: target_modules {shortened(fields['target_modules'])} names no layer of the base's")
    roles = {role: {name for name in plain_modules(body) if re.fullmatch(pattern, name)} for role, pattern in body.SITES.items()}
    inside = [role for role, at in roles.items() if at and at <= sites]
    left = sites.difference(*(roles[role] for role in inside))
    return "/".join([*inside, *(re.escape(site) for site in own if site in left)])


def is_target(fields: dict, name: str) -> bool:
    """Whether peft changes the layer of this name."""
    targets = fields["target_modules"]
    if names(fields["exclude_modules"], name) or not names(targets, name):
        return False
    numbers = fields.get("layers_to_transform")
    if numbers in (None, []) or isinstance(targets, str):
        return True
    patterns = fields["layers_pattern"] or [r"[^.]*"]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if found := re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name):
            return int(found[1]) in ([numbers] if isinstance(numbers, int) else numbers)
    return False


def names(patterns: str | list[str] | None, name: str) -> bool:
    """A string is a regular expression for the whole name, each of a list its last parts."""
    if isinstance(patterns, str):
        return re.fullmatch(patterns, name) is not None
    return any(name == pattern or name.endswith(f".{pattern}") for pattern in patterns or ())


def check_sides(file: Path, fields: dict, body: nn.Module, family: Family) -> None:
    """Which side of a layer is scaled follows from its role here, and from feedforward_modules there."""
    said = fields["feedforward_modules"]
    for site, wrapper in wrappers(body).items():
        theirs = name_there(body, family, site)
        try:
            inputs = bool(re.fullmatch(said, theirs)) if isinstance(said, str) else theirs.endswith(tuple(said or ()))
        except (re.error, TypeError) as error:
            raise UserError(f"{file}: feedforward_modules {shortened(said)} is no pattern and no list of names ({error})") from None
        if inputs != wrapper.inputs:
            there, here = ("takes in", "gives out") if inputs else ("gives out", "takes in")
            raise UserError(
                f"{file}: by feedforward_modules peft scales what {theirs} {there}, and minift's ia3 what it {here}; train it with "
                f"this layer {'not ' if inputs else ''}in feedforward_modules"
            )


# ---- in: tensors ----


def read_head(path: Path, tensors: dict[str, Tensor], prefix: str, width: int, bias: bool) -> dict[str, Tensor]:
    """Takes weight (C, D) and bias (C) of the head out of `tensors`. bias: whether it has one."""
    inside = {name: tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
    weight = inside.get(f"{prefix}weight")
    if weight is None or weight.dim() != 2 or not len(weight):
        shape = "missing" if weight is None else tuple(weight.shape)
        module = prefix.removesuffix(".").rpartition(".model.")[2]
        raise UserError(
            f"{path}: {prefix}weight is {shape}; a head with a row for each output is expected: save with "
            f"modules_to_save=[{module.partition('.')[0]!r}]"
        )
    like = {"weight": torch.empty(len(weight), width, device="meta")}
    like |= {"bias": torch.empty(len(weight), device="meta")} if bias else {}
    like = {prefix + leaf: tensor for leaf, tensor in like.items()}
    check_shapes(path, inside, like, f"a head of {len(weight)} outputs on the base")
    return {name.removeprefix(prefix): tensor for name, tensor in inside.items()}


def read_grafts(
    path: Path, tensors: dict[str, Tensor], body: nn.Module, family: Family, peft_type: str, wanted_by: str
) -> dict[str, Tensor]:
    """peft's tensors under minift's names and in minift's shapes. body: after the method, on any device."""
    own = delta(body)
    if peft_type in VIRTUAL:
        check_shapes(path, tensors, {prefix.PEFT_NAME: torch.cat(list(own.values()), 1)}, wanted_by)
        parts = tensors[prefix.PEFT_NAME].chunk(len(own), 1)
        return {ours: part.contiguous() for ours, part in zip(own, parts, strict=True)}
    rows = list(parameters(body, family))
    check_shapes(path, tensors, {theirs: torch.empty(shape, device="meta") for _, theirs, shape in rows}, wanted_by)
    return {ours: tensors[theirs].reshape(own[ours].shape) for ours, theirs, _ in rows}
