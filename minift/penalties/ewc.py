"""EWC, elastic weight consolidation: a weight is held the more, the more the source's task depends on it.

Kirkpatrick et al. 2017 (arXiv:1612.00796), equation 3.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from minift.penalties.penalty import Anchored, Penalty


class EWC(Penalty):
    """Added to the loss, with theta_0 the pretrained values of the weights theta, in the place of weight decay,

        strength/2 sum_i F_i (theta_i - theta_0,i)^2,    F_i = mean over units x of E_y (d log p(y | x; theta_0) / d theta_i)^2

    F is the diagonal of the Fisher information of the source's task at theta_0: the body and the head that --model comes with, in
    evaluation mode, on `rows` units of --source-data, or of the file `data` where that is given, so that the meter has rows of its
    own. It is a mean over units of the square of each unit's gradient; the square of a batch's gradient is another thing, 0 for two
    units that pull against each other. log p of a unit is minus its loss: of a text with masked words the sum over these.

    labels  drawn   y from the model, one for each unit: the true Fisher information, estimated
            all     every y, weighted with its probability: its exact value on these units, for one backward pass a class
            data    the labels in the file: the empirical one, which falls to 0 where the model fits them

    Weights that the source does not have, as a new pooler, and the new head have F = 0: they are free. What the method adds is free
    as well. The paper tunes the strength for each task; F is small, so that it lies between 10 and 100,000.
    strength: 0 or above. rows: 1 or more.
    Raises ValueError where no pretrained weight trains, without a source, for labels that the source's task does not have.
    Proved by tests/optim/test_penalties.py: by hand, finite differences, the Fisher information of a slow loop in float64 at 1e-10.
    """

    REPLACES_DECAY = True
    ASKS_SOURCE = True
    ONCE = True  # a run keeps one Fisher information

    def __init__(self, anchored: Anchored, strength: float = 1000.0, rows: int = 1000, labels: str = "drawn", data: str = ""):
        source = anchored.source
        if not 0 <= strength < float("inf"):
            raise ValueError(f"strength={strength}: a number of 0 or above is expected")
        if rows < 1:
            raise ValueError(f"rows={rows}: 1 or more is expected")
        if not anchored.pretrained:
            raise ValueError("no pretrained weight trains, so there is nothing to hold")
        if source is None or source.task is None or (source.data is None and not data):
            raise ValueError(
                "the Fisher information is computed from rows of the task that --model was trained on; add --source-data FILE"
            )
        if labels not in source.task.FISHER:
            raise ValueError(f"labels={labels}: of this source's task there are {', '.join(source.task.FISHER)}")
        self.pretrained, self.names, self.source = anchored.pretrained, anchored.names, source
        self.strength, self.rows, self.labels, self.data = strength, rows, labels, data
        self.F: list[Tensor] = []

    def begin(self, directory: Path | None) -> None:
        self.F = self.source.fisher(self.names, self.rows, self.labels, self.data, directory)

    def term(self, model: nn.Module, progress=None) -> Tensor | float:
        each = zip(self.F, self.pretrained, strict=True)
        return self.strength / 2 * sum((F * (theta - theta_0).square()).sum() for F, (theta, theta_0) in each)


def fisher(model: nn.Module, task, units: Iterable, parameters: list[Tensor], labels: str) -> list[Tensor]:
    """F of every parameter. units: batches of one unit each. model: in evaluation mode. labels: as EWC has them."""
    F, count = [torch.zeros_like(p) for p in parameters], 0
    generator, tables = torch.Generator().manual_seed(0), [m for m in model.modules() if isinstance(m, nn.Embedding)]
    for table in tables:
        table.sparse = True  # else the gradient of one text is as large as the whole table of words
    for batch in units:
        count += 1
        _, outputs = model(batch)
        for weight, labelled in labellings(task, outputs, batch, labels, generator):
            loss = task.loss(outputs, labelled).sum()
            gradients = torch.autograd.grad(loss, parameters, retain_graph=labels == "all", allow_unused=True)
            for total, g in zip(F, gradients, strict=True):
                if g is not None and g.is_sparse:
                    g = g.coalesce()
                    total.index_add_(0, g.indices()[0], g.values().square(), alpha=weight)
                elif g is not None:
                    total.addcmul_(g, g, value=weight)
    for table in tables:
        table.sparse = False
    return [total / count for total in F]


def labellings(task, outputs, batch, labels: str, generator: torch.Generator) -> list[tuple[float, object]]:
    """(weight, the batch with these labels), whose weights add up to 1."""
    if labels == "data":
        return [(1.0, batch)]
    with torch.no_grad():
        return [(1.0, task.drawn(outputs, batch, generator))] if labels == "drawn" else task.outcomes(outputs, batch)
