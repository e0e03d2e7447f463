"""Files of questions: every layout is read right, every mistake is named with its place."""

import json
from pathlib import Path

import numpy as np
import pytest

from minift.data.squad import Answer, check_trainable, read_squad
from minift.errors import UserError
from minift.metrics.squad import no_answer_baseline, squad_metrics

CONTEXT = "Ada met Bob in Rome. Bob left Rome — alone.\n"


def write(path: Path, content) -> Path:
    content = content if isinstance(content, str | bytes) else json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def squad(*questions: dict, **top) -> dict:
    return {"data": [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": list(questions)}]}], **top}


def question(key: str = "q", *answers: tuple[str, int], **more) -> dict:
    return {"id": key, "question": " Who? ", "answers": [{"text": t, "answer_start": at} for t, at in answers], **more}


def lines(*objects: dict) -> str:
    return "".join(json.dumps(value) + "\n" for value in objects)


def test_squad_1(tmp_path):
    content = squad(question("a", ("Ada", 0), ("Ada met Bob", 0)), question("b", ("alone", 37)), version="1.1")
    content["data"].append({"paragraphs": [{"context": "X is y.", "qas": [question("c", ("y", 5))]}]})
    found = read_squad(write(tmp_path / "a.json", content))
    assert (found.ids, found.version) == (["a", "b", "c"], "1.1")
    assert found.questions == [" Who? "] * 3 and found.contexts == [CONTEXT, CONTEXT, "X is y."] == found.groups()
    assert found.answers == [[("Ada", 0), ("Ada met Bob", 0)], [("alone", 37)], [("y", 5)]]
    assert found.gold() == {"a": ["Ada", "Ada met Bob"], "b": ["alone"], "c": ["y"]}
    assert found.decided == ["squad", "3 questions on 2 contexts"]
    assert found.where(1) == f"{tmp_path / 'a.json'}: question b" and found.place(1) == ""
    assert squad_metrics(found.gold(), {"a": "Ada", "b": "Rome", "c": ""}, found.version)["exact"] == pytest.approx(1 / 3)
    held = found.take(np.array([2, 0]))
    assert (held.ids, held.answers[0], held.inputs()[0]) == (
        ["c", "a"],
        [("y", 5)],
        {"id": "c", "question": " Who? ", "context": "X is y."},
    )


def test_squad_2(tmp_path):
    content = squad(
        question("a", ("Ada", 0), is_impossible=False),
        question("b", is_impossible=True, plausible_answers=[{"text": "Bob", "answer_start": 8}]),
        version="v2.0",
    )
    found = read_squad(write(tmp_path / "a.json", content))
    assert (found.answers, found.version) == ([[("Ada", 0)], []], "2.0")
    assert found.decided == ["squad", "2 questions on 1 contexts", "1 of them without an answer"]
    assert no_answer_baseline(found.gold())["f1"] == 0.5


@pytest.mark.parametrize(
    ("content", "version"),
    [
        (squad(question("a", ("Ada", 0))), "1.1"),
        (squad(question("a", ("Ada", 0)), version="v2.0"), "2.0"),
        (squad(question("a", ("Ada", 0), is_impossible=False)), "2.0"),
        (squad(question("a", ("Ada", 0)), question("b")), "2.0"),
        (squad(question("a", ("Ada", 0)), version="1.2"), "1.1"),
        (squad({"id": "a", "question": "Who?", "is_impossible": True}), "2.0"),
        (squad(question("a", ("", -1))), "2.0"),
    ],
)
def test_the_version_is_what_the_file_says_or_shows(tmp_path, content, version):
    assert read_squad(write(tmp_path / "a.json", content)).version == version


def test_without_labels(tmp_path):
    content = squad({"id": "a", "question": "Who?"})
    found = read_squad(write(tmp_path / "a.json", content), labelled=False)
    assert (found.ids, found.answers) == (["a"], None)
    found = read_squad(write(tmp_path / "a.csv", "question,context,answer\nWho?,Ada.,\n"), labelled=False)
    assert found.answers is None and found.decided == [
        "csv",
        "header",
        "columns question = question, context = context",
        "1 questions on 1 contexts",
    ]


ROW = {"question": "Who?", "context": CONTEXT}
FLAT = {  # content of a line -> answers
    "a text and its offset": ({"answer": "Bob", "answer_start": 21}, [("Bob", 21)]),
    "a text": ({"answer": "Ada"}, [("Ada", 0)]),
    "several": ({"answer": ["Ada", "alone"]}, [("Ada", 0), ("alone", 37)]),
    "two lists": ({"answers": {"text": ["Bob", "Ada"], "answer_start": [21, 0]}}, [("Bob", 21), ("Ada", 0)]),
    "two lists, empty": ({"answers": {"text": [], "answer_start": []}}, []),
    "a list of objects": ({"answers": [{"text": "Bob", "answer_start": 21}, {"text": "Ada"}]}, [("Bob", 21), ("Ada", 0)]),
    "an offset as a text": ({"answer": "Bob", "start": "21"}, [("Bob", 21)]),
    "null": ({"answer": None}, []),
    "an empty text": ({"answer": "", "answer_start": 0}, []),
    "an empty list": ({"answers": []}, []),
}


@pytest.mark.parametrize("case", FLAT)
def test_flat_jsonl(tmp_path, case):
    value, answers = FLAT[case]
    found = read_squad(write(tmp_path / "a.jsonl", "\n" + lines({"id": 7} | ROW | value)))
    assert (found.answers, found.ids, found.lines, found.contexts) == ([answers], ["7"], [2], [CONTEXT])
    assert found.version == ("1.1" if answers else "2.0")
    found = read_squad(write(tmp_path / "a.json", {"version": "0.1", "data": [ROW | value]}))
    assert (found.answers, found.ids, found.lines) == ([answers], ["1"], None)
    assert read_squad(write(tmp_path / "a.json", [ROW | value])).answers == [answers]


def test_flat_csv_and_tsv(tmp_path):
    content = (
        '\ufeffID,Question,Passage,Answer,Answer_Start\r\n1,"Who, then?","Ada ""A"" left.\r\nBob came.",Bob,15\r\n'
        "2,Why?,None.,,\r\n"
    )
    found = read_squad(write(tmp_path / "a.csv", content))
    assert found.contexts == ['Ada "A" left.\nBob came.', "None."] and found.questions == ["Who, then?", "Why?"]
    assert (found.ids, found.lines) == (["1", "2"], [2, 4])
    assert found.answers == [[("Bob", 14)], []]  # 15 counts the two characters of the line's end
    assert found.decided == [
        "csv",
        "header",
        "columns question = Question, context = Passage, answer = Answer, answer_start = Answer_Start, id = ID",
        "2 questions on 2 contexts",
        "1 of them without an answer",
        "1 answers do not stand at their answer_start; the nearest place that holds the text was taken",
    ]
    found = read_squad(write(tmp_path / "a.tsv", 'question\tcontext\tanswer\nWho?\tsaid "Ada"\tAda'))
    assert found.answers == [[("Ada", 6)]] and found.ids == ["1"] and found.where(0) == f"{tmp_path / 'a.tsv'}:2"


def test_an_answer_that_stands_several_times(tmp_path):
    content = lines(ROW | {"answer": "Rome"}, ROW | {"answer": "Bob"}, ROW | {"answer": "Ada"})
    found = read_squad(write(tmp_path / "a.jsonl", content))
    assert found.answers == [[("Rome", 15)], [("Bob", 8)], [("Ada", 0)]]
    assert found.decided[-1] == "2 answers without answer_start stand several times in their context; the first place was taken"
    found = read_squad(write(tmp_path / "a.jsonl", lines({"question": "?", "context": "banana", "answer": "ana"})))
    assert "several times" in found.decided[-1]  # the places overlap


def test_an_offset_that_is_wrong(tmp_path):
    content = squad(
        question("a", ("Bob", 22)), question("b", ("Bob", 2000)), question("c", ("Bob", -1)), question("d", ("Bob", 21))
    )
    found = read_squad(write(tmp_path / "a.json", content))
    assert found.answers == [[("Bob", 21)], [("Bob", 21)], [("Bob", 8)], [("Bob", 21)]]
    assert found.decided[-1].startswith("3 answers do not stand at their answer_start; the nearest place")


def test_an_offset_in_bytes_is_noticed(tmp_path):
    """The dash is one character and three bytes."""
    start = CONTEXT.encode().index(b"alone")
    assert start == 39
    found = read_squad(write(tmp_path / "a.json", squad(question("a", ("alone", start)))))
    assert found.answers == [[("alone", 37)]]


def test_an_answer_that_the_context_does_not_hold(tmp_path):
    path = write(tmp_path / "a.jsonl", lines(ROW | {"answer": "Ada"}, ROW | {"answer": "ada"}, ROW | {"answer": "Rome —  alone"}))
    with pytest.raises(
        UserError, match=r"a.jsonl:2: the answer 'ada' does not stand in its context; correct it or take the row out"
    ):
        check_trainable(read_squad(path))
    found = read_squad(path)  # evaluation compares texts
    assert found.answers == [[("Ada", 0)], [("ada", None)], [("Rome —  alone", None)]]
    assert found.decided[-1] == "2 answers do not stand in their context; their text is scored"
    assert squad_metrics(found.gold(), dict.fromkeys(found.ids, "Ada"), "1.1")["exact"] == pytest.approx(2 / 3)
    path = write(tmp_path / "a.json", squad(question("x", ("Ada", 0), ("Eve", 3))))
    with pytest.raises(UserError, match=r"a.json: question x: the answer 'Eve' does not stand"):
        check_trainable(read_squad(path))


def test_columns_of_other_names(tmp_path):
    path = write(tmp_path / "a.csv", "Q;context;P;A\nWho?;no;Ada came.;Ada\n")
    for columns in ({"question": "q", "context": "P", "answer": "A"}, {"question": "1", "context": "3", "answer": "4"}):
        found = read_squad(path, columns=columns | {"id": None}, delimiter=";")
        assert (found.questions, found.contexts, found.answers) == (["Who?"], ["Ada came."], [[("Ada", 0)]])
    assert read_squad(path, columns={"question": "Q", "answer": "gone"}, labelled=False).contexts == ["no"]
    assert found.columns == {"context": ["no"]} and read_squad(path, columns={"question": "Q"}, labelled=False).columns == {
        "P": ["Ada came."],
        "A": ["Ada"],
    }
    with pytest.raises(UserError, match=r"a.csv: no column 'R' for the answer; there are 'Q', 'context', 'P', 'A'"):
        read_squad(path, columns={"question": "Q", "answer": "R"})
    found = read_squad(write(tmp_path / "a.json", squad(question("a", ("Ada", 0)))), columns={"question": "Q"})
    assert found.decided[1] == "the column Q does not apply to squad"


def test_questions_that_come_from_no_file():
    found = read_squad(((q, CONTEXT) for q in ("Who?", "Where?")), labelled=False)
    assert (found.questions, found.ids, found.answers, found.lines) == (["Who?", "Where?"], ["1", "2"], None, None)
    found = read_squad([ROW | {"id": "x", "answer": "Ada"}])
    assert found.answers == [[Answer("Ada", 0)]] and found.ids == ["x"]
    assert len(read_squad([], labelled=False)) == 0
    for source, message in (
        (["Who?"], r"question 1: \(question, context\), or an object"),
        ([("Who?", 3)], "question 1: context: a text is expected, found 3"),
        ([{"question": "Who?"}], "question 1: no column for the context"),
        ({"question": "Who?"}, "a list of questions is expected"),
        ([("Who? \ud83d", "x")], "question 1: question: half of a character"),
    ):
        with pytest.raises(UserError, match=message):
            read_squad(source, labelled=False)


def test_empty_questions_and_long_contexts(tmp_path):
    context = "x" * 1_000_000 + " Ada"
    found = read_squad(write(tmp_path / "a.jsonl", lines({"question": "", "context": context, "answer": "Ada"})))
    assert found.answers == [[("Ada", 1_000_001)]] and "1 questions are empty" in found.decided


HEADER = "question,context,answer\n"
WRONG = {
    "missing": ("gone.json", None, {}, "gone.json: no such file"),
    "empty": ("a.json", "", {}, "the file is empty"),
    "empty csv": ("a.csv", "\n\n", {}, "the file is empty"),
    "header alone": ("a.csv", HEADER, {}, "there is a header and no row below it"),
    "no question": ("a.json", squad(), {}, "the file holds no question"),
    "missing, of an unknown extension": ("gone.jsno", None, {}, "gone.jsno: no such file"),
    "unknown extension": ("a.txt", "x", {}, "the extension .txt does not tell the format; add --format squad, jsonl, csv, tsv"),
    "unknown format": ("a.json", "{}", {"format": "xml"}, "--format xml: known are auto, squad, jsonl, csv, tsv"),
    "broken UTF-8": ("a.csv", (HEADER + "a,é,b\n").encode("latin-1"), {}, "a.csv:2:3: byte 0xe9 is not utf-8"),
    "zero bytes": ("a.json", b'{"data": "\0"}', {}, "zero bytes"),
    "not JSON": ("a.json", '{"data": [\n{]}', {}, "a.json:2: not valid JSON"),
    "JSON lines": ("a.json", '{"a": 1}\n{"a": 2}\n', {}, "one object a line is --format jsonl"),
    "nested deep": ("a.json", "[" * 100_000, {}, "not valid JSON"),
    "no data": ("a.json", {"questions": []}, {}, "a list is expected under data, as in SQuAD's files, found nothing"),
    "a text for JSON": ("a.json", '"x"', {}, "a list is expected under data, as in SQuAD's files, found a text"),
    "no context": ("a.json", {"data": [{"paragraphs": [{"qas": []}]}]}, {}, "data[0].paragraphs[0]: no 'context'; keys are 'qas'"),
    "an article that is none": ("a.json", {"data": [{"paragraphs": []}, 3]}, {}, "data[1]: an object is expected, found a number"),
    "no answers": ("a.json", squad({"id": "a", "question": "?"}), {}, "qas[0] (id a): no 'answers'; keys are 'id', 'question'"),
    "no text": ("a.json", squad({"id": "a", "question": "?", "answers": [{}]}), {}, "(id a).answers[0]: no 'text'"),
    "question no text": ("a.json", squad({"id": "a", "question": 3}), {}, "qas[0]: question: a text is expected, found 3"),
    "impossible and answered": (
        "a.json",
        squad(question("a", ("Ada", 0), is_impossible=True)),
        {},
        "is_impossible and an answer 'Ada'",
    ),
    "one answer empty": ("a.json", squad(question("a", ("Ada", 0), ("", 0))), {}, "(id a): one of 2 answers is empty"),
    "offset no number": (
        "a.json",
        squad(question("a", ("Ada", 0.5))),
        {},
        "answers[0]: answer_start: a whole number is expected, found 0.5",
    ),
    "an id twice": ("a.json", squad(question("a"), question("a")), {}, "qas[1] (id a): the id 'a' is that of "),
    "an id that is none": ("a.jsonl", lines(ROW | {"id": [], "answer": ""}), {}, "a.jsonl:1: id: a text or a whole number"),
    "an id equal to a number given": (
        "a.jsonl",
        lines(ROW | {"id": "2", "answer": ""}, ROW | {"answer": ""}),
        {},
        "a.jsonl:2: the id '2'",
    ),
    "no column for the answer": ("a.csv", "question,context\na,b\n", {}, "no column for the answer (answers, answer, answer_text)"),
    "no column for the context": ("a.csv", "question,text,answer\na,b,c\n", {}, "there are 'question', 'text', 'answer'"),
    "a name twice": ("a.csv", "question,context,answer,answer\na,b,c,d\n", {}, "a.csv:1: the header bears the name 'answer' twice"),
    "ragged": ("a.csv", HEADER + "a,b, c,d\n", {}, "a.csv:2: 4 columns where the header has 3; a text with a comma"),
    "ragged tsv": ("a.tsv", "question\tcontext\tanswer\na\tb\n", {}, "a.tsv:2: 2 columns where the header has 3"),
    "open quote": ("a.csv", HEADER + 'a,"b,c\n', {}, "a.csv:2: a double quote is opened and never closed"),
    "offset no number in a csv": ("a.csv", "question,context,answer,start\na,b,b,x\n", {}, "a.csv:2: answer_start: a whole number"),
    "not JSON in a line": ("a.jsonl", lines(ROW | {"answer": "Ada"}) + "{\n", {}, "a.jsonl:2: not valid JSON"),
    "other numbers": (
        "a.jsonl",
        lines(ROW | {"answers": {"text": ["Ada", "Bob"], "answer_start": [0]}}),
        {},
        "a.jsonl:1: 2 answers and 1 offsets",
    ),
    "answer a number": (
        "a.jsonl",
        lines(ROW | {"answer": 3}),
        {},
        "a.jsonl:1: answer: a text or a list of texts is expected, found 3",
    ),
    "answers without text": ("a.jsonl", lines(ROW | {"answers": {"start": [1]}}), {}, "a.jsonl:1: answers: no 'text'"),
    "context null": (
        "a.jsonl",
        lines({"question": "?", "context": None, "answer": ""}),
        {},
        "context: a text is expected, found null",
    ),
    "half an emoji": ("a.jsonl", '{"question": "\\ud83d", "context": "", "answer": ""}\n', {}, "a.jsonl:1: question: half of a"),
}


@pytest.mark.parametrize("case", WRONG)
def test_names_the_mistake(tmp_path, case):
    name, content, arguments, expected = WRONG[case]
    if content is not None:
        write(tmp_path / name, content)
    with pytest.raises(UserError) as error:
        read_squad(tmp_path / name, **arguments)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(UserError, match="a directory; a file of questions is expected"):
        read_squad(tmp_path)
