"""One label for a text, or for a pair of texts. Model, loss and metrics are in minift/tasks/classification.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from minift.data.reading import LAYOUT_FLAGS, Layout, Rows, label_ids, label_names, read_rows
from minift.data.tokenising import Encoded, encode
from minift.errors import UserError
from minift.tasks.classification import Classification


@dataclass(frozen=True)
class TextClassification(Classification):
    OPTIMIZER: ClassVar = "adamw"
    WEIGHT_DECAY: ClassVar = 0.01
    MODEL: ClassVar = "minilm-l6"
    # Flags that another kind of input has no use for
    FLAGS: ClassVar = (*LAYOUT_FLAGS[:-2], "max_length", "pool")

    @staticmethod
    def open_flags(method: str, checkpoint) -> dict[str, tuple]:
        """Flag -> (value where it is unset, where that comes from)."""
        if checkpoint.tokenizer is None:
            raise UserError(f"{checkpoint.source} is a model of images; for texts a BERT is wanted, as --model minilm-l6")
        recorded = checkpoint.pool if method == "probe" else None
        return {
            "max_length": (min(128, checkpoint.config["max_position_embeddings"]), "default"),
            "pool": (recorded or "cls", "the checkpoint's" if recorded else "default"),
        }

    @staticmethod
    def settings(options, rows: Rows) -> dict:
        """What predictions must know of a run besides its labels. rows: the training rows."""
        return {"max_length": options.max_length, "pairs": rows.pairs is not None}

    @staticmethod
    def read(path: str, layout: Layout, labelled: bool = True) -> Rows:
        return read_rows(path, layout, labelled)

    @staticmethod
    def for_training(data: Encoded, options, classes: int) -> Encoded:
        """The training rows as training sees them."""
        return data

    @staticmethod
    def rows(texts: list[str], pairs: list[str] | None = None) -> Rows:
        """Texts that come from no file."""
        for given in (texts, [] if pairs is None else pairs):
            if isinstance(given, str) or not all(isinstance(text, str) for text in given):
                raise UserError("predict: a list of texts is wanted, as predict(['one text', 'another'])")
        if pairs is not None and len(pairs) != len(texts):
            raise UserError(f"predict: {len(texts)} texts and {len(pairs)} second texts")
        return Rows(Path(), list(texts), None if pairs is None else list(pairs), None, [])

    @staticmethod
    def names(rows: Rows) -> list[str]:
        return label_names(rows)

    @staticmethod
    def ids(rows: Rows, names: list[str], complete: bool) -> np.ndarray:
        return label_ids(rows, names)

    @staticmethod
    def prepare(rows: Rows, labels: np.ndarray | None, checkpoint, settings: dict, workers: int = 0) -> Encoded:
        """checkpoint: has the tokenizer. settings: of the run; pairs (whether it knows pairs of texts), max_length."""
        positions = checkpoint.config["max_position_embeddings"]
        if settings["max_length"] > positions:
            raise UserError(f"--max-length {settings['max_length']}: the model has {positions} positions")
        if settings["pairs"] and checkpoint.config["type_vocab_size"] < 2:
            raise UserError(f"{rows.path}: pairs of texts, and the model knows one kind of text (type_vocab_size 1)")
        if (rows.pairs is not None) != settings["pairs"]:
            wanted = "pairs of texts, and here is one text a row" if rows.pairs is None else "single texts, and here are pairs"
            where = rows.path if rows.path.name else "predict"
            raise UserError(f"{where}: the run was trained on {wanted}")
        return encode(checkpoint.tokenizer, rows, labels, settings["max_length"], checkpoint.config["pad_token_id"])
