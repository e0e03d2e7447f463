"""ResNets and EfficientNets of torchvision: published weights downloaded, files read and written; and files of timm.

timm's resnet50, -101 and -152 have torchvision's names; what its EfficientNets are called stands in efficientnet.py. The map of
names stands in the model's file; here it is applied, both ways and strictly: nothing is skipped silently. A file says nothing of
depths or widths, so they are read off the names and shapes, nor of preprocessing, so that comes from its hash.
Proved by tests/reference/test_resnet.py, tests/formats/test_torchvision.py and test_efficientnet.py against the libraries.
"""

import http.client
import re
import sys
import urllib.error
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from minift.cli import spelled
from minift.data.loading import IMAGENET_V1, IMAGENET_V2, Preprocessing, mismatch
from minift.errors import UserError, brief, is_there
from minift.formats import efficientnet
from minift.formats.hub import reason
from minift.formats.huggingface import Report, count_from_zero, translate, unpickle, untied, write_bin
from minift.models.efficientnet import SIZES, EfficientNet
from minift.models.resnet import DEPTHS, REDUCTION, ResNet, ResNetConfig
from minift.pretrained import (
    Checkpoint,
    check_shapes,
    check_values,
    outline,
    read_object,
    read_tensors,
    sha256,
    whole_file,
    write_json,
    write_tensors,
)

# Name on the command line -> torchvision's name of the weights
VERSIONS = {"": "V2", "-v1": "V1", "-v2": "V2"}
WEIGHTS = {name + end: f"ResNet{name[6:]}_Weights.IMAGENET1K_{version}" for name in DEPTHS for end, version in VERSIONS.items()}
WEIGHTS |= {name: f"EfficientNet_{name[13:].upper()}_Weights.IMAGENET1K_V1" for name in SIZES if "lite" not in name}
PREPROCESSING = {"v1": IMAGENET_V1, "v2": IMAGENET_V2}
NESTED = ("state_dict", "model", "model_state_dict")  # where training scripts put the weights among other things
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")  # of DataParallel, torch.compile and training scripts
HEAD = "fc."
SUFFIXES = (".pth", ".pt", ".safetensors")


def library():
    """torchvision.models, imported on first use."""
    try:
        from torchvision import models
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        raise UserError(mismatch(brief(error))) from None
    return models


# ---- published weights ----


def published() -> dict:
    """File name -> the weights that torchvision publishes under it."""
    weights = [library().get_weight(name) for name in WEIGHTS.values()]
    return {file_name(entry.url): entry for entry in weights}


def file_name(url: str) -> str:
    return url.rpartition("/")[2]


def promised(file: str) -> str:
    """The beginning of the sha256 of a published file, which is the end of its name."""
    return re.search(r"-([0-9a-f]{8,})\.", file)[1]


def is_published(digest: str) -> bool:
    """Whether a file with this sha256 is one of torchvision's.

    Eight hexadecimal digits are all of the hash that torchvision makes known, in the names of its files. They tell an honest file
    from a broken one; a crafted file with the same eight can be made, with some 4 billion attempts.
    """
    return any(digest.startswith(promised(file)) for file in published())


def fetch(name: str) -> Path:
    """The file of published weights from torch.hub's cache, downloaded where it is not there; its hash is compared each time."""
    url = library().get_weight(WEIGHTS[name]).url
    path = Path(torch.hub.get_dir(), "checkpoints", file_name(url))
    if not is_there(path):
        download(name, url, path)
    elif not (found := sha256(path)).startswith(promised(path.name)):
        path.unlink()
        raise UserError(
            f"{path}: wrong hash: the name promises {promised(path.name)}..., the file has {found}; "
            "deleted from the cache, run the same command again"
        )
    return path


def download(name: str, url: str, path: Path) -> None:
    """Fetch `url` whole or not at all: torch.hub writes beside `path` and renames once the hash is right."""
    print(f"download {url} to {path.parent}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), promised(path.name), progress=sys.stderr.isatty())
    except urllib.error.HTTPError as error:
        raise UserError(f"{name}: {url}: the server answers {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise UserError(
            f"{name}: {url} could not be reached ({reason(error)}); run the same command again, or fetch the file elsewhere: "
            f"{spelled('convert')} {path.name} --out DIR"
        ) from None
    except RuntimeError as error:  # of the hash; a connection that is closed too early shows only there
        raise UserError(
            f"{name}: {url} broke off or came changed: {brief(error)}; nothing was kept, run the same command again"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # a directory that may not be written: `command` says so
        raise UserError(
            f"{name}: {url} broke off ({reason(error)}); nothing was kept in {path.parent}, run the same command again"
        ) from None


def preprocessing_of(weights) -> Preprocessing:
    preset = weights.transforms()
    return Preprocessing(
        resize=preset.resize_size[0],
        crop=preset.crop_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
        antialias=bool(preset.antialias),
    )


# ---- reading ----


def read(path: Path, source: str, revision: str | None = None, preprocessing: str | None = None) -> tuple[Checkpoint, Report]:
    """A file of tensors in torchvision's or timm's names as minift's Checkpoint.

    preprocessing: v1 or v2 of a ResNet, where the user has said it.
    """
    report = Report(path.name, [])
    theirs, described = state_dict(path, report), beside(path)
    names = efficientnet.names_in(theirs)
    if names is None:
        kind, head, usual = "resnet", HEAD, IMAGENET_V1
        config = architecture(path, theirs)
        with outline():
            body = ResNet(config)
        table, what = translate(body, body.TORCHVISION), f"a ResNet with {config.depths} blocks of {config.hidden_sizes} channels"
    else:
        if preprocessing is not None:
            raise UserError(f"--preprocessing {preprocessing}: it is of ResNets, and {path} holds an EfficientNet")
        kind, head = "efficientnet", names.head
        config, usual = efficientnet.describe(path, names, theirs, described)
        with outline():
            body = EfficientNet(config)
        table, what = translate(body, names.table), f"an EfficientNet with {config.depths} blocks"
        trained = f"{config.padding} padding, eps {config.batch_norm_eps:g}"
        report.said.append(f"{efficientnet.size_of(config) or 'an EfficientNet'} in {names.library}'s names, {trained}")
    expected = {table[ours]: tensor for ours, tensor in body.state_dict().items()}
    report.dropped += sorted(name for name in theirs if name.startswith(head))
    inside = {name: tensor for name, tensor in theirs.items() if not name.startswith(head)}
    count_from_zero(inside, expected, report)
    check_shapes(path, inside, expected, what)
    check_values(path, inside)
    tensors = {ours: inside[name] for ours, name in table.items()}
    inputs = asdict(choose_preprocessing(path, preprocessing, described, usual, report))
    return Checkpoint(kind, asdict(config), tensors, None, source, revision, preprocessing=inputs), report


def beside(path: Path) -> dict:
    """What minift has written beside a file, which that cannot hold; empty where there is nothing."""
    file = path.with_suffix(".json")
    return read_object(file) if is_there(file) else {}


def state_dict(path: Path, report: Report) -> dict[str, Tensor]:
    """The tensors of a file, taken out of what training scripts and wrappers put around them."""
    if not is_there(path):
        raise UserError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        tensors = read_tensors(path, checked=False)
    else:
        content = unpickle(path, trusted=is_published(sha256(path)))
        key = next((key for key in NESTED if isinstance(content, dict) and isinstance(content.get(key), dict)), None)
        tensors = untied(path, content if key is None else content[key])
        if key is not None:
            others = ", ".join(str(other) for other in content if other != key)
            report.said.append(f"{key} of a training checkpoint taken, left out: {others or 'nothing'}")
    while prefix := next((prefix for prefix in PREFIXES if tensors and all(name.startswith(prefix) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        report.said.append(f"{prefix} before every name taken off")
    return tensors


def architecture(path: Path, tensors: dict[str, Tensor]) -> ResNetConfig:
    """Depths and widths by the names and shapes; what is no ResNet of bottlenecks is refused by what it is."""
    blocks = {match[0]: int(match[1]) for name in tensors if (match := re.match(r"layer(\d+)\.\d+\.", name))}
    if "conv1.weight" not in tensors or not blocks:
        raise UserError(
            f"{path}: no ResNet in torchvision's names (it begins with {', '.join(list(tensors)[:3]) or 'nothing'}), nor an "
            "EfficientNet in its or timm's; of a transformers checkpoint give the directory that holds it together with config.json"
        )
    if not any(name.endswith(".conv3.weight") for name in tensors):
        raise UserError(
            f"{path}: its blocks have two convolutions, as in ResNet-18 and -34; minift has the ResNets of bottlenecks, as resnet50"
        )
    depths = Counter(blocks.values())
    groups = range(1, max(depths) + 1)
    first = {name: tensors.get(name) for g in groups for name in (f"layer{g}.0.conv2.weight", f"layer{g}.0.conv3.weight")}
    for name, tensor in (first | {"conv1.weight": tensors["conv1.weight"]}).items():
        if tensor is None or tensor.dim() != 4:
            raise UserError(f"{path}: {name} is {'missing' if tensor is None else f'{tuple(tensor.shape)}, no convolution'}")
    widths = {g: first[f"layer{g}.0.conv3.weight"].shape[0] for g in groups}
    for g, width in widths.items():
        name, inner = f"layer{g}.0.conv2.weight", width // REDUCTION
        if first[name].shape[:2] != (inner, inner):
            raise UserError(
                f"{path}: {name} is {tuple(first[name].shape)}, a ResNet's is {(inner, inner, 3, 3)}; "
                "wide ResNets and ResNeXts are not supported"
            )
    return ResNetConfig(tuple(depths[g] for g in groups), tensors["conv1.weight"].shape[0], tuple(widths.values()))


def choose_preprocessing(path: Path, given: str | None, described: dict, usual: Preprocessing, report: Report) -> Preprocessing:
    """What the user has said; else what minift wrote beside the file; else the published file's with this hash; else usual."""
    known, digest = published(), sha256(path)
    if path.name in known and not digest.startswith(promised(path.name)):
        raise UserError(f"{path}: wrong hash: torchvision's file has {promised(path.name)}..., this one {digest}; fetch it again")
    if given is not None:
        return PREPROCESSING[given]
    file = path.with_suffix(".json")
    if "preprocessing" in described:
        report.said.append(f"preprocessing from {file.name}")
        try:
            return Preprocessing.of(described["preprocessing"])
        except UserError as error:
            raise UserError(f"{file}: {error}; fix it, or say --preprocessing v1 or v2") from None
    weights = next((weights for file, weights in known.items() if digest.startswith(promised(file))), None)
    if weights is not None:
        report.said.append(f"the hash is that of torchvision's {weights}")
        return preprocessing_of(weights)
    other = "; if these are weights of torchvision's V2 recipe: --preprocessing v2" if usual is IMAGENET_V1 else ""
    report.said.append(f"preprocessing assumed, as a file says nothing of it{other}")
    return usual


# ---- writing ----


def write(path: Path, checkpoint: Checkpoint, library: str = "torchvision") -> str:
    """A file that a network of the library loads strictly, and beside it what it cannot hold. The call that builds the network.

    library: torchvision or timm. A checkpoint without a head gives a file without one, which timm's network takes as it is built;
    torchvision's head has to be replaced by nn.Identity().
    """
    body = checkpoint.empty_body(checkpoint.usual_pool)
    labels = checkpoint.task["labels"] if checkpoint.task else None
    classes, described = len(labels) if labels else None, {"labels": labels, "preprocessing": checkpoint.preprocessing}
    if isinstance(body, EfficientNet):
        call, names = efficientnet.built_by(body.config, classes, library), efficientnet.LIBRARIES[library]
        table, head = translate(body, names.table), names.head
        described["config"] = checkpoint.config
    elif isinstance(body, ResNet):
        call, table, head = built_by(body.config, classes, library), translate(body, body.TORCHVISION), HEAD
        if call is None:
            sizes = f"a stem of {body.config.embedding_size} and blocks of {tuple(body.config.hidden_sizes)} channels"
            raise UserError(f"{checkpoint.source}: neither torchvision nor timm builds {sizes}; --to hf writes it")
    else:
        raise UserError(f"{checkpoint.source} is a {checkpoint.architecture}, which {library} does not have; --to hf writes it")
    tensors = {table[name]: tensor for name, tensor in checkpoint.tensors.items()}
    tensors |= {head + name: tensor for name, tensor in checkpoint.head.items()}
    with whole_file(path.with_suffix(".json")) as text, whole_file(path) as weights:
        write_json(text, described)
        (write_tensors if path.suffix == ".safetensors" else write_bin)(weights, tensors)
    return call


def built_by(config: ResNetConfig, classes: int | None, library: str) -> str | None:
    """The Python expression that builds the ResNet which loads such a file; None where there is none.

    Widths that torchvision does not build are built by timm, whatever the library.
    """
    name = next((name for name, depths in DEPTHS.items() if depths == tuple(config.depths)), None)
    if library == "timm" and has_usual_widths(config) and name is not None:
        return f"timm.create_model({name!r}, num_classes={classes or 0})"
    head = [] if classes is None else [f"num_classes={classes}"]
    if has_usual_widths(config) and name is not None:
        return f"torchvision.models.{name}({', '.join(head)})"
    if has_usual_widths(config) and library == "torchvision":
        package, sizes = "torchvision.models.resnet", [str(list(config.depths))]
    elif config.embedding_size == ResNetConfig().embedding_size and len(config.depths) == 4:
        channels = tuple(width // REDUCTION for width in config.hidden_sizes)
        package, sizes = "timm.models.resnet", [f"layers={tuple(config.depths)}, channels={channels}"]
        head = [f"num_classes={classes or 0}"] if library == "timm" else head
    else:
        return None
    return f"{package}.ResNet({package}.Bottleneck, {', '.join(sizes + head)})"


def has_usual_widths(config: ResNetConfig) -> bool:
    """torchvision's class builds these alone."""
    usual = ResNetConfig()
    return (config.embedding_size, tuple(config.hidden_sizes)) == (usual.embedding_size, usual.hidden_sizes)


def load(path: Path, config) -> nn.Module:
    """torchvision's own network with the weights of a file, loaded strictly; without a head where the file has none."""
    tensors = state_dict(path, Report(path.name, []))
    if isinstance(config, ResNetConfig):
        if not has_usual_widths(config):
            raise UserError(f"{path}: torchvision builds no ResNet of {tuple(config.hidden_sizes)} channels to compare with")
        resnet = library().resnet
        network, head, part = resnet.ResNet(resnet.Bottleneck, list(config.depths)), HEAD, "fc"
    else:
        efficientnet.built_by(config, None, "torchvision")  # raises where there is none
        build = getattr(library(), efficientnet.size_of(config).replace("-", "_"))
        network, head, part = build(), efficientnet.LIBRARIES["torchvision"].head, "classifier"
    weight = tensors.get(head + "weight")
    if weight is None:
        setattr(network, part, nn.Identity())
    else:
        new = nn.Linear(weight.shape[1], weight.shape[0])
        setattr(network, part, new if part == "fc" else nn.Sequential(nn.Dropout(), new))
    network.load_state_dict(tensors)
    return network
