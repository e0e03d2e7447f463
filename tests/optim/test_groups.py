"""Every trainable parameter in exactly one group; a module's type decides on weight decay."""

import torch
from loop import classifier
from tiny import tiny_body
from torch import nn

from minift.methods.surgery import freeze, thaw
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
