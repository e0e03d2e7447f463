"""Hugging Face checkpoint directories, read and written: config.json, weights, and what makes their inputs of texts or images.

The map of names stands in the model's file; here it is applied, both ways and strictly: nothing is skipped silently.
Proved by tests/reference/test_huggingface.py and test_huggingface_images.py: transformers loads what is written here, and the
other way round, bit for bit, and its image processors give the same pixels.
"""

import json
import pickle
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn

from minift import pretrained
from minift.data.loading import IMAGENET_V1, Preprocessing
from minift.errors import UserError, look_up
from minift.models import MODELS
from minift.pretrained import Checkpoint, check_shapes, read_json, read_tensors, write_json, write_tensors


class Family(NamedTuple):
    """What is particular to the checkpoints of one architecture; the table FAMILIES stands at the end of the file."""

    body: str  # transformers' class without a head
    classifier: str  # and with one
    prefix: str  # before the names of the body's tensors where a head follows
    roots: tuple[str, ...]  # what they begin with where none follows
    head: str  # before weight and bias of the head
    pool: str  # what the head reads
    computed: dict[str, object]  # field of config.json -> the one value under which transformers computes what the model file does
    files: tuple[str, ...]  # what `read_inputs` reads, where it is there
    read_inputs: Callable[[Path, object, list[str]], dict]  # (directory, config, what to say) -> fields of Checkpoint
    write_inputs: Callable[[Path, Checkpoint, object], None]  # (directory, checkpoint, config)


@dataclass
class Report:
    """What reading a checkpoint came upon, to be said to the user."""

    file: str
    dropped: list[str]  # tensors outside the body: heads of other tasks
    said: list[str] = field(default_factory=list)  # what was taken otherwise than it stands there, or assumed


def read(directory: Path, source: str, revision: str | None) -> tuple[Checkpoint, Report]:
    """A transformers checkpoint directory as minift's Checkpoint."""
    raw = read_config(directory)
    architecture = raw["model_type"]
    family = FAMILIES[architecture]
    for name, value in family.computed.items():
        if raw.get(name, value) not in (value, None):
            raise UserError(f"{directory / 'config.json'}: {name} {raw[name]!r} is not supported, only {value!r}")
    model = look_up(MODELS, architecture, "architecture")
    try:
        config = model.Config(**{f.name: raw[f.name] for f in fields(model.Config) if raw.get(f.name) is not None})
        with torch.device("meta"):
            body = model(config)
    except (ValueError, TypeError) as error:
        raise UserError(f"{directory / 'config.json'}: {error}") from None
    file, theirs = read_weights(directory)
    report = Report(file, [])
    tensors = to_minift(directory / file, theirs, body, family, report)
    inputs = family.read_inputs(directory, config, report.said)
    return Checkpoint(architecture, asdict(config), tensors, source=source, revision=revision, **inputs), report


def read_config(directory: Path) -> dict:
    """config.json of a checkpoint whose architecture is in FAMILIES."""
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(f"{directory}: there is no config.json, so this is no transformers checkpoint")
    raw = read_json(path)
    if raw.get("model_type") not in FAMILIES:
        raise UserError(f"{path}: model_type is {raw.get('model_type')!r}; minift reads {', '.join(FAMILIES)}")
    return raw


def write(directory: Path, checkpoint: Checkpoint) -> None:
    """A directory for AutoModel, or for AutoModelFor...Classification where the checkpoint is a run's."""
    family, body = FAMILIES[checkpoint.architecture], checkpoint.empty_body()
    tensors = to_huggingface(checkpoint.tensors, body, family.prefix if checkpoint.task else "")
    config = {"architectures": [family.body], "model_type": checkpoint.architecture, **checkpoint.config, **family.computed}
    if checkpoint.task:
        labels = checkpoint.task["labels"]
        tensors |= {f"{family.head}{name}": tensor for name, tensor in checkpoint.head.items()}
        config |= {
            "architectures": [family.classifier],
            "problem_type": "single_label_classification",
            "id2label": {str(i): label for i, label in enumerate(labels)},
            "label2id": {label: i for i, label in enumerate(labels)},
        }
    config["torch_dtype"] = str(next(iter(tensors.values())).dtype).removeprefix("torch.")

    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory / "model.safetensors", tensors)
    write_json(directory / "config.json", config)
    family.write_inputs(directory, checkpoint, body.config)


# ---- weights ----


def read_weights(directory: Path) -> tuple[str, dict[str, Tensor]]:
    """(file, tensors) from model.safetensors, its shards, pytorch_model.bin or its shards: the first that is there."""
    for name, read_one in (("model.safetensors", read_tensors), ("pytorch_model.bin", read_bin)):
        if (directory / name).is_file():
            return name, read_one(directory / name)
        index = directory / f"{name}.index.json"
        if index.is_file():
            shards = sorted(set(read_json(index)["weight_map"].values()))
            return index.name, {key: tensor for shard in shards for key, tensor in read_one(directory / shard).items()}
    raise UserError(f"{directory}: there is no model.safetensors and no pytorch_model.bin")


def read_bin(path: Path) -> dict[str, Tensor]:
    """The tensors of a torch.save file."""
    return untied(path, unpickle(path))


def unpickle(path: Path) -> object:
    """What a torch.save file holds. weights_only: tensors, numbers, strings, lists and dictionaries, and nothing that runs code."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        objects = any(word in str(error).lower() for word in ("unsupported global", "unsupported class"))
        why = "it holds Python objects besides tensors" if objects else "not a file of torch.save, or cut short"
        raise UserError(f"{path}: refused, {why} ({path.stat().st_size:,} bytes)") from None
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError, AssertionError):
        raise UserError(f"{path}: cut short or not a file of torch.save ({path.stat().st_size:,} bytes); fetch it again") from None


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
    modern = {}
    for name, tensor in theirs.items():
        new = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))
        modern[new] = tensor
    if renamed := len(modern.keys() - theirs.keys()):
        report.said.append(f"{renamed} old LayerNorm names (gamma, beta)")
    headed = any(name.startswith(family.prefix) for name in modern)
    inside = [name for name in modern if name.startswith(family.prefix if headed else family.roots)]
    report.dropped += sorted(modern.keys() - set(inside))
    modern = {name.removeprefix(family.prefix): modern[name] for name in inside}
    modern.pop("embeddings.position_ids", None)  # 0, 1, 2, ...: a buffer that old versions saved

    table = names(body)
    expected = {table[ours]: tensor for ours, tensor in body.state_dict().items()}
    if not any(name.startswith("pooler.") for name in modern):
        expected = {name: tensor for name, tensor in expected.items() if not name.startswith("pooler.")}
    count_from_zero(modern, expected, report)
    check_shapes(where, modern, expected)
    return {ours: modern[name] for ours, name in table.items() if name in modern}


def count_from_zero(tensors: dict[str, Tensor], expected: dict[str, Tensor], report: Report) -> None:
    """Add the batch counters of BatchNorms, which files from before PyTorch 0.4.1 do not have."""
    absent = [name for name in expected if name not in tensors and name.endswith(".num_batches_tracked")]
    tensors |= {name: torch.tensor(0) for name in absent}
    if absent:
        report.said.append(f"{len(absent)} num_batches_tracked are not in the file, set to 0")


def to_huggingface(tensors: dict[str, Tensor], body: nn.Module, prefix: str) -> dict[str, Tensor]:
    """The inverse of to_minift: tensors of the body under transformers' names, `bert.` before them where a head follows."""
    table = names(body)
    return {prefix + table[name]: tensor for name, tensor in tensors.items()}


# ---- texts: tokenizer and pooling ----


def read_texts(directory: Path, config, said: list[str]) -> dict:
    return {"tokenizer": read_tokenizer(directory, config), "pool": read_pool(directory)}


POOLS = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}


def read_pool(directory: Path) -> str | None:
    """cls or mean, where a sentence-transformers checkpoint records one of them in 1_Pooling/config.json."""
    path = directory / "1_Pooling" / "config.json"
    if not path.is_file():
        return None
    modes = [key for key, value in read_json(path).items() if key.startswith("pooling_mode_") and value is True]
    return next((pool for pool, mode in POOLS.items() if modes == [mode]), None)


def read_tokenizer(directory: Path, config) -> Tokenizer:
    """The tokenizer of tokenizer.json, or one built from vocab.txt; what tokenizer_config.json says of case and accents wins.

    Equal to transformers' BertTokenizerFast (tests/reference/test_tokenizer.py). Truncation and padding that a checkpoint has
    stored are taken out: train.py sets its own.
    """
    path = directory / "tokenizer_config.json"
    said = read_json(path) if path.is_file() else {}
    if (directory / "tokenizer.json").is_file():
        tokenizer = pretrained.read_tokenizer(directory)
        tokenizer.no_truncation()
        tokenizer.no_padding()
    elif (directory / "vocab.txt").is_file():
        tokenizer = from_vocabulary(directory / "vocab.txt", said)
    else:
        raise UserError(f"{directory}: there is no tokenizer.json and no vocab.txt")
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise UserError(f"{directory}: the tokenizer has {tokenizer.get_vocab_size()} tokens, the model {config.vocab_size}")

    if type(tokenizer.model) is not models.WordPiece or len(tokenizer.encode("").tokens) != 2:
        raise UserError(
            f"{directory}: the tokenizer is not BERT's (WordPiece, with one special token before a text and one after it)"
        )
    state = bert_normalizer(tokenizer)
    wanted = state | {ours: said[theirs] for ours, theirs in NORMALIZER.items() if theirs in said}
    if state and wanted != state:
        tokenizer.normalizer = normalizers.BertNormalizer(**wanted)
    return tokenizer


# tokenizers' BertNormalizer -> tokenizer_config.json
NORMALIZER = {"lowercase": "do_lower_case", "strip_accents": "strip_accents", "handle_chinese_chars": "tokenize_chinese_chars"}


def bert_normalizer(tokenizer: Tokenizer) -> dict:
    """The settings of a tokenizer's BertNormalizer; empty where it has another one or none, which is then left as it is."""
    state = json.loads(tokenizer.to_str())["normalizer"] or {"type": None}
    return state if state.pop("type") == "BertNormalizer" else {}


def from_vocabulary(path: Path, said: dict) -> Tokenizer:
    """BERT's WordPiece tokenizer from a vocabulary of one token a line; `said` is tokenizer_config.json."""
    vocabulary = {line: i for i, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n"))}
    special = {role: said.get(f"{role}_token", f"[{role.upper()}]") for role in ("unk", "sep", "pad", "cls", "mask")}
    special = {role: token["content"] if isinstance(token, dict) else token for role, token in special.items() if token}
    absent = [token for token in special.values() if token not in vocabulary]
    if absent:
        raise UserError(f"{path}: the vocabulary lacks {', '.join(absent)}")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    cls, sep = special["cls"], special["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])],
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special.values()])
    return tokenizer


def write_texts(directory: Path, checkpoint: Checkpoint, config) -> None:
    state = bert_normalizer(checkpoint.tokenizer)
    said = {
        "tokenizer_class": "BertTokenizer" if state else "PreTrainedTokenizerFast",
        "model_max_length": config.max_position_embeddings,
        **{theirs: state[ours] for ours, theirs in NORMALIZER.items() if state},
        **special_tokens(checkpoint.tokenizer, config.pad_token_id),
    }
    vocabulary = sorted(checkpoint.tokenizer.get_vocab().items(), key=lambda item: item[1])
    checkpoint.tokenizer.save(str(directory / "tokenizer.json"))
    write_json(directory / "tokenizer_config.json", said)
    (directory / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in vocabulary), encoding="utf-8")
    if checkpoint.pool is not None:
        (directory / "1_Pooling").mkdir(exist_ok=True)
        flags = {mode: pool == checkpoint.pool for pool, mode in POOLS.items()}
        write_json(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": config.hidden_size, **flags})


def special_tokens(tokenizer: Tokenizer, pad: int) -> dict[str, str]:
    """The five special tokens by role, read off what the tokenizer does."""
    cls, sep = tokenizer.encode("").tokens
    model = json.loads(tokenizer.to_str())["model"]
    roles = {"unk_token": model["unk_token"], "sep_token": sep, "pad_token": tokenizer.id_to_token(pad), "cls_token": cls}
    return roles | {"mask_token": "[MASK]" if tokenizer.token_to_id("[MASK]") is not None else model["unk_token"]}


# ---- images: preprocessing ----


RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's numbers, which stand in the JSON
STRETCHED = 384  # from this size on ConvNextImageProcessor, which ResNets use, stretches to a square in place of cropping


def read_preprocessing(directory: Path, config, said: list[str]) -> dict:
    path = directory / "preprocessor_config.json"
    raw = read_json(path) if path.is_file() else None
    found = None if raw is None else from_processor(raw, said)
    if found is None:
        why = f"there is no {path.name}" if raw is None else f"{path.name} asks for what minift does not do"
        said.append(f"preprocessing assumed, as {why}")
    return {"tokenizer": None, "preprocessing": asdict(found or IMAGENET_V1)}


def from_processor(raw: dict, said: list[str]) -> Preprocessing | None:
    """The Preprocessing that preprocessor_config.json stands for; None where it does something else.

    The middle is torchvision's: where an odd number of rows is cut off, transformers may keep the row above.
    """
    kind = raw.get("image_processor_type") or raw.get("feature_extractor_type") or "the image processor"
    size, scale = one_side(raw.get("size")), raw.get("rescale_factor") or 1 / 255
    mean, std = raw.get("image_mean"), raw.get("image_std")
    usual = not any(raw.get(step) is False for step in ("do_resize", "do_rescale", "do_normalize")) and abs(scale * 255 - 1) < 1e-6
    if not (usual and size and raw.get("resample") in range(len(RESAMPLE)) and is_triple(mean) and is_triple(std)):
        return None
    if kind.startswith("ConvNext") and size < STRETCHED:
        resize, crop = int(size / (raw.get("crop_pct") or 224 / 256)), size
    elif raw.get("do_center_crop") and one_side(raw.get("crop_size")):
        resize, crop = size, one_side(raw["crop_size"])
    else:
        resize = crop = size
        said.append(f"{kind} does not crop; taken as resizing the shorter side to {size} and cropping the middle {size} x {size}")
    return Preprocessing(resize, crop, tuple(mean), tuple(std), RESAMPLE[raw["resample"]])


def one_side(size: object) -> int | None:
    """The number in 224, {"shortest_edge": 224} or {"height": 224, "width": 224}; None where there is not exactly one."""
    numbers = list(size.values()) if isinstance(size, dict) else [size]
    one = all(isinstance(number, int) and number > 0 and number == numbers[0] for number in numbers)
    return numbers[0] if numbers and one else None


def is_triple(numbers: object) -> bool:
    return isinstance(numbers, list) and len(numbers) == 3 and all(isinstance(number, int | float) for number in numbers)


def write_preprocessing(directory: Path, checkpoint: Checkpoint, config) -> None:
    """BitImageProcessor's fields say resize and crop as they are; ResNets' usual ConvNextImageProcessor has a ratio to round."""
    p = asdict(Preprocessing(**checkpoint.preprocessing))
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


FAMILIES = {
    "bert": Family(
        body="BertModel",
        classifier="BertForSequenceClassification",
        prefix="bert.",
        roots=("embeddings.", "encoder.", "pooler."),
        head="classifier.",
        pool="cls",
        computed={"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False},
        files=("tokenizer.json", "tokenizer_config.json", "vocab.txt", "1_Pooling/config.json"),
        read_inputs=read_texts,
        write_inputs=write_texts,
    ),
    "resnet": Family(
        body="ResNetModel",
        classifier="ResNetForImageClassification",
        prefix="resnet.",
        roots=("embedder.", "encoder."),
        head="classifier.1.",
        pool="mean",
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
}
