"""SGD with momentum, also in Nesterov's form (Sutskever et al. 2013, ICML, section 2, equations 1 to 4): usual for images."""

from torch import Tensor

from minift.optim.fused import fused_sgd
from minift.optim.groups import Group
from minift.optim.optimizer import Optimizer


class SGD(Optimizer):
    """For every parameter theta with gradient g, from m = 0 on

        g     <- g + lambda theta
        m     <- mu m + g
        theta <- theta - eta lr m                 or, by Nesterov,     theta <- theta - eta lr (g + mu m)

    eta is the schedule's factor, lr and lambda are the group's learning rate and weight decay. The decay is an L2 penalty: unlike
    AdamW's it goes through the momentum. lr stands outside m, as in torch and not as in the papers, so that a change of the
    learning rate acts on the whole step at once. nesterov without momentum is plain SGD, and momentum 0 keeps no m.

    groups: from `make_groups`. momentum: mu, 0 <= mu < 1; torch's default is 0. On CUDA by torch's kernel (minift/optim/fused.py).
    Equal to torch.optim.SGD, whose first m is g as well (tests/reference/test_optim.py).
    """

    kernel_on = ("cuda",)

    def __init__(self, groups: list[Group], momentum: float = 0.9, nesterov: bool = False):
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum}: a number from 0 to below 1 is expected")
        super().__init__(groups)
        self.momentum = momentum
        self.nesterov = nesterov
        self.moments = ("m",) if momentum else ()

    def kernel(self, t: int, lr: float, weight_decay: float, tensors: list[list[Tensor]], finite: Tensor | None) -> None:
        fused_sgd(lr, weight_decay, self.momentum, self.nesterov and self.momentum > 0, tensors, finite)

    def update(self, t: int, lr: float, weight_decay: float, theta: Tensor, g: Tensor, m: Tensor | None = None) -> None:
        if weight_decay:
            g = g.add(theta, alpha=weight_decay)
        if m is not None:
            m.mul_(self.momentum).add_(g)
            g = g.add(m, alpha=self.momentum) if self.nesterov else m
        theta.add_(g, alpha=-lr)
