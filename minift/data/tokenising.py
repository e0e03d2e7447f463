"""Texts to token ids; token ids to padded batches.

Axes: B rows of a batch, S its longest row.
"""

import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from minift.data.batching import Batch, Labelled

CHUNK = 1000  # rows a call: what the tokenizer holds of a row besides its ids is many times as large


@dataclass(eq=False)
class Ragged(Sequence):
    """Rows of different lengths that lie one behind the other: row i is values[starts[i] : starts[i + 1]]."""

    values: np.ndarray  # (T)
    starts: np.ndarray  # (N + 1)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        row = range(len(self))[row]  # raises IndexError, and counts from the end
        return self.values[self.starts[row] : self.starts[row + 1]]


@dataclass
class Encoded(Labelled):
    """Texts or pairs of texts as token ids, one unit a row."""

    tokens: Sequence[np.ndarray]  # one array of ids a row
    token_types: Sequence[np.ndarray] | None  # likewise, where rows are pairs
    lengths: np.ndarray  # (N)
    targets: tuple[np.ndarray, ...]  # what a batch has as targets, (N, ...) each; () in prediction
    pad: int  # id of the padding token
    max_length: int
    uncut: np.ndarray  # (N) tokens of each row before max_length has shortened it
    smoothing: float = 0.0  # label smoothing in training

    def describe(self) -> dict[str, int]:
        return {
            "median tokens": int(np.median(self.uncut)),
            "longest": int(self.uncut.max()),
            f"cut by {self.max_length}": int((self.uncut > self.lengths).sum()),
        }

    def batches(self, order: list[np.ndarray], device: torch.device, epoch: int | None = None) -> Iterator[Batch]:
        for units in order:
            types = None if self.token_types is None else [self.token_types[i] for i in units]
            inputs = pad([self.tokens[i] for i in units], self.pad, types)
            yield replace(self.outline(units, epoch), inputs=inputs).to(device)


def pad(tokens: Sequence[np.ndarray], value: int, token_types: Sequence[np.ndarray] | None = None) -> tuple[Tensor | None, ...]:
    """Rows of ids as the body takes them: tokens (B, S), mask (B, S) or None where no row is padded, token types (B, S) or None."""
    lengths = np.array([len(ids) for ids in tokens])
    real = np.arange(lengths.max()) < lengths[:, None]  # (B, S)
    ids = padded(tokens, real, value)
    types = None if token_types is None else padded(token_types, real, 0)
    return ids, None if real.all() else torch.from_numpy(real), types


def padded(rows: Sequence[np.ndarray], real: np.ndarray, value: int) -> Tensor:
    filled = np.full(real.shape, value, dtype=np.int64)
    filled[real] = np.concatenate(list(rows))
    return torch.from_numpy(filled)


def encode(
    tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int, filler: int
) -> tuple[Ragged, Ragged | None, np.ndarray]:
    """(ids of each row with the special tokens, token types where rows are pairs, (N) tokens of each row before it was cut)

    A text longer than max_length is cut at its end; of a pair the longer text is cut first, a token at a time. filler: the id that
    stands for a text without any token, as an empty one of a GPT-2.
    """
    chunks = list(encoded_chunks(tokenizer, texts, pairs, max_length, filler))
    ids, types, lengths, before = map(np.concatenate, zip(*chunks, strict=True)) if chunks else [np.zeros(0, np.int32)] * 4
    starts = starts_of(lengths)
    return Ragged(ids, starts), None if pairs is None else Ragged(types, starts), before


def starts_of(lengths: np.ndarray) -> np.ndarray:
    """(N) -> (N + 1), in the least room."""
    total = int(lengths.sum())
    starts = np.zeros(len(lengths) + 1, dtype=np.uint32 if total < 2**32 else np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def encoded_chunks(
    tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int, filler: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """The same of CHUNK rows at a time: (their ids, their token types, which are none where rows are no pairs, (n) tokens of each
    row, (n) tokens of each row before it was cut)"""
    cutting = truncating(tokenizer, max_length)
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    rows = iter(texts if pairs is None else zip(texts, pairs, strict=True))
    while chunk := list(itertools.islice(rows, CHUNK)):
        encodings = cutting.encode_batch_fast(chunk)
        ids = [e.ids for e in encodings]
        before = np.fromiter(map(len, ids), np.int32, len(ids))
        if not before.all():
            ids = [some or [filler] for some in ids]
        types = [] if pairs is None else [e.type_ids for e in encodings]
        lengths = np.maximum(before, 1)
        if cut := [i for i, e in enumerate(encodings) if e.overflowing]:
            if pairs is None:
                before[cut] += [sum(len(rest.ids) - special for rest in encodings[i].overflowing) for i in cut]
            else:
                before[cut] = list(map(len, uncut(tokenizer).encode_batch_fast([chunk[i] for i in cut])))
        yield flat(ids, np.int32), flat(types, np.uint8), lengths, before


def flat(rows: list[list[int]], dtype: type) -> np.ndarray:
    return np.fromiter(itertools.chain.from_iterable(rows), dtype)


@functools.lru_cache(maxsize=8)
def truncating(tokenizer: Tokenizer, max_length: int) -> Tokenizer:
    """A copy that cuts at max_length. The original may serve other threads and runs, so nothing is ever set on it."""
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    return tokenizer


# ---- words that stand apart ----


def encode_words(tokenizer: Tokenizer, rows: list[list[str]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(ids of each row without special tokens, of each row the position of each word's first token; -1: the word has none)

    The ids are those of transformers with is_split_into_words=True, for RoBERTa with add_prefix_space=True. A word has no token
    where the normaliser of the tokenizer leaves nothing of it, as BERT's of a zero-width joiner.
    Proved by tests/reference/test_token_classification.py.
    """
    tokenizer = for_words(tokenizer)
    tokens, firsts = [], []
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        for words, e in zip(chunk, tokenizer.encode_batch(chunk, is_pretokenized=True, add_special_tokens=False), strict=True):
            seen, at = np.unique(np.array(e.word_ids, dtype=np.int64), return_index=True)
            first = np.full(len(words), -1)
            first[seen] = at
            tokens.append(np.array(e.ids, dtype=np.int64))
            firsts.append(first)
    return tokens, firsts


@functools.lru_cache(maxsize=8)
def for_words(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that cuts nothing and puts a blank before every word, where the model knows a blank as a part of the word after it.

    Without it byte-level BPE (RoBERTa) and SentencePiece (XLM-R) take each word for the middle of a longer one.
    """
    content = json.loads(tokenizer.to_str())
    before = content.get("pre_tokenizer") or {}
    for part in before.get("pretokenizers", [before]):
        part |= {"ByteLevel": {"add_prefix_space": True}, "Metaspace": {"prepend_scheme": "always"}}.get(part.get("type"), {})
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def frame(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """The special tokens before and after a single text."""
    e = for_words(tokenizer).encode("a")
    text = np.flatnonzero(np.array(e.special_tokens_mask) == 0)
    ids = np.array(e.ids, dtype=np.int64)
    return ids[: text[0]], ids[text[-1] + 1 :]


# ---- the parts of a pair ----


class PairFrame(NamedTuple):
    """The special tokens before, between and after the two texts of a pair."""

    before: np.ndarray
    between: np.ndarray
    after: np.ndarray
    types: tuple[int, ...]  # the token type of each of before, first text, between, second text, after

    def put(self, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(ids of the pair, its token types)"""
        parts = (self.before, first, self.between, second, self.after)
        return np.concatenate(parts), np.repeat(self.types, [len(part) for part in parts])


def pair_frame(tokenizer: Tokenizer) -> PairFrame:
    e = uncut(tokenizer).encode("a", "a")
    text = np.array([-1 if i is None else i for i in e.sequence_ids])
    ids, types = np.array(e.ids, dtype=np.int64), np.array(e.type_ids, dtype=np.int64)
    first, second = (np.flatnonzero(text == i) for i in (0, 1))
    edges = (0, first[0], first[-1] + 1, second[0], second[-1] + 1, len(ids))
    parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
    assert all(len({*types[part].tolist()}) <= 1 for part in parts), "the token type changes within a part of the pair"
    before, _, between, _, after = (ids[part] for part in parts)
    return PairFrame(before, between, after, tuple(int(types[part][0]) if len(types[part]) else 0 for part in parts))


def encode_with_places(tokenizer: Tokenizer, texts: list[str]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(ids of each text without special tokens, the characters (start, end) of each token, blanks around it left out)"""
    tokens, places = [], []
    for start in range(0, len(texts), CHUNK):
        chunk = texts[start : start + CHUNK]
        for text, e in zip(chunk, uncut(tokenizer).encode_batch(chunk, add_special_tokens=False), strict=True):
            tokens.append(np.array(e.ids, dtype=np.int64))
            places.append(np.array([without_blanks(text, *place) for place in e.offsets], dtype=np.int32).reshape(-1, 2))
    return tokens, places


def without_blanks(text: str, start: int, end: int) -> tuple[int, int]:
    """SentencePiece counts the blank before a word as a part of it."""
    part = text[start:end]
    kept = part.strip()
    return (start + part.index(kept), start + part.index(kept) + len(kept)) if kept else (start, end)


@functools.lru_cache(maxsize=8)
def uncut(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that cuts and pads nothing, whatever the checkpoint's own does."""
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
