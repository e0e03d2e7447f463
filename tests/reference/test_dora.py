"""minift.methods.dora against peft: outputs, gradients with the magnitude's, starting values and merged weights."""

import copy
from functools import partial

import peft
import pytest
import torch
from torch import nn
from twins import (
    assert_merged_twins,
    assert_refused,
    assert_twins,
    bert,
    close,
    images,
    net,
    outputs,
    resnet,
    texts,
    trained,
    twins,
)

from minift.methods.dora import dora
from minift.methods.ia3 import ia3
from minift.methods.lora import lora
from minift.methods.surgery import freeze

# sites here -> target_modules there; None: the default of each
LINEAR = "query/key/value/attention_output/feed_forward_hidden/feed_forward_output"
TEXTS = {
    "default": ("", None),
    "every Linear": (rf"{LINEAR}/pooler\.dense", "all-linear"),
    "regex": (r"layers\.[02]\.feed_forward\.(hidden|output)", r"encoder\.layer\.[02]\.(intermediate|output)\.dense"),
}
IMAGES = {
    "default": ("", r".*\.layer\.1\.convolution"),
    "every Conv2d": (r"stem\.conv/conv1/conv2/conv3/shortcut", ["convolution"]),
}
BARE = {
    "Linear": (nn.Linear(7, 5), (4, 7)),
    "Linear without bias": (nn.Linear(7, 5, bias=False), (4, 7)),
    "Conv2d": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 9, 11)),
    "Conv2d without bias": (nn.Conv2d(4, 6, 3, bias=False), (2, 4, 9, 11)),
    "oblong": (nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2)), (2, 4, 9, 11)),
    "1x1": (nn.Conv2d(4, 6, 1), (2, 4, 5, 6)),
    "same": (nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 5, 6)),
}


def config(target, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0, rslora: bool = False) -> peft.LoraConfig:
    """peft's, with minift's defaults."""
    return peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, use_rslora=rslora, use_dora=True, target_modules=target)


MODES = pytest.mark.parametrize(("train", "dropout"), [(False, 0.4), (True, 0.0), (True, 0.4)])


@MODES
@pytest.mark.parametrize("sites", TEXTS)
def test_texts(sites, train, dropout):
    ours, there = TEXTS[sites]
    body, theirs = twins(bert(), partial(dora, sites=ours, dropout=dropout), config(there, dropout=dropout))
    assert_twins(body, theirs, texts(), train)
    assert_merged_twins(body, theirs, texts())


@MODES
@pytest.mark.parametrize("sites", IMAGES)
def test_images(sites, train, dropout):
    ours, there = IMAGES[sites]
    options = {"rank": 3, "alpha": 5.0, "dropout": dropout}
    body, theirs = twins(resnet(), partial(dora, sites=ours, **options), config(there, **options))
    assert_twins(body, theirs, images(), train)
    assert_merged_twins(body, theirs, images())


@MODES
@pytest.mark.parametrize("layer", BARE)
def test_bare_layers(layer, train, dropout):
    layer, shape = BARE[layer]
    given = (torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),)
    options = {"rank": 3, "alpha": 2.0, "dropout": dropout}
    body, theirs = twins(net(layer), partial(dora, sites="0", **options), config(["0"], **options))
    assert_twins(body, theirs, given, train)
    assert_merged_twins(body, theirs, given)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(("rank", "alpha"), [(1, 1.0), (4, 2.5), (20, 16.0)])
def test_options(rank, alpha, rslora):
    options = {"rank": rank, "alpha": alpha, "dropout": 0.9, "rslora": rslora}
    body, theirs = twins(bert(), partial(dora, **options), config(None, **options))
    assert_twins(body, theirs, texts(), train=True)
    assert_merged_twins(body, theirs, texts())


@pytest.mark.parametrize("layer", [nn.Linear(40, 30), nn.Conv2d(10, 20, 3)], ids=["Linear", "Conv2d"])
def test_starts_with_pefts_values(layer):
    """A by the same draws with the same seed, B as 0, the magnitude as the weight's own."""
    layer = layer.double()
    theirs = peft.get_peft_model(nn.Sequential(copy.deepcopy(layer)), config(["0"]))
    torch.manual_seed(5)
    theirs.base_model.model[0].reset_lora_parameters("default", True)
    body = net(layer)
    freeze(body)
    torch.manual_seed(5)
    dora(body, sites="0")
    pairs = trained(body, theirs)
    assert pairs.keys() == {"0.A", "0.B", "0.m"}
    for name, (ours, other) in pairs.items():
        close(ours.view_as(other), other, name)


@pytest.mark.parametrize(("base", "given", "sites"), [(bert, texts, LINEAR), (resnet, images, "conv1/conv2/conv3")])
def test_starts_as_pretrained(base, given, sites):
    body, plain = base().eval(), base().eval()
    freeze(body)
    dora(body, sites=sites)
    for y, was in zip(outputs(body, given()), outputs(plain, given()), strict=True):
        assert torch.equal(y, was)


REFUSED = {
    "dora over lora": ((lora, dora), bert, "", "not of LoRA, which wraps one"),
    "lora over dora": ((dora, lora), bert, "", r"layers\.0\.attention\.query: DoRA is there already, and LoRA has A, B as well"),
    "dora over dora": ((dora, dora), bert, "", "not of DoRA, which wraps one: put dora first"),
    "dora over ia3": ((ia3, dora), bert, "key", "not of IA3, which wraps one: put dora first"),
    "an embedding": ((dora,), bert, "word", "not of Embedding$"),
    "a norm": ((dora,), bert, "attention_norm", "not of LayerNorm$"),
    "groups": ((dora,), lambda: net(nn.Conv2d(4, 6, 3, groups=2)), "0", "groups=2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    assert_refused(*REFUSED[case])
