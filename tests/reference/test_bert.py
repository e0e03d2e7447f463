"""minift.models.bert against transformers.BertModel: every hidden state, the pooled output and every gradient."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import transformers
from tiny import CONFIG, tiny_body
from twins import hidden_states, inputs

from minift.formats.huggingface import names, to_huggingface
from minift.models.bert import Bert, BertConfig
from minift.pretrained import read

MINILM = Path(__file__).parents[2] / "weights" / "minilm-l6"


def twin(body: Bert) -> transformers.BertModel:
    """transformers' model with the weights of `body`."""
    reference = transformers.BertModel(transformers.BertConfig(**asdict(body.config)), add_pooling_layer=body.pooler is not None)
    reference = reference.to(next(body.parameters()).dtype)
    reference.load_state_dict(to_huggingface(body.state_dict(), body, ""), strict=True)
    return reference


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize(("padded", "pairs"), [(False, False), (True, False), (False, True), (True, True)])
def test_twin_in_float64(activation, padded, pairs):
    body = tiny_body(hidden_act=activation, layer_norm_eps=1e-3).double().eval()
    reference = twin(body).eval()
    tokens, mask, types = inputs(body.config.vocab_size, padded, pairs)
    expected = reference(tokens, None if mask is None else mask.long(), types, output_hidden_states=True)
    state = body(tokens, mask, types)

    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    for ours, theirs in zip(hidden_states(body, tokens, mask, types), expected.hidden_states, strict=True):
        torch.testing.assert_close(ours[real], theirs[real], rtol=0, atol=1e-10)
    torch.testing.assert_close(state.pooled, expected.pooler_output, rtol=0, atol=1e-10)

    weight = torch.randn(state.hidden.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for hidden, pooled in ((state.hidden, state.pooled), (expected.last_hidden_state, expected.pooler_output)):
        ((hidden * weight)[real].sum() + pooled.square().sum()).backward()
    theirs = dict(reference.named_parameters())
    for ours, name in names(body).items():
        torch.testing.assert_close(body.get_parameter(ours).grad, theirs[name].grad, rtol=0, atol=1e-10, msg=ours)


def test_dropout_sits_where_the_reference_has_it():
    """With every dropout at p = 0.5 and the same random numbers drawn in the same order, outputs are equal in train mode."""
    body = tiny_body(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5).double().train()
    reference = twin(body).train()
    tokens, mask, types = inputs(body.config.vocab_size, padded=True, pairs=True)
    torch.manual_seed(3)
    ours = body(tokens, mask, types)
    torch.manual_seed(3)
    theirs = reference(tokens, mask.long(), types)
    torch.testing.assert_close(ours.pooled, theirs.pooler_output, rtol=0, atol=1e-10)
    torch.testing.assert_close(ours.hidden[mask], theirs.last_hidden_state[mask], rtol=0, atol=1e-10)


def test_initial_weights_follow_the_same_rule():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=2000, hidden_size=128, num_hidden_layers=1, num_attention_heads=2, intermediate_size=256)
    body = Bert(config)
    reference = dict(transformers.BertModel(transformers.BertConfig(**asdict(config))).named_parameters())
    for ours, name in names(body).items():
        a, b = body.get_parameter(ours).detach(), reference[name].detach()
        if b.std() == 0:
            assert torch.equal(a, b), ours
        else:
            assert abs(a.std() / b.std() - 1) < 0.1 and abs(a.mean()) < 0.002, ours
    assert not body.embeddings.word.weight[config.pad_token_id].any()


def test_without_pooler():
    body = tiny_body(pool=None).double().eval()
    reference = twin(body).eval()
    tokens, mask, types = inputs(CONFIG.vocab_size, padded=True, pairs=True)
    state = body(tokens, mask, types)
    assert state.pooled is None
    torch.testing.assert_close(
        state.hidden[mask], reference(tokens, mask.long(), types).last_hidden_state[mask], rtol=0, atol=1e-10
    )


def test_real_weights_in_float32():
    body = read(MINILM).body().eval()
    reference = twin(body).eval()
    tokenizer = read(MINILM).tokenizer
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    encoded = tokenizer.encode_batch(
        [("A quiet, unhurried film.", "It stayed with me for days."), "Never again!", "naïve café 中文 🙂"]
    )
    tokens, mask, types = (torch.tensor([getattr(e, name) for e in encoded]) for name in ("ids", "attention_mask", "type_ids"))
    with torch.inference_mode():
        state = body(tokens, mask.bool(), types)
        expected = reference(tokens, mask, types)
    torch.testing.assert_close(state.hidden[mask.bool()], expected.last_hidden_state[mask.bool()], rtol=0, atol=1e-5)
    torch.testing.assert_close(state.pooled, expected.pooler_output, rtol=0, atol=1e-5)


def packed() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two texts of 5 and 4 tokens and 3 of padding in one row, twice: (tokens, mask (B, 1, S, S), positions that restart)."""
    tokens = torch.randint(5, 60, (2, 12), generator=torch.Generator().manual_seed(5))
    text = torch.tensor([0] * 5 + [1] * 4 + [2] * 3)
    mask = (text[:, None] == text) & (text < 2)
    return tokens, mask.expand(2, 1, 12, 12), torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 0, 0])


@pytest.mark.parametrize("given", [False, True])
def test_padding_on_the_left(given):
    """Positions are the columns, as in transformers; or those that are given, counted from the first token."""
    body = tiny_body(layer_norm_eps=1e-3).double().eval()
    tokens, mask, types = inputs(body.config.vocab_size, padded=True, pairs=True)
    mask = mask.flip(1)
    positions = (mask.cumsum(1) - 1).clamp(min=0) if given else None
    expected = twin(body).eval()(tokens, mask.long(), types, positions)
    state = body(tokens, mask, types, positions)
    torch.testing.assert_close(state.hidden[mask], expected.last_hidden_state[mask], rtol=0, atol=1e-10)


def test_packed_texts_are_what_each_is_alone():
    body = tiny_body().double().eval()
    tokens, mask, positions = packed()
    theirs = mask if int(transformers.__version__.partition(".")[0]) >= 5 else mask[:, 0].long()
    expected = twin(body).eval()(tokens, theirs, position_ids=positions.expand(2, -1))
    state = body(tokens, mask, None, positions)
    torch.testing.assert_close(state.hidden[:, :9], expected.last_hidden_state[:, :9], rtol=0, atol=1e-10)
    torch.testing.assert_close(state.pooled, expected.pooler_output, rtol=0, atol=1e-10)
    for part in (slice(0, 5), slice(5, 9)):
        torch.testing.assert_close(state.hidden[:, part], body(tokens[:, part]).hidden, rtol=0, atol=1e-10)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_a_mask_for_each_row_that_says_the_same_gives_the_same(pool):
    body = tiny_body(pool=pool).double().eval()
    tokens, mask, types = inputs(body.config.vocab_size, padded=True, pairs=True)
    ours, theirs = body(tokens, mask[:, None, None].expand(-1, 1, 12, -1), types), body(tokens, mask, types)
    assert torch.equal(ours.hidden, theirs.hidden) and torch.equal(ours.pooled, theirs.pooled)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_a_row_of_padding_alone_is_finite_and_changes_no_other(pool):
    """transformers gives such a row the mean of V over its padding; here it sees nothing, and the mean of no token is 0."""
    body = tiny_body(pool=pool).double().eval()
    tokens, mask, types = inputs(body.config.vocab_size, padded=True, pairs=True)
    mask[2] = False
    state = body(tokens, mask, types)
    assert state.pooled[2].eq(0).all() if pool == "mean" else state.pooled[2].isfinite().all()
    others = torch.tensor([0, 1, 3])
    alone = body(tokens[others], mask[others], types[others])
    torch.testing.assert_close(state.pooled[others], alone.pooled, rtol=0, atol=1e-12)
    state.pooled.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in body.parameters() if p.grad is not None)
