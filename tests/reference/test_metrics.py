"""Metrics against scikit-learn's, on random labels and on the corners where 0/0 lurks."""

import numpy as np
import pytest
import sklearn.metrics

from minift.metrics.classification import classification_metrics, confusion_matrix, per_class

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
