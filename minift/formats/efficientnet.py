"""EfficientNets in files: of torchvision, of timm, and of the efficientnet_pytorch package. torchvision.py reads and writes them.

A file holds tensors alone. Which network they belong to follows from the shapes; that they were trained with TensorFlow's padding,
which eps their BatchNorms have and how their images were prepared does not, and a wrong guess costs accuracy without an error. So
this comes from the .json that minift has written beside the file, or from timm's config.json; else from the names of the tensors.
timm has two kinds of networks under the same names, which then the name of the file has to tell apart.
Proved by tests/formats/test_efficientnet.py.
"""

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from minift.data.loading import IMAGENET_V1, Preprocessing
from minift.errors import UserError, is_there
from minift.models.efficientnet import SIZES, EfficientNet, EfficientNetConfig, fields_of
from minift.pretrained import read_object


class Names(NamedTuple):
    """How a library names the tensors."""

    library: str
    table: dict[str, str]  # of the model's file
    first: str  # by which a file is known
    head: str


LIBRARIES = {
    "torchvision": Names("torchvision", EfficientNet.TORCHVISION, "features.0.0.weight", "classifier.1."),
    "timm": Names("timm", EfficientNet.TIMM, "conv_stem.weight", "classifier."),
    "efficientnet_pytorch": Names("efficientnet_pytorch", EfficientNet.PACKAGE, "_conv_stem.weight", "_fc."),
}

TENSORFLOW = {"padding": "same", "batch_norm_eps": 1e-3}
TORCH = {"padding": "symmetric", "batch_norm_eps": 1e-5, "batch_norm_momentum": 0.1}
HALF = (0.5, 0.5, 0.5)  # mean and deviation of the colours of TensorFlow's Lite models

# Share of the picture's side that the crop takes, as in timm
SHARES = dict(zip(SIZES, (0.875, 0.882, 0.89, 0.904, 0.922, 0.934, 0.942, 0.949, 0.875, 0.882, 0.89, 0.904, 0.92), strict=True))


def names_in(tensors: dict[str, Tensor]) -> Names | None:
    """Whose names these are; None where they are of no EfficientNet."""
    return next((names for names in LIBRARIES.values() if names.first in tensors), None)


def size_of(config: EfficientNetConfig) -> str | None:
    """The row of SIZES that a network is, whatever its padding and eps; None where it is none."""
    shape = ("kernel_sizes", "out_channels", "strides", "num_block_repeats", "expand_ratios")
    shape += ("width_coefficient", "depth_coefficient", "squeeze_expansion_ratio", "hidden_act", "fixed_ends")

    def shaped(c: EfficientNetConfig) -> list:
        return [list(v) if isinstance(v := getattr(c, name), list | tuple) else v for name in shape]

    return next((name for name in SIZES if shaped(EfficientNetConfig(**fields_of(name))) == shaped(config)), None)


def size_in(path: Path, names: Names, tensors: dict[str, Tensor]) -> str:
    """The row of SIZES that has such a stem, such a top and so many blocks."""
    table = {ours: f"{theirs}.weight" for ours, theirs in names.table.items()}
    pattern = re.sub(r"\\\{\w+\\\}", "[0-9]+", re.escape(table["blocks.{}.branch.depthwise"]))
    blocks = sum(re.fullmatch(pattern, name) is not None and tensor.shape[1:2] == (1,) for name, tensor in tensors.items())
    squeezed = any(".se." in name or "_se_" in name or ".fc1." in name for name in tensors)
    for name in SIZES:
        c = EfficientNetConfig(**fields_of(name))
        ends = [tensors.get(table[end]) for end in ("stem.conv", "top.conv")]
        channels = [None if end is None else [*end.shape[:1]] for end in ends]
        if (
            channels == [[c.channels[0]], [c.channels[-1]]]
            and blocks == sum(c.depths)
            and squeezed == bool(c.squeeze_expansion_ratio)
        ):
            return name
    raise UserError(f"{path}: {blocks} blocks in {names.library}'s names, and no EfficientNet B0 to B7 or Lite0 to Lite4 has these")


def timm_config(directory: Path) -> dict | None:
    """config.json of a directory that holds an EfficientNet as timm puts it on the hub; None where there is none."""
    file = directory / "config.json"
    raw = read_object(file) if is_there(file) else {}
    known = "efficientnet" in str(raw.get("architecture")) and isinstance(raw.get("pretrained_cfg"), dict)
    return raw if known else None


def named_in(path: Path) -> tuple[bool, str] | None:
    """(whether it is one of timm's TensorFlow models, the row of SIZES), by timm's config.json, else by the name of the file or of
    its directory.
    """
    timm = timm_config(path.parent)
    for name in (str(timm["architecture"]),) if timm else (path.stem, path.resolve().parent.name):
        if found := re.search(r"(tf_)?efficientnet[-_](b[0-7]|lite[0-4])(?![0-9a-z])", name.lower()):
            return found[1] is not None, f"efficientnet-{found[2]}"
    return None


def kind_of(path: Path, names: Names, tensors: dict[str, Tensor]) -> tuple[str, dict, bool]:
    """(the row of SIZES, fields of the config that depend on the source, whether TensorFlow's Lite colours belong to it)"""
    size, named = size_in(path, names, tensors), named_in(path)
    if named and named[1] != size:
        raise UserError(f"{path}: its name says {named[1]}, and its tensors are those of {size}; take the file that you mean")
    lite = "lite" in size
    if names.library == "efficientnet_pytorch":
        return size, {**TENSORFLOW, "batch_norm_momentum": 0.01}, lite
    if names.library == "torchvision":
        wide = size[-2:] in ("b5", "b6", "b7")
        return size, TORCH | ({"batch_norm_eps": 1e-3, "batch_norm_momentum": 0.01} if wide else {}), False
    plain = size.replace("-", "_")
    if named is None:
        raise UserError(
            f"{path}: its tensors have timm's names, under which there are two networks, tf_{plain} (TensorFlow's padding, eps "
            f"1e-3) and {plain} (symmetric padding, eps 1e-5); name the file after the right one, as tf_{plain}{path.suffix}"
        )
    return size, TENSORFLOW | {"batch_norm_momentum": 0.1} if named[0] else TORCH, lite and named[0]


def describe(path: Path, names: Names, tensors: dict[str, Tensor], described: dict) -> tuple[EfficientNetConfig, Preprocessing]:
    """(the config, the usual preprocessing) of the tensors of a file. described: what the .json beside it holds."""
    if "config" in described:
        try:
            config = EfficientNetConfig(**described["config"])
        except (TypeError, ValueError) as error:
            raise UserError(f"{path.with_suffix('.json')}: config: {error}") from None
        return config, usual(size_of(config) or "efficientnet-b0", config.image_size, False)
    size, fields, half = kind_of(path, names, tensors)
    config = EfficientNetConfig(**fields_of(size) | fields)
    timm = timm_config(path.parent)
    return config, usual(size, config.image_size, half) if timm is None else prepared(path.parent, timm["pretrained_cfg"])


def prepared(directory: Path, cfg: dict) -> Preprocessing:
    """How timm's config.json says that pictures are prepared."""
    try:
        crop, share = cfg["input_size"][1], cfg["crop_pct"]
        fields = {"crop": crop, "resize": int(crop / share), **{name: cfg[name] for name in ("mean", "std", "interpolation")}}
        return Preprocessing.of(fields)
    except (LookupError, TypeError, ValueError, ArithmeticError, UserError) as error:
        raise UserError(f"{directory / 'config.json'}: pretrained_cfg does not say how pictures are prepared ({error})") from None


def usual(size: str, crop: int, half: bool) -> Preprocessing:
    """How the pictures of a network's size are prepared. half: the colours of TensorFlow's Lite models, else ImageNet's."""
    colours = {"mean": HALF, "std": HALF} if half else {}
    return replace(IMAGENET_V1, resize=int(crop / SHARES[size]), crop=crop, interpolation="bicubic", **colours)


def untrained(name: str) -> tuple[dict, Preprocessing]:
    """(config, preprocessing) of a row of SIZES with weights of nobody: as the efficientnet_pytorch package has it."""
    config = EfficientNetConfig(**fields_of(name))
    return asdict(config), usual(name, config.image_size, "lite" in name)


def built_by(config: EfficientNetConfig, classes: int | None, library: str) -> str:
    """The Python expression that builds the network which loads such a file. Raises UserError where there is none."""
    size = size_of(config)
    if size is None:
        raise UserError(f"{library} has no EfficientNet of such a shape, only B0 to B7{' and Lite' * (library == 'timm')}")
    plain, same = size.replace("-", "_"), config.padding == "same"
    if library == "torchvision":
        eps = 1e-3 if size[-2:] in ("b5", "b6", "b7") else 1e-5
        if "lite" in size or same or config.batch_norm_eps != eps:
            raise UserError(f"torchvision has no {size} with {config.padding} padding and eps {config.batch_norm_eps:g}; "
                            "--to timm writes it")  # fmt: skip
        return f"torchvision.models.{plain}({'' if classes is None else f'num_classes={classes}'})"
    eps = "" if config.batch_norm_eps == (1e-3 if same else 1e-5) else f", bn_eps={config.batch_norm_eps:g}"
    return f"timm.create_model({'tf_' * same + plain!r}, num_classes={classes or 0}{eps})"
