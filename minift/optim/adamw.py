"""AdamW: Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2)."""

import math

import torch
from torch import Tensor

from minift.optim.fused import fused_adamw
from minift.optim.groups import Group
from minift.optim.optimizer import Optimizer


class AdamW(Optimizer):
    """For every parameter theta with gradient g, at its own step t = 1, 2, ...

        theta <- theta - eta lr lambda theta
        m     <- beta1 m + (1 - beta1) g
        v     <- beta2 v + (1 - beta2) g^2
        theta <- theta - eta lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    eta is the schedule's factor, lr and lambda are the group's learning rate and weight decay.

    groups: from `make_groups`. betas: 0 <= beta <= 1 - 1e-8. eps: from 1e-30 to 1; a smaller one is lost in float32.
    amsgrad: in the last line the largest v so far, element by element, replaces v (Reddi et al. 2018, arXiv:1904.09237, algorithm
    2). The paper has no bias correction; as in torch, the largest is taken before it. Defaults are torch's.
    bias_correction: False leaves out both divisions by 1 - beta^t, as BERT's own optimizer does (Devlin et al. 2019,
    arXiv:1810.04805; AdamWeightDecayOptimizer in google-research/bert). The first steps are then longer, the very first by (1 -
    beta1) / sqrt(1 - beta2) = 3.2. BERT's optimizer adds lambda theta to m / (sqrt(v) + eps) before it multiplies by lr: as
    neither m nor v depends on theta, this is the same update up to rounding. What still differs are defaults outside this file:
    eps 1e-6, lambda 0.01, a global clip of 1.0, and a linear decay counted from step 0 (see `schedules`).

    fused: the update is by torch's fused kernel (minift/optim/fused.py), where there is one: not without bias_correction.

    Equal to torch.optim.AdamW and to BERT's formula (tests/reference/test_optim.py).
    """

    idle_rows_decay = True

    def __init__(
        self,
        groups: list[Group],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        amsgrad: bool = False,
        bias_correction: bool = True,
        fused: bool = True,
    ):
        if len(betas) != 2 or not all(0 <= beta <= 1 - 1e-8 for beta in betas):
            raise ValueError(f"betas={betas}: two numbers from 0 to below 1 are expected")
        if not 1e-30 <= eps <= 1:
            raise ValueError(f"eps={eps}: a number from 1e-30 to 1 is expected")
        super().__init__(groups)
        self.betas = betas
        self.eps = eps
        self.moments = ("m", "v", "largest") if amsgrad else ("m", "v")
        self.bias_correction = bias_correction
        self.kernel_on = ("cpu", "cuda") if fused and bias_correction else ()

    def kernel(self, t: int, lr: float, weight_decay: float, tensors: list[list[Tensor]], finite: Tensor | None) -> None:
        fused_adamw(t, lr, weight_decay, self.betas, self.eps, tensors, finite)

    def update(
        self, t: int, lr: float, weight_decay: float, theta: Tensor, g: Tensor, m: Tensor, v: Tensor, largest: Tensor | None = None
    ) -> None:
        beta1, beta2 = self.betas
        alpha, eps = lr, self.eps
        if self.bias_correction:  # the whole fraction times root / root, which saves a pass over v
            root = math.sqrt(1 - beta2**t)
            alpha, eps = lr / (1 - beta1**t) * root, self.eps * root
        theta.mul_(1 - lr * weight_decay)
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        if largest is not None:
            v = torch.maximum(largest, v, out=largest)
        theta.addcdiv_(m, v.sqrt().add_(eps), value=-alpha)
