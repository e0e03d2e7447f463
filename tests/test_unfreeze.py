"""Stages that are switched off and on while a run lasts: off means no gradient, no decay, no state, no moving statistics."""

import copy

import numpy as np
import pytest
import torch
from loop import Nowhere, classifier, encoded, train_with
from tiny import CONFIG, tiny_body

from minift.methods.full import full, partial
from minift.methods.surgery import freeze
from minift.optim.adamw import AdamW
from minift.optim.groups import make_groups, switch
from minift.optim.unfreezing import all_at, chain, gradual
from minift.tasks.classification import Classification

STAGES = ["embeddings", "layer 0", "layer 1", "head"]


def test_gradual_goes_from_the_top_down():
    assert [gradual(STAGES, 0, epoch) for epoch in range(5)] == [["head"], STAGES[2:], STAGES[1:], STAGES, STAGES]
    assert [gradual(STAGES, step, 0, every=10) for step in (9, 10, 29, 30)] == [["head"], STAGES[2:], STAGES[1:], STAGES]


def test_chain_trains_one_at_a_time_and_then_all():
    phases = [["head"], ["embeddings"], ["layer 0"], ["layer 1"], STAGES, STAGES]
    assert [chain(STAGES, 0, epoch) for epoch in range(6)] == phases
    assert [chain(STAGES, 7 * step, 0, every=7) for step in range(6)] == phases


def test_all_at():
    assert [all_at(STAGES, 0, epoch, n=2) for epoch in range(3)] == [["head"], ["head"], STAGES]


class Watching(Nowhere):
    """Takes the place of the run: looks at the model when an epoch is over."""

    def __init__(self):
        self.seen = []

    def save(self, model, task):
        self.seen.append(copy.deepcopy(model.state_dict()))


def model_of(method):
    body = tiny_body(pool="mean")
    freeze(body)
    method(body)
    return classifier(body, pool="mean")


@pytest.mark.parametrize("method", [full, lambda body: partial(body, stages=2)])
def test_a_stage_that_is_off_stands_still_and_starts_at_its_own_step_1(method):
    random = np.random.default_rng(0)
    lengths = random.integers(2, 10, 20)
    tokens = [random.integers(5, CONFIG.vocab_size, n) for n in lengths]
    data = encoded(tokens, random.integers(0, 2, 20))
    model, task = model_of(method), Classification(["a", "b"], "mean")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    start = copy.deepcopy(model.state_dict())
    optimizer, run = AdamW(make_groups(model, 1e-2, 0.5)), Watching()
    train_with(model, task, data, optimizer, run, unfreezing=gradual, epochs=5, batch_size=5)
    prefixes = {f"body.{name}.": stage for stage, names in model.body.stages.items() for name in names}
    order = ["head", *reversed(model.body.stages)]
    for epoch, weights in enumerate(run.seen):
        for name, tensor in weights.items():
            stage = next((s for prefix, s in prefixes.items() if name.startswith(prefix)), "head")
            on = stage in order[: epoch + 1] and name in trained
            assert torch.equal(tensor, start[name]) != on or "key.bias" in name, (epoch, name)
    steps = {group.stage: {optimizer.state[p][0] for p in group.parameters} for group in optimizer.groups}
    assert steps == {stage: {4 * (5 - i)} for i, stage in enumerate(order) if stage in steps}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained


def test_dropout_rests_in_a_stage_that_is_off():
    model = model_of(full)
    groups = make_groups(model, 1e-2, 0.0)
    model.train()
    assert switch(model, groups, ["head", "layer 2"]) and not switch(model, groups, ["head", "layer 2"])
    assert [module.training for module in model.body.walk()] == [False, False, False, True, True]
    assert switch(model, groups, [*model.body.stages, "head"]) and all(module.training for module in model.body.walk())
