"""Questions on contexts: SQuAD 1.1 and 2.0 files, and flat tables of question, context, answer.

squad   JSON: data -> paragraphs (context) -> qas (id, question, answers of text and answer_start; 2.0: is_impossible); or a list of
        flat objects, alone or under `data`
jsonl   one object a line: question, context, answer: a text, a list of texts, or {"text": [...], "answer_start": [...]}
csv, tsv   a header and the columns question, context, answer, perhaps answer_start and id

An empty answer (an empty text or list, null) is "no answer stands in the context", as in SQuAD 2.0. answer_start counts characters
(code points) of the context from 0, as Python does. Questions, contexts and answers stay as they are written, blanks included.

Where the text of an answer does not stand at its offset, or has none: if the context holds it once, that place; if several times,
the place nearest to the offset, without an offset the first; all of this is counted and said. A text that the context does not
hold cannot be trained on (`check_trainable`); in evaluation it counts, since only its text is compared, and is said.

Tests: tests/data/test_squad.py.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from minift.data.columns import other_columns
from minift.data.encoding import decode, not_text, read_bytes
from minift.data.examples import Examples, check_characters, listed
from minift.data.layout import Layout
from minift.data.table import read_table
from minift.errors import UserError

FORMATS = {".json": "squad", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}
KINDS = tuple(dict.fromkeys(FORMATS.values()))
COLUMNS = {  # role -> usual names, compared without regard to case; the first that is there is taken
    "question": ("question", "query"),
    "context": ("context", "passage", "paragraph"),
    "answer": ("answers", "answer", "answer_text"),
    "answer_start": ("answer_start", "start", "offset"),
    "id": ("id", "qid", "question_id"),
}


class Answer(NamedTuple):
    text: str
    start: int | None  # first character in the context; None: the context does not hold the text


@dataclass
class Questions(Examples):
    """Questions, each with its context, its id and its gold answers: none where the context does not answer it."""

    questions: list[str]
    contexts: list[str]
    ids: list[str]
    answers: list[list[Answer]] | None = None
    version: str = "1.1"  # of SQuAD, by which it is scored: 2.0 where the file says so or a question has no answer

    ROWS = ("questions", "contexts", "ids", "answers")
    UNIT = "question"

    def inputs(self) -> list[dict[str, str]]:
        rows = zip(self.ids, self.questions, self.contexts, strict=True)
        return [{"id": key, "question": question, "context": context} for key, question, context in rows]

    def example(self) -> str:
        return '"a question" --pair "a context"'

    def groups(self) -> list[str]:
        """The context: a split never parts its questions, or the held-out ones would be asked on a text that training has seen."""
        return self.contexts

    def where(self, row: int) -> str:
        return super().where(row) if self.lines is not None else f"{self.path}: question {self.ids[row]}"

    def gold(self) -> dict[str, list[str]]:
        """Question -> texts of its gold answers, as minift/metrics/squad.py takes them."""
        return {key: [answer.text for answer in answers] for key, answers in zip(self.ids, self.answers, strict=True)}


class Row(NamedTuple):
    """A question as the file has it. where: file and line, or file and path within the JSON."""

    where: str
    line: int | None
    key: str | None
    question: str
    context: str
    answers: list[Answer]  # start: as given


def read_squad(
    source: str | Path | Iterable,
    *,
    encoding: str = "utf-8",
    format: str = "auto",
    labelled: bool = True,
    columns: Mapping[str, str | None] = MappingProxyType({}),
    delimiter: str | None = None,
) -> Questions:
    """Read a file, or questions that come from none.

    source: a path, or any iterable of (question, context) or of objects as in the lines of a JSONL file. format: squad, jsonl,
    csv, tsv, or auto: by the extension. labelled: answers are read; a file without them is an error. columns: role -> name, or
    number from 1, of its column in a flat table, where that is not a usual one. delimiter: of a csv file; None: by its first line.
    ids are kept as texts; where there are none, a row's number from 1 is its id.

    Raises UserError, with the place, for a missing or empty file, broken encoding or JSON, what is not of these shapes, an id that
    two questions bear, and an answer beside is_impossible.
    """
    columns = {role: name for role, name in columns.items() if name is not None}
    said: Counter[str] = Counter()
    version, others = None, {}
    if not isinstance(source, str | Path):
        path, decided = Path(), []
        items = enumerate(listed(source, "questions"), 1)
        rows = [flat_row(f"question {n}", None, as_object(f"question {n}", item), labelled) for n, item in items]
    else:
        path = Path(source)
        kind = file_format(path, format)
        if kind == "squad":
            rows, version, decided = read_json(path, encoding, labelled)
            if columns:
                decided.append(f"the column {', '.join(columns.values())} does not apply to squad")
        else:
            layout = Layout(kind, encoding=encoding, delimiter=delimiter)
            rows, decided, others = read_flat(path, layout, labelled, columns)
        if not rows:
            raise UserError(f"{path}: the file holds no question")
    answers = [[placed(row, answer, said) for answer in row.answers] for row in rows]
    ids = [row.key if row.key is not None else str(n) for n, row in enumerate(rows, 1)]
    check_ids(ids, rows)
    without = sum(not found for found in answers) if labelled else 0
    decided.append(f"{len(rows):,} questions on {len({row.context for row in rows}):,} contexts")
    if without:
        decided.append(f"{without:,} of them without an answer")
    blank = sum(not row.question.strip() for row in rows)
    if blank:
        decided.append(f"{blank:,} questions are empty")
    decided += [f"{count:,} {what}" for what, count in said.items()]
    return Questions(
        path,
        [row.question for row in rows],
        [row.context for row in rows],
        ids,
        answers if labelled else None,
        version="2.0" if without or version == "2.0" else "1.1",
        lines=[row.line for row in rows] if rows and rows[0].line is not None else None,
        columns=others,
        given=not isinstance(source, str | Path),
        decided=decided,
    )


def file_format(path: Path, format: str) -> str:
    if path.is_dir():
        raise UserError(f"{path}: a directory; a file of questions is expected")
    if format != "auto" and format not in KINDS:
        raise UserError(f"--format {format}: known are auto, {', '.join(KINDS)}")
    kind = FORMATS.get(path.suffix.lower()) if format == "auto" else format
    if kind is None:
        raise UserError(
            not_text(path)
            or f"{path}: the extension {path.suffix or '(none)'} does not tell the format; add --format {', '.join(KINDS)}"
        )
    return kind


def check_ids(ids: list[str], rows: list[Row]) -> None:
    first: dict[str, Row] = {}
    for key, row in zip(ids, rows, strict=True):
        if key in first:
            raise UserError(f"{row.where}: the id {key!r} is that of {first[key].where} too; predictions are told apart by ids")
        first[key] = row


# ---- where an answer stands ----


def placed(row: Row, answer: Answer, said: Counter[str]) -> Answer:
    """The answer with the place where it stands; what had to be decided is counted in `said`."""
    text, given = answer
    if given is not None and given >= 0 and row.context[given : given + len(text)] == text:
        return answer
    places = occurrences(row.context, text)
    if not places:
        said["answers do not stand in their context; their text is scored"] += 1
        return Answer(text, None)
    if given is not None:
        said["answers do not stand at their answer_start; the nearest place that holds the text was taken"] += 1
        return Answer(text, min(places, key=lambda place: abs(place - given)))
    if len(places) > 1:
        said["answers without answer_start stand several times in their context; the first place was taken"] += 1
    return Answer(text, places[0])


def check_trainable(examples: Questions) -> None:
    """Raises UserError, with the place, for an answer that its context does not hold."""
    for row, answers in enumerate(examples.answers):
        absent = next((answer.text for answer in answers if answer.start is None), None)
        if absent is not None:
            raise UserError(
                f"{examples.where(row)}: the answer {absent[:60]!r} does not stand in its context; correct it or take the row out"
            )


def occurrences(context: str, text: str) -> list[int]:
    """All places of a text, those that overlap included."""
    places, at = [], context.find(text)
    while at >= 0:
        places.append(at)
        at = context.find(text, at + 1)
    return places


# ---- SQuAD's JSON ----


def read_json(path: Path, encoding: str, labelled: bool) -> tuple[list[Row], str | None, list[str]]:
    """(rows, version that the file says or shows, how they were read)."""
    decided = ["squad"]
    text = decode(path, read_bytes(path)[1], encoding, decided)
    if not text.strip():
        raise UserError(f"{path}: the file is empty")
    try:
        value = json.loads(text)
    except RecursionError:
        raise UserError(f"{path}: not valid JSON (nested too deep)") from None
    except ValueError as error:
        line = getattr(error, "lineno", 1)
        hint = "; one object a line is --format jsonl" if "Extra data" in str(error) else ""
        raise UserError(f"{path}:{line}: not valid JSON ({error}){hint}") from None
    data = value.get("data") if isinstance(value, dict) else value
    if not isinstance(data, list):
        raise UserError(f"{path}: a list is expected under data, as in SQuAD's files, found {kind_of(data)}")
    if not any(isinstance(article, dict) and "paragraphs" in article for article in data):
        decided.append("flat objects")
        return [flat_row(f"{path}: data[{i}]", None, item, labelled) for i, item in enumerate(data)], None, decided
    version, rows = str(value.get("version", "")).lower().removeprefix("v") if isinstance(value, dict) else "", []
    shows_2 = version.startswith("2")
    for a, article in enumerate(data):
        where = f"{path}: data[{a}]"
        for p, paragraph in enumerate(member(where, article, "paragraphs", list)):
            inside = f"{where}.paragraphs[{p}]"
            context = member(inside, paragraph, "context", str)
            for q, question in enumerate(member(inside, paragraph, "qas", list)):
                place = f"{inside}.qas[{q}]"
                rows.append(squad_row(place, question, context, labelled))
                shows_2 = shows_2 or "is_impossible" in question
    return rows, "2.0" if shows_2 else None, decided


def squad_row(where: str, value: dict, context: str, labelled: bool) -> Row:
    question = member(where, value, "question", str)
    key = as_id(where, value.get("id"))
    where = f"{where} (id {key})"
    answers = []
    if labelled:
        if value.get("is_impossible") and "answers" not in value:
            value = value | {"answers": []}
        for n, answer in enumerate(member(where, value, "answers", list)):
            text = member(f"{where}.answers[{n}]", answer, "text", str)
            answers.append(Answer(text, as_start(f"{where}.answers[{n}]", answer.get("answer_start"))))
        answers = checked(where, answers)
        if value.get("is_impossible") and answers:
            raise UserError(f"{where}: is_impossible and an answer {answers[0].text[:60]!r}; one of them is wrong")
    return Row(where, None, key, question, context, answers)


def member(where: str, value, key: str, kind: type):
    """value[key], which must be a text or a list."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: an object is expected, found {kind_of(value)}")
    if key not in value:
        raise UserError(f"{where}: no {key!r}; keys are {', '.join(map(repr, value))}")
    if not isinstance(value[key], kind):
        names = {str: "a text", list: "a list"}
        raise UserError(f"{where}: {key}: {names[kind]} is expected, found {json.dumps(value[key])[:60]}")
    return sound(where, key, value[key]) if kind is str else value[key]


def sound(where: str, key: str, text: str) -> str:
    check_characters(text, f"{where}: {key}")
    return text


def kind_of(value) -> str:
    return {dict: "an object", list: "a list", str: "a text", type(None): "nothing"}.get(type(value), "a number")


def as_id(where: str, value) -> str | None:
    if isinstance(value, list | dict | float | bool) or value == "":
        raise UserError(f"{where}: id: a text or a whole number is expected, found {json.dumps(value)[:60]}")
    return None if value is None else sound(where, "id", str(value))


def as_start(where: str, value) -> int | None:
    """answer_start as a number; None or an empty cell: none is given."""
    if isinstance(value, str) and value.strip().lstrip("-").isascii() and value.strip().lstrip("-").isdecimal():
        value = int(value)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"{where}: answer_start: a whole number is expected, found {json.dumps(value)[:60]}")
    return value


def checked(where: str, answers: list[Answer]) -> list[Answer]:
    """The answers; none where all of them are empty, an error where some are."""
    filled = [answer for answer in answers if answer.text.strip()]
    if filled and len(filled) < len(answers):
        raise UserError(f"{where}: one of {len(answers)} answers is empty; take it out, or all where there is no answer")
    return filled


# ---- flat tables ----


def read_flat(path: Path, layout: Layout, labelled: bool, columns: Mapping[str, str]) -> tuple[list[Row], list[str], dict]:
    """(rows, how they were read, the other cells by column). columns: role -> name or number of its column, where it is given."""
    table = read_table(path, layout)
    first = f"{path}:{table.lines[0]}"
    if table.columns is None:
        table.settle(header=True)
    twice = next((name for name, count in Counter(table.columns).items() if count > 1), None)
    if twice is not None:
        raise UserError(f"{first}: the header bears the name {twice!r} twice")
    pick = choose(f"{path}", table.columns, labelled, columns)
    table.decided.append("columns " + ", ".join(f"{role} = {name}" for role, name in pick.items()))
    objects = table.rows if layout.format == "jsonl" else [dict(zip(table.columns, cells, strict=True)) for cells in table.rows]
    full = [dict.fromkeys(table.columns) | value for value in objects]  # an absent key is an empty cell
    rows = [flat_row(f"{path}:{line}", line, value, labelled, pick) for line, value in zip(table.lines, full, strict=True)]
    return rows, table.decided, other_columns(table, {table.columns.index(name) for name in pick.values()})


def choose(where: str, names: list[str], labelled: bool, columns: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Role -> the name that bears it. columns: role -> the name or number that was given for it."""
    lower = {name.lower(): name for name in reversed(names)}
    pick = {role: next((lower[name] for name in usual if name in lower), None) for role, usual in COLUMNS.items()}
    for role, given in columns.items():
        numbers = {str(i): name for i, name in enumerate(names, 1)}
        found = given if given in names else lower.get(given.lower(), numbers.get(given))
        if found is None and (labelled or role != "answer"):
            raise UserError(f"{where}: no column {given!r} for the {role}; there are {', '.join(map(repr, names))}")
        pick[role] = found
    for role in ("question", "context", *(("answer",) if labelled else ())):
        if pick[role] is None:
            raise UserError(
                f"{where}: no column for the {role} ({', '.join(COLUMNS[role])}); there are {', '.join(map(repr, names))}"
            )
    return {role: name for role, name in pick.items() if name is not None and (labelled or not role.startswith("answer"))}


def as_object(where: str, item) -> dict:
    """A question that comes from no file: an object, or (question, context)."""
    if isinstance(item, tuple | list) and len(item) == 2:
        return {"question": item[0], "context": item[1]}
    if not isinstance(item, dict):
        hint = "; on the command line the context is given by --pair" if isinstance(item, str) else ""
        raise UserError(f"{where}: (question, context), or an object with these keys, is expected, found {kind_of(item)}{hint}")
    return item


def flat_row(where: str, line: int | None, value: dict, labelled: bool, pick: dict[str, str] | None = None) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{where}: an object is expected, found {kind_of(value)}")
    pick = pick or choose(where, list(value), labelled)
    question, context = (member(where, value, pick[role], str) for role in ("question", "context"))
    key = as_id(where, value.get(pick["id"]) if "id" in pick else None)
    answers = checked(where, flat_answers(where, pick["answer"], value, pick)) if labelled else []
    return Row(where, line, key, question, context, answers)


def flat_answers(where: str, name: str, value: dict, pick: dict[str, str]) -> list[Answer]:
    """What may stand for answers: nothing, a text, a list of texts or of objects, or an object of two lists."""
    found, start = value.get(name), value.get(pick.get("answer_start", ""))
    if found in (None, "", []):
        return []
    if isinstance(found, dict):
        texts, starts = found.get("text"), found.get("answer_start", start)
        if texts is None:
            raise UserError(f"{where}: {name}: no 'text'; keys are {', '.join(map(repr, found))}")
    elif isinstance(found, list) and all(isinstance(item, dict) for item in found):
        texts = [member(f"{where}: {name}[{i}]", item, "text", str) for i, item in enumerate(found)]
        starts = [item.get("answer_start") for item in found]
    else:
        texts, starts = found, start
    texts = [texts] if isinstance(texts, str) else texts
    starts = starts if isinstance(starts, list) else [starts] * (len(texts) if starts is None and isinstance(texts, list) else 1)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: {name}: a text or a list of texts is expected, found {json.dumps(found)[:60]}")
    if len(texts) != len(starts):
        raise UserError(f"{where}: {len(texts)} answers and {len(starts)} offsets (answer_start); as many are expected")
    return [Answer(sound(where, name, text), as_start(where, start)) for text, start in zip(texts, starts, strict=True)]
