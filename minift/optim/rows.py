"""Gradients of a large table of vectors, of which a batch reads a few: stored row by row, not as a table of zeros.

A batch of 32 short texts reads a few hundred of the embedded model's 30,522 vectors. nn.Embedding(sparse=True) makes the gradient
those rows alone. Clipping and loss scaling then go over them, and AdamW keeps moments of the rows that a gradient has come to so
far: those of all others are 0, and its update of them is the decay alone. So the update is that of the dense gradient, also of rows
that this batch does not read, which decay and go on with their momentum. SGD, whose decay goes through the momentum, takes the
gradient as a table. A run of the embedded model on 2,000 short texts takes about 90 MB less so.

Where another gradient comes to the same table, as from a head that is tied to it or from a penalty, autograd adds both into a dense
one, and the moments become dense with it. Equal to the dense gradient's 50 steps (tests/optim/test_rows.py).
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


class Rows:
    """The rows of a table (V, D) that a gradient has come to so far. which: (n) their numbers, in the order in which they came."""

    def __init__(self, table: Tensor, which: Tensor | None = None):
        self.which = torch.empty(0, dtype=torch.int64, device=table.device) if which is None else which
        self.places = torch.full((len(table),), -1, device=table.device)  # (V) where a row stands in `which`; -1: nowhere
        self.places[self.which] = torch.arange(len(self.which), device=table.device)

    def add(self, rows: Tensor) -> int:
        """Take in those of the rows, each once, that are not there yet. Returns their count."""
        new = rows[self.places[rows] < 0]
        self.places[new] = torch.arange(len(self.which), len(self.which) + len(new), device=new.device)
        self.which = torch.cat([self.which, new])
        return len(new)

    def spread(self, which: Tensor, values: Tensor) -> Tensor:
        """The values (k, D) of some of the rows as those of all: (n, D), 0 elsewhere."""
        dense = values.new_zeros(len(self.which), *values.shape[1:])
        dense[self.places[which]] = values
        return dense
