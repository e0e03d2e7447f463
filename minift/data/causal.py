"""Token sequences in which every token is predicted from those before it: for causal language models.

A sequence of n + 1 tokens gives n inputs and, at each of them, the token that follows as its target. The shift is made here, once:
what is counted is counted among the targets, and no later code shifts anything. (transformers 4.57 counts the labels before its
loss shifts them, which is one too many for each row whose first label counts.) Padding is known by the length of a sequence and
never by an id, so the end of text can be padding, a target, and a part of a text, all at once.

    texts      END a b c END d e END          documents with an end-of-text token before the first and behind each
    inputs     END a b c END d e
    targets    a   b c END d e END            cut into blocks: the last target of a block is the first input of the next

within   each document is a stream of its own, cut into blocks
across   all documents are one stream; a token sees what stands before it in its block, also of another document, as in the
         pretraining of GPT-2

Every token of every text, and its end, is the target of exactly one position: nothing is dropped at the edges of blocks.

Batches are padded on the right and need no mask: causal attention never reaches what stands behind a token. Packed rows (`packing`)
have one: each of the packed texts sees itself alone, and its positions start at 0.

Axes: N sequences, B sequences of a batch, S the longest of them; P packed rows of a batch.
Tests: tests/data/test_causal.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from tokenizers import Tokenizer

from minift.data.batching import Batch, Data, in_order, shuffled
from minift.data.masking import NO_LABEL, cut
from minift.data.tokenising import CHUNK, padded, uncut

CONTEXT = 3  # tokens that a sample shows on either side of a place where something changes


@dataclass
class Sequences(Data):
    """Sequences of tokens and the target at each."""

    tokens: list[np.ndarray]  # (S) ids of each sequence
    targets: list[np.ndarray]  # (S) the token that follows each; NO_LABEL where it is not counted
    row_of: np.ndarray  # (N) the number of the row of each
    tokenizer: Tokenizer
    pad: int  # id that batches are filled up with; nothing depends on it
    max_length: int
    words: np.ndarray | None = None  # (N) words of the texts that end in each sequence; None: nobody asks
    bytes: np.ndarray | None = None  # (N) their bytes in UTF-8
    packing: bool = False  # whether the sequences of a training batch share rows
    figures: dict[str, int] = field(default_factory=dict)  # for the table of the data

    def __post_init__(self):
        self.lengths = np.array([len(ids) for ids in self.tokens])
        self.counts = np.array([(targets != NO_LABEL).sum() for targets in self.targets])
        self.variants = None if self.packing else 1  # what stands in one row with what is new in every epoch

    @property
    def rows(self) -> np.ndarray:
        return self.row_of

    def describe(self) -> dict[str, int]:
        return self.figures

    def order(self, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
        """Sequences without any target that counts are left out. Packed batches are not sorted by length: they have no padding."""
        units = np.flatnonzero(self.counts)
        if self.packing:
            return in_order(np.random.default_rng((seed, epoch)).permutation(units), batch_size)
        return [units[batch] for batch in shuffled(self.lengths[units], batch_size, seed, epoch)]

    def outline(self, units: np.ndarray, epoch: int | None) -> Batch:
        """targets: the next tokens (B, S), NO_LABEL where nothing counts; and words (B), bytes (B) where they are asked for."""
        real = np.arange(self.lengths[units].max()) < self.lengths[units][:, None]  # (B, S)
        labels = padded([self.targets[i] for i in units], real, NO_LABEL)
        texts = () if self.words is None else (torch.from_numpy(self.words[units]), torch.from_numpy(self.bytes[units]))
        return Batch((), (labels, *texts), self.rows[units], torch.from_numpy(self.counts[units]).float())

    def batches(self, order: list[np.ndarray], device: torch.device, epoch: int | None = None) -> Iterator[Batch]:
        for units in order:
            if self.packing and epoch is not None:
                yield self.packed(units).to(device)
                continue
            batch = self.outline(units, epoch)
            real = np.arange(batch.targets[0].shape[1]) < self.lengths[units][:, None]
            yield replace(batch, inputs=(padded([self.tokens[i] for i in units], real, self.pad), None, None)).to(device)

    def packed(self, units: np.ndarray) -> Batch:
        """The same sequences in fewer rows (P, S) of at most max_length tokens, with a mask (P, 1, S, S), True within a sequence.

        The batch holds the same sequences, so its gradient is that of the batch without packing. `rows` names all of them.
        """
        packs = [units[pack] for pack in first_fit(self.lengths[units], self.max_length)]
        lengths = np.array([self.lengths[pack].sum() for pack in packs])
        real = np.arange(lengths.max()) < lengths[:, None]  # (P, S)
        tokens, labels, numbers = (
            padded([np.concatenate(parts) for parts in rows], real, filler)
            for rows, filler in (
                ([[self.tokens[i] for i in pack] for pack in packs], self.pad),
                ([[self.targets[i] for i in pack] for pack in packs], NO_LABEL),
                ([[np.full(self.lengths[i], n) for n, i in enumerate(pack)] for pack in packs], -1),
            )
        )
        mask = (numbers.unsqueeze(2) == numbers.unsqueeze(1)).unsqueeze(1)  # (P, S) -> (P, 1, S, S); padding sees padding
        counts = torch.tensor([float(self.counts[pack].sum()) for pack in packs])
        return Batch((tokens, mask, None), (labels,), self.rows[units], counts)

    def sample(self) -> tuple[list[str], list[list]] | None:
        """A training row as the model gets it: where something changes, token by token what it sees and what counts.

        Read from a batch itself, so that what is shown is what trains. With packing two sequences in one row.
        """
        units = np.flatnonzero(self.counts)[: 1 + self.packing]
        if not len(units):
            return None
        batch = next(self.batches([units], torch.device("cpu"), 0))
        (tokens, mask, _), labels = batch.inputs, batch.targets[0][0].tolist()
        ids = tokens[0].tolist()
        first = [0] * len(ids) if mask is None else mask[0, 0].int().argmax(1).tolist()  # the first column that each sees
        changes = [
            i for i in range(1, len(ids)) if first[i] != first[i - 1] or (labels[i] == NO_LABEL) != (labels[i - 1] == NO_LABEL)
        ]
        near = {i + k for i in [CONTEXT, *changes, len(ids) - CONTEXT] for k in range(-CONTEXT, CONTEXT)}
        shown = [i for i in sorted(near) if 0 <= i < len(ids)]

        def text(number: int) -> str:
            shown = self.tokenizer.decode([number], skip_special_tokens=False)
            return repr(self.tokenizer.id_to_token(number) if "\ufffd" in shown else shown)  # a part of a character has no text

        rows = []
        for before, i in zip([-1, *shown], shown, strict=False):
            if i > before + 1:
                rows.append(["..."] + [""] * 5)
            following = ["", "no"] if labels[i] == NO_LABEL else [text(labels[i]), "yes"]
            rows.append([i, i - first[i], text(ids[i]), f"{first[i]}-{i}", *following])
        return ["column", "position", "token", "sees columns", "target", "counts"], rows


def first_fit(lengths: np.ndarray, room: int) -> list[list[int]]:
    """Numbers of the sequences that share a row: the longest first, each into the first row that has room for it."""
    packs: list[list[int]] = []
    left: list[int] = []
    for i in np.argsort(-lengths, kind="stable").tolist():
        row = next((row for row, free in enumerate(left) if free >= lengths[i]), len(packs))
        if row == len(packs):
            packs.append([])
            left.append(max(room, int(lengths[i])))
        packs[row].append(i)
        left[row] -= int(lengths[i])
    return packs


def ids_of(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    """The ids of each text, without special tokens that the tokenizer would add."""
    ids = []
    for start in range(0, len(texts), CHUNK):
        encodings = uncut(tokenizer).encode_batch_fast(texts[start : start + CHUNK], add_special_tokens=False)
        ids += [np.array(one.ids, dtype=np.int64) for one in encodings]
    return ids


def blocks_of(tokenizer: Tokenizer, texts: list[str], across: bool, max_length: int, end: int, pad: int) -> Sequences:
    """Documents in blocks of at most max_length inputs, all of a stream of nearly the same length. end: id of the end of text."""
    ids = ids_of(tokenizer, texts)
    words = np.array([len(text.split()) for text in texts])
    octets = np.array([len(text.encode()) for text in texts])
    tokens, targets, row_of, in_words, in_bytes, parted = [], [], [], [], [], 0
    for row, documents in enumerate([range(len(texts))] if across else [[i] for i in range(len(texts))]):
        stream = np.concatenate([[end], *(part for i in documents for part in (ids[i], [end]))])
        pieces = cut(len(stream) - 1, max_length)
        ends = np.cumsum([len(ids[i]) + 1 for i in documents]) - 1  # which target is the end of each document
        blocks = np.searchsorted([piece.stop for piece in pieces], ends, "right")  # in which block that is
        parted += int((np.diff(blocks, prepend=0) > 0).sum()) if across else len(pieces) > 1
        for n, piece in enumerate(pieces):
            ending = np.array(documents)[blocks == n]
            tokens.append(stream[piece])
            targets.append(stream[piece.start + 1 : piece.stop + 1])
            row_of.append(n if across else row)
            in_words.append(words[ending].sum())
            in_bytes.append(octets[ending].sum())
    figures = {
        "tokens": int(sum(map(len, targets))),
        "blocks": len(tokens),
        "median length": int(np.median([len(one) for one in tokens])),
        f"cut by {max_length}": parted,
    }
    return Sequences(
        tokens, targets, np.array(row_of), tokenizer, pad, max_length, np.array(in_words), np.array(in_bytes), figures=figures
    )
