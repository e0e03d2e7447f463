"""--compile: what trains becomes a few graphs of torch.compile, fused kernels for the whole of each.

A graph for every TOGETHER stages of one kind, and not one for all: surgery and unfreezing act on stages, and the layers of a
transformer have one graph in common that is made once. Nor one for each: a call of a graph costs the processor half a
millisecond, in which a GPU waits. Any number of rows and tokens fits the graph, but for 1, where torch makes another, as it does
for evaluation and where nothing is padded. A graph takes seconds to a minute to make; where it pays is a long run on a GPU.

Equal to the same run without it, but for rounding and for dropout, which draws other numbers: tests/test_compiling.py.
"""

import shutil
from collections.abc import Callable
from functools import partial
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minift.errors import UserError, brief
from minift.methods.surgery import from_lowest

TOGETHER = 6  # stages: twelve take more than twice as long to compile, and are no faster (tests/bench/FIGURES.md)
GRAPHS = 64  # of one stage's code, in different shapes: torch's own limit of 8 is below a ResNet's


def compile_stages(body: nn.Module, inputs: tuple[Tensor | None, ...]) -> None:
    """Let torch compile every module of `body.walk()`, from the lowest that trains upwards. Call it after the surgery.

    inputs: of a batch; one forward pass tells whether torch can compile here. Raises UserError where it cannot.
    """
    on_cpu = next(body.parameters()).device.type == "cpu"
    if on_cpu and not any(map(shutil.which, ("g++", "clang++", "cl"))):
        raise UserError("--compile on a CPU: torch needs a C++ compiler, and there is none on the PATH")
    limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
    setattr(torch._dynamo.config, limit, max(GRAPHS, getattr(torch._dynamo.config, limit)))
    for first, *others in groups(from_lowest(body)):
        forwards = [module.forward for module in (first, *others)]
        first.forward = partial(whole, torch.compile(partial(fields, forwards), dynamic=True))
        for module in others:
            module.forward = unchanged  # the first has run it
    training = body.training
    try:
        with torch.inference_mode():
            body.eval()(*inputs)
    except torch._dynamo.exc.TorchDynamoException as error:
        raise UserError(f"--compile: torch cannot compile this model here ({brief(error)}); leave the flag out") from None
    finally:
        body.train(training)


def groups(modules: list[nn.Module]) -> list[list[nn.Module]]:
    """The modules in their order, TOGETHER at most of one kind."""
    kinds = [list(kind) for _, kind in groupby(modules, type)]
    return [kind[i : i + TOGETHER] for kind in kinds for i in range(0, len(kind), TOGETHER)]


def fields(forwards: list[Callable], state: NamedTuple) -> tuple:
    """What is compiled. It gives a plain tuple, as a NamedTuple that a graph has made by `_replace` is broken in torch 2.11."""
    for forward in forwards:
        state = forward(state)
    return tuple(state)


def whole(graph: Callable, state: NamedTuple) -> NamedTuple:
    return type(state)(*graph(state))


def unchanged(state: NamedTuple) -> NamedTuple:
    return state
