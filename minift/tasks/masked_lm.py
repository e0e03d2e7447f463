"""Masked language modelling (Devlin et al. 2019, arXiv:1810.04805, section 3.1): the tokens that were masked, from what surrounds
them. A run of it adapts a body to a domain (Gururangan et al. 2020, arXiv:2004.10964); other tasks go on from it: --model RUN.

    t      = LN(gelu(W h + b))                    h the last hidden state of a masked token
    logits = E t + c,   loss = -log softmax(logits)[token]

E are the body's word vectors themselves: the head holds no copy, and sees what a method adds to them (lora:sites=word). So E trains
exactly where the body's embeddings do, also by what flows through the head. Positions that are not masked do not enter the head.
W, b, LN and c are taken from the checkpoint where it has such a head, and are new else.

    perplexity = exp(sum of the losses / number of masked tokens)

over all blocks, with masks that depend on the block alone, so that the figure does not change with seed or batch size. It does
change with the length of the blocks, which is printed beside it. What is masked: minift/data/masking.py.
The loss of a batch in transformers is the mean over its masked tokens: the same for one batch; over accumulated batches of
unequal numbers of masked tokens it is not, and here it is still that of the one large batch.

Axes: B blocks of a batch, S the longest block, M the most masked tokens in one, D width, V vocabulary, K candidates.
Proved by tests/reference/test_masked_lm.py: loss and every gradient of BertForMaskedLM and RobertaForMaskedLM, float64, 1e-10.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minift.data.batching import Batch, Data
from minift.data.documents import Documents, read_documents
from minift.data.layout import DocumentLayout
from minift.data.masking import NO_LABEL, Blocks, blocks_of, vocabulary_of
from minift.errors import UserError
from minift.tasks.task import Meter, Task, text_defaults

BLOCKS = ("within", "across")
MASKINGS = ("exact", "whole-words", "coin")
CANDIDATES = 5  # K
LARGEST = 700.0  # of a mean loss whose exponential is a float


@dataclass(frozen=True)
class MaskedLM(Task):
    pool: None
    max_length: int  # tokens of a block
    blocks: str  # within or across documents
    masking: str  # exact, coin or whole-words
    mask_share: float

    MODEL: ClassVar = "minilm-l6"
    OPTIMIZER: ClassVar = "adamw"
    WEIGHT_DECAY: ClassVar = 0.01
    METRICS: ClassVar = {"perplexity": False, "accuracy": True}
    LAYOUT: ClassVar = DocumentLayout
    FISHER: ClassVar = ("drawn", "data")

    def __post_init__(self):
        for name, value, known in (("blocks", self.blocks, BLOCKS), ("masking", self.masking, MASKINGS)):
            if value not in known:
                raise ValueError(f"{name} {value!r}: expected {' or '.join(known)}")
        if not 0 < self.mask_share < 1 or self.max_length < 5:
            raise ValueError(f"mask_share {self.mask_share}, max_length {self.max_length}: expected a share below 1, and 5 or more")

    @property
    def by_row(self) -> bool:
        return self.blocks == "within"

    @classmethod
    def defaults(cls, method: str, checkpoint) -> dict[str, tuple]:
        return text_defaults(checkpoint, both_sides=True)

    @staticmethod
    def read(source: str | Iterable, layout: DocumentLayout, labelled: bool = True) -> Documents:
        """labelled: words are to be masked; else the texts have masks, to be filled in."""
        return read_documents(source, layout, filled=labelled)

    @classmethod
    def learn(cls, train: Documents, options) -> "MaskedLM":
        return cls(None, options.max_length, options.blocks, options.masking, options.mask_share)

    def prepare(self, examples: Documents, checkpoint, options=None, workers: int = 0) -> Blocks:
        if self.max_length > checkpoint.max_length:
            raise UserError(f"--max-length {self.max_length}: the model has {checkpoint.max_length} positions")
        tokenizer = checkpoint.tokenizer
        try:
            vocabulary = vocabulary_of(tokenizer, checkpoint.config["pad_token_id"])
        except ValueError as error:
            raise UserError(f"{checkpoint.source}: {error}, so nothing can be masked") from None
        across, texts = self.blocks == "across" and examples.filled, examples.texts
        if not examples.filled:  # a mask may be written as [MASK], whatever the tokenizer calls it
            texts = [text.replace("[MASK]", tokenizer.id_to_token(vocabulary.mask)) for text in texts]
        blocks = blocks_of(tokenizer, texts, examples.numbers, across, self.max_length, vocabulary)
        if not examples.filled and not any((ids == vocabulary.mask).any() for ids in blocks[0]):
            raise UserError(f"{examples.path}: no [MASK] in it, so there is nothing to fill in; as 'The film was [MASK].'")
        tokens, begins, row_of, keys, parted = blocks
        return Blocks(
            tokens,
            begins,
            row_of,
            keys,
            vocabulary,
            tokenizer,
            self.masking if examples.filled else None,
            self.mask_share,
            self.max_length,
            parted,
            None if options is None else options.seed,
        )

    def head(self, body: nn.Module) -> "MaskedLMHead":
        return MaskedLMHead(body)

    def pretrained_head(self, checkpoint) -> dict[str, Tensor] | None:
        own = checkpoint.head if (checkpoint.task or {}).get("name") == "masked-lm" else None
        return own or checkpoint.heads.get("masked-lm")

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """logits: (B, M, V). batch.targets: positions (B, M), labels (B, M)."""
        return losses(logits, batch.targets[1]).sum(1)  # (B, M) -> (B)

    def drawn(self, logits: Tensor, batch: Batch, generator: torch.Generator) -> Batch:
        positions, labels = batch.targets
        p = logits.flatten(0, 1).softmax(-1).cpu()  # (B, M, V) -> (B M, V)
        words = p.multinomial(1, generator=generator).view(labels.shape).to(labels.device)
        return replace(batch, targets=(positions, words.masked_fill(labels == NO_LABEL, NO_LABEL)))

    def expected(self, batch: Batch, unit: int, tokenizer) -> dict[int, str]:
        positions, labels = (x[unit].tolist() for x in batch.targets)
        return {at: tokenizer.id_to_token(label) for at, label in zip(positions, labels, strict=True) if label != NO_LABEL}

    def meter(self, data: Data) -> "Perplexity":
        blocks = f"blocks of at most {self.max_length} tokens {self.blocks} documents"
        return Perplexity(f"{blocks}, {self.mask_share:.0%} masked ({self.masking})")

    def predict(self, outputs: Iterable[tuple[int, list]], data: Blocks) -> Iterator[dict]:
        """masks: the most probable tokens of each, with their probabilities; where words were masked, the right one too."""
        unit = 0
        for _, blocks in outputs:
            masks = []
            for block in blocks:
                _, at, right = data.masked(unit, None)
                scores, ids = top(block) if isinstance(block, Tensor) else block  # (M, V) -> (M, K)
                p = block.double().softmax(-1) if isinstance(block, Tensor) else None
                for i, label in enumerate(right.tolist()):
                    found = zip(ids[i].tolist(), scores[i].double().exp().tolist(), strict=True)
                    candidates = [{"token": token_of(data.tokenizer, number), "score": score} for number, score in found]
                    known = {} if p is None else {"right": token_of(data.tokenizer, label), "score_of_right": p[i, label].item()}
                    masks.append(candidates[0] | known | {"candidates": candidates})
                assert len(at) == len(right)
                unit += 1
            yield {"masks": masks}

    def show(self, prediction: dict) -> str:
        shown = (", ".join(f"{c['token'].strip()} {c['score']:.3f}" for c in mask["candidates"]) for mask in prediction["masks"])
        return " | ".join(shown) or "nothing to fill in"

    def compare(self, examples: Documents, row: int, prediction: dict) -> str:
        masks = prediction["masks"]
        if not masks:
            return "nothing masked"
        worst = min(masks, key=lambda mask: mask["score_of_right"])
        right = sum(mask["token"] == mask["right"] for mask in masks)
        found = f"{worst['right'].strip()} {worst['score_of_right']:.3f}, predicted {worst['token'].strip()} {worst['score']:.3f}"
        return f"{right} of {len(masks)} right, worst {found}"


class MaskedLMHead(nn.Module):
    """Its files hold dense.weight (D, D), dense.bias, norm.weight, norm.bias and bias (V).

    transformers: of BERT cls.predictions.transform.dense, cls.predictions.transform.LayerNorm, cls.predictions.bias; of RoBERTa
    lm_head.dense, lm_head.layer_norm, lm_head.bias.
    """

    def __init__(self, body: nn.Module):
        super().__init__()
        c = body.config
        self.dense = nn.Linear(c.width, c.width)
        self.norm = nn.LayerNorm(c.width, c.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(c.vocab_size))
        self.activation = c.lm_activation
        self.of = (body,)  # in a tuple, so that nothing of the body is registered a second time
        body.initialise(self.dense)

    def forward(self, state: tuple, batch: Batch) -> Tensor | tuple[Tensor, Tensor]:
        """logits (B, M, V); without labels the log-probabilities and ids of the best K tokens, (B, M, K) each."""
        positions, *labels = batch.targets
        h = state.hidden.gather(1, positions.unsqueeze(-1).expand(-1, -1, state.hidden.shape[-1]))  # (B, S, D) -> (B, M, D)
        t = self.norm(self.activation(self.dense(h)))
        logits = F.linear(t, word_vectors(*self.of), self.bias)  # (B, M, D) -> (B, M, V)
        return logits if labels else top(logits)


def word_vectors(body: nn.Module) -> Tensor:
    """(V, D) the table as the embeddings see it, with what wrappers change of it; a prompt stands before the words and does not."""
    module, wrappers = body.embeddings, []
    while not hasattr(module, "word"):
        module = module.base
    module = module.word
    while not isinstance(module, nn.Embedding):
        wrappers.append(module)
        module = module.base
    E = module.weight
    for wrapper in reversed(wrappers):
        try:
            E, _ = wrapper.merged(E, None)
        except ValueError:  # it is no change of a weight
            continue
    return E


def top(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(log-probabilities, ids) of the best K tokens."""
    return tuple(logits.log_softmax(-1).topk(min(CANDIDATES, logits.shape[-1]), -1))


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, M, V), (B, M) -> (B, M), 0 where there is no label"""
    flat = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=NO_LABEL)
    return flat.view(labels.shape)


def token_of(tokenizer, number: int) -> str:
    """As it stands in a text: of byte-level tokens with the blank before it."""
    return tokenizer.decode([number], skip_special_tokens=False)


def exponential(loss: float, count: int) -> float | None:
    """exp(loss / count); None where nothing counts and where it is no float."""
    return math.exp(loss / count) if count and loss / count < LARGEST else None


class Perplexity(Meter):
    def __init__(self, described: str):
        self.described = described
        self.loss, self.right, self.count = 0.0, 0, 0

    def add(self, logits: Tensor, batch: Batch) -> None:
        labels = batch.targets[1]
        self.loss += losses(logits, labels).double().sum().item()
        self.right += int((logits.argmax(-1) == labels).sum())
        self.count += int((labels != NO_LABEL).sum())

    def merge(self, other: "Perplexity") -> None:
        self.loss, self.right, self.count = self.loss + other.loss, self.right + other.right, self.count + other.count

    def metrics(self) -> dict[str, float | None]:
        return {"perplexity": exponential(self.loss, self.count), "accuracy": self.right / self.count if self.count else None}

    def table(self) -> str:
        return f"perplexity over {self.count:,} masked tokens; {self.described}"
