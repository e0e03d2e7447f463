"""Every method on a GPT-2 against the reference libraries: peft's lora, dora, ia3, prefix, prompt, and the bottlenecks of adapters.

BitFit on it is proved in tests/methods/test_bitfit.py. peft's layers know that transformers stores these weights transposed
(fan_in_fan_out); here they are plain Linears.
"""

from functools import partial

import peft
import pytest
import torch
import transformers
from tiny import tiny_gpt2
from torch import nn
from twins import assert_merged_twins, assert_twins, close, gpt2, reference, texts, twins

from minift.methods.dora import dora
from minift.methods.houlsby import ADAPTERS_OF_GPT2 as HOULSBY
from minift.methods.houlsby import houlsby
from minift.methods.ia3 import ia3
from minift.methods.lora import lora
from minift.methods.pfeiffer import ADAPTERS_OF_GPT2 as PFEIFFER
from minift.methods.pfeiffer import pfeiffer
from minift.methods.prefix import prefix
from minift.methods.prompt import prompt
from minift.methods.surgery import delta, freeze

P = 4
EVERY = "qkv/attention_output/feed_forward_hidden/feed_forward_output"
CONV1D = {"fan_in_fan_out": True}
THIN = {"r": 3, "lora_alpha": 5.0, "lora_dropout": 0.4, **CONV1D}
OURS = {"rank": 3, "alpha": 5.0, "dropout": 0.4}
METHODS = {
    "lora, default": (partial(lora, **OURS), peft.LoraConfig(**THIN)),
    "lora, every layer": (
        partial(lora, sites=EVERY, **OURS),
        peft.LoraConfig(**THIN, target_modules=["c_attn", "c_proj", "c_fc"]),
    ),
    "lora, words": (partial(lora, sites="word", rank=3), peft.LoraConfig(r=3, lora_alpha=16, target_modules=["wte"])),
    "dora, default": (partial(dora, **OURS), peft.LoraConfig(**THIN, use_dora=True)),
    "dora, every layer": (
        partial(dora, sites=EVERY, **OURS),
        peft.LoraConfig(**THIN, use_dora=True, target_modules=["c_attn", "c_proj", "c_fc"]),
    ),
    "ia3, default": (ia3, peft.IA3Config(**CONV1D)),
    "ia3, every layer": (
        partial(ia3, sites=EVERY),
        peft.IA3Config(**CONV1D, target_modules=["c_attn", "c_proj", "c_fc"], feedforward_modules=["c_proj"]),
    ),
}


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("method", METHODS)
def test_lora_dora_and_ia3_are_those_of_peft(method, train):
    ours, config = METHODS[method]
    given = texts()[:2]
    body, theirs = twins(gpt2(), ours, config)
    assert_twins(body, theirs, given, train)
    assert_merged_twins(body, theirs, given)


def in_peft(body: nn.Module, config: peft.PeftConfig):
    """((tokens, mask) -> hidden states of the whole length, the embedding that peft trains)"""
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**vars(body.config))).double()
    model.transformer = reference(body)
    model = peft.get_peft_model(model, config).double().eval()
    seen = []
    model.base_model.transformer.register_forward_hook(lambda module, inputs, output: seen.append(output.last_hidden_state))

    def call(tokens, mask):
        model(input_ids=tokens, attention_mask=mask.long())
        return seen.pop()

    return call, model.prompt_encoder.default.embedding.weight


def assert_same_gradients(body: nn.Module, theirs, mask, of_ours, of_theirs) -> None:
    """hidden: ours and theirs where there is a token; the parameters of both."""
    ours, expected = body.hidden[mask], theirs[mask]
    close(ours, expected, "hidden states")
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for hidden in (ours, expected):
        (hidden * weight).sum().backward()
    close(of_ours(), of_theirs.grad, "gradient")


def test_prefix_is_that_of_peft():
    body, (tokens, mask) = gpt2().eval(), texts()[:2]
    call, table = in_peft(body, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P))
    freeze(body)
    prefix(body, length=P, shift=True)
    tensors = list(delta(body).values())
    for i, tensor in enumerate(tensors):
        tensor.data.copy_(table.view(P, len(tensors), -1)[:, i])
    assert_same_gradients(body(tokens, mask), call(tokens, mask), mask, lambda: torch.cat([t.grad for t in tensors], 1), table)


def test_prompt_is_that_of_peft():
    body, (tokens, mask) = gpt2().eval(), texts()[:2]
    call, E = in_peft(body, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P))
    freeze(body)
    prompt(body, length=P)
    (ours,) = delta(body).values()
    ours.data.copy_(E)
    assert_same_gradients(body(tokens, mask), call(tokens, mask)[:, P:], mask, lambda: ours.grad, E)
    again = body(tokens, mask, None, torch.arange(12)).hidden
    close(again[mask], body(tokens, mask).hidden[mask], "with the positions given")


def padded_on_the_left(tokens, mask):
    """The same rows with their padding before them."""
    lengths = mask.sum(1).tolist()
    rows = [torch.cat([row[n:], row[:n]]) for row, n in zip(tokens, lengths, strict=True)]
    return torch.stack(rows), mask.flip(1)


@pytest.mark.parametrize("method", [partial(prefix, length=P), partial(prefix, length=P, shift=True), partial(prompt, length=P)])
def test_padding_on_the_left_moves_nothing_behind_a_prefix_or_a_prompt(method):
    body, (tokens, mask) = gpt2().eval(), texts()[:2]
    freeze(body)
    torch.manual_seed(0)
    method(body)
    left, moved = padded_on_the_left(tokens, mask)
    close(body(left, moved).hidden[moved], body(tokens, mask).hidden[mask], "hidden states")
    close(body(left, moved).pooled, body(tokens, mask).pooled, "pooled")


@pytest.mark.parametrize("method", [partial(prefix, length=P), partial(prefix, length=P, shift=True), partial(prompt, length=P)])
def test_packed_texts_see_a_prefix_or_a_prompt_as_if_they_stood_alone(method):
    body, (tokens, _) = gpt2().eval(), texts()[:2]
    freeze(body)
    torch.manual_seed(0)
    method(body)
    text = torch.tensor([0] * 5 + [1] * 4 + [2] * 3)
    packed = body(tokens, (text[:, None] == text).expand(4, 1, 12, 12)).hidden
    close(packed, torch.cat([body(part).hidden for part in tokens.split([5, 4, 3], 1)], 1), "packed")


BOTTLENECKS = {
    "houlsby": (partial(houlsby, norms=False, activation="swish"), HOULSBY, "DoubleSeqBnConfig"),
    "pfeiffer": (pfeiffer, PFEIFFER, "SeqBnConfig"),
}


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("method", BOTTLENECKS)
def test_bottlenecks_are_those_of_adapters(method, train):
    adapters = pytest.importorskip("adapters")
    from bottlenecks import assert_twins, sizes, twins

    apply, table, config = BOTTLENECKS[method]
    config = getattr(adapters, config)(reduction_factor=4)
    body, theirs = twins(gpt2(0.3 if train else 0.0), partial(apply, size=4), table, config)
    assert sizes(body) == sizes(theirs) == {4}
    body.train(train)
    theirs.train(train).drop.eval()  # nothing in the embeddings trains, so minift leaves dropout off there
    assert_twins(body, theirs, table, texts()[:2])


@pytest.mark.parametrize("method", [houlsby, pfeiffer])
def test_bottlenecks_start_as_the_pretrained_model(method):
    body, given = tiny_gpt2().eval(), texts()[:2]
    before = body(*given).hidden
    freeze(body)
    method(body)
    assert torch.equal(body(*given).hidden, before)
