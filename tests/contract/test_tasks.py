"""What every task promises on every model that can take it."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from contract.tasks import BASES, CASES, IMAGES
from loop import Nowhere, loop_options

import minift
import train
from minift import cache, page, setup
from minift.data.batching import by_length, in_order
from minift.data.splits import read_splits
from minift.errors import UserError
from minift.optim.optimizer import Optimizer
from minift.options import layout_of, options_of
from minift.pretrained import read_tensors
from minift.tasks import FLAGS, TASKS
from minift.tasks.task import described, task_from
from minift.training import Progress, evaluate, fit, outputs_by_row

CPU = torch.device("cpu")
every = pytest.mark.parametrize(("name", "model"), [(name, model) for name, case in CASES.items() for model in case.models])
each_task = pytest.mark.parametrize(("name", "model"), [(name, case.models[0]) for name, case in CASES.items()])


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(TASKS, "toy", "contract.toy:Toy")
    monkeypatch.setitem(FLAGS, "toy", "contract.toy:ToyFlags")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    place = tmp_path_factory.mktemp("bases")
    return {name: make(place / name) for name, make in BASES.items()}


class Started:
    """All parts of a run, up to the loop."""

    def __init__(self, place, bases, name, model, method="full", **flags):
        case = CASES[name]
        shared = {"model": str(bases[model]), "method": method, "precision": "float32", "batch_size": 4, "epochs": 2}
        self.given = options_of(case.task or name)(
            train=str(case.data(place)), task=case.task or name, out=str(place / "run"), **shared | dict(case.flags) | flags
        )
        self.start = setup.start(self.given)
        self.options, _ = setup.resolve(self.given, self.start)
        self.parts = read_splits(self.options, self.start.task, layout_of(self.options, self.start.task.LAYOUT))
        self.task = self.start.task.learn(self.parts["train"], self.options)
        self.data = setup.prepare(self.options, self.task, self.parts, self.start.checkpoint)
        self.training = setup.build(self.options, self.given, self.start, self.task, self.data["train"], 10)
        self.model = self.training.model


def run(place, bases, name, model, out="run", **flags):
    case = CASES[name]
    data = (
        case.data(place)
        if not any(place.glob("rows*")) and not (place / "photos").exists()
        else next(path for path in place.iterdir() if path.name.startswith(("rows", "photos")))
    )
    shared = {"epochs": 2, "batch_size": 8, "precision": "float32", "lr": 1e-2}
    arguments = ["--task", case.task or name, "--train", str(data), "--model", str(bases[model]), "--out", str(place / out)]
    for flag, value in (shared | dict(case.flags) | flags).items():
        name = flag.replace("_", "-")
        arguments += [f"--no-{name}" if value is False else f"--{name}", *([] if isinstance(value, bool) else [str(value)])]
    train.main(arguments)
    return place / out, data


def alike(one, other, tolerance=1e-5) -> bool:
    """Equal but for the rounding of numbers."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key], tolerance) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(alike(a, b, tolerance) for a, b in zip(one, other, strict=True))
    if isinstance(one, float):
        return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)
    return one == other


@every
def test_a_run_is_saved_loaded_and_scores_as_it_did(tmp_path, bases, name, model):
    directory, data = run(tmp_path, bases, name, model)
    result = json.loads((directory / "result.json").read_text())
    tuned = minift.load(directory)
    assert set(result["valid"]) == {"loss", *tuned.task.METRICS}
    assert task_from(described(tuned.checkpoint.task["name"], tuned.task)) == tuned.task
    given = options_of(tuned.checkpoint.task["name"])(train=str(data))
    parts = read_splits(given, type(tuned.task), tuned.layout)
    again = tuned.score(parts["valid"])[0].metrics
    assert alike(again, result["valid"], 1e-6), (again, result["valid"])
    assert page.as_text(page.sections(page.find_runs([str(directory)]), 2, "cpu"))  # minift.report knows nothing of the task


@each_task
@pytest.mark.parametrize("method", ["probe", "lora:rank=2", "bitfit", "partial:stages=1"])
def test_methods_know_nothing_of_the_task(tmp_path, bases, name, model, method):
    if method == "probe" and not CASES[name].probe:
        with pytest.raises(UserError, match="the head is the word vectors of the model and has no weights of its own"):
            run(tmp_path, bases, name, model, method=method)
        return
    directory, data = run(tmp_path, bases, name, model, method=method, epochs=1)
    tuned = minift.load(directory)
    examples = tuned.task.read(str(data), tuned.layout)
    assert len(list(tuned.predict_rows(examples))) == len(examples)
    assert math.isfinite(tuned.score(examples)[0].metrics["loss"])


@every
def test_predictions_come_in_the_order_of_the_rows_whatever_the_batches(tmp_path, bases, name, model):
    directory, data = run(tmp_path, bases, name, model, epochs=1)
    tuned = minift.load(directory)
    examples = tuned.task.read(str(data), tuned.layout)
    predictions = [{key: value for key, value in p.items() if key != "row"} for p in tuned.predict_rows(examples)]
    assert len({json.dumps(p) for p in predictions}) > 1, "all predictions are the same: the order cannot be seen"
    for order, size in ((np.arange(len(examples)), 1), (np.arange(len(examples))[::-1], 5)):
        shuffled = tuned.predict_rows(examples.take(order), batch_size=size)
        for row, p in zip(order, shuffled, strict=True):
            p.pop("row", None)
            assert alike(p, predictions[row]), (row, p, predictions[row])
    unlabelled = replace(examples, labels=None) if hasattr(examples, "labels") else examples
    assert alike([{k: v for k, v in p.items() if k != "row"} for p in tuned.predict_rows(unlabelled)], predictions)


class Recorder(Optimizer):
    """Keeps the gradients of every step and changes nothing."""

    def __init__(self, groups):
        self.groups, self.steps = groups, []

    def step(self, factor, finite):
        self.steps.append([p.grad.clone() for group in self.groups for p in group.parameters if p.grad is not None])


@every
@pytest.mark.parametrize("k", [2, 50])
def test_accumulated_batches_are_the_large_batch(tmp_path, bases, name, model, k):
    started = Started(tmp_path, bases, name, model, method="partial:stages=1" if model in IMAGES else "full", accumulate=k)
    training, data = started.training, started.data["train"]
    training.model.double()
    for module in training.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # its statistics would be the smaller batch's
            module.requires_grad_(False)
    training.optimizer = recorder = Recorder([replace_group(group) for group in training.optimizer.groups])
    if model in IMAGES:
        as_double(data)
    fit(training, data, None, Nowhere(), loop_options(accumulate=k, clip=1e18), Progress(changed=True))
    windows = in_order(data.order(4, 0, 0), k)
    assert len(recorder.steps) == len(windows)
    for window, gradients in zip(windows, recorder.steps, strict=True):
        batch = next(iter(data.batches([np.concatenate(window)], CPU, 0)))
        _, outputs = training.model(batch)
        (training.task.loss(outputs, batch).sum() / batch.counts.sum()).backward()
        expected = [p.grad for group in recorder.groups for p in group.parameters if p.grad is not None]
        for ours, theirs in zip(gradients, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12 * max(1.0, theirs.abs().max().item()))
        recorder.zero_grad()


def replace_group(group):
    kept = [(name, p) for name, p in zip(group.names, group.parameters, strict=True) if p.requires_grad]
    return replace(group, names=[name for name, _ in kept], parameters=[p for _, p in kept])


def as_double(data) -> None:
    """Let the data give its pictures in float64."""
    narrow = data.batches

    def batches(order, device, epoch=None):
        return (replace(batch, inputs=tuple(x.double() for x in batch.inputs)) for batch in narrow(order, device, epoch))

    data.batches = batches


@every
def test_a_frozen_cached_body_is_the_body(tmp_path, bases, name, model):
    started = Started(tmp_path, bases, name, model, method="probe" if CASES[name].probe else "partial:stages=1")
    body, training = started.model.body, started.training
    started.model.eval()
    frozen = cache.FrozenStages(body, cache.depth(body), training.precision)
    assert frozen.complete == CASES[name].probe
    for split, data in started.data.items():
        seen = [cache.OnTheFly(data, frozen)]
        if data.variants is not None:
            seen.append(cache.CachedFeatures(data, frozen, 4, CPU))
        order = by_length(data.lengths, 3)
        for epoch in (None, 0, 1, 2):
            plain = [(b, *started.model(b)) for b in data.batches(order, CPU, epoch)]
            for features in seen:
                for (batch, _, expected), other in zip(plain, features.batches(order, CPU, epoch), strict=True):
                    outputs = started.model(other)[1]
                    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)
                    assert torch.equal(batch.counts, other.counts) and batch.rows.tolist() == other.rows.tolist()
                    torch.testing.assert_close(other.targets, batch.targets, rtol=0, atol=0)
                    losses = [training.task.loss(o, b) for o, b in ((outputs, other), (expected, batch))]
                    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)
        assert split in ("train", "valid")


@each_task
def test_the_same_seed_gives_the_same_bits_and_another_one_others(tmp_path, bases, name, model):
    weights = []
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        directory, _ = run(tmp_path, bases, name, model, out, seed=seed)
        weights.append(read_tensors(directory / "model" / "model.safetensors"))
    assert all(torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())
    assert not all(torch.equal(tensor, weights[2][key]) for key, tensor in weights[0].items())


@every
def test_evaluation_adds_up_whatever_the_batches_and_meters_merge(tmp_path, bases, name, model):
    started = Started(tmp_path, bases, name, model)
    task, data, precision = started.task, started.data["valid"], started.training.precision
    scores = [evaluate(started.model, task, data, size, precision) for size in (1, 3, 50)]
    assert alike(scores[0].metrics, scores[1].metrics) and alike(scores[0].metrics, scores[2].metrics)
    np.testing.assert_allclose(scores[0].losses, scores[2].losses, rtol=1e-4, atol=1e-5)
    assert len(scores[0].losses) == len(started.parts["valid"])
    meters = []
    cut = data.rows[len(data) // 2]
    for part in (np.flatnonzero(data.rows < cut), np.flatnonzero(data.rows >= cut)):
        meters.append(task.meter(data))
        for batch in data.batches(in_order(part, 2), CPU):
            with torch.inference_mode():
                meters[-1].add(started.model.eval()(batch)[1], batch)
    meters[0].merge(meters[1])
    assert alike(meters[0].metrics(), {key: value for key, value in scores[0].metrics.items() if key != "loss"})
    rows = [row for row, _ in outputs_by_row(started.model, data, 3, precision)]
    assert rows == list(range(len(started.parts["valid"])))


def test_what_the_toy_asks_for(tmp_path, bases):
    """The threshold was tuned on the validation rows and saved; the counts are not the rows; each epoch sees other inputs."""
    started = Started(tmp_path, bases, "toy", "bert")
    data = started.data["train"]
    order = [np.arange(6)]
    first, second, again = (next(iter(data.batches(order, CPU, epoch))) for epoch in (0, 1, 0))
    assert not torch.equal(first.inputs[0], second.inputs[0]) and torch.equal(first.inputs[0], again.inputs[0])
    assert first.counts.sum() != len(first.rows) and first.rows.tolist() == [0, 0, 1, 1, 2, 2]
    (tmp_path / "other").mkdir()
    directory, _ = run(tmp_path / "other", bases, "toy", "bert")
    assert minift.load(directory).task.threshold != 0.5
