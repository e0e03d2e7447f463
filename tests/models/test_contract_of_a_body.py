"""What methods, groups and caches rely on in every body: stages that cover it, sites that exist, no module used twice."""

import re
from collections import Counter

import pytest
import torch
from tiny import tiny_body, tiny_resnet

TOKENS = torch.tensor([[2, 7, 9, 3]])
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
BODIES = {"bert": (tiny_body, TOKENS), "resnet": (tiny_resnet, IMAGES)}
POOLS = [("bert", "cls"), ("bert", "mean"), ("bert", None), ("resnet", "mean"), ("resnet", None)]


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
    assert list(tiny_resnet().stages) == ["stem", "block 0", "block 1", "block 2"]


@pytest.mark.parametrize(("name", "pool"), [pair for pair in POOLS if pair[1]])
def test_resume_goes_on_where_the_first_stages_stopped(name, pool):
    make, inputs = BODIES[name]
    body = make(pool=pool).eval()
    state, whole = body.begin(inputs), body(inputs)
    for done, stage in enumerate(body.walk(), 1):
        state = stage(state)
        assert torch.equal(body.resume(state, done).pooled, whole.pooled)


def test_every_site_is_found_in_every_layer():
    body = tiny_body()
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


def test_resnet_uses_no_module_twice_and_adds_what_the_branch_gives():
    seen = watched(tiny_resnet().eval(), IMAGES)
    for i in range(3):
        _, out = seen[f"blocks.{i}"]
        shortcut = seen[f"blocks.{i}.shortcut"][1]
        assert torch.equal(out.hidden, (seen[f"blocks.{i}.branch"][1] + shortcut).relu())
