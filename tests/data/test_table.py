"""Files in the wild, for every format: read right, or refused in one line with file and line."""

import bz2
import gzip
import lzma
import random
import sqlite3
import zipfile

import pytest

from minift.data.layout import TextLayout as Layout
from minift.data.texts import read_texts
from minift.errors import UserError

BIG = "x" * 1_000_000

# name -> (file, content, flags, texts, labels, lines)
READ = {
    "a byte order mark in a tsv": ("a.tsv", "\ufefftext\tlabel\na\tx\n", {}, ["a"], ["x"], [2]),
    "a byte order mark in JSON lines": ("a.jsonl", '\ufeff{"text": "a", "label": "x"}\n', {}, ["a"], ["x"], [1]),
    "a byte order mark before lines": ("a.txt", "\ufeffx a\ny b\n", {"format": "label-first"}, ["a", "b"], ["x", "y"], [1, 2]),
    "a byte order mark under another encoding": ("a.csv", "\ufefftext,label\né,x\n", {"encoding": "latin-1"}, ["é"], ["x"], [2]),
    "utf-16, by its first bytes": ("a.csv", "text,label\né,x\n".encode("utf-16"), {}, ["é"], ["x"], [2]),
    "utf-16, big end first": ("a.csv", b"\xfe\xff" + "text,label\né,x\n".encode("utf-16-be"), {}, ["é"], ["x"], [2]),
    "utf-16 under latin-1": ("a.csv", "text,label\né,x\n".encode("utf-16"), {"encoding": "latin-1"}, ["é"], ["x"], [2]),
    "utf-32": ("a.csv", "text,label\né,x\n".encode("utf-32"), {}, ["é"], ["x"], [2]),
    "utf-8-sig": ("a.csv", "\ufefftext,label\né,x\n", {"encoding": "utf-8-sig"}, ["é"], ["x"], [2]),
    "a Windows code page": ("a.csv", "text,label\n“é”,x\n".encode("cp1252"), {"encoding": "cp1252"}, ["“é”"], ["x"], [2]),
    "CRLF, csv": ("a.csv", 'text,label\r\n"a\r\nb",x\r\nc,y\r\n', {}, ["a\nb", "c"], ["x", "y"], [2, 4]),
    "CRLF, tsv": ("a.tsv", "text\tlabel\r\na\tx\r\n", {}, ["a"], ["x"], [2]),
    "CRLF, JSON lines": (
        "a.jsonl",
        '{"text": "a", "label": "x"}\r\n{"text": "b", "label": "y"}\r\n',
        {},
        ["a", "b"],
        ["x", "y"],
        [1, 2],
    ),
    "CR alone": ("a.csv", "text,label\ra,x\rb,y\r", {}, ["a", "b"], ["x", "y"], [2, 3]),
    "line separators of Unicode end no line": (
        "a.tsv",
        "text\tlabel\na\u2028b\x0b\x0c\x85c\tx\n",
        {},
        ["a\u2028b\x0b\x0c\x85c"],
        ["x"],
        [2],
    ),
    "the same in JSON lines": ("a.jsonl", '{"text": "a\u2028b", "label": "x"}\n', {}, ["a\u2028b"], ["x"], [1]),
    "stray quotes in a tsv": ("a.tsv", 'text\tlabel\n"a\tx\nb"\ty\n"\t"z"\n', {}, ['"a', 'b"', '"'], ["x", "y", '"z"'], [2, 3, 4]),
    "stray quotes within a csv cell": (
        "a.csv",
        'text,label\n5" wide,x\nsay "hi" now,y\n',
        {},
        ['5" wide', 'say "hi" now'],
        ["x", "y"],
        [2, 3],
    ),
    "tabs in a .csv": ("a.csv", 'text\tlabel\n"a, b"\tx\nc, d\ty\n', {}, ["a, b", "c, d"], ["x", "y"], [2, 3]),
    "a delimiter that is given": (
        "a.csv",
        "text|label\na;b;c|x\nd,e|y\n",
        {"delimiter": "|"},
        ["a;b;c", "d,e"],
        ["x", "y"],
        [2, 3],
    ),
    "a text with more semicolons than commas": (
        "a.csv",
        "a; b; c,x\nd,y\ne,x\n",
        {"delimiter": ",", "text_column": "1", "label_column": "2"},
        ["a; b; c", "d", "e"],
        ["x", "y", "x"],
        [1, 2, 3],
    ),
    "a tab that is given by name": (
        "a.csv",
        "text\tlabel,x,y\na\tz\n",
        {"delimiter": "tab", "label_column": "2"},
        ["a"],
        ["z"],
        [2],
    ),
    "Excel's first line": ("a.csv", "sep=;\r\ntext;label\r\na,b;x\r\n", {}, ["a,b"], ["x"], [3]),
    "Excel's first line above a header with more commas": (
        "a.csv",
        "sep=;\nlabel;text, as, it, is\nx;a, b\n",
        {"text_column": "2"},
        ["a, b"],
        ["x"],
        [3],
    ),
    "a delimiter that is given against Excel's first line": (
        "a.csv",
        "sep=;\ntext,label\na;b,x\n",
        {"delimiter": ","},
        ["a;b"],
        ["x"],
        [3],
    ),
    "Excel's first line with a tab": ("a.csv", "sep=\t\ntext\tlabel\na,b,c\tx\n", {}, ["a,b,c"], ["x"], [3]),
    "Excel's first line, quoted, over broken lines": (
        "a.csv",
        '"sep=,"\ntext,label\n"a\nb",x\nc,y\n',
        {},
        ["a\nb", "c"],
        ["x", "y"],
        [3, 5],
    ),
    "blanks before quotes": ("a.csv", 'text, label\n"a, b", "x"\nc, y\n', {}, ["a, b", "c"], ["x", "y"], [2, 3]),
    "blanks before quotes that hold a comma": ("a.csv", 'label,text\nx, "a, b"\ny, c\n', {}, ["a, b", "c"], ["x", "y"], [2, 3]),
    "blanks before quotes that are speech": (
        "a.csv",
        'label,text\nx, "No" he said\ny,c\n',
        {},
        [' "No" he said', "c"],
        ["x", "y"],
        [2, 3],
    ),
    "a comma, a blank and a quote within quotes": ("a.csv", 'text,label\n"he said, ""no""",x\n', {}, ['he said, "no"'], ["x"], [2]),
    "multi-line cells": ("a.csv", 'text,label\n"a\n\n\nb",x\n\nc,"y"\n', {}, ["a\n\n\nb", "c"], ["x", "y"], [2, 7]),
    "a header over several lines": (
        "a.csv",
        'id,"what they\nwrote",label\n1,a,x\n',
        {"text_column": "what they wrote"},
        ["a"],
        ["x"],
        [3],
    ),
    "no final newline, csv": ("a.csv", "text,label\na,x", {}, ["a"], ["x"], [2]),
    "no final newline after a quote": ("a.csv", 'text,label\na,"x"', {}, ["a"], ["x"], [2]),
    "no final newline, tsv": ("a.tsv", "text\tlabel\na\tx", {}, ["a"], ["x"], [2]),
    "no final newline, JSON lines": ("a.jsonl", '{"text": "a", "label": "x"}', {}, ["a"], ["x"], [1]),
    "no final newline, label-first": ("a.txt", "x a\ny b", {"format": "label-first"}, ["a", "b"], ["x", "y"], [1, 2]),
    "empty cells": ("a.csv", 'text,other,label\n,,x\n"",b,y\n', {}, ["", ""], ["x", "y"], [2, 3]),
    "cells of a million characters, csv": ("a.csv", f'text,label\n"{BIG}",x\n{BIG},y\n', {}, [BIG, BIG], ["x", "y"], [2, 3]),
    "cells of a million characters, tsv": ("a.tsv", f"text\tlabel\n{BIG}\tx\n", {}, [BIG], ["x"], [2]),
    "cells of a million characters, JSON lines": ("a.jsonl", f'{{"text": "{BIG}", "label": "x"}}\n', {}, [BIG], ["x"], [1]),
    "a NUL in JSON": ("a.jsonl", '{"text": "a\\u0000b", "label": "x"}\n', {}, ["a\0b"], ["x"], [1]),
}


@pytest.mark.parametrize("case", READ)
def test_reads(tmp_path, case):
    name, content, flags, texts, labels, lines = READ[case]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    rows = read_texts(tmp_path / name, Layout(**flags))
    assert (rows.texts, rows.labels, rows.lines) == (texts, labels, lines)


def test_reads_lines_for_prediction(tmp_path):
    for content, texts in (("\ufeffa\r\n\r\nb", ["a", "", "b"]), ('"a\t,\n', ['"a\t,']), (BIG + "\n", [BIG])):
        (tmp_path / "a.txt").write_bytes(content.encode("utf-8"))
        assert read_texts(tmp_path / "a.txt", Layout(format="lines"), labelled=False).texts == texts


def test_what_was_assumed_is_said(tmp_path):
    for content, flags, said in (
        ("sep=;\ntext;label\na;x\n", {}, "the line 'sep=;' names the delimiter"),
        ('text,label\na, "x"\n', {}, "blanks before quotes skipped"),
        ("text,label\na,x\n".encode("utf-16"), {}, "as utf-16, by its first bytes"),
        ("text,label\né,x\n", {"encoding": "latin-1"}, "it would also be valid UTF-8: check that --encoding latin-1 is right"),
        ("text,label\na,x\n", {"encoding": "latin-1"}, "as latin-1"),
        ("text|label\na|x\n", {"delimiter": "|"}, "delimiter '|'"),
    ):
        (tmp_path / "a.csv").write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        assert said in read_texts(tmp_path / "a.csv", Layout(**flags)).decided


# name -> (file, content, flags, what the error says)
WRONG = {
    "a row too short": ("a.csv", "text,label\na,x\nb\n", {}, "a.csv:3: 1 columns where the header has 2"),
    "a row too long after broken lines": (
        "a.csv",
        'text,label\n"a\nb",x\nc,y,z\n',
        {},
        "a.csv:4: 3 columns where the header has 2",
    ),
    "a ragged row under Excel's line": ("a.csv", "sep=,\ntext,label\na,x,y\n", {}, "a.csv:3: 3 columns where the header has 2"),
    "an open quote under Excel's line": (
        "a.csv",
        'sep=,\ntext,label\n"a,x\n',
        {},
        "a.csv:3: a double quote is opened and never closed",
    ),
    "an open quote that another one closes": ("a.csv", 'text,label\n"a b,x\nc,y\n"e f,x\n', {}, "a.csv:2: "),
    "a blank before an open quote": (
        "a.csv",
        'text,label\na, "x\nb,y\nc,"z\n',
        {},
        "a.csv:4: a double quote is opened and never closed",
    ),
    "NUL in a csv": (
        "a.csv",
        "text,label\na,x\nb\0,y\n",
        {},
        "a.csv:3: holds zero bytes, so it is no utf-8 text; see what made it",
    ),
    "NUL in a tsv": ("a.tsv", "text\tlabel\na\0\tx\n", {}, "a.tsv:2: holds zero bytes"),
    "a raw NUL in JSON lines": ("a.jsonl", '{"text": "\0"}\n', {}, "a.jsonl:1: holds zero bytes"),
    "utf-16 without a mark": ("a.csv", "text,label\n".encode("utf-16-le"), {}, "its first bytes look like --encoding utf-16-le"),
    "utf-16 without a mark, big end first": ("a.csv", "text,label\n".encode("utf-16-be"), {}, "look like --encoding utf-16-be"),
    "latin-1 in a tsv": ("a.tsv", "text\tlabel\né\tx\n".encode("latin-1"), {}, "a.tsv:2:1: byte 0xe9 is not utf-8"),
    "latin-1 in JSON lines": ("a.jsonl", '{"text": "é"}\n'.encode("latin-1"), {}, "a.jsonl:1:11: byte 0xe9 is not utf-8"),
    "what is not cp1252": (
        "a.csv",
        b"text,label\n\x81,x\n",
        {"encoding": "cp1252"},
        "a.csv:2:1: byte 0x81 is not cp1252; name the file's encoding, perhaps --encoding utf-8",
    ),
    "not ASCII": (
        "a.csv",
        "text,label\né,x\n",
        {"encoding": "ascii"},
        "a.csv:2:1: byte 0xc3 is not ascii; name the file's encoding",
    ),
    "utf-16 that is cut": ("a.csv", "text,label\na,x\n".encode("utf-16")[:-1], {}, "byte 0x0a is not utf-16"),
    "text that begins as an archive does": ("a.csv", "text,label\nx,PK\x03\x04\n", {"label_column": "w"}, "no such column"),
    "an encoding of no text": ("a.csv", "text,label\n", {"encoding": "base64"}, "--encoding base64: no encoding of this name"),
    "an encoding with a NUL": ("a.csv", "text,label\n", {"encoding": "a\0b"}, "no encoding of this name"),
    "JSON nested deep": (
        "a.jsonl",
        '{"text": "a", "label": ' + "[" * 100_000 + "\n",
        {},
        "a.jsonl:1: JSON that is nested too deep",
    ),
    "objects nested deep": ("a.jsonl", '{"a":' * 100_000 + "\n", {}, "a.jsonl:1: JSON that is nested too deep"),
    "a name over several lines": (
        "a.jsonl",
        '{"a\\nb": 5, "label": 1}\n',
        {"text_column": "a\nb"},
        "a.jsonl:1: column a b: a text is expected, found 5",
    ),
    "JSON over several lines": ("a.jsonl", '{\n"text": "a"\n}\n', {}, "a.jsonl:1: not valid JSON"),
    "two objects in a line": ("a.jsonl", '{"text": "a"} {"text": "b"}\n', {}, "a.jsonl:1: not valid JSON"),
    "a JSON null": ("a.jsonl", "null\n", {}, "a.jsonl:1: a JSON NoneType; one object a line is expected"),
    "a delimiter of two characters": (
        "a.csv",
        "text,label\na,x\n",
        {"delimiter": "||"},
        "--delimiter '||': expected one character",
    ),
    "a quote as the delimiter": ("a.csv", "text,label\na,x\n", {"delimiter": '"'}, "expected one character, not a double quote"),
    "a Git LFS pointer": (
        "a.csv",
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        {},
        "a.csv: this is a Git LFS pointer, not the data; fetch it: git lfs pull",
    ),
    "Parquet": ("a.jsonl", b"PAR1\x15\x04", {}, "a.jsonl: this is a Parquet file; write it as JSON lines or CSV first"),
    "Parquet by its name": ("a.parquet", b"PAR1\x15\x04", {}, "a.parquet: this is a Parquet file"),
    "an old workbook": (
        "a.xls",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        {},
        "a.xls: this is an Excel workbook (.xls); save the sheet as CSV",
    ),
    "an archive under latin-1": ("a.csv", b"PK\x03\x04ab", {"encoding": "latin-1", "format": "csv"}, "this is a zip archive"),
    "an archive of another extension": ("a.xlsx", b"PK\x03\x04ab", {}, "a.xlsx: this is a zip archive, as Excel's .xlsx is"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refuses(tmp_path, case):
    name, content, flags, wanted = WRONG[case]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    with pytest.raises(UserError) as error:
        read_texts(tmp_path / name, Layout(**flags))
    assert wanted in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 600


def test_refuses_what_real_tools_pack(tmp_path):
    content = b"text,label\na,x\n"
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(content))
    (tmp_path / "b.csv").write_bytes(gzip.compress(content))
    (tmp_path / "c.csv").write_bytes(bz2.compress(content))
    (tmp_path / "d.csv").write_bytes(lzma.compress(content))
    with zipfile.ZipFile(tmp_path / "e.csv", "w") as archive:
        archive.writestr("a.csv", content)
    with sqlite3.connect(tmp_path / "f.csv") as base:
        base.execute("create table a (text, label)")
    for name, what in (
        ("a.csv.gz", "gunzip"),
        ("b.csv", "gunzip"),
        ("c.csv", "bunzip2"),
        ("d.csv", "unxz"),
        ("e.csv", "zip archive"),
        ("f.csv", "SQLite"),
    ):
        with pytest.raises(UserError, match=what):
            read_texts(tmp_path / name, Layout())


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "label-first", "lines"])
def test_random_bytes_are_read_or_refused_in_one_line(tmp_path, name):
    """Pieces that parsers stumble over, in any order: no other exception than UserError."""
    pieces = [b"text", b"label", b",", b";", b"\t", b'"', b'""', b"\n", b"\r\n", b"\r", b" ", b"a", b"\xe9", "é".encode(), b"\0"]
    pieces += [b"{", b"}", b'{"text": "a", "label": ', b"1}", b"[", b"]", b":", b"null", b"NaN", b"-", b"1e999"]
    pieces += [b"sep=", b"\xff\xfe", b"\xef\xbb\xbf", b"\\ud83d"]
    draw = random.Random(0)
    path = tmp_path / (name if "." in name else "a.txt")
    kind = "auto" if "." in name else name
    read = 0
    for _ in range(1500):
        head = draw.choice([b"", b'{"text": "a", "label": "b"}\n' if name == "a.jsonl" else b"text,label\n", b"text\tlabel\n"])
        path.write_bytes(head + b"".join(draw.choices(pieces, k=draw.randrange(12))))
        for label in ("name", "number", "names"):
            layout = Layout(
                format=kind,
                encoding=draw.choice(["utf-8", "utf-8", "latin-1", "utf-16"]),
                text_column=draw.choice([None, "1", "a+2"]),
            )
            try:
                rows = read_texts(path, layout, labelled=draw.random() < 0.7, label=label)
            except UserError as error:
                assert "\n" not in str(error)
                str(error).encode()
            else:
                read += 1
                assert len(rows.texts) == len(rows.lines) > 0 and all(isinstance(text, str) for text in rows.texts)
                "".join(rows.texts).encode()
    assert read > 50
