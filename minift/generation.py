"""Text from a decoder, token by token: greedy or by chance, with the keys and values of the tokens before kept.

    p = softmax(logits / temperature), of these the top_k most probable, of these the fewest that have top_p together

is what a token is drawn from (Holtzman et al. 2020, arXiv:1904.09751, section 3.1, for top_p), in transformers' order; temperature
0 takes the most probable token. Row i of a batch draws from a generator of its own, seeded by seed + i, so that what is written for
it does not depend on the rows beside it.

The model stays the textbook one: `Cached` wraps its `attend` from outside, and puts the keys and values of all tokens before in
front of the new ones'. Whatever a method has put inside (a prefix, LoRA) stays there. Prompts of a batch are padded on the left, so
that the next token of every row stands in the same column; the mask hides the padding, and positions count tokens alone.

Axes: B rows of a batch, S new tokens, T tokens so far, H heads, d width of a head, D width, V vocabulary.
Proved by tests/reference/test_generation.py: tokens of transformers' `generate`, and the probabilities of its sampling, in float64.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from minift.data.examples import check_characters
from minift.data.instructions import Piece, conversation, tokenised
from minift.errors import UserError
from minift.finetuned import choose_device
from minift.methods.prompt import Lengthened, Prompt, Shortened
from minift.methods.surgery import Wrapper, find, lengthened, put, wrap
from minift.optim.precision import Float32, by_name
from minift.pretrained import find as find_checkpoint
from minift.pretrained import read
from minift.tasks.masked_lm import word_vectors

ONCE = (Prompt, Lengthened, Shortened)  # wrappers that put something before a text, and not before each token that follows
END, STOP, TOKENS, WINDOW = "end of text", "stop string", "number of tokens", "window"  # why a text is over


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen, and what ends a text besides an end of text."""

    new_tokens: int = 200  # at most
    temperature: float = 0.0  # 0: the most probable token
    top_k: int | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()  # texts that end what is written, and are no part of it
    seed: int = 0


@dataclass
class Written:
    """What has been written after a prompt."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    over: str | None = None  # why: END, STOP, TOKENS or WINDOW; None: it is not

    def settled(self, stop: tuple[str, ...]) -> str:
        """The part of the text that the next tokens do not change: without half a character, or what may begin a stop string."""
        if self.over:
            return self.text
        text = self.text.rstrip("\ufffd")
        held = max((n for one in stop for n in range(1, len(one)) if text.endswith(one[:n])), default=0)
        return text[: len(text) - held]


class Cached(Wrapper):
    """`attend` that sees the keys and values of all calls so far."""

    unmergeable = "it is there while a text is written"

    def __init__(self, base: nn.Module, room: int):
        super().__init__(base)
        self.room, self.length, self.keys_values = room, 0, None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        B, H, S, d = k.shape
        if self.keys_values is None:
            self.keys_values = k.new_empty(2, B, H, self.room, d)
        new, self.length = slice(self.length, self.length + S), self.length + S
        self.keys_values[0, :, :, new], self.keys_values[1, :, :, new] = k, v
        keys, values = self.keys_values[:, :, :, : self.length]  # (B, H, T, d) each
        return self.base(q, keys, values, mask)


@contextmanager
def cached(body: nn.Module, room: int) -> Iterator[list]:
    """Inside, a forward sees the tokens of those before it, at most `room` in all; the body is for one batch at a time.

    What is put into the list, (parent, name, module), is put back in the end.
    """
    sites, out = find(body, "attend"), []
    wrap(body, sites, lambda attend: Cached(attend, room))
    try:
        yield out
    finally:
        for parent, name, module in reversed(out):
            parent._modules[name] = module
        for name, attend in sites.items():
            put(body, name, attend)


def take_out(body: nn.Module, kinds: tuple[type, ...]) -> list[tuple[nn.Module, str, nn.Module]]:
    """Take these wrappers out of the body. Returns (parent, name, wrapper) of each, in order."""
    found = []
    for parent in list(body.modules()):
        for name, module in list(parent._modules.items()):
            while isinstance(module, kinds):
                found.append((parent, name, module))
                parent._modules[name] = module = module.base
    return found


def kept(logits: Tensor, sampling: Sampling) -> Tensor:
    """(B, V) -> (B, V) the probabilities that a token is drawn with. Tokens as probable as the last one of top_k stay, too."""
    logits = logits / sampling.temperature
    if sampling.top_k is not None:
        least = logits.topk(min(sampling.top_k, logits.shape[-1]), -1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p is not None:
        p, order = logits.softmax(-1).sort(-1, descending=True)
        beyond = p.cumsum(-1) - p >= sampling.top_p  # those before it have top_p already
        beyond[:, 0] = False
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), -torch.inf)
    return logits.softmax(-1)


def draw(logits: Tensor, sampling: Sampling, random: list[torch.Generator]) -> Tensor:
    """(B, V) -> (B) a token for each row."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    p = kept(logits, sampling).cpu()
    return torch.cat([row.multinomial(1, generator=one) for row, one in zip(p, random, strict=True)])


@dataclass
class Writer:
    """A decoder and what it takes to write with it."""

    body: nn.Module
    tokenizer: Tokenizer
    end: int  # id of the end of text
    form: str | None = None  # what a text is taken for, as of InstructionTuning; None: a text to go on with
    precision: AbstractContextManager = field(default_factory=Float32)

    @property
    def window(self) -> int:
        """The most tokens that have a position each."""
        return self.body.config.max_length - lengthened(self.body)

    def ids(self, pieces: list[Piece]) -> np.ndarray:
        """The ids of a prompt, as in training. Raises UserError for a text that is no UTF-8."""
        for piece in pieces:
            check_characters(piece.text, "the text")
        return tokenised(self.tokenizer, [pieces], self.end)[0][0]

    def prompt(self, text: str) -> np.ndarray:
        """A text as a prompt: of a run of instruction-tuning, on instructions or messages, under its heading."""
        return self.ids([Piece(text)] if self.form in (None, "prompt") else conversation([("user", text)]))

    @torch.no_grad()
    def logits(self, E: Tensor, *inputs: Tensor | None) -> Tensor:
        """(B, V) of the token behind the last column."""
        with self.precision:
            logits = F.linear(self.body(*inputs).hidden[:, -1], E)  # (B, S, D) -> (B, V)
        return logits.float() if logits.dtype.itemsize < 4 else logits

    def write(self, prompts: list[tuple[int, np.ndarray]], sampling: Sampling) -> Iterator[list[Written]]:
        """After each step what has been written so far, the same objects all the time.

        prompts: of each row its number, for its seed, and its ids, at least one and at most `window`.
        """
        numbers, prompts = zip(*prompts, strict=True)
        self.body.eval()
        device, lengths = next(self.body.parameters()).device, torch.tensor([len(ids) for ids in prompts])
        if not 1 <= lengths.min() <= lengths.max() <= self.window:
            raise UserError(f"a prompt of {lengths.max():,} tokens; the window of the model takes from 1 to {self.window:,}")
        T, written = int(lengths.max()), [Written() for _ in prompts]
        random = [torch.Generator().manual_seed(sampling.seed + i) for i in numbers]
        padding = (T - lengths).unsqueeze(1)  # (B, 1), on the left
        tokens = torch.stack([F.pad(torch.as_tensor(ids), (T - len(ids), 0), value=self.end) for ids in prompts])  # (B, T)
        mask = (torch.arange(T) >= padding).to(device) if padding.any() else None
        positions = (torch.arange(T) - padding).clamp(min=0)
        virtual = sum(module.lengthens for module in self.body.modules() if isinstance(module, Lengthened))
        most = min(sampling.new_tokens, self.window + 1 - int(lengths.min()))  # new tokens of a row, also where more are asked for
        with cached(self.body, virtual + T + most) as out:
            E, inputs = self.table(), (tokens.to(device), mask, None, positions.to(device))
            for number in count(1):
                chosen = draw(self.logits(E, *inputs), sampling, random)
                for one, length, token in zip(written, lengths.tolist(), chosen.tolist(), strict=True):
                    if not one.over:
                        self.take(one, token, length, sampling)
                yield written
                if all(one.over for one in written):
                    return
                if number == 1:
                    out += take_out(self.body, ONCE)
                    positions = positions + virtual
                    mask = None if mask is None else F.pad(mask, (virtual, 0), value=True)
                positions = (positions[:, -1:] + 1).clamp(max=self.window + virtual - 1)  # rows that are over stay where they are
                mask = None if mask is None else F.pad(mask, (0, 1), value=True)
                inputs = (chosen.unsqueeze(1).to(device), mask, None, positions.to(device))

    @torch.no_grad()
    def table(self) -> Tensor:
        return word_vectors(self.body)

    def take(self, one: Written, token: int, length: int, sampling: Sampling) -> None:
        """Another token of a row whose prompt has so many."""
        if token == self.end:
            one.over = END
            return
        one.tokens.append(token)
        one.text = self.tokenizer.decode(one.tokens, skip_special_tokens=False)
        if found := [at for stop in sampling.stop if (at := one.text.find(stop)) >= 0]:
            one.text, one.over = one.text[: min(found)], STOP
        elif len(one.tokens) == sampling.new_tokens:
            one.over = TOKENS
        elif length + len(one.tokens) > self.window:
            one.over = WINDOW


def open_writer(name: str, device: str | None = None) -> Writer:
    """name: a run of causal-lm or of instruction-tuning, or a converted decoder. device: as torch names it.

    Raises UserError for a model that cannot write.
    """
    checkpoint = read(find_checkpoint(name))
    task = checkpoint.task or {"name": "causal-lm"}
    if not checkpoint.causal or task["name"] not in ("causal-lm", "instruction-tuning"):
        what = f"a run of {task['name']}" if checkpoint.task else f"a {checkpoint.architecture}"
        raise UserError(f"{name}: {what} writes no text; expected a run of causal-lm or instruction-tuning, or a decoder as gpt2")
    body = checkpoint.tuned_body() if checkpoint.task else checkpoint.body(None)
    body = body.to(choose_device(device)).eval()
    precision = by_name((checkpoint.settings or {}).get("precision", "float32"), body)
    return Writer(body, checkpoint.tokenizer, checkpoint.config["eos_token_id"], task.get("form"), precision)


def last(steps: Iterator[list[Written]]) -> list[Written]:
    """What is written in the end."""
    return deque(steps, maxlen=1)[0]
