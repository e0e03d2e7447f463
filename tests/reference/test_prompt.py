"""minift.methods.prompt against peft's PromptTuningConfig: hidden states, pooled output, the gradient of E."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import peft
import pytest
import torch
import transformers
from tiny import tiny_body
from torch import Tensor
from twins import hidden_states, inputs

from minift.formats.huggingface import to_huggingface
from minift.methods.prompt import prompt
from minift.methods.surgery import delta, freeze, lengthened
from minift.models.bert import Bert
from minift.pretrained import read

MINILM = Path(__file__).parents[2] / "weights" / "minilm-l6"
P = 5


def in_peft(body: Bert) -> tuple[Callable, Tensor]:
    """((tokens, mask, types) -> BERT's output of the whole length, E of peft).

    peft has token types in its classifier alone; hidden states and pooler are watched inside of that.
    """
    classifier = transformers.BertForSequenceClassification(transformers.BertConfig(**asdict(body.config)))
    classifier.to(next(body.parameters()).dtype)
    weights = {name: tensor.detach().clone() for name, tensor in body.state_dict().items()}
    classifier.bert.load_state_dict(to_huggingface(weights, body, ""))
    config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=P)
    model = peft.get_peft_model(classifier, config).to(classifier.dtype).eval()
    seen = []
    classifier.bert.register_forward_hook(lambda module, inputs, output: seen.append(output))

    def call(tokens, mask, types):
        model(tokens, None if mask is None else mask.long(), token_type_ids=types, output_hidden_states=True, return_dict=True)
        return seen.pop()

    return call, model.prompt_encoder.default.embedding.weight


def prompted(body: Bert, pooler: str) -> tuple[Callable, Tensor]:
    """The method in the body, and in peft with the same E."""
    torch.manual_seed(3)
    call, E = in_peft(body)
    freeze(body)
    prompt(body, length=P, pooler=pooler)
    with torch.no_grad():
        delta(body)["embeddings.word.E"].copy_(E)
    return call, E


@pytest.mark.parametrize("pooler", ["text", "all"])
@pytest.mark.parametrize(("padded", "pairs"), [(False, False), (True, False), (False, True), (True, True)])
def test_twin_in_float64(pooler, padded, pairs):
    """pooler=all is peft's; for pooler=text, theirs is applied to the first token of the text."""
    body = tiny_body(layer_norm_eps=1e-3).double().eval()
    call, E = prompted(body, pooler)
    assert list(delta(body)) == ["embeddings.word.E"] and lengthened(body) == P
    tokens, mask, types = inputs(body.config.vocab_size, padded, pairs)
    expected, state = call(tokens, mask, types), body(tokens, mask, types)
    pooled = expected.pooler_output
    if pooler == "text":
        dense = body.pooler.dense
        pooled = torch.tanh(expected.last_hidden_state[:, P] @ dense.weight.T + dense.bias)

    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    every = torch.cat([real.new_ones(len(real), P), real], 1)
    for i, (ours, theirs) in enumerate(zip(hidden_states(body, tokens, mask, types), expected.hidden_states, strict=True)):
        if pooler == "text" and i == len(body.layers):
            torch.testing.assert_close(ours[real], theirs[:, P:][real], rtol=0, atol=1e-10)
        else:
            torch.testing.assert_close(ours[every], theirs[every], rtol=0, atol=1e-10)
    torch.testing.assert_close(state.hidden[real], expected.last_hidden_state[:, P:][real], rtol=0, atol=1e-10)
    torch.testing.assert_close(state.pooled, pooled, rtol=0, atol=1e-10)

    weight = torch.randn(state.hidden.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for hidden, output in ((state.hidden, state.pooled), (expected.last_hidden_state[:, P:], pooled)):
        ((hidden * weight)[real].sum() + output.square().sum()).backward()
    ours = delta(body)["embeddings.word.E"].grad
    assert ours.abs().min() > 0
    torch.testing.assert_close(ours, E.grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("pool", ["cls", "mean", None])
@pytest.mark.parametrize("padded", [False, True])
def test_a_task_sees_the_text_alone(pool, padded):
    body = tiny_body(pool=pool).double().eval()
    freeze(body)
    prompt(body, length=P)
    tokens, mask, types = inputs(body.config.vocab_size, padded, pairs=True)
    state = body(tokens, mask, types)
    assert state.hidden.shape == (4, 12, 16)
    assert torch.equal(state.tokens, tokens) and torch.equal(state.token_types, types)
    assert state.mask is None if mask is None else torch.equal(state.mask, mask)
    weight = torch.ones(4, 12, 1).double() if mask is None else mask.double()[..., None]
    if pool == "mean":
        torch.testing.assert_close(state.pooled, (state.hidden * weight).sum(1) / weight.sum(1), rtol=0, atol=1e-12)
    if pool is None:
        assert state.pooled is None


def test_the_mean_of_all_is_over_the_virtual_tokens_too():
    text, both = (tiny_body(pool="mean").double().eval() for _ in range(2))
    seen = []
    for body, pooler in ((text, "text"), (both, "all")):
        freeze(body)
        torch.manual_seed(0)
        prompt(body, length=P, pooler=pooler)
    tokens, mask, types = inputs(text.config.vocab_size, padded=True, pairs=True)
    both.layers[-1].register_forward_hook(lambda module, inputs, output: seen.append(output.hidden))
    state = both(tokens, mask, types)
    every = torch.cat([mask.new_ones(4, P), mask], 1).double()[..., None]
    torch.testing.assert_close(state.pooled, (seen[0] * every).sum(1) / every.sum(1), rtol=0, atol=1e-12)
    assert torch.equal(state.hidden, text(tokens, mask, types).hidden) and torch.equal(state.mask, mask)


def test_real_weights_in_float32():
    checkpoint = read(MINILM)
    body = checkpoint.body().eval()
    call, _ = prompted(body, "all")
    checkpoint.tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    encoded = checkpoint.tokenizer.encode_batch([("A quiet, unhurried film.", "It stayed with me."), "Never again!"])
    tokens, mask, types = (torch.tensor([getattr(e, name) for e in encoded]) for name in ("ids", "attention_mask", "type_ids"))
    with torch.inference_mode():
        state, expected = body(tokens, mask.bool(), types), call(tokens, mask.bool(), types)
    torch.testing.assert_close(state.hidden[mask.bool()], expected.last_hidden_state[:, P:][mask.bool()], rtol=0, atol=1e-5)
    torch.testing.assert_close(state.pooled, expected.pooler_output, rtol=0, atol=1e-5)


def test_start_is_the_vectors_of_different_words():
    body = tiny_body()
    table = body.embeddings.word.weight.detach().clone()
    freeze(body)
    prompt(body, length=20)
    E = delta(body)["embeddings.word.E"]
    words = (E[:, None] == table).all(-1)
    assert words.sum(1).eq(1).all() and words.any(0).sum() == 20
    body = tiny_body()
    freeze(body)
    prompt(body, length=39, init="random")
    E = delta(body)["embeddings.word.E"]
    assert E.shape == (39, 16) and abs(E.std() - 1) < 0.15  # 624 numbers: the standard deviation of theirs is 0.03


REFUSED = [
    ({"length": 0}, "cls"),
    ({"length": 40}, "cls"),
    ({"init": "ones"}, "cls"),
    ({"pooler": "cls"}, "cls"),
    ({"pooler": "all"}, None),
]


@pytest.mark.parametrize(("options", "pool"), REFUSED)
def test_what_cannot_be_is_refused_in_one_line(options, pool):
    body = tiny_body(pool=pool)
    before = [id(module) for module in body.modules()]
    (name, value), *_ = options.items()
    with pytest.raises(ValueError, match=f"^{name}={value}: ") as error:
        prompt(body, **options)
    assert "\n" not in str(error.value) and before == [id(module) for module in body.modules()]


@pytest.mark.parametrize("pooler", ["text", "all"])
def test_both_shapes_of_a_mask_and_given_positions(pooler):
    body = tiny_body().double().eval()
    freeze(body)
    prompt(body, length=P, pooler=pooler)
    tokens, mask, types = inputs(body.config.vocab_size, padded=True, pairs=True)
    state = body(tokens, mask, types)
    by_row, positions = mask[:, None, None].expand(-1, 1, 12, -1), torch.arange(12)
    again = body(tokens, by_row, types, positions)
    torch.testing.assert_close(again.hidden[mask], state.hidden[mask], rtol=0, atol=1e-12)
    torch.testing.assert_close(again.pooled, state.pooled, rtol=0, atol=1e-12)
    assert torch.equal(again.mask, by_row) and torch.equal(again.positions, positions) and torch.equal(again.tokens, tokens)


def test_nothing_leaks_between_packed_texts():
    """Each text sees the virtual tokens, which see each other alone. Rows of padding, which see nothing, do not count."""
    body = tiny_body().double().eval()
    freeze(body)
    prompt(body, length=P)
    tokens, _, types = inputs(body.config.vocab_size, padded=False, pairs=True)
    text = torch.tensor([0] * 5 + [1] * 4 + [2] * 3)
    mask = ((text[:, None] == text) & (text < 2)).expand(4, 1, 12, 12)
    positions = torch.tensor([*range(5), *range(4), 0, 0, 0])
    state = body(tokens, mask, types, positions)
    changed = tokens.clone()
    changed[:, 5:9] = changed[:, 5:9].flip(1)
    again = body(changed, mask, types, positions)
    assert torch.equal(again.hidden[:, :5], state.hidden[:, :5]) and not torch.equal(again.hidden[:, 5:9], state.hidden[:, 5:9])
    causal = torch.ones(9, 9, dtype=torch.bool).tril().expand(4, 1, 9, 9)
    first = body(tokens[:, :9], causal, types[:, :9]).hidden[:, :4]
    assert torch.equal(body(changed[:, :9], causal, types[:, :9]).hidden[:, :4], first)
