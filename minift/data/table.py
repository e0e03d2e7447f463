"""A file to rows of cells. What was assumed is said; nothing is skipped silently. columns.py tells which column is what.

csv           the comma, or the semicolon or tab where the first line has more of those; double quotes as in RFC 4180
tsv           tabs, no quoting: a double quote is a character like any other (GLUE's files)
jsonl         one object a line
label-first   the label, white space, the text (TREC's files)
lines         a text a line and nothing else, for predictions
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from operator import itemgetter
from pathlib import Path

import numpy as np

from minift.data.encoding import Text, not_text
from minift.data.examples import check_characters
from minift.data.layout import Layout
from minift.data.stored import keep, mapped, take
from minift.errors import UserError

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}

# Columns of the formats that need no header
FIXED = {"label-first": ["label", "text"], "lines": ["text"]}


class Rows:
    """The rows of a file, or their lines, read anew whenever they are gone through: the file may be larger than memory."""

    def __init__(self, numbered: Callable[[], Iterator[tuple[int, list | dict]]], count: int, part: int, skipped: int = 0):
        """numbered: gives (line, cells) of every row. part: 0 for the lines, 1 for the cells. skipped: rows at the start."""
        self.numbered, self.count, self.part, self.skipped = numbered, count, part, skipped

    def __len__(self) -> int:
        return self.count - self.skipped

    def __iter__(self) -> Iterator:
        return (one[self.part] for one in islice(self.numbered(), self.skipped, None))

    def __getitem__(self, at: int | slice):
        """One of them, or all from one on."""
        if isinstance(at, slice):
            assert at.stop is None and at.step is None
            return Rows(self.numbered, self.count, self.part, self.skipped + at.start)
        return next(islice(self, at, None))


@dataclass
class Table:
    path: Path  # for messages
    kind: str  # the format
    columns: list[str] | None  # names of the columns; None: no header
    lines: Sequence[int] | Rows  # line of the file on which each row begins
    rows: Sequence[list | dict] | Rows  # the cells of each row; of JSON lines the objects, an absent key being an empty cell
    decided: list[str] = field(default_factory=list)  # how it was read: what to tell the user

    @property
    def width(self) -> int:
        return len(self.columns or self.rows[0])

    def name(self, column: int) -> str:
        """As the user may write it in a flag, and in one line."""
        return self.columns[column].replace("\n", " ") if self.columns else str(column + 1)

    def cells(self, column: int) -> Sequence:
        if isinstance(self.rows[0], dict):
            key = self.columns[column]
            return mapped(self.rows, lambda row: row.get(key))
        return mapped(self.rows, itemgetter(column))

    def texts(self, column: int, null_is_empty: bool = False) -> Sequence[str]:
        """The cells, all of which must be texts that UTF-8 can hold. null_is_empty: of JSON null counts as ''."""
        cells = self.cells(column)
        if null_is_empty:
            cells = mapped(cells, lambda cell: "" if cell is None else cell)
        for row, cell in enumerate(cells):
            if not isinstance(cell, str):
                found = json.dumps(cell)[:60]
                raise UserError(f"{self.where(row)}: column {self.name(column)}: a text is expected, found {found}")
            if not cell.isascii():
                check_characters(cell, f"{self.where(row)}: column {self.name(column)}")
        return cells

    def where(self, row: int) -> str:
        return f"{self.path}:{self.lines[row]}"

    def take(self, rows: np.ndarray | Sequence[int] | slice) -> "Table":
        return replace(self, **take({"lines": self.lines, "rows": self.rows}, rows))

    def blocks(self, size: int) -> Iterator["Table"]:
        """All rows in order, in tables of so many rows that are in memory and decide nothing of their own."""
        numbered = islice(self.rows.numbered(), self.rows.skipped, None)
        while some := list(islice(numbered, size)):
            lines, rows = zip(*some, strict=True)
            yield replace(self, lines=list(lines), rows=list(rows), decided=[])

    def settle(self, header: bool) -> None:
        """Make the first row the header, or not, and check that every row is as wide as the first. For tables without columns."""
        self.decided.append("header" if header else "no header")
        if header:
            self.columns = [cell.strip().replace("\n", " ") for cell in self.rows[0]]
            below = self.take(slice(1, None))
            self.rows, self.lines = below.rows, below.lines
            if not self.rows:
                raise UserError(f"{self.path}: there is a header and no row below it")
        width, again = self.width, None
        for i, cells in enumerate(self.rows):
            if len(cells) != width:
                hint = "; a text with a comma in it must stand in double quotes" if self.kind == "csv" else ""
                raise UserError(
                    f"{self.where(i)}: {len(cells)} columns where the {'header' if header else 'first row'} has {width}{hint}"
                )
            if again is None and cells == self.columns:
                again = i
        if width > 1 and again is not None:
            raise UserError(f"{self.where(again)}: the header stands here again; take the line out")


def read_table(path: str | Path, layout: Layout) -> Table:
    """Read a file, or standard input for `-`, into memory; a large one into a temporary file. Otherwise as `open_table`."""
    text, table = open_table(path, layout)
    with closing(text):
        numbered = keep(table.rows.numbered(), text.size)
    return replace(table, lines=mapped(numbered, itemgetter(0)), rows=mapped(numbered, itemgetter(1)))


def open_table(path: str | Path, layout: Layout) -> tuple[Text, Table]:
    """(the file, to be closed in the end; its table, whose rows are not in memory)

    A first row that may be a header is still a row: `Table.settle` follows. The file is gone through here, so that what is decided
    holds for all of it. Raises UserError, with file and line, for a missing or empty file, one that is no text, broken encoding,
    quoting or JSON. Tests: tests/data/test_table.py, test_reading.py.
    """
    kind = file_format(path, layout)
    decided = [kind]
    text = Text(path, layout.encoding, decided)
    delimiter = None
    if layout.delimiter is not None:
        if kind == "csv":
            delimiter = as_delimiter(layout.delimiter)
        else:
            decided.append(f"--delimiter {layout.delimiter} does not apply to {kind}")
    if layout.header != "auto" and kind not in ("csv", "tsv"):
        decided.append(f"--header {layout.header} does not apply to {kind}")
    if kind == "csv":
        numbered, seen = open_csv(text, delimiter, decided)
    else:
        numbered = partial(READERS[kind], text)
        seen = Survey(numbered())
    if not seen.filled:
        raise UserError(f"{text.path}: the file is empty")
    one = kind != "jsonl" and seen.width == 1  # in a file of one column a blank line is an empty text
    if not one and seen.blank:
        decided.append(f"{seen.blank} blank lines skipped")
    count = seen.filled + seen.blank * one

    def kept() -> Iterator[tuple[int, list | dict]]:
        return ((line, cells or [""]) for line, cells in numbered() if cells or one)

    columns = list(seen.keys) if kind == "jsonl" else FIXED.get(kind)
    return text, Table(text.path, kind, columns, Rows(kept, count, 0), Rows(kept, count, 1), decided)


class Survey:
    """What a file has, before any of it is kept."""

    def __init__(self, numbered: Iterable[tuple[int, list | dict]]):
        self.filled = self.blank = self.width = 0  # rows with cells; without; cells of the first one
        self.keys: dict[str, None] = {}  # of JSON lines, in the order in which they come
        self.spaced = False  # whether a cell begins with a blank and a quote
        for _, cells in numbered:
            if not cells:
                self.blank += 1
                continue
            self.filled += 1
            self.width = self.width or len(cells)
            if isinstance(cells, dict):
                self.keys |= dict.fromkeys(cells)
            elif not self.spaced and ' "' in "".join(cells):
                self.spaced = any(cell.startswith(' "') for cell in cells)


def file_format(path: str | Path, layout: Layout) -> str:
    if layout.format == "csv" or layout.format in READERS:
        return layout.format
    known = ", ".join(["csv", *READERS])
    if layout.format != "auto":
        raise UserError(f"--format {layout.format}: known are auto, {known}")
    if str(path) == "-":
        raise UserError(f"standard input has no extension to tell its format; add --format, one of {known}")
    extension = Path(path).suffix.lower()
    if extension in FORMATS:
        return FORMATS[extension]
    raise UserError(not_text(path) or f"{path}: the extension {extension or '(none)'} does not tell the format; add --format, "
                                      f"one of {known}")  # fmt: skip


# ---- formats: (line, cells) of each row; a blank line has none ----


def open_csv(text: Text, delimiter: str | None, decided: list[str]) -> tuple[Callable[[], Iterator], Survey]:
    """(what reads the rows, what it has found in them)"""
    lines, above = text.lines(), 0
    first = next(lines, "")
    if told := re.fullmatch(r'"?sep=([^"])"?', first, re.IGNORECASE):  # Excel's own first line
        decided.append(f"the line {first!r} names the delimiter")
        first, above = "", 1
        delimiter = delimiter or told[1]
    if delimiter is None:
        first = re.sub(r'"[^"]*"', "", first or next(filter(None, lines), ""))
        delimiter = max(",;\t", key=first.count)
    if delimiter != ",":
        decided.append(f"delimiter {delimiter!r}")
    plain, skipping = (partial(read_csv, text, delimiter, above, skip_blanks) for skip_blanks in (False, True))
    try:
        seen = Survey(plain())
    except CsvError as error:
        if not (told_apart := with_blanks(skipping, delimiter)):
            raise UserError(f"{text.path}:{error.line}: {error}; inside a quoted text a double quote is written twice; "
                            "a file without quoting is --format tsv") from None  # fmt: skip
    else:
        blank = seen.spaced and any(f'{delimiter} "' in line for line in text.lines())
        if not (told_apart := with_blanks(skipping, delimiter) if blank else None):
            return plain, seen
    decided.append("blanks before quotes skipped")
    return skipping, told_apart


def with_blanks(skipping: Callable[[], Iterator], delimiter: str) -> Survey | None:
    """Of rows where a cell such as ` "pos"` is quoted though a blank precedes the quote; None where that is no valid CSV."""
    if delimiter == " ":
        return None
    try:
        return Survey(skipping())
    except CsvError:
        return None


class CsvError(Exception):
    """What is wrong with a row that begins on `line`."""

    def __init__(self, line: int, why: str):
        super().__init__(why)
        self.line = line


def read_csv(text: Text, delimiter: str, above: int, skip_blanks: bool) -> Iterator[tuple[int, list]]:
    """above: lines before the first row."""
    limit = csv.field_size_limit(2**31 - 1)  # the library's own is 131,072 characters a cell
    lines = (line + "\n" for line in islice(text.lines(), above, None))
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=skip_blanks)
    line = above + 1
    try:
        for cells in reader:
            yield line, cells
            line = above + reader.line_num + 1
    except csv.Error as error:
        unclosed = "unexpected end" in str(error)
        raise CsvError(line, "a double quote is opened and never closed" if unclosed else str(error)) from None
    finally:
        csv.field_size_limit(limit)


def as_delimiter(given: str) -> str:
    delimiter = {"tab": "\t", "\\t": "\t"}.get(given, given)
    if len(delimiter) != 1 or delimiter in '"\r\n\0':
        raise UserError(f"--delimiter {given!r}: expected one character, not a double quote, or the word tab")
    return delimiter


def read_tsv(text: Text) -> Iterator[tuple[int, list]]:
    return ((n, line.split("\t") if line else []) for n, line in enumerate(text.lines(), 1))


def read_label_first(text: Text) -> Iterator[tuple[int, list]]:
    for n, line in enumerate(text.lines(), 1):
        cells = line.split(None, 1)
        if len(cells) == 1:
            raise UserError(f"{text.path}:{n}: a label and no text after it")
        yield n, cells


def read_lines(text: Text) -> Iterator[tuple[int, list]]:
    return ((n, [line] if line else []) for n, line in enumerate(text.lines(), 1))


def read_jsonl(text: Text) -> Iterator[tuple[int, dict]]:
    return json_lines(text.path, text.lines())


def json_lines(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, dict]]:
    """(number, object) of each line; a blank one is an empty object"""
    for n, line in enumerate(lines, 1):
        try:
            value = json.loads(line, object_pairs_hook=without_doubles) if line.strip() else {}
        except RecursionError:
            raise UserError(f"{path}:{n}: JSON that is nested too deep; one flat object a line is expected") from None
        except ValueError as error:
            if "integer string conversion" in str(error):  # Python's own limit, of 4,300 digits
                error = "a number of thousands of digits; write it as a text"
            raise UserError(f"{path}:{n}: not valid JSON ({error}); one object a line is expected") from None
        if not isinstance(value, dict):
            raise UserError(f"{path}:{n}: a JSON {type(value).__name__}; one object a line is expected")
        yield n, value


def without_doubles(pairs: list[tuple]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in an object")
    return found


READERS: dict[str, Callable[[Text], Iterator[tuple[int, list | dict]]]] = {
    "tsv": read_tsv,
    "jsonl": read_jsonl,
    "label-first": read_label_first,
    "lines": read_lines,
}
