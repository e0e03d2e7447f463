"""EfficientNets in files of torchvision, timm and efficientnet_pytorch, in and out; the embedded one."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from tiny import converted_resnet, photographs, tiny_efficientnet, trust_our_own_files
from torch import nn

import convert
import train
from minift.data.loading import IMAGENET_V1
from minift.errors import UserError
from minift.formats.efficientnet import LIBRARIES, SHARES
from minift.formats.huggingface import efficientnet_in, translate
from minift.formats.torchvision import WEIGHTS, library, preprocessing_of, published
from minift.models.efficientnet import SIZES, EfficientNet, EfficientNetConfig, fields_of
from minift.pretrained import find, read

timm = pytest.importorskip("timm")
WEIGHTS_README = Path(__file__).parents[2] / "weights" / "README.md"


@pytest.fixture(autouse=True)
def own_files(monkeypatch):
    trust_our_own_files(monkeypatch)


def file_of(path: Path, size: str, names: str, classes: int = 2) -> Path:
    """Random weights of a size in the names of a library, with a head."""
    torch.manual_seed(0)
    body, there = EfficientNet(EfficientNetConfig(**fields_of(size))), LIBRARIES[names]
    tensors = {theirs: body.state_dict()[ours] for ours, theirs in translate(body, there.table).items()}
    tensors |= {f"{there.head}weight": torch.randn(classes, body.config.width), f"{there.head}bias": torch.randn(classes)}
    save_file(tensors, path)
    return path


def bring_in(path: Path, out: Path, *flags: str):
    assert not convert.main([str(path), "--out", str(out), *flags])
    return read(out)


def refused(arguments: list, *parts: str) -> None:
    with pytest.raises(UserError) as error:
        convert.main([str(one) for one in arguments])
    line = str(error.value)
    assert "\n" not in line and all(part in line for part in parts), line


SOURCES = {  # name of the file -> size, names, (padding, eps, momentum), colours
    "mine": ("efficientnet-b0", "torchvision", ("symmetric", 1e-5, 0.1), 0.485),
    "tf_efficientnet_lite0-0aa007d2": ("efficientnet-lite0", "timm", ("same", 1e-3, 0.1), 0.5),
    "efficientnet_lite0_ra-37913777": ("efficientnet-lite0", "timm", ("symmetric", 1e-5, 0.1), 0.485),
    "efficientnet-lite0": ("efficientnet-lite0", "efficientnet_pytorch", ("same", 1e-3, 0.01), 0.5),
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_file_comes_in_as_its_library_computes_it_and_goes_out_again(tmp_path, source, capsys):
    size, names, kind, mean = SOURCES[source]
    path = file_of(tmp_path / f"{source}.safetensors", size, names)
    checked = ["--check"] if source in ("mine", "tf_efficientnet_lite0-0aa007d2") else []
    checkpoint = bring_in(path, tmp_path / "ours", *checked)
    printed, c, p = capsys.readouterr().out, checkpoint.config, checkpoint.preprocessing
    assert (
        f"dropped  {LIBRARIES[names].head}bias" in printed and f"note     {size} in {names}'s names, {kind[0]} padding" in printed
    )
    assert (c["padding"], c["batch_norm_eps"], c["batch_norm_momentum"]) == kind
    assert (p["resize"], p["crop"], p["interpolation"], p["mean"][0]) == (256, 224, "bicubic", mean)

    to = "torchvision" if names == "torchvision" else "timm"
    assert convert.main([str(tmp_path / "ours"), "--to", to, "--out", str(tmp_path / "back.safetensors")]) is None
    call = re.search(r"model = (.*?); model\.load_state_dict\(", capsys.readouterr().out)[1]
    model = eval(call, {"torchvision": torchvision, "timm": timm})
    if to == "torchvision":
        model.classifier = nn.Identity()
    model.load_state_dict(load_file(tmp_path / "back.safetensors"), strict=True)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(checkpoint.body("mean").eval()(images).pooled, model.eval()(images), rtol=1e-3, atol=1e-4)
    again = bring_in(tmp_path / "back.safetensors", tmp_path / "again")
    assert (again.config, again.preprocessing) == (c, p)
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in checkpoint.tensors.items())


def test_two_networks_of_timm_have_the_same_names_and_the_file_must_say_which(tmp_path):
    path = file_of(tmp_path / "weights.safetensors", "efficientnet-lite0", "timm")
    refused([path, "--out", tmp_path / "out"], "timm's names", "tf_efficientnet_lite0 (", "name the file after the right one")
    (tmp_path / "tf_efficientnet_lite0.in1k").mkdir()
    path = path.rename(tmp_path / "tf_efficientnet_lite0.in1k" / "model.safetensors")  # a directory tells as well
    assert bring_in(path, tmp_path / "out").config["padding"] == "same"


KINDS = [("tf_efficientnet_lite0", "same", 0.5), ("efficientnet_lite0", "symmetric", 0.485)]


@pytest.mark.parametrize(("name", "padding", "mean"), KINDS)
def test_a_directory_of_timm_says_which(tmp_path, name, padding, mean):
    model = timm.create_model(name, num_classes=2)
    timm.models.save_for_hf(model, tmp_path / "theirs", model_config={"mean": model.default_cfg["mean"]}, safe_serialization=True)
    checkpoint = bring_in(tmp_path / "theirs", tmp_path / "ours")
    assert (checkpoint.config["padding"], checkpoint.preprocessing["mean"][0]) == (padding, mean)
    assert (checkpoint.preprocessing["resize"], checkpoint.preprocessing["interpolation"]) == (256, "bicubic")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    del config["pretrained_cfg"]["crop_pct"]
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    refused([tmp_path / "theirs", "--out", tmp_path / "out"], "pretrained_cfg does not say how pictures are prepared")


def test_a_b0_is_no_lite0(tmp_path):
    path = file_of(tmp_path / "tf_efficientnet_lite0.safetensors", "efficientnet-b0", "timm")
    refused([path, "--out", tmp_path / "out"], "its name says efficientnet-lite0, and its tensors are those of efficientnet-b0")
    path = path.rename(tmp_path / "tf_efficientnet_b0.safetensors")
    bring_in(path, tmp_path / "b0")
    config = json.loads((tmp_path / "b0" / "config.json").read_text())
    config["config"] |= fields_of("efficientnet-lite0")
    (tmp_path / "b0" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"do not fit config.json: 64 unexpected \(first blocks.0.branch.excitation"):
        read(tmp_path / "b0")
    refused([path, "--out", tmp_path / "out", "--preprocessing", "v2"], "it is of ResNets")


def test_momentum_of_keras_is_the_share_of_the_old_statistics():
    said = []
    assert efficientnet_in({"batch_norm_momentum": 0.99}, said)["batch_norm_momentum"] == 0.01
    assert said == ["batch_norm_momentum 0.99 is Keras's, the share of the old statistics: in torch 0.01"]
    assert efficientnet_in({"batch_norm_momentum": 0.1}, said)["batch_norm_momentum"] == 0.1 and len(said) == 1
    for fields, why in (
        ({"in_channels": [32], "out_channels": [16, 24]}, "in_channels is"),
        ({"hidden_act": "relu"}, "hidden_act is"),
    ):
        with pytest.raises(ValueError, match=why):
            efficientnet_in(fields, said)


def test_tensors_that_are_no_size(tmp_path):
    path = file_of(tmp_path / "file.safetensors", "efficientnet-b0", "torchvision")
    tensors = load_file(path)
    cut = {name: tensor for name, tensor in tensors.items() if not name.startswith("features.6.3.")}
    save_file(cut, path)
    refused([path, "--out", tmp_path / "out"], "15 blocks in torchvision's names, and no EfficientNet B0 to B7 or Lite0 to Lite4")
    save_file({name: tensor for name, tensor in tensors.items() if name != "features.3.0.block.2.fc1.bias"}, path)
    refused([path, "--out", tmp_path / "out"], "1 missing (first features.3.0.block.2.fc1.bias)")
    save_file(tensors | {"features.0.0.weight": torch.tensor(1.0)}, path)
    refused([path, "--out", tmp_path / "out"], "no EfficientNet B0 to B7")


def test_what_other_libraries_cannot_have(tmp_path):
    tiny = converted_resnet(tmp_path / "tiny", tiny_efficientnet())
    symmetric = converted_resnet(tmp_path / "symmetric", tiny_efficientnet(padding="symmetric"))
    lite0 = find("efficientnet-lite0")
    refused(
        [lite0, "--to", "torchvision", "--out", tmp_path / "a.pth"], "torchvision has no efficientnet-lite0", "--to timm writes it"
    )
    refused([lite0, "--to", "hf", "--out", tmp_path / "hf"], "cannot have relu6 and no squeeze-and-excitation", "--to timm")
    refused([symmetric, "--to", "hf", "--out", tmp_path / "hf"], "cannot have symmetric padding")
    refused([tiny, "--to", "timm", "--out", tmp_path / "a.pth"], "timm has no EfficientNet of such a shape, only B0 to B7 and Lite")
    assert not (tmp_path / "a.pth").exists() and not (tmp_path / "hf").exists()


@pytest.mark.parametrize("name", [name for name in SIZES if "lite" not in name])
def test_published_weights_and_their_preprocessing(name):
    weights = library().get_weight(WEIGHTS[name])
    assert weights is torchvision.models.get_model_weights(name.replace("-", "_")).IMAGENET1K_V1
    assert preprocessing_of(weights).crop >= SIZES[name][2] and preprocessing_of(weights).mean == IMAGENET_V1.mean
    assert published()[weights.url.rpartition("/")[2]] is weights
    assert SHARES[name] == timm.get_pretrained_cfg(f"tf_{name.replace('-', '_')}").crop_pct


# ---- the embedded one ----


def test_the_embedded_weights_are_what_their_readme_says(tmp_path, capsys):
    place = find("efficientnet-lite0")
    digest = hashlib.sha256((place / "model.safetensors").read_bytes()).hexdigest()
    assert digest in WEIGHTS_README.read_text()
    checkpoint = read(place)
    for name, tensor in checkpoint.tensors.items():
        expected = torch.float32 if "running" in name else torch.int64 if "batches" in name else torch.float16
        assert tensor.dtype == expected, name
    assert (checkpoint.config["padding"], checkpoint.config["batch_norm_eps"]) == ("same", 1e-3)
    assert convert.main([str(place), "--to", "timm", "--out", str(tmp_path / "lite0.pth"), "--check"]) == 0
    assert "largest difference from timm" in capsys.readouterr().out


def test_it_is_the_default_of_both_tasks_of_images(tmp_path):
    photos, rows = photographs(tmp_path / "photos", 4), tmp_path / "rows.csv"
    rows.write_text("path,label\n" + "".join(f"photos/{c}/{i}.jpg,{c}\n" for c in ("ants", "bees") for i in range(4)))
    for task, data in (("image-classification", photos), ("multi-label-image-classification", rows)):
        common = ["--workers", "0", "--epochs", "1", "--quiet", "--precision", "float32", "--image-size", "64", "--valid", "none"]
        train.main(["--task", task, "--train", str(data), "--out", str(tmp_path / task), *common])
        run = read(tmp_path / task / "model")
        assert run.base_name == "efficientnet-lite0" and run.method == "probe"
        assert (run.preprocessing["resize"], run.preprocessing["crop"]) == (73, 64)


@pytest.mark.parametrize("method", ["lora:rank=2", pytest.param("probe", marks=pytest.mark.slow)])
def test_a_run_goes_to_timm_and_to_transformers(tmp_path, method, capsys):
    """Of a network that both have, its head and what lora has added with it."""
    base = converted_resnet(tmp_path / "b0", EfficientNet(EfficientNetConfig(image_size=32)))
    photos = photographs(tmp_path / "photos", 4)
    common = [
        "--workers",
        "0",
        "--epochs",
        "1",
        "--precision",
        "float32",
        "--valid",
        "none",
        "--quiet",
        "--out",
        str(tmp_path / "run"),
    ]
    train.main(["--task", "image-classification", "--train", str(photos), "--model", str(base), "--method", method, *common])
    assert f"--to hf --out {tmp_path / 'run'}-hf" in capsys.readouterr().out
    for to, out in (("timm", "timm.pth"), ("hf", "hf")):
        assert convert.main([str(tmp_path / "run"), "--to", to, "--out", str(tmp_path / out), "--check"]) == 0
        printed = capsys.readouterr().out
        assert f"largest difference from {'timm' if to == 'timm' else 'transformers'}" in printed and "  head  " in printed
    assert json.loads((tmp_path / "timm.json").read_text())["labels"] == ["ants", "bees"]


def test_a_run_of_lite0_is_told_where_it_goes(tmp_path, capsys):
    photos = photographs(tmp_path / "photos", 2)
    common = ["--workers", "0", "--epochs", "0", "--precision", "float32", "--valid", "none", "--image-size", "33"]
    train.main(["--task", "image-classification", "--train", str(photos), "--out", str(tmp_path / "run"), *common])
    assert f"--to timm --out {tmp_path / 'run'}.safetensors" in capsys.readouterr().out
    arguments = ["--to", "timm", "--out", f"{tmp_path / 'run'}.safetensors", "--check"]
    assert convert.main([str(tmp_path / "run"), *arguments]) == 0
    refused([tmp_path / "run", "--to", "hf", "--out", tmp_path / "hf"], "cannot have relu6")
