"""What the contract runs over: every row of METHODS on tiny bodies, and what is done to them alike.

test_methods.py and test_pairs.py know no method by its name: a row that is added to the table is held to every promise. VARIANTS
are options under which a method builds something else; a promise is kept under them as well.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import loop
import pytest
import torch
import torch.nn.functional as F
from tiny import CONFIG, tiny_body, tiny_efficientnet, tiny_gpt2, tiny_resnet, tiny_roberta
from torch import Tensor, nn

from minift.data.batching import Batch
from minift.methods import METHODS
from minift.methods.surgery import check_tensors, delta, freeze
from minift.optim.adamw import AdamW
from minift.optim.groups import make_groups
from minift.specs import parse

VARIANTS = ("partial:stages=2", "lora:sites=word", "prefix:mlp=6,shift=true", "prompt:pooler=all")
SPECS = (*METHODS, *VARIANTS)
ROWS, WIDTH = 6, 48


class Model(NamedTuple):
    make: Callable[..., nn.Module]  # changes of its config -> body
    inputs: tuple[Tensor | None, ...]  # of the body's forward
    still: dict[str, float]  # changes of its config, without which training draws random numbers
    shallow: dict[str, object]  # and those that leave it the least of layers


def texts() -> tuple[Tensor, Tensor, Tensor]:
    tokens = torch.randint(5, CONFIG.vocab_size, (ROWS, 10), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(10) < torch.tensor([10, 10, 7, 5, 3, 1])[:, None]
    return tokens, mask, (torch.arange(10) >= 4).long().expand(ROWS, 10)


def images() -> tuple[Tensor]:
    return (torch.randn(ROWS, 3, 32, 32, generator=torch.Generator().manual_seed(1)),)


@torch.no_grad()
def wide(make: Callable[..., nn.Module], width: str, **changes) -> nn.Module:
    """A tiny transformer three times as wide, with weights that much smaller, so that a bottleneck of a sixteenth of the width has
    several units: one alone may be dead behind its relu. width: the field of its config.
    """
    body = make(**{width: WIDTH, **changes})
    for parameter in body.parameters():
        if parameter.ndim == 2:
            parameter.mul_((CONFIG.hidden_size / WIDTH) ** 0.5)
    return body


# Of MODELS, without those that differ from one of these in their embeddings alone
APART = ("bert", pytest.param("gpt2", marks=pytest.mark.slow), "resnet")
NONE_OF_GPT2 = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MODELS = {
    "bert": Model(partial(wide, tiny_body, "hidden_size"), texts(), NO_DROPOUT, {"num_hidden_layers": 1}),
    "roberta": Model(partial(wide, tiny_roberta, "hidden_size"), texts()[:2], NO_DROPOUT, {"num_hidden_layers": 1}),
    "gpt2": Model(partial(wide, tiny_gpt2, "n_embd"), texts()[:2], NONE_OF_GPT2, {"n_layer": 1}),
    "resnet": Model(tiny_resnet, images(), {}, {"depths": (1, 1)}),
    "efficientnet": Model(tiny_efficientnet, images(), {"drop_connect_rate": 0.0}, {"num_block_repeats": (1, 1)}),
}


def module_of(spec: str):
    """The file of a method."""
    return importlib.import_module(METHODS[spec.partition(":")[0]].partition(":")[0])


def inputs(model: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor | None, ...]:
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in MODELS[model].inputs)


def plain_body(model: str, dtype: torch.dtype = torch.float64, **changes) -> nn.Module:
    """The same weights at every call."""
    return MODELS[model].make(**changes).to(dtype).eval()


def refusal(apply: Callable[[nn.Module], None], body: nn.Module) -> str | None:
    """What `apply` says against the body, in one line; None where it takes it."""
    try:
        apply(body)
    except ValueError as error:
        assert str(error).strip() and "\n" not in str(error), f"a refusal of {len(str(error).splitlines())} lines: {error}"
        return str(error)
    return None


def operated(*specs: str, on: str, seed: int = 0, body: nn.Module | None = None, dtype: torch.dtype = torch.float64, **changes):
    """A body with the methods applied in this order, in eval mode; skips where one of them refuses."""
    body = body or plain_body(on, dtype, **changes)
    freeze(body)
    torch.manual_seed(seed)
    for spec in specs:
        before = shape(body)
        if said := refusal(parse(spec, METHODS, "--method"), body):
            assert shape(body) == before, f"{spec} on {on}: refused ({said}), and the body was changed"
            pytest.skip(f"{spec} on {on}: {said}")
        check_tensors(body)
    return body


def shape(body: nn.Module) -> list:
    """Which modules there are, and what of them trains."""
    return [
        *((name, id(module)) for name, module in body.named_modules()),
        *((name, id(parameter), parameter.requires_grad) for name, parameter in body.named_parameters()),
    ]


@torch.no_grad()
def randomise(body: nn.Module, std: float = 0.1, seed: int = 7) -> nn.Module:
    """Noise on everything that trains: no zero that a method starts with hides anything."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in body.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_((noise * std).to(parameter.dtype))
    return body


def outputs(body: nn.Module, model: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """(the last hidden states where there is a token, pooled), without a graph."""
    with torch.no_grad():
        state = body(*inputs(model, dtype))
    hidden = state.hidden if getattr(state, "mask", None) is None else state.hidden[state.mask]
    return hidden, state.pooled


def same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> bool:
    """Bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def distance(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    """The largest difference anywhere; infinite where shapes differ or a number is not finite."""
    gaps = [
        (a.double() - b.double()).abs().max() if a.shape == b.shape else torch.tensor(torch.inf)
        for a, b in zip(ours, theirs, strict=True)
    ]
    return float(torch.stack(gaps).nan_to_num(torch.inf).max())


def classifier(body: nn.Module, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return loop.classifier(body, 3).to(next(body.parameters()).dtype)


def batch(model: str, dtype: torch.dtype = torch.float64) -> Batch:
    return loop.batch_of(inputs(model, dtype), torch.arange(ROWS) % 3)


def loss_of(task_model: nn.Module, model: str, dtype: torch.dtype = torch.float64) -> Tensor:
    """The loss of one batch, through every entry of the logits."""
    rows = batch(model, dtype)
    return F.cross_entropy(loop.logits(task_model, rows), *rows.targets)


def train(task_model: nn.Module, model: str, steps: int = 3) -> None:
    """Steps of AdamW in train mode, with weight decay; back in eval mode."""
    torch.manual_seed(5)
    task_model.train()
    optimizer = AdamW(make_groups(task_model, 1e-3, weight_decay=0.1))
    for _ in range(steps):
        loss_of(task_model, model).backward()
        optimizer.step()
        optimizer.zero_grad()
    task_model.eval()


def copied(body: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in body.state_dict().items()}


def changed(body: nn.Module, before: dict[str, Tensor]) -> list[str]:
    """The tensors of the body that are not, bit for bit, what they were."""
    now = body.state_dict()
    assert now.keys() == before.keys()
    return [name for name, tensor in now.items() if not torch.equal(tensor, before[name])]


def trained(body: nn.Module) -> dict[str, nn.Parameter]:
    """What of a delta is trained by gradients."""
    return {name: tensor for name, tensor in delta(body).items() if tensor.requires_grad}
