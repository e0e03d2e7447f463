"""Large files: their rows lie on disk, and are those that a small file has in memory."""

import random
import tempfile
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from test_streaming import FILES, WRONG
from tiny import converted_directory

from minift.data import stored
from minift.data.layout import TextLayout
from minift.data.splits import split
from minift.data.stored import Few, Stored, View, mapped, take, zipped
from minift.data.texts import Texts, read_texts
from minift.errors import UserError
from minift.pretrained import read
from minift.tasks.text_classification import TextClassification
from minift.tasks.text_regression import TextRegression

LABELLED = {
    "names.csv": ("name", b"id,text,label\n1,a, pos\n2,\xc3\xa9,neg \n3,c,\xc3\xbc\n4,d,pos\n5,e,pos\n", {}),
    "left out.csv": ("name", b"text,label\na,pos\nb,\n\nc,neg\nd,\ne,pos\n", {"skip_unlabelled": True}),
    "pairs.jsonl": (
        "name",
        b'{"sentence1": "a", "sentence2": "b", "label": 1}\n\n{"label": 0, "sentence2": "d", "sentence1": "c", "more": [1, null]}\n'
        b'{"sentence1": "e", "sentence2": "", "label": 1, "more": {"x": 2.5}}\n{"sentence1": "", "sentence2": "f", "label": 0}\n',
        {},
    ),
    "joined.tsv": ("name", b"t\tu\tlabel\na\tb\tx\n\tc\ty\nd\t\tx\ne\tf\ty\n", {"text_column": "t+u"}),
    "parts.txt": (
        "name",
        b"NUM:dist how far\nHUM:ind who\nNUM:date when\nHUM:gr which\n",
        {"format": "label-first", "label_part": ":"},
    ),
    "numbers.csv": ("number", b"text,score\na,1.5\nb,-2\nc, 1e-3 \nd,1.5\n", {}),
    "numbers left out.csv": ("number", b"text,score\na,1.5\nb,\nc,-2\nd, \ne,3\n", {"skip_unlabelled": True}),
    "numbers.jsonl": (
        "number",
        b'{"text": "a", "score": 2}\n{"text": "b", "score": "1.5"}\n{"text": "c", "score": NaN}\n{"text": "d", "score": 7e-2}\n',
        {"skip_unlabelled": True},
    ),
    "sets.csv": ("names", b"text,labels\na,x|y\nb,\nc,y\nd,x|y\n", {}),
    "flags.csv": ("names", b"text,x,y\na,1,0\nb,0,0\nc,1,1\nd,1,0\n", {"label_column": "x,y"}),
    "no header.csv": ("name", b"a,pos\nb,neg\nc,pos\nd,neg\n", {"text_column": "1", "label_column": "2", "header": "no"}),
}


def lists(examples: Texts) -> dict:
    parts = {name: getattr(examples, name) for name in ("texts", "pairs", "labels", "lines")} | examples.columns
    found = {name: None if values is None else list(values) for name, values in parts.items()}
    return found | {"inputs": list(examples.inputs()), "strata": list(examples.strata() or ()), "decided": examples.decided}


@pytest.mark.parametrize("name", [*LABELLED, *FILES])
def test_a_large_file_is_read_as_a_small_one(tmp_path, monkeypatch, name):
    label, content, flags = LABELLED[name] if name in LABELLED else ("name", *FILES[name])
    (tmp_path / name).write_bytes(content)

    def reading() -> Texts:
        return read_texts(tmp_path / name, TextLayout(**flags), name in LABELLED, label)

    small = reading()
    monkeypatch.setattr(stored, "LARGE", 0)
    monkeypatch.setattr(stored, "BLOCK", 2)
    large = reading()
    assert isinstance(large.texts, View) and isinstance(small.texts, list) and lists(large) == lists(small)
    for rows in ([2, 0], [1], [0, 1, 2], [2, 2, 1]):
        again = large.take(np.array(rows))
        assert lists(again) == lists(small.take(rows)) and isinstance(again.texts, View) and len(again) == len(rows)
        assert [again.where(i) for i in range(len(again))] == [small.where(row) for row in rows]
        assert lists(again.take([0])) == lists(small.take(rows[:1]))
    if name in LABELLED and label != "number":
        assert [part.tolist() for part in split(large, 0.4, 1)] == [part.tolist() for part in split(small, 0.4, 1)]


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_in_a_large_file_is_told_alike(tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(WRONG[name])
    told = []
    for size in (stored.LARGE, 0):
        monkeypatch.setattr(stored, "LARGE", size)
        with pytest.raises(UserError) as caught:
            read_texts(tmp_path / name, TextLayout(), labelled=False)
        told.append(str(caught.value))
    assert told[0] == told[1]


def test_class_folders(tmp_path, monkeypatch):
    for i, kind in enumerate(("neg", "pos") * 3):
        (tmp_path / kind).mkdir(exist_ok=True)
        (tmp_path / kind / f"{i}.txt").write_text(f"text {i}\nand more\n")
    small = read_texts(tmp_path, TextLayout())
    monkeypatch.setattr(stored, "LARGE", 10)
    large = read_texts(tmp_path, TextLayout())
    assert isinstance(large.texts, View) and lists(large) == lists(small) and len(large) == 6


def test_a_view_is_a_sequence(monkeypatch):
    monkeypatch.setattr(stored, "BLOCK", 3)
    values = [[i, "x" * i, None, {"a": 0.5}] for i in range(10)]
    view = View(Stored.of(iter(values)), stored.itself)
    chosen = take({"all": view, "firsts": mapped(view, lambda value: value[0])}, np.array([9, 0, 4, 4]))
    assert chosen["all"].stored is chosen["firsts"].stored
    assert list(chosen["firsts"]) == [9, 0, 4, 4] and [chosen["firsts"][i] for i in (-1, 1)] == [4, 0]
    assert list(view) == values and list(view[3:]) == values[3:] and list(view[3:][2:4]) == values[5:7] and view[-1] == values[-1]
    assert list(zipped([chosen["firsts"], chosen["all"]])) == [(i, values[i]) for i in (9, 0, 4, 4)]
    assert [a + b for (a, *_), (b, *_) in pairwise(view)] == [2 * i + 1 for i in range(9)]  # two at once
    with pytest.raises(IndexError):
        view[10]
    assert not len(View(Stored.of([]), stored.itself))


def test_few():
    values = [["a", "b"], [], ["a", "b"], ["c"]] * 100
    few = Few(values)
    assert list(few) == values and few[3] == ["c"] and list(few[398:]) == values[398:] and few.codes.itemsize == 1
    assert list(few.take(np.array([3, 0]))) == [["c"], ["a", "b"]] and list(Few(map(str, range(300)))) == [*map(str, range(300))]


def test_no_room_on_the_disk_is_one_line(tmp_path, monkeypatch):
    class Full:
        def write(self, content):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", Full)
    with pytest.raises(UserError, match=r"no room for the rows of a large file .No space left on device.; .* TMPDIR"):
        Stored.of(iter([["a"]]))


def test_json_that_marshal_refuses_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "LARGE", 0)
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": "x"}\n')

    def dumps(*_):
        raise ValueError("object too deeply nested to marshal")

    monkeypatch.setattr(stored.marshal, "dumps", dumps)
    with pytest.raises(UserError, match="one of the rows 1 to 1: JSON that is nested too deep"):
        read_texts(tmp_path / "rows.jsonl", TextLayout())


@pytest.mark.parametrize("numbers", [False, True])
def test_memory_of_a_row(tmp_path, monkeypatch, numbers):
    """Of each row besides its ids: 40 bytes at most, to which the allocator adds. In memory it is some 220."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(stored, "LARGE", 1 << 16)
    draw, checkpoint = random.Random(0), read(converted_directory(tmp_path / "base"))
    task = TextClassification(labels=["bad", "good"], pool="cls", max_length=20, pairs=False)
    if numbers:
        task = TextRegression("cls", 20, False, mean=0.5, deviation=0.3, scaled=True)
    words = ("the", "film", "was", "food", "slow")
    lines = [
        f"{' '.join(draw.choices(words, k=9))},{draw.random() if numbers else draw.choice(task.labels)}" for _ in range(12_000)
    ]

    def held(rows: int) -> int:
        file = tmp_path / f"{rows}.csv"
        file.write_text("\n".join(["text,label", *lines[:rows]]))
        tracemalloc.start()
        examples = read_texts(file, TextLayout(), label="number" if numbers else "name")
        part = examples.take(split(examples, 0.1, 0)[0])
        del examples
        data = task.prepare(part, checkpoint)
        order = data.order(32, 1, 0)
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(part) == len(data) == round(0.9 * rows) and len(order) and isinstance(data.tokens.values.base, np.memmap)
        return size

    few, many = map(held, (4_000, 12_000))
    assert (many - few) / (0.9 * 8_000) < 35
