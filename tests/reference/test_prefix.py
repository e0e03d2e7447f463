"""minift.methods.prefix against peft's and adapters' PrefixTuningConfig: hidden states, pooled output, every gradient."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import peft
import pytest
import torch
import transformers
from tiny import tiny_body
from torch import Tensor, nn
from twins import hidden_states, inputs, needs_past_key_values

from minift.formats.huggingface import to_huggingface
from minift.methods.prefix import Encoder, Flat, prefix
from minift.methods.surgery import delta, freeze
from minift.models.bert import Bert
from minift.pretrained import read

MINILM = Path(__file__).parents[2] / "weights" / "minilm-l6"
P, HIDDEN = 5, 7


class Twin(NamedTuple):
    model: nn.Module
    call: Callable  # (tokens, mask, types) -> BERT's output
    parameters: dict[str, Tensor]  # ours -> theirs; one of theirs may hold those of all our layers


def bert(body: Bert) -> transformers.BertModel:
    """transformers' model with weights of its own, equal to those of `body`."""
    reference = transformers.BertModel(transformers.BertConfig(**asdict(body.config))).to(next(body.parameters()).dtype)
    weights = {name: tensor.detach().clone() for name, tensor in body.state_dict().items()}
    reference.load_state_dict(to_huggingface(weights, body, ""))
    return reference.eval()


def in_peft(body: Bert, mlp: int) -> Twin:
    """peft hands the prefix to BERT as a cache of the past; hidden states and pooler are watched inside of its classifier."""
    needs_past_key_values("prefix")
    inner = bert(body)
    classifier = transformers.BertForSequenceClassification(inner.config).to(inner.dtype)
    classifier.bert = inner
    options = {"prefix_projection": True, "encoder_hidden_size": mlp} if mlp else {}
    config = peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=P, **options)
    model = peft.get_peft_model(classifier, config).to(inner.dtype).eval()
    seen = []
    inner.register_forward_hook(lambda module, inputs, output: seen.append(output))

    def call(tokens, mask, types):
        model(tokens, None if mask is None else mask.long(), token_type_ids=types, output_hidden_states=True, return_dict=True)
        return seen.pop()

    encoder = model.prompt_encoder.default
    first, last = (encoder.transform[0], encoder.transform[2]) if mlp else (None, None)
    return Twin(inner, call, parameters(body, encoder.embedding.weight, first, last))


def in_adapters(body: Bert, mlp: int) -> Twin:
    model = bert(body)
    adapters = pytest.importorskip("adapters")
    adapters.init(model)
    options = {"flat": False, "bottleneck_size": mlp} if mlp else {"flat": True}
    model.add_adapter("ours", config=adapters.PrefixTuningConfig(prefix_length=P, **options))
    model.train_adapter("ours")
    model.to(next(body.parameters()).dtype).eval()

    def call(tokens, mask, types):
        return model(tokens, None if mask is None else mask.long(), types, output_hidden_states=True)

    (group,) = model.base_model.prefix_tuning.prefix_tunings["ours"].values()
    if mlp:
        return Twin(model, call, parameters(body, group.wte.weight, group.control_trans[0], group.control_trans[2]))
    return Twin(model, call, parameters(body, group.control_trans, None, None))


def parameters(body: Bert, table: Tensor, first: nn.Linear | None, last: nn.Linear | None) -> dict[str, Tensor]:
    """Our name -> the tensor of theirs that it is all of, or the part of one layer of; both libraries lay them out alike."""
    layers = [f"layers.{i}.attention.attend.prefix" for i in range(len(body.layers))]
    if last is None:
        return {f"{layer}.keys_values": table for layer in layers}
    common = {"E": table, "dense.weight": first.weight, "dense.bias": first.bias}
    return {f"{layers[0]}.encoder.{name}": tensor for name, tensor in common.items()} | {
        f"{layer}.dense.{leaf}": getattr(last, leaf) for layer in layers for leaf in ("weight", "bias")
    }


def ours_of(name: str, theirs: Tensor, body: Bert) -> Tensor:
    """What of one of their tensors, or of its gradient, belongs to the parameter of that name here."""
    i, L = int(name.split(".")[1]), len(body.layers)
    if name.endswith("keys_values"):  # (P, 2LD): K of layer 0, V of layer 0, K of layer 1, ...
        return theirs.view(P, L, -1)[:, i]
    return theirs if ".encoder." in name else theirs.unflatten(0, (L, -1))[i]


def prefixed(body: Bert, build: Callable, mlp: int, shift: bool) -> Twin:
    """The method in the body, and in the library with the same values."""
    torch.manual_seed(3)
    twin = build(body, mlp)
    freeze(body)
    prefix(body, length=P, mlp=mlp, shift=shift)
    with torch.no_grad():
        for name, tensor in delta(body).items():
            tensor.copy_(ours_of(name, twin.parameters[name], body))
    return twin


# Library -> its twin, and which convention of positions it has
LIBRARIES = {"peft": (in_peft, True), "adapters": (in_adapters, False)}
FORMS = {"flat": 0, "mlp": HIDDEN}


@pytest.mark.parametrize(("padded", "pairs"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_twin_in_float64(library, form, padded, pairs):
    build, shift = LIBRARIES[library]
    body = tiny_body(layer_norm_eps=1e-3).double().eval()
    twin = prefixed(body, build, FORMS[form], shift)
    tokens, mask, types = inputs(body.config.vocab_size, padded, pairs)
    expected, state = twin.call(tokens, mask, types), body(tokens, mask, types)

    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    for ours, theirs in zip(hidden_states(body, tokens, mask, types), expected.hidden_states, strict=True):
        torch.testing.assert_close(ours[real], theirs[real], rtol=0, atol=1e-10)
    torch.testing.assert_close(state.pooled, expected.pooler_output, rtol=0, atol=1e-10)

    weight = torch.randn(state.hidden.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for hidden, pooled in ((state.hidden, state.pooled), (expected.last_hidden_state, expected.pooler_output)):
        ((hidden * weight)[real].sum() + pooled.square().sum()).backward()
    trained = {name: p for name, p in delta(body).items() if p.requires_grad}
    assert trained.keys() == twin.parameters.keys()
    assert sum(p.numel() for p in trained.values()) == sum({id(t): t.numel() for t in twin.parameters.values()}.values())
    for name, parameter in trained.items():
        assert parameter.grad.any(), name
        theirs = ours_of(name, twin.parameters[name].grad, body)
        torch.testing.assert_close(parameter.grad, theirs, rtol=0, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("library", LIBRARIES)
def test_positions_are_those_of_the_library(library):
    """peft's text begins at position P, adapters' at 0; the other setting of `shift` is not theirs."""
    build, shift = LIBRARIES[library]
    tokens, mask, types = inputs(tiny_body().config.vocab_size, padded=True, pairs=False)
    body = tiny_body().double().eval()
    twin = prefixed(body, build, 0, not shift)
    positions = []
    table = twin.model.get_submodule("embeddings.position_embeddings")
    table.register_forward_hook(lambda module, inputs, output: positions.append(inputs[0]))
    expected = twin.call(tokens, mask, types)
    first = P if shift else 0
    assert torch.equal(positions[0].flatten(), torch.arange(first, first + 12))
    assert (body(tokens, mask, types).pooled - expected.pooler_output).abs().max() > 1e-3


@pytest.mark.parametrize("library", LIBRARIES)
def test_real_weights_in_float32(library):
    build, shift = LIBRARIES[library]
    checkpoint = read(MINILM)
    body = checkpoint.body().eval()
    twin = prefixed(body, build, 0, shift)
    checkpoint.tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    encoded = checkpoint.tokenizer.encode_batch([("A quiet, unhurried film.", "It stayed with me."), "Never again!"])
    tokens, mask, types = (torch.tensor([getattr(e, name) for e in encoded]) for name in ("ids", "attention_mask", "type_ids"))
    with torch.inference_mode():
        state, expected = body(tokens, mask.bool(), types), twin.call(tokens, mask.bool(), types)
    torch.testing.assert_close(state.hidden[mask.bool()], expected.last_hidden_state[mask.bool()], rtol=0, atol=1e-5)
    torch.testing.assert_close(state.pooled, expected.pooler_output, rtol=0, atol=1e-5)


def test_start():
    """std is that of what stands for peft's embedding: the flat prefix, or E; W and W_i are torch's own."""
    body = tiny_body()
    freeze(body)
    torch.manual_seed(0)
    prefix(body, length=400, std=0.5)
    for layer in body.layers:
        assert isinstance(layer.attention.attend.prefix, Flat)
        assert abs(layer.attention.attend.prefix.keys_values.std() / 0.5 - 1) < 0.05
    torch.manual_seed(0)
    encoder = Encoder(400, 16, 8, 0.5, {})
    assert abs(encoder.E.std() / 0.5 - 1) < 0.05 and encoder.dense.weight.abs().max() <= 16**-0.5


@pytest.mark.parametrize("options", [{"length": 0}, {"mlp": -1}, {"std": 0.0}])
def test_values_out_of_range_are_refused_in_one_line(options):
    body = tiny_body()
    before = [id(module) for module in body.modules()]
    with pytest.raises(ValueError, match="a finite std above 0") as error:
        prefix(body, **options)
    assert "\n" not in str(error.value) and before == [id(module) for module in body.modules()]


@pytest.mark.parametrize("shift", [False, True])
def test_both_shapes_of_a_mask_and_given_positions(shift):
    """A mask for each row that says what the mask of columns says, and the positions that are counted anyway: nothing changes.
    Of two texts packed into one row each sees the prefix and itself.
    """
    body = tiny_body().double().eval()
    freeze(body)
    prefix(body, length=P, shift=shift)
    tokens, mask, types = inputs(body.config.vocab_size, padded=True, pairs=True)
    state = body(tokens, mask, types)
    again = body(tokens, mask[:, None, None].expand(-1, 1, 12, -1), types, torch.arange(12))
    assert torch.equal(again.hidden, state.hidden) and torch.equal(again.pooled, state.pooled)

    text = torch.tensor([0] * 5 + [1] * 7)
    positions = torch.tensor([*range(5), *range(7)])
    state = body(tokens, (text[:, None] == text).expand(4, 1, 12, 12), types, positions)
    for part in (slice(0, 5), slice(5, 12)):
        alone = body(tokens[:, part], None, types[:, part])
        torch.testing.assert_close(state.hidden[:, part], alone.hidden, rtol=0, atol=1e-10)
