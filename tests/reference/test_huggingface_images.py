"""Conversion of ResNets in and out against transformers, and what preprocessor_config.json says against its image processors."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from tiny import randomise_norms
from torch import nn

import convert
from minift.data.loading import IMAGENET_V1, IMAGENET_V2, Preprocessing, evaluation, normalise
from minift.errors import UserError
from minift.formats.huggingface import read
from minift.pretrained import read as read_converted
from minift.pretrained import write

SIZES = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [2, 1, 1, 2]}
# What microsoft/resnet-50 has
MICROSOFT = {
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ConvNextFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": 224,
}


def tiny(model: type = transformers.ResNetModel, **changes) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    network = model(transformers.ResNetConfig(**SIZES, **changes))
    randomise_norms(network, std=0.3, batches=4)
    return network.eval()


def saved(directory, network=None, processor=MICROSOFT, **how):
    (network or tiny()).save_pretrained(directory, **how)
    if processor is not None:
        (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return directory


def images(rows: int = 3, height: int = 64, width: int = 48) -> torch.Tensor:
    return torch.randn(rows, 3, height, width, generator=torch.Generator().manual_seed(1))


FORMS = [
    (transformers.ResNetModel, "safetensors"),
    (transformers.ResNetForImageClassification, "sharded"),
    (transformers.ResNetForImageClassification, "bin"),
    (transformers.ResNetBackbone, "safetensors"),
]


@pytest.mark.parametrize(("model", "form"), FORMS)
def test_every_form_that_transformers_saves(tmp_path, model, form):
    network = tiny(model)
    how = {"max_shard_size": "8KB" if form == "sharded" else "1GB", "safe_serialization": form != "bin"}
    directory = saved(tmp_path / "checkpoint", network, **how)
    checkpoint, report = read(directory, "tiny", None)
    headed = model is transformers.ResNetForImageClassification
    assert report.dropped == (["classifier.1.bias", "classifier.1.weight"] if headed else []) and report.said == []
    assert checkpoint.tokenizer is None and checkpoint.config["depths"] == SIZES["depths"]
    with torch.inference_mode():
        state = checkpoint.body("mean").eval()(images())
        theirs = getattr(network, "resnet", network)(images(), output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(state.hidden, theirs, rtol=0, atol=1e-6)
    assert all(t == 4 for name, t in checkpoint.tensors.items() if name.endswith("num_batches_tracked"))


def test_round_trip_is_bit_exact(tmp_path, capsys):
    source = saved(tmp_path / "source")
    assert convert.main([str(source), "--out", str(tmp_path / "ours"), "--check"]) == 0
    assert "blocks.5" in capsys.readouterr().out
    assert convert.main([str(tmp_path / "ours"), "--to", "hf", "--out", str(tmp_path / "back"), "--check"]) == 0
    first, second = load_file(source / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert convert.main([str(tmp_path / "back"), "--out", str(tmp_path / "again")]) is None
    ours, again = read_converted(tmp_path / "ours"), read_converted(tmp_path / "again")
    assert (ours.config, ours.preprocessing) == (again.config, again.preprocessing)
    model, loading = transformers.AutoModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert isinstance(model, transformers.ResNetModel) and not any(loading.values())
    assert json.loads((tmp_path / "back" / "config.json").read_text())["torch_dtype"] == "float32"  # not of the integers in it
    assert transformers.AutoModel.from_pretrained(tmp_path / "back", dtype="auto").dtype == torch.float32


def test_a_run_loads_as_an_image_classifier(tmp_path):
    convert.main([str(saved(tmp_path / "source")), "--out", str(tmp_path / "ours")])
    checkpoint = read_converted(tmp_path / "ours")
    checkpoint.task = {"name": "image-classification", "labels": ["ant", "bee", "1"], "pool": "mean"}
    head = nn.Linear(32, 3)
    checkpoint.head = {name: tensor.detach() for name, tensor in head.state_dict().items()}
    checkpoint.preprocessing = asdict(replace(IMAGENET_V2, resize=58, crop=50))
    write(tmp_path / "run" / "model", checkpoint)
    assert convert.main([str(tmp_path / "run"), "--to", "hf", "--out", str(tmp_path / "hf"), "--check"]) == 0

    place = tmp_path / "hf"
    model, loading = transformers.AutoModelForImageClassification.from_pretrained(place, output_loading_info=True)
    assert not any(loading.values()) and model.config.id2label == {0: "ant", 1: "bee", 2: "1"}
    processor = transformers.AutoImageProcessor.from_pretrained(place)
    picture = photo(116, 168)
    pixels = normalise(
        evaluation(Preprocessing(**checkpoint.preprocessing))(picture)[None], Preprocessing(**checkpoint.preprocessing)
    )
    theirs = processor(picture, return_tensors="pt")
    torch.testing.assert_close(pixels, theirs["pixel_values"], rtol=0, atol=1e-6)
    with torch.inference_mode():
        ours = head(checkpoint.body("mean").eval()(pixels).pooled)
        torch.testing.assert_close(ours, model.eval()(**theirs).logits, rtol=0, atol=1e-5)


def test_check_names_the_first_block_that_differs(tmp_path, capsys):
    source = saved(tmp_path / "source")
    convert.main([str(source), "--out", str(tmp_path / "ours")])
    checkpoint = read_converted(tmp_path / "ours")
    checkpoint.tensors["blocks.3.shortcut.conv.weight"] *= 1 + 1e-6
    write(tmp_path / "ours", checkpoint)
    capsys.readouterr()
    assert convert.check(read_converted(tmp_path / "ours"), source, None) == 1
    lines = capsys.readouterr().out.splitlines()[-8:]
    assert ["above" in line for line in lines] == [False] * 4 + [True] * 4, lines


UNSUPPORTED = {
    "layer_type": "basic",
    "hidden_act": "gelu",
    "downsample_in_first_stage": True,
    "downsample_in_bottleneck": True,
    "num_channels": 1,
}


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_another_computation_is_refused(tmp_path, field):
    source = saved(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {field: UNSUPPORTED[field]}))
    with pytest.raises(UserError, match=f"config.json: {field} .* is not supported, only") as error:
        convert.main([str(source), "--out", str(tmp_path / "out")])
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"depths": [2, 1, 1, 1]}, "6 unexpected|unexpected .first encoder.stages.3.layers.1"),
        ({"hidden_sizes": [8, 16, 16]}, "depths has 4 resolutions, hidden_sizes 3"),
        ({"hidden_sizes": [8, 16, 16, 64]}, "config.json asks for .16, 16, 1, 1"),
        ({"depths": "many"}, "config.json: "),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path, changes, wanted):
    source = saved(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=wanted):
        convert.main([str(source), "--out", str(tmp_path / "out")])


# ---- preprocessing ----


def photo(height: int, width: int) -> Image.Image:
    """Smooth enough to be like a photo, and different in every corner and colour."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


CONVNEXT = MICROSOFT | {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}}
BIT = {
    **{"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 236}, "crop_size": {"height": 224, "width": 224}},
    **{"do_center_crop": True, "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255},
    **{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]},
}
EFFICIENTNET = {  # what google/efficientnet-b0 has; it divides twice by the deviation
    **{"image_processor_type": "EfficientNetImageProcessor", "size": {"height": 224, "width": 224}, "resample": 0},
    **{"do_center_crop": False, "crop_size": {"height": 289, "width": 289}, "include_top": True, "rescale_offset": False},
    **{"image_mean": [0.485, 0.456, 0.406], "image_std": [0.47853944, 0.4732864, 0.47434163]},
}
VIT = BIT | {"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}, "do_center_crop": None}
# The sizes are such that an even number of rows and of columns is cut off: of an odd one torchvision, and with it minift, cuts the
# larger half off the top now and then, transformers never.
SAYS = {  # preprocessor_config.json -> (resize, crop, interpolation), height and width of a photo of which all of it is true
    "microsoft/resnet-50": (MICROSOFT, (256, 224, "bicubic"), (300, 450)),
    "written today": (CONVNEXT, (256, 224, "bicubic"), (450, 300)),
    "another share": (CONVNEXT | {"crop_pct": 0.9333, "resample": 2}, (240, 224, "bilinear"), (300, 340)),
    "no share": ({key: value for key, value in CONVNEXT.items() if key != "crop_pct"}, (256, 224, "bicubic"), (300, 450)),
    "crop_size": (BIT, (236, 224, "bilinear"), (400, 300)),
    "crop_size, a number": (BIT | {"crop_size": 200, "size": 220}, (220, 200, "bilinear"), (400, 300)),
    "lanczos": (BIT | {"resample": 1}, (236, 224, "lanczos"), (400, 300)),
    "stretched": (CONVNEXT | {"size": {"shortest_edge": 384}}, (384, 384, "bicubic"), (500, 500)),
    "a square": (VIT, (224, 224, "bilinear"), (300, 300)),
    "google/efficientnet-b0": (EFFICIENTNET, (224, 224, "nearest"), (300, 300)),
}


@pytest.mark.parametrize("case", SAYS)
def test_preprocessing_equals_the_image_processor(tmp_path, case):
    said, (resize, crop, interpolation), (height, width) = SAYS[case]
    checkpoint, report = read(saved(tmp_path / "source", processor=said), "", None)
    found = Preprocessing(**checkpoint.preprocessing)
    assert (found.resize, found.crop, found.interpolation) == (resize, crop, interpolation)
    assert report.said == (
        [f"{said['image_processor_type']} does not crop; taken as resizing the shorter side to {crop} and cropping the middle "
         f"{crop} x {crop}"] if case in ("stretched", "a square", "google/efficientnet-b0") else []
    )  # fmt: skip
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "source", use_fast=False)
    picture = photo(height, width)
    theirs = processor(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(normalise(evaluation(found)(picture)[None], found), theirs, rtol=0, atol=1e-6)


NOT_SAID = {
    "no file": None,
    "rescaled otherwise": BIT | {"rescale_factor": 1 / 127.5},
    "not rescaled": BIT | {"do_rescale": False},
    "not normalised": BIT | {"do_normalize": False},
    "no size": {key: value for key, value in BIT.items() if key != "size"},
    "a list": BIT | {"size": [224, 224]},
    "a rectangle": VIT | {"size": {"height": 224, "width": 200}},
    "grey": BIT | {"image_mean": [0.5], "image_std": [0.5]},
    "unknown filter": BIT | {"resample": 9},
}


@pytest.mark.parametrize("case", NOT_SAID)
def test_what_cannot_be_said_is_assumed_and_said(tmp_path, case, capsys):
    source = saved(tmp_path / "source", processor=NOT_SAID[case])
    convert.main([str(source), "--out", str(tmp_path / "ours")])
    printed = capsys.readouterr().out
    assert "preprocessing assumed, as " in printed and "images resized to 256 (bilinear), cropped to 224" in printed
    assert Preprocessing(**read_converted(tmp_path / "ours").preprocessing) == replace(
        IMAGENET_V1, mean=list(IMAGENET_V1.mean), std=list(IMAGENET_V1.std)
    )
