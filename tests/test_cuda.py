"""The same on a GPU: outputs, whole runs, every method, resuming. Marked cuda; without a device there is nothing to test."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny import TEXTS, converted_directory, converted_resnet, photographs, rows_file, tiny_body

import minift
import train
from minift.methods import METHODS

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
SPECS = [spec for spec in METHODS if spec not in ("partial", "prompt")] + ["partial:stages=1", "prompt:length=3"]


@pytest.fixture
def base(tmp_path):
    return converted_directory(tmp_path / "base", tiny_body(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))


def run(tmp_path, base, name, *flags):
    rows = rows_file(tmp_path / "rows.csv")
    usual = ["--train", str(rows), "--model", str(base), "--epochs", "2", "--quiet", "--out", str(tmp_path / name)]
    train.main([*usual, *map(str, flags)])
    events = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events]


def test_outputs_equal_the_cpus_in_float64():
    body = tiny_body().double().eval()
    tokens, mask = torch.randint(5, 30, (4, 9)), torch.arange(9) < torch.tensor([9, 5, 3, 1])[:, None]
    expected = body(tokens, mask)
    state = body.cuda()(tokens.cuda(), mask.cuda())
    torch.testing.assert_close(state.hidden.cpu()[mask], expected.hidden[mask], rtol=0, atol=1e-10)
    torch.testing.assert_close(state.pooled.cpu(), expected.pooled, rtol=0, atol=1e-10)


@pytest.mark.parametrize("spec", SPECS)
def test_a_run_with_every_method(tmp_path, base, spec):
    losses = {}
    for device in ("cpu", "cuda"):
        flags = ("--method", spec, "--precision", "float32", "--max-length", "30")
        losses[device] = run(tmp_path, base, device, "--device", device, *flags)
        assert len(minift.load(tmp_path / device, device).predict(TEXTS)) == len(TEXTS)
    assert losses["cuda"] == pytest.approx(losses["cpu"], abs=1e-4)


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "tf32"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_low_precision(tmp_path, base, precision, optimizer):
    flags = ("--optimizer", optimizer, "--lr", "0.01", "--precision")
    losses = {name: run(tmp_path, base, name, *flags, name) for name in ("float32", precision)}
    assert losses[precision] == pytest.approx(losses["float32"], abs=3e-2)
    result = json.loads((tmp_path / precision / "result.json").read_text())
    assert result["precision"] == precision and result["peak_memory_mb"] > 0


def test_resumed_it_takes_the_same_steps(tmp_path, base):
    """From the checkpoint behind the first of two epochs, with dropout, which a GPU draws from a generator of its own."""
    flags = ("--dropout", "0.1", "--precision", "float16", "--batch-size", "8", "--keep", "9", "--save-minutes", "0")
    expected = run(tmp_path, base, "whole", *flags)
    short = run(tmp_path, base, "short", *flags, "--epochs", "1", "--schedule", "constant", "--warmup", "0")
    whole = run(tmp_path, base, "constant", *flags, "--schedule", "constant", "--warmup", "0")
    train.main(["--resume", str(tmp_path / "short"), "--epochs", "2"])
    events = [json.loads(line) for line in (tmp_path / "short" / "metrics.jsonl").read_text().splitlines()]
    assert [event["loss"] for event in events] == pytest.approx(whole, abs=1e-6)
    assert whole[: len(short)] == pytest.approx(short, abs=1e-6) and len(expected) == len(whole)
    a, b = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("short", "constant"))
    for name, tensor in b.items():
        torch.testing.assert_close(a[name], tensor, rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("method", ["full", "probe"])
def test_a_run_on_images_is_what_a_loaded_one_finds(tmp_path, method, precision):
    photographs(tmp_path / "train"), photographs(tmp_path / "val", 5, seed=1)
    flags = ["--task", "image-classification", "--model", str(converted_resnet(tmp_path / "resnet")), "--epochs", "2", "--quiet"]
    files = ["--train", str(tmp_path / "train"), "--valid", str(tmp_path / "val"), "--workers", "2", "--batch-size", "4"]
    train.main([*flags, *files, "--method", method, "--precision", precision, "--out", str(tmp_path / "run")])
    loss = json.loads((tmp_path / "run" / "result.json").read_text())["valid"]["loss"]
    tuned = minift.load(tmp_path / "run")
    found = tuned.score(tuned.task.read(str(tmp_path / "val"), tuned.layout))[0].metrics["loss"]
    assert found == pytest.approx(loss, abs=1e-2 if precision == "bfloat16" else 1e-5)


def test_nothing_waits_for_the_device_between_two_looks(tmp_path, base, monkeypatch):
    """All that a step does: batches, forward and backward, clipping and the update; the losses are read every tenth step."""
    from minift import training

    step, steps = training.step, []

    def without_waiting(*arguments):
        steps.append(arguments)
        torch.cuda.set_sync_debug_mode("error" if len(steps) > 3 else "default")  # the first ones set up, and check an update
        try:
            return step(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(training, "step", without_waiting)
    run(tmp_path, base, "run", "--batch-size", "4")
    assert len(steps) > 12
