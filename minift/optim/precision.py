"""Mixed precision as a policy around an unchanged model, and loss scaling for float16 (Micikevicius et al. 2018, arXiv:1710.03740).

    low      products: their floating-point arguments are cast to bfloat16 or float16
    float32  sums over many terms, exponentials, losses: their arguments are cast to float32
    widest   several tensors of one type: to float32 where one of them is, else to the low type

All other operations run in the type in which their arguments arrive: bfloat16 + float32 is float32, as everywhere in torch.
Weights that train stay float32 and are cast inside the graph, so that gradients and the optimiser's state are float32.

TABLE is torch.autocast's, whose lists for CPU and CUDA differ: on a CPU softmax, LayerNorm and sums keep the type of their input,
and the kernels add up in float32 by themselves. Left out is what autocast lists besides and no text or image encoder of minift
calls: FFTs, matrix decompositions, recurrent cells, 3-d pooling, resampling, reflected padding, tensordot and bilinear.
Proved by tests/reference/test_precision.py: types, values and gradients of every operation against torch.autocast, bit by bit.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

# Policy, devices, operations: every function of that name in torch, torch.nn.functional, torch.linalg and torch.special, and the
# tensor's method. A Python function of torch's is one operation, and what it calls inside is not seen: hence einsum and normalize
# by their names, while nn.MultiheadAttention, which has none here, runs in the type of its input.
TABLE = (
    ("low", "cpu cuda", "linear matmul __rmatmul__ mm bmm addmm addbmm baddbmm einsum vecdot prelu"),
    ("low", "cpu cuda", "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d conv_tbc"),
    ("low", "cpu cuda", "scaled_dot_product_attention"),
    ("low", "cuda", "mv addmv addr"),
    ("float32", "cpu cuda", "cross_entropy nll_loss binary_cross_entropy_with_logits kl_div mse_loss l1_loss smooth_l1_loss"),
    ("float32", "cpu cuda", "huber_loss poisson_nll_loss soft_margin_loss multi_margin_loss multilabel_margin_loss"),
    ("float32", "cpu cuda", "margin_ranking_loss hinge_embedding_loss cosine_embedding_loss triplet_margin_loss cdist prod"),
    ("float32", "cpu", "quantile nanquantile trace"),
    ("float32", "cuda", "softmax log_softmax softmin gumbel_softmax logsumexp softplus layer_norm group_norm rms_norm"),
    ("float32", "cuda", "norm vector_norm matrix_norm normalize cosine_similarity dist pdist renorm sum cumsum cumprod"),
    ("float32", "cuda", "exp expm1 log log1p log2 log10 pow __pow__ __rpow__ reciprocal __rdiv__ __rtruediv__ rsqrt"),
    ("float32", "cuda", "acos asin cosh sinh tan erfinv"),
    ("widest", "cpu", "cat stack index_copy"),
    ("widest", "cuda", "addcmul addcdiv atan2 dot vdot index_put scatter_add"),
)

POLICIES: dict[Callable, dict[str, str]] = {}  # function -> device type -> policy
for policy, devices, names in TABLE:
    for name in names.split():
        for space in (torch, F, torch.linalg, torch.special, Tensor):
            if hasattr(space, name):
                POLICIES.setdefault(getattr(space, name), {}).update(dict.fromkeys(devices.split(), policy))


class Kept(NamedTuple):
    """A frozen weight in the low type, with the memory that it was cast from and the version of what stood there."""

    source: Tensor
    version: int
    low: Tensor


class LowPrecision(TorchFunctionMode):
    """`with LowPrecision(torch.bfloat16): logits = model(batch)`; the backward pass belongs outside.

    float64 is left alone, integers too, and so is an operation that writes into a tensor of the caller's (`out=`, `add_`).

    A frozen weight is cast at its first use and kept in the low type, as nothing would change at the next: one LowPrecision for
    the whole run, then, not one for each step. A kept cast goes when its weight is deleted, and is made anew when the weight was
    written to or its `.data` replaced; only what is written *through* `.data` escapes notice, as it escapes autograd's.
    A weight that trains is cast at each use: it differs in each step, and the cast is part of the graph.

    Recomputation runs in the backward pass, outside the `with`; torch.utils.checkpoint enters it again when told to, by
    `use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), precision)`.

    dtype: torch.bfloat16, or torch.float16, which needs a LossScaler.
    Differs from torch.autocast in an einsum that contracts nothing, low on a CPU too.
    """

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype
        self.kept = WeakIdKeyDictionary()  # frozen weight -> Kept

    def __torch_function__(self, func: Callable, types, args=(), kwargs=None) -> Any:
        # Torch has switched the mode off in here: neither the casts nor what func calls inside come back.
        kwargs = kwargs or {}
        policies = POLICIES.get(func)
        if policies is None or kwargs.get("out") is not None:
            return func(*args, **kwargs)
        tensors = [x for x in flat((*args, *kwargs.values())) if castable(x)]
        policy = policies.get(tensors[0].device.type) if tensors else None
        if policy is None:
            return func(*args, **kwargs)
        if policy == "widest":
            policy = "float32" if any(x.dtype == torch.float32 for x in tensors) else "low"
        dtype = self.dtype if policy == "low" else torch.float32
        return func(*self.cast(args, dtype), **{key: self.cast(x, dtype) for key, x in kwargs.items()})

    def cast(self, x: Any, dtype: torch.dtype) -> Any:
        if isinstance(x, list | tuple):
            return [self.cast(y, dtype) for y in x]
        if not castable(x) or x.dtype == dtype:
            return x
        return self.keep(x) if dtype == self.dtype and is_frozen(x) else x.to(dtype)

    def keep(self, weight: Tensor) -> Tensor:
        kept = self.kept.get(weight)
        if kept is None or kept.version != weight._version or not weight.is_set_to(kept.source):
            with torch.inference_mode(False):  # a tensor made in inference mode could not be used in training afterwards
                kept = self.kept[weight] = Kept(weight.detach(), weight._version, weight.detach().to(self.dtype))
        return kept.low


def flat(arguments: Iterable) -> Iterator:
    for x in arguments:
        if isinstance(x, list | tuple):
            yield from flat(x)
        else:
            yield x


def castable(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64


def is_frozen(x: Tensor) -> bool:
    """A parameter, not an activation, which is just as well a leaf without gradient where no graph is recorded."""
    return not x.requires_grad and isinstance(x, nn.Parameter) and not x.is_inference()


def choose(name: str, device: torch.device) -> torch.dtype:
    """The type by its name; `auto` is bfloat16 where the device multiplies it faster than float32, else float32.

    On CUDA that is from compute capability 8.0 (Ampere) on: below, bfloat16 is emulated. On a CPU it takes AMX: with AVX-512-BF16
    alone the casts cost more than the products gain (6 layers of width 384: float32 is 1.3 times as fast in training and 1.6 times
    in inference). A torch too old to tell what the CPU has, gives float32. auto is never float16, which needs a LossScaler.
    """
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name != "auto" and name not in known:
        raise ValueError(f"precision is {name!r}; known are auto, {', '.join(known)}")
    if name != "auto":
        return known[name]
    fast = False
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        fast = torch.cpu.get_capabilities().get("amx_bf16", False)
    return torch.bfloat16 if fast else torch.float32


def around(dtype: torch.dtype) -> AbstractContextManager:
    """What a run enters around every forward: LowPrecision for a low type; for float32 nothing, the weights' type decides."""
    return nullcontext() if dtype == torch.float32 else LowPrecision(dtype)


class LossScaler:
    """Keeps small gradients above float16's smallest number: with S the scale, N the growth interval,

        backward from S loss;  g <- g / S
        g finite:      step;     S <- 2 S  after N such in a row, unless 2 S is beyond float32
        g not finite:  no step;  S <- S / 2

    Micikevicius et al. 2018, section 3.2; the constants are torch's.
    State equal to torch.amp.GradScaler's after every step (tests/reference/test_precision.py).
    """

    def __init__(self, scale: float = 65536.0, growth_interval: int = 2000):
        self.S = scale
        self.N = growth_interval
        self.n = 0  # finite steps in a row

    def scale(self, loss: Tensor) -> Tensor:
        return loss.float() * self.S  # S itself is beyond float16

    @torch.no_grad()
    def unscale(self, parameters: Iterable[Tensor]) -> bool:
        """Divide the gradients by S, in place; True where all of them are finite. Once a step, before clipping."""
        gradients = [theta.grad for theta in parameters if theta.grad is not None]
        for g in gradients:
            g.mul_(1 / self.S)
        # One question to the device, not one for each gradient.
        return not gradients or bool(torch.stack([g.isfinite().all() for g in gradients]).all())

    def update(self, finite: bool) -> None:
        """After the step, or after leaving it out."""
        self.n = self.n + 1 if finite else 0
        if not finite:
            self.S /= 2
        elif self.n == self.N:
            self.n, doubled = 0, 2 * self.S
            if doubled <= torch.finfo(torch.float32).max:
                self.S = doubled

    def state_dict(self) -> dict[str, float | int]:
        return {"scale": self.S, "finite_steps": self.n}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        self.S, self.n = state["scale"], state["finite_steps"]
