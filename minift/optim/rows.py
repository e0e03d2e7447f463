"""Gradients of a large table of vectors, of which a batch reads a few: stored row by row, not as a table of zeros.

A batch of 32 short texts reads a few hundred of the embedded model's 30,522 vectors. nn.Embedding(sparse=True) makes the gradient
those rows alone. Clipping and loss scaling then go over them, and the optimizer sees them in a table of zeros that is kept from one
step to the next: the update is that of the dense gradient, also of rows that the batch does not read, which decay and go on with
their momentum. A step of the embedded model in bfloat16 takes 0.95 of its processor time (one core of an AMD EPYC, AVX-512).

Where another gradient comes to the same table, as from a head that is tied to it or from a penalty, autograd adds both into a dense
one. Equal to the dense gradient's 50 steps (tests/optim/test_rows.py).
"""

import torch
from torch import Tensor, nn

LARGE = 1 << 20  # elements of a table from which on this is faster


def by_rows(model: nn.Module) -> None:
    """Let every large table on a CPU that trains have such gradients."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            weight = module.weight
            module.sparse = weight.requires_grad and weight.device.type == "cpu" and weight.numel() >= LARGE


def numbers(parameter: Tensor) -> Tensor:
    """All of its gradient that may not be 0, to be read and changed in place: of some rows, each once, or the gradient itself."""
    if not parameter.grad.is_sparse:
        return parameter.grad
    if not parameter.grad.is_coalesced():
        parameter.grad = parameter.grad.coalesce()
    return parameter.grad._values()  # values() would be a copy's


class Tables:
    """For each parameter with a gradient of some rows a table that holds it, and is 0 elsewhere."""

    def __init__(self):
        self.kept: dict[Tensor, Tensor] = {}
        self.filled: list[tuple[Tensor, Tensor]] = []

    def dense(self, parameter: Tensor) -> Tensor:
        """Its gradient as a table, until `clear`; the gradient itself where it is dense."""
        if not parameter.grad.is_sparse:
            return parameter.grad
        values = numbers(parameter)
        rows, table = parameter.grad.indices()[0], self.kept.get(parameter)
        if table is None:
            table = self.kept[parameter] = torch.zeros_like(parameter)
        table[rows] = values
        self.filled.append((table, rows))
        return table

    def clear(self) -> None:
        for table, rows in self.filled:
            table[rows] = 0
        self.filled = []
