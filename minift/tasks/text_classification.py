"""One label for a text, or for a pair of texts. Head, loss and metrics are in minift/tasks/classification.py."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from minift.data.labels import label_ids, label_names
from minift.data.layout import TextLayout
from minift.data.texts import Texts, read_texts
from minift.data.tokenising import Encoded, encode
from minift.errors import UserError
from minift.tasks.classification import Classification


@dataclass(frozen=True)
class TextClassification(Classification):
    max_length: int  # tokens of a row
    pairs: bool  # whether a row is a pair of texts

    MODEL: ClassVar = "minilm-l6"
    OPTIMIZER: ClassVar = "adamw"
    WEIGHT_DECAY: ClassVar = 0.01
    LAYOUT: ClassVar = TextLayout

    @classmethod
    def defaults(cls, method: str, checkpoint) -> dict[str, tuple]:
        if checkpoint.tokenizer is None:
            raise UserError(f"{checkpoint.source} is a model of images; expected a BERT for texts, as --model minilm-l6")
        recorded = checkpoint.pool if method == "probe" else None
        return {
            "max_length": (min(128, checkpoint.max_length), "default"),
            "pool": (recorded or "cls", "the checkpoint's" if recorded else "default"),
        }

    @staticmethod
    def read(source: str | Iterable, layout: TextLayout, labelled: bool = True) -> Texts:
        return read_texts(source, layout, labelled)

    @classmethod
    def learn(cls, train: Texts, options) -> "TextClassification":
        return cls(label_names(train), options.pool, options.max_length, train.pairs is not None)

    def prepare(self, examples: Texts, checkpoint, options=None, workers: int = 0) -> Encoded:
        positions = checkpoint.max_length
        if self.max_length > positions:
            raise UserError(f"--max-length {self.max_length}: the model has {positions} positions")
        if self.pairs:
            empty = checkpoint.tokenizer.encode("", "")
            if max(empty.type_ids) >= checkpoint.config["type_vocab_size"]:
                raise UserError(f"{examples.path}: pairs of texts, and the model knows one kind of text (type_vocab_size 1)")
            if self.max_length < len(empty) + 2:
                least = f"expected {len(empty) + 2} or more for pairs, of which {len(empty)} are special"
                raise UserError(f"--max-length {self.max_length}: {least}")
        if (examples.pairs is not None) != self.pairs:
            trained = (
                "pairs of texts, and here is one text a row (--pair on the command line)"
                if self.pairs
                else "single texts, and here are pairs"
            )
            raise UserError(f"{examples.path}: the run was trained on {trained}")
        tokens, types, cut = encode(checkpoint.tokenizer, examples.texts, examples.pairs, self.max_length)
        return Encoded(
            tokens,
            types,
            np.array([len(ids) for ids in tokens], dtype=np.int64),
            () if examples.labels is None else (label_ids(examples, self.labels),),
            checkpoint.config["pad_token_id"],
            self.max_length,
            cut,
            0.0 if options is None else options.label_smoothing,
        )
