"""Instructions and their answers, prompts and their completions, conversations: JSON lines, in one of three forms.

instruction   {"instruction": "Name a colour.", "input": "", "output": "Blue."}       input may be missing
prompt        {"prompt": "A colour: ", "completion": "blue"}                          used as they stand
messages      {"messages": [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue."}]}

A row becomes pieces of text, each of which counts or not. The first and the last form are written with headings in plain text (the
layout of Alpaca, Taori et al. 2023, without its preamble): a model that was pretrained on text knows such text, whereas a special
token for a role would be a new row of the embeddings, and random.

    ### System:        ### Instruction:    ### Input:      ### Response:
    CONTENT            CONTENT             CONTENT         ANSWER<|endoftext|>

A blank line stands between the parts. What the assistant says counts, with the end of text behind it; headings never do.
Pieces are tokenised one by one, so that a prompt has the tokens in training that it has when the model is asked; `tokenised` makes
ids and the mask of what counts together, and nothing else makes either. A row that would begin with its answer begins with an end
of text, as the answer's first token must follow something.

Axes: S tokens of a row.
Tests: tests/data/test_instructions.py.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from minift.data.causal import ids_of
from minift.data.encoding import decode, read_bytes
from minift.data.examples import Examples, check_characters
from minift.data.layout import Layout
from minift.data.table import json_lines
from minift.errors import UserError
from minift.flags import spelled

FORMS = {"instruction": ("instruction", "output"), "prompt": ("prompt", "completion"), "messages": ("messages",)}
HEADINGS = {"system": "### System:\n", "user": "### Instruction:\n", "assistant": "### Response:\n"}
INPUT = "### Input:\n"
IDLE = ("header", "delimiter", "text_column", "label_column", "label_part", "skip_unlabelled")


class Piece(NamedTuple):
    text: str
    counts: bool = False  # whether it is an answer, which an end of text follows


@dataclass
class Instructions(Examples):
    pieces: list[list[Piece]]
    form: str = "instruction"  # of FORMS

    ROWS = ("pieces",)

    def inputs(self) -> list[dict[str, str]]:
        """The prompt: what stands before the last answer."""
        return [{"text": "".join(piece.text for piece in asked(row))} for row in self.pieces]

    def example(self) -> str:
        return "--data FILE.jsonl"


def asked(row: list[Piece]) -> list[Piece]:
    """The row without its last answer."""
    return row[:-1] if row[-1].counts else row


def read_instructions(source: str | Path | Iterable, layout: Layout, labelled: bool = True) -> Instructions:
    """source: the path of a file, `-` for standard input, or an iterable of texts, which are asked as instructions.

    labelled: every row must have an answer; else one that has none ends where the answer would begin.
    Raises UserError, with file and line, for what is none of the three forms.
    """
    if not isinstance(source, str | Path):
        texts = list(source)
        if labelled:
            raise UserError("texts that come from no file have no answers; name a file")
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"input {i}: a text is expected, found {type(text).__name__}")
            check_characters(text, f"input {i}")
        return Instructions(Path("inputs"), [conversation([("user", text)]) for text in texts], given=True)
    if layout.format not in ("auto", "jsonl"):
        raise UserError(f"--format {layout.format}: instructions are read from JSON lines alone; leave it out, or give jsonl")
    decided: list[str] = []
    check_characters(str(source), "the path of a file")
    path, raw = read_bytes(source)
    lines = decode(path, raw, layout.encoding, decided).rstrip("\n").split("\n")
    records = [(n, record) for n, record in json_lines(path, lines) if record]
    if not records:
        raise UserError(f"{path}: the file is empty")
    form = form_of(f"{path}:{records[0][0]}", records[0][1])
    rows, empty, others = [], 0, set()
    for n, record in records:
        where = f"{path}:{n}"
        if form_of(where, record) != form:
            raise UserError(
                f"{where}: a row of the form {form_of(where, record)}, where line {records[0][0]} is {form}; use one file each"
            )
        row = READERS[form](where, record, labelled)
        if labelled and not any(piece.counts for piece in row):
            raise UserError(f"{where}: no message of the assistant, so there is no answer to learn")
        others |= record.keys() - {*FORMS[form], "input"}
        rows.append(row)
        empty += any(piece.counts and not piece.text.strip() for piece in row)
    decided.append(f"rows of the form {form}")
    decided += [f"{empty:,} rows with an empty answer"] if empty else []
    decided += [f"{', '.join(sorted(others))} not used"] if others else []
    given = [spelled(name) for name in IDLE if getattr(layout, name) != getattr(Layout, name)]
    decided += [f"{', '.join(given)} does not apply to instructions"] if given else []
    return Instructions(path, rows, form, lines=[n for n, _ in records], decided=decided)


def form_of(where: str, record: dict) -> str:
    found = [form for form, keys in FORMS.items() if keys[0] in record]
    if len(found) != 1:
        known = " or ".join("{" + ", ".join(keys) + "}" for keys in FORMS.values())
        raise UserError(f"{where}: an object with {', '.join(map(repr, record))}; expected {known}")
    return found[0]


def text_at(where: str, record: dict, key: str, needed: bool = True) -> str | None:
    if (value := record.get(key)) is None and not needed:
        return None
    if key not in record:
        raise UserError(f"{where}: there is no {key!r}")
    if not isinstance(value, str):
        raise UserError(f"{where}: {key}: a text is expected, found {json.dumps(value)[:60]}")
    check_characters(value, f"{where}: {key}")
    return value


def from_instruction(where: str, record: dict, labelled: bool) -> list[Piece]:
    said = text_at(where, record, "instruction")
    if given := text_at(where, record, "input", needed=False):
        said += f"\n\n{INPUT}{given}"
    answer = text_at(where, record, "output", labelled)
    return conversation([("user", said)] + ([] if answer is None else [("assistant", answer)]))


def from_prompt(where: str, record: dict, labelled: bool) -> list[Piece]:
    prompt, answer = text_at(where, record, "prompt"), text_at(where, record, "completion", labelled)
    return [Piece(prompt)] + ([] if answer is None else [Piece(answer, True)])


def from_messages(where: str, record: dict, labelled: bool) -> list[Piece]:
    messages = record["messages"]
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: messages: a list of messages is expected, found {json.dumps(messages)[:60]}")
    said = []
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in HEADINGS:
            raise UserError(f"{where}: message {i}: expected a role of {', '.join(HEADINGS)}, found {json.dumps(message)[:60]}")
        said.append((message["role"], text_at(f"{where}: message {i}", message, "content")))
    return conversation(said)


READERS = {"instruction": from_instruction, "prompt": from_prompt, "messages": from_messages}


def conversation(messages: list[tuple[str, str]]) -> list[Piece]:
    """Messages (role, content) under their headings. One that ends with a user's has the heading of an answer behind it."""
    pieces = []
    for role, content in messages:
        pieces.append(Piece(HEADINGS[role]))
        pieces.append(Piece(content, True) if role == "assistant" else Piece(f"{content}\n\n"))
    if messages[-1][0] != "assistant":
        pieces.append(Piece(HEADINGS["assistant"]))
    joined: list[Piece] = []
    for piece in pieces:
        if joined and not joined[-1].counts and not piece.counts:
            piece = Piece(joined.pop().text + piece.text)
        joined.append(piece)
    return joined


def tokenised(tokenizer: Tokenizer, rows: list[list[Piece]], end: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids (S), whether each counts (S)) of each row. end: id of the end of text, which counts behind each answer."""
    ids = iter(ids_of(tokenizer, [piece.text for row in rows for piece in row]))
    made = []
    for row in rows:
        parts = [(np.append(next(ids), end) if piece.counts else next(ids), piece.counts) for piece in row]
        if not len(parts[0][0]) or parts[0][1]:
            parts.insert(0, (np.array([end]), False))
        counts = np.repeat([counts for _, counts in parts], [len(part) for part, _ in parts])
        made.append((np.concatenate([part for part, _ in parts]), counts))
    return made
