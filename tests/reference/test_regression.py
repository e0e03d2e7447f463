"""text-regression: loss and gradients are those of transformers' head; its traps, the naive figure beside the right one."""

import json
import math

import numpy as np
import pytest
import torch
from reference.heads import batch_for, compare, in_their_names, twins_of
from tiny import converted_directory, rows_file
from twins import texts

import minift
import train
from minift import evaluate
from minift.data.texts import Texts
from minift.errors import UserError
from minift.tasks.text_regression import TextRegression

TARGETS = [0.5, 3.25, 5.0, 1.0]


def task_of(mean=0.0, deviation=1.0, scaled=False) -> TextRegression:
    return TextRegression("cls", 40, False, mean, deviation, scaled)


def test_loss_and_gradients_of_transformers():
    task, targets = task_of(), torch.tensor(TARGETS, dtype=torch.float64)
    model, theirs = twins_of(task, "bert", 1, "regression")
    compare(task, model, theirs, "bert", targets, batch_for("bert", targets))


def test_scaled_it_learns_what_transformers_learns_from_scaled_labels():
    task = task_of(2.0, 1.5, scaled=True)
    targets = torch.from_numpy(task.targets(Texts("here", ["a"] * 4, labels=TARGETS)))
    np.testing.assert_allclose(targets, (np.array(TARGETS) - 2) / 1.5, rtol=0, atol=1e-15)
    model, theirs = twins_of(task, "bert", 1, "regression")
    compare(task, model, theirs, "bert", targets, batch_for("bert", targets))


def test_predictions_are_in_true_units_and_equal_to_a_head_into_which_the_scale_is_folded():
    """W deviation and b deviation + mean in transformers' head, without which it gives numbers in other units."""
    task = task_of(250.0, 40.0, scaled=True)
    model, theirs = twins_of(task, "bert", 1, "regression")
    tokens, mask, types = texts()
    outputs = model(batch_for("bert", torch.zeros(4)))[1].detach()
    ours = [p["value"] for p in task.predict(((i, [one]) for i, one in enumerate(outputs)), None)]
    given = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": types}
    naive = theirs(**given).logits[:, 0]
    with torch.no_grad():
        model.head.bias.mul_(40).add_(250)
        model.head.weight.mul_(40)
    theirs.load_state_dict(in_their_names(model, model.state_dict()), strict=True)
    torch.testing.assert_close(theirs(**given).logits[:, 0], torch.tensor(ours, dtype=torch.float64), rtol=0, atol=1e-10)
    assert (naive - torch.tensor(ours)).abs().min() > 100


def test_a_column_of_outputs_never_meets_a_row_of_targets():
    """(B, 1) - (B) is (B, B): three perfect outputs have the loss 4/3."""
    outputs, targets = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1.0, 2.0, 3.0])
    naive = (outputs - targets).square().mean()
    assert naive.item() == pytest.approx(4 / 3)
    batch = batch_for("bert", targets)
    assert task_of().loss(outputs, batch).tolist() == [0, 0, 0]
    for wrong in (outputs.squeeze(-1), outputs.T, outputs.expand(3, 3)):
        with pytest.raises(ValueError, match="outputs \\(B, 1\\) and targets \\(B\\) are expected"):
            task_of().loss(wrong, batch)


def test_the_loss_of_batches_of_unequal_size_is_that_of_one():
    """The mean of the means of 3 rows and 1 row, which Trainer takes, is another number."""
    task, targets = task_of(), torch.tensor(TARGETS)
    outputs = torch.tensor([[1.0], [2.0], [2.0], [9.0]])
    losses = torch.cat([task.loss(outputs[part], batch_for("bert", targets[part])) for part in (slice(0, 3), slice(3, 4))])
    right = torch.nn.functional.mse_loss(outputs[:, 0], targets)
    naive = (losses[:3].mean() + losses[3:].mean()) / 2
    torch.testing.assert_close(losses.sum() / 4, right)
    assert (naive - right).abs() > 1


def test_mse_is_in_the_units_of_the_targets_and_a_constant_has_no_correlation():
    task = task_of(100.0, 10.0, scaled=True)
    meter = task.meter(None)
    meter.add(torch.tensor([[0.0], [1.0]]), batch_for("bert", torch.tensor([0.0, 2.0])))
    other = task.meter(None)
    other.add(torch.tensor([[-1.0]]), batch_for("bert", torch.tensor([-1.0])))
    meter.merge(other)
    metrics = meter.metrics()
    assert metrics["mse"] == pytest.approx(100 / 3)  # the loss, in scaled units, is 1/3
    assert metrics["pearson_spearman"] == pytest.approx((metrics["pearson"] + metrics["spearman"]) / 2)
    assert "always 100, the mean of the training rows: mse 166.6667" in meter.table()
    constant = task.meter(None)
    constant.add(torch.zeros(3, 1), batch_for("bert", torch.tensor([0.0, 1.0, 2.0])))
    assert constant.metrics()["pearson"] is None and constant.metrics()["spearman"] is None


def test_targets_that_cannot_be_learned():
    options = type("Options", (), {"pool": "cls", "max_length": 8, "scale_targets": True})
    with pytest.raises(UserError, match="here: every row has the target 0\\.1; there is nothing"):
        TextRegression.learn(Texts("here", ["a"] * 3, labels=[0.1] * 3), options)
    huge = TextRegression.learn(Texts("here", ["a"] * 2, labels=[1e200, -1e200]), options)
    assert huge.deviation == 1e200 and huge.mean == 0
    for wrong in ((0.0, 0.0), (math.nan, 1.0), (0.0, math.inf)):
        with pytest.raises(ValueError, match="expected finite numbers, the deviation above 0"):
            task_of(*wrong)


@pytest.fixture
def base(tmp_path):
    return converted_directory(tmp_path / "base", pool="mean")


def numbers(tmp_path, rows=48):
    lines = rows_file(tmp_path / "rows.csv", rows).read_text().splitlines()
    content = ["id,text,score"]
    for i, line in enumerate(lines[1:]):
        text = line.rpartition(",")[0]
        content.append(f"r{i},{text},{500 + 100 * text.count('very') + (300 if 'good' in text else 0)}")
    (tmp_path / "rows.csv").write_text("\n".join(content) + "\n")
    return tmp_path / "rows.csv"


def test_a_run_from_file_to_prediction(tmp_path, base, capsys):
    data = numbers(tmp_path)
    flags = ["--task", "text-regression", "--train", str(data), "--model", str(base), "--precision", "float32"]
    train.main([*flags, "--out", str(tmp_path / "run"), "--epochs", "30", "--batch-size", "8", "--lr", "1e-2"])
    said = capsys.readouterr().out
    run = minift.load(tmp_path / "run")
    mean, deviation = (f"{x:.4g}" for x in (run.task.mean, run.task.deviation))
    assert f"mean {mean}, deviation {deviation}, from 600 to 1000; scaled to mean 0 and deviation 1" in said
    assert f"always {mean}, the mean of the training rows: mse" in said
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["valid"]["mse"] == pytest.approx(run.task.deviation**2 * result["valid"]["loss"], rel=1e-6)
    good, bad = (p["value"] for p in run.predict(["the film was very very good", "the film was very bad"]))
    assert 500 < bad < good < 1100  # in true units
    evaluate.main([str(tmp_path / "run"), "--data", str(data)])
    assert "pearson_spearman" in capsys.readouterr().out

    train.main([*flags, "--out", str(tmp_path / "plain"), "--epochs", "1", "--no-scale-targets", "--batch-size", "8"])
    plain = json.loads((tmp_path / "plain" / "result.json").read_text())["valid"]
    assert plain["mse"] == pytest.approx(plain["loss"], rel=1e-6)
    assert "not scaled" in capsys.readouterr().out


def test_what_is_no_number_is_named(tmp_path, base):
    for cell, message in (("good", "rows.csv:50: column score: a number is expected"), ("nan", "a finite number is expected")):
        data = numbers(tmp_path)
        data.write_text(data.read_text() + f"x,the food,{cell}\n")
        with pytest.raises(UserError, match=message):
            train.main(["--task", "text-regression", "--train", str(data), "--model", str(base), "--out", str(tmp_path / "run")])
    with pytest.raises(UserError, match="--label-smoothing belongs to text-classification, image-classification"):
        train.main(["--task", "text-regression", "--train", str(data), "--label-smoothing", "0.1"])
