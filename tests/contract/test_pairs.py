"""Every two methods in both orders on every model: one of them refuses in one line, or both do what they do alone."""

import copy
from itertools import product

import pytest
import torch
from contract.bodies import (
    APART,
    changed,
    classifier,
    copied,
    distance,
    operated,
    outputs,
    plain_body,
    randomise,
    refusal,
    same,
    shape,
    train,
    trained,
)

from minift.methods import METHODS
from minift.methods.surgery import Wrapper, delta, load_delta, merge, plain_name, unmerge

PAIRS = [pytest.param(*names, id="+".join(names)) for names in product(METHODS, METHODS)]


@torch.no_grad()
def moved_by(body, model: str, names: set[str]) -> float:
    """How far the output moves when these parameters do."""
    before, twin = outputs(body, model), copy.deepcopy(body)
    generator = torch.Generator().manual_seed(11)
    for name, parameter in trained(twin).items():
        if name in names:
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.1)
    return distance(outputs(twin, model), before)


@pytest.mark.parametrize("model", APART)
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_pair(first, second, model):
    pair = f"{first}+{second} on {model}"
    parts = {name: set(trained(operated(name, on=model))) for name in (first, second)}
    adds = any(isinstance(module, Wrapper) for module in operated(first, on=model).modules())
    body = operated(first, second, on=model)
    assert not (first == second and adds), f"{pair}: the same thing twice at the same sites was taken"

    both = trained(body)
    assert both.keys() == parts[first] | parts[second], f"{pair}: it trains other parameters than the two do alone"
    before = copied(body)
    own = delta(body).keys()
    train(classifier(body), model, steps=2)
    moved = {plain_name(name) for name in changed(body, before)}
    assert moved <= own, f"{pair}: the frozen tensor {min(moved - own)} moved"
    assert both.keys() <= moved, f"{pair}: {min(both.keys() - moved)} trains and did not move"

    randomise(body)
    for name, own in parts.items():
        if own:
            assert moved_by(body, model, own) > 1e-6, f"{pair}: what {name} trains changes nothing"

    other = operated(first, second, on=model, seed=1)
    load_delta(other, {name: tensor.detach().clone() for name, tensor in delta(body).items()})
    assert same(outputs(other, model), outputs(body, model)), f"{pair}: a body with its delta gives something else"

    output, built, wrapped = outputs(body, model), shape(body), {}
    said = refusal(lambda body: wrapped.update(merge(body)), body)
    if said:
        assert shape(body) == built, f"{pair}: cannot be merged, and was changed"
    else:
        plain = plain_body(model)
        assert body.state_dict().keys() == plain.state_dict().keys(), f"{pair}: merged, its names are not those of the plain model"
        gap = distance(outputs(body, model), output)
        assert gap <= 1e-10, f"{pair}: merged, it is {gap:.1e} away from what it was"
        unmerge(body, wrapped)
    assert same(outputs(body, model), output), f"{pair}: after merging, or the attempt, it is not what it was"
