"""What is printed fits where it is printed: tables as wide as the terminal, a line of progress where there is none."""

import io
import json
import math
import re
import sys

import pytest
from test_train import run
from tiny import converted_directory

import minift.bar
from minift.bar import bar, each
from minift.printing import beside
from minift.tables import table, width_of

HEADER = ["label", "precision", "recall", "text", "rows"]
ROWS = [["positive", 0.5, 1.0, "all that a reviewer has to say of a hotel", 1234], ["negative", 0.25, None, "bad", 5]]


def test_numbers_stand_to_the_right_and_words_to_the_left():
    assert table(["split", "rows"], [["train", 1234], ["valid", 30]]) == "split   rows\ntrain  1,234\nvalid     30"


@pytest.mark.parametrize("width", [40, 52, 60, 70, 80, 100, 200])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_lost(width):
    made = table(HEADER, ROWS, width)
    assert max(map(width_of, made.splitlines())) <= width
    assert all(figure in made for figure in ("0.5000", "1.0000", "0.2500", "undefined", "1,234"))
    blocks = made.split("\n\n")
    assert all(block.startswith("label") for block in blocks)
    assert ["…" in block.splitlines()[0] for block in blocks] == [True] * (len(blocks) - 1) + [False]
    assert ("hotel" in made) == (width >= 79) and ("…" in made) == (width < 79)
    assert len(blocks) == (1 if width >= 50 else 2)


def test_the_widths_of_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    assert table(HEADER, ROWS) == table(HEADER, ROWS, 50)
    monkeypatch.delenv("COLUMNS")
    assert table(HEADER, ROWS) == table(HEADER, ROWS, 10_000)  # of a file


def test_wide_letters_take_two_columns():
    made = table(["label", "rows"], [["好き", 1], ["e\u0301te\u0301", 2]]).splitlines()
    assert made == ["label  rows", "好き      1", "e\u0301te\u0301       2"]
    assert table(["text", "n"], [["好" * 20, 1]], 20).splitlines()[1] == "好" * 8 + "…  1"


def test_what_a_file_holds_does_not_steer_the_terminal(monkeypatch):
    """A cell may hold escapes that clear the screen or paint another result over the real one, and ends of lines."""
    made = table(["a\x1b[2J", "n"], [["b\nc\x9b2J", 1]])
    assert made == "a\\x1b[2J    n\nb\\nc\\x9b2J  1"
    monkeypatch.setenv("COLUMNS", "100")
    assert beside("  line 3: po\x1b[2Js  ", "a\x1b[31m b") == "  line 3: po\\x1b[2Js  a\\x1b[31m b"


def test_a_cell_of_many_letters_is_cut_at_once():
    assert table(["text", "n"], [["好" * 300_000, 1]], 20).splitlines()[1] == "好" * 8 + "…  1"  # took hours


@pytest.mark.parametrize("columns", [40, 80, 300])
def test_a_text_ends_where_its_line_ends(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = beside("  line 3: positive 0.1  ", "word " * 50).splitlines()
    assert [width_of(line) for line in lines] == {40: [22, 40], 80: [80], 300: [160]}[columns] and lines[-1].endswith("…")


def test_a_log_file_has_a_line_every_half_minute(monkeypatch):
    clock, log = [0.0], io.StringIO()
    monkeypatch.setattr(minift.bar.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(sys, "stderr", log)
    with bar("epoch 2/3", 3000, done=1000) as shown:
        shown.set_postfix(loss="0.612")
        for _ in range(100):
            clock[0] += 1
            shown.update(10)
    assert log.getvalue().splitlines() == [
        "epoch 2/3  1,300 of 3,000 rows, 10.0 rows/s, 02:50 left, loss=0.612",
        "epoch 2/3  1,600 of 3,000 rows, 10.0 rows/s, 02:20 left, loss=0.612",
        "epoch 2/3  1,900 of 3,000 rows, 10.0 rows/s, 01:50 left, loss=0.612",
    ]
    assert list(each("abc", "letters", 3)) == ["a", "b", "c"] and log.getvalue().count("\n") == 3


def test_a_run_says_how_far_it_has_come(tmp_path, monkeypatch, capsys):
    """In every phase; here the half minute is over at once."""
    monkeypatch.setattr(minift.bar, "SECONDS", 0.0)
    directory = run(tmp_path, converted_directory(tmp_path / "base", pool="mean"), method="lora:sites=layers.2.attention.query")
    said = capsys.readouterr()
    for words in (r"frozen stages  8 of 44 rows, .* rows/s, 00:0\d left", "epoch 2/2  8 of 44 rows", "scoring  4 of 4 rows"):
        assert re.search(words, said.err), words
    assert "rows/s, 00:" not in said.out
    minift.load(directory).predict(["good", "bad"])
    assert "predict  2 of 2 rows" in capsys.readouterr().err


def test_the_worst_rows_have_the_probability_of_the_right_label_and_the_loss(tmp_path, capsys):
    directory = run(tmp_path, converted_directory(tmp_path / "base", pool="mean"))
    worst = capsys.readouterr().out.split("validation rows with the largest loss\n")[1].split("\n\n")[0].splitlines()
    found = [re.search(r"line \d+: loss (\S+), (?:positive|negative) ([\d.]+)", line) for line in worst]
    losses, right = zip(*((float(one[1]), float(one[2])) for one in found), strict=True)
    assert list(losses) == sorted(losses, reverse=True)
    assert all(abs(loss + math.log(p)) < 0.02 for loss, p in zip(losses, right, strict=True))
    assert json.loads((directory / "result.json").read_text())["valid"]["loss"] == pytest.approx(sum(losses) / 4, abs=0.01)


def test_settings_at_their_defaults_are_shown_with_verbose(tmp_path, capsys):
    base = converted_directory(tmp_path / "base", pool="mean")
    for flags, there in (({}, False), ({"verbose": None}, True)):
        run(tmp_path, base, f"run-{there}", epochs=0, **flags)
        said = capsys.readouterr().out
        assert "--lr 0.01" in said and "--monitor accuracy" in said
        assert ("--clip 1.0" in said) is there and ("--verbose shows them" in said) is not there
