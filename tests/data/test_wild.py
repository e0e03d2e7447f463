"""Files in the wild, the same faults for every reader: read right, or refused in one line with file and line.

The readers of tables, of CoNLL columns and of SQuAD's files have longer tables of their own: test_table.py, test_conll.py,
test_squad.py. Here is what these leave out, and what a folder of texts and running text make of the same.
"""

import json

import pytest

from minift.data.layout import DocumentLayout, Layout, TextLayout
from minift.data.texts import read_texts
from minift.errors import UserError, look_up
from minift.tasks import TASKS

BIG = "x" * 1_000_000
SQUAD = json.dumps({"data": [{"paragraphs": [{"context": "by\tAda\r\nL.", "qas": [
    {"id": "a", "question": "who ?", "answers": [{"text": "Ada", "answer_start": 3}]}]}]}]}, indent=1)  # fmt: skip
FLAT = "question,context,answer\r\n"


def folder(place, content: bytes, layout):
    (place / "pos").mkdir()
    (place / "neg").mkdir()
    (place / "pos" / "a.txt").write_bytes(content)
    (place / "neg" / "b.txt").write_bytes(b"other")
    rows = read_texts(place, layout)
    return [text for text, label in zip(rows.texts, rows.labels, strict=True) if label == "pos"]


def read(place, reader: str, name: str, content: bytes, encoding: str = "utf-8"):
    """What a reader makes of a file: texts, words or (question, context, answers)."""
    if reader == "folder":
        return folder(place, content, TextLayout(encoding=encoding))
    (place / name).write_bytes(content)
    task = {"documents": "masked-lm", "conll": "token-classification", "squad": "question-answering"}[reader]
    task = look_up(TASKS, task, "--task")
    layout = {"documents": DocumentLayout, "conll": Layout, "squad": TextLayout}[reader](encoding=encoding)
    rows = task.read(str(place / name), layout)
    if reader == "squad":
        return list(zip(rows.questions, rows.contexts, rows.answers, strict=True))
    return rows.words if reader == "conll" else rows.texts


WHO = [("who ?", "by\tAda\r\nL.", [("Ada", 3)])]
# reader, fault -> (name, content, encoding, what is read)
READ = {
    ("folder", "byte order mark, CRLF"): ("", "\ufeffone\r\ntwo\r\n".encode(), "utf-8", ["one\ntwo"]),
    ("folder", "stray quotes and tabs"): ("", b'"a\tb\n', "utf-8", ['"a\tb']),
    ("folder", "no final newline"): ("", b"a", "utf-8", ["a"]),
    ("folder", "a million characters"): ("", BIG.encode(), "utf-8", [BIG]),
    ("folder", "latin-1"): ("", "é".encode("latin-1"), "latin-1", ["é"]),
    ("documents", "stray quotes and tabs"): ("a.txt", b'"a\tb\nc', "utf-8", ['"a\tb', "c"]),
    ("documents", "multi-line cells"): ("a.csv", b'text\r\n"a\r\nb"\r\nc\r\n', "utf-8", ["a\nb", "c"]),
    ("documents", "no final newline"): ("a.jsonl", b'{"text": "a"}', "utf-8", ["a"]),
    ("conll", "no final newline"): ("a.conll", b"a\tO\n\nb\tO", "utf-8", [["a"], ["b"]]),
    ("conll", "blanks in the place of tabs"): ("a.conll", b"a O\nb O\n", "utf-8", [["a", "b"]]),
    ("squad", "byte order mark, CRLF"): ("a.json", ("\ufeff" + SQUAD.replace("\n", "\r\n")).encode(), "utf-8", WHO),
    ("squad", "no final newline"): ("a.csv", (FLAT + "q,by Ada,Ada").encode(), "utf-8", [("q", "by Ada", [("Ada", 3)])]),
    ("squad", "tabs in a .csv"): (
        "a.csv",
        b"question\tcontext\tanswer\nq\tby, Ada\tAda\n",
        "utf-8",
        [("q", "by, Ada", [("Ada", 4)])],
    ),
    ("squad", "stray quotes"): ("a.csv", (FLAT + 'q,5" by Ada,Ada\n').encode(), "utf-8", [("q", '5" by Ada', [("Ada", 6)])]),
    ("squad", "multi-line cells"): ("a.csv", (FLAT + 'q,"by\nAda",Ada\n').encode(), "utf-8", [("q", "by\nAda", [("Ada", 3)])]),
    ("squad", "latin-1"): ("a.csv", (FLAT + "q,by é,é\n").encode("latin-1"), "latin-1", [("q", "by é", [("é", 3)])]),
}


@pytest.mark.parametrize("case", READ, ids=", ".join)
def test_reads(tmp_path, case):
    name, content, encoding, expected = READ[case]
    assert read(tmp_path, case[0], name, content, encoding) == expected


WRONG = {
    ("folder", "NUL"): ("", b"a\nb\0", "a.txt:2: holds zero bytes"),
    ("folder", "latin-1"): ("", "a\né".encode("latin-1"), "a.txt:2:1: byte 0xe9 is not utf-8"),
    ("documents", "NUL"): ("a.txt", b"a\nb\0\n", "a.txt:2: holds zero bytes"),
    ("documents", "latin-1"): ("a.txt", "a\né\n".encode("latin-1"), "a.txt:2:1: byte 0xe9 is not utf-8"),
    ("documents", "a ragged row"): ("a.csv", b"text,id\na,1\nb\n", "a.csv:3: 1 columns where the header has 2"),
    ("conll", "NUL"): ("a.conll", b"a\tO\nb\0\tO\n", "a.conll:2: holds zero bytes"),
    ("squad", "NUL"): ("a.csv", (FLAT + "a,b\0,c\n").encode(), "a.csv:2: holds zero bytes"),
    ("squad", "utf-16"): ("a.json", SQUAD.encode("utf-16-le"), "look like --encoding utf-16-le"),
}


@pytest.mark.parametrize("case", WRONG, ids=", ".join)
def test_refuses(tmp_path, case):
    name, content, says = WRONG[case]
    with pytest.raises(UserError) as error:
        read(tmp_path, case[0], name, content)
    assert says in str(error.value) and "\n" not in str(error.value)
