"""Labels: names, numbers, sets; their order; what is told of labels that look wrong."""

import json

import pytest

from minift.data.labels import label_ids, label_names
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
