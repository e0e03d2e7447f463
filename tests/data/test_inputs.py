"""Where texts and images come from besides a file: lists, generators, standard input, directories; and what is refused by name."""

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from minift.data.decoding import sound
from minift.data.images import read_images
from minift.data.layout import ImageLayout, TextLayout
from minift.data.texts import read_texts
from minift.errors import UserError

BYTE = "caf\udce9"  # how Python holds a name or an argument with the byte 0xe9


def given(source):
    return read_texts(source, TextLayout(), labelled=False)


@pytest.mark.parametrize("kind", [list, tuple, iter, lambda texts: (text for text in texts), lambda texts: map(str, texts)])
def test_texts_of_any_iterable(kind):
    rows = given(kind(["good", "bad"]))
    assert (rows.texts, rows.pairs, rows.labels, rows.lines, rows.given) == (["good", "bad"], None, None, None, True)
    assert rows.take([1]).inputs() == [{"text": "bad"}] and rows.place(0) == ""
    pairs = (
        given(kind([("a", "b"), ("c", "d")]) if kind is not iter else iter([("a", "b"), ["c", "d"]]))
        if kind in (list, iter)
        else None
    )
    assert pairs is None or (pairs.texts, pairs.pairs) == (["a", "c"], ["b", "d"])


def test_no_texts():
    assert len(given([])) == 0 and len(given(iter(()))) == 0


def test_open_file_is_an_iterable_of_lines(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    with (tmp_path / "a.txt").open() as file:
        assert len(given(file)) == 2


class Frame:
    """As a data frame: an iteration over it yields the names of its columns."""

    ndim = 2

    def __iter__(self):
        return iter(["text", "label"])


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        (None, "a list of texts is expected, found NoneType"),
        (5, "a list of texts is expected, found int"),
        ({"text": "a"}, "a list of texts is expected, found dict"),
        ({"a", "b"}, "a list of texts is expected, found set"),
        (b"ab", "a list of texts is expected, found bytes"),
        (Frame(), "a list of texts is expected, found Frame"),
        (["a", None], "input 1: a text is expected, found NoneType (None)"),
        (["a", "b", float("nan")], "input 2: a text is expected, found float (nan)"),
        ([b"a"], "input 0: a text is expected, found bytes"),
        (["a", ("b", "c")], "input 1: a pair, where input 0 is a single text"),
        ([("b", "c"), "a"], "input 1: a single text, where input 0 is a pair"),
        ([("b", "c"), ("a",)], "input 1: a text and its pair are expected, found 1 values"),
        ([("b", "c"), ("a", 1)], "input 1: a text is expected, found int (1)"),
        (["a", "good \ud83d"], "input 1: half of a character (a lone surrogate), as of an emoji cut in two in 'good \\ud83d'"),
        (["a\nb \ud83d"], "in 'a\\nb \\ud83d'"),
        (["x" * 9999 + "\ud83d"], "xx\\ud83d'; fix"),
        (["good " + BYTE], "input 0: a byte that is not UTF-8 (0xe9)"),
        ([("a", BYTE)], "input 0: a byte that is not UTF-8 (0xe9)"),
        (f"/nowhere/{BYTE}.csv", "the path of a file: a byte that is not UTF-8 (0xe9)"),
    ],
)
def test_inputs_that_are_no_texts(source, wanted):
    with pytest.raises(UserError) as error:
        given(source)
    assert wanted in str(error.value) and "\n" not in str(error.value)
    str(error.value).encode()  # it can be printed anywhere


def test_a_list_has_no_labels():
    with pytest.raises(UserError, match="have no labels; name a file"):
        read_texts(["a"], TextLayout())
    with pytest.raises(UserError, match="has no labels; name a directory"):
        read_images(["a.jpg"])


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ('{"text": "a", "label": "x"}\n{"text": "a \\ud83d", "label": "y"}\n', "a.jsonl:2: column text"),
        (
            '{"text": "a", "text_b": "b", "label": "x"}\n{"text": "a", "text_b": "\\udc00", "label": "y"}\n',
            "a.jsonl:2: column text_b",
        ),
        ('{"text": "a", "label": "x"}\n{"text": "a", "label": "y\\udfff"}\n', "a.jsonl:2: column label"),
    ],
)
def test_half_a_character_in_a_file(tmp_path, content, where):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match=f"{where}: half of a character"):
        read_texts(tmp_path / "a.jsonl", TextLayout(pair_column="text_b" if "text_b" in content else None))


def test_half_a_character_by_way_of_the_encoding(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\ngood \\ud83d,x\nb,y\n")
    with pytest.raises(UserError, match=r"a\.csv:2: column text: half of a character"):
        read_texts(tmp_path / "a.csv", TextLayout(encoding="unicode_escape"))


# ---- standard input ----


def put_in(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_standard_input(monkeypatch):
    put_in(monkeypatch, b"text,label\na,x\nb,y\n")
    rows = read_texts("-", TextLayout(format="csv"))
    assert (rows.texts, rows.labels, rows.where(1)) == (["a", "b"], ["x", "y"], "<stdin>:3")
    put_in(monkeypatch, b"a\nb\n")
    assert read_texts("-", TextLayout(format="lines"), labelled=False).texts == ["a", "b"]
    with pytest.raises(UserError, match="standard input has no extension to tell its format; add --format, one of csv, tsv"):
        read_texts("-", TextLayout())
    put_in(monkeypatch, b"text,label\n\xe9,x\n")
    with pytest.raises(UserError, match="<stdin>:2:1: byte 0xe9 is not utf-8"):
        read_texts("-", TextLayout(format="csv"))
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="standard input is closed"):
        read_texts("-", TextLayout(format="csv"))


# ---- directories of texts ----


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def test_class_folders_of_texts(tmp_path):
    root = lay(tmp_path, {"pos/0_9.txt": "Fine.\n", "pos/1_8.txt": "Très bien", "neg/0_2.txt": "\ufeffBad", "neg/empty.txt": ""})
    lay(root, {"unsup/0_0.txt": "Who knows", "urls_pos.txt": "http", "labeledBow.feat": "1", "neg/notes.md": ""})
    rows = read_texts(root, TextLayout())
    assert (rows.texts, rows.labels) == (["Bad", "", "Fine.", "Très bien"], ["neg", "neg", "pos", "pos"])
    assert rows.where(2) == str(root / "pos" / "0_9.txt") and rows.lines is None and rows.place(0) == ""
    assert rows.columns == {"file": [str(root / name) for name in ("neg/0_2.txt", "neg/empty.txt", "pos/0_9.txt", "pos/1_8.txt")]}
    assert rows.decided == [
        "2 class folders",
        "the folder unsup left out: it is no class",
        "texts beside the class folders left out, as they have no class: 1",
        "files left out: 1 .md",
        "1 row with an empty text",
    ]
    some = rows.take([3])
    assert (some.texts, some.where(0), some.columns["file"]) == (
        ["Très bien"],
        str(root / "pos" / "1_8.txt"),
        [str(root / "pos/1_8.txt")],
    )
    assert len(read_texts(root, TextLayout(), labelled=False)) == 6
    assert read_texts(root, TextLayout(text_column="3")).decided[-2] == "--text-column does not apply to a directory"


def test_directories_of_texts_that_are_wrong(tmp_path):
    with pytest.raises(UserError, match=r"no texts in it; it holds 1 \.jpg; .* --task image-classification"):
        read_texts(lay(tmp_path / "images", {"a/1.jpg": ""}), TextLayout())
    root = lay(tmp_path / "imdb", {"train/pos/1.txt": "a", "test/pos/1.txt": "b"})
    with pytest.raises(
        UserError, match=f"its folders are splits, not classes: test, train; write --train {root}/train --test {root}/test"
    ):
        read_texts(root, TextLayout())
    (lay(tmp_path / "latin", {"a/1.txt": "", "b/1.txt": ""}) / "b/1.txt").write_bytes(b"one\ncaf\xe9")
    with pytest.raises(UserError, match=r"b/1.txt:2:4: byte 0xe9 is not utf-8"):
        read_texts(tmp_path / "latin", TextLayout())
    assert read_texts(tmp_path / "latin", TextLayout(encoding="latin-1")).texts[1] == "one\ncafé"
    with pytest.raises(UserError, match="a directory, whose folders are classes; for this task a table is expected"):
        read_texts(tmp_path / "latin", TextLayout(), label="number")


# ---- images ----


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path, "PNG")
    return path


def test_files_given_one_by_one(tmp_path, capsys):
    files = [image(tmp_path / f"{i}.png") for i in range(2)]
    for source in (files, (str(file) for file in files), map(str, files)):
        images = sound(read_images(source, labelled=False), 0, False)
        assert images.files == files and images.labels is None and images.given
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1\.png: zero bytes"):
        sound(read_images(files, labelled=False), 0, False)
    assert capsys.readouterr().err == ""  # a prediction of one image prints nothing of its own


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        (lambda path: [path], "input 0: {}: a directory; for all images in it say --data"),
        (lambda path: [path / "gone.png"], "input 0: {}/gone.png: no such file"),
        (lambda path: ["x" * 5000], "no such file"),
        (lambda path: ["a\0b"], "no such file"),
        (lambda path: [5], "input 0: the path of an image is expected, found int (5)"),
        (lambda path: None, "a list of image files is expected, found NoneType"),
        (lambda path: [path / BYTE], "input 0: a byte that is not UTF-8 (0xe9)"),
    ],
)
def test_inputs_that_are_no_images(tmp_path, source, wanted):
    with pytest.raises(UserError) as error:
        read_images(source(tmp_path), labelled=False)
    assert wanted.format(tmp_path) in str(error.value)
    str(error.value).encode()


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_names_that_are_not_utf8(tmp_path):
    image(tmp_path / "data" / "bees" / "0.png")
    image(tmp_path / "data" / BYTE / "0.png")
    with pytest.raises(UserError, match=r"the name of a class folder: a byte that is not UTF-8 \(0xe9\) in 'caf"):
        read_images(tmp_path / "data")
    with pytest.raises(UserError, match=r"the name of a file: a byte that is not UTF-8 \(0xe9\)"):
        read_images(tmp_path / "data", labelled=False)
    with pytest.raises(UserError, match=r"the path of a file: a byte that is not UTF-8 \(0xe9\)"):
        read_images(tmp_path / "data" / BYTE, labelled=False)


def test_table_of_images_on_standard_input(tmp_path, monkeypatch):
    image(tmp_path / "0.png")
    monkeypatch.chdir(tmp_path)
    put_in(monkeypatch, b"path,label,id\n0.png,a,7\n0.png,b,8\n")
    images = read_images("-", ImageLayout(format="csv"))
    assert (images.labels, images.columns) == (["a", "b"], {"id": ["7", "8"]})
