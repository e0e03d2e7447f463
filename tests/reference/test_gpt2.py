"""minift.models.gpt2 against transformers' GPT2Model and GPT2LMHeadModel: hidden states, logits, every gradient."""

from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
import transformers
from tiny import tiny_gpt2
from torch import Tensor, nn
from twins import close

from minift.formats.huggingface import names, to_huggingface, turned
from minift.models.gpt2 import SIZES, Gpt2, Gpt2Config

LENGTHS = [12, 7, 3, 1]


def gpt2(pool: str | None = None, **changes) -> Gpt2:
    return tiny_gpt2(pool=pool, **changes).double().eval()


def twin(body: Gpt2) -> nn.Module:
    """GPT2LMHeadModel with the same weights, its head tied."""
    reference = transformers.GPT2LMHeadModel(transformers.GPT2Config(**asdict(body.config))).double().eval()
    weights = {name: tensor.detach().clone() for name, tensor in body.state_dict().items()}
    reference.transformer.load_state_dict(to_huggingface(weights, body, ""), strict=True)
    assert reference.lm_head.weight is reference.transformer.wte.weight
    return reference


def texts(side: str | None) -> tuple[Tensor, Tensor | None]:
    """Tokens of four rows and the mask, with padding on this side; the id of padding stands in the first text too."""
    tokens = torch.randint(5, 60, (4, 12), generator=torch.Generator().manual_seed(1))
    tokens[0, 4] = 3
    if side is None:
        return tokens, None
    mask = torch.arange(12) < torch.tensor(LENGTHS)[:, None]
    mask = mask.flip(1) if side == "left" else mask
    return tokens.masked_fill(~mask, 3), mask


def in_generation(mask: Tensor | None) -> dict[str, Tensor]:
    """What transformers' `generate` hands to the model for this mask."""
    if mask is None:
        return {}
    return {"attention_mask": mask.long(), "position_ids": (mask.cumsum(1) - 1).masked_fill(~mask, 1)}


@pytest.mark.parametrize("side", [None, "right", "left"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_twin_in_float64(attention, side):
    body = gpt2()
    reference = twin(body)
    reference.set_attn_implementation(attention)
    tokens, mask = texts(side)
    expected = reference(tokens, **in_generation(mask), output_hidden_states=True)
    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    state, hidden = body.begin(tokens, mask), []
    for stage in body.walk():
        state = stage(state)
        hidden.append(state.hidden)
    for ours, theirs in zip([*hidden[:3], hidden[-1]], expected.hidden_states, strict=True):  # the last is behind ln_f
        close(ours[real], theirs[real], "hidden states")
    logits = F.linear(state.hidden, body.embeddings.word.weight)
    close(logits[real], expected.logits[real], "logits")
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for found in (logits, expected.logits):
        (found * weight)[real].sum().backward()
    theirs = dict(reference.transformer.named_parameters())
    for ours, name in names(body).items():
        close(body.get_parameter(ours).grad, turned(name, theirs[name].grad, body), ours)


def test_padding_on_the_left_moves_nothing():
    body = gpt2()
    (tokens, mask), (shifted, moved) = texts("right"), texts("left")
    for row, length in enumerate(LENGTHS):
        shifted[row, 12 - length :] = tokens[row, :length]
    hidden = body(shifted, moved).hidden
    close(hidden[moved], body(tokens, mask).hidden[mask], "hidden states")
    assert hidden.isfinite().all()  # padding sees itself: an empty row of the softmax would be NaN in old versions of torch


def test_packed_texts_are_as_if_they_stood_alone():
    """By the mask alone: the positions follow from it; and with the positions given, as transformers has them."""
    body, tokens = gpt2(), texts(None)[0]
    text = torch.tensor([0] * 5 + [1] * 4 + [2] * 3)
    mask = (text[:, None] == text).expand(4, 1, 12, 12)
    packed = body(tokens, mask).hidden
    parts = [body(part).hidden for part in tokens.split([5, 4, 3], 1)]
    close(packed, torch.cat(parts, 1), "packed")
    positions = torch.cat([torch.arange(n) for n in (5, 4, 3)])
    assert torch.equal(body(tokens, mask, None, positions).hidden, packed)
    allowed = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask.tril(), -torch.inf)
    expected = twin(body).transformer(tokens, attention_mask=allowed, position_ids=positions.expand(4, 12))
    close(packed, expected.last_hidden_state, "packed, against transformers")


@pytest.mark.parametrize("side", [None, "right", "left"])
def test_no_token_sees_one_behind_it(side):
    body, (tokens, mask) = gpt2(), texts(side)
    before = body(tokens, mask).hidden
    changed = tokens.clone()
    changed[:, 8:] = 9
    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    after = body(changed, mask).hidden
    assert torch.equal(after[:, :8][real[:, :8]], before[:, :8][real[:, :8]]) and not torch.equal(after[0, 8:], before[0, 8:])


@pytest.mark.parametrize("side", [None, "left"])
def test_the_last_columns_alone_with_the_keys_and_values_from_before(side):
    """What a cache relies on: S queries are the last of T columns, and their positions follow from a mask of T."""
    body, (tokens, mask) = gpt2(), texts(side)
    whole = body(tokens, mask).hidden
    seen = {}

    def keep(i, attend):
        def hook(module, arguments):
            q, k, v, mask = arguments
            if i in seen:
                k, v = (torch.cat([old, new], 2) for old, new in zip(seen[i], (k, v), strict=True))
            seen[i] = k, v
            return q, k, v, mask

        attend.register_forward_pre_hook(hook)

    for i, layer in enumerate(body.layers):
        keep(i, layer.attention.attend)
    given = torch.arange(12) if mask is None else None
    parts, done = [], 0
    for stop in (8, 11, 12):
        positions = None if given is None else given[done:stop]
        parts.append(body(tokens[:, done:stop], None if mask is None else mask[:, :stop], None, positions).hidden)
        done = stop
    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    close(torch.cat(parts, 1)[real], whole[real], "hidden states")


@pytest.mark.parametrize("side", [None, "right"])
@pytest.mark.parametrize("dropout", [{"embd_pdrop": 0.5}, {"attn_pdrop": 0.5}, {"resid_pdrop": 0.5}])
def test_dropout_sits_where_the_reference_has_it(dropout, side):
    body = gpt2(**{"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0} | dropout).train()
    reference = twin(body).train()
    tokens, mask = texts(side)
    torch.manual_seed(3)
    ours = body(tokens, mask).hidden
    torch.manual_seed(3)
    expected = reference(tokens, **in_generation(mask), output_hidden_states=True).hidden_states[-1]
    real = slice(None) if mask is None else mask
    close(ours[real], expected[real], "hidden states")
    assert not torch.equal(body.eval()(tokens, mask).hidden[real], ours[real])


def test_initial_weights_and_defaults_are_those_of_transformers():
    theirs = transformers.GPT2Config()
    for name, value in asdict(Gpt2Config()).items():
        if name not in ("pad_token_id", "classifier_dropout"):
            assert getattr(theirs, name) == value, name
    torch.manual_seed(0)
    body = Gpt2(Gpt2Config(vocab_size=90, n_embd=64, n_layer=8, n_head=2, eos_token_id=0))
    layer = body.layers[3]
    for tensor, std in (
        (body.embeddings.word.weight, 0.02),
        (body.embeddings.position.weight, 0.02),
        (layer.attention.qkv.weight, 0.02),
        (layer.feed_forward.hidden.weight, 0.02),
        (layer.attention.output.weight, 0.005),
        (layer.feed_forward.output.weight, 0.005),
    ):
        assert abs(tensor.std() / std - 1) < 0.1
    assert not any(p.any() for name, p in body.named_parameters() if name.endswith("bias"))


PUBLISHED = {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200}


@pytest.mark.parametrize(("size", "parameters"), [*PUBLISHED.items(), ("distilgpt2", 81_912_576)])
def test_the_published_sizes_have_the_names_and_shapes_of_transformers(size, parameters):
    with torch.device("meta"):
        body = Gpt2(Gpt2Config(**SIZES[size]))
        reference = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES[size]))
    assert sum(p.numel() for p in body.parameters()) == parameters
    ours = {name: tensor.shape for name, tensor in to_huggingface(body.state_dict(), body, "transformer.").items()}
    assert ours | {"lm_head.weight": ours["transformer.wte.weight"]} == {n: t.shape for n, t in reference.state_dict().items()}


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_pooling_reads_the_last_real_token_or_all_by_the_mask(pool):
    body = gpt2(pool)
    for side in (None, "right", "left"):
        tokens, mask = texts(side)
        state = body(tokens, mask)
        for row, length in enumerate(LENGTHS if mask is not None else [12] * 4):
            own = state.hidden[row, slice(0, length) if side != "left" else slice(12 - length, 12)]
            close(state.pooled[row], own[-1] if pool == "last" else own.mean(0), "pooled")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_head": 3}, "n_embd 16 is no multiple of n_head 3"),
        ({"eos_token_id": 900}, "eos_token_id is 900; a whole number from 0 to below 90 is expected"),
        ({"activation_function": "swish"}, "activation_function is 'swish'; known are gelu, gelu_new, relu"),
        ({"attn_pdrop": 1.5}, "attn_pdrop is 1.5; a number from 0 to below 1"),
        ({"n_layer": True}, "n_layer is True"),
    ],
)
def test_a_config_that_is_none_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        Gpt2Config(**{"vocab_size": 90, "n_embd": 16, "n_head": 4, "eos_token_id": 0} | changes)


def test_what_it_has_not_is_refused():
    with pytest.raises(ValueError, match="pool 'cls': a Gpt2 has last and mean"):
        tiny_gpt2(pool="cls")
    with pytest.raises(ValueError, match="no token types"):
        gpt2()(texts(None)[0], None, torch.zeros(4, 12, dtype=torch.long))
