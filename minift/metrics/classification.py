"""Metrics of classification, from a confusion matrix. Equal to scikit-learn's (tests/reference/test_metrics.py).

The axes of a confusion matrix: G the class that is right (gold), P the class that is predicted.
"""

import math

import numpy as np


def confusion_matrix(gold: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Number of rows by right and predicted class. gold, predicted: (N) integers in 0 .. classes-1."""
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (gold, predicted), 1)
    return matrix  # (G, P)


def per_class(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """precision, recall, f1 and rows of every class, (G) each; 0 where a class is never predicted or never right."""
    right, predicted, gold = np.diag(matrix), matrix.sum(0), matrix.sum(1)
    return {
        "precision": right / np.maximum(predicted, 1),
        "recall": right / np.maximum(gold, 1),
        "f1": 2 * right / np.maximum(predicted + gold, 1),
        "rows": gold,
    }


def classification_metrics(matrix: np.ndarray) -> dict[str, float]:
    """accuracy; f1_macro, over the classes that occur as right or as predicted; matthews (Gorodkin 2004), 0 where it is 0/0."""
    n, right, predicted, gold = int(matrix.sum()), np.diag(matrix), matrix.sum(0), matrix.sum(1)
    occurs = predicted + gold > 0
    covariance = n * int(right.sum()) - int(predicted @ gold)
    spread = math.sqrt((n * n - int(predicted @ predicted)) * (n * n - int(gold @ gold)))
    return {
        "accuracy": float(right.sum() / n),
        "f1_macro": float(per_class(matrix)["f1"][occurs].mean()),
        "matthews": covariance / spread if spread else 0.0,
    }
