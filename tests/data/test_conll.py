"""Files of words and tags: every layout is read right, every mistake is named with its line."""

import re
from pathlib import Path

import numpy as np
import pytest

from minift.data.conll import Tagged, has_punctuation_apart, punctuation_apart, read_conll
from minift.errors import UserError
from minift.metrics.entities import detect_scheme, to_iob2


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


# name, content, arguments, words, tags, lines
JOHN = ([["John", "Smith", "left"], ["Paris", "."]], [["B-per", "I-per", "O"], ["B-loc", "O"]])
READ = {
    "two columns, tabs": ("a.conll", "John\tB-per\nSmith\tI-per\nleft\tO\n\nParis\tB-loc\n.\tO\n", {}, *JOHN, [1, 5]),
    "two columns, blanks, no final newline": ("a", "John B-per\nSmith  I-per\nleft O\n\nParis B-loc\n. O", {}, *JOHN, [1, 5]),
    "four columns": (
        "a.txt",
        "John NNP B-NP B-per\nSmith NNP I-NP I-per\nleft VB O O\n\nParis NNP B-NP B-loc\n. . O O\n",
        {},
        *JOHN,
        [1, 5],
    ),
    "another column of tags": (
        "a.conll",
        "a\tB-X\tO\nb\tO\tO\n",
        {"label_column": "2"},
        [["a", "b"]],
        [["B-X", "O"]],
        [1],
    ),
    "another column of words": (
        "a.conll",
        "1\ta\tB-X\n2\tb\tO\n",
        {"text_column": "2"},
        [["a", "b"]],
        [["B-X", "O"]],
        [1],
    ),
    "separators that hold a blank or a tab": (
        "a.conll",
        "John\tB-per\nSmith\tI-per\nleft\tO\n\t\nParis\tB-loc\n.\tO\n \n",
        {},
        *JOHN,
        [1, 5],
    ),
    "several separators, byte order mark, CRLF": (
        "a.conll",
        "\ufeff\r\nJohn\tB-per\r\nSmith\tI-per\r\nleft\tO\r\n\r\n\r\nParis\tB-loc\r\n.\tO\r\n\r\n",
        {},
        *JOHN,
        [2, 7],
    ),
    "Latin-1": ("a.conll", "Orléans\tB-loc\n".encode("latin-1"), {"encoding": "latin-1"}, [["Orléans"]], [["B-loc"]], [1]),
    "quotes and hashes are words": ("a.conll", "\"\tO\n#\tO\n''\tO\n", {}, [['"', "#", "''"]], [["O", "O", "O"]], [1]),
    "words that hold another white space": (
        "a.conll",
        "10\u00a0000\tO\n\u3000x\tO\ny\u2028z\tO\n",
        {},
        [["10\u00a0000", "\u3000x", "y\u2028z"]],
        [["O"] * 3],
        [1],
    ),
    "words that hold a blank, between tabs": ("a.conll", "New York\tB-loc\n", {}, [["New York"]], [["B-loc"]], [1]),
    "a type with hyphens, and none": ("a.conll", "a B-creative-work\nb B\n", {}, [["a", "b"]], [["B-creative-work", "B"]], [1]),
    "a long word": ("a.conll", f"{'x' * 1_000_000}\tO\n", {}, [["x" * 1_000_000]], [["O"]], [1]),
    "jsonl": (
        "a.jsonl",
        '{"id": 7, "tokens": ["John", "Smith", "left"], "ner_tags": ["B-per", "I-per", "O"]}\n\n'
        '{"ner_tags": ["B-loc", "O"], "tokens": ["Paris", "."]}\n',
        {},
        *JOHN,
        [1, 3],
    ),
    "jsonl, keys by name": (
        "a.jsonl",
        '{"w": ["a"], "tokens": ["b"], "y": ["O"]}\n',
        {"text_column": "w", "label_column": "y"},
        [["a"]],
        [["O"]],
        [1],
    ),
}


@pytest.mark.parametrize("case", READ)
def test_reads(tmp_path, case):
    name, content, arguments, words, tags, lines = READ[case]
    found = read_conll(write(tmp_path / name, content), **arguments)
    assert (found.words, found.tags, found.lines) == (words, tags, lines)
    assert len(found) == len(words) and found.groups() is None and found.strata() is None


def test_documents_are_groups(tmp_path):
    content = "-DOCSTART- -X- O O\n\na NN O O\n\nb NN O O\n\n-DOCSTART- -X- O O\n\nc NN O B-X\nd NN O O\n-DOCSTART-\ne NN O O\n"
    found = read_conll(write(tmp_path / "a.conll", content))
    assert found.words == [["a"], ["b"], ["c", "d"], ["e"]] and found.groups() == [1, 1, 2, 3]
    assert found.lines == [3, 5, 9, 12] and "3 documents" in found.decided
    held = found.take(np.array([2, 0]))
    assert (held.words, held.tags, held.groups()) == ([["c", "d"], ["a"]], [["B-X", "O"], ["O"]], [2, 1])
    assert held.where_word(0, 1) == f"{tmp_path / 'a.conll'}:10" and held.place(0) == "line 9: "


@pytest.mark.parametrize(
    ("scheme", "column"),
    [
        ("IOB1", "I-X I-X B-X O I-Y"),
        ("IOB2", "B-X I-X B-X O B-Y"),
        ("IOBES", "B-X E-X S-X O S-Y"),
        ("BILOU", "B-X L-X U-X O U-Y"),
    ],
)
def test_every_scheme_is_read(tmp_path, scheme, column):
    found = read_conll(write(tmp_path / "a.conll", "".join(f"w\t{tag}\n" for tag in column.split())))
    assert found.tags == [column.split()] and detect_scheme(found.tags) == scheme
    assert to_iob2(found.tags[0], scheme) == (["B-X", "I-X", "B-X", "O", "B-Y"], 0)


def test_splitting_at_empty_lines_joins_sentences(tmp_path):
    content = "a\tO\n\t\nb\tO\n\t\nc\tO\n\nd\tO\n"
    assert len(re.split(r"\n\n+", content.strip())) == 2
    found = read_conll(write(tmp_path / "a.conll", content))
    assert len(found) == 4 and "2 lines between sentences hold blanks" in found.decided


def test_what_was_decided_is_said(tmp_path):
    found = read_conll(write(tmp_path / "a.txt", "a NN O\nb NN O\n\nc NN O\n"))
    assert found.decided == [
        "conll",
        "3 columns separated by blanks, word = 1, tag = 3",
        "2 sentences, 3 words",
        "no entity: every tag is O",
    ]


UNLABELLED = {
    "a word a line": ("a.conll", "John\nleft\n\nParis\n", [["John", "left"], ["Paris"]], [1, 4], "conll"),
    "a word a line in a .txt": ("a.txt", "John\nleft\n\nParis\n", [["John", "left"], ["Paris"]], [1, 4], "conll (a word a line"),
    "columns in a .txt": ("a.txt", "John NNP B-per\nleft VB O\n", [["John", "left"]], [1], "conll (columns with a tag"),
    "columns without tags": ("a.conll", "John\tNNP\nleft\tVB\n", [["John", "left"]], [1], "conll"),
    "sentences": (
        "a.txt",
        "John left .\n\nIn  Paris\n",
        [["John", "left", "."], ["In", "Paris"]],
        [1, 3],
        "lines (a sen",
    ),
    "sentences of as many words": ("a.txt", "John left\nMary came\n", [["John", "left"], ["Mary", "came"]], [1, 2], "lines"),
    "jsonl": ("a.jsonl", '{"tokens": ["a", "b"]}\n{"tokens": ["c"]}\n', [["a", "b"], ["c"]], [1, 2], "jsonl"),
}


@pytest.mark.parametrize("case", UNLABELLED)
def test_without_labels(tmp_path, case):
    name, content, words, lines, said = UNLABELLED[case]
    found = read_conll(write(tmp_path / name, content), labelled=False)
    assert (found.words, found.tags, found.lines) == (words, None, lines)
    assert found.decided[0].startswith(said)


def test_format_overrules_the_guess(tmp_path):
    path = write(tmp_path / "a.txt", "John\nMary\n")
    assert read_conll(path, labelled=False).words == [["John", "Mary"]]
    assert read_conll(path, labelled=False, format="lines").words == [["John"], ["Mary"]]


def test_offsets_point_into_the_text(tmp_path):
    found = read_conll(write(tmp_path / "a.txt", "  John\u00a0Smith \tleft.\nb c\n"), labelled=False, format="lines")
    assert found.words == [["John", "Smith", "left."], ["b", "c"]]
    for row in range(2):
        assert [found.text(row)[a:b] for a, b in found.offsets(row)] == found.words[row]
    assert found.inputs()[0] == {"text": "  John\u00a0Smith \tleft.", "tokens": ["John", "Smith", "left."]}
    found = read_conll(write(tmp_path / "a.conll", "New York\tO\n.\tO\n"))
    assert found.text(0) == "New York ." and found.offsets(0) == [(0, 8), (9, 10)]
    assert found.inputs() == [{"tokens": ["New York", "."]}]


def test_sentences_that_come_from_no_file():
    found = read_conll((text for text in ["John  left", "b"]), labelled=False)
    assert found.words == [["John", "left"], ["b"]] and found.text(0) == "John  left" and found.lines is None
    found = read_conll([["John", "left"], ("b",), {"tokens": ["c"]}, "d e"], labelled=False)
    assert found.words == [["John", "left"], ["b"], ["c"], ["d", "e"]] and found.offsets(0) == [(0, 4), (5, 9)]
    found = read_conll([["New York", "left"], "d  e"], labelled=False)
    assert found.inputs() == [{"tokens": ["New York", "left"]}, {"text": "d  e", "tokens": ["d", "e"]}]
    assert found.text(0) == "New York left" and found.offsets(0) == [(0, 8), (9, 13)] and found.offsets(1) == [(0, 1), (3, 4)]
    found = read_conll(iter([{"tokens": ["c"], "tags": ["B-X"]}]))
    assert (found.words, found.tags) == ([["c"]], [["B-X"]])
    assert found.where_word(0, 0) == "sentence 1: word 1 ('c')"
    assert len(read_conll([], labelled=False)) == 0
    for source, labelled, message in (
        ([["a"], [1]], False, r"sentence 2: words: word 1 is 1; a text"),
        (["a", " "], False, r"sentence 2: words: a list of words is expected, found \[\]"),
        ([3], False, "sentence 1: words: a list of words is expected, found 3"),
        ([["a"]], True, "sentence 1: an object of words and tags"),
        ({"tokens": ["a"]}, False, "a list of sentences is expected, found dict"),
        (["a \ud83d"], False, "sentence 1: words: word 2: half of a character"),
    ):
        with pytest.raises(UserError, match=message):
            read_conll(source, labelled=labelled)


WRONG = {
    "missing": ("gone.conll", None, {}, "gone.conll: no such file"),
    "empty": ("a.conll", "", {}, "the file is empty"),
    "blank": ("a.conll", " \n\t\n", {}, "the file is empty"),
    "documents without words": ("a.conll", "-DOCSTART- O\n\n", {}, "the file is empty"),
    "blank sentences": ("a.txt", "\n \n", {"labelled": False, "format": "lines"}, "the file holds no sentence"),
    "blank jsonl": ("a.jsonl", "\n\n", {}, "the file is empty"),
    "broken UTF-8": ("a.conll", "a\tO\nOrléans\tO\n".encode("latin-1"), {}, "a.conll:2:4: byte 0xe9 is not utf-8"),
    "zero bytes": ("a.conll", "a\tO\nb\0\tO\n", {}, "zero bytes"),
    "ragged": ("a.conll", "a\tO\n\nb\tO\nc\tO\tO\n", {}, "a.conll:4: 3 columns, separated by tabs, where line 1 has 2"),
    "a tab missing": ("a.conll", "a\tO\nb O\n", {}, "a.conll:2: 1 columns, separated by tabs"),
    "a word without a tag": ("a.conll", "a\tO\nb\t\n", {}, "a.conll:2: a word without a tag"),
    "a tag without a word": ("a.conll", "a\tO\n\tO\n", {}, "a.conll:2: the word is empty"),
    "no tags at all": (
        "a.conll",
        "a\nb\n",
        {},
        "a.conll:1: one column, separated by blanks, where a word and its tag are expected",
    ),
    "a header": ("a.conll", "token\ttag\na\tO\n", {}, "a.conll:1: 'tag' is no tag: O, or B, I, E, S, L or U with a hyphen"),
    "a tag of another scheme": ("a.conll", "a\tO\n\nb\tM-X\n", {}, "a.conll:3: 'M-X' is no tag"),
    "a prefix without a type": ("a.conll", "a\tB-\n", {}, "a.conll:1: 'B-' is no tag"),
    "another column is meant": ("a.conll", "a\tB-X\tNN\n", {}, "(column 3; another one is --label-column NUMBER)"),
    "a column that is not there": ("a.conll", "a\tO\n", {"label_column": "3"}, "--label-column 3: a number of 1 to 2"),
    "a column by name": ("a.conll", "a\tO\n", {"text_column": "word"}, "--text-column word: a number of 1 to 2"),
    "format unknown": ("a.conll", "a\tO\n", {"format": "csv"}, "--format csv: known are auto, conll, jsonl, lines"),
    "sentences have no tags": ("a.txt", "a b\n", {"format": "lines"}, "--format lines holds sentences without tags"),
    "not JSON": ("a.jsonl", '{"tokens": ["a"], "tags": ["O"]}\n{tokens}\n', {}, "a.jsonl:2: not valid JSON"),
    "no usual key": (
        "a.jsonl",
        '{"t": ["a"], "tags": ["O"]}\n',
        {},
        "no key tokens or words; name it with --text-column",
    ),
    "key not there": ("a.jsonl", '{"tokens": ["a"]}\n', {"label_column": "y"}, "--label-column y: no such key"),
    "key missing in a line": (
        "a.jsonl",
        '{"tokens": ["a"], "tags": ["O"]}\n{"tokens": ["b"]}\n',
        {},
        "a.jsonl:2: tags: a list",
    ),
    "other numbers": ("a.jsonl", '{"tokens": ["a", "b"], "tags": ["O"]}\n', {}, "a.jsonl:1: 2 words and 1 tags"),
    "numbers for tags": (
        "a.jsonl",
        '{"tokens": ["a"], "ner_tags": [3]}\n',
        {},
        "a.jsonl:1: ner_tags: tag 1 is 3, a text is",
    ),
    "no tag in JSON": ("a.jsonl", '{"tokens": ["a", "b"], "tags": ["O", "X"]}\n', {}, "a.jsonl:1: word 2: 'X' is no tag"),
    "text for words": (
        "a.jsonl",
        '{"tokens": "a b", "tags": ["O"]}\n',
        {},
        'tokens: a list of words is expected, found "a b"',
    ),
    "no words": ("a.jsonl", '{"tokens": [], "tags": []}\n', {}, "a.jsonl:1: tokens: a list of words is expected, found []"),
    "an empty word": ("a.jsonl", '{"tokens": ["a", ""], "tags": ["O", "O"]}\n', {}, 'a.jsonl:1: tokens: word 2 is ""'),
    "half an emoji": (
        "a.jsonl",
        '{"tokens": ["a\\ud83d"], "tags": ["O"]}\n',
        {},
        "a.jsonl:1: tokens: word 1: half of a char",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_names_the_mistake(tmp_path, case):
    name, content, arguments, expected = WRONG[case]
    if content is not None:
        write(tmp_path / name, content)
    with pytest.raises(UserError) as error:
        read_conll(tmp_path / name, **arguments)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(UserError, match="a directory; a file of sentences is expected"):
        read_conll(tmp_path)


def test_punctuation_is_set_apart():
    text = "(\u201cAngela Merkel\u2019s\u201d friend, J. Smith of the U.S., left... at 5.30!) :-) ... "
    text += "@home #x it's a's don't C++ \u00bfQu\u00e9?"
    apart = "( \u201c Angela Merkel \u2019s \u201d friend , J. Smith of the U.S. , left . . . at 5.30 ! ) :-) ... "
    apart += "@home #x it 's a's don't C++ \u00bf Qu\u00e9 ?"
    words = punctuation_apart(text.split())
    assert words == apart.split()
    found = Tagged(Path("a"), [words], texts=[text])
    assert [text[a:b] for a, b in found.offsets(0)] == words


def test_whether_sentences_have_punctuation_apart():
    for words, apart in ((["a", ".", "b.", "c", "!"], True), (["a.", "b,", "."], False), (["a"], False), ([".", "b."], False)):
        assert has_punctuation_apart(Tagged(Path("a"), [words])) is apart
