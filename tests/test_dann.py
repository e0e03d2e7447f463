"""Runs with rows of another domain: what is read of them, what is logged, what a run goes on from."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny import converted_directory, converted_resnet, photographs, rows_file

import train
from minift import page
from minift.errors import UserError


@pytest.fixture
def place(tmp_path):
    converted_directory(tmp_path / "base", pool="mean")
    rows_file(tmp_path / "rows.csv", 32)
    texts = [f"{word} {'again ' * (i % 3)}app" for i, word in enumerate(["good", "bad", "slow"] * 6)]
    (tmp_path / "target.csv").write_text("\n".join(["text", *texts]) + "\n")
    (tmp_path / "labelled.csv").write_text("\n".join(["text,label", *(f"{text},x{i}" for i, text in enumerate(texts))]) + "\n")
    return tmp_path


def run(place, out, *flags, epochs=2):
    fixed = ["--train", place / "rows.csv", "--model", place / "base", "--pool", "mean", "--epochs", epochs, "--out", place / out]
    more = ["--batch-size", "8", "--lr", "1e-2", "--precision", "float32", "--quiet"]
    train.main([str(flag) for flag in (*fixed, *more, *flags)])
    return load_file(place / out / "model" / "model.safetensors")


def test_labels_of_the_target_are_not_read_and_the_accuracy_of_the_domains_is_logged(place):
    one = run(place, "one", "--target-data", place / "target.csv")
    two = run(place, "two", "--target-data", place / "labelled.csv")
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    events = [json.loads(line) for line in (place / "one" / "metrics.jsonl").read_text().splitlines()]
    told = [event["domain_accuracy"] for event in events if "domain_accuracy" in event]
    assert len(told) == 2 and all(0 <= value <= 1 for value in told)
    assert not any(name.startswith("domain") for name in one)


@pytest.mark.parametrize("more", [[], ["--accumulate", "2", "--checkpoint-activations", "--method", "lora:rank=2"]])
def test_a_resumed_run_ends_in_the_same_bits(place, more):
    """From a checkpoint in the middle of an epoch, the domain head's weights and moments with it."""
    whole = run(place, "run", "--target-data", place / "target.csv", "--save-minutes", "0", "--keep", "9", *more)
    checkpoints = sorted((place / "run" / "checkpoints").iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))
    assert any(name.startswith("penalties/0/") for name in load_file(checkpoints[0] / "state.safetensors"))
    for path in checkpoints[-2:]:
        (path / "manifest.json").unlink()
    (place / "run" / "result.json").unlink()
    train.main(["--resume", str(place / "run"), "--quiet"])
    again = load_file(place / "run" / "model" / "model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_images(tmp_path):
    photographs(tmp_path / "photos", each=6)
    photographs(tmp_path / "other", each=4, seed=1, classes=("cats", "dogs"))
    converted_resnet(tmp_path / "resnet")
    data = ["--train", tmp_path / "photos", "--target-data", tmp_path / "other", "--model", tmp_path / "resnet", "--valid", "none"]
    more = ["--method", "full", "--epochs", "1", "--batch-size", "6", "--workers", "0", "--precision", "float32", "--quiet"]
    more += ["--out", tmp_path / "run"]
    train.main(["--task", "image-classification", *(str(flag) for flag in (*data, *more))])
    assert "domain_accuracy" in (tmp_path / "run" / "metrics.jsonl").read_text()
    (chart,) = page.learning_rates(page.read_run(tmp_path / "run", "run"))  # of steps, beside which these figures are
    assert len(chart.lines[0].x) == len(chart.lines[0].y) > 0


REFUSED = {
    "a frozen body": (["--method", "probe"], "nothing of the body trains"),
    "no pooled features": (["--task", "masked-lm"], "the head of masked-lm reads no pooled features"),
    "an exact solver": (["--method", "probe", "--solver", "lbfgs"], "it takes no gradient steps"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(place, case):
    flags, expected = REFUSED[case]
    texts = ["--pool", "mean"] if "--task" not in flags else []
    fixed = ["--train", place / "rows.csv", "--model", place / "base", "--out", place / "run", *texts]
    with pytest.raises(UserError) as error:
        train.main([str(flag) for flag in (*fixed, "--target-data", place / "target.csv", *flags)])
    assert expected in str(error.value) and not (place / "run").exists()
