"""Tables of texts and labels: CSV, TSV, JSON lines, and `label text` lines. What is decided is said; nothing is skipped silently.

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
import shlex
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minift.data.examples import Examples
from minift.data.layout import TextLayout
from minift.errors import UserError

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}

# Usual names of columns, compared without regard to case; the first that a file has is taken.
PAIRS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("text_a", "text_b"),
)
TEXTS = ("sentence", "text", "review", "content", "comment", "tweet", "message", "question", "title", "body")
LABELS = ("label", "labels", "class", "category", "sentiment", "target", "gold_label", "rating", "stars")
USUAL = {*TEXTS, *LABELS, *(name for pair in PAIRS for name in pair)}


@dataclass
class Texts(Examples):
    """Texts, or pairs of texts, with their labels."""

    texts: list[str]
    pairs: list[str] | None = None
    labels: list[str] | None = None
    shortened: int = 0  # labels of which --label-part has kept a part

    ROWS = ("texts", "pairs", "labels")

    def inputs(self) -> list[dict[str, str]]:
        if self.pairs is None:
            return [{"text": text} for text in self.texts]
        return [{"text": text, "pair": pair} for text, pair in zip(self.texts, self.pairs, strict=True)]

    def example(self) -> str:
        return '"some text"' if self.pairs is None else '"some text" --pair "another text"'

    def strata(self) -> list[str] | None:
        return self.labels


def read_texts(path, layout: TextLayout, labelled: bool = True) -> Texts:
    """Read a file. labelled: every row must have a label; else no label column is looked for.

    Raises UserError, with file and line, for a missing or empty file, broken encoding, a column that is not there, a row of
    another width than the header, a row without a label.
    """
    if not isinstance(path, str | Path):
        given = list(path)
        pairs = [p for _, p in given] if given and isinstance(given[0], tuple) else None
        texts = [t for t, _ in given] if pairs is not None else given
        if not all(isinstance(t, str) for t in texts):
            raise UserError("predict: a list of texts is expected")
        return Texts(Path("predict"), texts, pairs)
    path = Path(path)
    if path.is_dir():
        raise UserError(
            f"{path}: a directory, where a file of texts is wanted; images are a task of their own, --task image-classification"
        )
    kind = file_format(path, layout)
    text = read_text(path, layout.encoding)
    decided = [kind]
    if kind == "jsonl":
        columns, records = read_jsonl(path, text)
    else:
        records = READERS[kind](path, text, decided)
        columns = {"label-first": ["label", "text"], "lines": ["text"]}.get(kind)
    blank = [record for record in records if not record[1]]
    records = [record for record in records if record[1]]
    if not records:
        raise UserError(f"{path}: the file is empty")
    if len(records[0][1]) == 1 and columns in (None, ["text"]):  # in a file of one column a blank line is an empty text
        records = sorted([*records, *((line, [""]) for line, _ in blank)])
    elif blank:
        decided.append(f"{len(blank)} blank lines skipped")
    if layout.encoding.lower() not in ("utf-8", "utf8"):
        decided.append(f"as {layout.encoding}")
    if columns is None:
        columns = read_header(records, layout)
        decided.append("header" if columns else "no header")
        records = records[1:] if columns else records
        if not records:
            raise UserError(f"{path}: there is a header and no row below it")
    width = len(columns or records[0][1])
    for line, cells in records:
        if len(cells) != width:
            hint = "; a text with a comma in it must stand in double quotes" if kind == "csv" else ""
            raise UserError(
                f"{path}:{line}: {len(cells)} columns where the {'header' if columns else 'first row'} has {width}{hint}"
            )

    pick = choose_columns(path, columns, records[0][1], layout, labelled, records)
    names = {role: columns[i] if columns else str(i + 1) for role, i in pick.items()}
    decided.append("columns " + ", ".join(f"{role} = {name}" for role, name in names.items()))
    lines = [line for line, _ in records]
    texts, pairs = (
        [as_text(path, line, names[role], cells[pick[role]]) for line, cells in records] if role in pick else None
        for role in ("text", "pair")
    )
    labels, shortened = None, 0
    if labelled:
        labels = [as_label(path, line, names["label"], cells[pick["label"]]) for line, cells in records]
        if layout.label_part:
            shortened = sum(layout.label_part in label for label in labels)
            labels = [label.split(layout.label_part)[0].strip() for label in labels]
        without = [line for line, label in zip(lines, labels, strict=True) if not label]
        if without:
            more = f" (and {len(without) - 1} more rows)" if without[1:] else ""
            raise UserError(f"{path}:{without[0]}: a row without a label, column {names['label']}{more}; label it or take it out")
        if layout.header == "auto" and columns is None and labels[0] not in labels[1:] and len(labels) > 2:
            raise UserError(f"{path}:{lines[0]}: the label {labels[0]!r} is found in the first row alone; if that row is a header, "
                            "add --header yes, else --header no")  # fmt: skip
    empty = sum(not text.strip() for text in texts)
    if empty:
        decided.append(f"{empty} rows with an empty text")
    return Texts(path, texts, pairs, labels, shortened, lines=lines, decided=decided)


def file_format(path: Path, layout: TextLayout) -> str:
    if layout.format in READERS or layout.format == "jsonl":
        return layout.format
    if layout.format != "auto":
        raise UserError(f"--format {layout.format}: known are auto, {', '.join(READERS)}, jsonl")
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path}: the extension {path.suffix or '(none)'} does not tell the format; add --format "
                        "csv, tsv, jsonl, label-first or lines")  # fmt: skip
    return FORMATS[path.suffix.lower()]


def read_text(path: Path, encoding: str) -> str:
    """The decoded file, lines ended by \\n alone, without a byte order mark."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        text = raw.decode(encoding)
    except LookupError:
        raise UserError(f"--encoding {encoding}: no encoding of this name; usual ones are utf-8, latin-1, cp1252, utf-16") from None
    except UnicodeError as error:
        at = getattr(error, "start", 0)
        line = raw.count(b"\n", 0, at) + 1
        column = at - (raw.rfind(b"\n", 0, at) + 1) + 1
        raise UserError(f"{path}:{line}:{column}: byte 0x{raw[at]:02x} is not {encoding}; name the file's encoding, "
                        "most often --encoding latin-1 or --encoding cp1252") from None  # fmt: skip
    if "\0" in text:
        raise UserError(
            f"{path}: holds zero bytes, so it is no {encoding} text; a table saved as Unicode by a spreadsheet is --encoding utf-16"
        )
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


Record = tuple[int, list]  # line on which the row begins, cells


def read_csv(path: Path, text: str, decided: list[str]) -> list[Record]:
    first = re.sub(r'"[^"]*"', "", text.lstrip("\n").partition("\n")[0])
    delimiter = max(",;\t", key=first.count)
    if delimiter != ",":
        decided.append(f"delimiter {delimiter!r}")
    limit = csv.field_size_limit(2**31 - 1)  # the library's own is 131,072 characters a cell
    reader = csv.reader(io.StringIO(text.rstrip("\n"), newline=""), delimiter=delimiter, strict=True)
    records, line = [], 1
    try:
        for cells in reader:
            records.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        why = "a double quote is opened and never closed" if "unexpected end" in str(error) else str(error)
        raise UserError(
            f"{path}:{line}: {why}; inside a quoted text a double quote is written twice; a file without quoting is --format tsv"
        ) from None
    finally:
        csv.field_size_limit(limit)
    return records


def read_tsv(path: Path, text: str, decided: list[str]) -> list[Record]:
    return [(n, line.split("\t") if line else []) for n, line in enumerate(text.rstrip("\n").split("\n"), 1)]


def read_label_first(path: Path, text: str, decided: list[str]) -> list[Record]:
    records = [(n, line.split(None, 1)) for n, line in enumerate(text.rstrip("\n").split("\n"), 1)]
    for n, cells in records:
        if len(cells) == 1:
            raise UserError(f"{path}:{n}: a label and no text after it")
    return records


def read_lines(path: Path, text: str, decided: list[str]) -> list[Record]:
    return [(n, [line] if line else []) for n, line in enumerate(text.rstrip("\n").split("\n"), 1)]


READERS: dict[str, Callable[[Path, str, list[str]], list[Record]]] = {
    "csv": read_csv,
    "tsv": read_tsv,
    "label-first": read_label_first,
    "lines": read_lines,
}


def read_jsonl(path: Path, text: str) -> tuple[list[str], list[Record]]:
    """(keys of all objects in the order of their first appearance, rows); a key that an object lacks is an empty cell."""
    objects, columns = [], {}
    for n, line in enumerate(text.rstrip("\n").split("\n"), 1):
        try:
            value = json.loads(line) if line.strip() else {}
        except ValueError as error:
            raise UserError(f"{path}:{n}: not valid JSON ({error}); one object a line is wanted") from None
        if not isinstance(value, dict):
            raise UserError(f"{path}:{n}: a JSON {type(value).__name__}; one object a line is wanted")
        objects.append((n, value))
        columns |= dict.fromkeys(value)
    return list(columns), [(n, [value.get(column) for column in columns] if value else []) for n, value in objects]


def read_header(records: list[Record], layout: TextLayout) -> list[str] | None:
    """The column names, or None where the file has no header."""
    if layout.header not in ("auto", "yes", "no"):
        raise UserError(f"--header {layout.header}: known are auto, yes, no")
    cells = [cell.strip() for cell in records[0][1]]
    given = [name for name in (layout.text_column, layout.pair_column, layout.label_column) if name]
    numbers = [int(name) - 1 for name in given if is_number(name)]
    if numbers:  # a row of data may hold a usual name, as the label `question`; in a header all the columns that are meant do
        found = all(i < len(cells) and cells[i].lower() in USUAL for i in numbers)
    else:
        found = any(cell.lower() in USUAL or cell in given for cell in cells)
    return cells if layout.header == "yes" or (layout.header == "auto" and found) else None


def is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()


def choose_columns(
    path: Path, columns: list[str] | None, first: list, layout: TextLayout, labelled: bool, records: list[Record]
) -> dict[str, int]:
    """Role (text, pair, label) -> index of its column: what the flags say, else the first usual name that has no other role."""
    shown = columns or [str(cell)[:30] for cell in first]
    listed = ", ".join(f"{i} {name!r}" for i, name in enumerate(shown, 1))
    wanted = {"text": layout.text_column, "pair": layout.pair_column} | ({"label": layout.label_column} if labelled else {})
    pick: dict[str, int] = {}
    for role, name in wanted.items():
        if name is None:
            continue
        if columns and name in columns:
            i = columns.index(name)
        elif is_number(name) and 1 <= int(name) <= len(shown):
            i = int(name) - 1
        else:
            kind = "columns are" if columns else "the file has no header; its first row is"
            raise UserError(f"{path}: --{role}-column {name}: no such column; {kind} {listed}")
        if i in pick.values():
            raise UserError(f"{path}: --{role}-column {name}: the same column twice; columns are {listed}")
        pick[role] = i

    free = {name.lower(): i for i, name in enumerate(columns or []) if i not in pick.values()}
    pair = next((pair for pair in PAIRS if set(pair) <= free.keys()), None)
    if pair and "text" not in pick and "pair" not in pick:
        pick["text"], pick["pair"] = free.pop(pair[0]), free.pop(pair[1])
    for role, names in (("text", TEXTS), ("label", LABELS)):
        usual = next((name for name in names if name in free), None)
        if role not in pick and role in wanted and usual:
            pick[role] = free.pop(usual)
    for role in ("text", "label"):
        if role in wanted and role not in pick:
            what = "no column bears a usual name for the" if columns else "no header, so say which column is the"
            raise UserError(f"{path}: {what} {role}; columns are {listed}; perhaps {suggest(columns, records, pick, labelled)}")
    return pick


def suggest(columns: list[str] | None, records: list[Record], pick: dict[str, int], labelled: bool) -> str:
    """Flags that look right: the text is the column of the longest cells, the label one of few different cells."""
    sample = [[str(cell) for cell in cells] for _, cells in records[:1000]]
    if columns is None and len(sample) > 1:
        sample = sample[1:]  # it may be a header
    by_column = list(zip(*sample, strict=True))

    def name(i: int) -> str:
        return shlex.quote(columns[i]) if columns else str(i + 1)

    free = [i for i in range(len(by_column)) if i not in pick.values()]
    text = pick["text"] if "text" in pick or not free else max(free, key=lambda i: sum(map(len, by_column[i])))
    few = [i for i in free if i != text and 1 < len(set(by_column[i])) <= max(2, len(sample) / 2)]
    flags = [] if "text" in pick else [f"--text-column {name(text)}"]
    if labelled and "label" not in pick:
        if not few:
            return "a file without labels is for minift.predict"
        flags.append(f"--label-column {name(min(few, key=lambda i: len(set(by_column[i]))))}")
    return " ".join(flags)


def as_text(path: Path, line: int, column: str, cell) -> str:
    if not isinstance(cell, str):
        raise UserError(f"{path}:{line}: column {column}: a text is wanted, found {json.dumps(cell)}")
    if any("\ud800" <= letter <= "\udfff" for letter in cell):
        raise UserError(
            f"{path}:{line}: column {column}: half of a character (a lone surrogate), as of an emoji cut in two; mend the text"
        )
    return cell


def as_label(path: Path, line: int, column: str, cell) -> str:
    """A label's name: text without outer blanks; numbers and truth values as JSON writes them; '' where there is none."""
    if isinstance(cell, list | dict):
        raise UserError(f"{path}:{line}: column {column}: one label is wanted, found {json.dumps(cell)[:60]}")
    return cell.strip() if isinstance(cell, str) else "" if cell is None else json.dumps(cell)


# ---- labels and splits ----


def label_names(rows: Texts) -> list[str]:
    """The labels in the order of their ids: by value where all are whole numbers, else by the alphabet."""
    counts = Counter(rows.labels)
    if len(counts) == 1:
        raise UserError(f"{rows.path}: every row has the label {rows.labels[0]!r}; a classifier needs two or more")
    if len(rows) >= 20 and len(counts) > len(rows) / 2:
        raise UserError(
            f"{rows.path}: {len(counts)} different labels in {len(rows)} rows, as {rows.labels[0][:40]!r}: "
            "this is no column of classes; say which one is with --label-column"
        )
    return by_value(counts)


def by_value(labels: Iterable[str]) -> list[str]:
    """In the order of their ids: by value where all are whole numbers, else by the alphabet."""
    numbers = all(re.fullmatch(r"-?\d+", label, re.ASCII) for label in labels)
    return sorted(labels, key=(lambda label: (int(label), label)) if numbers else None)


def label_ids(rows: Texts, names: list[str]) -> np.ndarray:
    """(N) ids; a label that training has not seen is an error with its line."""
    ids = {name: i for i, name in enumerate(names)}
    for line, label in zip(rows.lines, rows.labels, strict=True):
        if label not in ids:
            known = ", ".join(names[:8]) + (", ..." if names[8:] else "")
            raise UserError(f"{rows.path}:{line}: the label {label!r} does not occur in the training rows (known: {known})")
    return np.array([ids[label] for label in rows.labels], dtype=np.int64)


def split_stratified(labels: list[str], share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(kept, held out) row numbers: of every label the share, rounded; at least one row of each label is kept."""
    random = np.random.default_rng(seed)
    rows: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        rows.setdefault(label, []).append(i)
    held = [random.permutation(rows[name])[: min(round(len(rows[name]) * share), len(rows[name]) - 1)] for name in sorted(rows)]
    held = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), held), held
