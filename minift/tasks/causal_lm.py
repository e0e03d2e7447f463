"""Causal language modelling (Radford et al. 2019): each token from those before it. A run of it trains a decoder from scratch, or
adapts one to a domain; instruction-tuning goes on from it, and `python -m minift.generate RUN "text"` writes with it.

    logits = E h,   loss = -log softmax(logits)[next token]

h is the last hidden state of a token, E the body's word vectors themselves: the head has no weights of its own, and sees what a
method adds to the table (lora:sites=word). Positions whose target does not count never enter the product with E.

    perplexity = exp(L / tokens)     word_perplexity = exp(L / words)     bits_per_byte = L / (bytes log 2)

L is the sum of the losses over all tokens of the texts and the end of each. words are what blanks part, bytes those of UTF-8: the
last two compare models of different vocabularies, the first does not. All of them change with the length of the blocks, as a token
at the start of a block has little before it; the length is printed beside them. (transformers' Trainer averages batch means.)

How texts become blocks, and what is a target: minift/data/causal.py.

Axes: B blocks of a batch, S the longest, T targets that count in all of them, D width, V vocabulary.
Proved by tests/reference/test_causal_lm.py: loss and every gradient of GPT2LMHeadModel, float64, 1e-10.
"""

import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minift.data.batching import Batch, Data
from minift.data.causal import Sequences, blocks_of
from minift.data.documents import Documents, read_documents
from minift.data.examples import Examples
from minift.data.layout import DocumentLayout
from minift.data.masking import NO_LABEL
from minift.errors import UserError
from minift.tasks.masked_lm import BLOCKS, exponential, word_vectors
from minift.tasks.task import Meter, Task, text_defaults


class NextToken(Task):
    """What the tasks share that predict the next token."""

    MODEL: ClassVar = "gpt2"
    OPTIMIZER: ClassVar = "adamw"
    WEIGHT_DECAY: ClassVar = 0.01
    WRITES: ClassVar = True
    LONGEST: ClassVar[int]  # the default of --max-length, if the model can take it

    @classmethod
    def defaults(cls, method: str, checkpoint) -> dict[str, tuple]:
        found = text_defaults(checkpoint, cls.LONGEST)
        if not checkpoint.causal:
            raise UserError(f"{checkpoint.source} is a {checkpoint.architecture}, whose tokens see what follows them; expected a "
                            "decoder, as --model gpt2")  # fmt: skip
        if method == "probe":
            raise UserError("--method probe trains the head alone, and here the head is the word vectors of the model and has no "
                            "weights of its own; expected full, partial, lora, ...")  # fmt: skip
        return found

    def check_length(self, checkpoint, options) -> None:
        if self.max_length > checkpoint.max_length:
            raise UserError(f"--max-length {self.max_length}: the model has {checkpoint.max_length} positions")
        if options is not None and options.init == "random" and self.max_length < checkpoint.max_length:
            print(f"note: --max-length {self.max_length} with --init random: the positions from there to {checkpoint.max_length} "
                  f"never train; give the model n_positions={self.max_length}", file=sys.stderr)  # fmt: skip

    def head(self, body: nn.Module) -> "TiedHead":
        return TiedHead(body)

    def pretrained_head(self, checkpoint) -> dict[str, Tensor]:
        return {}  # it is whole without weights, so it is never new

    def loss(self, outputs: tuple, batch: Batch) -> Tensor:
        return outputs[0].sum(1)  # (B, S) -> (B)

    def predict(self, outputs: Iterable[tuple[int, list]], data: Sequences) -> Iterator[dict]:
        """perplexity, the mean negative log-likelihood of a token, and how many tokens count; None where none does."""
        unit = 0
        for _, units in outputs:
            loss = sum(losses.double().sum().item() for losses, _ in units)
            count = int(data.counts[unit : unit + len(units)].sum())
            unit += len(units)
            yield {"perplexity": exponential(loss, count), "loss": loss / count if count else None, "tokens": count}

    def example(self, examples: Examples) -> str:
        return '"how likely is this text?"'

    def show(self, prediction: dict) -> str:
        value = prediction["perplexity"]
        return "nothing counts" if value is None else f"perplexity {value:.2f} of {prediction['tokens']} tokens"


@dataclass(frozen=True)
class CausalLM(NextToken):
    pool: None
    max_length: int  # tokens of a block
    blocks: str  # within or across documents

    METRICS: ClassVar = {"perplexity": False, "word_perplexity": False, "bits_per_byte": False, "accuracy": True}
    LAYOUT: ClassVar = DocumentLayout
    LONGEST: ClassVar = 256

    def __post_init__(self):
        if self.blocks not in BLOCKS:
            raise ValueError(f"blocks {self.blocks!r}: expected {' or '.join(BLOCKS)}")
        if self.max_length < 2:
            raise ValueError(f"max_length {self.max_length}: expected 2 or more")

    @property
    def by_row(self) -> bool:
        return self.blocks == "within"

    @staticmethod
    def read(source: str | Iterable, layout: DocumentLayout, labelled: bool = True) -> Documents:
        """labelled: for training and evaluation, in blocks as the run has them; else each text is scored by itself."""
        return read_documents(source, layout, filled=labelled)

    @classmethod
    def learn(cls, train: Documents, options) -> "CausalLM":
        return cls(None, options.max_length, options.blocks)

    def prepare(self, examples: Documents, checkpoint, options=None, workers: int = 0) -> Sequences:
        self.check_length(checkpoint, options)
        across, c = self.blocks == "across" and examples.filled, checkpoint.config
        return blocks_of(checkpoint.tokenizer, examples.texts, across, self.max_length, c["eos_token_id"], c["pad_token_id"])

    def meter(self, data: Data) -> "Likelihood":
        return Likelihood(tuple(self.METRICS), f"blocks of at most {self.max_length} tokens {self.blocks} documents")

    def compare(self, examples: Documents, row: int, prediction: dict) -> str:
        return self.show(prediction)


class TiedHead(nn.Module):
    """The word vectors of the body as the last layer. It has no weights, and its files hold none."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.of = (body,)  # in a tuple, so that nothing of the body is registered a second time

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, word_vectors(*self.of))  # (..., D) -> (..., V)

    def forward(self, state: tuple, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """(the loss of each target (B, S), 0 where it does not count; whether it is the most probable one, None in training)"""
        labels = batch.targets[0]
        counted = labels != NO_LABEL
        logits = self.logits(state.hidden[counted])  # (B, S, D) -> (T, D) -> (T, V)
        each = F.cross_entropy(logits, labels[counted], reduction="none")  # (T)
        losses = each.new_zeros(labels.shape).masked_scatter(counted, each)  # (T) -> (B, S)
        if self.training:
            return losses, None
        right = torch.zeros_like(counted).masked_scatter(counted, logits.argmax(-1) == labels[counted])
        return losses, right


class Likelihood(Meter):
    """Sums over the tokens that count; quotients are taken at the end alone."""

    def __init__(self, names: tuple[str, ...], described: str):
        """names: of the metrics that are asked for. described: what the figures depend on."""
        self.names, self.described = names, described
        self.loss, self.right, self.tokens, self.words, self.bytes = 0.0, 0, 0, 0, 0

    def add(self, outputs: tuple, batch: Batch) -> None:
        losses, right = outputs
        labels, *texts = batch.targets
        self.loss += losses.double().sum().item()
        self.right += int(right.sum())
        self.tokens += int((labels != NO_LABEL).sum())
        if texts:
            self.words, self.bytes = self.words + int(texts[0].sum()), self.bytes + int(texts[1].sum())

    def merge(self, other: "Likelihood") -> None:
        for name in ("loss", "right", "tokens", "words", "bytes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def metrics(self) -> dict[str, float | None]:
        found = {
            "perplexity": exponential(self.loss, self.tokens),
            "word_perplexity": exponential(self.loss, self.words),
            "bits_per_byte": self.loss / math.log(2) / self.bytes if self.bytes else None,
            "accuracy": self.right / self.tokens if self.tokens else None,
        }
        return {name: found[name] for name in self.names}

    def table(self) -> str:
        texts = f", {self.words:,} words, {self.bytes:,} bytes" if self.bytes else ""
        return f"perplexity over {self.tokens:,} tokens, ends of text counted{texts}; {self.described}"
