"""Documents from plain text, tables, JSON lines and directories."""

import io
import sys

import pytest

from minift.data.documents import read_documents
from minift.data.layout import DocumentLayout
from minift.errors import UserError


def read(path, **layout):
    return read_documents(str(path), DocumentLayout(**layout))


def written(tmp_path, content: str | bytes, name: str = "rows.txt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


PARTED = " \n = A = \n \nfirst line\nsecond line\n\t\n\nthird\n \n"


def test_plain_text_a_document_a_line(tmp_path):
    found = read(written(tmp_path, "\n\none\ntwo words\nthree"))
    assert found.texts == ["one", "two words", "three"] and found.lines == [3, 4, 5] and found.numbers == [0, 1, 2]
    assert found.decided == ["a document a line", "2 blank lines skipped"] and found.filled


def test_blank_lines_part_documents_also_those_that_hold_blanks(tmp_path):
    path = written(tmp_path, PARTED)
    found = read(path)
    assert found.texts == [" = A = ", "first line\nsecond line", "third"] and found.lines == [2, 4, 8]
    assert found.decided == ["documents separated by blank lines"]
    lines = read(path, documents="lines")
    assert lines.texts == [" = A = ", "first line", "second line", "third"]
    assert read(path, format="lines").texts == lines.texts
    assert read(written(tmp_path, "a\nb\n"), documents="blank-lines").texts == ["a\nb"]


def test_numbers_stay_with_their_documents(tmp_path):
    found = read(written(tmp_path, "a\nb\nc\n")).take([2, 0])
    assert found.texts == ["c", "a"] and found.numbers == [2, 0] and found.lines == [3, 1] and found.place(0) == "line 3: "


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", 'id,text,label\n1,"one, two",x\n2,  ,y\n3,"three\nlines",x\n'),
        ("rows.tsv", "text\tlabel\none, two\tx\n  \ty\nthree\nlines\tx\n"),
        ("rows.jsonl", '{"text": "one, two"}\n\n{"text": " "}\n{"text": "three\\nlines", "id": 3}\n'),
    ],
)
def test_tables_are_a_document_a_row(tmp_path, name, content):
    if name.endswith(".tsv"):
        content = content.replace("three\nlines", "three lines")
    found = read(written(tmp_path, content, name))
    assert [text.split() for text in found.texts] == [["one,", "two"], ["three", "lines"]]
    assert found.numbers == [0, 2] and "empty documents skipped: 1" in found.decided


def test_a_table_of_one_column_without_header(tmp_path):
    assert read(written(tmp_path, "a text\nanother one\n", "rows.tsv")).texts == ["a text", "another one"]


def test_a_directory_is_a_document_a_file(tmp_path):
    (tmp_path / "docs" / "below").mkdir(parents=True)
    written(tmp_path, "one\n\nstill one\n", "docs/a.txt")
    written(tmp_path, "two", "docs/below/b.txt")
    written(tmp_path, " \n", "docs/c.txt")
    written(tmp_path, "x", "docs/d.md")
    found = read(tmp_path / "docs")
    assert found.texts == ["one\n\nstill one", "two"] and [name[-5:] for name in found.columns["file"]] == ["a.txt", "b.txt"]
    assert "files left out: 1 .md" in found.decided and "empty documents skipped: 1" in found.decided


def test_standard_input_and_lists(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nb")))
    assert read("-").texts == ["a", "b"]
    found = read_documents(["a", "", "c"], DocumentLayout(), filled=False)
    assert found.texts == ["a", "", "c"] and found.given and not found.filled


def test_what_a_flag_does_not_apply_to_is_said(tmp_path):
    plain = read(written(tmp_path, "a\nb\n"), text_column="x", label_column="y")
    assert plain.decided[-1] == "--text-column, --label-column does not apply to plain text"
    table = read(written(tmp_path, "text,label\na,b\n", "rows.csv"), documents="lines", label_column="label")
    assert table.decided[-2:] == ["--label-column does not apply to documents", "--documents does not apply to a table"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"", "the file is empty"),
        ("a.txt", b" \n\t\n", "the file is empty"),
        ("a.txt", b"good\n\xe9t\xe9\n", "a.txt:2:1: byte 0xe9 is not utf-8"),
        ("a.txt", b"good\nb\0d\n", "a.txt:2: holds zero bytes"),
        ("a.txt", b"\x1f\x8b\x08\0", "compressed by gzip"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 3}\n', "a.jsonl:2: column text: a text is expected, found 3"),
        ("a.jsonl", b'{"words": "a"}\n', "no column bears a usual name for the text"),
        ("a.csv", b"text\n \n", "all 1 documents are empty"),
    ],
)
def test_wrong_files_are_refused_in_one_line(tmp_path, name, content, says):
    with pytest.raises(UserError, match=says) as refused:
        read(written(tmp_path, content, name))
    assert "\n" not in str(refused.value)


def test_files_in_the_wild(tmp_path):
    found = read(written(tmp_path, '\ufeffone\r\n\r\ntwo\rmore "quoted\r\n'.encode()))
    assert found.texts == ["one", 'two\nmore "quoted']
    assert read(written(tmp_path, "\u00e9t\u00e9\n".encode("latin-1")), encoding="latin-1").texts == ["\u00e9t\u00e9"]
    assert read(written(tmp_path, "x" * 1_000_000)).texts == ["x" * 1_000_000]
