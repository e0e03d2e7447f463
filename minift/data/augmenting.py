"""Augmentation of texts: training rows alone, anew in every epoch, and off unless asked for.

    --augment eda:deletion=0.1,swap=0.1    words left out and words exchanged (EDA; Wei & Zou 2019, arXiv:1901.11196)
    --augment cutoff:rate=0.1              tokens hidden from the model (token cutoff; Shen et al. 2020, arXiv:2009.13818)
    --paraphrases FILE                     in the place of a text one of its paraphrases, as back-translation gives them
                                           (Sennrich et al. 2016, arXiv:1511.06709; Xie et al. 2020, arXiv:1904.12848)

All draws are a function of (seed, epoch, row). A paraphrase belongs to the text that it is of: it is seen only where that text is a
training row, so that none of a validation or test row is learned.

Axes: B units of a batch, S its longest row. Proved by tests/data/test_augmenting.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from itertools import chain

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from minift.data.batching import Batch
from minift.data.layout import Layout
from minift.data.table import read_table
from minift.data.texts import Texts
from minift.data.tokenising import Encoded, encode, pad
from minift.errors import UserError
from minift.specs import parse

AUGMENT = {"eda": "minift.data.augmenting:eda", "cutoff": "minift.data.augmenting:cutoff"}
WORDS, CUT = 1, 2  # streams of one seed, epoch and row


def eda(text: str, random: np.random.Generator, *, deletion: float = 0.1, swap: float = 0.1) -> str:
    """Each word left out with probability `deletion`, one is always kept; then max(1, floor(swap n)) swaps of two of the n words.

    Words are what blanks part. EDA makes several new rows of a row, each by one of its operations; here a row is one row, by both,
    and new in every epoch. Its two operations that need a dictionary of synonyms are not available.
    """
    words = text.split()
    if not words:
        return text
    kept = random.random(len(words)) >= deletion
    if not kept.any():
        kept[random.integers(len(words))] = True
    words = [word for word, keep in zip(words, kept, strict=True) if keep]
    if swap and len(words) > 1:
        for _ in range(max(1, int(swap * len(words)))):
            i, j = random.choice(len(words), 2, replace=False)
            words[i], words[j] = words[j], words[i]
    return " ".join(words)


def cutoff(real: np.ndarray, random: np.random.Generator, *, rate: float = 0.1) -> np.ndarray:
    """real: (S) which tokens are no special ones. Returns (S) floor(rate n) of these n tokens, drawn without replacement, as True.

    Nothing attends to these tokens and they are not pooled; the others keep their positions. The paper's second loss, the
    divergence between views of a row, is not part of this.
    """
    cut = np.zeros(len(real), dtype=bool)
    at = np.flatnonzero(real)
    cut[random.choice(at, int(rate * len(at)), replace=False)] = True
    return cut


def chosen(spec: str | None) -> dict[str, Callable]:
    """The fields of `Augmented` that `--augment` asks for. Raises UserError for an unknown one or an option outside [0, 1)."""
    if spec is None:
        return {}
    function = parse(spec, AUGMENT, "--augment")
    for name, value in function.keywords.items():
        if not 0 <= value < 1:
            raise UserError(f"--augment {spec}: {name} is expected to be from 0 to below 1, as 0.1")
    return {"cut" if function.func is cutoff else "words": function}


def read_paraphrases(path: str) -> dict[str, list[str]]:
    """text -> its paraphrases, of a table with the columns text and paraphrase: CSV, TSV or JSON lines.

    Raises UserError for a file without these columns, and for a paraphrase that is empty.
    """
    found, table = {}, read_table(path, Layout())
    if table.columns is None:
        table.settle(header=True)
    missing = [name for name in ("text", "paraphrase") if name not in table.columns]
    if missing:
        raise UserError(f"{path}: no column {missing[0]!r}; expected a table with the columns text and paraphrase")
    texts, paraphrases = (table.texts(table.columns.index(name)) for name in ("text", "paraphrase"))
    for row, (text, paraphrase) in enumerate(zip(texts, paraphrases, strict=True)):
        if not paraphrase.strip():
            raise UserError(f"{table.where(row)}: the paraphrase is empty")
        found.setdefault(text, []).append(paraphrase)
    return found


@dataclass(kw_only=True)
class Augmented(Encoded):
    """Texts or pairs of texts that are new in every epoch of training; evaluation (epoch None) sees them as they are."""

    texts: list[str]
    pairs: list[str] | None
    tokenizer: Tokenizer
    seed: int
    words: Callable | None = None  # (text, random) -> text
    cut: Callable | None = None  # ((S) whether a token is no special one, random) -> (S) whether it is cut off
    paraphrases: dict[str, list[str]] = field(default_factory=dict)

    variants = None
    as_evaluated = False

    def batches(self, order: list[np.ndarray], device: torch.device, epoch: int | None = None) -> Iterator[Batch]:
        if epoch is None:
            yield from super().batches(order, device)
            return
        for units in order:
            tokens, types = [self.tokens[i] for i in units], self.token_types and [self.token_types[i] for i in units]
            if self.words or self.paraphrases:
                texts, pairs = zip(*(self.drawn(int(row), epoch) for row in units), strict=True)
                pairs = None if self.pairs is None else list(pairs)
                tokens, types, _ = encode(self.tokenizer, list(texts), pairs, self.max_length, self.pad)
            ids, mask, types = pad(tokens, self.pad, types)
            if self.cut:
                mask = self.without_cut(ids, mask, units, epoch)
            yield replace(self.outline(units, epoch), inputs=(ids, mask, types)).to(device)

    def drawn(self, row: int, epoch: int) -> tuple[str, str | None]:
        """The text of a row and its pair, as an epoch of training sees them."""
        random = np.random.default_rng((self.seed, epoch, row, WORDS))
        texts = [self.texts[row]] if self.pairs is None else [self.texts[row], self.pairs[row]]
        for i, text in enumerate(texts):
            if several := self.paraphrases.get(text):
                text = [text, *several][random.integers(1 + len(several))]
            texts[i] = self.words(text, random) if self.words else text
        return texts[0], texts[1] if self.pairs is not None else None

    def without_cut(self, ids: Tensor, mask: Tensor | None, units: np.ndarray, epoch: int) -> Tensor:
        """(B, S) the mask, False at the tokens that are cut off."""
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        special = torch.tensor(self.tokenizer.encode("", "").ids, dtype=torch.long)
        plain = (mask & ~torch.isin(ids, special)).numpy()
        streams = [np.random.default_rng((self.seed, epoch, int(row), CUT)) for row in units]
        return mask & ~torch.from_numpy(np.stack([self.cut(real, random) for real, random in zip(plain, streams, strict=True)]))


def augmented(encoded: Encoded, examples: Texts, tokenizer: Tokenizer, options) -> Augmented:
    """The training rows as --augment and --paraphrases say. Raises UserError for paraphrases none of which is of a training row."""
    paraphrases = read_paraphrases(options.paraphrases) if options.paraphrases else {}
    if paraphrases:
        trained = {text for text in chain(examples.texts, examples.pairs or ()) if text in paraphrases}
        others = len(paraphrases) - len(trained)
        if others == len(paraphrases):
            raise UserError(
                f"{options.paraphrases}: none of the {others:,} texts is that of a training row; expected the same text"
            )
        if others:
            print(
                f"note: {options.paraphrases}: {others:,} of the {len(paraphrases):,} texts are no training rows and are left out"
            )
    own = {f.name: getattr(encoded, f.name) for f in fields(Encoded)}
    given = {"texts": examples.texts, "pairs": examples.pairs, "tokenizer": tokenizer, "seed": options.seed}
    return Augmented(**own, **given, **chosen(options.augment), paraphrases=paraphrases)
