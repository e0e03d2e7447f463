"""--accumulate k: the gradient of a step is that of the k times larger batch, in float64, with unequal and ragged batches."""

import numpy as np
import pytest
import torch
from loop import Nowhere, batch_of, classifier, encoded, logits, train_with
from tiny import CONFIG, tiny_body, tiny_resnet

from minift.data.batching import Data, in_order, shuffled
from minift.methods.surgery import freeze
from minift.optim.groups import make_groups
from minift.penalties.penalty import Penalty
from minift.tasks.classification import Classification


class Recorder:
    """Takes the place of the optimiser: keeps the gradients of every step and changes nothing."""

    def __init__(self, groups):
        self.groups, self.steps = groups, []

    def step(self, factor, finite):
        self.steps.append([p.grad.clone() for group in self.groups for p in group.parameters])

    def zero_grad(self):
        for group in self.groups:
            for p in group.parameters:
                p.grad = None


class Squares(Data):
    """Images in memory."""

    def __init__(self, random):
        self.images, self.labels = torch.from_numpy(random.normal(size=(23, 3, 32, 32))), random.integers(0, 2, 23)
        self.lengths = np.ones(23, dtype=np.int64)

    def batches(self, order, device, epoch=None):
        return (batch_of((self.images[rows],), torch.from_numpy(self.labels[rows]), rows) for rows in order)


def texts(random):
    lengths = random.integers(2, 10, 23)
    tokens = [random.integers(5, CONFIG.vocab_size, n) for n in lengths]
    return encoded(tokens, random.integers(0, 2, 23))


@pytest.mark.parametrize("kind", ["text", "images"])
@pytest.mark.parametrize("k", [1, 2, 3, 50])
def test_gradient_of_the_larger_batch(k, kind):
    random = np.random.default_rng(0)
    task = Classification(["a", "b"], "cls")
    if kind == "text":
        data, body = texts(random), tiny_body(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    else:
        data, body = Squares(random), tiny_resnet()
        freeze(body)
        body.requires_grad_(True)
        for module in body.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # its statistics would be the smaller batch's
                module.requires_grad_(False)
    model = classifier(body).double()
    lengths = data.lengths
    recorder = Recorder(make_groups(model, 1.0, 0.0))
    train_with(model, task, data, recorder, Nowhere(), accumulate=k, clip=1e9)

    windows = in_order(shuffled(lengths, 4, 0, 0), k)
    assert len(recorder.steps) == len(windows) == -(-6 // k)
    for window, gradients in zip(windows, recorder.steps, strict=True):
        batch = next(iter(data.batches([np.concatenate(window)], torch.device("cpu"))))
        torch.nn.functional.cross_entropy(logits(model, batch), *batch.targets).backward()
        expected = [p.grad for group in recorder.groups for p in group.parameters]
        for ours, theirs in zip(gradients, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        recorder.zero_grad()


class OfWeights(Penalty):
    """0.3 |W|^2 of the head, once a step."""

    def term(self, model, progress):
        return 0.3 * model.head.weight.square().sum()


class OfOutputs(Penalty):
    """The mean over the units of the squares of their outputs."""

    def units(self, state, outputs, batch, progress):
        return 0.1 * outputs.square().sum(1) * (progress.step + 1)


@pytest.mark.parametrize("k", [1, 2, 50])
def test_a_penalty_counts_once_a_step_or_once_a_unit(k):
    random = np.random.default_rng(0)
    data, body = texts(random), tiny_body(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = classifier(body).double()
    recorder, penalties = Recorder(make_groups(model, 1.0, 0.0)), (OfWeights(), OfOutputs())
    task = Classification(["a", "b"], "cls")
    train_with(model, task, data, recorder, Nowhere(), accumulate=k, clip=1e9, penalties=penalties)
    for number, (window, gradients) in enumerate(zip(in_order(shuffled(data.lengths, 4, 0, 0), k), recorder.steps, strict=True)):
        batch = next(iter(data.batches([np.concatenate(window)], torch.device("cpu"))))
        made = logits(model, batch)
        loss = torch.nn.functional.cross_entropy(made, *batch.targets) + 0.3 * model.head.weight.square().sum()
        (loss + 0.1 * made.square().sum(1).mean() * (number + 1)).backward()
        for ours, p in zip(gradients, (p for group in recorder.groups for p in group.parameters), strict=True):
            torch.testing.assert_close(ours, p.grad, rtol=0, atol=1e-12)
        recorder.zero_grad()
