"""Attention with dropout on a CPU beside its equation in autograd with the same draws, and where it is used."""

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_body
from torch import nn

from minift.optim.attention import attention, cheap_attention
from minift.optim.dropout import LEVELS, bits_for, kept
from minift.optim.precision import LowPrecision

P = 0.3
DROPPED = round(LEVELS * P)
B, H, S, T, D = 3, 2, 5, 7, 4  # T tokens are seen by S
MASKS = {
    "none": None,
    "of columns": torch.arange(T) < torch.tensor([7, 1, 4])[:, None, None, None],
    "of pairs": torch.ones(S, T, dtype=torch.bool).tril(T - S),
    "of pairs, each row its own": (torch.arange(B * S * T) % 3 > 0).view(B, 1, S, T),
}


def inputs(columns: int = T, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """q, k and v as a model makes them: (B, H, S, d), in memory (B, S, H, d)."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((B, S, H, D), (B, columns, H, D), (B, columns, H, D))
    return [torch.randn(s, generator=generator, dtype=dtype).transpose(1, 2).detach().requires_grad_() for s in shapes]


def expected(q, k, v, mask) -> torch.Tensor:
    scores = q @ k.mT / D**0.5
    weights = torch.softmax(scores if mask is None else scores.masked_fill(~mask, -torch.inf), -1)
    keep = kept(bits_for(weights.flatten(0, 1)), DROPPED, torch.empty_like(weights.flatten(0, 1))).view_as(weights)
    return (weights * keep * LEVELS / (LEVELS - DROPPED)) @ v


def compare(ours, theirs, mask, causal: bool = False) -> None:
    torch.manual_seed(5)
    y = attention(*ours, mask, P, causal)
    torch.manual_seed(5)
    z = expected(*theirs, torch.ones(S, S, dtype=torch.bool).tril() if causal else mask)
    torch.testing.assert_close(y, z, rtol=0, atol=1e-12)
    assert (y - F.scaled_dot_product_attention(*ours, mask, 0.0, causal)).abs().max() > 0.1  # something is dropped
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    (y * weights).sum().backward()
    (z * weights).sum().backward()
    for x, reference in zip(ours, theirs, strict=True):
        if reference.requires_grad:
            torch.testing.assert_close(x.grad, reference.grad, rtol=0, atol=1e-12)
        else:
            assert x.grad is None


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_it_is_the_equation_with_its_gradients(mask):
    compare(inputs(), inputs(), mask)


def test_a_causal_one_and_one_of_which_the_queries_alone_train():
    compare(inputs(S), inputs(S), None, causal=True)
    ours, theirs = inputs(), inputs()
    for x in (*ours[1:], *theirs[1:]):
        x.requires_grad_(False)
    compare(ours, theirs, None)


def test_where_nothing_is_dropped_it_is_torchs():
    q, k, v = inputs()
    for p in (0.0, 2**-18):
        assert torch.equal(attention(q, k, v, MASKS["of pairs"], p), F.scaled_dot_product_attention(q, k, v, MASKS["of pairs"]))
    assert not attention(q, k, v, None, 1.0).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_a_low_type_only_the_arguments_and_the_result_are_rounded(dtype):
    low = [x.detach().to(dtype).requires_grad_() for x in inputs(dtype=torch.float32)]
    wide = [x.detach().float().requires_grad_() for x in low]
    found = []
    for arguments, context in ((low, LowPrecision(dtype)), (wide, torch.enable_grad())):
        torch.manual_seed(5)
        with context:
            y = attention(*arguments, MASKS["of columns"], P)
        y.float().square().sum().backward()
        found.append(y)
    assert found[0].dtype == dtype and torch.equal(found[0], found[1].to(dtype))
    for x, reference in zip(low, wide, strict=True):
        assert x.grad.dtype == dtype
        torch.testing.assert_close(x.grad.float(), reference.grad, rtol=0.05, atol=0.02)  # of y rounded


def test_recomputed_it_drops_the_same():
    ours, again = inputs(), inputs()
    for arguments in (ours, again):
        torch.manual_seed(5)
        run = lambda *a: attention(*a, None, P) ** 2  # noqa: E731
        y = run(*arguments) if arguments is ours else torch.utils.checkpoint.checkpoint(run, *arguments, use_reentrant=False)
        torch.rand(3)  # which moves the generator on
        y.sum().backward()
    for x, y in zip(ours, again, strict=True):
        torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=0)


def test_every_layer_of_a_model_attends_by_it_and_evaluates_as_before():
    model = tiny_body().eval()
    tokens = torch.arange(10, 20).view(2, 5)
    before = model(tokens).hidden
    cheap_attention(model)
    kernels = [m.kernel for m in model.modules() if hasattr(m, "kernel")]
    assert kernels == [attention] * len(model.layers)
    assert torch.equal(model(tokens).hidden, before)
    with torch.device("meta"):
        elsewhere = nn.Sequential(tiny_body().layers[0])
    cheap_attention(elsewhere)
    assert elsewhere[0].attention.attend.kernel is F.scaled_dot_product_attention
