"""Hugging Face checkpoint directories, read and written: config.json, weights, and what makes their inputs of texts or images.

The map of names stands in the model's file; here it is applied, both ways and strictly: nothing is skipped silently.
Proved by tests/reference/test_huggingface.py and test_huggingface_images.py: transformers loads what is written here, and the
other way round, bit for bit, and its image processors give the same pixels.
"""

import io
import math
import pickle
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minift.data.loading import IMAGENET_V1, Preprocessing
from minift.errors import UserError, is_there, look_up
from minift.formats import bytelevel, heads
from minift.formats.wordpiece import FILES as TOKENIZER_FILES
from minift.formats.wordpiece import read_tokenizer, write_tokenizer
from minift.models import MODELS
from minift.pretrained import (
    Checkpoint,
    check_shapes,
    check_values,
    outline,
    read_object,
    read_tensors,
    whole,
    write_json,
    write_tensors,
)


class Family(NamedTuple):
    """What is particular to the checkpoints of one architecture; the table FAMILIES stands at the end of the file."""

    name: str  # what transformers' classes begin with
    prefix: str  # before the names of the body's tensors where a head follows
    roots: tuple[str, ...]  # what they begin with where none follows
    pool: str  # what a head reads that does not read the hidden states
    pooler: str | None  # before weight and bias of the pooler, where with such a head it is a part of that; None: the body's
    computed: dict[str, object]  # field of config.json -> the one value under which transformers computes what the model file does
    files: tuple[str, ...]  # what `read_inputs` reads, where it is there
    read_inputs: Callable[[Path, object, list[str]], dict]  # (directory, config, what to say) -> fields of Checkpoint
    write_inputs: Callable[[Path, Checkpoint, object], None]  # (directory, checkpoint, config)
    config_in: Callable[[dict, list[str]], dict] | None = None  # (config.json, what to say) -> as the model's Config has it
    config_out: Callable[[object], dict] | None = None  # the inverse, of a Config; None: its fields stand there as they are


@dataclass
class Report:
    """What reading a checkpoint came upon, to be said to the user."""

    file: str
    dropped: list[str]  # tensors outside the body: heads of other tasks
    said: list[str] = field(default_factory=list)  # what was taken otherwise than it stands there, or assumed
    outside: dict[str, Tensor] = field(default_factory=dict)  # of a transformers checkpoint: what `dropped` names


def read(directory: Path, source: str, revision: str | None) -> tuple[Checkpoint, Report]:
    """A transformers checkpoint directory as minift's Checkpoint."""
    raw = read_config(directory)
    architecture = raw["model_type"]
    family = FAMILIES[architecture]
    for name in family.files:
        inside(directory, name)
    for name, value in family.computed.items():
        if raw.get(name, value) not in (value, None):
            raise UserError(f"{directory / 'config.json'}: {name} {raw[name]!r} is not supported, only {value!r}")
    model = look_up(MODELS, architecture, "architecture")
    said = []
    try:
        raw = family.config_in(raw, said) if family.config_in else raw
        config = model.Config(**{f.name: raw[f.name] for f in fields(model.Config) if raw.get(f.name) is not None})
        with outline():
            body = model(config)
    except (ValueError, TypeError) as error:
        raise UserError(f"{directory / 'config.json'}: {error}") from None
    file, theirs = read_weights(directory)
    report = Report(file, [], said)
    tensors = to_minift(directory / file, theirs, body, family, report)
    inputs = family.read_inputs(directory, config, report.said)
    return Checkpoint(architecture, asdict(config), tensors, source=source, revision=revision, **inputs), report


def read_with_head(
    directory: Path, source: str, revision: str | None, wanted: str | None = None, pairs: bool = False
) -> tuple[Checkpoint, Report]:
    """The same with its head: a run where a task has this head, else a body. wanted, pairs: as of heads.bring_in."""
    checkpoint, report = read(directory, source, revision)
    family = FAMILIES[checkpoint.architecture]
    return heads.bring_in(directory, read_config(directory), family, checkpoint, report, wanted, pairs), report


def read_config(directory: Path) -> dict:
    """config.json of a checkpoint whose architecture is in FAMILIES."""
    path = inside(directory, "config.json")
    if not is_there(path):
        raise UserError(f"{directory}: there is no config.json, so this is no transformers checkpoint")
    raw = read_object(path)
    if not isinstance(raw.get("model_type"), str) or raw["model_type"] not in FAMILIES:
        raise UserError(f"{path}: model_type is {raw.get('model_type')!r}; minift reads {', '.join(FAMILIES)}")
    return raw


def why_no_export(run: Checkpoint) -> str | None:
    """Why transformers lacks this network with the head of its task; None where it has it."""
    task, family = run.task, FAMILIES[run.architecture]
    pool = task["pool"]
    if not heads.has_head(run.architecture, task["name"]):
        return f"transformers has no {family.name} for {task['name']}"
    if family.config_out is not None:
        try:
            family.config_out(look_up(MODELS, run.architecture, "architecture").Config(**run.config))
        except UserError as error:
            return str(error)
    if pool not in (None, family.pool):
        return f"the head reads pool={pool}, which transformers' classifier cannot; train with --pool {family.pool}"
    return None


def write(directory: Path, checkpoint: Checkpoint) -> None:
    """A directory for AutoModel; for AutoModelFor... where the checkpoint has a head: a run's, or that of its pretraining."""
    checkpoint = heads.folded(checkpoint)
    family, body = FAMILIES[checkpoint.architecture], checkpoint.empty_body(checkpoint.usual_pool)
    task = checkpoint.task["name"] if checkpoint.task else next(iter(checkpoint.heads), None)
    head = checkpoint.head if checkpoint.task else checkpoint.heads.get(task, {})
    tensors = to_huggingface(checkpoint.tensors, body, family.prefix if task else "")
    if checkpoint.task and family.pooler:
        own = f"{family.prefix}pooler.dense."
        tensors = {name.replace(own, family.pooler) if name.startswith(own) else name: t for name, t in tensors.items()}
    own = family.config_out(body.config) if family.config_out else checkpoint.config
    config = {"architectures": [f"{family.name}Model"], "model_type": checkpoint.architecture, **own} | family.computed
    if checkpoint.causal:
        config["bos_token_id"] = config["eos_token_id"]  # the end of a text is all that a GPT-2 begins with
    if task:
        tensors |= heads.named_there(head, checkpoint.architecture, task)
        config |= heads.config_of(checkpoint, family.name)
    floating = next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())  # a ResNet has integers too
    config["torch_dtype"] = str(floating).removeprefix("torch.")

    with whole(directory) as fresh:
        write_tensors(fresh / "model.safetensors", tensors)
        write_json(fresh / "config.json", config)
        family.write_inputs(fresh, checkpoint, body.config)


# ---- weights ----


def read_weights(directory: Path) -> tuple[str, dict[str, Tensor]]:
    """(file, tensors) from model.safetensors, its shards, pytorch_model.bin or its shards: the first that is there."""
    for name, read_one in (("model.safetensors", partial(read_tensors, checked=False)), ("pytorch_model.bin", read_bin)):
        if is_there(path := inside(directory, name)):
            return name, read_one(path)
        index = inside(directory, f"{name}.index.json")
        if is_there(index):
            shards = [inside(directory, shard) for shard in shards_of(index)]
            return index.name, {key: tensor for shard in shards for key, tensor in read_one(shard).items()}
    raise UserError(f"{directory}: there is no model.safetensors and no pytorch_model.bin")


def shards_of(index: Path) -> list[str]:
    """The files that an index names. They lie beside it: a name that leads elsewhere is refused."""
    named = read_object(index).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(shard, str) and shard for shard in named.values()):
        raise UserError(f"{index}: weight_map is no object of tensors and their files; fetch the index again")
    for shard in sorted(set(named.values())):
        if re.search(r"[/\\:\0]", shard) or shard in (".", ".."):
            raise UserError(
                f"{index}: names the file {shard!r}; the parts of a checkpoint lie beside its index, under a plain name"
            )
    return sorted(set(named.values()))


def inside(directory: Path, name: str) -> Path:
    """The path of a file of somebody else's directory. A symbolic link out of it is refused, but for those of the hub's cache."""
    path = directory / name
    root, target = directory.resolve(), path.resolve()
    roots = [root, root.parents[1] / "blobs"] if len(root.parents) > 1 and root.parent.name == "snapshots" else [root]
    if path.exists() and not any(target.is_relative_to(one) for one in roots):
        raise UserError(f"{path}: a symbolic link out of the directory, to {target}; put a copy of the file in its place")
    return path


def read_bin(path: Path) -> dict[str, Tensor]:
    """The tensors of a torch.save file."""
    return untied(path, unpickle(path))


SAFE = (2, 10)  # the first torch in which weights_only=True keeps its promise: CVE-2025-32434 (2.6), CVE-2026-24747 (2.10)


def unpickle(path: Path, trusted: bool = False) -> object:
    """What a torch.save file holds. weights_only: tensors, numbers, strings, lists and dictionaries, and nothing that runs code.

    trusted: read it with an older torch too, in which a crafted file may run code all the same.
    """
    if not is_there(path):
        raise UserError(f"{path}: no such file")
    release = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if release < SAFE and not trusted:
        raise UserError(
            f"{path}: refused, as torch {torch.__version__} may run code that is hidden in such a file (CVE-2025-32434, "
            f"CVE-2026-24747); install torch {'.'.join(map(str, SAFE))} or later, or take a .safetensors file"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        objects = any(word in str(error).lower() for word in ("unsupported global", "unsupported class"))
        why = "it holds Python objects besides tensors" if objects else "not a file of torch.save, or cut short"
        raise UserError(f"{path}: refused, {why} ({path.stat().st_size:,} bytes)") from None
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError, AssertionError):
        raise UserError(f"{path}: cut short or not a file of torch.save ({path.stat().st_size:,} bytes); fetch it again") from None


def write_bin(path: Path, tensors: dict[str, Tensor]) -> None:
    """The inverse of read_bin. By way of the memory: torch itself answers a full disk with an error that says nothing of it."""
    buffer = io.BytesIO()
    torch.save(untied(path, tensors), buffer)
    path.write_bytes(buffer.getbuffer())


def untied(path: Path, tensors: object) -> dict[str, Tensor]:
    """The same tensors in memory of their own: tied ones share theirs, which a safetensors file may not hold."""
    if not isinstance(tensors, dict) or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in tensors.items()):
        raise UserError(f"{path}: not a dictionary of tensors")
    return {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}


def names(body: nn.Module) -> dict[str, str]:
    """Every key of the body's state dict -> its name in transformers' model without a head."""
    return translate(body, body.HUGGINGFACE)


def translate(body: nn.Module, table: dict[str, str]) -> dict[str, str]:
    """Every key of the body's state dict -> its name by one of the tables in the model's file."""
    numbering = body.numbering()
    split = {ours: ours.rpartition(".") for ours in body.state_dict()}
    return {ours: f"{look_up_module(module, table, numbering)}.{leaf}" for ours, (module, _, leaf) in split.items()}


def look_up_module(ours: str, table: dict[str, str], numbering: list[dict[str, int]]) -> str:
    """The name by such a table of one module; the number in it, if there is one, is replaced by those of `numbering`."""
    number = re.search(r"\.(\d+)(?=\.|$)", ours)
    pattern = table[re.sub(r"\.\d+(?=\.|$)", ".{}", ours)]
    return pattern.format(**numbering[int(number[1])]) if number else pattern


def to_minift(where: Path, theirs: dict[str, Tensor], body: nn.Module, family: Family, report: Report) -> dict[str, Tensor]:
    """The body's tensors under minift's names; what else there is, and what was renamed or filled in, goes into the report.

    body: the expected body with its pooler, on any device; a pooler that the checkpoint lacks is left out.
    """
    theirs, modern = unwrapped(where, theirs, family, report), {}
    for name, tensor in theirs.items():
        new = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))
        if new in modern:
            raise UserError(f"{where}: {new} stands in it twice, once under its old name; take a file with one of them")
        modern[new] = tensor
    if renamed := len(modern.keys() - theirs.keys()):
        report.said.append(f"{renamed} old LayerNorm names (gamma, beta)")
    headed = any(name.startswith(family.prefix) for name in modern)
    taken = [name for name in modern if name.startswith(family.prefix if headed else family.roots)]
    if not taken:
        found = ", ".join(list(modern)[:3]) or "nothing"
        raise UserError(
            f"{where}: none of its names begins as those of {family.name}Model do, with "
            f"{', '.join((family.prefix, *family.roots))} (the first are {found})"
        )
    report.outside = {name: modern[name] for name in sorted(modern.keys() - set(taken))}
    report.dropped += report.outside
    modern = {name.removeprefix(family.prefix): modern[name] for name in taken}
    modern = {name: tensor for name, tensor in modern.items() if not re.fullmatch(BUFFERS, name)}

    table = names(body)
    expected = {table[ours]: turned(table[ours], tensor, body) for ours, tensor in body.state_dict().items()}
    if not any(name.startswith("pooler.") for name in modern):
        expected = {name: tensor for name, tensor in expected.items() if not name.startswith("pooler.")}
    count_from_zero(modern, expected, report)
    check_shapes(where, modern, expected)
    check_values(where, modern)
    return {ours: turned(name, modern[name], body) for ours, name in table.items() if name in modern}


# What old versions saved beside the weights: 0, 1, 2, ..., and GPT-2's causal mask and what stood for -inf in it
BUFFERS = r"embeddings\.position_ids|h\.\d+\.attn\.(masked_)?bias"


def turned(name: str, tensor: Tensor, body: nn.Module) -> Tensor:
    """A tensor by its name in transformers, as it is stored on the other side: transposed, where the model's file says so."""
    return tensor.T.contiguous() if re.fullmatch(body.TRANSPOSED, name) else tensor


# What training scripts and wrappers put before every name of a model, in any order and number, and what they put between
WRAPPERS = ("module", "model", "auto_model", "base_model", "backbone", "net", "0")
BETWEEN = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # torch.compile, FSDP, checkpointing


def unwrapped(where: Path, tensors: dict[str, Tensor], family: Family, report: Report) -> dict[str, Tensor]:
    """The same tensors without the names of wrappers; what was taken off is said."""
    found = {part for part in BETWEEN if any(part in name for name in tensors)}
    plain = {}
    for name, tensor in tensors.items():
        for part in found:
            name = name.replace(part, "")
        if name in plain:
            raise UserError(f"{where}: {name} stands in it twice, with and without {' and '.join(sorted(found))}")
        plain[name] = tensor
    if found:
        report.said.append(f"{' and '.join(sorted(found))} taken off the names")
    starts = (family.prefix, *family.roots)
    if any(name.startswith(starts) for name in plain):
        return plain
    pattern = rf"(?:(?:{'|'.join(WRAPPERS)})\.)+(?={'|'.join(map(re.escape, starts))})"
    prefixes = sorted({match[0] for name in plain if (match := re.match(pattern, name))})
    if len(prefixes) > 1:
        raise UserError(f"{where}: several models are in it, under {', '.join(prefixes)}; save one of them alone")
    if not prefixes:
        return plain
    report.said.append(f"{prefixes[0]} before the names taken off")
    return {name.removeprefix(prefixes[0]): tensor for name, tensor in plain.items()}


def count_from_zero(tensors: dict[str, Tensor], expected: dict[str, Tensor], report: Report) -> None:
    """Add the batch counters of BatchNorms, which files from before PyTorch 0.4.1 do not have."""
    absent = [name for name in expected if name not in tensors and name.endswith(".num_batches_tracked")]
    tensors |= {name: torch.tensor(0) for name in absent}
    if absent:
        report.said.append(f"{len(absent)} num_batches_tracked are not in the file, set to 0")


def to_huggingface(tensors: dict[str, Tensor], body: nn.Module, prefix: str) -> dict[str, Tensor]:
    """The inverse of to_minift: tensors of the body under transformers' names, `bert.` before them where a head follows."""
    table = names(body)
    return {prefix + table[name]: turned(table[name], tensor, body) for name, tensor in tensors.items()}


# ---- texts: tokenizer and pooling ----


def read_texts(directory: Path, config, said: list[str], read_one: Callable = read_tokenizer) -> dict:
    return {"tokenizer": read_one(directory, config, said), "pool": read_pool(directory)}


POOLS = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}


def read_pool(directory: Path) -> str | None:
    """cls or mean, where a sentence-transformers checkpoint records one of them in 1_Pooling/config.json."""
    path = directory / "1_Pooling" / "config.json"
    if not is_there(path):
        return None
    modes = [key for key, value in read_object(path).items() if key.startswith("pooling_mode_") and value is True]
    return next((pool for pool, mode in POOLS.items() if modes == [mode]), None)


def write_texts(directory: Path, checkpoint: Checkpoint, config, write_one: Callable = write_tokenizer) -> None:
    write_one(directory, checkpoint, config)
    if checkpoint.pool is not None:
        (directory / "1_Pooling").mkdir(exist_ok=True)
        flags = {mode: pool == checkpoint.pool for pool, mode in POOLS.items()}
        write_json(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": config.hidden_size, **flags})


# ---- images: preprocessing ----


RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's numbers, which stand in the JSON
STRETCHED = 384  # from this size on ConvNextImageProcessor, which ResNets use, stretches to a square in place of cropping


def read_preprocessing(directory: Path, config, said: list[str]) -> dict:
    path = directory / "preprocessor_config.json"
    raw = read_object(path) if is_there(path) else None
    found = None if raw is None else from_processor(raw, said)
    if found is None:
        why = f"there is no {path.name}" if raw is None else f"{path.name} asks for what minift does not do"
        said.append(f"preprocessing assumed, as {why}")
    return {"tokenizer": None, "preprocessing": asdict(found or IMAGENET_V1)}


def from_processor(raw: dict, said: list[str]) -> Preprocessing | None:
    """The Preprocessing that preprocessor_config.json stands for; None where it does something else.

    The middle is torchvision's: where an odd number of rows is cut off, transformers may keep the row above.
    """
    kind = str(raw.get("image_processor_type") or raw.get("feature_extractor_type") or "the image processor")
    size, scale, ratio = one_side(raw.get("size")), raw.get("rescale_factor") or 1 / 255, raw.get("crop_pct") or 224 / 256
    mean, std = raw.get("image_mean"), raw.get("image_std")
    if kind.startswith("EfficientNet") and raw.get("include_top", True) and is_triple(std):
        std = [deviation**2 for deviation in std]  # it divides twice
    steps = not any(raw.get(step) is False for step in ("do_resize", "do_rescale", "do_normalize"))
    usual = steps and is_number(scale) and abs(scale * 255 - 1) < 1e-6 and is_number(ratio) and 0 < ratio <= 1
    if not (usual and size and raw.get("resample") in range(len(RESAMPLE)) and is_triple(mean) and is_triple(std) and min(std) > 0):
        return None
    if kind.startswith("ConvNext") and size < STRETCHED:
        resize, crop = int(size / ratio), size
    elif raw.get("do_center_crop") and one_side(raw.get("crop_size")):
        resize, crop = size, one_side(raw["crop_size"])
    else:
        resize = crop = size
        said.append(f"{kind} does not crop; taken as resizing the shorter side to {size} and cropping the middle {size} x {size}")
    chosen = {"resize": resize, "crop": crop, "mean": mean, "std": std, "interpolation": RESAMPLE[raw["resample"]]}
    try:
        return Preprocessing.of(chosen)
    except UserError:  # as a square that is larger than the picture
        return None


def one_side(size: object) -> int | None:
    """The number in 224, {"shortest_edge": 224} or {"height": 224, "width": 224}; None where there is not exactly one."""
    numbers = list(size.values()) if isinstance(size, dict) else [size]
    one = all(type(number) is int and 0 < number < 1 << 16 and number == numbers[0] for number in numbers)
    return numbers[0] if numbers and one else None


def is_triple(numbers: object) -> bool:
    return isinstance(numbers, list) and len(numbers) == 3 and all(is_number(number) for number in numbers)


def is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def write_preprocessing(directory: Path, checkpoint: Checkpoint, config) -> None:
    """BitImageProcessor's fields say resize and crop as they are; ResNets' usual ConvNextImageProcessor has a ratio to round."""
    p = asdict(Preprocessing.of(checkpoint.preprocessing))
    write_json(
        directory / "preprocessor_config.json",
        {
            "image_processor_type": "BitImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": p["resize"]},
            "resample": RESAMPLE.index(p["interpolation"]),
            "do_center_crop": True,
            "crop_size": {"height": p["crop"], "width": p["crop"]},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(p["mean"]),
            "image_std": list(p["std"]),
        },
    )


# ---- EfficientNet's config ----


def efficientnet_in(raw: dict, said: list[str]) -> dict:
    """What transformers' config.json leaves open, or says otherwise, about an EfficientNet.

    Its momentum of BatchNorm is Keras's, the share of the old statistics (0.99 in Google's checkpoints), and is taken as such; the
    transformers library hands it to torch, for which it is the share of the new ones. depthwise_padding, which says where a map
    has an odd size, is not read, as the padding here follows the size.
    """
    momentum = raw.get("batch_norm_momentum", 0.99)
    if isinstance(momentum, float) and 0.5 < momentum <= 1:
        said.append(f"batch_norm_momentum {momentum:g} is Keras's, the share of the old statistics: in torch {1 - momentum:.3g}")
        momentum = round(1 - momentum, 12)
    act = {"silu": "swish"}.get(raw.get("hidden_act"), raw.get("hidden_act"))
    if act not in (None, "swish"):
        raise ValueError(f"hidden_act is {act!r:.40}; EfficientNets of transformers are read with swish")
    inputs, outputs = raw.get("in_channels"), raw.get("out_channels")
    if (inputs or outputs) and inputs != [32, *(outputs or ())[:-1]]:
        raise ValueError(f"in_channels is {inputs!r:.60}, and not 32 and then all out_channels but the last")
    return raw | {"batch_norm_momentum": momentum, "hidden_act": "swish", "padding": "same", "fixed_ends": False}


def efficientnet_out(config) -> dict:
    """The fields of transformers' config.json. Raises UserError for a network that the class cannot build."""
    wrong = {
        "relu6 and no squeeze-and-excitation, as Lite has them": config.hidden_act != "swish" or not config.squeeze_expansion_ratio,
        "symmetric padding": config.padding != "same",
        f"images of an odd size ({config.image_size})": config.image_size % 2,
    }
    if reason := next((what for what, there in wrong.items() if there), None):
        raise UserError(f"transformers' EfficientNet cannot have {reason}; --to timm writes it")
    size, odd, block = math.ceil(config.image_size / 2), [], 0
    for stride, depth in zip(config.strides, config.depths, strict=True):
        if stride == 2:
            odd += [block] if size % 2 else []
            size = math.ceil(size / 2)
        block += depth
    fields = {key: value for key, value in asdict(config).items() if key not in ("padding", "fixed_ends")}
    channels = {"in_channels": [32, *config.out_channels[:-1]], "hidden_dim": config.width}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in fields.items()} | channels | {"depthwise_padding": odd}


ROBERTA = Family(
    name="Roberta",
    prefix="roberta.",
    roots=("embeddings.", "encoder.", "pooler."),
    pool="cls",
    pooler="classifier.dense.",
    computed={"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False},
    files=(*bytelevel.FILES, "1_Pooling/config.json"),
    read_inputs=partial(read_texts, read_one=bytelevel.read_tokenizer),
    write_inputs=partial(write_texts, write_one=bytelevel.write_tokenizer),
)
FAMILIES = {
    "bert": Family(
        name="Bert",
        prefix="bert.",
        roots=("embeddings.", "encoder.", "pooler."),
        pool="cls",
        pooler=None,
        computed={"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False},
        files=(*TOKENIZER_FILES, "1_Pooling/config.json"),
        read_inputs=read_texts,
        write_inputs=write_texts,
    ),
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA._replace(name="XLMRoberta"),
    "gpt2": Family(
        name="GPT2",
        prefix="transformer.",
        roots=("wte.", "wpe.", "h.", "ln_f."),
        pool="last",
        pooler=None,
        computed={
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "reorder_and_upcast_attn": False,
            "add_cross_attention": False,
        },
        files=bytelevel.FILES,
        read_inputs=partial(read_texts, read_one=bytelevel.read_gpt2_tokenizer),
        write_inputs=bytelevel.write_gpt2_tokenizer,
    ),
    "resnet": Family(
        name="ResNet",
        prefix="resnet.",
        roots=("embedder.", "encoder."),
        pool="mean",
        pooler=None,
        computed={
            "num_channels": 3,
            "layer_type": "bottleneck",
            "hidden_act": "relu",
            "downsample_in_first_stage": False,
            "downsample_in_bottleneck": False,
        },
        files=("preprocessor_config.json",),
        read_inputs=read_preprocessing,
        write_inputs=write_preprocessing,
    ),
    "efficientnet": Family(
        name="EfficientNet",
        prefix="efficientnet.",
        roots=("embeddings.", "encoder."),
        pool="mean",
        pooler=None,
        computed={"num_channels": 3, "depth_divisor": 8, "pooling_type": "mean"},
        files=("preprocessor_config.json",),
        read_inputs=read_preprocessing,
        write_inputs=write_preprocessing,
        config_in=efficientnet_in,
        config_out=efficientnet_out,
    ),
}
