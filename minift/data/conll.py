"""Sentences as words with a tag each: CoNLL columns, JSON lines, and plain sentences for predictions.

conll   a word a line, columns separated by tabs or by blanks: the word first, its tag last; without labels one column is enough.
        A blank line ends a sentence, also one that holds blanks or tabs (2,394 of those of WNUT-17's training file do; a reader
        that splits at empty lines makes 1,000 sentences of its 3,394). -DOCSTART- begins a document and is no word
jsonl   one object a line: {"tokens": ["John", "left"], "tags": ["B-person", "O"]}
lines   a sentence a line, split at blanks; for predictions

Tags stay as the file has them, in whatever scheme (IOB1, IOB2, IOBES, BILOU); minift/metrics/entities.py detects and converts it.
Only their form is checked here, where the line is known: O, or one of B, I, E, S, L, U, alone or with a hyphen and a type after it.

Tests: tests/data/test_conll.py.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from minift.data.encoding import decode, read_bytes
from minift.data.examples import Examples, check_characters, listed
from minift.data.table import json_lines
from minift.errors import UserError

FORMATS = ("auto", "conll", "jsonl", "lines")
EXTENSIONS = {".conll": "conll", ".iob": "conll", ".bio": "conll", ".jsonl": "jsonl", ".ndjson": "jsonl"}
WORDS = ("tokens", "words")  # usual keys of JSON lines, the first that is there
TAGS = ("tags", "ner_tags", "labels", "ner")
TAG = re.compile(r"O|[BIESLU](-.+)?", re.DOTALL)
BOUNDARY = "-DOCSTART-"


@dataclass
class Tagged(Examples):
    """Sentences, each a list of words, with a tag for each word."""

    words: list[list[str]]
    tags: list[list[str]] | None = None
    documents: list[int] | None = None  # number of each sentence's document; None: the file does not say
    texts: list[str | None] | None = None  # the sentences as they were written; None where words were given
    word_a_line: bool = False  # the words of a sentence stand on as many lines

    ROWS = ("words", "tags", "documents", "texts")
    UNIT = "sentence"

    def inputs(self) -> list[dict]:
        """The words of each sentence, as predictions repeat them, and the text that they were split from."""
        texts = self.texts or [None] * len(self)
        return [({} if text is None else {"text": text}) | {"tokens": words} for text, words in zip(texts, self.words, strict=True)]

    def example(self) -> str:
        return '"a sentence"'

    def groups(self) -> list[int] | None:
        return self.documents

    def where(self, row: int) -> str:
        return f"sentence {row + 1}" if self.given else super().where(row)

    def where_word(self, row: int, word: int) -> str:
        """The place of one word in an error; row and word count from 0."""
        if self.lines is not None and self.word_a_line:
            return f"{self.path}:{self.lines[row] + word}"
        return f"{self.where(row)}: word {word + 1} ({self.words[row][word]!r})"

    def text(self, row: int) -> str:
        """The sentence as it was written; where the file holds words, these joined by blanks."""
        written = self.texts and self.texts[row]
        return " ".join(self.words[row]) if written is None else written

    def offsets(self, row: int) -> list[tuple[int, int]]:
        """(first character, character after the last) of each word in text(row)."""
        text, spans, at = self.text(row), [], 0
        for word in self.words[row]:
            at = text.index(word, at)
            spans.append((at, at + len(word)))
            at += len(word)
        return spans


# What stands before and behind a word without being a part of it; no apostrophe, which may be
OPENING, CLOSING = '([{<"\u201c\u2018\u00ab\u00bf\u00a1', '.,;:!?)]}>"\u201d\u00bb\u2026'
CHUNK = re.compile(rf"([{re.escape(OPENING)}]*)(.*?)([{re.escape(CLOSING)}]*)", re.DOTALL)
POSSESSIVE = re.compile(r"(.{2,})(['\u2019]s)", re.DOTALL | re.IGNORECASE)


def punctuation_apart(words: list[str]) -> list[str]:
    """The words of a text that was split at blanks, with the punctuation around them as words of its own, as corpora have it.

    Also 's after two letters or more. The last dot of what holds another one (U.S.) or is one letter (J.) stays, and so does what
    has no letter or digit, as :-) and ...
    """
    apart = []
    for chunk in words:
        opening, core, closing = CHUNK.fullmatch(chunk).groups()
        if not re.search(r"\w", core):
            apart.append(chunk)
            continue
        if closing.startswith(".") and ("." in core or (len(core) == 1 and core.isalpha())):
            core, closing = core + ".", closing[1:]
        possessive = POSSESSIVE.fullmatch(core)
        apart += [*opening, *(possessive.groups() if possessive else [core]), *closing]
    return apart


def has_punctuation_apart(examples: Tagged) -> bool:
    """Whether in these sentences punctuation stands more often by itself than at the end of a word."""
    ends = [len(word) == 1 for words in examples.words for word in words if word[-1] in ",;:!?."]
    return 2 * sum(ends) > len(ends)


def read_conll(
    source: str | Path | Iterable,
    *,
    encoding: str = "utf-8",
    format: str = "auto",
    text_column: str | None = None,
    label_column: str | None = None,
    labelled: bool = True,
) -> Tagged:
    """Read a file, or sentences that come from none.

    source: a path, or any iterable of sentences: texts (split at blanks), lists of words, or objects as in the lines of a JSONL
    file. format: conll, jsonl, lines, or auto: by the extension; of another extension conll where there are labels, and without
    labels conll where every line holds one word or as many columns with a tag in the last, else lines. text_column, label_column:
    number from 1 of the words' and of the tags' column, or the key in a JSONL file; unset: the first and the last column, or a
    usual key. labelled: every word must have a tag; else tags are not looked at.

    Raises UserError, with file and line, for a missing or empty file, broken encoding, lines of another number of columns, an empty
    word, what is no tag, and a number of tags that is not that of the words.
    """
    if not isinstance(source, str | Path):
        return from_inputs(source, text_column, label_column, labelled)
    path = Path(source)
    if path.is_dir():
        raise UserError(f"{path}: a directory; a file of sentences is expected")
    path, raw = read_bytes(source)
    decided: list[str] = []
    text = decode(path, raw, encoding, decided)
    lines = text.split("\n")
    kind, why = file_format(path, lines, format, labelled)
    decided.insert(0, kind + why)
    if kind == "jsonl":
        found = read_objects(path, text, text_column, label_column, labelled, decided)
    elif kind == "lines":
        numbered = [(n, line) for n, line in enumerate(lines, 1) if line.strip()]
        found = Tagged(path, [line.split() for _, line in numbered], texts=[line for _, line in numbered])
        found.lines = [n for n, _ in numbered]
        blank = len(text.rstrip("\n").split("\n")) - len(numbered)
        decided += [f"{blank:,} blank lines skipped"] if blank else []
    else:
        found = read_columns(path, lines, text_column, label_column, labelled, decided)
    if not len(found):
        raise UserError(f"{path}: the file holds no sentence")
    decided.append(f"{len(found):,} sentences, {sum(map(len, found.words)):,} words")
    if found.documents is not None:
        decided.append(f"{len(set(found.documents)):,} documents")
    if found.tags is not None and all(tag == "O" for tags in found.tags for tag in tags):
        decided.append("no entity: every tag is O")
    found.decided = decided
    return found


def file_format(path: Path, lines: list[str], format: str, labelled: bool) -> tuple[str, str]:
    """(format, why, to be said after it)."""
    if format not in FORMATS:
        raise UserError(f"--format {format}: known are {', '.join(FORMATS)}")
    if format == "lines" and labelled:
        raise UserError(
            f"{path}: --format lines holds sentences without tags; for training and evaluation conll or jsonl is expected"
        )
    if format != "auto":
        return format, ""
    if labelled or path.suffix.lower() in EXTENSIONS:
        return EXTENSIONS.get(path.suffix.lower(), "conll"), ""
    filled = [line for line in lines if line.strip() and not line.startswith(BOUNDARY)]
    tabs = all("\t" in line for line in filled)
    rows = [split_line(line, tabs) for line in filled[:1000]]
    if all(len(cells) == 1 for cells in rows):
        return "conll", " (a word a line; a sentence a line is --format lines)"
    if len({len(cells) for cells in rows}) == 1 and all(TAG.fullmatch(cells[-1]) for cells in rows):
        return "conll", " (columns with a tag in the last)"
    return "lines", " (a sentence a line; columns are --format conll)"


def split_line(line: str, tabs: bool) -> list[str]:
    """The cells of a line. Only blanks and tabs part them: a word may hold another white space, as U+00A0 or U+3000."""
    return [cell.strip(" ") for cell in line.split("\t")] if tabs else re.split(r"[ \t]+", line.strip(" \t"))


# ---- CoNLL columns ----


def read_columns(
    path: Path, lines: list[str], text_column: str | None, label_column: str | None, labelled: bool, decided: list[str]
) -> Tagged:
    filled = [(n, line) for n, line in enumerate(lines, 1) if line.strip() and not line.startswith(BOUNDARY)]
    if not filled:
        raise UserError(f"{path}: the file is empty")
    first, line = filled[0]
    tabs = "\t" in line.strip()
    parted = "tabs" if tabs else "blanks"
    width = len(split_line(line, tabs))
    word_at = column_number(path, text_column, "text", 1, width)
    tag_at = column_number(path, label_column, "label", width, width) if labelled else -1
    if labelled and width == 1:
        raise UserError(f"{path}:{first}: one column, separated by {parted}, where a word and its tag are expected")
    decided.append(f"{width} columns separated by {parted}, word = {word_at + 1}" + (f", tag = {tag_at + 1}" if labelled else ""))

    words, tags, begins, documents = [], [], [], []
    document, open_sentence, blank = 0, False, 0
    for n, line in enumerate(lines, 1):
        if not line.strip():
            open_sentence = False
            blank += bool(line)
            continue
        if line.startswith(BOUNDARY):
            document, open_sentence = document + 1, False
            continue
        cells = split_line(line, tabs)
        if len(cells) != width:
            raise UserError(
                f"{path}:{n}: {len(cells)} columns, separated by {parted}, where line {first} has {width}; a blank line ends a "
                "sentence"
            )
        if not cells[word_at].strip():
            raise UserError(f"{path}:{n}: the word is empty, column {word_at + 1}")
        if labelled and not TAG.fullmatch(cells[tag_at]):
            raise UserError(f"{path}:{n}: {no_tag(cells[tag_at], tag_at)}" + "; a header is not expected" * (n == first))
        if not open_sentence:
            words.append([])
            tags.append([])
            begins.append(n)
            documents.append(document)
            open_sentence = True
        words[-1].append(cells[word_at])
        tags[-1].append(cells[tag_at])
    if blank:
        decided.append(f"{blank:,} lines between sentences hold blanks")
    grouped = documents if document else None
    return Tagged(path, words, tags if labelled else None, grouped, word_a_line=True, lines=begins)


def column_number(path: Path, given: str | None, role: str, default: int, width: int) -> int:
    """Index of a column, given by its number from 1."""
    if given is None:
        return default - 1
    if not (given.isascii() and given.isdecimal() and 1 <= int(given) <= width):
        raise UserError(f"{path}: --{role}-column {given}: a number of 1 to {width} is expected, the columns that the file has")
    return int(given) - 1


def no_tag(tag: str, column: int | None = None) -> str:
    if not tag.strip():
        return "a word without a tag"
    where = "" if column is None else f" (column {column + 1}; another one is --label-column NUMBER)"
    return f"{tag!r} is no tag: O, or B, I, E, S, L or U with a hyphen and a type is expected, as in B-person{where}"


# ---- JSON lines, and sentences that come from no file ----


def read_objects(
    path: Path, text: str, text_column: str | None, label_column: str | None, labelled: bool, decided: list[str]
) -> Tagged:
    records = [(line, value) for line, value in json_lines(path, text.rstrip("\n").split("\n")) if value]
    keys = list(dict.fromkeys(key for _, value in records for key in value))
    if not keys:
        raise UserError(f"{path}: the file is empty")
    word_key = json_key(f"{path}", keys, text_column, "text", WORDS)
    tag_key = json_key(f"{path}", keys, label_column, "label", TAGS) if labelled else None
    decided.append(f"word = {word_key}" + (f", tag = {tag_key}" if labelled else ""))
    words, tags, begins = [], [], []
    for line, value in records:
        words.append(as_words(f"{path}:{line}", value.get(word_key), word_key))
        tags.append(as_tags(f"{path}:{line}", value.get(tag_key), tag_key, len(words[-1])) if labelled else [])
        begins.append(line)
    return Tagged(path, words, tags if labelled else None, lines=begins)


def from_inputs(source: Iterable, text_column: str | None, label_column: str | None, labelled: bool) -> Tagged:
    words, tags, texts = [], [], []
    for n, item in enumerate(listed(source, "sentences"), 1):
        where = f"sentence {n}"
        if labelled and not isinstance(item, dict):
            raise UserError(f'{where}: an object of words and tags is expected, as {{"tokens": ["John"], "tags": ["B-person"]}}')
        word_key = json_key(where, list(item), text_column, "text", WORDS) if isinstance(item, dict) else "words"
        value = item[word_key] if isinstance(item, dict) else item.split() if isinstance(item, str) else item
        words.append(as_words(where, value, word_key))
        texts.append(item if isinstance(item, str) else None)
        if labelled:
            tag_key = json_key(where, list(item), label_column, "label", TAGS)
            tags.append(as_tags(where, item[tag_key], tag_key, len(words[-1])))
    return Tagged(Path(), words, tags if labelled else None, None, texts if any(texts) else None, given=True)


def json_key(where: str, keys: list[str], given: str | None, role: str, usual: tuple[str, ...]) -> str:
    found = next((key for key in ([given] if given else usual) if key in keys), None)
    if found is None:
        what = f"--{role}-column {given}: no such key" if given else f"no key {' or '.join(usual)}; name it with --{role}-column"
        raise UserError(f"{where}: {what}; keys are {', '.join(map(repr, keys))}")
    return found


def as_words(where: str, value, key: str) -> list[str]:
    if not isinstance(value, list | tuple) or not value:
        raise UserError(f"{where}: {key}: a list of words is expected, found {json.dumps(value, default=repr)[:60]}")
    for i, word in enumerate(value, 1):
        if not isinstance(word, str) or not word.strip():
            raise UserError(
                f"{where}: {key}: word {i} is {json.dumps(word, default=repr)[:60]}; a text that is not empty is expected"
            )
        check_characters(word, f"{where}: {key}: word {i}")
    return list(value)


def as_tags(where: str, value, key: str, words: int) -> list[str]:
    if not isinstance(value, list | tuple):
        raise UserError(f"{where}: {key}: a list of tags is expected, found {json.dumps(value, default=repr)[:60]}")
    if len(value) != words:
        raise UserError(f"{where}: {words} words and {len(value)} tags; as many are expected")
    for i, tag in enumerate(value, 1):
        if not isinstance(tag, str):
            hint = "; numbers stand for names that the file does not hold: write the names" * isinstance(tag, int)
            raise UserError(f"{where}: {key}: tag {i} is {json.dumps(tag, default=repr)[:60]}, a text is expected{hint}")
        if not TAG.fullmatch(tag):
            raise UserError(f"{where}: word {i}: {no_tag(tag)}")
    return list(value)
