"""Documents: running text without labels, from plain text, tables, JSON lines, or a directory of text files.

plain text   a document a line; where blank lines stand between lines, they part the documents, and a document has several lines;
             or the file as a whole (--documents file)
tables       csv, tsv, jsonl: a document is the text of a row
directory    a document a .txt file

A line that holds blanks alone is a blank line. Documents without any letter are left out, and their number is said.
Tests: tests/data/test_documents.py.
"""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from minift.data.columns import choose_columns, is_header
from minift.data.encoding import decode, read_bytes, read_files
from minift.data.examples import Examples, check_characters
from minift.data.folders import all_files
from minift.data.layout import DocumentLayout, not_for_directories
from minift.data.table import FORMATS, read_table
from minift.data.texts import TEXT_FILES, as_texts, empties, from_list
from minift.errors import UserError
from minift.flags import spelled

TABULAR = ("header", "delimiter", "text_column")  # flags that plain text has no use for
LABELLED = ("label_column", "label_part", "skip_unlabelled")  # and those that no document has


@dataclass
class Documents(Examples):
    """Texts, each with the number that it has in its file, which stays with it where rows are taken."""

    texts: list[str]
    numbers: list[int]
    filled: bool = True  # words are to be masked; False: the texts hold masks, to be filled in

    ROWS = ("texts", "numbers")
    UNIT = "document"

    def inputs(self) -> list[dict[str, str]]:
        return [{"text": text} for text in self.texts]

    def example(self) -> str:
        return '"a text with a [MASK] in it"'


def read_documents(source: str | Path | Iterable, layout: DocumentLayout, filled: bool = True) -> Documents:
    """source: the path of a file or of a directory, `-` for standard input, or an iterable of texts. filled: as of Documents.

    Raises UserError, with file and line, for what cannot be read, and for a file without any document.
    """
    if not isinstance(source, str | Path):
        inputs = from_list(source, labelled=False)
        if inputs.pairs is not None:
            raise UserError("pairs of texts, and documents are expected, each a text alone")
        return without_blanks(inputs, filled)
    check_characters(str(source), "the path of a file")
    if os.path.isdir(source):
        return from_directory(Path(source), layout, filled)
    if layout.format not in ("auto", "lines") or (layout.format == "auto" and Path(source).suffix.lower() in FORMATS):
        return from_table(source, layout, filled)
    return from_plain_text(source, layout, filled)


def from_plain_text(source: str | Path, layout: DocumentLayout, filled: bool) -> Documents:
    path, raw = read_bytes(source)
    decided = []
    lines = decode(path, raw, layout.encoding, decided).rstrip("\n").split("\n")
    full = [i for i, line in enumerate(lines) if line.strip()]
    if not full:
        raise UserError(f"{path}: the file is empty")
    parted = layout.documents == "blank-lines"
    if layout.documents == "auto" and layout.format == "auto":
        parted = full[-1] - full[0] >= len(full)  # blank lines before the first document and behind the last part nothing
    if layout.documents == "file":
        decided = ["one document", *decided, *idle(layout, TABULAR + LABELLED, "plain text")]
        return Documents(path, ["\n".join(lines[: full[-1] + 1])], [0], filled, lines=[1], decided=decided)
    texts, starts = [], []
    for before, i in zip([-2, *full], full, strict=False):
        if parted and i == before + 1:
            texts[-1] += "\n" + lines[i]
        else:
            texts.append(lines[i])
            starts.append(i + 1)
    decided.insert(0, "documents separated by blank lines" if parted else "a document a line")
    if not parted and (blank := len(lines) - len(full)):
        decided.append(f"{blank:,} blank lines skipped")
    decided += idle(layout, TABULAR + LABELLED, "plain text")
    return Documents(path, texts, list(range(len(texts))), filled, lines=starts, decided=decided)


def from_table(source: str | Path, layout: DocumentLayout, filled: bool) -> Documents:
    table, flags = read_table(source, layout), {"text": layout.text_column}
    if table.columns is None:
        table.settle(is_header(table, flags, layout.header))
    if table.columns is None and table.width == 1:  # a text a row, and nothing to choose from
        flags = {"text": flags["text"] or "1"}
    pick = choose_columns(table, flags)
    table.decided.append(f"a document a row, text = {' + '.join(map(table.name, pick['text']))}")
    table.decided += idle(layout, LABELLED, "documents") + idle(layout, ("documents",), "a table")
    empty: Counter = Counter()
    texts = as_texts(table, pick["text"], empty)
    table.decided += empties(empty)
    return without_blanks(Documents(table.path, texts, [], lines=table.lines, decided=table.decided), filled)


def from_directory(path: Path, layout: DocumentLayout, filled: bool) -> Documents:
    files, decided = all_files(path, TEXT_FILES)
    texts = list(read_files(files, layout.encoding, decided))
    decided += ["a document a file", *not_for_directories(layout), *idle(layout, ("documents",), "a directory")]
    columns = {"file": list(map(str, files))}
    return without_blanks(Documents(path, texts, [], decided=decided, columns=columns), filled)


def without_blanks(found, filled: bool) -> Documents:
    """The documents that have a letter, numbered as they stood; what a person has asked for one by one stays."""
    numbers = [i for i, text in enumerate(found.texts) if text.strip() or found.given]
    if not numbers and len(found.texts):
        raise UserError(f"{found.path}: all {len(found.texts):,} documents are empty")
    decided = list(found.decided)
    if blank := len(found.texts) - len(numbers):
        decided.append(f"empty documents skipped: {blank:,}")
    lines = None if found.lines is None else [found.lines[i] for i in numbers]
    columns = {name: [values[i] for i in numbers] for name, values in found.columns.items()}
    texts = [found.texts[i] for i in numbers]
    return Documents(found.path, texts, numbers, filled, lines=lines, decided=decided, columns=columns, given=found.given)


def idle(layout: DocumentLayout, names: tuple[str, ...], what: str) -> list[str]:
    """What to tell of flags that were given and say nothing of such a source."""
    given = [name for name in names if getattr(layout, name) != getattr(DocumentLayout, name)]
    return [f"{', '.join(map(spelled, given))} does not apply to {what}"] if given else []
