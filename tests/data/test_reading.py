"""Files of texts and labels: every layout is read right, every mistake is named with its line."""

from pathlib import Path

import pytest

from minift.data.layout import TextLayout as Layout
from minift.data.texts import read_texts
from minift.errors import UserError


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


READ = {
    "csv with quotes, commas, line breaks": (
        "a.csv",
        'text,label\n"one, ""two""",pos\n"three\nfour",neg\nfive,pos\n',
        {},
        ['one, "two"', "three\nfour", "five"],
        ["pos", "neg", "pos"],
        [2, 3, 5],
    ),
    "csv with semicolons": ("a.csv", "label;text\n1;a, b\n0;c\n", {}, ["a, b", "c"], ["1", "0"], [2, 3]),
    "csv from a spreadsheet: byte order mark, CRLF": (
        "a.csv",
        "\ufeffText,Label\r\na,x\r\nb,y\r\n",
        {},
        ["a", "b"],
        ["x", "y"],
        [2, 3],
    ),
    "tsv keeps raw quotes": ("a.tsv", 'sentence\tlabel\n"a" b\t1\nsay "\t0\n', {}, ['"a" b', 'say "'], ["1", "0"], [2, 3]),
    "a usual name as a label in the first row of a file without header": (
        "a.tsv",
        "How do I reset it ?\tquestion\nThank you\tpraise\nWhere is it ?\tquestion\n",
        {"text_column": "1", "label_column": "2"},
        ["How do I reset it ?", "Thank you", "Where is it ?"],
        ["question", "praise", "question"],
        [1, 2, 3],
    ),
    "a header over columns given by number": (
        "a.csv",
        "id,text,label\n1,a,x\n2,b,y\n",
        {"text_column": "2", "label_column": "3"},
        ["a", "b"],
        ["x", "y"],
        [2, 3],
    ),
    "csv with the other delimiter inside quotes": (
        "a.csv",
        'label,text\n0,"good; but; slow"\n1,"a;b"\n',
        {},
        ["good; but; slow", "a;b"],
        ["0", "1"],
        [2, 3],
    ),
    "csv with a very long text": ("a.csv", f"text,label\n{'x' * 200_000},1\ny,0\n", {}, ["x" * 200_000, "y"], ["1", "0"], [2, 3]),
    "tsv with blank lines": ("a.tsv", "sentence\tlabel\n\na\t1\n\n\nb\t0\n\n", {}, ["a", "b"], ["1", "0"], [3, 6]),
    "tsv without header, columns by number": (
        "a.tsv",
        "gj04\t1\t\tOne.\ngj04\t0\t*\tTwo.\ngj05\t1\t\tThree.\n",
        {"text_column": "4", "label_column": "2"},
        ["One.", "Two.", "Three."],
        ["1", "0", "1"],
        [1, 2, 3],
    ),
    "columns by name": (
        "a.csv",
        "id,q,y\n1,a,u\n2,b,v\n",
        {"text_column": "q", "label_column": "y"},
        ["a", "b"],
        ["u", "v"],
        [2, 3],
    ),
    "columns by number under a header": (
        "a.csv",
        "id,q,y\n1,a,u\n2,b,v\n",
        {"text_column": "2", "label_column": "3", "header": "yes"},
        ["a", "b"],
        ["u", "v"],
        [2, 3],
    ),
    "a usual name in the first row of a file without header": (
        "a.tsv",
        "text\t0\nb\t1\nc\t0\n",
        {"header": "no", "text_column": "1", "label_column": "2"},
        ["text", "b", "c"],
        ["0", "1", "0"],
        [1, 2, 3],
    ),
    "jsonl, labels of any kind": (
        "a.jsonl",
        '{"text": "a", "label": true}\n\n{"label": false, "text": "b\\nc"}\n'
        '{"text": "d", "label": 3}\n{"text": "e", "label": "x"}\n',
        {},
        ["a", "b\nc", "d", "e"],
        ["true", "false", "3", "x"],
        [1, 3, 4, 5],
    ),
    "label-first in Latin-1": (
        "train.label",
        "ENTY:animal What is a crêpe ?\nNUM:dist How far ?\n".encode("latin-1"),
        {"format": "label-first", "encoding": "latin-1"},
        ["What is a crêpe ?", "How far ?"],
        ["ENTY:animal", "NUM:dist"],
        [1, 2],
    ),
    "label-first, part of the label": (
        "train.label",
        "ENTY:animal What is it ?\nNUM:dist How far ?\n",
        {"format": "label-first", "label_part": ":"},
        ["What is it ?", "How far ?"],
        ["ENTY", "NUM"],
        [1, 2],
    ),
    "utf-16": ("a.csv", "text,label\na,x\nb,y\n".encode("utf-16"), {"encoding": "utf-16"}, ["a", "b"], ["x", "y"], [2, 3]),
}


@pytest.mark.parametrize("case", READ)
def test_reads(tmp_path, case):
    name, content, flags, texts, labels, lines = READ[case]
    rows = read_texts(write(tmp_path / name, content), Layout(**flags))
    assert (rows.texts, rows.pairs, rows.labels, rows.lines) == (texts, None, labels, lines)


def test_reads_pairs(tmp_path):
    path = write(tmp_path / "a.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tno\n1\tc\td\tyes\n")
    rows = read_texts(path, Layout())
    assert (rows.texts, rows.pairs, rows.labels) == (["a", "c"], ["b", "d"], ["no", "yes"])
    rows = read_texts(path, Layout(text_column="sentence2"))
    assert (rows.texts, rows.pairs) == (["b", "d"], None)


def test_without_labels(tmp_path):
    rows = read_texts(write(tmp_path / "a.tsv", "index\tsentence\n0\ta\n"), Layout(), labelled=False)
    assert (rows.texts, rows.labels) == (["a"], None)


def test_lines_and_files_of_one_column_keep_blank_lines(tmp_path):
    for name, layout, content in (
        ("a.txt", Layout(format="lines"), "text\n\nb\n"),
        ("a.csv", Layout(text_column="text"), "text\ntext\n\nb\n"),
        ("a.tsv", Layout(text_column="1", header="no"), "text\n\nb\n"),
    ):
        assert read_texts(write(tmp_path / name, content), layout, labelled=False).texts == ["text", "", "b"]


def test_jsonl_takes_the_keys_of_all_objects(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"question": "a", "label": 1}\n{"question": "b", "sentence": "c", "label": 0}\n')
    with pytest.raises(UserError, match=r"a.jsonl:1: column sentence: a text is expected, found null"):
        read_texts(path, Layout())


def test_one_column_has_one_role(tmp_path):
    path = write(tmp_path / "a.csv", "review,comment\na,b\nc,d\n")
    rows = read_texts(path, Layout(label_column="review"))
    assert (rows.texts, rows.labels) == (["b", "d"], ["a", "c"])
    with pytest.raises(UserError, match="the same column twice"):
        read_texts(path, Layout(text_column="review", label_column="1", header="yes"))


def test_what_was_decided_is_said(tmp_path):
    rows = read_texts(write(tmp_path / "a.csv", "Review;stars\n;1\nb;2\n"), Layout())
    assert rows.decided == [
        "csv",
        "delimiter ';'",
        "header",
        "columns text = Review, label = stars",
        "1 row with an empty text",
    ]


WRONG = {
    "missing": ("gone.csv", None, {}, "gone.csv: no such file"),
    "missing, of an unknown extension": ("gone.cvs", None, {}, "gone.cvs: no such file"),
    "empty": ("a.csv", "", {}, "the file is empty"),
    "blank": ("a.tsv", "\n\n", {}, "the file is empty"),
    "header alone": ("a.csv", "text,label\n", {}, "no row below it"),
    "unknown extension": ("a.xlsx", "x", {}, "--format"),
    "unknown format": ("a.csv", "x", {"format": "xml"}, "known are auto, csv"),
    "broken UTF-8": (
        "a.csv",
        "text,label\na,x\nb é,y\n".encode("latin-1"),
        {},
        "a.csv:3:3: byte 0xe9 is not utf-8; name the file's encoding, most often --encoding latin-1",
    ),
    "unknown encoding": ("a.csv", "text,label\n", {"encoding": "utf-9"}, "no encoding of this name"),
    "binary": ("a.csv", b"a,b\n\0\0\0", {}, "a.csv:2: holds zero bytes, so it is no utf-8 text; see what made it"),
    "an archive": ("a.csv", b"PK\x03\x04\0\0\0", {}, "a.csv: this is a zip archive, as Excel's .xlsx is; save the sheet as CSV"),
    "named column not there": (
        "a.csv",
        "id,text,label\n1,a,x\n",
        {"label_column": "class"},
        "--label-column class: no such column; columns are 1 'id', 2 'text', 3 'label'",
    ),
    "number too high": ("a.csv", "text,label\na,x\n", {"text_column": "3"}, "--text-column 3: no such column"),
    "no usual name": (
        "a.csv",
        "id,what they wrote,mood\n1,a long enough text,x\n2,another text,y\n3,a third text,x\n",
        {"header": "yes"},
        "perhaps --text-column 'what they wrote' --label-column mood",
    ),
    "no labels at all": (
        "test.tsv",
        "index\tsentence\n0\ta text\n1\tanother\n2\ta third\n3\ta fourth\n4\ta fifth\n",
        {},
        "columns are 1 'index', 2 'sentence'; perhaps a file without labels is for minift.predict",
    ),
    "no header": (
        "a.tsv",
        "gj04\t1\t\tA sentence.\ngj04\t0\t*\tAnother one.\ngj05\t1\t\tA third.\n",
        {},
        "perhaps --text-column 4 --label-column",
    ),
    "ragged row": ("a.csv", "text,label\na,x\nb, c,y\n", {}, "a.csv:3: 3 columns where the header has 2; a text with a comma"),
    "ragged row in a tsv": ("a.tsv", "text\tlabel\na\tx\nb\n", {}, "a.tsv:3: 1 columns where the header has 2"),
    "open quote": ("a.csv", 'text,label\na,x\n"b,y\nc,z\n', {}, "a.csv:3: a double quote is opened and never closed"),
    "quote inside quotes": ("a.csv", 'text,label\n"a "b" c",x\n', {}, "a.csv:2: "),
    "row without a label": (
        "a.csv",
        "text,label\na,x\nb,\nc,y\nd, \n",
        {},
        "a.csv:3: a row without a label, column label (and 1 more rows)",
    ),
    "null label": ("a.jsonl", '{"text": "a", "label": null}\n', {}, "a.jsonl:1: a row without a label"),
    "key missing": ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', {}, "a.jsonl:2: a row without a label"),
    "text is a number": ("a.jsonl", '{"text": 5, "label": 1}\n', {}, "a.jsonl:1: column text: a text is expected, found 5"),
    "not JSON": ("a.jsonl", '{"text": "a", "label": 1}\n{text: b}\n', {}, "a.jsonl:2: not valid JSON"),
    "JSON array": ("a.jsonl", "[1, 2]\n", {}, "a.jsonl:1: a JSON list"),
    "label without a text": (
        "a.txt",
        "NUM How far ?\nLOC\n",
        {"format": "label-first"},
        "a.txt:2: a label and no text after it",
    ),
    "a list for a label": (
        "a.jsonl",
        '{"text": "a", "label": ["x", "y"]}\n',
        {},
        'a.jsonl:1: column label: one label is expected, found ["x"',
    ),
    "an object without keys": ("a.jsonl", "{}\n", {}, "the file is empty"),
    "half an emoji": ("a.jsonl", '{"text": "a \\ud83d", "label": 1}\n', {}, "a.jsonl:1: column text: half of a character"),
    "a number that is none": ("a.csv", "text,label\na,x\n", {"text_column": "²"}, "--text-column ²: no such column"),
}


@pytest.mark.parametrize("case", WRONG)
def test_names_the_mistake(tmp_path, case):
    name, content, flags, wanted = WRONG[case]
    if content is not None:
        write(tmp_path / name, content)
    with pytest.raises(UserError) as error:
        read_texts(tmp_path / name, Layout(**flags))
    assert wanted in str(error.value) and "\n" not in str(error.value)


def test_a_header_that_would_become_a_row_is_noticed(tmp_path):
    path = write(tmp_path / "a.csv", "phrase,mood\na,x\nb,y\nc,x\n")
    with pytest.raises(UserError, match=r"a.csv:1: the label 'mood' is found in the first row alone.*--header yes"):
        read_texts(path, Layout(text_column="1", label_column="2"))
    assert read_texts(path, Layout(text_column="phrase", label_column="mood")).texts == ["a", "b", "c"]
