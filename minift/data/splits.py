"""Which rows train, validate and test."""

from pathlib import Path

import numpy as np

from minift.data.examples import Examples
from minift.data.reading import split_stratified
from minift.data.samples import REVIEWS, reviews_split
from minift.errors import UserError
from minift.flags import spelled


def split(examples, share, seed):
    return split_stratified(examples.labels, share, seed)


def read_splits(options, task: type, layout) -> dict[str, Examples]:
    """The splits that there are: train, valid, test. options: train.py's. task: has `read`. layout: how files are read."""
    if options.train is None:
        if options.task != "text-classification":
            raise UserError(f"--task {options.task}: the embedded sample is one of texts; give --train")
        rows = task.read(str(REVIEWS), layout)
        splits = np.array([reviews_split(f"{text}\t{label}") for text, label in zip(rows.texts, rows.labels, strict=True)])
        return {name: rows.take(np.flatnonzero(splits == name)) for name in ("train", "valid", "test")}
    check_directories([options.train, options.valid, options.test], layout)
    parts = {"train": task.read(options.train, layout)}
    if layout.label_part and not parts["train"].shortened:
        raise UserError(f"{options.train}: --label-part {layout.label_part!r}: no label in the file contains it")
    if options.valid is None:
        kept, held = split(parts["train"], 0.1, options.split_seed)
        if not len(held):
            raise UserError(
                f"{options.train}: {len(kept)} rows are too few to hold 10 % back for validation; give --valid or --valid none"
            )
        parts = {"train": parts["train"].take(kept), "valid": parts["train"].take(held)}
    elif options.valid != "none":
        parts["valid"] = task.read(options.valid, layout)
    if options.test is not None:
        parts["test"] = task.read(options.test, layout)
    return parts


def check_directories(paths: list[str | None], layout) -> None:
    """Raises UserError where a flag that describes a table was given, and a path is a directory."""
    unfit = layout.for_tables()
    for path in paths:
        if path and unfit and Path(path).is_dir():
            raise UserError(f"{spelled(unfit[0])}: {path} is a directory; the flag describes a table")
