"""--class-weights balanced: torch's weighted cross entropy of a step, however it is divided; --sampler balanced."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loop import Nowhere, classifier, logits, loop_options
from tiny import CONFIG, converted_directory, converted_resnet, photographs, rows_file, tiny_body

import minift
import train
from minift import evaluate
from minift.data.balance import class_weights
from minift.data.batching import in_order
from minift.data.loading import Pictures, Preprocessing
from minift.data.tokenising import Encoded
from minift.errors import UserError
from minift.optim.groups import make_groups
from minift.optim.optimizer import Optimizer
from minift.optim.precision import Float32
from minift.tasks.classification import Classification
from minift.training import Progress, Training, fit

CPU = torch.device("cpu")
TASK = Classification(["a", "b", "c"], "cls")
IDS = np.array([0] * 14 + [1] * 7 + [2] * 2)


def data(smoothing: float) -> Encoded:
    random = np.random.default_rng(0)
    lengths = random.integers(2, 10, 23)
    weights = class_weights(IDS, 3)
    tokens = [random.integers(5, CONFIG.vocab_size, n) for n in lengths]
    counted = {"smoothing": smoothing, "weights": weights, "counts": weights[IDS]}
    return Encoded(tokens, None, lengths, (IDS,), CONFIG.pad_token_id, 40, 0, **counted)


class Recorder(Optimizer):
    def __init__(self, groups):
        self.groups, self.steps = groups, []

    def step(self, factor, finite):
        self.steps.append([p.grad.clone() for group in self.groups for p in group.parameters])


@pytest.mark.parametrize("k", [1, 3, 50])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_step_is_torchs_weighted_cross_entropy_of_all_its_rows(k, smoothing):
    rows = data(smoothing)
    model = classifier(tiny_body(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), 3).double()
    recorder = Recorder(make_groups(model, 1.0, 0.0))
    training = Training(model, TASK, recorder, lambda step: 1.0, Float32())
    fit(training, rows, None, Nowhere(), loop_options(accumulate=k, clip=1e9), Progress(changed=True))
    weights, windows = torch.from_numpy(rows.weights), in_order(rows.order(4, 0, 0), k)
    assert len(windows) == len(recorder.steps)
    unlike = 0.0
    for window, gradients in zip(windows, recorder.steps, strict=True):
        batch = next(iter(rows.batches([np.concatenate(window)], CPU, 0)))
        given = {"weight": weights, "label_smoothing": smoothing}
        F.cross_entropy(logits(model, batch), *batch.targets, **given).backward()
        expected = [p.grad for group in recorder.groups for p in group.parameters]
        for ours, theirs in zip(gradients, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        # the mean of the batches' own weighted means, which a plain loop with accumulation takes
        recorder.zero_grad()
        parts = [next(iter(rows.batches([units], CPU, 0))) for units in window]
        (sum(F.cross_entropy(logits(model, b), *b.targets, **given) for b in parts) / len(parts)).backward()
        unlike = max(unlike, (recorder.groups[-1].parameters[0].grad - gradients[-2]).abs().max().item())
        recorder.zero_grad()
    assert (unlike > 1e-3) == (k > 1)


def test_evaluation_counts_all_rows_alike():
    rows = data(0.1)
    batch = next(iter(rows.batches([np.arange(23)], CPU)))
    assert batch.weights is None and batch.smoothing == 0 and batch.counts.tolist() == [1] * 23
    training = next(iter(rows.batches([np.arange(23)], CPU, 0)))
    assert training.counts.sum().item() == pytest.approx(23) and len({*training.counts.tolist()}) == 3


def test_a_class_counts_as_much_as_another():
    training = next(iter(data(0.0).batches([np.arange(23)], CPU, 0)))
    for one in range(3):
        assert training.counts[torch.from_numpy(one == IDS)].sum().item() == pytest.approx(23 / 3)


def test_mixed_pictures_count_by_the_shares_of_their_labels(tmp_path):
    """torch divides shares by the rows instead: a batch of rare classes would move the weights more than one of frequent ones."""
    photographs(tmp_path / "photos", each=4)
    files = sorted((tmp_path / "photos").rglob("*.jpg"))
    ids, weights = np.array([0] * 4 + [1] * 4), np.array([0.5, 2.0])
    sized = Preprocessing(36, 32, (0.5,) * 3, (0.2,) * 3)
    pictures = Pictures(files, (ids,), sized, 2, mixup=0.4, weights=weights, counts=weights[ids])
    batch = next(iter(pictures.batches([np.arange(8)], CPU, 0)))
    (shares,) = batch.targets
    assert shares.shape == (8, 2)
    torch.testing.assert_close(batch.counts, shares.double() @ torch.from_numpy(weights))
    outputs = torch.randn(8, 2, dtype=torch.float64)
    expected = -(shares * torch.from_numpy(weights) * outputs.log_softmax(-1)).sum(-1)
    task = Classification(["a", "b"], "mean")
    targets = (shares.double(),)
    torch.testing.assert_close(task.loss(outputs, replace(batch, targets=targets)), expected)


# ---- as a user ----


def skewed(path, rows=60):
    """One positive row in six."""
    lines = rows_file(path, rows).read_text().splitlines()
    kept = [lines[0]] + [line for i, line in enumerate(lines[1:]) if "bad" in line or i % 10 == 0]
    path.write_text("\n".join(kept) + "\n")
    return path


@pytest.fixture
def base(tmp_path):
    return converted_directory(tmp_path / "base", pool="mean")


def run(out, base, data, **flags):
    arguments = ["--train", str(data), "--model", str(base), "--precision", "float32", "--out", str(out)]
    for flag, value in ({"epochs": 2, "batch_size": 8, "lr": 1e-2} | flags).items():
        arguments += [f"--{flag.replace('_', '-')}", str(value)]
    train.main(arguments)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_what_is_said_and_what_is_refused(tmp_path, base, capsys):
    data = skewed(tmp_path / "rows.csv")
    plain = run(tmp_path / "plain", base, data)
    capsys.readouterr()
    weighted = run(tmp_path / "weights", base, data, class_weights="balanced")
    assert "note: weights of the classes in training: negative 0.593, positive 3.2" in capsys.readouterr().out
    drawn = run(tmp_path / "sampler", base, data, sampler="balanced")
    assert "note: an epoch draws 16 rows of every class: each of the 5 of positive 3.2 times, of the 27 of negative 59%" in (
        capsys.readouterr().out
    )
    assert len(plain) == len(weighted) == len(drawn)  # as many steps
    losses = [[event["loss"] for event in events] for events in (plain, weighted, drawn)]
    assert losses[0] != losses[1] != losses[2]
    run(tmp_path / "again", base, data, sampler="balanced")
    for name in ("sampler", "again"):
        assert (tmp_path / name / "model" / "model.safetensors").read_bytes() == (
            tmp_path / "sampler" / "model" / "model.safetensors"
        ).read_bytes()
    with pytest.raises(UserError, match="--class-weights balanced with --sampler balanced: a rare class would count twice over"):
        run(tmp_path / "both", base, data, class_weights="balanced", sampler="balanced")
    for flag in ("class_weights", "sampler"):
        with pytest.raises(UserError, match=f"--{flag.replace('_', '-')} with --solver lbfgs: it takes no gradient steps"):
            train.main(["--method", "probe", "--solver", "lbfgs", f"--{flag.replace('_', '-')}", "balanced"])
    with pytest.raises(UserError, match="--sampler belongs to text-classification, image-classification"):
        train.main(["--task", "text-regression", "--train", str(data), "--sampler", "balanced"])


def test_a_cached_probe_draws_alike(tmp_path, base):
    data = skewed(tmp_path / "rows.csv")
    flags = {"method": "probe", "sampler": "balanced"}
    kept, computed = (run(tmp_path / cache, base, data, cache=cache, **flags) for cache in ("memory", "off"))
    one, other = ([event["loss"] for event in events] for events in (kept, computed))
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_images(tmp_path):
    photographs(tmp_path / "photos", each=10)
    for i in range(3, 10):
        (tmp_path / "photos" / "bees" / f"{i}.jpg").unlink()
    base = converted_resnet(tmp_path / "resnet")
    flags = {"task": "image-classification", "workers": 0, "valid": "none", "lr": 1e-3}
    for name, own in (("a", {"class_weights": "balanced", "mixup": 0.2}), ("b", {"sampler": "balanced"})):
        run(tmp_path / name, base, tmp_path / "photos", **flags, **own)


def test_names_by_id(tmp_path, base, capsys):
    data = rows_file(tmp_path / "rows.csv")
    data.write_text(data.read_text().replace(",positive", ",1").replace(",negative", ",0"))
    (tmp_path / "names.txt").write_text("bad\ngood\nnever\n")
    run(tmp_path / "run", base, data, label_names=tmp_path / "names.txt")
    said = capsys.readouterr().out
    assert "no training row has the label never" in said and "bad  good  never" in said
    (tmp_path / "names.txt").unlink()
    tuned = minift.load(tmp_path / "run")
    assert (tuned.task.labels, tuned.task.written) == (["bad", "good", "never"], ["0", "1", "2"])
    assert {*tuned.predict(["good"])[0]["probabilities"]} == {"bad", "good", "never"}
    evaluate.main([str(tmp_path / "run"), "--data", str(data)])
    (tmp_path / "names.txt").write_text("bad\ngood\n")
    data.write_text(data.read_text() + "the food,2\n")
    with pytest.raises(UserError, match=r"rows.csv:50: the label '2' has no name in .*names.txt \(it names 0, 1\)"):
        run(tmp_path / "other", base, data, label_names=tmp_path / "names.txt")
