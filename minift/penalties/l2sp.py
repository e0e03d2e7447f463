"""L2-SP: training stays near the pretrained weights (Li, Grandvalet & Davoine 2018, arXiv:1802.01483, equation 3)."""

import torch
from torch import Tensor, nn

from minift.penalties.penalty import Anchored, Penalty


class L2SP(Penalty):
    """Added to the loss, with theta_0 the pretrained values of the weights theta, and w the new weights, of the head above all,

        alpha/2 |theta - theta_0|^2 + beta/2 |w|^2

    in the place of weight decay, which would pull theta to 0 as well. Of the pretrained weights all that train count, biases and
    normalisation layers too; new layers of a method, which start from nothing, as LoRA's, bear no penalty. The objective
    argmin L(theta) + lambda |theta - theta_0|^2 is this one with lambda = alpha/2 and beta = 0.

    decoupled: instead, just before each update, with eta the schedule's factor and lr the learning rate of the group,

        theta <- theta - eta lr alpha (theta - theta_0)        w <- w - eta lr beta w

    as AdamW does with weight decay. The two differ under AdamW, and by more than a factor: it divides the gradient of a penalty,
    as all of the gradient, by the root of its second moment, so that the pull is strong where gradients of the loss are small and
    weak where they are large; the decoupled pull is the same everywhere. They are equal under SGD without momentum, up to the
    order of the two pulls (the decoupled one moves from where the gradient was taken, then the gradient is applied).

    The paper's alpha is 0.1 and its beta 0.01 for ResNets under SGD. alpha, beta: 0 or above.
    Raises ValueError where no pretrained weight trains, and for a strength out of range.
    Proved by tests/optim/test_penalties.py: worked by hand on two weights, gradient by finite differences.
    """

    REPLACES_DECAY = True

    def __init__(self, anchored: Anchored, alpha: float = 0.1, beta: float = 0.01, decoupled: bool = False):
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value}: a number of 0 or above is expected")
        if not anchored.pretrained:
            raise ValueError("no pretrained weight trains, so there is nothing to stay near")
        self.pretrained, self.new = anchored.pretrained, anchored.new
        self.alpha, self.beta, self.decoupled = alpha, beta, decoupled

    def term(self, model: nn.Module, progress=None) -> Tensor | float:
        if self.decoupled:
            return 0.0
        moved = sum((theta - theta_0).square().sum() for theta, theta_0 in self.pretrained)
        return self.alpha / 2 * moved + self.beta / 2 * sum(w.square().sum() for w in self.new)

    @torch.no_grad()
    def pull(self, groups, factor: float, finite: Tensor) -> None:
        if not self.decoupled:
            return
        rates = {theta: factor * group.lr for group in groups for theta in group.parameters if theta.grad is not None}
        for theta, theta_0 in self.pretrained:
            if theta in rates:
                theta.copy_(torch.where(finite, theta.lerp(theta_0, rates[theta] * self.alpha), theta))
        for w in self.new:
            if w in rates:
                w.copy_(torch.where(finite, w * (1 - rates[w] * self.beta), w))
