"""What `--precision auto` measures: the products of a pass against torch's own count of operations, and what it decides."""

import math
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from tiny import CONFIG, tiny_body, tiny_resnet
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from twins import inputs

from minift.methods.lora import lora
from minift.methods.surgery import freeze
from minift.optim import measure as measuring
from minift.optim.measure import DTYPES, GAIN, Choice, choose, measure, products, selected, work

CPU = torch.device("cpu")


def bert(*, frozen=False):
    body = tiny_body()
    if frozen:
        freeze(body)
    return body.train(), inputs(CONFIG.vocab_size, padded=True, pairs=True)


def resnet(*, frozen=False):
    body = tiny_resnet()
    if frozen:
        freeze(body)
    return body.train(), (torch.randn(4, 3, 32, 32),)


def shapes(counts) -> Counter:
    found = Counter()
    for product, n in counts.items():
        found[product.function.__name__, product.input.shape, product.weight.shape] += n
    return found


def test_products_of_a_bert():
    body, given = bert()
    rows, length = given[0].shape
    c, L = CONFIG, CONFIG.num_hidden_layers
    D, width = c.hidden_size, c.intermediate_size
    assert shapes(products(body, given)) == {
        ("linear", (rows, length, D), (D, D)): 4 * L,
        ("linear", (rows, length, D), (width, D)): L,
        ("linear", (rows, length, width), (D, width)): L,
        ("linear", (rows, D), (D, D)): 1,
    }


@pytest.mark.parametrize("model", [bert, resnet])
@pytest.mark.parametrize("frozen", [False, True])
def test_work_is_torchs_count_of_a_training_pass(model, frozen):
    """Of linear layers and convolutions, forward and backward; what frozen weights need no gradient for is not counted."""
    body, given = model(frozen=frozen)
    head = nn.Parameter(torch.ones(()))  # so that there is a graph where all is frozen
    with FlopCounterMode(display=False) as counter:
        (body(*given).pooled * head).sum().backward()
    names = ("mm", "addmm", "convolution", "convolution_backward")  # attention's products are not of this kind
    theirs = {str(name).partition(".")[2]: count for name, count in counter.get_flop_counts()["Global"].items()}
    expected = sum(count for name, count in theirs.items() if name.partition(".")[0] in names)
    assert sum(work(product) * n for product, n in products(body, given).items()) == expected > 0


def test_what_a_method_adds_is_seen_and_what_it_freezes_trains_no_weight():
    body, given = bert(frozen=True)
    lora(body, rank=2)
    counts = products(body, given)
    assert any(min(product.weight.shape) == 2 and product.weight.trains for product in counts)
    assert all(product.weight.is_parameter and not product.weight.trains for product in counts if min(product.weight.shape) > 2)
    assert any(product.input.trains for product in counts)


@pytest.mark.parametrize("model", [bert, resnet])
def test_recording_and_measuring_leave_no_trace(model):
    body, given = model()
    before = {name: t.clone() for name, t in body.state_dict().items()}
    modes = [module.training for module in body.modules()]
    torch.manual_seed(0)
    random = torch.get_rng_state()
    counts = products(body, given)
    measure(counts, CPU)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in body.modules()] == modes
    assert all(p.grad is None for p in body.parameters())
    assert all(torch.equal(t, before[name]) for name, t in body.state_dict().items())


def test_what_is_selected_is_half_of_the_work_and_within_the_limit():
    body, given = resnet()
    counts = products(body, given)
    total = sum(work(product) * n for product, n in counts.items())
    ranked = sorted((work(product) * n for product, n in counts.items()), reverse=True)
    chosen = selected(counts, math.inf)
    assert sum(work(product) * n for product, n in chosen) >= total / 2 or len(chosen) == measuring.MOST
    assert [work(product) * n for product, n in chosen] == ranked[: len(chosen)]
    assert all(product in counts for product, _ in chosen), "no limit: the rows of the batch"
    limit = sum(work(product) for product, _ in chosen) / 2
    smaller = selected(counts, limit)
    assert sum(work(product) for product, _ in smaller) <= limit
    assert [product.input.shape[0] for product, _ in smaller] == [2] * len(smaller)
    assert [product.input.shape[0] for product, _ in selected(counts, 1.0)] == [1] * len(smaller)


@pytest.mark.parametrize("model", [bert, resnet])
@pytest.mark.parametrize("frozen", [False, True])
def test_measure_tells_the_seconds_of_both_dtypes(model, frozen):
    body, given = model(frozen=frozen)
    start = time.perf_counter()
    seconds = measure(products(body, given), CPU)
    assert set(seconds) == {"float32", "bfloat16"}
    assert min(seconds.values()) > 0 and time.perf_counter() - start < 10


def test_measure_without_products():
    assert measure(Counter(), CPU) == {}
    assert choose("auto", CPU, nn.ReLU(), (torch.ones(2, 3),)) == Choice(torch.float32, {})


def test_measure_runs_the_products_in_the_dtype_that_it_names(monkeypatch):
    seen = Counter()
    timed = measuring.seconds_of

    def spy(function, x, weight, bias, options, context, device):
        with context:
            y = function(x, weight, bias, **options)
        seen[x.dtype, y.dtype, weight.dtype, weight.requires_grad] += 1
        return timed(function, x, weight, bias, options, context, device)

    monkeypatch.setattr(measuring, "seconds_of", spy)
    measure(products(*resnet()), CPU)
    expected = {(torch.float32, torch.float32, torch.float32, True), (torch.bfloat16, torch.bfloat16, torch.float32, True)}
    assert set(seen) == expected
    assert len(set(seen.values())) == 1, "both dtypes run equally often"


def test_a_slow_first_round_or_one_slow_round_later_decides_nothing(monkeypatch):
    slow = {0: 60.0, 2: 40.0}  # round -> how many times as long bfloat16 takes there
    calls = Counter()

    def seconds_of(function, x, *_):
        calls[x.dtype] += 1
        return 1.0 if x.dtype == torch.float32 else 0.5 * slow.get((calls[x.dtype] - 1) // chosen, 1.0)

    counts = products(*bert())
    chosen = len(measuring.selected(counts, measuring.WORK["cpu"]))
    monkeypatch.setattr(measuring, "seconds_of", seconds_of)
    seconds = measure(counts, CPU)
    assert seconds["float32"] == 2 * seconds["bfloat16"] and calls[torch.bfloat16] == (1 + measuring.ROUNDS) * chosen


def test_measuring_imports_no_compiler():
    """y.backward(gradient) would: torch's symbolic shapes and sympy, for a third of a second."""
    program = (
        "import sys, torch; from minift.optim.measure import measure, products; layer = torch.nn.Linear(9, 9); "
        "assert min(measure(products(layer, (torch.ones(4, 9),)), torch.device('cpu')).values()) > 0; "
        "assert 'sympy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("ratio", "dtype"), [(0.5, torch.float32), (1.19, torch.float32), (1.21, torch.bfloat16), (4.0, torch.bfloat16)]
)
def test_auto_takes_bfloat16_where_it_gains(ratio, dtype, monkeypatch):
    seconds = {"float32": ratio * 3.0, "bfloat16": 3.0}
    monkeypatch.setattr(measuring, "measure", lambda counts, device: seconds)
    monkeypatch.setattr(measuring, "LEAST", 0)
    assert 1.19 < GAIN < 1.21
    assert choose("auto", CPU, *bert()) == Choice(dtype, seconds)


@pytest.mark.parametrize("model", [bert, resnet])
def test_auto_does_not_measure_what_is_too_small_to_tell(model, monkeypatch):
    monkeypatch.setattr(measuring, "measure", lambda *a: {"float32": 2.0, "bfloat16": 1.0})
    body, given = model()
    made = sum(work(product) * n for product, n in products(body, given).items())
    assert made < measuring.LEAST and choose("auto", CPU, body, given) == Choice(torch.float32, {})
    monkeypatch.setattr(measuring, "LEAST", made)
    assert choose("auto", CPU, body, given).dtype == torch.bfloat16


def test_auto_on_cuda_below_ampere_does_not_measure(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert choose("auto", torch.device("cuda", 0), *bert()) == Choice(torch.float32, {})


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_by_name(device):
    assert choose("float32", torch.device(device)) == Choice(torch.float32, {})
    with pytest.raises(ValueError, match=r"'fp16'; known are auto, float32, tf32, bfloat16, float16$"):
        choose("fp16", torch.device(device))
    for name in ("bfloat16", "float16"):
        if device == "mps":
            with pytest.raises(ValueError, match=f"precision {name} is not available on mps, only on cpu and cuda; use float32"):
                choose(name, torch.device(device))
        else:
            assert choose(name, torch.device(device)) == Choice(DTYPES[name], {})
    assert choose("auto", torch.device("mps"), *bert()) == Choice(torch.float32, {})
    with pytest.raises(ValueError, match="body and inputs are expected"):
        choose("auto", CPU)


def test_a_convolution_called_by_hand_is_counted_with_its_stride():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6, 2, 3, 3))

        def forward(self, x):
            return F.conv2d(x, self.weight, stride=2, padding=1, groups=2)

    [(product, n)] = products(Model(), (torch.ones(5, 4, 8, 8),)).items()
    assert n == 1 and product.input.shape == (5, 4, 8, 8)
    assert work(product) == 2 * (5 * 6 * 4 * 4) * (2 * 3 * 3) * 2  # the input needs no gradient
