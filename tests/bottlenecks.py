"""A tiny BERT with the bottlenecks of minift, and its twin: transformers' model of the same weights with those of adapters."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from twins import close, reference

from minift.formats.huggingface import look_up_module
from minift.methods.surgery import freeze, plain_name
from minift.pretrained import read

adapters = pytest.importorskip("adapters")  # which has no release for the newest transformers


def twins(
    body: nn.Module, method: Callable[[nn.Module], None], table: dict[str, str], config, std: float = 0.3
) -> tuple[nn.Module, nn.Module]:
    """The body after the method, and adapters' model with the same weights; the bottlenecks are N(0, std), the same in both."""
    dtype = next(body.parameters()).dtype
    theirs = reference(body)
    adapters.init(theirs)
    theirs.add_adapter("test", config=config)
    theirs.set_active_adapters("test")
    theirs.train_adapter("test")
    theirs.to(dtype)
    freeze(body)
    method(body)
    generator = torch.Generator().manual_seed(5)
    for name, (ours, other) in both(body, theirs, table).items():
        if ".adapter." in name:
            noise = torch.randn(ours.shape, generator=generator, dtype=torch.float64) * std
            noise[0] += 10 * std * name.endswith("down.bias")  # the first relu is not dead
            ours.detach().copy_(noise)
            other.detach().copy_(noise)
    return body, theirs


def both(body: nn.Module, theirs: nn.Module, table: dict[str, str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Name in the plain model of every parameter that trains here -> it, and the library's."""
    numbering = [numbers | {"name": "test"} for numbers in body.numbering()]
    pairs = {}
    for name, ours in body.named_parameters():
        if ours.requires_grad:
            module, _, leaf = plain_name(name).rpartition(".")
            there = look_up_module(module, table | body.HUGGINGFACE, numbering)
            pairs[plain_name(name)] = ours, theirs.get_parameter(f"{there}.{leaf}")
    return pairs


def hidden_states(body: nn.Module, given: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
    """(after the embeddings and after every layer, pooled)"""
    state, hidden = body.begin(*given), []
    for stage in body.walk():
        state = stage(state)
        hidden.append(state.hidden)
    if body.PRE_LN:
        return [*hidden[: len(body.layers)], hidden[-2]], state.pooled  # of the last layer behind the LayerNorm on top
    return hidden[: len(body.layers) + 1], state.pooled


def assert_twins(body: nn.Module, theirs: nn.Module, table: dict[str, str], given: tuple[Tensor, ...], atol: float = 1e-10) -> None:
    """Both train the same; every hidden state, the pooled output and every gradient are equal, in the mode that they are in."""
    pairs = both(body, theirs, table)
    assert {id(other) for _, other in pairs.values()} == {id(p) for p in theirs.parameters() if p.requires_grad}
    torch.manual_seed(3)
    hidden, pooled = hidden_states(body, given)
    torch.manual_seed(3)
    tokens, mask, *types = given
    named = {"token_type_ids": types[0]} if types else {}
    expected = theirs(input_ids=tokens, attention_mask=mask.long(), **named, output_hidden_states=True)
    for i, (ours, other) in enumerate(zip(hidden, expected.hidden_states, strict=True)):
        close(ours[mask], other[mask], f"hidden state {i}", atol)
    top = expected.last_hidden_state
    theirs_pooled = expected.pooler_output if types else top[torch.arange(len(top)), mask.sum(1) - 1]
    close(pooled, theirs_pooled, "pooled", atol)

    weight = torch.randn(hidden[-1].shape, generator=torch.Generator().manual_seed(4), dtype=hidden[-1].dtype)
    for top, output in ((hidden[-1], pooled), (expected.last_hidden_state, theirs_pooled)):
        ((top * weight)[mask].mean() + output.square().mean()).backward()
    for name, (ours, other) in pairs.items():
        assert other.grad.any(), name
        close(ours.grad, other.grad, name, atol)
    assert all(p.grad is None for p in body.parameters() if not p.requires_grad)


def minilm() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The embedded checkpoint, and texts for it."""
    checkpoint = read(Path(__file__).parents[1] / "weights" / "minilm-l6")
    checkpoint.tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    encoded = checkpoint.tokenizer.encode_batch([("A quiet, unhurried film.", "It stayed with me for days."), "Never again!"])
    tokens, mask, types = (torch.tensor([getattr(e, name) for e in encoded]) for name in ("ids", "attention_mask", "type_ids"))
    return checkpoint.body(), (tokens, mask.bool(), types)


def sizes(model: nn.Module) -> set[int]:
    """Channels of the bottlenecks of either model."""
    return {len(p) for name, p in model.named_parameters() if name.endswith(("adapter.down.bias", "adapter_down.0.bias"))}
