"""Figures for each value of a column: --by, of train and evaluate."""

import csv
import json

import pytest
from test_train import run
from tiny import converted_directory, rows_file

from minift import evaluate
from minift.data.layout import TextLayout
from minift.data.texts import read_texts
from minift.errors import UserError
from minift.slices import rows_by


@pytest.fixture
def base(tmp_path):
    return converted_directory(tmp_path / "base", pool="mean")


def with_sources(path):
    """The rows of `rows_file` with a column of their source: web, shop, web, shop, ..."""
    with rows_file(path).open(newline="") as file:
        header, *rows = csv.reader(file)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([[*header, "source"], *([*row, ["web", "shop"][i % 2]] for i, row in enumerate(rows))])
    return path


def test_the_figures_of_all_values_are_the_figure_of_all_rows(tmp_path, base, capsys):
    test = with_sources(tmp_path / "test.csv")
    directory = run(tmp_path, base, test=test, by="source")
    assert "\nsource  rows " in capsys.readouterr().out
    result = json.loads((directory / "result.json").read_text())
    assert list(result["by"]) == ["web", "shop"]
    rows = sum(figures["rows"] for figures in result["by"].values())
    assert rows == 48
    for name in ("loss", "accuracy"):
        mean = sum(figures[name] * figures["rows"] for figures in result["by"].values()) / rows
        assert mean == pytest.approx(result["test"][name], abs=1e-6)
    evaluate.main([str(directory), "--data", str(test), "--by", "source"])
    said = capsys.readouterr().out
    assert [f"{figures['accuracy']:.4f}" in said for figures in result["by"].values()] == [True, True]


def test_values_of_json_lines_are_told_as_they_stand_there(tmp_path):
    rows = [{"text": "a", "label": "x", "n": n} for n in (1, 1.5, None, "", "None", True, [1], "é")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = rows_by(read_texts(tmp_path / "rows.jsonl", TextLayout()), "n")
    assert {value: numbers.tolist() for value, numbers in found.items()} == {
        **{"1": [0], "1.5": [1], "": [2, 3], "None": [4], "true": [5], "[1]": [6], "é": [7]},
    }


def test_columns_that_cannot_be_are_one_line_before_training(tmp_path, base):
    test = with_sources(tmp_path / "test.csv")
    for flags, said in (
        ({"test": test, "by": "sauce"}, "has no such column"),
        ({"test": test, "by": "label"}, "besides those of the task; others: source"),
        ({"by": "source", "valid": "none"}, "no split is scored"),
    ):
        with pytest.raises(UserError, match=said):
            run(tmp_path, base, **flags)
        assert not (tmp_path / "run").exists()
    directory = run(tmp_path, base, "scored")
    with pytest.raises(UserError, match=r"^--by : .*test.csv has no such column"):
        evaluate.main([str(directory), "--data", str(test), "--by", ""])
    many = tmp_path / "many.csv"
    many.write_text("text,label,id\n" + "".join(f"good film,{('positive', 'negative')[i % 2]},{i}\n" for i in range(101)))
    with pytest.raises(UserError, match=r"--by id: .*many.csv has 101 values in it, expected at most 100"):
        run(tmp_path, base, test=many, by="id")
