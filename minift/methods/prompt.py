"""Prompt tuning (Lester et al. 2021, arXiv:2104.08691, section 2): P learned vectors stand before the words' at the input.

    x = dropout(LN([E; word[t]] + token_type + position))

The virtual tokens have token type 0 and positions 0 .. P-1, the text's start at P, as in peft; every layer sees them, and a task
sees the text's tokens alone. What the pooler reads is an option: `pooler=text` the text's own tokens, [CLS] first; `pooler=all` the
virtual ones before them too, as in peft.
E starts as the vectors of P tokens drawn from the vocabulary (Lester et al., section 3.2); `init=random` is peft's, N(0, 1).
Differs from the paper in that it is an encoder that is prompted, and in drawing from all of the vocabulary, not from its most
common part.

Axes: B batch, P virtual tokens, S sequence, D width.
Proved by tests/reference/test_prompt.py: peft's outputs and gradients, float64, 1e-10.
"""

import torch
from torch import Tensor, nn

from minift.methods.surgery import Wrapper, find, plain, wrap

EPOCHS = 10
STARTS_AS_PRETRAINED = False
PEFT_NAME = "prompt_embeddings"


def lr(optimizer: str, width: int) -> float:
    """SGD: 3e-1. AdamW: 3e-2."""
    return 3e-1 if optimizer == "sgd" else 3e-2


class Prompt(Wrapper):
    """The table of word vectors: the first P columns of the ids that come in stand for E."""

    unmergeable = "a prompt is no change of a weight"

    def __init__(self, base: nn.Module, start: Tensor):
        super().__init__(base)
        self.E = nn.Parameter(start)

    def forward(self, tokens: Tensor) -> Tensor:
        words = self.base(tokens[:, len(self.E) :])  # (B, P + S) -> (B, S, D)
        return torch.cat([self.E.to(words.dtype).expand(len(words), -1, -1), words], 1)  # -> (B, P + S, D)


class Lengthened(Wrapper):
    """The embeddings of a text to which P ids of no meaning, of type 0, have been prepended.

    Of an explicit mask (B, 1, S, S) every row of the text sees the virtual tokens. Those see each other, and of the text what
    every token sees: with padding alone that is the text, and between packed texts nothing leaks through them.
    """

    unmergeable = Prompt.unmergeable

    def __init__(self, base: nn.Module, by: int, filler: int, first: int):
        """filler: an id that is not padding. first: the position of the first token."""
        super().__init__(base)
        self.lengthens = by
        self.filler = filler
        self.first = first

    def forward(self, state):
        P, positions = self.lengthens, state.positions
        if positions is not None:
            virtual = torch.arange(self.first, self.first + P, device=positions.device)
            positions = torch.cat([virtual.expand(*positions.shape[:-1], P), positions + P], -1)  # (..., S) -> (..., P + S)
        longer = state._replace(
            tokens=pad_left(state.tokens, P, self.filler),
            token_types=pad_left(state.token_types, P, 0),
            mask=None if state.mask is None else with_virtual(state.mask, P),
            positions=positions,
        )
        return self.base(longer)._replace(positions=state.positions)


class Shortened(Wrapper):
    """A stage behind which the virtual tokens are dropped."""

    unmergeable = Prompt.unmergeable

    def __init__(self, base: nn.Module, by: int):
        super().__init__(base)
        self.by = by

    def forward(self, state):
        state, P = self.base(state), self.by
        mask, types = state.mask, state.token_types
        if mask is not None:
            mask = mask[:, P:] if mask.ndim == 2 else mask[..., P:, P:]
        types = None if types is None else types[:, P:]
        return state._replace(tokens=state.tokens[:, P:], token_types=types, mask=mask, hidden=state.hidden[:, P:])


def pad_left(x: Tensor | None, columns: int, value: int | bool) -> Tensor | None:
    return None if x is None else torch.cat([x.new_full((*x.shape[:-1], columns), value), x], -1)  # (..., S) -> (..., P + S)


def with_virtual(mask: Tensor, columns: int) -> Tensor:
    """The mask of the virtual tokens and the text: (B, P + S), or (B, 1, P + S, P + S)."""
    if mask.ndim == 4:
        sees_some = mask.any(-1, keepdim=True)  # rows of padding see nothing
        common = (mask | ~sees_some).all(-2, keepdim=True) & sees_some.any(-2, keepdim=True)  # (B, 1, 1, S)
        mask = torch.cat([common.expand(-1, -1, columns, -1), mask], -2)  # (B, 1, P + S, S)
    return pad_left(mask, columns, True)


def prompt(body: nn.Module, *, length: int = 10, init: str = "vocabulary", pooler: str = "text") -> None:
    """Learned vectors before the words'; not mergeable.

    length: P. init: vocabulary or random. pooler: text or all, what it sees.
    """
    words = find(body, "", ("word",))
    (table,) = (plain(module).weight.detach() for module in words.values())
    most = min(body.config.max_length - 1, len(table))
    if not 1 <= length <= most:
        raise ValueError(f"length={length}: 1 to {most} is expected")
    for option, value, known in (("init", init, ("vocabulary", "random")), ("pooler", pooler, ("text", "all"))):
        if value not in known:
            raise ValueError(f"{option}={value}: known are {', '.join(known)}")
    if pooler == "all" and body.pooler is None:
        raise ValueError("pooler=all: the body has no pooler")
    if init == "random":
        start = torch.randn_like(table[:length])
    else:
        start = table[torch.randperm(len(table), device=table.device)[:length]].clone()
    wrap(body, words, lambda word: Prompt(word, start))
    (positions,) = (plain(module) for module in find(body, "positions").values())
    filler = 0 if body.config.pad_token_id != 0 else 1
    wrap(body, find(body, "embeddings"), lambda embeddings: Lengthened(embeddings, length, filler, positions.first))
    top = find(body, "layer" if pooler == "text" else "pooler")
    last = list(top)[-1]
    wrap(body, {last: top[last]}, lambda stage: Shortened(stage, length))
