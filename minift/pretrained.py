"""The directory of a converted checkpoint and the model/ of a run, read and written: the same layout.

model.safetensors   the body under minift's names; a run's head beside it as head.weight, head.bias
config.json         minift (version of this layout) and the fields of Checkpoint that are not tensors
tokenizer.json      as the tokenizers library reads it; none beside a model of images

A run that has trained a part of its model holds a delta: of the body only what differs from its base, and no tokenizer. The base is
found by name and known by the sha256 of its model.safetensors.
"""

import hashlib
import json
import os
import re
import typing
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from minift.adapting import adapt_saved
from minift.errors import UserError, look_up
from minift.methods.surgery import delta, load_delta, plain_name
from minift.models import MODELS
from minift.models.resnet import DEPTHS
from minift.tasks.task import of

LAYOUT = 1
HEAD = "head."
CHECKOUT = Path(__file__).parent.parent
ELSEWHERE = ("tensors", "tokenizer", "head", "grafts", "origin")  # fields of Checkpoint that do not stand in config.json
PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass
class Checkpoint:
    architecture: str
    config: dict  # of the architecture, as its Config takes it
    tensors: dict[str, Tensor]  # minift's names
    tokenizer: Tokenizer | None  # of a model of texts
    source: str  # where it was converted from
    revision: str | None = None  # of the source
    preprocessing: dict | None = None  # of a model of images: the fields of data.images.Preprocessing that belong to the weights
    pool: str | None = None  # what it recommends for a frozen body, cls or mean; None where it says nothing
    base: str | None = None  # of a run: sha256 of the model.safetensors that it started from
    base_name: str | None = None  # of a run: its --model, by which that is found again
    method: str | None = None  # of a run: its --method
    delta: bool = False  # of a run: whether the file holds only what differs from the base
    recipe: dict | None = None  # of a run: its flags
    task: dict | None = None  # of a run: name of the task and what it is made with
    settings: dict | None = None  # of a run: how its data was read and batched
    head: dict[str, Tensor] = field(default_factory=dict)  # of a run
    grafts: dict[str, Tensor] = field(default_factory=dict)  # of a run: what its method has added to the plain body
    origin: "Checkpoint | None" = None  # of a run that has been read and holds a delta: its base

    @property
    def width(self) -> int:
        """Of what the head reads."""
        return look_up(MODELS, self.architecture, "architecture").Config(**self.config).width

    @property
    def own_pool(self) -> str | None:
        """cls where the tensors hold a pooler's weights."""
        return "cls" if any(name.startswith("pooler.") for name in self.tensors) else None

    def empty_body(self, pool: str | None = "cls") -> nn.Module:
        """The body without memory for its weights: names, shapes and stages alone."""
        with torch.device("meta"):
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
        body = self.body(of(self.task).pool, dtype, copy)
        if self.grafts:
            adapt_saved(body, self.method)
            own = self.tensors | self.grafts
            load_delta(body, {name: own[name] for name in delta(body)})
        return body

    def random_body(self, pool: str | None = "cls") -> nn.Module:
        """The same architecture with newly initialised weights (--init random)."""
        model = look_up(MODELS, self.architecture, "architecture")
        return model(model.Config(**self.config), pool=pool)


def untrained(name: str) -> Checkpoint | None:
    """The architecture of a ResNet by name, without weights; None for another name, and where a converted one is to be found."""
    if name not in DEPTHS or any((place / "config.json").is_file() for place in places(name)):
        return None
    from minift.data.loading import IMAGENET_V2

    preprocessing = asdict(IMAGENET_V2)
    return Checkpoint("resnet", {"depths": DEPTHS[name]}, {}, None, f"{name} without weights", preprocessing=preprocessing)


def short_name(name: str) -> str:
    """The last part of a path, of this system or another, or of a hub id."""
    return re.split(r"[\\/]", name.rstrip("\\/"))[-1]


def places(name: str) -> list[Path]:
    """Where a converted checkpoint of this name may lie."""
    short = short_name(name)
    return [Path(name), weights_directory() / short, CHECKOUT / "weights" / short, Path(__file__).parent / "weights" / short]


def find(name: str) -> Path:
    """Where --model NAME lies: a directory; else $MINIFT_WEIGHTS/NAME; else weights/NAME of the checkout, or of the package."""
    short = short_name(name)
    for place in places(name):
        if is_converted(place / "model"):  # a run
            return place / "model"
        if place.is_dir():
            if place != Path(name) and short != name and (source := read_config(place)["source"]) != name:
                raise UserError(f"{name}: {place} was converted from {source}; give its path, or convert yours with another --out")
            return place
    raise UserError(
        f"{name}: no such directory, nor one of that name in {weights_directory()}; "
        f"to download and convert it: python convert.py {name}"
    )


def weights_directory() -> Path:
    """Where convert.py puts what it converts: $MINIFT_WEIGHTS, else weights/ of the checkout."""
    return Path(os.environ.get("MINIFT_WEIGHTS") or CHECKOUT / "weights")


def is_converted(directory: Path) -> bool:
    """Whether this is a converted checkpoint or a run's model/."""
    try:
        return "minift" in json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def read_config(directory: Path) -> dict:
    """config.json of a converted checkpoint or of a run's model/."""
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(f"{directory}: there is no config.json, so this is neither a converted checkpoint nor a run")
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path}: no JSON object, so this is neither a converted checkpoint nor a run")
    if "flags" in config:
        raise UserError(f"{directory}: this run was stopped before its first epoch was over, so no model was saved")
    if "minift" not in config:
        raise UserError(f"{directory} is not converted yet: python convert.py {directory}")
    if config["minift"] != LAYOUT:
        raise UserError(f"{path}: layout {config['minift']}, this minift reads layout {LAYOUT}; convert the checkpoint again")
    return config


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; a file that is missing, cut short or something else is named."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return load_file(path)
    except SafetensorError as error:
        size = path.stat().st_size
        raise UserError(f"{path}: cut short or no safetensors file ({size:,} bytes; {error}); fetch it again") from None


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file that others may read too: the library makes it for its owner alone."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    path.chmod(0o644)


def read_tokenizer(directory: Path) -> Tokenizer:
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; convert the checkpoint again")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path}: not readable as a tokenizer ({error})") from None


def read(directory: Path, base: Checkpoint | None = None) -> Checkpoint:
    """A converted checkpoint or a run's model/; the names and shapes of the body's tensors are checked.

    base: what the run's delta belongs to, where that has been read already; None: it is looked for.
    """
    config = of_today(read_config(directory))
    check_config(directory / "config.json", config)
    file = directory / "model.safetensors"
    tensors = read_tensors(file)
    head = {name.removeprefix(HEAD): tensors.pop(name) for name in list(tensors) if name.startswith(HEAD)}
    described = {key: value for key, value in config.items() if key != "minift"}
    checkpoint = Checkpoint(tensors=tensors, head=head, tokenizer=None, **described)
    try:
        task = of(checkpoint.task) if checkpoint.task else None
        body = checkpoint.empty_body(task.pool if task else checkpoint.own_pool)
        plain = body.state_dict().keys()
        if checkpoint.method:
            adapt_saved(body, checkpoint.method)
    except (UserError, TypeError, ValueError) as error:
        raise UserError(f"{directory / 'config.json'}: {error}") from None
    expected = delta(body) if checkpoint.delta else {plain_name(name): tensor for name, tensor in body.state_dict().items()}
    check_shapes(file, tensors, expected)
    if checkpoint.task:
        with torch.device("meta"):
            expected_head = task.head(body).state_dict()
        named = [{HEAD + name: tensor for name, tensor in part.items()} for part in (head, expected_head)]
        check_shapes(file, *named, f"the task of config.json, {checkpoint.task['name']}")
    checkpoint.grafts = {name: tensors.pop(name) for name in list(tensors) if name not in plain}
    if checkpoint.delta:
        checkpoint.origin = base or read_base(directory, checkpoint)
        checkpoint.tensors = {name: t for name, t in checkpoint.origin.tensors.items() if name in plain} | tensors
        checkpoint.tokenizer = checkpoint.origin.tokenizer
    elif not checkpoint.preprocessing:
        checkpoint.tokenizer = read_tokenizer(directory)
    return checkpoint


def check_config(path: Path, config: dict) -> None:
    """What a config.json holds is of the types that Checkpoint has, and complete. The file may have been edited by hand."""
    types = typing.get_type_hints(Checkpoint)
    stored = {f.name for f in fields(Checkpoint)} - set(ELSEWHERE)
    wanted = {"architecture", "config", "source"}
    wanted |= {"base", "base_name", "method"} if config.get("delta") else set()
    for name in sorted(config.keys() - stored - {"minift"}):
        raise UserError(f"{path}: {name} is no field of a checkpoint; known are {', '.join(sorted(stored))}")
    for name in sorted(stored & config.keys() | wanted):
        if not isinstance(config.get(name), types[name]) or (name in wanted and config[name] is None):
            raise UserError(
                f"{path}: {name} is {config.get(name)!r}, and not what a checkpoint has there; convert or train it again"
            )
    settings = config.get("settings") or {}
    if not isinstance(settings.get("batch_size", 1), int) or settings.get("precision", "float32") not in PRECISIONS:
        raise UserError(f"{path}: settings are {settings!r}; expected a batch_size and a precision of {', '.join(PRECISIONS)}")


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
            return read(place)
    why = f"{found[0]} is another one" if found else "that is not there"
    raise UserError(
        f"{directory} holds what {run.method} has changed of {run.base_name} (sha256 {run.base[:12]}...), and {why}; "
        f"put the right one into {weights_directory()}, or name the directory that it lies in by MINIFT_WEIGHTS"
    )


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


def write(directory: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint beside `directory`, then put it in its place: a crash leaves every file whole, old or new."""
    config = {key: value for key, value in vars(checkpoint).items() if key not in ELSEWHERE}
    known = checkpoint.origin.tensors if checkpoint.delta and checkpoint.origin else {}  # stands in the base
    own = {name: tensor for name, tensor in checkpoint.tensors.items() if tensor is not known.get(name)}
    tensors = own | checkpoint.grafts | {HEAD + name: tensor for name, tensor in checkpoint.head.items()}
    beside = directory.with_name(directory.name + ".part")
    beside.mkdir(parents=True, exist_ok=True)
    write_tensors(beside / "model.safetensors", tensors)
    write_json(beside / "config.json", {"minift": LAYOUT} | config)
    if checkpoint.tokenizer is not None and not checkpoint.delta:
        checkpoint.tokenizer.save(str(beside / "tokenizer.json"))
    directory.mkdir(exist_ok=True)
    for file in sorted(beside.iterdir()):
        file.replace(directory / file.name)
    beside.rmdir()


def sha256(path: Path) -> str:
    return hash_file(path, hashlib.sha256())


def hash_file(path: Path, digest) -> str:
    """The hexadecimal digest of a file; `digest` is one of hashlib's, which may have taken something in already."""
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
