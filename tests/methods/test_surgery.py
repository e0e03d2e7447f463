"""Frozen means frozen: no gradient, no dropout, no moving statistics, also after the user's model.train()."""

import copy
from typing import ClassVar

import pytest
import torch
from tiny import tiny_body
from torch import nn

from minift.methods.houlsby import houlsby
from minift.methods.pfeiffer import pfeiffer
from minift.methods.surgery import Wrapper, find, freeze, thaw, wrap, wrappers
from minift.models.bert import Bert
from minift.models.body import Body


class TinyNet(Body):
    """Two stages, each a convolution, a BatchNorm and a dropout."""

    STAGES: ClassVar = {"first": "first", "second": "second"}
    TOP: ClassVar = ()

    def __init__(self):
        super().__init__()
        for name in self.STAGES:
            setattr(self, name, nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Dropout(0.5)))

    def forward(self, x):
        return self.second(self.first(x))


def test_a_frozen_body_gives_the_same_output_twice_after_train():
    body = tiny_body(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    tokens = torch.randint(5, 30, (3, 7), generator=torch.Generator().manual_seed(0))
    body.train()
    assert not torch.equal(body(tokens).hidden, body(tokens).hidden)
    freeze(body)
    nn.Sequential(body).train()  # through a parent, as a user's model.train() reaches it
    assert torch.equal(body(tokens).hidden, body(tokens).hidden)
    assert not any(p.requires_grad for p in body.parameters())


def test_a_thawed_stage_trains_and_those_below_stand_still():
    body = tiny_body()
    freeze(body)
    thaw(body.layers[2])
    body.train()
    assert [module.training for module in body.walk()] == [False, False, False, True, True]
    assert body.layers[2].attention.attend.training and not body.layers[1].attention.attend.training
    body.eval()
    assert not any(module.training for module in body.modules())
    body.layers[2].requires_grad_(False)
    body.train()
    assert not any(module.training for module in body.walk())


def test_frozen_batch_norm_keeps_its_statistics_bit_for_bit():
    net = TinyNet()
    freeze(net)
    thaw(net.second)
    before = copy.deepcopy(net.state_dict())
    net.train()
    for _ in range(3):
        net(torch.randn(8, 3, 4, 4)).sum().backward()
    for name, tensor in net.state_dict().items():
        moved = name.startswith("second.1.running") or name == "second.1.num_batches_tracked"
        assert torch.equal(tensor, before[name]) != moved, name


def test_batch_norm_with_frozen_weight_stands_still_in_a_stage_that_trains():
    net = TinyNet()
    freeze(net)
    net.first[0].bias.requires_grad_(True)
    net.train()
    before = copy.deepcopy(net.state_dict())
    net(torch.randn(8, 3, 4, 4)).sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert net.first[2].training and not net.second[2].training


def test_a_copy_freezes_itself_and_not_the_original():
    body = tiny_body()
    freeze(body)
    twin = copy.deepcopy(body)
    thaw(twin)
    twin.train()
    body.train()
    assert twin.layers[0].training and not body.layers[0].training


class Named(Wrapper):
    def __init__(self, base):
        super().__init__(base)
        self.weight = nn.Parameter(torch.ones(16))


def test_a_wrapper_may_not_take_a_name_of_the_layer():
    body = tiny_body()
    with pytest.raises(ValueError, match=r"^layers\.0\.attention\.query has a weight of its own"):
        wrap(body, find(body, "query"), Named)
    assert not wrappers(body)


class PreLN(Bert):
    PRE_LN = True


@pytest.mark.parametrize("method", [houlsby, pfeiffer])
def test_a_method_that_relies_on_norms_behind_the_sum_refuses_a_model_with_others(method):
    body = PreLN(tiny_body().config)
    freeze(body)
    with pytest.raises(ValueError, match=r"^it is defined by a LayerNorm behind each residual sum, and a PreLN has"):
        method(body)
    assert not wrappers(body) and not any(p.requires_grad for p in body.parameters())
