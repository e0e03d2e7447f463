"""Metrics against scikit-learn's, on random labels and on the corners where 0/0 lurks."""

from types import SimpleNamespace

import numpy as np
import pytest
import sklearn.metrics
import torch
from sklearn.calibration import calibration_curve

from minift.metrics.classification import classification_metrics, confusion_matrix, per_class
from minift.tasks.classification import Confusion

CASES = {
    "random": (np.random.default_rng(0).integers(0, 4, 300), np.random.default_rng(1).integers(0, 4, 300), 4),
    "one class predicted": (np.array([0, 1, 0, 1]), np.array([1, 1, 1, 1]), 2),
    "all right": (np.array([0, 1, 2]), np.array([0, 1, 2]), 3),
    "all wrong": (np.array([0, 1, 0]), np.array([1, 0, 1]), 2),
    "a class that never occurs": (np.array([0, 1, 0, 1]), np.array([0, 1, 1, 1]), 5),
    "one class right and predicted": (np.array([2, 2, 2]), np.array([2, 2, 2]), 3),
    "large": (np.random.default_rng(2).integers(0, 2, 100_000), np.random.default_rng(3).integers(0, 2, 100_000), 2),
}


@pytest.mark.parametrize("case", CASES)
def test_against_scikit_learn(case):
    gold, predicted, classes = CASES[case]
    matrix = confusion_matrix(gold, predicted, classes)
    assert np.array_equal(matrix, sklearn.metrics.confusion_matrix(gold, predicted, labels=range(classes)))
    ours = classification_metrics(matrix)
    assert ours["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(gold, predicted), abs=1e-12)
    assert ours["f1_macro"] == pytest.approx(sklearn.metrics.f1_score(gold, predicted, average="macro"), abs=1e-12)
    assert ours["matthews"] == pytest.approx(sklearn.metrics.matthews_corrcoef(gold, predicted), abs=1e-12)
    expected = sklearn.metrics.precision_recall_fscore_support(gold, predicted, labels=range(classes), zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "rows"), expected, strict=True):
        np.testing.assert_allclose(per_class(matrix)[name], values, rtol=0, atol=1e-12)


@pytest.mark.parametrize("classes", [2, 12])
def test_calibration_against_scikit_learn(classes):
    generator = torch.Generator().manual_seed(0)
    logits, right = torch.randn(500, classes, generator=generator) * 3, torch.randint(classes, (500,), generator=generator)
    meters = [Confusion([str(i) for i in range(classes)]) for _ in range(2)]
    for meter, rows in zip(meters, (slice(0, 123), slice(123, 500)), strict=True):
        meter.add(logits[rows], SimpleNamespace(targets=(right[rows],)))
    meters[0].merge(meters[1])
    found = meters[0].details()["calibration"]
    score, predicted = logits.double().softmax(-1).max(-1)
    hit = (predicted == right).numpy()
    accuracy, mean = calibration_curve(hit, score.numpy(), n_bins=10)
    np.testing.assert_allclose([one["accuracy"] for one in found["bins"]], accuracy, rtol=0, atol=1e-12)
    np.testing.assert_allclose([one["score"] for one in found["bins"]], mean, rtol=0, atol=1e-12)
    rows = np.histogram(score.numpy(), np.linspace(0, 1, 11))[0]
    assert [one["rows"] for one in found["bins"]] == rows[rows > 0].tolist()
    assert found["error"] == pytest.approx((rows[rows > 0] * abs(accuracy - mean)).sum() / 500, abs=1e-12)
