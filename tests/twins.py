"""A tiny body with a method of minift, and its twin: the libraries' model of the same weights with the same method of peft."""

import copy
import re
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from tiny import tiny_body, tiny_gpt2, tiny_resnet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from minift.formats.huggingface import look_up_module, to_huggingface
from minift.methods.surgery import freeze, merge, plain_name
from minift.models.body import Body

# Leaf of a parameter that a wrapper adds -> its name in peft's layer, of a Linear or Conv2d or of an Embedding
LEAVES = {
    "A": r"lora_(A\.default\.weight|embedding_A\.default)",
    "B": r"lora_(B\.default\.weight|embedding_B\.default)",
    "m": r"lora_magnitude_vector\.default\.weight",
    "scale": r"ia3_l\.default",
}
AROUND_ONE = ("m", "scale")  # randomised as factors, all others as summands


def needs_past_key_values(method: str) -> None:
    """Skip a prefix of peft's where it cannot run: it is handed to BERT, and to a classifier of GPT-2, as past key values."""
    if "prefix" in method and int(pytest.importorskip("transformers").__version__.partition(".")[0]) >= 5:
        pytest.skip("in transformers 5 it takes no past key values, by which peft hands it a prefix")


class Net(nn.Sequential, Body):
    """Bare layers, named 0, 1, ..., in place of a body."""

    SITES: ClassVar = {}
    HUGGINGFACE: ClassVar = {str(i): str(i) for i in range(10)}

    @property
    def stages(self) -> dict[str, tuple[str, ...]]:
        return {name: (name,) for name, _ in self.named_children()}

    def numbering(self) -> list[dict[str, int]]:
        return []


def bert(dropout: float = 0.0) -> nn.Module:
    return tiny_body(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, layer_norm_eps=1e-3).double()


def gpt2(dropout: float = 0.0) -> nn.Module:
    off = dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), dropout)
    return tiny_gpt2(layer_norm_epsilon=1e-3, **off).double()


def resnet() -> nn.Module:
    return tiny_resnet().double()


def net(*layers: nn.Module) -> nn.Module:
    return Net(*layers).double()


def texts() -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, mask and token types; ids of padding stand where the mask says so, and one where it does not."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(12) < torch.tensor([12, 7, 3, 1])[:, None]
    tokens = torch.randint(5, 60, (4, 12), generator=generator) * mask
    tokens[0, 4] = 0
    return tokens, mask, (torch.arange(12) >= 5).long().expand(4, 12)


def inputs(vocabulary: int, padded: bool, pairs: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(tokens, mask, token types) of four rows."""
    tokens = torch.randint(vocabulary, (4, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(12) < torch.tensor([12, 7, 3, 1])[:, None] if padded else None
    types = (torch.arange(12) >= 5).long().expand(4, 12) if pairs else None
    return tokens, mask, types


def hidden_states(body: nn.Module, tokens, mask, types) -> list[Tensor]:
    """What the embeddings and every layer of a BERT give."""
    state, hidden = body.begin(tokens, mask, types), []
    for stage in body.walk():
        state = stage(state)
        hidden.append(state.hidden)
    return hidden[: len(body.layers) + 1]


def images(channels: int = 3) -> tuple[Tensor]:
    return (torch.randn(3, channels, 36, 44, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),)


def reference(body: nn.Module) -> nn.Module:
    """transformers' model with the weights of `body`, in memory of its own."""
    import transformers

    if isinstance(body, Net):
        return nn.Sequential(*copy.deepcopy(list(body)))
    c = body.config
    if hasattr(c, "depths"):
        sizes = {"embedding_size": c.embedding_size, "hidden_sizes": list(c.hidden_sizes), "depths": list(c.depths)}
        theirs = transformers.ResNetModel(transformers.ResNetConfig(**sizes, layer_type="bottleneck"))
    elif hasattr(c, "n_layer"):
        theirs = transformers.GPT2Model(transformers.GPT2Config(**vars(c)))
    else:
        theirs = transformers.BertModel(transformers.BertConfig(**vars(c)))
    weights = {name: tensor.detach().clone() for name, tensor in body.state_dict().items()}
    theirs.to(next(body.parameters()).dtype).load_state_dict(to_huggingface(weights, body, ""), strict=True)
    return theirs


def twins(body: nn.Module, method: Callable[[nn.Module], None], config) -> tuple[nn.Module, nn.Module]:
    """The body after the method of minift, and peft's model with the same weights; what trains is random and the same in both."""
    import peft

    theirs = peft.get_peft_model(reference(body), config)
    freeze(body)
    method(body)
    generator = torch.Generator().manual_seed(2)
    for name, (ours, other) in trained(body, theirs).items():
        noise = torch.randn(ours.shape, generator=generator, dtype=ours.dtype) * 0.3
        with torch.no_grad():
            ours.copy_(ours * (1 + noise) if name.endswith(AROUND_ONE) else noise)
            other.copy_(ours.view_as(other))
    return body, theirs


def trained(body: nn.Module, theirs: nn.Module) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Name in the plain model of everything that trains -> the parameter here, and peft's. Neither trains anything else."""
    left = {name: p for name, p in theirs.base_model.model.named_parameters() if p.requires_grad}
    pairs = {}
    for name, ours in body.named_parameters():
        if ours.requires_grad:
            site, _, leaf = plain_name(name).rpartition(".")
            there = re.escape(look_up_module(site, body.HUGGINGFACE, body.numbering()))
            (match,) = (other for other in left if re.fullmatch(rf"{there}\.{LEAVES[leaf]}", other))
            pairs[plain_name(name)] = ours, left.pop(match)
    assert pairs and not left, f"only peft trains {list(left)}"
    return pairs


def outputs(model: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """(hidden, pooled) of a model, (y,) of bare layers; the mask goes in as numbers, which both libraries take.

    given: of a decoder tokens and mask; of what it gives for padding nothing is promised.
    """
    if len(given) == 2:
        tokens, mask = given
        ours = isinstance(model, Body)
        hidden = model(tokens, mask).hidden if ours else model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        return (hidden[mask],)
    state = model(*given)
    if isinstance(state, Tensor):
        return (state,)
    if hasattr(state, "pooled"):
        return state.hidden, state.pooled
    return state.last_hidden_state, state.pooler_output.flatten(1)


def close(ours: Tensor, theirs: Tensor, what: str, atol: float = 1e-10) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol, msg=lambda text: f"{what}: {text}")


def assert_twins(body: nn.Module, theirs: nn.Module, given: tuple[Tensor, ...], train: bool) -> None:
    """Outputs and the gradient of everything that trains are equal, with the same random numbers for dropout."""
    pairs = trained(body, theirs)
    body.train(train)
    theirs.train(train)
    for module in theirs.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    found = {}
    for model in (body, theirs):
        torch.manual_seed(3)
        found[model] = outputs(model, given)
        generator = torch.Generator().manual_seed(4)
        weights = [torch.randn(y.shape, generator=generator, dtype=y.dtype) for y in found[model]]
        sum((y * w).sum() for y, w in zip(found[model], weights, strict=True)).backward()
    for ours, expected in zip(found[body], found[theirs], strict=True):
        close(ours, expected, "output")
    for name, (ours, other) in pairs.items():
        assert other.grad.any(), name
        close(ours.grad.view_as(other), other.grad, name)
    assert all(p.grad is None for p in body.parameters() if not p.requires_grad)


def assert_merged_twins(body: nn.Module, theirs: nn.Module, given: tuple[Tensor, ...]) -> None:
    """Merged, every tensor is peft's, and the plain model computes what the wrapped one did."""
    before = [y.detach() for y in outputs(body.eval(), given)]
    merge(body)
    expected = theirs.merge_and_unload().state_dict()
    merged = to_huggingface(body.state_dict(), body, "")
    assert merged.keys() == expected.keys()
    for name, tensor in merged.items():
        close(tensor, expected[name], name)
    for y, was in zip(outputs(body, given), before, strict=True):
        close(y, was, "output")


def assert_refused(methods: tuple[Callable, ...], base: Callable[[], nn.Module], sites: str, said: str) -> None:
    """The last of the methods, at the sites where the others stand already, says so in one line."""
    body = base()
    freeze(body)
    for method in methods[:-1]:
        method(body, sites=sites)
    with pytest.raises(ValueError, match=said) as refused:
        methods[-1](body, sites=sites)
    assert "\n" not in str(refused.value)
