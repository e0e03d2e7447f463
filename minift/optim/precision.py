"""Mixed precision around an unchanged model; loss scaling for float16 (Micikevicius et al. 2018, arXiv:1710.03740, section 3).

    low      products: floating-point arguments are cast to bfloat16 or float16
    float32  sums over many terms, exponentials, losses: arguments are cast to float32
    widest   several tensors of one type: cast to float32 if one of them is float32, else to the low type

`autocast(dtype)` gives the context for a run, `measure.choose` the dtype.

All other operations run in the type in which their arguments arrive: bfloat16 + float32 is float32, as everywhere in torch.
Weights that train stay float32 and are cast inside the graph, so that gradients and the optimiser's state are float32.

TABLE is torch.autocast's, whose lists for CPU and CUDA differ: on a CPU softmax, LayerNorm and sums keep the type of their input,
and the kernels add up in float32 by themselves. Left out is what autocast lists besides and no text or image encoder of minift
calls: FFTs, matrix decompositions, recurrent cells, 3-d pooling, resampling, reflected padding, tensordot and bilinear.
Proved by tests/reference/test_precision.py: types, values and gradients of every operation against torch.autocast, bit by bit.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from minift.optim.rows import numbers

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
    ("float32", "cpu cuda", "trace"),
    ("float32", "cpu", "quantile nanquantile"),
    ("float32", "cuda", "softmax log_softmax softmin gumbel_softmax logsumexp softplus layer_norm group_norm rms_norm"),
    ("float32", "cuda", "norm vector_norm matrix_norm normalize cosine_similarity dist pdist renorm sum cumsum cumprod"),
    ("float32", "cuda", "exp expm1 log log1p log2 log10 pow __pow__ __rpow__ reciprocal __rdiv__ __rtruediv__ rsqrt"),
    ("float32", "cuda", "acos asin cosh sinh tan erfinv"),
    ("widest", "cpu", "cat stack index_copy"),
    ("widest", "cuda", "addcmul addcdiv atan2 dot vdot index_put scatter_add"),
)


def policies() -> dict[Callable, dict[str, str]]:
    """TABLE by function: function -> device type -> policy."""
    found = {}
    for policy, devices, names in TABLE:
        for name in names.split():
            for space in (torch, F, torch.linalg, torch.special, Tensor):
                if hasattr(space, name):
                    found.setdefault(getattr(space, name), {}).update(dict.fromkeys(devices.split(), policy))
    return found


POLICIES = policies()
DEVICES = ("cpu", "cuda")  # those of TABLE
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SMALLEST_SCALE, LARGEST_SCALE = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


class Reentrant(AbstractContextManager):
    """Enters a new context of torch's each time, so that it may be entered within itself, as recomputation does."""

    def __init__(self, new: Callable[[], AbstractContextManager]):
        self.new = new
        self.entered: list[AbstractContextManager] = []

    def __enter__(self) -> "Reentrant":
        context = self.new()
        context.__enter__()
        self.entered.append(context)
        return self

    def __exit__(self, *exception) -> None:
        self.entered.pop().__exit__(*exception)


class Float32(Reentrant):
    """Every operation runs in the dtype of its arguments. It has a dtype as LowPrecision has one.

    tf32: what products of float32 do on a GPU, see `float32_products`.
    """

    dtype = torch.float32

    def __init__(self, tf32: bool = False):
        super().__init__(lambda: float32_products(tf32))


class TorchAutocast(Reentrant):
    """torch.autocast, for compiled models: torch's compiler sees through it, and not through a LowPrecision."""

    def __init__(self, device: str, dtype: torch.dtype):
        super().__init__(lambda: torch.autocast(device, dtype))
        self.dtype = dtype


class Cast(NamedTuple):
    """A frozen tensor in the low type, with the memory that it was cast from and the version of its content at that time."""

    source: Tensor
    version: int
    low: Tensor


class LowPrecision(TorchFunctionMode):
    """`with LowPrecision(torch.bfloat16, model): outputs = model(batch)`; the backward pass runs outside the context.

    float64 and integers are left alone, and so is an operation that writes into an existing tensor (`out=`, `add_`).

    A parameter that does not train, because it is frozen or because no gradient is recorded, is cast at its first use and kept in
    the low type, since nothing changes until the next use: create one LowPrecision for the whole run, not one for each step. A
    kept cast is freed with its parameter and where the parameter trains again, and is made again if the parameter was written to
    or its `.data` replaced; only what is written *through* `.data` is not noticed, as autograd does not notice it either. A
    parameter that trains is cast at each use: it differs in each step, and the cast is part of the graph.

    Recomputation runs in the backward pass, outside the context; torch.utils.checkpoint enters it again with
    `use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), precision)`.

    dtype: torch.bfloat16, or torch.float16, which needs a LossScaler.
    model: its buffers are kept in the low type as its frozen parameters are. A buffer cannot be told from an activation by itself,
    so without a model, and for a buffer that is replaced later (as `model.to(device)` does), it is cast at each use.
    Differs from torch.autocast in an einsum that contracts nothing, which is low on a CPU too, and in gumbel_softmax on CUDA, whose
    noise is not rounded to the low type.
    """

    def __init__(self, dtype: torch.dtype, model: nn.Module | None = None):
        super().__init__()
        self.dtype = dtype
        self.kept = WeakIdKeyDictionary()  # frozen parameter or buffer -> Cast
        self.buffers = WeakIdKeyDictionary({buffer: None for buffer in (model.buffers() if model is not None else ())})

    def __torch_function__(self, func: Callable, types, args=(), kwargs=None) -> Any:
        # Torch has switched the mode off in here: neither the casts nor what func calls inside come back. A GPU waits for this code
        # where its kernels are short.
        policies = POLICIES.get(func)
        kwargs = kwargs or {}
        if policies is None or kwargs.get("out") is not None:
            return func(*args, **kwargs)
        tensors = [x for x in flatten((*args, *kwargs.values())) if castable(x)]
        policy = policies.get(tensors[0].device.type) if tensors else None
        if policy is None:
            return func(*args, **kwargs)
        if policy == "widest":
            policy = "float32" if any(x.dtype == torch.float32 for x in tensors) else "low"
        dtype = self.dtype if policy == "low" else torch.float32
        if not kwargs:
            return func(*[self.cast(x, dtype) for x in args])
        return func(*[self.cast(x, dtype) for x in args], **{key: self.cast(x, dtype) for key, x in kwargs.items()})

    def cast(self, x: Any, dtype: torch.dtype) -> Any:
        if not isinstance(x, Tensor):
            return [self.cast(y, dtype) for y in x] if isinstance(x, list | tuple) else x
        if x.dtype == dtype or not castable(x):
            return x
        if dtype == self.dtype and self.is_weight(x):
            if not (x.requires_grad and torch.is_grad_enabled()):
                return self.keep(x)
            if self.kept:  # of a whole model that trains none is, and a look for each weight takes time
                self.kept.pop(x, None)
        return x.to(dtype)

    def is_weight(self, x: Tensor) -> bool:
        """A parameter or a buffer, not an activation, which is also a leaf without gradient where no graph is recorded."""
        return not x.is_inference() and (isinstance(x, nn.Parameter) or (not x.requires_grad and x in self.buffers))

    def keep(self, weight: Tensor) -> Tensor:
        kept = self.kept.get(weight)
        if kept is None or kept.version != weight._version or not weight.is_set_to(kept.source):
            with torch.inference_mode(False):  # a tensor made in inference mode could not be used in training afterwards
                kept = self.kept[weight] = Cast(weight.detach(), weight._version, weight.detach().to(self.dtype))
        return kept.low


def flatten(arguments: Iterable) -> Iterator:
    for x in arguments:
        if isinstance(x, list | tuple):
            yield from flatten(x)
        else:
            yield x


def castable(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64


def autocast(dtype: torch.dtype, model: nn.Module | None = None) -> Float32 | LowPrecision:
    """The context for every forward pass of a run. model: on its device and with its method, see LowPrecision."""
    return Float32() if dtype == torch.float32 else LowPrecision(dtype, model)


def by_name(name: str, model: nn.Module, *, compiled: bool = False) -> Float32 | LowPrecision | TorchAutocast:
    """The context for the forward passes of a run whose --precision is `name`, one of DTYPES; tf32 is float32 but on CUDA.

    compiled: whether stages of the model are compiled.
    """
    device = next(model.parameters()).device.type
    if DTYPES[name] == torch.float32:
        return Float32(tf32=name == "tf32" and device == "cuda")
    return TorchAutocast(device, DTYPES[name]) if compiled else LowPrecision(DTYPES[name], model)


@contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Products of float32 on CUDA in float32, or all of them in TF32, forward and backward passes, while a run lasts.

    TF32 rounds the arguments to 10 bits of mantissa instead of 23, which an Ampere or later multiplies several times as fast. By
    torch's default convolutions do so and matrix products do not.
    """
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


class LossScaler:
    """Keeps small gradients above float16's smallest number: with S the scale, N the growth interval,

        backward from S loss;  g <- g / S
        g finite:      step;     S <- 2 S  after N such in a row, unless 2 S is beyond float32
        g not finite:  no step;  S <- S / 2

    Micikevicius et al. 2018, section 3.2; the constants are torch's. `skipped` counts the steps that were left out.
    State equal to torch.amp.GradScaler's after every step (tests/reference/test_precision.py), down to the smallest scale, where
    this one raises and torch's goes on with a scale of 0.
    """

    def __init__(self, scale: float = 65536.0, growth_interval: int = 2000):
        self.S = scale
        self.N = growth_interval
        self.n = 0  # finite steps in a row
        self.skipped = 0

    def scale(self, loss: Tensor) -> Tensor:
        return loss.float() * self.S  # S itself is beyond float16

    @torch.no_grad()
    def unscale(self, parameters: Iterable[Tensor]) -> bool:
        """Divide the gradients by S, in place; True if all of them are finite. Once a step, before clipping.

        False is no error: the loss of that step, which may be infinite or NaN itself, does not count.
        """
        gradients = [g for theta in parameters if theta.grad is not None and (g := numbers(theta)).numel()]
        if not gradients:
            return True
        torch._foreach_mul_(gradients, 1 / self.S)
        # The largest absolute value of each gradient, and one question to the device for all. A NaN is larger than all numbers.
        return bool(torch.stack(torch._foreach_norm(gradients, math.inf)).isfinite().all())

    def update(self, finite: bool) -> None:
        """After the step, or after leaving it out. Raises ValueError if the scale cannot be halved any more."""
        self.n = self.n + 1 if finite else 0
        if not finite:
            self.skipped += 1
            if self.S / 2 < SMALLEST_SCALE:
                raise ValueError(
                    f"no step had finite gradients in float16 while the loss scale fell to {self.S:.1e}: "
                    f"the loss or its gradients overflow at any scale"
                )
            self.S /= 2
        elif self.n == self.N:
            self.n, doubled = 0, 2 * self.S
            if doubled <= LARGEST_SCALE:
                self.S = doubled

    def state_dict(self) -> dict[str, Tensor]:
        """float64 and int64 scalars; the growth interval is an option and not part of it."""
        integers = {"finite_steps": self.n, "skipped": self.skipped}
        scale = torch.tensor(self.S, dtype=torch.float64)
        return {"scale": scale} | {name: torch.tensor(value, dtype=torch.int64) for name, value in integers.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from `state_dict`. Raises ValueError where a name or a value is not one that it gives."""
        if state.keys() != self.state_dict().keys():
            raise ValueError(f"a loss scaler's state has {', '.join(self.state_dict())}; found {', '.join(state) or 'nothing'}")
        scale, n, skipped = (state[name].item() for name in self.state_dict())
        if not (SMALLEST_SCALE <= scale <= LARGEST_SCALE and 0 <= n < self.N and skipped >= 0):
            raise ValueError(f"a loss scaler cannot go on from scale={scale}, finite_steps={n}, skipped={skipped}")
        self.S, self.n, self.skipped = scale, int(n), int(skipped)
