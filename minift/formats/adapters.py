"""Directories of the adapters library, read and written: the bottlenecks of houlsby and pfeiffer, and a head.

adapter_config.json     what the bottlenecks are, and of which model
pytorch_adapter.bin     their tensors; the library may write adapter.safetensors in its place, which is read first
head_config.json        the head, where there is one, and its labels
pytorch_model_head.bin  its tensors; or model_head.safetensors
minift.json             of a run: what the library has no place for; see bases.py

What is written here goes onto the base that the run started from, in either of two ways, with the same logits:

    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels))
    adapters.init(model)
    model.load_adapter(directory, set_active=True)

    model = adapters.AutoAdapterModel.from_pretrained(base)
    model.load_adapter(directory, set_active=True)

A .bin file is what `load_adapter` reads by default, and with use_safetensors=True too where there is no other. The maps of names
stand in the methods' files; here they are applied, both ways and strictly: nothing is skipped silently, and what a bottleneck can
do there beyond houlsby.py and pfeiffer.py is refused by name.
Proved by tests/reference/test_adapters.py: the library loads what is written here, and the other way round: logits, float64, 1e-10.
"""

import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from minift.adapting import adapt, parse_methods
from minift.errors import UserError, is_there, look_up
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
from minift.formats.heads import CLASSES, HEADS, OUTPUTS, class_of, folded, has_head, named_there
from minift.formats.huggingface import FAMILIES, write_bin
from minift.methods import houlsby, pfeiffer
from minift.methods.surgery import delta
from minift.models import MODELS
from minift.models.bert import BertConfig
from minift.models.gpt2 import Gpt2Config
from minift.pretrained import Checkpoint, check_shapes, whole, write_json
from minift.specs import options_of

LAYOUT = "adapters.1.3.0"  # whose layout this is; in a file that does not say so the library takes gelu for the approximate one
NAME = "minift"  # what the adapter is called in the library, unless load_adapter's load_as says otherwise
ADAPTER_FILES = ("adapter.safetensors", "pytorch_adapter.bin")
HEAD_FILES = ("model_head.safetensors", "pytorch_model_head.bin")


class Kind(NamedTuple):
    """What a method is in the library."""

    names: dict[str, dict[str, str]]  # architecture -> module here -> module there
    fields: dict[str, object]  # field of the configuration -> the one value under which the library computes what the method does


KINDS = {
    "houlsby": Kind(
        {"bert": houlsby.ADAPTERS, "gpt2": houlsby.ADAPTERS_OF_GPT2}, {"mh_adapter": True, "original_ln_before": False}
    ),
    "pfeiffer": Kind(
        {"bert": pfeiffer.ADAPTERS, "gpt2": pfeiffer.ADAPTERS_OF_GPT2}, {"mh_adapter": False, "original_ln_before": True}
    ),
}

# Field -> what the library takes where it is absent, and the one value that is read where KINDS has no other
COMMON = {
    "architecture": None,  # prefix_tuning, lora, reft, ..., union of several
    "is_parallel": False,
    "output_adapter": True,
    "original_ln_before": False,
    "original_ln_after": True,
    "ln_before": False,
    "ln_after": False,
    "residual_before_ln": True,
    "adapter_residual_before_ln": False,
    "scaling": 1.0,
    "use_gating": False,
    "dropout": 0.0,
    "stochastic_depth": 0.0,
    "leave_out": [],
    "cross_adapter": False,
    "phm_layer": False,
    "inv_adapter": None,
    "invertible_adapter": None,  # the same in old files
}
READ = ("mh_adapter", "non_linearity", "reduction_factor")
SILENT = (  # how the weights started, and what is of an effect only with a field of COMMON
    *("init_weights", "init_weights_seed", "inv_adapter_reduction_factor", "phm_dim", "factorized_phm_W", "shared_W_phm"),
    *("shared_phm_rule", "factorized_phm_rule", "phm_c_init", "phm_init_range", "learn_phm", "hypercomplex_nonlinearity"),
    *("phm_rank", "phm_bias"),
)
ACTIVATIONS = {name: name for name in houlsby.ACTIVATIONS} | {"silu": "swish"}
OLD_ACTIVATIONS = {"gelu": "gelu_new", "gelu_orig": "gelu"}  # in files without a version -> their names today

# Task -> what head_config.json says of its head where that has a configuration of its own; else it is transformers' own class
POOLED = {"layers": 1, "use_pooler": True, "bias": True}
FLEXIBLE = {
    "text-classification": {"head_type": "classification", **POOLED},
    "multi-label-classification": {"head_type": "multilabel_classification", **POOLED},
    "token-classification": {"head_type": "tagging", "layers": 1, "bias": True},
    "question-answering": {"head_type": "question_answering", "layers": 1, "bias": True},
}
STATIC = {  # (architecture, class of transformers) -> the usual task of its head
    (architecture, class_of(FAMILIES[architecture].name, HEADS[task])): task
    for architecture in ("bert", "gpt2")
    for task in ("text-classification", "token-classification", "question-answering", "causal-lm")
    if has_head(architecture, task)
}


# ---- writing ----


def write(
    directory: Path,
    method: str,
    config: BertConfig | Gpt2Config,
    grafts: dict[str, Tensor],
    head: dict[str, Tensor],
    labels: list[str],
    pool: str,
    base_name: str,
    run: Checkpoint | None = None,
    task: str = "text-classification",
) -> None:
    """What a run of houlsby or pfeiffer has learned. grafts: the bottlenecks, as `delta` names them; head may be empty.

    run: whose minift.json is to lie beside. task: whose head it is.
    """
    kind, size, activation = bottlenecks(method, config)
    architecture, layers = ("gpt2", config.n_layer) if isinstance(config, Gpt2Config) else ("bert", config.num_hidden_layers)
    family, model_class = FAMILIES[architecture], class_there(architecture, task, pool if head else None)
    table = names(kind, layers, NAME, architecture)
    check_shapes(directory, grafts, shapes(table, config.width, size), f"--method {method}")
    base = {"model_type": architecture, "hidden_size": config.width, "model_name": base_name, "model_class": model_class}
    base["version"] = LAYOUT
    fields = {field: value for field, value in (COMMON | kind.fields).items() if value is not None}
    fields |= {"non_linearity": activation, "reduction_factor": reduction_to(config.width, size)}

    with whole(directory) as fresh:
        write_bin(fresh / "pytorch_adapter.bin", {f"{family.prefix}{table[ours]}": tensor for ours, tensor in grafts.items()})
        write_json(fresh / "adapter_config.json", base | {"name": NAME, "config": fields})
        if head:
            write_bin(fresh / "pytorch_model_head.bin", named_there(head, architecture, task))
            numbered = {label: i for i, label in enumerate(labels)}
            said = {"name": None, "config": None, "num_labels": len(labels), "label2id": numbered}
            write_json(fresh / "head_config.json", base | said)
        if run is not None:
            write_beside(fresh, run)


def write_run(directory: Path, run: Checkpoint) -> None:
    """The same of a run. Raises UserError where the library cannot compute the same."""
    check_writable(run)
    config, run = look_up(MODELS, run.architecture, "architecture").Config(**run.config), folded(run)
    task, pool = run.task["name"], run.task["pool"]
    labels = run.task.get("labels") or [f"LABEL_{i}" for i in range(OUTPUTS.get(task, 0))]
    write(directory, run.method, config, run.grafts, run.head, labels, pool, source_of_base(run) or "", run, task)


def check_writable(run: Checkpoint) -> None:
    """Raises UserError for a run that a directory of the library cannot hold."""
    if run.task is None or not run.delta:
        raise UserError(f"{run.source}: --to adapters is for a run of houlsby or pfeiffer that started from a converted model")
    check_architecture(run.architecture)
    bottlenecks(run.method, look_up(MODELS, run.architecture, "architecture").Config(**run.config))
    class_there(run.architecture, run.task["name"], run.task["pool"])


def class_there(architecture: str, task: str, pool: str | None) -> str:
    """The class of transformers that has the head of this task. pool: what the head reads; None: each token, or no head."""
    family = FAMILIES[architecture]
    if pool not in (None, family.pool):
        what = "BERT's own pooler" if architecture == "bert" else "the last token"
        raise UserError(f"--pool {pool}: a head of the adapters library reads {what}; train with --pool {family.pool}")
    model_class = class_of(family.name, HEADS[task])
    if (architecture, model_class) not in STATIC:
        raise UserError(
            f"a run of {task}: its head is not written for the adapters library, heads are of {', '.join(FLEXIBLE)}; the run "
            "can be used by minift alone"
        )
    return model_class


def bottlenecks(method: str, config: BertConfig | Gpt2Config) -> tuple[Kind, int, str]:
    """(kind, channels, activation) of a --method that the library's layout can hold."""
    methods, known = parse_methods(method), " or ".join(KINDS)
    name = method.partition(":")[0]
    if len(methods) > 1:
        raise UserError(f"--method {method}: a directory of the adapters library holds one method, {known}; train with one alone")
    if name not in KINDS:
        raise UserError(f"--method {method}: directories of the adapters library are written for {known}; train with one of them")
    if not isinstance(config, BertConfig | Gpt2Config):
        raise UserError(f"--method {method}: the adapters library has no ResNets; the run can be used by minift alone")
    options = options_of(methods[0])
    if options.get("norms"):
        raise UserError(
            f"--method {method}: it has changed the LayerNorms, which a directory of the adapters library does not hold; "
            "train with houlsby:norms=False"
        )
    return KINDS[name], houlsby.size_of(config.width, options["size"], options["reduction"]), options["activation"]


def reduction_to(width: int, size: int) -> float:
    """A reduction factor that the library rounds to this size; where none is whole, one in the middle of those that it does."""
    return width / (size + 0.5) if width % size else width // size


# ---- names and shapes ----


def names(kind: Kind, layers: int, name: str, architecture: str = "bert") -> dict[str, str]:
    """Every tensor of the bottlenecks in so many layers -> its name in the library's BertModel or GPT2Model."""
    return {
        f"{ours.format(i)}.{leaf}": f"{theirs.format(i=i, name=name)}.{leaf}"
        for i in range(layers)
        for ours, theirs in kind.names[architecture].items()
        for leaf in ("weight", "bias")
    }


def shapes(ours: dict[str, str], width: int, size: int) -> dict[str, Tensor]:
    """What they look like, without memory."""
    ends = {"down.weight": (size, width), "down.bias": (size,), "up.weight": (width, size), "up.bias": (width,)}
    return {name: torch.empty(ends[".".join(name.split(".")[-2:])], device="meta") for name in ours}


# ---- reading ----


def read(directory: Path) -> tuple[str, dict[str, Tensor], dict[str, Tensor], list[str] | None, str]:
    """(--method, grafts, head, labels, name of the base) of a directory that the library has saved.

    The head is empty where there is none, labels are None where they are not recorded, the name is as it is recorded, maybe "".
    """
    file = directory / "adapter_config.json"
    if not is_there(file) and (inside := sorted(path.parent.name for path in directory.glob("*/adapter_config.json"))):
        raise UserError(f"{directory}: there are several adapters inside ({', '.join(inside)}), give the directory of one")
    said = read_config(file)
    fields, name = said.get("config"), said.get("name")
    architecture = said.get("model_type")
    if architecture not in ("bert", "gpt2"):
        raise UserError(f"{file}: model_type is {architecture!r}; minift reads adapters of bert and gpt2")
    if not isinstance(fields, dict) or not isinstance(name, str):
        raise UserError(
            f"{file}: config {fields!r} and name {name!r} are not what the library writes; save the adapter with it again"
        )
    method = check_fields(file, fields)
    activation = str(fields.get("non_linearity")).lower()
    if "version" not in said:
        activation = OLD_ACTIVATIONS.get(activation, activation)
    if activation not in ACTIVATIONS:
        raise UserError(f"{file}: non_linearity is {activation}; minift has {', '.join(ACTIVATIONS)}")

    path, tensors = read_either(directory, ADAPTER_FILES)
    tensors = {theirs.removeprefix(FAMILIES[architecture].prefix): tensor for theirs, tensor in tensors.items()}
    numbers = (re.findall(r"^(?:encoder\.layer|h)\.(\d+)\.", theirs) for theirs in tensors)
    layers = 1 + max((int(number) for found in numbers for number in found), default=0)
    table = names(KINDS[method], layers, name, architecture)
    first = tensors.get(theirs := next(iter(table.values())))
    if first is None or first.dim() != 2:
        raise UserError(f"{path}: {theirs} is {'missing' if first is None else f'{tuple(first.shape)}, no matrix'}")
    size, width = first.shape
    if said.get("hidden_size") != width:
        raise UserError(f"{path}: the bottlenecks are of a model of width {width}, {file.name} has {said.get('hidden_size')!r}")
    if sizes_of(file, fields, layers, width) != {size}:
        raise UserError(
            f"{file}: reduction_factor {fields['reduction_factor']!r} does not give {size} channels to every bottleneck"
        )
    expected = {table[ours]: tensor for ours, tensor in shapes(table, width, size).items()}
    check_shapes(path, tensors, expected, f"{size} channels in each of {layers} layers")
    grafts = {ours: tensors[theirs] for ours, theirs in table.items()}

    options = {"size": size, "activation": ACTIVATIONS[activation]} | ({"norms": False} if method == "houlsby" else {})
    spec = f"{method}:{','.join(f'{option}={value}' for option, value in options.items())}"
    return spec, grafts, *read_head(directory, width), str(said.get("model_name") or "")


def read_run(directory: Path, base_name: str | None, label_names: list[str] | None = None) -> Checkpoint:
    """A run, as pretrained.read gives it, over a base that has been converted already; base_name None: the recorded one.

    label_names: where the user has said them.
    """
    method, grafts, head, labels, recorded = read(directory)
    if not head and read_config(directory / "adapter_config.json").get("model_class") != CLASSES["GPT2ForCausalLM"]:
        raise UserError(f"{directory}: there is no head in it, so nothing could be predicted; save it with its head")
    usual = head_of(directory / "head_config.json")[0] if head else "causal-lm"
    pooled = usual not in ("token-classification", "question-answering", "causal-lm")
    base, name = find_base(directory, base_name, recorded, pooled)
    task = task_name(directory, base, usual)
    body = base.empty_body(FAMILIES[base.architecture].pool if pooled else None)
    adapt(body, method)
    check_shapes(directory, grafts, delta(body), f"the base {name}")
    return over(base, name, method, grafts, head, directory, task, label_names, labels)


def check_fields(file: Path, fields: dict) -> str:
    """The method that a configuration stands for; what neither expresses is refused."""
    method = "houlsby" if fields.get("mh_adapter") else "pfeiffer"
    for field, usual in COMMON.items():
        value, wanted = fields.get(field, usual), KINDS[method].fields.get(field, usual)
        if (value or None) != (wanted or None):  # nothing, [], 0 and false are one to the library
            raise UserError(
                f"{file}: {field} {value!r} is not supported, only {wanted!r}: minift reads the library's double_seq_bn (houlsby) "
                "and seq_bn (pfeiffer)"
            )
    if unknown := fields.keys() - COMMON.keys() - {*READ, *SILENT}:
        field = min(unknown)
        raise UserError(f"{file}: {field} {fields[field]!r} is not known; save the adapter again with adapters 1.x")
    return method


def sizes_of(file: Path, fields: dict, layers: int, width: int) -> set[int]:
    """Channels that reduction_factor gives: a number, or one for each layer by its number, else for `default`."""
    factor = fields.get("reduction_factor")
    each = [factor.get(str(i), factor.get("default")) for i in range(layers)] if isinstance(factor, dict) else [factor]
    if not all(isinstance(one, int | float) and one >= 1e-6 for one in each):
        raise UserError(f"{file}: reduction_factor is {factor!r}; a number above 0 is expected")
    return {houlsby.size_of(width, 0, one) for one in each}


def head_of(file: Path) -> tuple[str, str, dict]:
    """(the usual task of the head, what stands before the names of its tensors, its fields) by head_config.json."""
    said = read_config(file)
    if not isinstance(said.get("config"), dict):
        known = said.get("model_type"), said.get("model_class")
        if not all(isinstance(one, str) for one in known) or known not in STATIC:
            raise UserError(
                f"{file}: model_class {known[1]!r:.60} is not supported, only {', '.join(name for _, name in STATIC)}; save the "
                "adapter with with_head=False"
            )
        return STATIC[known], f"{HEADS[STATIC[known]].names[known[0]]['']}.", said
    fields = {"bias": True} | said["config"]
    if said.get("model_type") != "bert":
        raise UserError(f"{file}: a head of AutoAdapterModel on a GPT-2 is not read; save the adapter with with_head=False")
    types = {wanted["head_type"]: task for task, wanted in FLEXIBLE.items()}
    if not isinstance(fields.get("head_type"), str) or fields["head_type"] not in types:
        raise UserError(
            f"{file}: head_type {fields.get('head_type')!r:.60} is not supported, only {', '.join(types)}; save the adapter with "
            "with_head=False"
        )
    task = types[fields["head_type"]]
    for field, value in FLEXIBLE[task].items():
        if fields.get(field) != value:
            where = "BERT's pooler" if "use_pooler" in FLEXIBLE[task] else "the hidden states"
            raise UserError(
                f"{file}: {field} {fields.get(field)!r} is not supported, only {value!r}: such a head of minift is one linear "
                f"layer on {where}; save the adapter with with_head=False"
            )
    return task, f"heads.{said.get('name')}.1.", fields


def read_head(directory: Path, width: int) -> tuple[dict[str, Tensor], list[str] | None]:
    """(weight and bias, labels in their order) of the one linear layer that a head of minift is."""
    file = directory / "head_config.json"
    if not is_there(file):
        if there := [name for name in HEAD_FILES if is_there(directory / name)]:
            raise UserError(f"{directory}: there is {there[0]}, but no {file.name}, which says what it is; save the adapter again")
        return {}, None
    task, prefix, fields = head_of(file)
    path, tensors = read_either(directory, HEAD_FILES)
    weight, numbered = tensors.get(f"{prefix}weight"), fields.get("label2id")
    if weight is None or weight.dim() != 2 or not len(weight):
        shape = "missing" if weight is None else tuple(weight.shape)
        raise UserError(f"{path}: {prefix}weight is {shape}; a matrix with a row for each output is expected")
    count = len(weight)
    like = {f"{prefix}weight": torch.empty(count, width, device="meta")}
    if prefix != "score.":  # of a GPT-2, which has no bias
        like[f"{prefix}bias"] = torch.empty(count, device="meta")
    check_shapes(path, tensors, like, f"{count} outputs")
    if task in OUTPUTS:
        return {theirs.removeprefix(prefix): tensor for theirs, tensor in tensors.items()}, None
    numbers = None if numbered is None else numbered.values() if isinstance(numbered, dict) else []
    if numbers is not None and sorted(numbers, key=repr) != sorted(range(count), key=repr):
        raise UserError(f"{file}: label2id {numbered!r} does not number {count} labels from 0 to {count - 1}")
    return {theirs.removeprefix(prefix): tensor for theirs, tensor in tensors.items()}, numbered and sorted(
        numbered, key=numbered.get
    )
