"""Frozen means frozen: no gradient, no dropout, no moving statistics, also after the user's model.train()."""

import copy
from typing import ClassVar

import pytest
import torch
from tiny import tiny_body
from torch import nn

from minift.methods.surgery import (
    Shared,
    Wrapper,
    check_tensors,
    delta,
    find,
    freeze,
    load_delta,
    plain,
    plain_tensors,
    terms,
    thaw,
    wrap,
    wrappers,
)
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


class Adds(Wrapper):
    """A wrapper that adds tensors of these names, each a parameter of one number."""

    def __init__(self, base, *names, persistent=True):
        super().__init__(base)
        for name in names:
            *parents, leaf = name.split(".")
            module = self
            for parent in parents:
                module.add_module(parent, nn.Module())
                module = getattr(module, parent)
            if leaf.startswith("buffer"):
                module.register_buffer(leaf, torch.ones(1), persistent=persistent)
            else:
                setattr(module, leaf, nn.Parameter(torch.ones(1)))


def frozen_body():
    body = tiny_body()
    freeze(body)
    return body


COLLISIONS = {
    "of the layer itself": ("query", ("weight",), r"^layers\.0\.attention\.query has a weight of its own"),
    "of a module inside": ("pooler", ("dense.weight",), r"^pooler has a dense\.weight of its own"),
    "of what is inside a layer": ("layer", ("attention.query.bias",), r"^layers\.0 has a attention\.query\.bias of its own"),
}


@pytest.mark.parametrize("case", COLLISIONS)
def test_a_wrapper_may_not_take_a_name_of_the_plain_model(case):
    sites, names, said = COLLISIONS[case]
    body = frozen_body()
    with pytest.raises(ValueError, match=said):
        wrap(body, find(body, sites), lambda module: Adds(module, *names))
    assert not wrappers(body)


@pytest.mark.parametrize("inner_first", [False, True])
def test_a_wrapper_may_not_take_a_name_of_a_wrapper_elsewhere(inner_first):
    """Both would be saved as pooler.dense.A; as one operation, as two, in both orders."""
    steps = [("pooler", "dense.A"), ("pooler\\.dense", "A")]
    body = frozen_body()
    first, second = reversed(steps) if inner_first else steps
    wrap(body, find(body, first[0]), lambda module: Adds(module, first[1]))
    with pytest.raises(ValueError, match=r"^pooler(\.dense)? has a (dense\.)?A of its own"):
        wrap(body, find(body, second[0]), lambda module: Adds(module, second[1]))
    body = frozen_body()
    names = iter(("dense.A", "A"))
    with pytest.raises(ValueError, match=r"^pooler\.dense has a A of its own"):
        wrap(body, find(body, "pooler/pooler\\.dense"), lambda module: Adds(module, next(names)))
    assert not wrappers(body)


def test_buffers_collide_as_parameters_do():
    body = frozen_body()
    wrap(body, find(body, "query"), lambda module: Adds(module, "buffer"))
    with pytest.raises(ValueError, match="Adds is there already"):
        wrap(body, find(body, "query"), lambda module: Adds(module, "buffer"))


def test_a_child_of_a_wrapper_that_is_called_as_one_of_the_layer_keeps_both_apart():
    """pooler.dense of the model, pooler.dense.A of the wrapper: two tensors of the delta, each loaded where it belongs."""
    body = frozen_body()
    wrap(body, find(body, "pooler"), lambda module: Adds(module, "dense.A"))
    thaw(plain(body.pooler).dense)
    assert delta(body).keys() == {"pooler.dense.weight", "pooler.dense.bias", "pooler.dense.A"}
    load_delta(body, {name: tensor.detach() + 1 for name, tensor in delta(body).items()})
    assert body.pooler.dense.A.item() == 2.0
    assert torch.equal(plain(body.pooler).dense.weight, tiny_body().pooler.dense.weight + 1)


class WithBase(Body):
    """A plain model one of whose modules is called base."""

    SITES: ClassVar = {"inner": r"base\.inner"}
    STAGES: ClassVar = {"base": "base"}
    TOP: ClassVar = ()

    def __init__(self):
        super().__init__()
        self.base = nn.Sequential()
        self.base.add_module("inner", nn.Linear(2, 2))


def test_a_model_may_call_a_module_base():
    body = WithBase()
    freeze(body)
    assert plain_tensors(body).keys() == body.state_dict().keys() == {"base.inner.weight", "base.inner.bias"}
    wrap(body, find(body, "inner"), lambda module: Adds(module, "A"))
    assert plain_tensors(body).keys() == {"base.inner.weight", "base.inner.bias", "base.inner.A"}
    assert list(delta(body)) == ["base.inner.A"] and body.base.inner.base is plain(body.base.inner)


def test_two_tensors_of_one_name_are_never_saved():
    body = frozen_body()
    wrap(body, find(body, "pooler"), Adds)
    body.pooler.dense = nn.Linear(1, 1)  # behind wrap's back
    with pytest.raises(AssertionError, match=r"two tensors would be saved as pooler\.dense\.weight"):
        delta(body)


# ---- state that layers share, terms of the loss ----


class Uses(Wrapper):
    """A Linear layer that adds what a shared module gives; `hold` says how it holds that."""

    def __init__(self, base, shared, hold):
        super().__init__(base)
        hold(self, shared)

    def forward(self, x):
        return self.base(x) + self.shared(x)


def registered(wrapper, shared):
    wrapper.shared = shared


def as_frozen_parameters(wrapper, shared):
    wrapper.shared = copy.copy(shared)
    wrapper.shared._parameters = {n: nn.Parameter(p.detach(), requires_grad=False) for n, p in shared.named_parameters()}


def as_buffers(wrapper, shared):
    wrapper.register_buffer("matrix", shared.weight.detach(), persistent=False)


@pytest.mark.parametrize("hold", [registered, as_frozen_parameters, as_buffers])
def test_a_tensor_that_is_registered_in_every_layer_is_refused_with_the_way(hold):
    body, shared = frozen_body(), nn.Linear(16, 16)
    wrap(body, find(body, "query"), lambda layer: Uses(layer, shared, hold))
    with pytest.raises(
        ValueError, match=r"^layers\.1\.attention\.query\.\S+ is the same tensor as .*hold surgery\.Shared\(module\)$"
    ):
        check_tensors(body)


def test_state_on_the_body_is_refused_with_the_way():
    body = frozen_body()
    body.shared = nn.Linear(16, 16)
    with pytest.raises(ValueError, match=r"^shared\.weight belongs to no stage of the body; .*surgery\.Shared"):
        check_tensors(body)


def test_the_way_one_wrapper_registers_and_all_call():
    body, module = frozen_body(), nn.Linear(16, 16)
    made = []

    def make(layer):
        made.append(Uses(layer, Shared(module), registered))
        return made[-1]

    wrap(body, find(body, "query"), make)
    made[0].owned = module
    check_tensors(body)
    assert {name.rpartition(".")[2] for name in delta(body)} == {"weight", "bias"} and len(delta(body)) == 2
    twin = copy.deepcopy(body).double()
    x = torch.ones(1, 16).double()
    nn.init.zeros_(twin.layers[0].attention.query.owned.weight)
    nn.init.zeros_(twin.layers[0].attention.query.owned.bias)
    query = twin.layers[2].attention.query
    assert torch.equal(query(x), query.base(x)) and module.weight.any()
    load_delta(body, {name: tensor.detach() * 0 for name, tensor in delta(body).items()})
    query = body.layers[1].attention.query
    assert torch.equal(query(x.float()), query.base(x.float()))


class Orthogonal(Wrapper):
    """A factor whose rows should be orthonormal: |A A^T - 1|^2 is added to the loss."""

    def __init__(self, base):
        super().__init__(base)
        self.A = nn.Parameter(torch.arange(32.0).view(2, 16) / 32)

    def forward(self, x):
        return self.base(x) + (x @ self.A.T).sum(-1, keepdim=True)

    def term(self):
        return (self.A @ self.A.T - torch.eye(2)).square().sum()


def test_terms_of_the_loss():
    body = frozen_body()
    assert terms(body) is None
    wrap(body, find(body, "key"), Adds)
    assert terms(body) is None
    wrap(body, find(body, "query"), Orthogonal)
    A = torch.arange(32.0).view(2, 16) / 32
    one = (A @ A.T - torch.eye(2)).square().sum()
    torch.testing.assert_close(terms(body), 3 * one)
    terms(body).backward()
    expected = 4 * (A @ A.T - torch.eye(2)) @ A
    for layer in body.layers:
        torch.testing.assert_close(layer.attention.query.A.grad, expected)
