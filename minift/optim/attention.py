"""Attention with dropout on a CPU, in half the time of torch's.

torch.nn.functional.scaled_dot_product_attention has no fused kernel for dropout on a CPU. It composes one, with a copy of the mask
in numbers, a search for empty rows, and 32 random bits or more for every weight. Here is what the equations need, for every head of
every row of a batch (Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1, equation 1; with dropout on the softmax, as in BERT):

    A = softmax(Q K^T / sqrt(d)), 0 where the mask is False;   D = A * keep / q;   Y = D V

    dV = D^T dY;   G = (dY V^T) * D;   dS = G - A * (the sum of G over columns);   dQ = dS K / sqrt(d);   dK = dS^T Q / sqrt(d)

with keep and q as in dropout.py. G stands for dA * A, as the gradient of a weight passes the same dropout, so that neither keep nor
dA is kept. In bfloat16 and float16 everything in between is float32, as in torch's. Proved by tests/optim/test_attention.py.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function

from minift.optim.dropout import LEVELS, bits_for, kept

# B rows, H heads, S tokens, T tokens that they see, d width of a head


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False
) -> Tensor:
    """scaled_dot_product_attention, which it calls where nothing is dropped.

    q: (B, H, S, d). k, v: (B, H, T, d). mask: bool, broadcast to (B, H, S, T), True where a token sees another;
    each sees one at least. dropout_p: from 0 to 1. is_causal: a token sees none behind it, and there is no mask.
    """
    dropped = round(LEVELS * dropout_p)
    if has_torch_function((q, k, v)):  # a LowPrecision, which would do the products in here in the low type
        return handle_torch_function(attention, (q, k, v), q, k, v, mask, dropout_p, is_causal)
    if dropped in (0, LEVELS):
        return F.scaled_dot_product_attention(q, k, v, mask, dropped / LEVELS, is_causal)
    if is_causal:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    return Attention.apply(q, k, v, mask, dropped)


class Attention(torch.autograd.Function):
    """dropped: how many of 65,536 weights are dropped."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropped: int) -> Tensor:
        B, H, _, d = q.shape
        wide, ctx.dtype, ctx.heads, ctx.scale = torch.promote_types(q.dtype, torch.float32), q.dtype, H, LEVELS / (LEVELS - dropped)
        Q, K, V = (dense(x, wide).flatten(0, 1) for x in (q, k, v))  # (B H, S, d), (B H, T, d), (B H, T, d)
        scores = torch.bmm(Q * (1 / math.sqrt(d)), K.mT)  # (B H, S, T)
        if mask is not None:
            scores.unflatten(0, (B, H)).masked_fill_(~mask, torch.finfo(wide).min)
        A = torch.softmax(scores, -1)
        D = kept(bits_for(A), dropped, out=scores).mul_(A)
        ctx.save_for_backward(Q, K, V, A, D)
        return by_heads(torch.bmm(D, V).mul_(ctx.scale), H, q.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        Q, K, V, A, D = ctx.saved_tensors
        dY = dense(dy, A.dtype).flatten(0, 1) * ctx.scale  # (B H, S, d)
        G = torch.bmm(dY, V.mT).mul_(D)  # (B H, S, T)
        dS = torch.addcmul(G, A, G.sum(-1, keepdim=True), value=-1).mul_(1 / math.sqrt(Q.shape[-1]))
        products = ((dS, K), (dS.mT, Q), (D.mT, dY))
        found = [torch.bmm(*pair) if needed else None for pair, needed in zip(products, ctx.needs_input_grad[:3], strict=True)]
        return *(None if x is None else by_heads(x, ctx.heads, ctx.dtype) for x in found), None, None


def dense(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in `dtype`, its elements in the order of its axes; copied once at most."""
    return x.to(dtype, memory_format=torch.contiguous_format).contiguous()


def by_heads(x: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """(B H, S, d) -> (B, H, S, d), in memory (B, S, H, d), so that nothing is copied where the heads are joined."""
    return dense(x.unflatten(0, (-1, heads)).transpose(1, 2), dtype).transpose(1, 2)


def cheap_attention(model: nn.Module) -> None:
    """Let every module of a model on a CPU that has a `kernel` attend by `attention`."""
    if next(model.parameters()).device.type == "cpu":
        for module in model.modules():
            if hasattr(module, "kernel"):
                module.kernel = attention
