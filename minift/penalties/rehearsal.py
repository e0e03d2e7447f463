"""Rehearsal: rows of the source's task among those of the new one (Robins 1995, doi:10.1080/09540099550039318)."""

from torch import Tensor, nn

from minift.penalties.penalty import Beside, Penalty


class Rehearsal(Penalty):
    """Added to the loss, with s the share of a step's rows that are of the source,

        s / (1 - s)  mean over these rows of the source's loss

    so that every row of a step counts alike, the new task's and the source's. The source's loss is through the head that --model
    comes with, which stays as it is: only the body learns from these rows. They come in epochs of their own, each row once, in an
    order that depends on (seed, step) alone, as evaluation sees them; however many batches a step has, they are one batch.

    rows: of a step, those of the new task. share: above 0 and below 1.
    Raises ValueError where nothing of the body trains.
    Proved by tests/optim/test_penalties.py: the loss and the gradient of one batch of both tasks, float64, 1e-12.
    """

    def __init__(self, model: nn.Module, source, data, share: float, rows: int, seed: int):
        if not any(p.requires_grad for p in model.body.parameters()):
            raise ValueError("nothing of the body trains, so it learns nothing from the source's rows")
        self.source, self.weight = source, share / (1 - share)
        self.rows = Beside(data, max(1, round(rows * self.weight)), seed)

    def term(self, model: nn.Module, progress=None) -> Tensor | float:
        batch = self.rows.batch(progress.step, next(model.parameters()).device)
        if not batch.counts.sum():
            return 0.0
        _, outputs = self.source.on(model.body)(batch)
        return self.weight * self.source.task.loss(outputs, batch).sum() / batch.counts.sum().item()
