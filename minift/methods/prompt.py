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
    """The embeddings of a text to which P ids of no meaning, of type 0, have been prepended."""

    unmergeable = Prompt.unmergeable

    def __init__(self, base: nn.Module, by: int):
        super().__init__(base)
        self.lengthens = by

    def forward(self, state):
        tokens, types, mask = (t if t is None else prepend(t, self.lengthens, t is state.mask) for t in state[:3])
        return self.base(state._replace(tokens=tokens, token_types=types, mask=mask))


class Shortened(Wrapper):
    """A stage behind which the virtual tokens are dropped."""

    unmergeable = Prompt.unmergeable

    def __init__(self, base: nn.Module, by: int):
        super().__init__(base)
        self.by = by

    def forward(self, state):
        state = self.base(state)
        mask = None if state.mask is None else state.mask[:, self.by :]
        return state._replace(
            tokens=state.tokens[:, self.by :],
            token_types=state.token_types[:, self.by :],
            mask=mask,
            hidden=state.hidden[:, self.by :],
        )


def prepend(x: Tensor, columns: int, value: int) -> Tensor:
    return torch.cat([x.new_full((len(x), columns), value), x], 1)  # (B, S) -> (B, P + S)


def prompt(body: nn.Module, *, length: int = 10, init: str = "vocabulary", pooler: str = "text") -> None:
    """Learned vectors before the words'; not mergeable.

    length: P. init: vocabulary or random. pooler: text or all, what it sees.
    """
    words = find(body, "", ("word",))
    (table,) = (plain(module).weight.detach() for module in words.values())
    most = min(body.config.max_position_embeddings - 1, len(table))
    if not 1 <= length <= most:
        raise ValueError(f"length={length}: 1 to {most} is wanted")
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
    wrap(body, find(body, "embeddings"), lambda embeddings: Lengthened(embeddings, length))
    top = find(body, "layer" if pooler == "text" else "pooler")
    last = list(top)[-1]
    wrap(body, {last: top[last]}, lambda stage: Shortened(stage, length))
