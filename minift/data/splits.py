"""Which rows train, validate and test."""

from array import array
from pathlib import Path

import numpy as np

from minift.data.examples import Examples
from minift.data.samples import REVIEWS, reviews_split
from minift.errors import UserError
from minift.flags import spelled


def read_splits(options, task: type, layout) -> dict[str, Examples]:
    """The splits that there are: train, valid, test. options: train.py's. task: has `read`. layout: how files are read."""
    if options.train is None:
        if options.task != "text-classification":
            raise UserError(f"--task {options.task}: the embedded sample is for text-classification; give --train FILE")
        rows = task.read(str(REVIEWS), layout)
        splits = np.array([reviews_split(f"{text}\t{label}") for text, label in zip(rows.texts, rows.labels, strict=True)])
        parts = {name: rows.take(np.flatnonzero(splits == name)) for name in ("train", "valid", "test")}
        return parts | {"train": drawn(parts["train"], options.train_rows, options.split_seed, "--train-rows")}
    described = layout.described()
    for path in filter(None, (options.train, options.valid, options.test)):
        check_directory(path, described)
    parts = {"train": task.read(options.train, layout)}
    check_label_part(parts["train"], layout)
    parts["train"] = drawn(parts["train"], options.train_rows, options.split_seed, "--train-rows")
    if options.valid is None:
        kept, held = split(parts["train"], 0.1, options.split_seed)
        parts = {"train": parts["train"].take(kept), "valid": parts["train"].take(held)}
    elif options.valid != "none":
        parts["valid"] = task.read(options.valid, layout)
    if options.test is not None:
        parts["test"] = drawn(task.read(options.test, layout), options.test_rows, options.split_seed, "--test-rows")
    return parts


def check_label_part(train: Examples, layout) -> None:
    """Raises UserError where --label-part is given and no label of the training rows holds it."""
    if layout.label_part and not train.shortened:
        raise UserError(f"{train.path}: --label-part {layout.label_part!r}: no label in the file contains it")


def check_directory(path: str, described: list[str]) -> None:
    """Raises UserError for a directory, and flags that were given to describe a table."""
    if described and Path(path).is_dir():
        raise UserError(f"{spelled(described[0])}: {path} is a directory; the flag describes a table")


def drawn(examples: Examples, rows: int | None, seed: int, flag: str) -> Examples:
    """So many of the rows, by chance, in every stratum the same share, rounded; None: all. Groups stay together.

    Raises UserError for more rows than there are. Test: tests/data/test_splits.py, test_rows_are_drawn_by_class.
    """
    if rows is None or rows == len(examples):
        return examples
    if rows > len(examples):
        raise UserError(f"{flag} {rows}: {examples.path} has {len(examples)}")
    _, held = split(examples, rows / len(examples), seed)
    examples.decided.append(f"{len(held):,} of the {len(examples):,} {examples.UNIT}s drawn")
    return examples.take(held)


def split(examples: Examples, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(kept, held back): the numbers of the rows, each in increasing order.

    examples.strata(): of every stratum the share, rounded, is held back, and at least one row of each is kept; where that rounds
    to nothing in every stratum, one row of each that has two or more. None: a plain random share. examples.groups(): the rows of a
    group stay together, and the share is met as nearly as whole groups can. What deviates from the plain share is appended to
    examples.decided.

    Raises UserError where nothing can be held back. Tests: tests/data/test_splits.py.
    """
    strata, groups = examples.strata(), examples.groups()
    if strata is None:
        strata = [""] * len(examples)
    numbers: dict[str, array] = {}
    for i, stratum in enumerate(strata):
        if stratum not in numbers:
            numbers[stratum] = array("I")
        numbers[stratum].append(i)
    rows = {name: np.frombuffer(some, dtype=np.uintc) for name, some in numbers.items()}  # stratum -> its rows
    wanted = {name: min(round(len(rows[name]) * share), len(rows[name]) - 1) for name in rows}
    if not any(wanted.values()):
        wanted = {name: min(1, len(rows[name]) - 1) for name in rows}
        if n := sum(wanted.values()):
            plain = examples.strata() is None
            of, each = ("", "") if plain else (" of any class", ", one of each class that has two or more")
            examples.decided.append(f"{share * 100:g} % rounds to no {examples.UNIT}{of}: {n:,} held back{each}")
    random = np.random.default_rng(seed)
    if groups is None or len(set(groups)) == len(groups):
        held = [random.permutation(rows[name])[: wanted[name]].copy() for name in sorted(rows)]
        held = np.sort(np.concatenate(held)) if held else np.array([], dtype=np.int64)
    else:
        held = whole_groups(groups, strata, wanted, {name: len(some) for name, some in rows.items()}, random)
        examples.decided.append(f"split by group: {len(set(groups)):,} groups, none of which stands on both sides")
    if not len(held):
        raise UserError(f"{examples.path}: {len(examples)} {examples.UNIT}s are too few to hold {share * 100:g} % back for "
                        "validation; give --valid or --valid none")  # fmt: skip
    kept = np.ones(len(examples), dtype=bool)
    kept[held] = False
    return np.flatnonzero(kept), held.astype(np.int64)


def whole_groups(
    groups: list, strata: list[str], wanted: dict[str, int], sizes: dict[str, int], random: np.random.Generator
) -> np.ndarray:
    """The rows of the groups that are held back.

    In random order those are taken that take no stratum beyond its wanted number; then, of the others, those that bring the
    numbers nearer, summed over the strata, and leave at least one row of each; where there is none, the smallest that leaves these.
    """
    members: dict = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    counts = {group: {} for group in members}  # group -> stratum -> rows
    for i, group in enumerate(groups):
        counts[group][strata[i]] = counts[group].get(strata[i], 0) + 1
    held_of = dict.fromkeys(wanted, 0)
    taken: set = set()
    names = list(members)
    order = [names[i] for i in random.permutation(len(names))]

    def fits(group) -> bool:
        return all(held_of[name] + n <= wanted[name] for name, n in counts[group].items())

    def helps(group) -> bool:
        change = sum(abs(wanted[name] - held_of[name] - n) - abs(wanted[name] - held_of[name]) for name, n in counts[group].items())
        return change < 0 and all(held_of[name] + n < sizes[name] for name, n in counts[group].items())

    for accept in (fits, helps):
        for group in order:
            if group not in taken and accept(group):
                taken.add(group)
                for name, n in counts[group].items():
                    held_of[name] += n
    if not taken:
        whole = [group for group in order if all(n < sizes[name] for name, n in counts[group].items())]
        taken.update([min(whole, key=lambda group: len(members[group]))] if whole else [])
    return np.array(sorted(i for group in taken for i in members[group]), dtype=np.int64)
