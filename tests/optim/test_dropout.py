"""Dropout from 16 bits: what is kept, how often, with which scale and gradient; only a CPU's nn.Dropout is replaced."""

import pytest
import torch
from tiny import tiny_body
from torch import nn

from minift.optim.dropout import LEVELS, SixteenBits, bits_for, cheap_dropout, kept

ALL = torch.arange(-LEVELS // 2, LEVELS // 2).to(torch.int16)


@pytest.mark.parametrize("p", [2**-16, 0.1, 0.25, 0.5, 0.9, 1 - 2**-16])
def test_of_all_values_a_share_of_p_is_dropped_within_two_to_the_minus_17(p):
    dropped = 1 - kept(ALL, round(LEVELS * p), torch.empty(LEVELS)).double().mean().item()
    assert abs(dropped - p) <= 2**-17


def test_every_bit_is_random():
    torch.manual_seed(0)
    bits = bits_for(torch.empty(400_003)).long() + LEVELS // 2
    assert bits.shape == (400_003,) and bits.min() >= 0 and bits.max() < LEVELS
    for lane in range(4):  # of a word: the deviation of a mean is 0.0016
        for bit in range(16):
            assert (bits[lane::4] >> bit & 1).double().mean().item() == pytest.approx(0.5, abs=0.01), (lane, bit)
    ones = (bits & 1).double() - 0.5
    for apart in range(1, 9):
        assert (ones[apart:] * ones[:-apart]).mean().item() == pytest.approx(0, abs=0.005)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_is_kept_is_scaled_and_so_is_its_gradient(dtype):
    torch.manual_seed(0)
    x = torch.rand(33, 1001, dtype=dtype).add_(1).requires_grad_()
    y = SixteenBits(0.1)(x)
    y.sum().backward()
    keep, q = y != 0, 1 - round(LEVELS * 0.1) / LEVELS
    scale = torch.tensor(1 / q, dtype=torch.float64).to(dtype)
    torch.testing.assert_close(y, torch.where(keep, x * scale, 0), rtol=0, atol=0)
    torch.testing.assert_close(x.grad, torch.where(keep, scale, 0), rtol=0, atol=0)
    assert keep.double().mean().item() == pytest.approx(0.9, abs=0.01) and y.dtype == dtype
    assert y.double().mean().item() == pytest.approx(x.double().mean().item(), rel=0.01)


def test_the_ends_the_seed_and_evaluation():
    x = torch.randn(7, 5)
    assert SixteenBits(0.0)(x) is x and SixteenBits(0.4).eval()(x) is x
    assert not SixteenBits(1.0)(x).any()
    torch.manual_seed(3)
    first = SixteenBits(0.4)(x)
    torch.manual_seed(3)
    assert torch.equal(SixteenBits(0.4)(x), first)


def test_recomputed_it_drops_the_same():
    x, layer = torch.randn(40, 40, requires_grad=True), SixteenBits(0.5)
    y = torch.utils.checkpoint.checkpoint(lambda x: layer(x) ** 2, x, use_reentrant=False)
    y.sum().backward()
    torch.testing.assert_close(x.grad, 2 * torch.where(y != 0, 4 * x, 0))


def test_every_dropout_of_a_model_is_replaced_and_no_name_changes():
    plain, model = tiny_body(), tiny_body().eval()
    cheap_dropout(model)
    before, after = ({n: m for n, m in body.named_modules() if isinstance(m, nn.Dropout)} for body in (plain, model))
    assert [*before] == [*after] and before
    assert all(type(m) is SixteenBits and not m.training and m.p == before[name].p for name, m in after.items())
    with torch.device("meta"):
        elsewhere = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    cheap_dropout(elsewhere)
    assert type(elsewhere[1]) is nn.Dropout
