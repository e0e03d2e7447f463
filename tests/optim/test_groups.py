"""Every trainable parameter in exactly one group; a module's type decides on weight decay."""

import math

import pytest
import torch
from loop import classifier
from tiny import tiny_body
from torch import nn

from minift.methods.lora import lora
from minift.methods.surgery import freeze, plain_name, thaw
from minift.optim.adamw import AdamW
from minift.optim.groups import make_groups


def test_groups_of_a_whole_model():
    model = classifier(tiny_body())
    groups = make_groups(model, 1e-3, 0.1)
    names = [name for group in groups for name in group.names]
    expected = {name for name, _ in model.body.named_parameters()} | {"head.weight", "head.bias"}
    assert len(names) == len(set(names)) and set(names) == expected
    decay = {name: group.weight_decay for group in groups for name in group.names}
    assert decay["layers.0.attention.query.weight"] == decay["embeddings.word.weight"] == decay["head.weight"] == 0.1
    assert decay["layers.0.attention.query.bias"] == decay["layers.1.attention_norm.weight"] == decay["embeddings.norm.bias"] == 0.0
    stage = {name: group.stage for group in groups for name in group.names}
    assert (stage["pooler.dense.weight"], stage["layers.1.feed_forward.output.bias"], stage["head.bias"]) == (
        "layer 2",
        "layer 1",
        "head",
    )


def test_what_is_frozen_is_in_no_group_and_gets_no_step():
    model = classifier(tiny_body())
    freeze(model.body)
    thaw(model.body.layers[2])
    groups = make_groups(model, 1e-3, 0.1)
    assert {group.stage for group in groups} == {"layer 2", "head"}
    before = {name: p.detach().clone() for name, p in model.body.named_parameters()}
    optimizer = AdamW(groups)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all(torch.equal(p, before[name]) != name.startswith("layers.2") for name, p in model.body.named_parameters())
    assert len(optimizer.state) == sum(len(group.parameters) for group in groups)


def test_a_norm_is_known_by_its_type_and_not_by_its_name():
    model = classifier(tiny_body())
    model.body.layers[0].bias_norm_layernorm = nn.Linear(2, 2)
    model.body.layers[0].plain = nn.LayerNorm(2)
    decay = {name: group.weight_decay for group in make_groups(model, 1e-3, 0.1) for name in group.names}
    assert decay["layers.0.bias_norm_layernorm.weight"] == 0.1 and decay["layers.0.plain.weight"] == 0.0


def test_rates_fall_from_the_head_down():
    model = classifier(tiny_body())
    rates = {group.stage: group.lr for group in make_groups(model, 1.0, 0.1, layer_decay=0.5)}
    assert rates == {"head": 1.0, "layer 2": 0.5, "layer 1": 0.25, "layer 0": 0.125, "embeddings": 0.0625}
    rates = {group.stage: group.lr for group in make_groups(model, 1.0, 0.1, head_lr=3.0)}
    assert rates == {"head": 3.0, "layer 2": 1.0, "layer 1": 1.0, "layer 0": 1.0, "embeddings": 1.0}


def test_learning_rates_by_the_last_segment_of_a_name():
    model = classifier(tiny_body())
    freeze(model.body)
    lora(model.body)
    groups = make_groups(model, 1.0, 0.1, head_lr=2.0, layer_decay=0.5, lr_factors={"B": 16.0}, plain_name=plain_name)
    rates = {(group.stage, name.rpartition(".")[2]): group.lr for group in groups for name in group.names}
    assert rates == {
        **{("layer 0", "A"): 0.125, ("layer 0", "B"): 2.0, ("layer 1", "A"): 0.25, ("layer 1", "B"): 4.0},
        **{("layer 2", "A"): 0.5, ("layer 2", "B"): 8.0, ("head", "weight"): 2.0, ("head", "bias"): 2.0},
    }
    assert all(group.weight_decay == (0.0 if "head.bias" in group.names else 0.1) for group in groups)
    names = [name for group in groups for name in group.names]
    assert "layers.0.attention.query.B" in names and len(names) == len(set(names)) == 14


def test_without_factors_the_groups_are_as_before():
    model = classifier(tiny_body())
    plain, one = make_groups(model, 1e-3, 0.1), make_groups(model, 1e-3, 0.1, lr_factors={"weight": 1.0})
    assert [(g.stage, g.lr, g.weight_decay, g.names) for g in plain] == [(g.stage, g.lr, g.weight_decay, g.names) for g in one]


def test_a_factor_does_not_reach_the_head():
    groups = make_groups(classifier(tiny_body()), 1.0, 0.0, lr_factors={"weight": 3.0})
    rates = {name: group.lr for group in groups for name in group.names}
    assert rates["head.weight"] == 1.0 and rates["pooler.dense.weight"] == 3.0 and rates["pooler.dense.bias"] == 1.0


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
def test_a_factor_that_cannot_be(factor):
    with pytest.raises(ValueError, match=r"on the learning rate of weight: a number above 0 is expected"):
        make_groups(classifier(tiny_body()), 1.0, 0.1, lr_factors={"weight": factor})


def test_a_factor_that_no_parameter_takes():
    with pytest.raises(ValueError, match="factor on the learning rate of B, and no parameter that trains has such a name"):
        make_groups(classifier(tiny_body()), 1.0, 0.1, lr_factors={"B": 2.0})


def test_names_are_those_that_plain_name_gives():
    model = classifier(tiny_body())
    freeze(model.body)
    lora(model.body, sites="word/query")
    groups, raw = make_groups(model, 1.0, 0.1, plain_name=plain_name), make_groups(model, 1.0, 0.1)
    assert [[plain_name(name) for name in group.names] for group in raw] == [group.names for group in groups]
    assert [group.stage for group in raw] == [group.stage for group in groups]
