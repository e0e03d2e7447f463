"""Which dtype a run trains in: by its name, or by timing the products of the model's own shapes on the device at hand.

What bfloat16 gains is not told by the name of a device. On a CPU with AMX or AVX512-BF16 a product takes half the time, with
AVX2 alone a multiple; and for small products the casts may cost more than is gained. So `choose` measures: the linear layers and
convolutions of a forward pass are recorded, and those that are most of its work are run, forward and backward, in both dtypes, as
training does: weights that train are cast at each use, frozen ones once.
Proved by tests/reference/test_measure.py; beside whole training steps: tests/bench/precision.py.
"""

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minift.optim.precision import DEVICES, DTYPES, autocast

GAIN = 1.2  # bfloat16 must be so many times as fast as float32: what it costs in digits must be worth it
ROUNDS = 5
LIMIT = 0.4  # seconds after which no further round begins
WORK = {"cpu": 3e9, "cuda": 2.5e11}  # multiplications and additions in one round, forward and backward
MOST = 4  # different products
LEAST = 1e8  # multiplications and additions of a pass: with fewer, what surrounds the products takes the time


class Argument(NamedTuple):
    """A tensor that a product was called with. trains: whether its gradient is computed."""

    shape: tuple[int, ...]
    channels_last: bool
    is_parameter: bool
    trains: bool


class Product(NamedTuple):
    """A call of F.linear or F.conv2d. options: stride, padding, dilation, groups, or nothing."""

    function: Callable
    input: Argument
    weight: Argument
    bias: Argument | None
    options: tuple


class Choice(NamedTuple):
    """seconds: of one round by the dtype's name, to be printed and stored; empty if nothing was measured."""

    dtype: torch.dtype
    seconds: dict[str, float]


class Recorder(TorchFunctionMode):
    """Counts the products that are called."""

    def __init__(self):
        super().__init__()
        self.products = Counter()

    def __torch_function__(self, func: Callable, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (F.linear, F.conv2d):
            names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
            given = dict(zip(names, args, strict=False)) | kwargs
            tensors = [argument(given.get(name)) for name in names[:3]]
            options = tuple((name, given[name]) for name in names[3:] if name in given)
            self.products[Product(func, *tensors, options)] += 1
        return func(*args, **kwargs)


def argument(x: Tensor | None) -> Argument | None:
    if x is None:
        return None
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return Argument(tuple(x.shape), last, isinstance(x, nn.Parameter), x.requires_grad)


def products(body: nn.Module, inputs: tuple[Tensor | None, ...]) -> Counter[Product]:
    """The products of one forward pass of `body(*inputs)` and how often each is called.

    The first row alone is computed, without dropout; the other rows are counted in. (The meta device would compute nothing, and
    take a second to import torch's shape functions.) body: as it trains, after the method; it is not changed. inputs: those of
    one batch, the rows along the first axis, on the device of the body.
    """
    rows = next(len(x) for x in inputs if x is not None)
    modes = [(module, module.training) for module in body.modules()]
    recorder = Recorder()
    body.eval()
    try:
        with torch.enable_grad(), recorder:
            body(*(x if x is None else x[:1] for x in inputs))
    finally:
        for module, mode in modes:
            module.training = mode
    return Counter({with_rows(product, rows): n for product, n in recorder.products.items()})


def with_rows(product: Product, factor: float) -> Product:
    """The same product with so many times the rows, one at least."""
    x = product.input
    return product._replace(input=x._replace(shape=(max(1, int(x.shape[0] * factor)), *x.shape[1:])))


def work(product: Product) -> float:
    """Multiplications and additions of a linear layer or a convolution: of the output, and of the gradients that are computed."""
    x, weight = product.input.shape, product.weight.shape
    outputs = math.prod(x[:-1]) * weight[0]
    if product.function is F.conv2d:
        stride = dict(product.options).get("stride", 1)
        outputs = x[0] * weight[0] * math.prod(x[2:]) / math.prod(stride if isinstance(stride, tuple) else (stride, stride))
    return 2.0 * outputs * math.prod(weight[1:]) * (1 + product.input.trains + product.weight.trains)


def selected(counts: Counter[Product], limit: float) -> list[tuple[Product, int]]:
    """The products that are at least half of the work of a pass, the most expensive first, with as many rows as keep within the
    limit: a row of each at least.
    """
    ranked = sorted(counts.items(), key=lambda item: work(item[0]) * item[1], reverse=True)
    total, chosen = sum(work(product) * n for product, n in ranked), []
    while sum(work(product) * n for product, n in chosen) < total / 2 and len(chosen) < MOST:
        chosen.append(ranked[len(chosen)])
    share = min(1.0, limit / sum(work(product) for product, _ in chosen))
    return [(with_rows(product, share), n) for product, n in chosen]


def measure(counts: Counter[Product], device: torch.device) -> dict[str, float]:
    """Seconds by the dtype's name, float32 and bfloat16, that the selected products take: the sum over them of the median of
    ROUNDS, times how often a pass calls them. No round begins after LIMIT seconds.

    counts: from `products`. Empty where the body has none.
    """
    generator = torch.Generator().manual_seed(0)  # the run's own random streams are left alone
    chosen = selected(counts, WORK[device.type]) if counts else []
    contexts = {name: autocast(DTYPES[name]) for name in ("float32", "bfloat16")}

    def tensor(x: Argument | None, dtype: torch.dtype) -> Tensor | None:
        if x is None:
            return None
        t = torch.rand(x.shape, generator=generator).to(device, dtype if not x.is_parameter else torch.float32)
        t = t.contiguous(memory_format=torch.channels_last) if x.channels_last else t
        return nn.Parameter(t, x.trains) if x.is_parameter else t.requires_grad_(x.trains)

    calls = {
        name: [[p.function, *(tensor(x, DTYPES[name]) for x in (p.input, p.weight, p.bias)), dict(p.options)] for p, _ in chosen]
        for name in contexts
    }

    def one_round() -> list[dict[str, float]]:
        """Of every product the seconds in both dtypes, one directly after the other."""
        return [{name: seconds_of(*calls[name][i], contexts[name], device) for name in contexts} for i in range(len(chosen))]

    def total(rounds: list[list[dict[str, float]]], name: str) -> float:
        medians = [statistics.median(seconds[name] for seconds in times) for times in zip(*rounds, strict=True)]
        return sum(n * median for (_, n), median in zip(chosen, medians, strict=True))

    if not chosen:
        return {}
    one_round()  # warms up, and tells nothing
    began, rounds = time.perf_counter(), [one_round()]
    while len(rounds) < ROUNDS and time.perf_counter() - began < LIMIT:
        rounds.append(one_round())
    return {name: total(rounds, name) for name in contexts}


def seconds_of(function: Callable, x: Tensor, weight: Tensor, bias: Tensor | None, options: dict, context, device) -> float:
    start = now(device)
    with torch.enable_grad():
        with context:
            y = function(x, weight, bias, **options)
        if y.requires_grad:
            (y * y.detach()).sum().backward()  # y.backward(gradient) would import sympy, for a third of a second
    end = now(device)
    for t in (x, weight, bias):
        if t is not None:
            t.grad = None
    return end - start


def now(device: torch.device) -> float:
    """The time at which the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def choose(name: str, device: torch.device, body: nn.Module | None = None, inputs: tuple[Tensor | None, ...] = ()) -> Choice:
    """The dtype of a run: by its name, or under `auto` bfloat16 where it is at least GAIN times as fast as float32.

    name: auto, float32, tf32, bfloat16 or float16. auto is never float16, which needs a LossScaler, and is float32 without
    measuring on devices other than cpu and cuda, on CUDA below compute capability 8.0 (Ampere), where bfloat16 is emulated, and
    where a pass has fewer operations than LEAST, of which a clock tells little.
    body, inputs: as for `products`; only auto reads them. Raises ValueError for other names, and for a low precision on devices
    for which there is no policy.
    """
    if name != "auto":
        if name not in DTYPES:
            raise ValueError(f"precision is {name!r}; known are auto, {', '.join(DTYPES)}")
        known = (device.type,) if name == "float32" else ("cuda",) if name == "tf32" else DEVICES
        if device.type not in known:
            raise ValueError(f"precision {name} is not available on {device.type}, only on {' and '.join(known)}; use float32")
        return Choice(DTYPES[name], {})
    emulated = device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)
    if device.type not in DEVICES or emulated:
        return Choice(torch.float32, {})
    if body is None:
        raise ValueError("precision auto measures the products of a model: body and inputs are expected")
    counts = products(body, inputs)
    if sum(work(product) * n for product, n in counts.items()) < LEAST:
        return Choice(torch.float32, {})
    seconds = measure(counts, device)
    fast = bool(seconds) and seconds["float32"] >= GAIN * seconds["bfloat16"]
    return Choice(torch.bfloat16 if fast else torch.float32, seconds)
