"""AdamW's update by torch's own kernel, one pass over the memory where minift/optim/adamw.py, which says what it is, makes seven.

On a CPU with AVX-512 a step over BERT-base's parameters takes 0.4 of the time (tests/bench/optimisers.py). Equal up to rounding:
tests/reference/test_optim.py.
"""

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64)


def fused_adamw(
    t: int,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    theta: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    largest: Tensor | None = None,
) -> None:
    """The t-th update of theta, in place, with bias correction. Tensors of one dtype of DTYPES on a CPU, each in one piece."""
    torch._fused_adamw_(
        [theta],
        [g],
        [m],
        [v],
        [] if largest is None else [largest],
        [torch.tensor(float(t), dtype=torch.float32)],
        amsgrad=largest is not None,
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=weight_decay,
        eps=eps,
        maximize=False,
    )
    torch.autograd.graph.increment_version(theta)  # by which a cast of the weight that is kept notices; the kernel does not say
