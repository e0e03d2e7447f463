"""The directory of a converted checkpoint and the model/ of a run, read and written: the same layout.

model.safetensors   the body under minift's names; a run's head beside it as head.weight, head.bias; of a converted checkpoint
                    heads of its pretraining as pretrained.TASK.NAME, as pretrained.masked-lm.dense.weight
config.json         minift (version of this layout) and the fields of Checkpoint that are not tensors
tokenizer.json      as the tokenizers library reads it; none beside a model of images

A run that has trained a part of its model holds a delta: of the body only what differs from its base, and no tokenizer. The base is
found by name and known by the sha256 of its model.safetensors and of its tokenizer.json.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minift.adapting import adapt_saved
from minift.cli import CHECKOUT, is_checkout, spelled
from minift.data.stored import user_cache
from minift.errors import UserError, brief, ctrl_c_later, is_there, look_up
from minift.fields import fits, ranged, read_fields, shown
from minift.flags import check_ranges
from minift.methods.surgery import delta, load_delta, plain_name
from minift.models import MODELS
from minift.models.efficientnet import SIZES as EFFICIENTNETS
from minift.models.gpt2 import SIZES, Gpt2Config, sized
from minift.models.resnet import DEPTHS
from minift.specs import bind
from minift.tasks.task import task_from

LAYOUT = 1
HEAD = "head."
PRETRAINED = "pretrained."
ELSEWHERE = ("tensors", "tokenizer", "head", "heads", "grafts", "origin")  # fields of Checkpoint that do not stand in config.json
PRECISIONS = ("float32", "tf32", "bfloat16", "float16")


@dataclass(frozen=True)
class Settings:
    """Of a run: how its data was read and batched."""

    batch_size: int = ranged(least=1, most=1_000_000)
    precision: str = ranged("float32", choices=PRECISIONS)
    frozen: int = ranged(0, least=0, most=100_000)  # modules of `body.walk()` below all that has trained
    layout: dict = field(default_factory=dict)  # the fields of the task's LAYOUT


@dataclass
class Checkpoint:
    architecture: str
    config: dict  # of the architecture, as its Config takes it
    tensors: dict[str, Tensor]  # minift's names
    tokenizer: Tokenizer | None  # of a model of texts
    source: str  # where it was converted from
    revision: str | None = None  # of the source
    preprocessing: dict | None = None  # of a model of images: the fields of data.images.Preprocessing that belong to the weights
    pool: str | None = None  # what it recommends for a frozen body; None where it says nothing
    base: str | None = None  # of a run: sha256 of the model.safetensors that it started from
    base_tokenizer: str | None = None  # likewise of its tokenizer.json, where it has one
    base_name: str | None = None  # of a run: its --model, by which that is found again
    method: str | None = None  # of a run: its --method
    delta: bool = False  # of a run: whether the file holds only what differs from the base
    recipe: dict | None = None  # of a run: its flags
    task: dict | None = None  # of a run: name and fields of the task
    settings: dict | None = None  # of a run: how its data was read and batched
    head: dict[str, Tensor] = field(default_factory=dict)  # of a run
    heads: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # of a converted checkpoint: task -> its pretrained head
    grafts: dict[str, Tensor] = field(default_factory=dict)  # of a run: what its method has added to the plain body
    origin: "Checkpoint | None" = None  # of a run that has been read and holds a delta: its base

    @property
    def width(self) -> int:
        """Of what the head reads."""
        return look_up(MODELS, self.architecture, "architecture").Config(**self.config).width

    @property
    def max_length(self) -> int:
        """Of a model of texts: the most tokens of a row."""
        return look_up(MODELS, self.architecture, "architecture").Config(**self.config).max_length

    @property
    def usual_pool(self) -> str:
        """What a task's head reads where nothing is said."""
        return look_up(MODELS, self.architecture, "architecture").POOLS[0]

    @property
    def causal(self) -> bool:
        """Whether a token sees none behind it, as of a GPT-2."""
        return look_up(MODELS, self.architecture, "architecture").CAUSAL

    @property
    def own_pool(self) -> str | None:
        """cls where the tensors hold a pooler's weights."""
        return "cls" if any(name.startswith("pooler.") for name in self.tensors) else None

    def without_tensors(self) -> "Checkpoint":
        """Nothing of it that is large. The file that the tensors are views of leaves the memory with them."""
        return replace(self, tensors={}, heads={}, origin=None)

    def empty_body(self, pool: str | None = "cls") -> nn.Module:
        """The body without memory for its weights: names, shapes and stages alone."""
        with outline():
            return self.random_body(pool)

    def body(self, pool: str | None = "cls", dtype: torch.dtype = torch.float32, copy: bool = True) -> nn.Module:
        """The plain body with these weights in `dtype`. A pooler that is asked for and not in the checkpoint is newly initialised.

        copy: whether the body has tensors of its own, or those of the checkpoint where they are in `dtype`.
        """
        body = self.empty_body(pool)
        stored = {name: self.tensors[name] for name in body.state_dict() if name in self.tensors}
        wanted = {name: t.to(dtype if t.is_floating_point() else t.dtype, copy=copy) for name, t in stored.items()}
        if body.load_state_dict(wanted, strict=False, assign=True).missing_keys:  # the pooler's alone: `read` has checked the rest
            body.pooler.to_empty(device="cpu").to(dtype).apply(body.initialise)
        return body

    def tuned_body(self, dtype: torch.dtype = torch.float32, copy: bool = True) -> nn.Module:
        """Of a run: the body as it was trained, with what the method has added."""
        body = self.body(task_from(self.task).pool, dtype, copy)
        if self.grafts:
            adapt_saved(body, self.method)
            own = self.tensors | self.grafts
            load_delta(body, {name: own[name] for name in delta(body)})
        return body

    def random_body(self, pool: str | None = "cls") -> nn.Module:
        """The same architecture with newly initialised weights (--init random)."""
        model = look_up(MODELS, self.architecture, "architecture")
        return model(model.Config(**self.config), pool=pool)


class Undrawn(TorchFunctionMode):
    """Modules that are made under it draw no weights."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", None) == nn.init.__name__:
            return [*args, *(kwargs or {}).values()][0]  # the tensor
        return function(*args, **(kwargs or {}))


@contextmanager
def outline() -> Iterator[None]:
    """Modules that are made under it have names and shapes, and no memory: their weights are on the meta device.

    To draw weights there, where there are none, would make torch import its compiler, which takes a second.
    """
    with torch.device("meta"), Undrawn():
        yield


def untrained(name: str) -> Checkpoint | None:
    """The architecture of a model of images or a GPT-2 by name, without weights; None for another name, and where a converted one
    is found. A GPT-2 may have a size of its own, as gpt2:n_layer=4,n_embd=128,n_head=4; its vocabulary is that of the bytes.
    """
    family, _, size = name.partition(":")
    if any((place / "config.json").is_file() for place in places(name)):
        return None
    if family in SIZES:
        from minift.formats.bytelevel import END_OF_TEXT, tokenizer_of_bytes

        config = bind(partial(sized, **SIZES[family]), family, size, f"--model {name}")()
        tokenizer = tokenizer_of_bytes()
        end = tokenizer.token_to_id(END_OF_TEXT)
        config |= {"vocab_size": tokenizer.get_vocab_size(), "eos_token_id": end, "pad_token_id": end}
        try:
            return Checkpoint("gpt2", asdict(Gpt2Config(**config)), {}, tokenizer, f"{name} without weights, over bytes")
        except ValueError as error:
            raise UserError(f"--model {name}: {error}") from None
    if name not in (*DEPTHS, *EFFICIENTNETS):
        return None
    from minift.data.loading import IMAGENET_V2
    from minift.formats.efficientnet import untrained as efficientnet

    kind, (config, inputs) = "resnet", ({"depths": DEPTHS.get(name)}, IMAGENET_V2)
    if name in EFFICIENTNETS:
        kind, (config, inputs) = "efficientnet", efficientnet(name)
    return Checkpoint(kind, config, {}, None, f"{name} without weights", preprocessing=asdict(inputs))


def short_name(name: str) -> str:
    """The last part of a path, of this system or another, or of a hub id."""
    return re.split(r"[\\/]", name.rstrip("\\/"))[-1]


def places(name: str) -> list[Path]:
    """Where a converted checkpoint of this name may lie."""
    short = short_name(name)
    checkout = [CHECKOUT / "weights" / short] if is_checkout() else []
    return [Path(name), weights_directory() / short, *checkout, Path(__file__).parent / "weights" / short]


def find(name: str) -> Path:
    """Where --model NAME lies: a directory; else in weights_directory(); else weights/NAME of the checkout, or of the package."""
    short = short_name(name)
    for place in places(name):
        if is_converted(place / "model"):  # a run
            return place / "model"
        recover(place)
        if place.is_dir():
            if place != Path(name) and short != name and (source := read_config(place)["source"]) != name:
                raise UserError(f"{name}: {place} was converted from {source}; give its path, or convert yours with another --out")
            return place
    if name.partition(":")[0] in SIZES and ":" in name:
        raise UserError(f"{name}: a GPT-2 of this size has no weights to start from; add --init random")
    raise UserError(
        f"{name}: no such directory, nor one of that name in {weights_directory()}; "
        f"to download and convert it: {spelled('convert')} {name}"
    )


def weights_directory() -> Path:
    """Where convert.py puts what it converts: $MINIFT_WEIGHTS, else weights/ of the checkout, else the user's cache."""
    if named := os.environ.get("MINIFT_WEIGHTS"):
        return Path(named)
    if is_checkout():
        return CHECKOUT / "weights"
    return user_cache()


def is_converted(directory: Path) -> bool:
    """Whether this is a converted checkpoint or a run's model/. Raises UserError where config.json is no file."""
    try:
        recover(directory)
        file = directory / "config.json"
        return is_there(file) and "minift" in json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def read_config(directory: Path) -> dict:
    """config.json of a converted checkpoint or of a run's model/."""
    recover(directory)
    path = directory / "config.json"
    if not is_there(path):
        raise UserError(f"{directory}: there is no config.json, so this is neither a converted checkpoint nor a run")
    config = read_object(path)
    if "flags" in config and recover(directory / "model"):
        raise UserError(
            f"{directory}: a crash has interrupted the writing of its model; it is repaired, run the same command again"
        )
    if "flags" in config:
        raise UserError(f"{directory}: this run was stopped before its first epoch was over, so no model was saved")
    if "minift" not in config:
        raise UserError(f"{directory} is not converted yet: {spelled('convert')} {directory}")
    if config["minift"] != LAYOUT:
        raise UserError(
            f"{path}: layout {shown(config['minift'])}, this minift reads layout {LAYOUT}; convert the checkpoint again"
        )
    return config


def read_description(directory: Path) -> dict:
    """The same, checked, as this minift would have written it."""
    return check_config(directory / "config.json", of_today(read_config(directory)))


def read_json(path: Path) -> object:
    is_there(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def read_object(path: Path) -> dict:
    """A JSON file that holds an object."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object, but {shown(content)}")
    return content


def write_json(path: Path, content: dict) -> None:
    """In UTF-8; where a string cannot stand in that (half a surrogate pair, a path of other bytes) all in escapes of ASCII."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError:
        encoded = (json.dumps(content, indent=2) + "\n").encode("ascii")
    try:
        path.write_bytes(encoded)
    except OSError as error:  # a write that fails does not say where
        error.filename = error.filename or str(path)
        raise


def read_tensors(path: Path, checked: bool = True) -> dict[str, Tensor]:
    """The tensors of a safetensors file; a file that is missing, cut short or something else is named.

    The library compares what the header claims (sizes, offsets, types) with the file before it takes memory.
    checked: all of the tensors are weights, so `check_values` looks at them.
    """
    if not is_there(path):
        raise UserError(f"{path}: no such file")
    check_path(path)
    try:
        with ctrl_c_later():
            tensors = load_file(path)
    except (SafetensorError, LookupError, AttributeError, TypeError, ValueError) as error:  # a type that this torch has not
        size, why = path.stat().st_size, brief(error)
        raise UserError(f"{path}: cut short or no safetensors file ({size:,} bytes; {why}); fetch it again") from None
    if checked:
        check_values(path, tensors)
    return tensors


def check_values(where: Path, tensors: dict[str, Tensor]) -> None:
    """Every weight is a finite floating-point number; the counters of BatchNorms are integers. One pass, without a copy."""
    for name, tensor in tensors.items():
        is_counter = name.endswith("num_batches_tracked")
        packed = "float4" in str(tensor.dtype)  # two numbers a byte: of another shape, too
        if tensor.is_floating_point() == is_counter or tensor.is_complex() or tensor.dtype == torch.bool or packed:
            kind = str(tensor.dtype).removeprefix("torch.")
            expected = "an integer" if is_counter else "a floating-point type of 8 bits or more"
            raise UserError(f"{where}: {name} is stored as {kind}, {expected} is expected; save it again in that type")
        if is_counter or not tensor.numel():
            continue
        if tensor.dtype.itemsize == 1:  # float8 has no arithmetic of its own
            tensor = tensor.float()
        if not torch.stack(tensor.aminmax()).isfinite().all():
            raise UserError(f"{where}: {name} holds NaN or infinite values, so nothing can be computed with it; take other weights")


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file that others may read too: the library makes it for its owner alone."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    path.chmod(0o644)


def read_tokenizer(directory: Path) -> Tokenizer:
    path = directory / "tokenizer.json"
    if not is_there(path):
        raise UserError(f"{path}: no such file; convert the checkpoint again")
    check_path(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path}: not readable as a tokenizer ({brief(error)})") from None
    processor = json.loads(tokenizer.post_processor.__getstate__()) if tokenizer.post_processor else {}
    for part in processor.get("processors", [processor]):  # the library panics at the first text where a template lacks a token
        pieces = [*part.get("single", ()), *part.get("pair", ())] if part.get("type") == "TemplateProcessing" else []
        used = {piece["SpecialToken"]["id"] for piece in pieces if "SpecialToken" in piece}
        if absent := used - part.get("special_tokens", {}).keys():
            raise UserError(f"{path}: not readable as a tokenizer (special_tokens of its template lack {min(absent)!r})")
    return tokenizer


def read(directory: Path, base: Checkpoint | None = None) -> Checkpoint:
    """A converted checkpoint or a run's model/; the names and shapes of the body's tensors are checked.

    base: what the run's delta belongs to, where that has been read already; None: it is looked for.
    """
    config = read_description(directory)
    file = directory / "model.safetensors"
    tensors = read_tensors(file)
    head = {name.removeprefix(HEAD): tensors.pop(name) for name in list(tensors) if name.startswith(HEAD)}
    described = {key: value for key, value in config.items() if key != "minift"}
    checkpoint = Checkpoint(tensors=tensors, head=head, tokenizer=None, **described)
    if checkpoint.task is None:
        for name in [name for name in tensors if name.startswith(PRETRAINED)]:
            task, _, leaf = name.removeprefix(PRETRAINED).partition(".")
            checkpoint.heads.setdefault(task, {})[leaf] = tensors.pop(name)
    try:
        task = None if checkpoint.task is None else task_from(checkpoint.task)
        body = checkpoint.empty_body(task.pool if task else checkpoint.own_pool)
        plain = body.state_dict().keys()
        if checkpoint.method:
            with outline():
                adapt_saved(body, checkpoint.method)
    except (UserError, TypeError, ValueError) as error:
        raise UserError(f"{directory / 'config.json'}: {error}") from None
    expected = delta(body) if checkpoint.delta else {plain_name(name): tensor for name, tensor in body.state_dict().items()}
    check_shapes(file, tensors, expected)
    if task is not None:
        with outline():
            expected_head = task.head(body).state_dict()
        named = [{HEAD + name: tensor for name, tensor in part.items()} for part in (head, expected_head)]
        check_shapes(file, *named, f"the task of config.json, {checkpoint.task['name']}")
    checkpoint.grafts = {name: tensors.pop(name) for name in list(tensors) if name not in plain}
    if checkpoint.delta:
        checkpoint.origin = base or read_base(directory, checkpoint)
        check_base(directory, checkpoint, body)
        checkpoint.tensors = {name: t for name, t in checkpoint.origin.tensors.items() if name in plain} | tensors
        checkpoint.tokenizer = checkpoint.origin.tokenizer
    elif not checkpoint.preprocessing:
        checkpoint.tokenizer = read_tokenizer(directory)
    return checkpoint


def check_config(path: Path, config: dict) -> dict:
    """What a config.json holds is of the types that Checkpoint has, and complete. The file may have been edited by hand.

    Returns it with the values of what an older run or checkpoint did not write.
    """
    types = typing.get_type_hints(Checkpoint)
    stored = {f.name for f in fields(Checkpoint)} - set(ELSEWHERE)
    wanted = {"architecture", "config", "source"}
    wanted |= {"base", "base_name", "method"} if config.get("delta") else set()
    for name in sorted(config.keys() - stored - {"minift"}):
        raise UserError(f"{path}: {shown(name)} is no field of a checkpoint; known are {', '.join(sorted(stored))}")
    for name in sorted(stored & config.keys() | wanted):
        value = config.get(name)
        if not fits(value, types[name]) or (name in wanted and value is None):
            raise UserError(f"{path}: {name} is {shown(value)}, and not what a checkpoint has there; convert or train it again")
    try:
        model = look_up(MODELS, config["architecture"], "architecture").Config(**config["config"])
        task = None if config.get("task") is None else task_from(config["task"])
        settings = None if config.get("settings") is None else read_fields(Settings, config["settings"], "settings")
        if task is not None and settings is not None:
            check_ranges(read_fields(task.LAYOUT, settings.layout, "settings: layout"))
        if config.get("preprocessing") is not None:
            from minift.data.loading import Preprocessing  # of images alone

            Preprocessing.of(config["preprocessing"])
        if (pool := config.get("pool")) not in (None, "cls", "mean", "last"):
            raise UserError(f"pool is {shown(pool)}; expected cls, mean or last")
    except (UserError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None
    return config | {"config": asdict(model)} | ({} if settings is None else {"settings": asdict(settings)})


def of_today(config: dict) -> dict:
    """The config.json of an older run: parts of the task stood among the settings, and the layout had flags for all tasks."""
    task, settings = config.get("task"), config.get("settings")
    if not isinstance(task, dict) or not isinstance(settings, dict) or task.keys() != {"name", "labels", "pool"}:
        return config
    settings, layout = dict(settings), settings.get("layout")
    if task["name"] == "text-classification":
        task = task | {name: settings.pop(name) for name in ("max_length", "pairs") if name in settings}
    if isinstance(layout, dict):
        foreign = ("skip_bad_images",) if task["name"] == "text-classification" else ("pair_column",)
        settings["layout"] = {name: value for name, value in layout.items() if name not in foreign}
    return config | {"task": task, "settings": settings}


def read_base(directory: Path, run: Checkpoint) -> Checkpoint:
    """What the delta of a run belongs to: looked for by the name that the run knows it by, known by its bits."""
    found = [place for name in places(run.base_name) for place in (name / "model", name)]
    found = [place for place in found if is_converted(place) and (place / "model.safetensors").is_file()]
    for place in found:
        if sha256(place / "model.safetensors") == run.base:
            tokenizer = place / "tokenizer.json"
            if run.base_tokenizer is None or (tokenizer.is_file() and sha256(tokenizer) == run.base_tokenizer):
                return read(place)
            raise UserError(f"{directory} was trained with another tokenizer than {tokenizer} (sha256 {run.base_tokenizer[:12]}... "
                            "is expected); put the right one back, or convert the base again")  # fmt: skip
    why = f"{found[0]} is another one" if found else "that is not there"
    raise UserError(
        f"{directory} holds what {run.method} has changed of {run.base_name:.200} (sha256 {run.base[:12]}...), and {why}; "
        f"put the right one into {weights_directory()}, or name the directory that it lies in by MINIFT_WEIGHTS"
    )


def check_base(directory: Path, run: Checkpoint, body: nn.Module) -> None:
    """The weights of the base are those of the model that the run describes."""
    shapes = {plain_name(name): tensor.shape for name, tensor in body.state_dict().items()}
    for name, tensor in run.origin.tensors.items():
        if name in shapes and shapes[name] != tensor.shape:
            asked = f"config.json asks for {tuple(shapes[name])}"
            raise UserError(f"{directory}: {name} of the base {run.base_name} is {tuple(tensor.shape)}, {asked}")


def check_shapes(where: Path, tensors: dict[str, Tensor], expected: dict[str, Tensor], wanted_by: str = "config.json") -> None:
    """Every expected tensor is there with its shape, and nothing else is."""
    missing, unexpected = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unexpected:
        parts = [
            f"{len(names)} {kind} (first {names[0]})" for kind, names in (("missing", missing), ("unexpected", unexpected)) if names
        ]
        raise UserError(f"{where}: the tensors do not fit {wanted_by}: {', '.join(parts)}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise UserError(f"{where}: {name} is {tuple(tensor.shape)}, {wanted_by} asks for {tuple(expected[name].shape)}")


# ---- writing ----


def write(directory: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint to `directory`, whole or not at all; what was there is replaced."""
    config = {key: value for key, value in vars(checkpoint).items() if key not in ELSEWHERE}
    known = checkpoint.origin.tensors if checkpoint.delta and checkpoint.origin else {}  # stands in the base
    own = {name: tensor for name, tensor in checkpoint.tensors.items() if tensor is not known.get(name)}
    tensors = own | checkpoint.grafts | {HEAD + name: tensor for name, tensor in checkpoint.head.items()}
    for task, head in checkpoint.heads.items():
        tensors |= {f"{PRETRAINED}{task}.{name}": tensor for name, tensor in head.items()}
    with whole(directory) as fresh:
        write_tensors(fresh / "model.safetensors", tensors)
        write_json(fresh / "config.json", {"minift": LAYOUT} | config)
        if checkpoint.tokenizer is not None and not checkpoint.delta:
            (fresh / "tokenizer.json").write_text(checkpoint.tokenizer.to_str(pretty=True), encoding="utf-8")


@contextmanager
def whole(directory: Path) -> Iterator[Path]:
    """A new directory to write into, which takes the place of `directory` at the end of the block, or leaves nothing.

    After a crash at any moment the old content or the new one is there, complete: at the end the old directory is renamed aside
    (.NAME.old), the new one in, and the old one deleted. Where only the one aside is left, `recover` renames it back.
    """
    directory = Path(os.path.realpath(directory))  # where a link leads, so that the link stays
    aside = aside_of(directory)
    with beside(directory) as part:
        recover(directory)
        fresh = part / "new"  # below one that is its owner's alone, so that it has the usual rights itself
        fresh.mkdir()
        try:
            yield fresh
            for path in (*fresh.rglob("*"), fresh):
                flush(path)
            if directory.exists():
                shutil.rmtree(aside, ignore_errors=True)
                directory.rename(aside)
            fresh.rename(directory)
            flush(directory.parent)
            shutil.rmtree(aside, ignore_errors=True)
        finally:
            recover(directory)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The same of a single file: the block writes the path that it is given."""
    with beside(path) as part:
        fresh = part / path.name
        yield fresh
        flush(fresh)
        fresh.replace(path)
        flush(path.parent)


@contextmanager
def beside(place: Path) -> Iterator[Path]:
    """An empty directory on the file system of `place`, deleted at the end. What cannot be written is said in one line."""
    check_path(place)
    part = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".minift-", suffix=".part", dir=place.parent))
        yield part
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or brief(error)
        raise UserError(f"{place}: cannot be written ({why}); what was there before is unchanged") from None
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def aside_of(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.old")


def recover(directory: Path) -> bool:
    """Put back what a crash in the middle of `whole` has left aside; whether there was such a thing."""
    if not directory.name or directory.exists() or not aside_of(directory).is_dir():
        return False
    aside_of(directory).rename(directory)
    return True


def flush(path: Path) -> None:
    """To the disk, so that a loss of power does not take it back."""
    try:
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:
        if path.is_dir():  # of Windows, where directories cannot be opened
            return
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_path(path: Path) -> None:
    """The libraries of tensors and tokenizers open no path that is not UTF-8."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{path}: this name is not UTF-8, and files below it cannot be opened; rename it") from None


def sha256(path: Path) -> str:
    return hash_file(path, hashlib.sha256())


def hash_file(path: Path, digest) -> str:
    """The hexadecimal digest of a file; `digest` is one of hashlib's, which may have taken something in already."""
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
