"""A file to rows of cells. What was assumed is said; nothing is skipped silently. columns.py tells which column is what.

csv           the comma, or the semicolon or tab where the first line has more of those; double quotes as in RFC 4180
tsv           tabs, no quoting: a double quote is a character like any other (GLUE's files)
jsonl         one object a line
label-first   the label, white space, the text (TREC's files)
lines         a text a line and nothing else, for predictions
"""

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from minift.data.encoding import decode, not_text, read_bytes
from minift.data.examples import check_characters
from minift.data.layout import Layout
from minift.errors import UserError

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}

# Columns of the formats that need no header
FIXED = {"label-first": ["label", "text"], "lines": ["text"]}


@dataclass
class Table:
    path: Path  # for messages
    kind: str  # the format
    columns: list[str] | None  # names of the columns; None: no header
    lines: list[int]  # line of the file on which each row begins
    rows: list[list] | list[dict]  # the cells of each row; of JSON lines the objects, in which an absent key is an empty cell
    decided: list[str] = field(default_factory=list)  # how it was read: what to tell the user

    @property
    def width(self) -> int:
        return len(self.columns or self.rows[0])

    def name(self, column: int) -> str:
        """As the user may write it in a flag, and in one line."""
        return self.columns[column].replace("\n", " ") if self.columns else str(column + 1)

    def cells(self, column: int) -> list:
        if isinstance(self.rows[0], dict):
            key = self.columns[column]
            return [row.get(key) for row in self.rows]
        return [row[column] for row in self.rows]

    def texts(self, column: int, null_is_empty: bool = False) -> list[str]:
        """The cells, all of which must be texts that UTF-8 can hold. null_is_empty: of JSON null counts as ''."""
        cells = self.cells(column)
        if null_is_empty:
            cells = ["" if cell is None else cell for cell in cells]
        for row, cell in enumerate(cells):
            if not isinstance(cell, str):
                found = json.dumps(cell)[:60]
                raise UserError(f"{self.where(row)}: column {self.name(column)}: a text is expected, found {found}")
            if not cell.isascii():
                check_characters(cell, f"{self.where(row)}: column {self.name(column)}")
        return cells

    def where(self, row: int) -> str:
        return f"{self.path}:{self.lines[row]}"

    def take(self, rows: list[int]) -> "Table":
        return replace(self, lines=[self.lines[i] for i in rows], rows=[self.rows[i] for i in rows])

    def settle(self, header: bool) -> None:
        """Make the first row the header, or not, and check that every row is as wide as the first. For tables without columns."""
        self.decided.append("header" if header else "no header")
        if header:
            self.columns, self.rows, self.lines = (
                [cell.strip().replace("\n", " ") for cell in self.rows[0]],
                self.rows[1:],
                self.lines[1:],
            )
            if not self.rows:
                raise UserError(f"{self.path}: there is a header and no row below it")
        width = self.width
        for i, cells in enumerate(self.rows):
            if len(cells) != width:
                hint = "; a text with a comma in it must stand in double quotes" if self.kind == "csv" else ""
                raise UserError(
                    f"{self.where(i)}: {len(cells)} columns where the {'header' if header else 'first row'} has {width}{hint}"
                )
        if header and width > 1 and self.columns in self.rows:
            again = self.rows.index(self.columns)
            raise UserError(f"{self.where(again)}: the header stands here again; take the line out")


def read_table(path: str | Path, layout: Layout) -> Table:
    """Read a file, or standard input for `-`. A first row that may be a header is still a row: `Table.settle` follows.

    Raises UserError, with file and line, for a missing or empty file, one that is no text, broken encoding, quoting or JSON.
    Tests: tests/data/test_table.py, test_reading.py.
    """
    kind = file_format(path, layout)
    path, raw = read_bytes(path)
    decided = [kind]
    text = decode(path, raw, layout.encoding, decided)
    delimiter = None
    if layout.delimiter is not None:
        if kind == "csv":
            delimiter = as_delimiter(layout.delimiter)
        else:
            decided.append(f"--delimiter {layout.delimiter} does not apply to {kind}")
    if kind == "csv":
        lines, rows = read_csv(path, text, delimiter, decided)
    else:
        lines, rows = READERS[kind](path, text)
    columns = list(dict.fromkeys(key for row in rows for key in row)) if kind == "jsonl" else FIXED.get(kind)

    filled = [i for i, row in enumerate(rows) if row]
    if not filled:
        raise UserError(f"{path}: the file is empty")
    if kind != "jsonl" and len(rows[filled[0]]) == 1:  # in a file of one column a blank line is an empty text
        rows = [row or [""] for row in rows]
    elif len(filled) < len(rows):
        decided.append(f"{len(rows) - len(filled)} blank lines skipped")
        rows, lines = [rows[i] for i in filled], [lines[i] for i in filled]
    return Table(path, kind, columns, lines, rows, decided)


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


# ---- formats: (line of each row, cells of each row); a blank line has none ----


def read_csv(path: Path, text: str, delimiter: str | None, decided: list[str]) -> tuple[list[int], list[list]]:
    above = 0
    first = text.partition("\n")[0]
    if told := re.fullmatch(r'"?sep=([^"])"?', first, re.IGNORECASE):  # Excel's own first line
        decided.append(f"the line {first!r} names the delimiter")
        text, above = text.partition("\n")[2], 1
        delimiter = delimiter or told[1]
    if delimiter is None:
        first = re.sub(r'"[^"]*"', "", text.lstrip("\n").partition("\n")[0])
        delimiter = max(",;\t", key=first.count)
    if delimiter != ",":
        decided.append(f"delimiter {delimiter!r}")
    try:
        lines, rows = parse_csv(text, delimiter)
    except CsvError as error:
        if told_apart := read_with_blanks(text, delimiter):
            lines, rows = told_apart
            decided.append("blanks before quotes skipped")
        else:
            raise UserError(f"{path}:{error.line + above}: {error}; inside a quoted text a double quote is written twice; "
                            "a file without quoting is --format tsv") from None  # fmt: skip
    else:
        blank = any(cell.startswith(' "') for row in rows for cell in row) if f'{delimiter} "' in text else False
        if blank and (told_apart := read_with_blanks(text, delimiter)):
            lines, rows = told_apart
            decided.append("blanks before quotes skipped")
    return [line + above for line in lines], rows


class CsvError(Exception):
    """What is wrong with a row that begins on `line`."""

    def __init__(self, line: int, why: str):
        super().__init__(why)
        self.line = line


def parse_csv(text: str, delimiter: str, skip_blanks: bool = False) -> tuple[list[int], list[list]]:
    limit = csv.field_size_limit(2**31 - 1)  # the library's own is 131,072 characters a cell
    file = io.StringIO(text.rstrip("\n"), newline="")
    reader = csv.reader(file, delimiter=delimiter, strict=True, skipinitialspace=skip_blanks)
    lines, rows, line = [], [], 1
    try:
        for cells in reader:
            lines.append(line)
            rows.append(cells)
            line = reader.line_num + 1
    except csv.Error as error:
        unclosed = "unexpected end" in str(error)
        raise CsvError(line, "a double quote is opened and never closed" if unclosed else str(error)) from None
    finally:
        csv.field_size_limit(limit)
    return lines, rows


def read_with_blanks(text: str, delimiter: str) -> tuple[list[int], list[list]] | None:
    """The rows where a cell such as ` "pos"` is quoted though a blank precedes the quote; None where that is no valid CSV."""
    if delimiter == " ":
        return None
    try:
        return parse_csv(text, delimiter, skip_blanks=True)
    except CsvError:
        return None


def as_delimiter(given: str) -> str:
    delimiter = {"tab": "\t", "\\t": "\t"}.get(given, given)
    if len(delimiter) != 1 or delimiter in '"\r\n\0':
        raise UserError(f"--delimiter {given!r}: expected one character, not a double quote, or the word tab")
    return delimiter


def by_line(text: str, cells: Callable[[str], list]) -> tuple[list[int], list[list]]:
    lines = text.rstrip("\n").split("\n")
    return list(range(1, len(lines) + 1)), [cells(line) for line in lines]


def read_tsv(path: Path, text: str) -> tuple[list[int], list[list]]:
    return by_line(text, lambda line: line.split("\t") if line else [])


def read_label_first(path: Path, text: str) -> tuple[list[int], list[list]]:
    lines, rows = by_line(text, lambda line: line.split(None, 1))
    for line, cells in zip(lines, rows, strict=True):
        if len(cells) == 1:
            raise UserError(f"{path}:{line}: a label and no text after it")
    return lines, rows


def read_lines(path: Path, text: str) -> tuple[list[int], list[list]]:
    return by_line(text, lambda line: [line] if line else [])


def read_jsonl(path: Path, text: str) -> tuple[list[int], list[dict]]:
    lines, rows = [], []
    for n, line in enumerate(text.rstrip("\n").split("\n"), 1):
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
        lines.append(n)
        rows.append(value)
    return lines, rows


def without_doubles(pairs: list[tuple]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in an object")
    return found


READERS: dict[str, Callable[[Path, str], tuple[list[int], list]]] = {
    "tsv": read_tsv,
    "jsonl": read_jsonl,
    "label-first": read_label_first,
    "lines": read_lines,
}
