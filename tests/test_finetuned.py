"""A run in use from Python: inputs of any kind, threads, random streams, and runs of an older layout."""

import csv
import json
import math
import mmap
import os
import re
import shutil
import sys
import threading

import pytest
import torch
from tiny import TEXTS, converted_directory, rows_file

import convert
import minift
import train
from minift import evaluate, predict
from minift.errors import UserError
from minift.outputs import write_rows
from minift.runs import forget_peak_memory, peak_memory_mb
from minift.tasks.classification import Confusion


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    place = tmp_path_factory.mktemp("run")
    base = converted_directory(place / "base", pool="mean")
    flags = ["--model", str(base), "--precision", "float32", "--epochs", "2", "--lr", "1e-2", "--method", "lora:rank=2"]
    train.main(["--train", str(rows_file(place / "rows.csv")), *flags, "--out", str(place / "run")])
    return place / "run"


def test_inputs_of_any_kind(directory):
    tuned = minift.load(directory)
    expected = tuned.predict(TEXTS)
    assert tuned.predict(text for text in TEXTS) == tuned.predict(map(str, TEXTS)) == tuned.predict(iter(tuple(TEXTS))) == expected
    assert tuned.predict([]) == tuned.predict(iter([])) == []
    for wrong, said in (("one text", "a list"), (TEXTS[0].encode(), "a list"), ([1], "input 0"), (["a", None], "input 1")):
        with pytest.raises(UserError, match=said):
            tuned.predict(wrong)
    with pytest.raises(UserError, match="single texts"):
        tuned.predict(TEXTS, iter(TEXTS))


def test_threads_predict_together(directory):
    tuned = minift.load(directory)
    expected, wrong = tuned.predict(TEXTS), []

    def work():
        for _ in range(20):
            try:
                if tuned.predict(TEXTS) != expected:
                    wrong.append("other predictions")
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_loading_draws_nothing_from_the_global_stream(directory):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    minift.load(directory)
    assert torch.equal(torch.rand(3), expected)


def test_a_run_of_the_older_layout_is_read(directory, tmp_path):
    """Parts of the task stood among the settings, and the layout had flags for all tasks."""
    path = directory / "model" / "config.json"
    original = path.read_text()
    config, expected = json.loads(original), minift.load(directory).predict(TEXTS)
    moved = {name: config["task"].pop(name) for name in ("max_length", "pairs")}
    config["task"].pop("written")
    config["settings"] |= moved | {"layout": config["settings"]["layout"] | {"skip_bad_images": False}}
    path.write_text(json.dumps(config))
    try:
        tuned = minift.load(directory)
        assert tuned.predict(TEXTS) == expected and (tuned.task.max_length, tuned.task.pairs) == (40, False)
        tuned.score(tuned.task.read(str(directory.parent / "rows.csv"), tuned.layout))
    finally:
        path.write_text(original)


# ---- seen from Python, and by row ----


def test_the_package_and_a_run_say_what_they_are(directory):
    assert dir(minift) == sorted(minift.__all__) and "load" in dir(minift)
    tuned = minift.load(directory, "cpu")
    assert tuned.labels == ["negative", "positive"]
    assert repr(tuned) == f"<minift run of text-classification: bert, lora, {weights(tuned):,} parameters, 2 labels, cpu>"


def test_training_from_python_is_training_from_the_command_line(directory, tmp_path, monkeypatch):
    """The lines that minift/__init__.py shows."""
    assert "model = minift.finetune(train=" in minift.__doc__
    flags = {"train": directory.parent / "rows.csv", "model": directory.parent / "base", "precision": "float32", "epochs": 2}
    monkeypatch.chdir(tmp_path)
    made = minift.finetune(**flags, lr=1e-2, method="lora:rank=2", device="cpu", quiet=True)
    assert made.predict(TEXTS) == minift.load(directory).predict(TEXTS)
    assert minift.load("runs/rows-base-lora-rank=2").predict(TEXTS) == made.predict(TEXTS)
    for wrong, said in (
        ({"metod": "lora"}, "finetune: metod: no such flag of train.py; did you mean method"),
        ({"epochs": "3"}, "finetune: epochs is '3'"),
        ({"epochs": -1}, "finetune: epochs is -1; expected"),
        ({"lr": (1e-2, 1e-3)}, "finetune: lr is"),
        ({"seeds": 3}, "finetune: it trains one model"),
        ({"task": "poetry"}, "--task 'poetry' is not known"),
        ({"by": "source", "valid": "none"}, "no split is scored"),
        ({"train": "gone.csv"}, "gone.csv: no such file"),
    ):
        with pytest.raises(minift.UserError, match=re.escape(said)):
            minift.finetune(**flags | wrong)
    assert len([*(tmp_path / "runs").iterdir()]) == 1


def weights(tuned) -> int:
    return sum(p.numel() for p in tuned.model.parameters())


@pytest.fixture
def table_of_rows(tmp_path):
    """Columns of its own, one of which is called as what a prediction has."""
    file = tmp_path / "rows.csv"
    file.write_text('id,text,label,score\n7,the film was good,positive,a\n9,"a bad, slow book",negative,\n')
    return file


def test_predictions_carry_the_other_columns_of_the_row(directory, table_of_rows, tmp_path, capsys):
    predict.main([str(directory), "--data", str(table_of_rows)])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [list(row) for row in rows] == [["text", "id", "data_label", "data_score", "label", "score", "probabilities"]] * 2
    assert [row["id"] for row in rows] == ["7", "9"] and [row["data_label"] for row in rows] == ["positive", "negative"]
    for name, delimiter in (("out.csv", ","), ("out.tsv", "\t")):
        predict.main([str(directory), "--data", str(table_of_rows), "--out", str(tmp_path / name)])
        with (tmp_path / name).open(newline="", encoding="utf-8") as file:
            cells = list(csv.DictReader(file, delimiter=delimiter))
        assert [one["text"] for one in cells] == ["the film was good", "a bad, slow book"]
        assert [float(one["p(positive)"]) for one in cells] == [row["probabilities"]["positive"] for row in rows]
        assert [one["label"] for one in cells] == [row["label"] for row in rows]
    with pytest.raises(UserError, match="exists already"):
        predict.main([str(directory), "--data", str(table_of_rows), "--out", str(tmp_path / "out.csv")])


def test_predictions_that_are_stopped_leave_what_there_is(tmp_path):
    def made():
        yield {"text": "a", "label": "x"}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="the first 1 rows are in"):
        write_rows(str(tmp_path / "p.jsonl"), made())
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl.part"]
    assert write_rows(str(tmp_path / "p.jsonl"), [{"text": "b"}]) == 1  # tried again
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]


def test_evaluate_writes_every_row(directory, table_of_rows, tmp_path, capsys):
    evaluate.main([str(directory), "--data", str(table_of_rows), "--out", str(tmp_path / "rows.jsonl")])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["gold"] for row in rows] == ["positive", "negative"]
    for row in rows:
        assert row["loss"] == pytest.approx(-math.log(row["probabilities"][row["gold"]]), rel=1e-4)


def test_figures_of_every_label_are_in_the_result(directory):
    result = json.loads((directory / "result.json").read_text())
    details = result["details"]["valid"]
    rows = {label: sum(by.values()) for label, by in details["confusion"].items()}
    assert rows == {label: figures["rows"] for label, figures in details["by_label"].items()} and sum(rows.values()) == 4
    right = sum(by.get(label, 0) for label, by in details["confusion"].items())
    assert right / 4 == result["valid"]["accuracy"]


def test_a_wide_confusion_matrix_is_said_to_be_left_out():
    wide, narrow = Confusion([str(i) for i in range(9)]), Confusion(["a", "b"])
    assert "the confusion matrix, 9 x 9, is too wide to print" in wide.table() and "matrix" not in narrow.table()


def test_a_directory_of_several_runs_names_them(directory, tmp_path):
    for seed in (1, 2):
        shutil.copytree(directory, tmp_path / "runs" / f"seed-{seed}")
    with pytest.raises(UserError, match=r"holds several runs; give one of them: .*seed-1, .*seed-2"):
        minift.load(tmp_path / "runs")


def test_quiet_leaves_out_tables(tmp_path, capsys):
    flags = [
        "--train",
        str(rows_file(tmp_path / "rows.csv")),
        "--model",
        str(converted_directory(tmp_path / "base")),
        "--epochs",
        "1",
    ]
    train.main([*flags, "--precision", "float32", "--out", str(tmp_path / "run"), "--quiet"])
    out = capsys.readouterr().out
    assert "epoch 1/1" in out and "accuracy" in out
    assert not any(words in out for words in ("weight decay", "given", "largest loss", "precision  recall"))


def test_version(capsys):
    for main in (train.main, predict.main, evaluate.main, convert.main):
        with pytest.raises(SystemExit) as stop:
            main(["--version"])
        assert stop.value.code == 0 and capsys.readouterr().out == f"minift {minift.__version__}\n"


def test_training_that_has_gone_astray_is_said(directory):
    task = minift.load(directory, "cpu").task
    assert task.remarks({"loss": 0.69}) == [] == task.remarks({"loss": 1.0})
    assert "lower --lr" in task.remarks({"loss": 1.2})[0] and "lower --lr" in task.remarks({"loss": 1.2, "matthews": -0.02})[0]
    overfitted = task.remarks({"loss": 1.2, "matthews": 0.45})[0]
    assert "fewer --epochs" in overfitted and "--lr" not in overfitted and "astray" not in overfitted


def test_the_peak_of_memory_is_that_of_the_run():
    forget_peak_memory()
    before = peak_memory_mb(torch.device("cpu"))
    with mmap.mmap(-1, 100 << 20) as large:  # the allocator might have as much to give that counts already
        large.write(bytes(100 << 20))
        high = peak_memory_mb(torch.device("cpu"))
    assert high >= before + 90
    forget_peak_memory()
    if sys.platform == "linux" and os.access("/proc/self/clear_refs", os.W_OK):
        assert peak_memory_mb(torch.device("cpu")) < high - 50
