"""What the README shows is what works: its method and its task are taken out of it and run."""

import json
import sys
import textwrap
from itertools import takewhile
from pathlib import Path

import pytest
from tiny import converted_directory, rows_file

import minift
import train
from minift import evaluate
from minift.tasks import FLAGS, TASKS

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def block_after(sentence: str) -> str:
    """The indented block behind a sentence of the README."""
    lines = README[README.index(sentence) + len(sentence) :].split("\n")[2:]
    return textwrap.dedent("\n".join(takewhile(lambda line: not line or line.startswith("    "), lines)))


@pytest.fixture
def flags(tmp_path):
    base = converted_directory(tmp_path / "base", pool="mean")
    shared = ["--model", str(base), "--precision", "float32", "--batch-size", "8", "--epochs", "8", "--lr", "1e-2"]
    return ["--train", str(rows_file(tmp_path / "rows.csv")), *shared, "--out", str(tmp_path / "run")]


def test_the_task(tmp_path, flags, monkeypatch):
    code = block_after("on what BERT pools, with labels and files as `text-classification` has them, `hinge.py`:")
    assert 30 <= len(code.strip().splitlines()) <= 60
    (tmp_path / "readme_hinge.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(TASKS, "hinge", "readme_hinge:Hinge")
    monkeypatch.setitem(FLAGS, "hinge", "minift.tasks.flags:TextClassificationFlags")
    train.main([*flags, "--task", "hinge", "--method", "lora:rank=2"])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(result["valid"]) == {"loss", "accuracy"}
    for p in minift.load(tmp_path / "run").predict(["the film was good", "the film was bad"]):
        assert p["label"] == ("positive" if p["score"] > 0 else "negative")
    evaluate.main([str(tmp_path / "run"), "--data", str(tmp_path / "rows.csv")])
    sys.modules.pop("readme_hinge")


def test_the_method(tmp_path, flags, monkeypatch):
    code = block_after("Say, a learned factor for each channel behind every LayerNorm, `norm_scale.py`:")
    (tmp_path / "norm_scale.py").write_text(code)
    train.main([*flags, "--method", f"{tmp_path / 'norm_scale.py'}:norm_scale"])
    trained = json.loads((tmp_path / "run" / "result.json").read_text())["parameters"]["trainable"]
    assert trained == 2 * 3 * 16 + 2 * 17  # a factor a channel of two norms in each of three layers, and the head
    monkeypatch.setenv("MINIFT_METHODS", str(tmp_path / "norm_scale.py"))
    assert len(minift.load(tmp_path / "run").predict(["good"])) == 1
