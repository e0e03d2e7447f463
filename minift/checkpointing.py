"""Activation checkpointing: a stage keeps its input alone and computes the rest again in the backward pass.

Chen et al. 2016 (arXiv:1604.06174): for L stages of equal size the memory of the activations falls from L stages' to L inputs and
one stage's, for one more forward. Dropout draws the same numbers again, the precision is the same, and the second forward leaves
the statistics of BatchNorms as it found them. Proved by tests/test_checkpointing.py.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from minift.methods.surgery import from_lowest


def checkpoint_activations(body: nn.Module, precision: AbstractContextManager) -> None:
    """Let every module of `body.walk()`, from the lowest that trains upwards, compute its activations again. Call it after the
    surgery. precision: the context of the run, which the second forward needs too.
    """
    for module in from_lowest(body):
        module.forward = partial(checkpointed, module, module.forward, precision)


def checkpointed(module: nn.Module, forward, precision: AbstractContextManager, state):
    if not torch.is_grad_enabled():
        return forward(state)
    return checkpoint(forward, state, use_reentrant=False, context_fn=lambda: (nullcontext(), second_forward(module, precision)))


@contextmanager
def second_forward(module: nn.Module, precision: AbstractContextManager) -> Iterator[None]:
    """The precision of the first forward. The second one must not update the running statistics of a BatchNorm again: with
    momentum 0 they stay as they are, bit for bit, and the count of batches is put back.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        with precision:
            yield
    finally:  # torch ends the second forward by an exception as soon as it has every tensor that it needs
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)
