"""What methods, groups and caches rely on in every body: stages that cover it, sites that exist, no module used twice."""

import re
from collections import Counter

import pytest
import torch
from tiny import tiny_body, tiny_gpt2, tiny_resnet, tiny_roberta

TOKENS = torch.tensor([[2, 7, 9, 3]])
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
BODIES = {
    "bert": (tiny_body, TOKENS),
    "roberta": (tiny_roberta, TOKENS),
    "gpt2": (tiny_gpt2, TOKENS),
    "resnet": (tiny_resnet, IMAGES),
}
POOLS = [(name, pool) for name, (make, _) in BODIES.items() for pool in (*type(make()).POOLS, None)]


@pytest.mark.parametrize(("name", "pool"), POOLS)
def test_every_parameter_and_buffer_is_in_exactly_one_stage(name, pool):
    body = BODIES[name][0](pool=pool)
    prefixes = [prefix + "." for names in body.stages.values() for prefix in names]
    for tensor in body.state_dict():
        assert sum(tensor.startswith(prefix) for prefix in prefixes) == 1, tensor


@pytest.mark.parametrize(("name", "pool"), POOLS)
def test_stages_are_what_forward_walks(name, pool):
    body = BODIES[name][0](pool=pool)
    named = [body.get_submodule(part) for names in body.stages.values() for part in names]
    assert len(named) == len(list(body.walk()))
    assert all(a is b for a, b in zip(named, body.walk(), strict=True))


def test_names_of_the_stages():
    assert list(tiny_body().stages) == ["embeddings", "layer 0", "layer 1", "layer 2"]
    assert list(tiny_gpt2().stages) == list(tiny_body().stages) and tiny_gpt2().stages["layer 2"] == ("layers.2", "final", "pooler")
    assert list(tiny_resnet().stages) == ["stem", "block 0", "block 1", "block 2"]


@pytest.mark.parametrize(("name", "pool"), [pair for pair in POOLS if pair[1]])
def test_resume_goes_on_where_the_first_stages_stopped(name, pool):
    make, inputs = BODIES[name]
    body = make(pool=pool).eval()
    state, whole = body.begin(inputs), body(inputs)
    for done, stage in enumerate(body.walk(), 1):
        state = stage(state)
        assert torch.equal(body.resume(state, done).pooled, whole.pooled)


SHAPES = {"unit": (2,), "ragged": (2, 6), "real": (2, 6)}


@pytest.mark.parametrize(("name", "pool"), POOLS)
def test_what_is_carried_over_a_boundary_is_all_that_the_rest_reads(name, pool):
    body = BODIES[name][0](pool=pool).eval()
    tokens = torch.randint(5, 60, (2, 6), generator=torch.Generator().manual_seed(0))
    state = body.begin(*((tokens, torch.arange(6) < torch.tensor([6, 3])[:, None]) if name != "resnet" else (IMAGES,)))
    whole = body.resume(state)
    for done, module in enumerate(body.walk(), 1):
        state = module(state)
        fields = {field: getattr(state, field) for field in body.carried(done)}
        for field, kind in body.carried(done).items():
            assert fields[field].shape[: len(SHAPES[kind])] == SHAPES[kind], (done, field)
        again = body.resume(body.State.only(**fields), done)
        for field in body.carried(len(list(body.walk()))):
            assert torch.equal(getattr(again, field), getattr(whole, field)), (done, field)
    flows = {"hidden": "unit"} if name == "resnet" else {"hidden": "ragged", "mask": "real"}
    assert body.carried(done) == ({"pooled": "unit"} if pool else flows) and body.carried(1) == flows


@pytest.mark.parametrize("name", BODIES)
def test_a_state_of_some_fields_only(name):
    State, x = BODIES[name][0]().State, torch.ones(2, 3)
    state = State.only(hidden=x)
    assert state.hidden is x and [field for field in state if field is not None] == [x]
    with pytest.raises(TypeError, match="height"):
        State.only(height=x)


def test_a_body_that_is_frozen_by_hand_stands_still_too():
    body = tiny_body(hidden_dropout_prob=0.5)
    assert all(module.training for module in body.modules())
    body.requires_grad_(False)
    body.train()
    assert torch.equal(body(TOKENS).hidden, body(TOKENS).hidden)
    body.pooler.requires_grad_(True)  # which belongs to the stage of the last layer
    body.train()
    assert [module.training for module in body.walk()] == [False, False, False, True, True]


def test_every_site_is_found_in_every_layer():
    for body in (tiny_body(), tiny_gpt2()):
        modules = [name for name, _ in body.named_modules()]
        for role, pattern in body.SITES.items():
            found = [name for name in modules if re.fullmatch(pattern, name)]
            assert len(found) == (3 if pattern.startswith("layers") else 1), role
    body = tiny_resnet()
    modules = [name for name, _ in body.named_modules()]
    for role, pattern in body.SITES.items():
        found = [name for name in modules if re.fullmatch(pattern, name)]
        assert len(found) == (2 if role == "shortcut" else 3), role


def watched(body, inputs) -> dict:
    """Dotted name -> (arguments, output) of every module's one call."""
    calls, seen = Counter(), {}

    def watch(name):
        def hook(module, arguments, output):
            calls[name] += 1
            seen[name] = (arguments, output)

        return hook

    for name, module in body.named_modules():
        module.register_forward_hook(watch(name))
    body(inputs)
    assert set(calls.values()) == {1}
    return seen


def test_bert_uses_no_module_twice_and_norms_see_the_finished_sum():
    seen = watched(tiny_body().eval(), TOKENS)
    for i in range(3):
        layer = f"layers.{i}"
        x = seen[layer][0][0].hidden
        (after,), _ = seen[f"{layer}.attention_norm"]
        assert torch.equal(after, x + seen[f"{layer}.attention"][1])
        (after,), _ = seen[f"{layer}.feed_forward_norm"]
        assert torch.equal(after, seen[f"{layer}.attention_norm"][1] + seen[f"{layer}.feed_forward"][1])


def test_gpt2_uses_no_module_twice_and_norms_see_the_stream():
    seen = watched(tiny_gpt2().eval(), TOKENS)
    for i in range(3):
        layer = f"layers.{i}"
        x = seen[layer][0][0].hidden
        assert seen[f"{layer}.attention_norm"][0][0] is x
        (between,), _ = seen[f"{layer}.feed_forward_norm"]
        assert torch.equal(between, x + seen[f"{layer}.attention"][1])
        assert torch.equal(seen[layer][1].hidden, between + seen[f"{layer}.feed_forward"][1])
    assert seen["final.norm"][0][0] is seen["layers.2"][1].hidden


def test_resnet_uses_no_module_twice_and_adds_what_the_branch_gives():
    seen = watched(tiny_resnet().eval(), IMAGES)
    for i in range(3):
        _, out = seen[f"blocks.{i}"]
        shortcut = seen[f"blocks.{i}.shortcut"][1]
        assert torch.equal(out.hidden, (seen[f"blocks.{i}.branch"][1] + shortcut).relu())
