"""Averages of the weights against torch's AveragedModel, and whole runs that score and save them."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny import converted_directory, converted_resnet, photographs, rows_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import train
from minift.errors import UserError
from minift.optim.averaging import EMA, Last


def walk(model: nn.Module, steps: int):
    """Change the weights a little, so many times."""
    for _ in range(steps):
        with torch.no_grad():
            for p in model.parameters():
                p += torch.randn_like(p)
        yield


def close(average, reference) -> None:
    for (name, p), q in zip(average.tensors.items(), reference.module.parameters(), strict=True):
        with average.in_place():
            torch.testing.assert_close(p, q.detach(), rtol=0, atol=1e-12, msg=name)


def test_ema_is_that_of_torch():
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    ours, theirs = EMA(dict(model.named_parameters()), 0.9), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in walk(model, 10):
        ours.after_step()
        theirs.update_parameters(model)
    close(ours, theirs)


def test_the_mean_over_the_last_epochs_is_that_of_torch():
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    ours, theirs = Last(dict(model.named_parameters()), 3), AveragedModel(model)
    for epoch, _ in enumerate(walk(model, 5), 1):
        ours.after_epoch(epoch, 5)
        ours.after_epoch(epoch, 5)  # as where a run goes on from the end of an epoch
        if epoch > 2:
            theirs.update_parameters(model)
    assert ours.count == 3
    close(ours, theirs)


def test_the_weights_come_back_with_their_bits_and_the_state_is_all():
    torch.manual_seed(0)
    model = nn.BatchNorm1d(3)
    tensors = model.state_dict(keep_vars=True)
    one, two = EMA(tensors, 0.5), EMA(tensors, 0.5)
    assert "num_batches_tracked" not in one.tensors and "running_mean" in one.tensors
    for _ in walk(model, 3):
        one.after_step()
    two.load_state_dict({name: tensor.clone() for name, tensor in one.state_dict().items()})
    for _ in walk(model, 2):
        one.after_step(), two.after_step()
    assert all(torch.equal(one.mean[name], two.mean[name]) for name in one.tensors)
    before = model.weight.detach().clone()
    with one.in_place():
        assert torch.equal(model.weight, one.mean["weight"]) and not torch.equal(model.weight, before)
    assert torch.equal(model.weight, before)


# ---- whole runs ----


def run(place, out, *flags, epochs: int = 3):
    if not (place / "base").exists():
        converted_directory(place / "base", pool="mean")
        rows_file(place / "rows.csv")
    fixed = ["--train", place / "rows.csv", "--model", place / "base", "--out", place / out, "--epochs", epochs]
    recipe = ["--lr", "1e-2", "--batch-size", "8", "--precision", "float32", "--quiet", "--pool", "mean"]
    train.main([str(x) for x in (*fixed, *recipe, *flags)])
    return load_file(place / out / "model" / "model.safetensors")


def test_a_run_saves_the_mean_of_its_last_epochs(tmp_path):
    """Epochs 2 and 3 of the same run, as runs of a constant learning rate that end there leave them."""
    flags = ["--schedule", "constant", "--warmup", "0", "--valid", "none"]
    mean = run(tmp_path, "mean", *flags, "--average", "last:epochs=2")
    ends = [run(tmp_path, f"e{epochs}", *flags, epochs=epochs) for epochs in (2, 3)]
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, (ends[0][name] + ends[1][name]) / 2, rtol=0, atol=1e-6)


def test_fewer_epochs_than_it_averages_are_reported(tmp_path, capsys):
    run(tmp_path, "run", "--average", "last:epochs=2", epochs=1)
    assert "note: --average last:epochs=2: the run has 1 epoch, so the mean is over 1 epoch\n" in capsys.readouterr().out


@pytest.mark.parametrize("average", ["ema:decay=0.9", "last:epochs=2"])
def test_a_resumed_run_ends_in_the_same_bits_and_scores_what_it_saves(tmp_path, average):
    """A checkpoint after every step, the last ones damaged, so that an epoch is taken up in its middle."""
    flags = ["--average", average, "--save-minutes", "0", "--keep", "9"]
    whole = run(tmp_path, "whole", *flags)
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    parts = tmp_path / "whole"
    checkpoints = sorted((parts / "checkpoints").iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in checkpoints[-3:]:
        for file in path.rglob("*.json"):
            file.unlink()
    (parts / "result.json").unlink()
    train.main(["--resume", str(parts), "--quiet"])
    again = load_file(parts / "model" / "model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())
    assert json.loads((parts / "result.json").read_text())["valid"] == result["valid"]


def test_statistics_of_batch_norms_are_averaged_too(tmp_path):
    photographs(tmp_path / "photos", each=6)
    converted_resnet(tmp_path / "resnet")
    fixed = ["--task", "image-classification", "--train", tmp_path / "photos", "--model", tmp_path / "resnet", "--valid", "none"]
    fixed += ["--method", "full"]
    found = {}
    for name, flags in {"plain": [], "mean": ["--average", "ema:decay=0.5"]}.items():
        more = ["--epochs", "2", "--batch-size", "6", "--augment", "none", "--workers", "0", "--precision", "float32", "--quiet"]
        train.main([str(x) for x in (*fixed, *more, "--out", tmp_path / name, *flags)])
        found[name] = load_file(tmp_path / name / "model" / "model.safetensors")
    statistics = [name for name in found["mean"] if name.endswith("running_mean")]
    assert statistics and not any(torch.equal(found["mean"][name], found["plain"][name]) for name in statistics)


REFUSED = {
    "unknown": (["--average", "swa"], "--average 'swa' is not known; known are ema, last"),
    "a decay of 1": (["--average", "ema:decay=1"], "decay=1.0: a number from 0 to below 1 is expected"),
    "no epoch": (["--average", "last:epochs=0"], "epochs=0: 1 or more is expected"),
    "an end that is not known": (["--average", "last", "--patience", "1"], "which epochs are the last is not known"),
    "an exact solver": (["--average", "ema", "--method", "probe", "--solver", "lbfgs"], "it takes no gradient steps"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(tmp_path, case):
    flags, expected = REFUSED[case]
    with pytest.raises(UserError) as error:
        run(tmp_path, "run", *flags)
    assert expected in str(error.value) and not (tmp_path / "run").exists()
