"""Labels: names, numbers, sets; their order; what is told of labels that look wrong."""

import json

import pytest

from minift.data.labels import label_ids, label_names, label_sets
from minift.data.layout import TextLayout as Layout
from minift.data.texts import read_texts
from minift.errors import UserError


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def rows(tmp_path, labels: list) -> object:
    return read_texts(
        write(tmp_path / "a.jsonl", "".join(json.dumps({"text": "t", "label": label}) + "\n" for label in labels)), Layout()
    )


def test_label_ids_follow_the_names(tmp_path):
    assert label_names(rows(tmp_path, ["b", "a", "b"])) == ["a", "b"]
    assert label_names(rows(tmp_path, [10, 9, -1, 10])) == ["-1", "9", "10"]
    assert label_names(rows(tmp_path, ["--1", "1", "--1"])) == ["--1", "1"]
    assert label_names(rows(tmp_path, [True, False])) == ["false", "true"]
    assert label_ids(rows(tmp_path, ["b", "a", "b"]), ["a", "b"]).tolist() == [1, 0, 1]


def test_labels_that_cannot_be_learnt(tmp_path):
    with pytest.raises(UserError, match="every row has the label 'a'"):
        label_names(rows(tmp_path, ["a", "a"]))
    with pytest.raises(UserError, match="30 different labels in 30 rows"):
        label_names(rows(tmp_path, [f"id{i}" for i in range(30)]))
    with pytest.raises(UserError, match=r"a.jsonl:2: the label 'neutral' does not occur in the training rows \(known: a, b\)"):
        label_ids(rows(tmp_path, ["a", "neutral"]), ["a", "b"])


# ---- kinds of labels ----


def read(tmp_path, name: str, content: str, label: str = "name", **flags):
    return read_texts(write(tmp_path / name, content), Layout(**flags), label=label)


def test_numbers(tmp_path):
    for name, content in (
        ("a.tsv", "text\tscore\na\t3.80\nb\t-1e-3\nc\t 5 \n"),
        ("a.jsonl", '{"text": "a", "score": 3.8}\n{"text": "b", "score": "-0.001"}\n{"text": "c", "score": 5}\n'),
    ):
        found = read(tmp_path, name, content, "number")
        assert found.labels == [3.8, -0.001, 5.0] and all(isinstance(label, float) for label in found.labels)
        assert found.strata() is None and found.take([2]).labels == [5.0]
    both = read(tmp_path, "a.csv", "text,label,score\na,x,1\nb,y,2\n", "number")  # the column that is more likely a number
    assert both.labels == [1.0, 2.0] and both.columns == {"label": ["x", "y"]}


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("a.csv", "text,label\na,1\nb,good\n", "a.csv:3: column label: a number is expected, found \"good\""),
        ("a.csv", "text,label\na,1\nb,nan\n", "a.csv:3: column label: a finite number is expected, found \"nan\""),
        ("a.csv", "text,label\na,1\nb,-inf\n", "a.csv:3: column label: a finite number is expected"),
        ("a.csv", "text,label\na,1e999\n", "a.csv:2: column label: a finite number is expected"),
        ("a.csv", "text,label\na,1_000\n", "a.csv:2: column label: a number is expected, found \"1_000\""),
        ("a.csv", 'text,label\na,"3,5"\n', "a.csv:2: column label: a number is expected, found \"3,5\"; a decimal comma"),
        ("a.csv", "text,label\na,1\nb,\n", "a.csv:3: a row without a label"),
        ("a.jsonl", '{"text": "a", "label": true}\n', "a.jsonl:1: column label: a number is expected, found true"),
        ("a.jsonl", '{"text": "a", "label": [1]}\n', "a.jsonl:1: column label: a number is expected, found [1]"),
        ("a.jsonl", '{"text": "a", "label": Infinity}\n', "a.jsonl:1: column label: a finite number is expected, found Infinity"),
        ("a.jsonl", '{"text": "a", "label": NaN}\n', "a.jsonl:1: a row without a label"),
        ("a.jsonl", '{"text": "a", "label": 1%s}\n' % ("0" * 400), "a.jsonl:1: column label: a number is expected, found 1000"),
    ],
)  # fmt: skip
def test_what_is_no_number(tmp_path, name, content, wanted):
    with pytest.raises(UserError) as error:
        read(tmp_path, name, content, "number")
    assert wanted in str(error.value) and "\n" not in str(error.value)


def test_a_header_among_numbers_is_noticed(tmp_path):
    with pytest.raises(UserError, match=r'a\.csv:1: column 2: a number is expected, found "mood"; if this row is a header'):
        read(tmp_path, "a.csv", "phrase,mood\na,1\nb,2\n", "number", text_column="1", label_column="2")


SETS = [["x", "y"], [], ["z"]]


@pytest.mark.parametrize(
    ("name", "content", "flags"),
    [
        ("a.jsonl", '{"text": "a", "labels": ["x", "y", "x"]}\n{"text": "b", "labels": []}\n{"text": "c", "labels": ["z"]}\n', {}),
        ("a.csv", "text,labels\na,x | y\nb,\nc,|z\n", {}),
        ("a.csv", "text,x,y,z\na,1,1,0\nb,0,0,0\nc,0,0,1\n", {"label_column": "x,y,z"}),
        ("a.csv", "text,x,y,z\na,1,1,0\nb,0,0,0\nc,0,0,1\n", {"label_column": "2, 3, 4"}),
        ("a.jsonl", '{"text": "a", "x": 1, "y": true, "z": 0}\n{"text": "b", "x": 0, "y": false, "z": 0.0}\n'
                    '{"text": "c", "x": 0, "y": 0, "z": 1}\n', {"label_column": "x,y,z"}),
    ],
)  # fmt: skip
def test_sets_of_labels(tmp_path, name, content, flags):
    found = read(tmp_path, name, content, "names", **flags)
    assert found.labels == SETS and found.strata() == ["x", "", "z"] and "1 rows without any label" in found.decided
    assert label_names(found) == ["x", "y", "z"]
    assert label_sets(found, ["x", "y", "z"]).tolist() == [[True, True, False], [False] * 3, [False, False, True]]
    with pytest.raises(UserError, match=r":.*: the label 'z' does not occur in the training rows \(known: x, y\)"):
        label_sets(found, ["x", "y"])


@pytest.mark.parametrize(
    ("name", "content", "flags", "wanted"),
    [
        ("a.jsonl", '{"text": "a", "label": [null]}\n', {}, "a.jsonl:1: column label: a list with an empty label, [null]"),
        ("a.jsonl", '{"text": "a", "label": ["x", ["y"]]}\n', {}, "a.jsonl:1: column label: one label is expected"),
        ("a.jsonl", '{"text": "a", "label": null}\n', {}, "a.jsonl:1: a row without a label"),
        ("a.csv", "text,x,y\na,1,0\nb,2,0\n", {"label_column": "x,y"}, "a.csv:3: column x: 0 or 1 is expected, found \"2\""),
        ("a.csv", "text,x,y\na,1,0\nb,1,\n", {"label_column": "x,y"}, "a.csv:3: a row without a label, column x, y"),
        ("a.csv", "text,x,y\na,1,0\n", {"label_column": "x,w"}, "--label-column w: no such column"),
        ("a.csv", "text,x,y\na,1,0\n", {"label_column": "x,x"}, "the same column twice"),
    ],
)  # fmt: skip
def test_what_is_no_set_of_labels(tmp_path, name, content, flags, wanted):
    with pytest.raises(UserError) as error:
        read(tmp_path, name, content, "names", **flags)
    assert wanted in str(error.value)


def test_several_label_columns_are_for_sets_alone(tmp_path):
    with pytest.raises(UserError, match="--label-column x,y: several columns; one is expected for this task"):
        read(tmp_path, "a.csv", "text,x,y\na,1,0\n", label_column="x,y")
    named = read(tmp_path, "a.csv", 'text,"x,y"\na,1\nb,0\n', label_column="x,y")  # the name of one column
    assert named.labels == ["1", "0"]


def test_part_of_a_label(tmp_path):
    found = read(tmp_path, "a.csv", "text,label\na,N:x\nb,L\nc,N:y\n", label_part=":")
    assert (found.labels, found.shortened) == (["N", "L", "N"], 2)
    found = read(tmp_path, "a.csv", "text,label\na,N:x|N:y|M\nb,L\n", "names", label_part=":")
    assert (found.labels, found.shortened) == ([["N", "M"], ["L"]], 2)
    with pytest.raises(UserError, match=r"a\.csv:3: a row without a label"):
        read(tmp_path, "a.csv", "text,label\na,N:x\nb,:y\n", label_part=":")
    with pytest.raises(UserError, match="--label-part :: the labels are numbers"):
        read(tmp_path, "a.csv", "text,label\na,1\nb,2\n", "number", label_part=":")


# ---- rows without a label, and labels that look wrong ----


def test_rows_without_a_label_are_left_out_on_request(tmp_path):
    content = "text,label,id\na,x,1\nb,,2\nc,y,3\nd, ,4\n"
    with pytest.raises(UserError, match=r"a\.csv:3: a row without a label, column label \(and 1 more rows\).*--skip-unlabelled"):
        read(tmp_path, "a.csv", content)
    found = read(tmp_path, "a.csv", content, skip_unlabelled=True)
    assert (found.texts, found.labels, found.lines, found.columns) == (["a", "c"], ["x", "y"], [2, 4], {"id": ["1", "3"]})
    assert "2 rows without a label left out" in found.decided
    broken = '{"text": null, "label": null}\n{"text": "b", "label": 1}\n'  # nobody misses the text of a row that is left out
    assert read(tmp_path, "a.jsonl", broken, skip_unlabelled=True).texts == ["b"]
    with pytest.raises(UserError, match="no row has a label, column label"):
        read(tmp_path, "a.csv", "text,label\na,\n", skip_unlabelled=True)


def test_rows_that_annotators_did_not_agree_on(tmp_path):
    """SNLI and MNLI write `-`; elsewhere it may be a class, as beside `+`."""
    found = read(tmp_path, "a.tsv", "gold_label\tsentence1\tsentence2\nneutral\ta\tb\n-\tc\td\nentailment\te\tf\n")
    assert (found.texts, found.pairs, found.labels, found.lines) == (["a", "e"], ["b", "f"], ["neutral", "entailment"], [2, 4])
    assert "1 rows left out whose gold_label is '-': the annotators did not agree" in found.decided
    found = read(tmp_path, "a.csv", "text,label\na,+\nb,-\n")
    assert found.labels == ["+", "-"] and "the label '-' (1 rows) is a class like any other" in found.decided[-1]


def notes(tmp_path, *labels) -> list[str]:
    found = rows(tmp_path, [*labels])
    return found.decided[found.decided.index("columns text = text, label = label") + 1 :]


def test_notes_on_labels(tmp_path):
    assert notes(tmp_path, "a", "b", "a", 1, 2, True) == []
    assert notes(tmp_path, "a", "nan", "NaN", "a") == [
        "the label 'nan' (1 rows), 'NaN' (1 rows) is a class like any other; where it means that there is none, empty the cells "
        "and add --skip-unlabelled",
        "labels that differ only in case, blanks, quotes or the form of a number are classes of their own: 'nan' (1 rows) and "
        "'NaN' (1 rows)",
    ]
    assert notes(tmp_path, 0, 1, -1, 1) == [
        "the label -1 (1 rows) is a class like any other; in some data sets it means that there is none"
    ]
    assert notes(tmp_path, -1, -2, 0) == [] and notes(tmp_path, "-1", "x") == []
    for one, other in (("Billing", "billing"), ("a b", "a  b"), ('"pos"', "pos"), (1, 1.0), ("5.00", "5"), ("It’s", "Its")):
        (note,) = notes(tmp_path, one, other, "z", other)
        assert note.endswith(f": {str(one)!r} (1 rows) and {str(other)!r} (2 rows)")
    with pytest.raises(UserError, match=r"a\.jsonl:2: a row without a label"):
        rows(tmp_path, [1, float("nan")])


def test_numbers_that_are_no_classes(tmp_path):
    scores = [f"{i % 40 / 10:.1f}" for i in range(200)]
    with pytest.raises(UserError, match=r"the label is a number with 40 different values, as 0\.1; --task text-regression is"):
        label_names(rows(tmp_path, scores))
    assert len(label_names(rows(tmp_path, [f"{i % 10 / 2}" for i in range(200)]))) == 10  # half stars
    assert len(label_names(rows(tmp_path, [str(i % 77) for i in range(200)]))) == 77  # ids of intents


def test_labels_of_thousands_of_digits(tmp_path):
    digits = "7" * 5000
    found = read(tmp_path, "a.csv", f"text,label\na,{digits}\nb,3\n")
    assert label_names(found) == ["3", digits] and label_ids(found, label_names(found)).tolist() == [1, 0]
    with pytest.raises(UserError, match=r"a\.jsonl:1: not valid JSON \(a number of thousands of digits; write it as a text\)"):
        read(tmp_path, "a.jsonl", f'{{"text": "a", "label": {digits}}}\n')


def test_labels_of_a_split(tmp_path):
    part = rows(tmp_path, ["b", "b"])
    assert label_ids(part, ["a", "b", "c"]).tolist() == [1, 1]
    with pytest.raises(
        UserError, match=r"a\.jsonl: no row of the classes a, c, which training has; put some there, or leave --valid"
    ):
        label_ids(part, ["a", "b", "c"], complete=True)
