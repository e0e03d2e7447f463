"""Texts to token ids, in one batched call; token ids to padded batches.

Axes: B rows of a batch, S its longest row.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer

from minift.data.batching import Batch
from minift.data.reading import Rows


@dataclass
class Encoded:
    tokens: list[np.ndarray]  # one array of ids a row
    token_types: list[np.ndarray] | None  # likewise, where rows are pairs
    lengths: np.ndarray  # (N)
    labels: np.ndarray | None  # (N) ids
    pad: int  # id of the padding token
    max_length: int
    cut: int  # rows that max_length has shortened

    draws = 1  # a row is the same in every epoch

    def __len__(self) -> int:
        return len(self.tokens)

    def describe(self) -> dict[str, int]:
        """Figures for the table of the data."""
        return {
            "median tokens": int(np.median(self.lengths)),
            "longest": int(self.lengths.max()),
            f"cut by {self.max_length}": self.cut,
        }

    def batches(self, order: list[np.ndarray], device: torch.device, epoch: int | None = None) -> Iterator[Batch]:
        """The rows of every array of row numbers in `order` as one batch."""
        return (self.collate(rows).to(device) for rows in order)

    def collate(self, rows: np.ndarray) -> Batch:
        """The rows as one batch, padded to the longest of them: tokens (B, S), mask (B, S) or None where no row is padded,
        token types (B, S) or None where there are no pairs."""
        lengths = self.lengths[rows]
        real = np.arange(lengths.max()) < lengths[:, None]  # (B, S)
        tokens = np.full(real.shape, self.pad, dtype=np.int64)
        tokens[real] = np.concatenate([self.tokens[row] for row in rows])
        types = None
        if self.token_types is not None:
            types = np.zeros(real.shape, dtype=np.int64)
            types[real] = np.concatenate([self.token_types[row] for row in rows])
        inputs = (tokens, None if real.all() else real, types)
        labels = None if self.labels is None else torch.from_numpy(self.labels[rows])
        return Batch(tuple(None if array is None else torch.from_numpy(array) for array in inputs), labels)


def encode(tokenizer: Tokenizer, rows: Rows, labels: np.ndarray | None, max_length: int, pad: int) -> Encoded:
    """Token ids with the special tokens; of a pair too long, the longer text is cut first, a token at a time."""
    inputs = rows.texts if rows.pairs is None else list(zip(rows.texts, rows.pairs, strict=True))
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    encodings = tokenizer.encode_batch_fast(inputs)
    tokenizer.no_truncation()
    tokens = [np.array(e.ids, dtype=np.int64) for e in encodings]
    types = None if rows.pairs is None else [np.array(e.type_ids, dtype=np.int64) for e in encodings]
    lengths = np.array([len(ids) for ids in tokens], dtype=np.int64)
    return Encoded(tokens, types, lengths, labels, pad, max_length, sum(bool(e.overflowing) for e in encodings))
