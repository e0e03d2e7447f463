"""The optimisers and clipping against torch's, and where torch has none against the formula."""

from functools import partial

import pytest
import torch

from minift.optim import optimizer as optimizers
from minift.optim.adamw import AdamW
from minift.optim.groups import Group, clip_gradients
from minift.optim.optimizer import BLOCK, blocks
from minift.optim.sgd import SGD

SHAPES = [(7, 5), (300,), (2, 3, 4), ()]
STEPS = 20


def start(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in SHAPES]


def gradient(parameters: list[torch.Tensor], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for p in parameters:
        p.grad = (torch.randn(p.shape, generator=generator, dtype=torch.float64) * 10.0 ** (step % 3 - 1)).to(p.device, p.dtype)


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def trajectory(make, reference, lr: float, weight_decay: float) -> None:
    """make: groups -> ours; reference: parameters -> torch's. The rate changes at every step; one parameter is thawed late."""
    ours, theirs = start(), start()
    optimizer, expected = make([Group("all", lr, weight_decay, [], ours)]), reference(theirs)
    before = [p.detach().clone() for p in ours]
    for step in range(STEPS):
        for parameters in (ours, theirs):
            gradient(parameters, step)
            parameters[1].grad = None if step < 4 else parameters[1].grad
        expected.param_groups[0]["lr"] = lr * (step + 1) / STEPS
        optimizer.step((step + 1) / STEPS)
        expected.step()
        same(ours, theirs)
        assert torch.equal(ours[1], before[1]) == (step < 4) == (ours[1] not in optimizer.state)
    assert [optimizer.state[p][0] for p in ours] == [20, 16, 20, 20]
    assert not any(torch.equal(p, b) for p, b in zip(ours, before, strict=True))


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(optimizers, "BLOCK", 64)  # so that a tensor of 300 is cut


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("lr", [1e-3, 0.1])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01, 0.5])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.5), (0.95, 0.98)])
@pytest.mark.parametrize("eps", [1e-8, 1e-2])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_adamw_trajectory(lr, weight_decay, betas, eps, amsgrad, fused):
    options = {"betas": betas, "eps": eps, "amsgrad": amsgrad}
    trajectory(
        lambda groups: AdamW(groups, **options, fused=fused),
        lambda parameters: torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=False, **options),
        lr,
        weight_decay,
    )


class FusedSGD(SGD):
    """As on CUDA."""

    kernel_on = ("cpu",)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("lr", [1e-3, 0.1])
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True), (0.5, True)])
@pytest.mark.parametrize("fused", [False, True])
def test_sgd_trajectory(lr, weight_decay, momentum, nesterov, fused):
    options = {"momentum": momentum, "nesterov": nesterov}
    trajectory(
        lambda groups: (FusedSGD if fused else SGD)(groups, **options),
        lambda parameters: torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay, **options),
        lr,
        weight_decay,
    )


@pytest.mark.parametrize("lr", [1e-3, 0.1])
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
@pytest.mark.parametrize("bias_correction", [True, False])
@pytest.mark.parametrize("amsgrad", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_adamw_against_the_formula(lr, weight_decay, bias_correction, amsgrad, fused):
    """Written as the paper and, where nothing is corrected, as google-research/bert's optimization.py does: decay in the update."""
    beta1, beta2, eps = 0.9, 0.99, 1e-6
    ours, theirs = start(), [p.detach() for p in start()]
    options = {"amsgrad": amsgrad, "bias_correction": bias_correction, "fused": fused}
    optimizer = AdamW([Group("all", lr, weight_decay, [], ours)], (beta1, beta2), eps, **options)
    m, v, largest = ([torch.zeros_like(p) for p in theirs] for _ in range(3))
    for step in range(STEPS):
        gradient(ours, step)
        optimizer.step()
        for i, p in enumerate(ours):
            m[i] = beta1 * m[i] + (1 - beta1) * p.grad
            v[i] = beta2 * v[i] + (1 - beta2) * p.grad**2
            largest[i] = torch.where(v[i] > largest[i], v[i], largest[i])
            m_hat, v_hat = m[i], largest[i] if amsgrad else v[i]
            if bias_correction:
                m_hat, v_hat = m_hat / (1 - beta1 ** (step + 1)), v_hat / (1 - beta2 ** (step + 1))
            theirs[i] = theirs[i] - lr * (m_hat / (v_hat.sqrt() + eps) + weight_decay * theirs[i])
        same(ours, theirs)
    assert all((a > b).any() for a, b in zip(largest, v, strict=True)), "the largest v was always the last one"


OPTIMIZERS = {
    "adamw": (lambda groups: AdamW(groups, amsgrad=True), lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, amsgrad=True)),
    "sgd": (SGD, lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1, momentum=0.9)),
}

# What lies in memory how: (parameter, its gradient) made from a contiguous (6, 4, 5, 3)
LAYOUTS = {
    "channels_last": (lambda x: x.contiguous(memory_format=torch.channels_last),) * 2,
    "turned": (lambda x: x.permute(2, 0, 3, 1),) * 2,
    "gradient of another layout": (lambda x: x.contiguous(memory_format=torch.channels_last), lambda x: x),
    "with gaps": (lambda x: x[..., ::2], lambda x: x[..., ::2]),
}
IN_BLOCKS = {"channels_last", "turned"}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_in_memory(name, layout):
    make, reference = OPTIMIZERS[name]
    lay, lay_gradient = LAYOUTS[layout]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, 5, 3, generator=generator, dtype=torch.float64)
    ours, theirs = lay(x.clone()).requires_grad_(), lay(x.clone()).contiguous().requires_grad_()
    strides = ours.stride()
    optimizer, expected = make([Group("all", 0.1, 0.1, [], [ours])]), reference([theirs])
    for _ in range(STEPS):
        g = torch.randn(6, 4, 5, 3, generator=generator, dtype=torch.float64)
        ours.grad, theirs.grad = lay_gradient(g), lay_gradient(g).contiguous()
        optimizer.step()
        expected.step()
    same([ours], [theirs])
    assert ours.stride() == strides and torch.equal(ours.grad, theirs.grad)
    _, *moments = optimizer.state[ours]
    cut = list(blocks(ours.detach(), ours.grad, *moments))
    assert (len(cut) > 1) == (layout in IN_BLOCKS)
    assert all(sum(block[i].numel() for block in cut) == ours.numel() for i in range(2 + len(moments)))


def test_blocks_of_tensors_whose_axes_of_length_one_have_other_strides():
    weight, g = torch.zeros(400, 1, 1, 400).permute(0, 3, 1, 2), torch.zeros(400, 400, 1, 1)
    assert weight.stride() != g.stride()
    cut = list(blocks(weight, g))
    assert [{x.shape for x in parts} for parts in cut] == [{(BLOCK,)}, {(160_000 - BLOCK,)}]
    assert [{x.shape for x in parts} for parts in blocks(weight[:9], g[:9])] == [{(9, 400, 1, 1)}]


def test_zero_grad():
    parameters = start()
    gradient(parameters, 0)
    SGD([Group("a", 1.0, 0.0, [], parameters[:2]), Group("b", 1.0, 0.0, [], parameters[2:])]).zero_grad()
    assert all(p.grad is None for p in parameters)


@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 1e6])
def test_clipping(max_norm):
    ours, theirs = start(), start()
    gradient(ours, 0)
    gradient(theirs, 0)
    ours[2].grad = theirs[2].grad = None
    norm = clip_gradients(ours, max_norm)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    torch.testing.assert_close(norm, expected, rtol=0, atol=1e-12)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 1e6])
def test_clipping_is_torchs_to_the_bit(dtype, max_norm):
    ours, theirs = ([p.detach().to(dtype).requires_grad_() for p in start()] for _ in range(2))
    for parameters in (ours, theirs):
        generator = torch.Generator().manual_seed(0)
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator, dtype=dtype)
    assert torch.equal(clip_gradients(ours, max_norm), torch.nn.utils.clip_grad_norm_(theirs, max_norm, foreach=False))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))


def test_clipping_without_gradients():
    assert clip_gradients(start(), 1.0) == 0.0


# ---- gradients that are not finite ----


@pytest.fixture(params=["read", "masked"])
def how(request, monkeypatch):
    """On a CPU the answer is read; masked: as on CUDA, where the host does not wait for it."""
    if request.param == "masked":
        monkeypatch.setattr(optimizers, "MASKED", {"cpu", "cuda"})
    return request.param


RULES = {
    "adamw": AdamW,
    "adamw by hand": lambda groups: AdamW(groups, fused=False),
    "amsgrad": lambda groups: AdamW(groups, amsgrad=True),
    "amsgrad by hand": lambda groups: AdamW(groups, amsgrad=True, fused=False),
    "sgd": SGD,
    "sgd without momentum": lambda groups: SGD(groups, momentum=0.0),
    "sgd by torch": FusedSGD,
    "sgd by torch without momentum": lambda groups: FusedSGD(groups, momentum=0.0),
}


def bits(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: tensor.detach().numpy().tobytes() for name, tensor in tensors.items()}


NAMES = [f"p{i}" for i in range(len(SHAPES))]


def float32_start() -> list[torch.Tensor]:
    return [p.detach().float().requires_grad_() for p in start()]


@pytest.mark.usefixtures("small_blocks", "how")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("rule", RULES)
def test_a_gradient_that_is_not_finite_changes_no_bit(rule, bad):
    """3e38 is finite, and its square is not: the norm is infinite. A run that leaves such steps out is one that never had them."""
    ours, theirs = float32_start(), float32_start()
    optimizer, expected = (RULES[rule]([Group("all", 0.01, 0.1, NAMES, p)]) for p in (ours, theirs))
    for step in range(12):
        for parameters in (ours, theirs):
            gradient(parameters, step)
            parameters[1].grad = None if step < 4 else parameters[1].grad  # unfrozen late, in a step that is left out
        spoilt = step in (0, 4, 5, 9)
        if spoilt:
            ours[step % 2].grad = torch.full_like(ours[step % 2], 0.5)
            ours[step % 2].grad.view(-1)[3] = bad
        before = bits(dict(zip(NAMES, ours, strict=True)) | optimizer.state_dict())
        norm = clip_gradients(ours, 1.0)
        assert norm.isfinite() != spoilt
        optimizer.step(0.5, norm.isfinite())
        if spoilt:
            assert bits(dict(zip(NAMES, ours, strict=True)) | optimizer.state_dict()) == before
            assert (ours[1] in optimizer.state) == (step > 5)
            continue
        clip_gradients(theirs, 1.0)
        expected.step(0.5)
        assert bits(dict(zip(NAMES, ours, strict=True))) == bits(dict(zip(NAMES, theirs, strict=True)))
        assert bits(optimizer.state_dict()) == bits(expected.state_dict())


def test_without_looking_in_between_a_masked_step_counts_no_step(monkeypatch):
    monkeypatch.setattr(optimizers, "MASKED", {"cpu"})
    parameters = float32_start()
    optimizer = AdamW([Group("all", 0.01, 0.1, NAMES, parameters)])
    for finite in (True, False, False, True, False):
        for p in parameters:
            p.grad = torch.full_like(p, 1.0 if finite else float("nan"))
        optimizer.step(1.0, clip_gradients(parameters, 1.0).isfinite())
    assert [int(optimizer.state_dict()[f"{name}/t"]) for name in NAMES] == [2] * len(NAMES)
    assert all(p.isfinite().all() for p in parameters)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_masked_step_on_cuda_does_not_wait():
    parameters = [p.detach().float().cuda().requires_grad_() for p in start()]
    optimizer = AdamW([Group("all", 0.01, 0.1, NAMES, parameters)])
    for finite in (True, False, True):
        for p in parameters:
            p.grad = torch.full_like(p, 1.0 if finite else float("nan"))
        optimizer.settle()  # waits for an event, not for the device
        torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.step(1.0, clip_gradients(parameters, 1.0).isfinite())
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert [int(optimizer.state_dict()[f"{name}/t"]) for name in NAMES] == [2] * len(NAMES)
    assert all(p.isfinite().all() for p in parameters)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("rule", RULES)
def test_steps_on_cuda_are_the_cpus(rule):
    """One gradient is of another layout than its parameter, so that it is updated by the plain rule."""
    runs = []
    for device in ("cpu", "cuda"):
        parameters = [p.detach().to(device).requires_grad_() for p in start()]
        conv = torch.linspace(-1, 1, 72, dtype=torch.float64).view(2, 4, 3, 3).to(device, memory_format=torch.channels_last)
        parameters.append(conv.requires_grad_())
        optimizer = RULES[rule]([Group("all", 0.01, 0.1, [], parameters)])
        for step in range(STEPS):
            gradient(parameters[:-1], step)
            parameters[-1].grad = torch.full((2, 4, 3, 3), float(step), dtype=torch.float64, device=device)
            optimizer.step(0.5, clip_gradients(parameters, 1.0).isfinite())
        runs.append([p.detach().cpu() for p in parameters])
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


# ---- state ----


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("stop", [0, 1, 6, 11])
@pytest.mark.parametrize("rule", RULES)
def test_resumed_in_the_middle_it_gives_the_same_bits(rule, stop):
    """One parameter is unfrozen in step 6, one lies in memory as channels_last."""
    names = [*NAMES, "conv"]

    def fresh():
        conv = torch.linspace(-1, 1, 360).view(6, 4, 5, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
        parameters = [*float32_start(), conv]
        half = len(parameters) // 2
        groups = [Group("a", 0.01, 0.1, names[:half], parameters[:half]), Group("b", 0.02, 0.0, names[half:], parameters[half:])]
        return parameters, RULES[rule](groups)

    def walk(parameters, optimizer, steps):
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            for i, p in enumerate(parameters):
                g = torch.randn(p.shape, generator=generator)
                p.grad = None if i == 1 and step < 6 else g.contiguous(memory_format=torch.channels_last) if g.ndim == 4 else g
            optimizer.step((step + 1) / 12)

    whole = fresh()
    walk(*whole, range(12))
    first = fresh()
    walk(*first, range(stop))
    stored = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in first[1].state_dict().items()}
    assert ("p1/t" in stored) == (stop > 6) and len(stored) == sum(len(state) for state in first[1].state.values())
    parameters, optimizer = fresh()
    for p, old in zip(parameters, first[0], strict=True):
        p.data.copy_(old.data)
    optimizer.load_state_dict(stored)
    for p in parameters:
        assert all(moment.stride() == p.stride() for moment in optimizer.state.get(p, (0,))[1:])
    walk(parameters, optimizer, range(stop, 12))
    ours, theirs = (bits(dict(zip(names, p, strict=True)) | o.state_dict()) for p, o in ((parameters, optimizer), whole))
    assert ours == theirs


def test_the_state_that_was_loaded_is_a_copy():
    parameters = float32_start()
    optimizer = AdamW([Group("all", 0.01, 0.1, NAMES, parameters)])
    gradient_of_ones(parameters)
    optimizer.step()
    stored = optimizer.state_dict()
    other = AdamW([Group("all", 0.01, 0.1, NAMES, parameters)])
    other.load_state_dict(stored)
    before = bits(stored)
    other.step()
    assert bits(stored) == before


def gradient_of_ones(parameters: list[torch.Tensor]) -> None:
    for p in parameters:
        p.grad = torch.ones_like(p)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"p9/m": s["p0/m"]}, "1 tensors belong to no parameter of this optimiser, the first is p9/m"),
        (lambda s: s | {"p0/largest": s["p0/m"]}, "the first is p0/largest"),
        (lambda s: {name: t for name, t in s.items() if name != "p2/v"}, "p2/v is missing beside p2/t"),
        (lambda s: {name: t for name, t in s.items() if name != "p2/t"}, "p2/t is missing beside p2/m"),
        (lambda s: s | {"p0/m": s["p1/m"]}, r"p0/m is \(300,\) torch.float32, the parameter \(7, 5\) torch.float32"),
        (lambda s: s | {"p0/m": s["p0/m"].double()}, r"p0/m is \(7, 5\) torch.float64"),
        (lambda s: s | {"p0/t": torch.tensor(0)}, "p0/t is 0: a number of steps"),
        (lambda s: s | {"p0/t": torch.tensor(2.5)}, "p0/t is 2.5: a number of steps"),
    ],
)
def test_a_state_of_other_parameters_is_refused_and_changes_nothing(change, message):
    parameters = float32_start()
    optimizer = AdamW([Group("all", 0.01, 0.1, NAMES, parameters)])
    gradient_of_ones(parameters)
    optimizer.step()
    before = bits(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(change(optimizer.state_dict()))
    assert bits(optimizer.state_dict()) == before


@pytest.mark.parametrize("names", [[], ["p"] * len(SHAPES)])
def test_a_state_needs_names(names):
    with pytest.raises(ValueError, match=r"4 parameters have [01] different names; each needs one of its own"):
        AdamW([Group("all", 0.01, 0.1, names, start())]).state_dict()


# ---- options ----

NO_NUMBERS = [float("nan"), float("inf"), -float("inf"), -1e-3]


@pytest.mark.parametrize(
    ("make", "options"),
    [(AdamW, {"eps": x}) for x in (*NO_NUMBERS, 0.0, 1e-300, 10.0)]
    + [(AdamW, {"betas": x}) for x in ((0.9,), (0.9, 1.0), (float("nan"), 0.9), (-0.1, 0.9), (0.9, 0.9, 0.9), (0.9, 1 - 1e-12))]
    + [(SGD, {"momentum": x}) for x in (*NO_NUMBERS, 1.0)],
)
def test_options_that_cannot_be(make, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.* expected"):
        make([Group("all", 0.1, 0.0, [], start())], **options)


@pytest.mark.parametrize("make", [AdamW, SGD])
@pytest.mark.parametrize("value", [*NO_NUMBERS, 1e300])
def test_learning_rates_and_weight_decays_that_cannot_be(make, value):
    with pytest.raises(ValueError, match=r"learning rate .* \(stage head\): a number from 0 to 1e\+30 is expected"):
        make([Group("head", value, 0.0, [], start())])
    with pytest.raises(ValueError, match=r"weight decay .* \(stage head\)"):
        make([Group("head", 0.1, value, [], start())])


@pytest.mark.parametrize(
    "make", [partial(AdamW, betas=(1 - 1e-8, 0.0)), partial(AdamW, betas=(0.0, 1 - 1e-8)), partial(SGD, nesterov=True)]
)
def test_the_largest_options_step_without_an_error(make):
    """Torch raises where a number is beyond float32."""
    parameters = [p.detach().float().requires_grad_() for p in start()]
    optimizer = make([Group("all", 1e30, 1e30, [], parameters)])
    for _ in range(3):
        gradient_of_ones(parameters)
        optimizer.step()


@pytest.mark.parametrize("eps", [1e-30, 1e-8])
def test_a_parameter_whose_gradient_is_0_keeps_its_value(eps):
    weight = torch.ones(3, requires_grad=True)
    optimizer = AdamW([Group("all", 0.1, 0.0, [], [weight])], eps=eps)
    for _ in range(3):
        weight.grad = torch.zeros(3)
        optimizer.step()
    assert torch.equal(weight, torch.ones(3))
