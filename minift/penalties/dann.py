"""DANN: features that do not tell the rows of two domains apart (Ganin et al. 2016, arXiv:1505.07818).

Axes: B units of a batch, D width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minift.penalties.penalty import Beside, Penalty

HIDDEN = 100  # units of the domain head's middle layer, as in the paper's network for digits


class Reverse(torch.autograd.Function):
    """f in the forward pass; in the backward pass the gradient times -strength."""

    @staticmethod
    def forward(ctx, f: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return f.view_as(f)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradient, None


class DANN(Penalty):
    """Added to the loss, with f the features that the task's head reads, R the reversal of their gradient and d a domain head,

        mean over the step's rows of -log(1 - d(R(f)))  +  mean over as many rows of --target-data of -log d(R(f))

    so that d learns to tell the domains apart, with its full gradient, and the body, whose gradient is reversed and multiplied by
    lambda, learns features from which it cannot. lambda = largest (2 / (1 + exp(-10 p)) - 1), where p counts the updates from 0
    to 1 (section 5.2.2, where largest is 1). The head of the task sees rows of the training file alone. The labels of --target-data
    are never read, and the epoch is chosen by validation rows of the training file: to choose it by the target's labels would need
    them.

    d has one hidden layer and trains with the learning rate of the head. The rows of the target come in epochs of their own, in an
    order that depends on (seed, step) alone, in a forward pass of their own: a BatchNorm takes its statistics from each domain
    apart, and its running ones move with both. An accuracy of d near 1 to the end, or of 1/2 from the start, says that the
    reversal has done nothing: it is told after every epoch, of rows as training saw them.

    width: D. rows: of a step. steps: of the run. largest: 0 or more; at 1 a pretrained body may lose what tells the classes apart.
    Proved by tests/optim/test_penalties.py: lambda, the sign and the size of both gradients.
    """

    def __init__(self, target, width: int, rows: int, steps: int, seed: int, largest: float = 1.0):
        self.target, self.steps, self.largest = Beside(target, rows, seed), steps, largest
        self.head = nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
        self.right, self.seen = 0, 0

    def strength(self, progress) -> float:
        """lambda"""
        p = progress.step / max(1, self.steps - 1)
        return self.largest * (2 / (1 + math.exp(-10 * p)) - 1)

    def losses(self, f: Tensor, domain: float, progress) -> Tensor:
        """(B, D) -> (B); domain: 0 of the training file, 1 of the target."""
        z = self.head(Reverse.apply(f, self.strength(progress))).squeeze(-1)
        self.right = self.right + ((z.detach() > 0) == bool(domain)).sum()
        self.seen += len(f)
        return F.binary_cross_entropy_with_logits(z, torch.full_like(z, domain), reduction="none")

    def units(self, state: tuple, outputs, batch, progress) -> Tensor:
        return self.losses(state.pooled, 0.0, progress)

    def term(self, model: nn.Module, progress=None) -> Tensor:
        batch = self.target.batch(progress.step, next(model.parameters()).device)
        return self.losses(model.body(*batch.inputs).pooled, 1.0, progress).mean()

    def figures(self) -> dict[str, float]:
        found = {"domain_accuracy": float(self.right) / self.seen} if self.seen else {}
        self.right, self.seen = 0, 0
        return found

    def state_dict(self) -> dict[str, Tensor]:
        return self.head.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.head.load_state_dict(state)
