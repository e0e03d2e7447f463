"""--accumulate k: the gradient of a step is that of the k times larger batch, in float64, with unequal and ragged batches."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from tiny import CONFIG, tiny_body, tiny_resnet

import train
from minift.data.batching import Batch, in_order, shuffled
from minift.data.tokenising import Encoded
from minift.methods.surgery import freeze
from minift.optim.groups import make_groups
from minift.tasks.text_classification import TextClassification


class Recorder:
    """Takes the place of the optimiser: keeps the gradients of every step and changes nothing."""

    def __init__(self, groups):
        self.groups, self.steps = groups, []

    def step(self, factor):
        self.steps.append([p.grad.clone() for group in self.groups for p in group.parameters])

    def zero_grad(self):
        for group in self.groups:
            for p in group.parameters:
                p.grad = None


class Nowhere:
    def log(self, events):
        pass

    def save(self, model):
        pass


class Squares:
    """Images in memory."""

    def __init__(self, random):
        self.images, self.labels = torch.from_numpy(random.normal(size=(23, 3, 32, 32))), random.integers(0, 2, 23)
        self.lengths = np.ones(23, dtype=np.int64)

    def __len__(self):
        return 23

    def collate(self, rows):
        return Batch((self.images[rows],), torch.from_numpy(self.labels[rows]))

    def batches(self, order, device, epoch):
        return (self.collate(rows) for rows in order)


def texts(random):
    lengths = random.integers(2, 10, 23)
    tokens = [random.integers(5, CONFIG.vocab_size, n) for n in lengths]
    return Encoded(tokens, None, lengths, random.integers(0, 2, 23), CONFIG.pad_token_id, 40, 0)


@pytest.mark.parametrize("kind", ["text", "images"])
@pytest.mark.parametrize("k", [1, 2, 3, 50])
def test_gradient_of_the_larger_batch(k, kind):
    random = np.random.default_rng(0)
    task = TextClassification(["a", "b"], "cls")
    if kind == "text":
        data, body = texts(random), tiny_body(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    else:
        data, body = Squares(random), tiny_resnet()
        freeze(body)
        body.requires_grad_(True)
        for module in body.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # its statistics would be the smaller batch's
                module.requires_grad_(False)
    model = task.model(body).double()
    lengths = data.lengths
    recorder = Recorder(make_groups(model, 1.0, 0.0))
    limits = {"epochs": 1, "batch_size": 4, "accumulate": k, "clip": 1e9, "seed": 0, "monitor": "loss", "patience": None}
    limits |= {"label_smoothing": 0.0, "precision": nullcontext()}
    train.fit(model, task, data, None, recorder, lambda step: 1.0, Nowhere(), **limits)

    windows = in_order(shuffled(lengths, 4, 0, 0), k)
    assert len(recorder.steps) == len(windows) == -(-6 // k)
    for window, gradients in zip(windows, recorder.steps, strict=True):
        batch = data.collate(np.concatenate(window))
        torch.nn.functional.cross_entropy(model(batch), batch.labels).backward()
        expected = [p.grad for group in recorder.groups for p in group.parameters]
        for ours, theirs in zip(gradients, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        recorder.zero_grad()
