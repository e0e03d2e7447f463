"""Documents cut into blocks, and tokens of the blocks masked, for masked language modelling.

within   a document is cut into as few pieces as the block length allows, all of nearly the same length, so that no tail is left
         without context (as RoBERTa's DOC-SENTENCES, a block never crosses the end of a document)
across   all documents, a separator behind each, are one stream, which is cut likewise (as FULL-SENTENCES; Liu et al. 2019,
         arXiv:1907.11692, section 4.2)

Either way every token stands in exactly one block: nothing is dropped. (transformers' run_mlm.py drops the end of each 1,000 rows.)

Which tokens are masked is a function of (seed, epoch, block) in training, and at evaluation of the block alone. Of n tokens of a
block that are not special, the share p is chosen:

exact         max(1, round(p n)) of them, drawn without replacement (Devlin et al. 2019, arXiv:1810.04805, section 3.1, as in
              Google's create_pretraining_data.py, which counts the special tokens in n)
coin          each with probability p, as in transformers' DataCollatorForLanguageModeling: a short block may have none
whole-words   words in random order, each with all its tokens, up to the budget of `exact`; a word that would exceed it is passed
              over, as in Google's code, so that a block of long words alone may have none. (transformers 4.57 draws each word by
              a coin, so that the share differs from block to block, and makes every token of it [MASK].)

Of the chosen tokens 80 % become [MASK], 10 % a random one, 10 % stay. The random one is drawn from the whole vocabulary, special
tokens too, but for the padding, which would move the positions of RoBERTa. [UNK] is special here: there is nothing to learn of it.

Axes: N blocks, B blocks of a batch, S its longest block, M the most masked tokens of one of them.
Tests: tests/data/test_masking.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from tokenizers import Tokenizer

from minift.data.batching import Batch, Data
from minift.data.tokenising import CHUNK, pad

MASKED, KEPT = 0.8, 0.1  # of the chosen tokens; the others become random ones
NO_LABEL = -100  # what cross_entropy leaves out
EVALUATION = 15  # the seed of the masks at evaluation
MASK_TOKENS = ("[MASK]", "<mask>")


@dataclass(frozen=True)
class Vocabulary:
    """What masking must know of a tokenizer."""

    first: np.ndarray  # ids before a block, as [CLS]
    last: np.ndarray  # and behind it, as [SEP]; also between the documents of a block
    mask: int
    pad: int
    size: int
    special: np.ndarray  # ids that are never masked


def vocabulary_of(tokenizer: Tokenizer, padding: int) -> Vocabulary:
    """Raises ValueError for a tokenizer without a token for masks."""
    mask = next((number for token in MASK_TOKENS if (number := tokenizer.token_to_id(token)) is not None), None)
    if mask is None:
        raise ValueError(f"the tokenizer has neither {' nor '.join(MASK_TOKENS)}")
    first, last = np.array_split(np.array(tokenizer.encode("").ids, dtype=np.int64), 2)
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    special |= {mask, padding, *first.tolist(), *last.tolist()}
    return Vocabulary(first, last, mask, padding, tokenizer.get_vocab_size(), np.array(sorted(special)))


def tokenise(tokenizer: Tokenizer, texts: list[str]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(ids of each text without special tokens, whether each begins a word)

    A word is what the tokenizer takes apart into pieces: what blanks and punctuation part, of RoBERTa with the blank before it.
    """
    tokens, begins = [], []
    for start in range(0, len(texts), CHUNK):
        for one in tokenizer.encode_batch(texts[start : start + CHUNK], add_special_tokens=False):
            words = np.array([-1 if word is None else word for word in one.word_ids], dtype=np.int64)
            tokens.append(np.array(one.ids, dtype=np.int64))
            begins.append(np.diff(words, prepend=-2) != 0)
    return tokens, begins


def cut(length: int, room: int) -> list[slice]:
    """As few pieces as there must be so that none is longer than `room`, of lengths that differ by 1 at most; one where it is 0."""
    pieces = max(1, -(-length // room))
    ends = [length * i // pieces for i in range(pieces + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]


def choose(ids: np.ndarray, begins: np.ndarray, special: np.ndarray, how: str, share: float, random) -> np.ndarray:
    """The positions to be masked, in increasing order. ids, begins: (S) of a block. how: exact, coin or whole-words."""
    free = np.flatnonzero(~np.isin(ids, special))
    if how == "coin":
        return free[random.random(len(free)) < share]
    if not len(free):
        return free
    budget = max(1, round(share * len(free)))
    if how == "exact":
        return np.sort(random.permutation(free)[:budget])
    words = np.split(free, np.flatnonzero(begins[free[1:]]) + 1)  # behind a special token a word always begins
    chosen: list[int] = []
    for i in random.permutation(len(words)):
        if len(chosen) + len(words[i]) <= budget:
            chosen += words[i].tolist()
    return np.sort(np.array(chosen, dtype=np.int64))


def corrupt(ids: np.ndarray, at: np.ndarray, vocabulary: Vocabulary, random) -> np.ndarray:
    """The block with the tokens at these positions masked, replaced or kept."""
    ids, u = ids.copy(), random.random(len(at))
    ids[at[u < MASKED]] = vocabulary.mask
    replaced = at[u >= MASKED + KEPT]
    drawn = random.integers(vocabulary.size - 1, size=len(replaced))
    ids[replaced] = drawn + (drawn >= vocabulary.pad)
    return ids


@dataclass
class Blocks(Data):
    """Blocks, and what of them is masked. The rows are the documents; of blocks across documents the rows are the blocks.

    masking: None: the blocks have masks of their own, to be filled in, and no labels.
    """

    tokens: list[np.ndarray]  # (S) ids of each block, special ones too
    begins: list[np.ndarray]  # (S) whether a token begins a word
    row_of: np.ndarray  # (N)
    keys: np.ndarray  # (N, 2) number of the block's document in its file, number of the block in it
    vocabulary: Vocabulary
    tokenizer: Tokenizer
    masking: str | None
    share: float
    max_length: int
    parted: int  # documents in more than one block
    seed: int | None = None  # of training; None: masks are those of evaluation

    def __post_init__(self):
        self.lengths = np.array([len(ids) for ids in self.tokens])
        self.variants = 1 if self.seed is None else None
        self.as_evaluated = self.seed is None

    @property
    def rows(self) -> np.ndarray:
        return self.row_of

    def describe(self) -> dict[str, int | str]:
        return {
            "tokens": int(sum(np.isin(ids, self.vocabulary.special, invert=True).sum() for ids in self.tokens)),
            "blocks": len(self),
            "median length": int(np.median(self.lengths)),
            f"cut by {self.max_length}": self.parted,
        }

    def masked(self, unit: int, epoch: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids as the model sees them, positions that are masked, the right tokens there) of a block."""
        ids = self.tokens[unit]
        if self.masking is None:
            at = np.flatnonzero(ids == self.vocabulary.mask)
            return ids, at, np.full(len(at), NO_LABEL)
        training = epoch is not None and self.seed is not None
        key = (self.seed, epoch, unit) if training else (EVALUATION, *self.keys[unit].tolist())
        random = np.random.default_rng([int(not training), *key])
        at = choose(ids, self.begins[unit], self.vocabulary.special, self.masking, self.share, random)
        return corrupt(ids, at, self.vocabulary, random), at, ids[at]

    def outline(self, units: np.ndarray, epoch: int | None) -> Batch:
        return self.without_inputs(units, [self.masked(int(unit), epoch) for unit in units])

    def without_inputs(self, units: np.ndarray, masked: list[tuple]) -> Batch:
        """targets: positions (B, M), 0 where there are fewer; labels (B, M), NO_LABEL there, unless masks are to be filled in."""
        counts = np.array([len(at) for _, at, _ in masked])
        real = np.arange(counts.max()) < counts[:, None]  # (B, M)
        positions, labels = np.zeros(real.shape, dtype=np.int64), np.full(real.shape, NO_LABEL, dtype=np.int64)
        positions[real] = np.concatenate([at for _, at, _ in masked])
        labels[real] = np.concatenate([right for _, _, right in masked])
        targets = (positions,) if self.masking is None else (positions, labels)
        return Batch((), tuple(map(torch.from_numpy, targets)), self.rows[units], torch.from_numpy(counts).float())

    def batches(self, order: list[np.ndarray], device: torch.device, epoch: int | None = None) -> Iterator[Batch]:
        for units in order:
            masked = [self.masked(int(unit), epoch) for unit in units]
            inputs = pad([ids for ids, _, _ in masked], self.vocabulary.pad)
            yield replace(self.without_inputs(units, masked), inputs=inputs).to(device)


def blocks_of(
    tokenizer: Tokenizer, texts: list[str], numbers: list[int], across: bool, max_length: int, vocabulary: Vocabulary
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray, np.ndarray, int]:
    """(tokens, begins, row_of, keys, parted) as Blocks has them. numbers: of the documents."""
    tokens, begins = tokenise(tokenizer, texts)
    first, last = vocabulary.first, vocabulary.last
    room, lengths = max_length - len(first) - len(last), np.array([len(ids) for ids in tokens])
    parted = int((lengths > room).sum())
    if across:
        ends = np.cumsum(lengths + len(last)) - len(last)  # of the documents in the stream
        tokens = [np.concatenate([part for ids in tokens for part in (ids, last)])[: ends[-1]]]
        begins = [np.concatenate([part for begin in begins for part in (begin, np.ones(len(last), bool))])[: ends[-1]]]
        inside = [piece.stop for piece in cut(ends[-1], room)][:-1]
        parted = int((np.searchsorted(inside, ends - lengths, "right") < np.searchsorted(inside, ends, "left")).sum())
    blocks, marks, row_of, keys = [], [], [], []
    for row, (ids, begin) in enumerate(zip(tokens, begins, strict=True)):
        for i, piece in enumerate(cut(len(ids), room)):
            blocks.append(np.concatenate([first, ids[piece], last]))
            marks.append(np.concatenate([np.ones(len(first), bool), begin[piece], np.ones(len(last), bool)]))
            row_of.append(i if across else row)
            keys.append((0 if across else numbers[row], i))
    return blocks, marks, np.array(row_of), np.array(keys), parted
