"""minift.methods.ia3 against peft: outputs, gradients and merged weights, at the paper's sites, peft's and others."""

from functools import partial

import peft
import pytest
import torch
from torch import nn
from twins import assert_merged_twins, assert_refused, assert_twins, bert, close, outputs, resnet, texts, twins

from minift.methods.ia3 import IA3, ia3
from minift.methods.lora import lora
from minift.methods.surgery import freeze, merge

OUTPUT = r"encoder\.layer\.\d\.output\.dense"
SITES = {
    "default": ("", peft.IA3Config(target_modules=rf"(.*\.(key|value)|{OUTPUT})", feedforward_modules=OUTPUT)),
    "peft": ("peft", peft.IA3Config()),
    "outputs alone": (
        "query/feed_forward_hidden",
        peft.IA3Config(target_modules=["query", "intermediate.dense"], feedforward_modules=[]),
    ),
    "one layer's inputs": (
        r"layers\.1\.(attention|feed_forward)\.output",
        peft.IA3Config(target_modules=r"encoder\.layer\.1\.(attention\.)?output\.dense", feedforward_modules=r".*\.output\.dense"),
    ),
}


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("sites", SITES)
def test_texts(sites, train):
    ours, config = SITES[sites]
    body, theirs = twins(bert(), partial(ia3, sites=ours), config)
    assert_twins(body, theirs, texts(), train)
    assert_merged_twins(body, theirs, texts())


def test_starts_as_pretrained():
    body, plain = bert().eval(), bert().eval()
    freeze(body)
    ia3(body, sites="peft")
    assert all((module.scale == 1).all() for module in body.modules() if isinstance(module, IA3))
    for y, was in zip(outputs(body, texts()), outputs(plain, texts()), strict=True):
        assert torch.equal(y, was)


@pytest.mark.parametrize("order", [(lora, ia3), (ia3, lora)], ids=["over lora", "under lora"])
def test_merged_with_lora_at_the_same_sites(order):
    body = bert().eval()
    freeze(body)
    for method in order:
        method(body, sites="key/feed_forward_output")
    for parameter in body.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, mean=0.5)
    before = outputs(body, texts())
    merge(body)
    for y, was in zip(outputs(body, texts()), before, strict=True):
        close(y, was, "output")


REFUSED = {
    "twice at one site": ((ia3, ia3), bert, "", r"layers\.0\.attention\.key: IA3 is there already"),
    "a norm": ((ia3,), bert, "attention_norm", "LayerNorm is no Linear$"),
    "an embedding": ((ia3,), bert, "word", "Embedding is no Linear$"),
    "a misspelt role": ((ia3,), bert, "kye", "did you mean key"),
    "a ResNet": ((ia3,), resnet, "", "ResNet has no"),
    "a ResNet's convolutions": ((ia3,), resnet, "conv2", "ResNet has no"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    assert_refused(*REFUSED[case])
