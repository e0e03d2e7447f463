"""The optimisers and clipping against torch's, and where torch has none against the formula."""

import pytest
import torch

from minift.optim import optimizer as optimizers
from minift.optim.adamw import AdamW
from minift.optim.groups import Group, clip_gradients
from minift.optim.optimizer import blocks
from minift.optim.sgd import SGD

SHAPES = [(7, 5), (300,), (2, 3, 4), ()]
STEPS = 20


def start(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in SHAPES]


def gradient(parameters: list[torch.Tensor], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 10.0 ** (step % 3 - 1)


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
def test_adamw_trajectory(lr, weight_decay, betas, eps, amsgrad):
    options = {"betas": betas, "eps": eps, "amsgrad": amsgrad}
    trajectory(
        lambda groups: AdamW(groups, **options),
        lambda parameters: torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, **options),
        lr,
        weight_decay,
    )


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("lr", [1e-3, 0.1])
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True), (0.5, True)])
def test_sgd_trajectory(lr, weight_decay, momentum, nesterov):
    options = {"momentum": momentum, "nesterov": nesterov}
    trajectory(
        lambda groups: SGD(groups, **options),
        lambda parameters: torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay, **options),
        lr,
        weight_decay,
    )


@pytest.mark.parametrize("lr", [1e-3, 0.1])
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
@pytest.mark.parametrize("bias_correction", [True, False])
@pytest.mark.parametrize("amsgrad", [True, False])
def test_adamw_against_the_formula(lr, weight_decay, bias_correction, amsgrad):
    """Written as the paper and, where nothing is corrected, as google-research/bert's optimization.py does: decay in the update."""
    beta1, beta2, eps = 0.9, 0.99, 1e-6
    ours, theirs = start(), [p.detach() for p in start()]
    options = {"amsgrad": amsgrad, "bias_correction": bias_correction}
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
    weight, g = torch.zeros(300, 1, 1, 300).permute(0, 3, 1, 2), torch.zeros(300, 300, 1, 1)
    assert weight.stride() != g.stride()
    cut = list(blocks(weight, g))
    assert {x.shape for x in cut[0]} == {(90_000,)}


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
