"""Two methods in one layer against the formula of what they do together, written out: float64, 1e-10."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from contract.bodies import WIDTH, inputs, operated, outputs, plain_body, randomise, refusal, same, trained
from torch import Tensor, nn

from minift.methods import METHODS
from minift.methods.surgery import delta, freeze, lengthened
from minift.specs import parse

close = partial(torch.testing.assert_close, rtol=0, atol=1e-10)


def random(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bert(*specs: str):
    """(a body with the methods in this order and noise on all that trains, the tensors of its delta)"""
    body = randomise(operated(*specs, on="bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), std=0.3)
    return body, {name: tensor.detach() for name, tensor in delta(body).items()}


def ab(d: dict, name: str, x: Tensor, scale: float = 2.0) -> Tensor:
    """s B A x of a LoRA of rank 8 and alpha 16"""
    return scale * x @ d[f"{name}.A"].T @ d[f"{name}.B"].T


def bottleneck(d: dict, name: str, x: Tensor, activation) -> Tensor:
    down = x @ d[f"{name}.adapter.down.weight"].T + d[f"{name}.adapter.down.bias"]
    return activation(down) @ d[f"{name}.adapter.up.weight"].T + d[f"{name}.adapter.up.bias"]


# The method that comes later stands outside: it sees what the earlier one gives.
SAME_LAYER = {
    "lora+ia3, outside": (("lora:sites=value", "ia3"), "layers.1.attention.value", lambda x, y, low, scale: (y + low(x)) * scale),
    "ia3+lora, outside": (("ia3", "lora:sites=value"), "layers.1.attention.value", lambda x, y, low, scale: y * scale + low(x)),
    "lora+ia3, inside": (
        ("lora:sites=feed_forward_output", "ia3"),
        "layers.1.feed_forward.output",
        lambda x, y, low, scale: y(x * scale) + low(x * scale),
    ),
    "ia3+lora, inside": (
        ("ia3", "lora:sites=feed_forward_output"),
        "layers.1.feed_forward.output",
        lambda x, y, low, scale: y(x * scale) + low(x),
    ),
}


@pytest.mark.parametrize("case", SAME_LAYER)
def test_lora_and_ia3_in_one_linear_layer(case):
    specs, name, formula = SAME_LAYER[case]
    body, d = bert(*specs)
    layer = plain_body("bert").get_submodule(name)
    x = random(4, 5, layer.in_features)
    given = layer if "inside" in case else layer(x)
    close(body.get_submodule(name)(x), formula(x, given, partial(ab, d, name), d[f"{name}.scale"]))


def test_houlsby_behind_a_branch_whose_output_has_lora():
    """A(y) sees the branch with the LoRA in it."""
    for specs in (("houlsby", "lora:sites=attention_output"), ("lora:sites=attention_output", "houlsby")):
        body, d = bert(*specs)
        x = random(4, 5, WIDTH)
        plain, seen = plain_body("bert").layers[1].attention, []
        plain.output.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))  # noqa: B023
        y = plain(x, None)
        y = y + ab(d, "layers.1.attention.output", seen[0])
        close(body.layers[1].attention(x, None), y + bottleneck(d, "layers.1.attention", y, F.gelu))


@pytest.mark.parametrize("specs", [("pfeiffer", "houlsby"), ("houlsby", "pfeiffer")], ids="+".join)
def test_pfeiffer_and_houlsby_share_a_norm(specs):
    """s = x + y + A(y), then LN(s + A'(LN(s))): houlsby trains the one LayerNorm that pfeiffer applies twice."""
    body, d = bert(*specs)
    x, branch = random(4, 5, WIDTH), "layers.1.feed_forward"
    y = plain_body("bert").layers[1].feed_forward(x)
    s = x + y + bottleneck(d, branch, y, F.gelu)

    def norm(z: Tensor) -> Tensor:
        return F.layer_norm(z, (WIDTH,), d[f"{branch}_norm.weight"], d[f"{branch}_norm.bias"], 1e-12)

    layer = body.layers[1]
    close(layer.feed_forward_norm(x + layer.feed_forward(x)), norm(s + bottleneck(d, f"{branch}_norm", norm(s), F.relu)))


def attention(layer: nn.Module, x: Tensor, mask: Tensor, P: Tensor | None = None, low: dict | None = None) -> Tensor:
    """softmax((q + low q) [P_K; K]^T / sqrt(d)) [P_V; V + low v] W_o, head by head."""
    low = low or {}
    q, k, v = (getattr(layer, name)(x) + low.get(name, 0) for name in ("query", "key", "value"))
    if P is not None:
        k, v = (torch.cat([p.expand(len(x), -1, -1), y], 1) for p, y in ((P[:, :WIDTH], k), (P[:, WIDTH:], v)))
        mask = torch.cat([mask.new_ones(len(x), len(P)), mask], 1)
    heads, d = [], WIDTH // 4
    for h in range(4):
        part = slice(d * h, d * h + d)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / d**0.5
        heads.append(scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1) @ v[..., part])
    return layer.output(torch.cat(heads, -1))


@pytest.mark.parametrize("specs", [("prefix", "lora"), ("lora", "prefix")], ids="+".join)
def test_prefix_and_lora(specs):
    body, d = bert(*specs)
    x, mask = random(6, 10, WIDTH), inputs("bert")[1]
    name = "layers.1.attention"
    low = {part: ab(d, f"{name}.{part}", x) for part in ("query", "value")}
    expected = attention(plain_body("bert").layers[1].attention, x, mask, d[f"{name}.attend.prefix.keys_values"], low)
    close(body.layers[1].attention(x, mask), expected)


@pytest.mark.parametrize(("shift", "first"), [("false", 0), ("true", 7)])
@pytest.mark.parametrize("prompt_comes_first", [False, True])
def test_prompt_and_prefix(shift, first, prompt_comes_first):
    """The prompt's vectors and the text stand at positions `first`, first+1, ..., and every one of them sees the prefix."""
    specs = ["prompt:length=3", f"prefix:length=7,shift={shift}"]
    body, d = bert(*(specs if prompt_comes_first else specs[::-1]))
    assert lengthened(body) == 3 + first
    tokens, mask, types = inputs("bert")
    plain = plain_body("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    e = plain.embeddings
    words = torch.cat([d["embeddings.word.E"].expand(6, -1, -1), e.word(tokens)], 1)
    kinds = torch.cat([types.new_zeros(6, 3), types], 1)
    x = e.norm(words + e.token_type(kinds) + e.position.weight[first : first + 13])
    every = torch.cat([mask.new_ones(6, 3), mask], 1)
    for i, layer in enumerate(plain.layers):
        P = d[f"layers.{i}.attention.attend.prefix.keys_values"]
        x = layer.attention_norm(x + attention(layer.attention, x, every, P))
        x = layer.feed_forward_norm(x + layer.feed_forward(x))
    state = body(tokens, mask, types)
    close(state.hidden[mask], x[:, 3:][mask])
    close(state.pooled, torch.tanh(plain.pooler.dense(x[:, 3])))
    assert torch.equal(state.mask, mask) and torch.equal(state.tokens, tokens) and torch.equal(state.token_types, types)


@pytest.mark.parametrize("specs", [("full", "lora"), ("lora", "full")], ids="+".join)
def test_full_and_lora(specs):
    """(W + s B A) x + b, where W and b train as well."""
    body, d = bert(*specs)
    x, name = random(4, 5, WIDTH), "layers.1.attention.query"
    assert not torch.equal(d[f"{name}.weight"], plain_body("bert").get_parameter(f"{name}.weight"))
    close(body.get_submodule(name)(x), x @ d[f"{name}.weight"].T + d[f"{name}.bias"] + ab(d, name, x))


def test_bitfit_and_lora_train_the_same_in_both_orders():
    names = [set(trained(operated(*specs, on="bert"))) for specs in (("bitfit", "lora"), ("lora", "bitfit"))]
    biases = {name for name, _ in plain_body("bert").named_parameters() if name.endswith(".bias")}
    factors = {f"layers.{i}.attention.{part}.{leaf}" for i in range(3) for part in ("query", "value") for leaf in "AB"}
    assert names[0] == names[1] == biases | factors


def test_one_method_at_two_sites_is_that_at_both_and_at_one_site_twice_is_refused():
    both = randomise(operated("lora", on="bert"))
    apart = operated("lora:sites=query", "lora:sites=value", on="bert")
    assert trained(apart).keys() == trained(both).keys()
    for name, parameter in trained(apart).items():
        parameter.data.copy_(trained(both)[name])
    assert same(outputs(apart, "bert"), outputs(both, "bert"))
    said = refusal(parse("lora:sites=value", METHODS, "--method"), apart)
    assert "layers.0.attention.value" in said and "LoRA" in said and "A, B" in said


def test_methods_find_their_sites_by_the_names_of_the_plain_model():
    """What a method has added is no site: no LoRA in an adapter's bottleneck, however the pattern reads."""
    body = plain_body("bert")
    freeze(body)
    for spec in ("houlsby", r"lora:sites=layers\..*(down|output)"):
        parse(spec, METHODS, "--method")(body)
    assert {name.rpartition(".")[0] for name in trained(body) if name.endswith(".A")} == {
        f"layers.{i}.{part}.output" for i in range(3) for part in ("attention", "feed_forward")
    }
