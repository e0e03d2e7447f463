"""Every method under torch.compile in one graph: the outputs and gradients that it has without."""

import copy
import os
import shutil

import pytest
import torch
from contract.bodies import APART, MODELS, SPECS, classifier, loss_of, operated, randomise

SMALL = {name: MODELS[name].still | MODELS[name].shallow for name in MODELS}


def compare(spec: str, model: str, backend: str, tolerance: float) -> None:
    """In train mode, where statistics of a BatchNorm that trains move too."""
    eager = classifier(randomise(operated(spec, on=model, **SMALL[model]))).train()
    twin = copy.deepcopy(eager)
    torch._dynamo.reset()
    losses = [loss_of(eager, model), loss_of(torch.compile(twin, backend=backend, fullgraph=True), model)]
    for loss in losses:
        loss.backward()
    gap = float((losses[0] - losses[1]).detach().abs())
    assert gap <= tolerance, f"{spec} on {model}: compiled, the loss is {gap:.1e} away"
    for (name, a), b in zip(eager.named_parameters(), twin.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), f"{spec} on {model}: {name} has a gradient compiled or not, but not both"
        gap = 0.0 if a.grad is None else float((a.grad - b.grad).abs().max())
        assert gap <= tolerance, f"{spec} on {model}: compiled, the gradient of {name} is {gap:.1e} away"
    for (name, a), b in zip(eager.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance, msg=f"{spec} on {model}: compiled, {name} is another")


# A graph takes seconds: of every method one, on a BERT and a ResNet; under other options, and on a GPT-2, with -m slow
@pytest.mark.parametrize("model", APART)
@pytest.mark.parametrize("spec", [pytest.param(spec, marks=[pytest.mark.slow] * (":" in spec)) for spec in SPECS])
def test_one_graph(spec, model):
    compare(spec, model, "aot_eager", 1e-10)


COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler: inductor needs one on a CPU")
@pytest.mark.parametrize(("spec", "model"), [("lora", "bert"), ("dora", "resnet")])
def test_inductor(spec, model):
    compare(spec, model, "inductor", 1e-10)
