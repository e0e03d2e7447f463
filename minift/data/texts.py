"""Texts and their labels: from a file, a directory of class folders, or a list of texts."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from minift.data.columns import cells_of, choose_columns, is_header, other_columns, other_names
from minift.data.encoding import read_files
from minift.data.examples import Blocks, Examples, check_characters, listed
from minift.data.folders import Kind, all_files, class_folders
from minift.data.labels import alike, keep_part, read_labels, strata_of
from minift.data.layout import TextLayout, not_for_directories
from minift.data.stored import keep, mapped, zipped
from minift.data.table import Table, open_table, read_table
from minift.errors import UserError

IMAGES_HINT = "; images are a task of their own, --task image-classification"
TEXT_FILES = Kind(frozenset({".txt"}), "texts", "review.txt", IMAGES_HINT)


@dataclass
class Texts(Examples):
    """Texts, or pairs of texts, with their labels. `lines` where a table lists them, `files` where each is a file of its own."""

    texts: Sequence[str]
    pairs: Sequence[str] | None = None
    labels: Sequence[str] | Sequence[float] | Sequence[list[str]] | None = None  # by the kind of label that was asked for
    shortened: int = 0  # labels of which --label-part has kept a part
    files: list[Path] | None = None

    ROWS = ("texts", "pairs", "labels", "files")

    def inputs(self) -> Sequence[dict[str, str]]:
        if self.pairs is None:
            return mapped(self.texts, lambda text: {"text": text})
        return mapped(zipped([self.texts, self.pairs]), lambda both: {"text": both[0], "pair": both[1]})

    def example(self) -> str:
        return '"some text"' if self.pairs is None else '"some text" --pair "another text"'

    def where(self, row: int) -> str:
        return super().where(row) if self.files is None else str(self.files[row])

    def strata(self) -> list[str] | None:
        return strata_of(self.labels)


def read_texts(source: str | Path | Iterable, layout: TextLayout, labelled: bool = True, label: str = "name") -> Texts:
    """Read texts.

    source: the path of a table, `-` for standard input, or a directory of .txt files, a folder a class (the folder `unsup`, as in
    IMDB, is left out); else an iterable of texts or of (text, pair) tuples, which is gone through once.
    labelled: every row must have a label; else no label column is looked for.
    label: what a label is: "name" (labels: list[str]), "number" (list[float]) or "names" (list[list[str]]); see labels.py.

    Raises UserError, with file and line, for a missing or empty file, broken encoding, a column that is not there, a row of
    another width than the header, a row without a label; with its index for an input that is no text.
    Tests: tests/data/test_reading.py, test_inputs.py.
    """
    if not isinstance(source, str | Path):
        return from_list(source, labelled)
    check_characters(str(source), "the path of a file")
    if os.path.isdir(source):
        return from_folders(Path(source), layout, labelled, label)
    table = read_table(source, layout)
    pick = settled(table, layout, labelled, label)
    labels, shortened = None, 0
    if labelled:
        labels, table, shortened = read_labels(table, pick["label"], layout, label)
        check_first_label(table, labels, layout, label)
    empty: Counter = Counter()
    texts, pairs = texts_of(table, pick, empty)
    table.decided += empties(empty)
    others = other_columns(table, {i for columns in pick.values() for i in columns})
    return Texts(table.path, texts, pairs, labels, shortened, lines=table.lines, decided=table.decided, columns=others)


def texts_in_blocks(source: str | Path, layout: TextLayout, size: int) -> Blocks:
    """Texts without labels as `read_texts` reads them from a table, `size` of them in memory at a time; else in one block.

    The table is gone through and checked as a whole before the first block. Tests: tests/test_streaming.py.
    """
    if os.path.isdir(source):
        rows = read_texts(source, layout, labelled=False)
        return Blocks(len(rows), rows.decided, iter([rows]))
    file, table = open_table(source, layout)
    pick = settled(table, layout, labelled=False, label="name")
    empty: Counter = Counter()
    for block in table.blocks(size):
        texts_of(block, pick, empty)
    table.decided += empties(empty)
    others = other_names(table, {i for columns in pick.values() for i in columns})

    def blocks() -> Iterator[Texts]:
        with closing(file):
            for block in table.blocks(size):
                yield Texts(table.path, *texts_of(block, pick, empty), lines=block.lines, columns=cells_of(block, others))

    return Blocks(len(table.rows), table.decided, blocks())


def settled(table: Table, layout: TextLayout, labelled: bool, label: str) -> dict[str, list[int]]:
    """Role -> its columns. Whether the first row is a header is decided too."""
    flags = column_flags(table, layout, labelled)
    if table.columns is None:
        table.settle(is_header(table, flags, layout.header))
    pick = choose_columns(table, flags, label)
    table.decided.append("columns " + ", ".join(f"{role} = {' + '.join(map(table.name, i))}" for role, i in pick.items()))
    return pick


def texts_of(table: Table, pick: dict[str, list[int]], empty: Counter) -> tuple[Sequence[str], Sequence[str] | None]:
    """(texts, the second texts where rows are pairs). empty: counts the cells of joined columns, and the texts, that are empty."""
    texts, pairs = (as_texts(table, pick[role], empty) if role in pick else None for role in ("text", "pair"))
    empty[""] += sum(not text.strip() for text in texts)
    return texts, pairs


def empties(empty: Counter) -> list[str]:
    """What to tell of them."""
    told = [f"{name} is empty in {n:,} rows" for name, n in empty.items() if name and n]
    return told + ([f"{empty['']} row{'s' * (empty[''] != 1)} with an empty text"] if empty[""] else [])


def column_flags(table: Table, layout: TextLayout, labelled: bool) -> dict[str, str | None]:
    """Role -> the column that was given for it. Lines of texts have no columns, whatever a run remembers of its training file."""
    flags = {"text": layout.text_column, "pair": layout.pair_column} | ({"label": layout.label_column} if labelled else {})
    if table.kind == "lines":
        unfit = [f"--{role}-column {name}" for role, name in flags.items() if name not in (None, "text", "1")]
        table.decided += [f"{', '.join(unfit)} does not apply to lines"] if unfit else []
        return dict.fromkeys(flags)
    return flags


def check_first_label(table: Table, labels: list, layout: TextLayout, label: str) -> None:
    if layout.header == "auto" and table.columns is None and label == "name" and len(labels) > 2 and labels[0] not in labels[1:]:
        raise UserError(f"{table.where(0)}: the label {labels[0]!r} is found in the first row alone; if that row is a header, "
                        "add --header yes, else --header no")  # fmt: skip


def as_texts(table: Table, columns: list[int], empty: Counter) -> Sequence[str]:
    """The text of each row; of several columns those that are not empty, joined by a blank, and the others counted in `empty`."""
    if columns[1:]:
        several = [table.texts(i, null_is_empty=True) for i in columns]
        for i, cells in zip(columns, several, strict=True):
            empty[table.name(i)] += sum(not cell.strip() for cell in cells)
        return mapped(zipped(several), lambda cells: " ".join(filter(str.strip, cells)))
    return table.texts(columns[0])


def from_folders(path: Path, layout: TextLayout, labelled: bool, label: str) -> Texts:
    if labelled and label != "name":
        raise UserError(f"{path}: a directory, whose folders are classes; for this task a table is expected")
    labels = None
    if labelled:
        files, labels, decided = class_folders(path, TEXT_FILES, without=frozenset({"unsup"}))
        decided += alike(Counter(labels))
    else:
        files, decided = all_files(path, TEXT_FILES)
    decided += not_for_directories(layout)
    size = sum(file.stat().st_size for file in files if file.exists())
    texts = keep(read_files(files, layout.encoding, decided), size)
    empty = sum(not text.strip() for text in texts)
    decided += [f"{empty} row{'s' * (empty != 1)} with an empty text"] if empty else []
    labels, shortened = keep_part(labels, layout.label_part) if labels else (None, 0)
    return Texts(path, texts, None, labels, shortened, files, decided=decided, columns={"file": list(map(str, files))})


def from_list(source: Iterable, labelled: bool) -> Texts:
    """Texts, or (text, pair) tuples, that come from no file."""
    if labelled:
        raise UserError("texts that come from no file have no labels; name a file")
    inputs = listed(source, "texts")
    several = bool(inputs) and isinstance(inputs[0], tuple | list)
    for i, one in enumerate(inputs):
        pair = isinstance(one, tuple | list)
        if pair != several and (pair or isinstance(one, str)):
            raise UserError(
                f"input {i}: {'a pair' if pair else 'a single text'}, where input 0 is {'a pair' if several else 'a single text'}"
            )
        if several and pair and len(one) != 2:
            raise UserError(f"input {i}: a text and its pair are expected, found {len(one)} values")
        for text in one if several and pair else (one,):
            if not isinstance(text, str):
                raise UserError(f"input {i}: a text is expected, found {type(text).__name__} ({repr(text)[:40]})")
            check_characters(text, f"input {i}")
    texts = [one[0] for one in inputs] if several else inputs
    return Texts(Path("inputs"), texts, [one[1] for one in inputs] if several else None, given=True)
