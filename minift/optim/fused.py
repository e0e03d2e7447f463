"""The update rules by torch's own kernels, for many parameters at once: one pass over memory where the plain rule makes several.

On a CPU with AVX-512 a step of AdamW over BERT-base's parameters takes 0.4 of the time (tests/bench/optimisers.py). On a GPU the
plain rule of two hundred parameters is two thousand kernels, which take longer to start than to run. The rules are in
minift/optim/adamw.py and sgd.py. Equal up to rounding: tests/reference/test_optim.py.
"""

import torch
from torch import Tensor


def fused_adamw(
    t: int,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    tensors: list[list[Tensor]],
    finite: Tensor | None = None,
) -> None:
    """The t-th update, in place, with bias correction.

    tensors: all theta, all g, all m, all v, and for amsgrad the largest v of each; of one dtype on one device, each in one piece.
    finite: a bool scalar on the device; where it is False, no bit changes.
    """
    thetas, _, _, _, *largest = tensors
    # the kernel reads a step count for each parameter; the one tensor is made on the device, so that no one waits for a copy
    count = torch.full((), t, dtype=torch.float32, device=thetas[0].device)
    torch._fused_adamw_(
        *tensors[:4],
        *(largest or [[]]),
        [count] * len(thetas),
        amsgrad=bool(largest),
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=weight_decay,
        eps=eps,
        maximize=False,
        found_inf=left_out(finite),
    )
    note(thetas)


def fused_sgd(
    lr: float, weight_decay: float, momentum: float, nesterov: bool, tensors: list[list[Tensor]], finite: Tensor | None = None
) -> None:
    """The same for SGD. tensors: all theta, all g and, with momentum, all m."""
    thetas, gradients, *moments = tensors
    torch._fused_sgd_(
        thetas,
        gradients,
        *(moments or [[]]),
        weight_decay=weight_decay,
        momentum=momentum,
        lr=lr,
        dampening=0.0,
        nesterov=nesterov,
        maximize=False,
        is_first_step=False,
        found_inf=left_out(finite),
    )
    note(thetas)


def left_out(finite: Tensor | None) -> Tensor | None:
    """As the kernels take it: 1 where the update is to be left out."""
    return None if finite is None else (~finite).float()


def note(thetas: list[Tensor]) -> None:
    """By its version a cast of the weight that is kept notices that the weight has changed; the kernels do not say so."""
    for theta in thetas:
        torch.autograd.graph.increment_version(theta)
