"""Metrics of regression: the mean squared error, and how well predictions and targets go together.

    MSE       = 1/N sum (p - t)^2
    Pearson   = sum (p - mean p)(t - mean t) / sqrt(sum (p - mean p)^2  sum (t - mean t)^2)
    Spearman  = Pearson of the ranks; equal values share the average of the ranks that they cover

Equal to scipy's pearsonr and spearmanr at 1e-12 (tests/reference/test_metrics_regression.py). Two deviations:
a correlation with a constant is 0/0, which scipy answers with NaN and a warning; here it is None, "undefined". A small learning
rate gives constant predictions in the first epochs, and a NaN would then compare as no best epoch.
Predictions (N, 1) against targets (N) are an error: numpy and torch would broadcast them to N x N differences, whose mean is
another number (3 perfect predictions of 1, 2, 3: 4/3 instead of 0).

GLUE's figure for STS-B is the mean of Pearson and Spearman (Wang et al. 2019, arXiv:1804.07461, section 4).

N is the number of rows.
"""

import numpy as np


def check(predicted, target) -> tuple[np.ndarray, np.ndarray]:
    """Both as (N) float64. Raises ValueError for other shapes, for no rows and for a value that is not finite."""
    p, t = np.asarray(predicted, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if p.ndim != 1 or p.shape != t.shape or not len(p):
        raise ValueError(f"predictions and targets are expected to be (N) with N > 0, found {p.shape} and {t.shape}")
    for name, values in (("prediction", p), ("target", t)):
        if not np.isfinite(values).all():
            raise ValueError(f"row {int(np.argmin(np.isfinite(values)))}: the {name} is not finite")
    return p, t


def mean_squared_error(predicted, target) -> float | None:
    """predicted, target: (N), in the same units. None where it is larger than a float64 can be."""
    p, t = check(predicted, target)
    with np.errstate(over="ignore"):
        found = float(((p - t) ** 2).mean())
    return found if np.isfinite(found) else None


def pearson(predicted, target) -> float | None:
    """In -1 .. 1; None, undefined, where predictions or targets are constant. predicted, target: (N)."""
    p, t = check(predicted, target)
    if (p == p[0]).all() or (t == t[0]).all():
        return None
    return float(np.clip(unit(p) @ unit(t), -1.0, 1.0))


def unit(values: np.ndarray) -> np.ndarray:
    """(N) values, minus their mean, divided by their norm; scaled first, since the square of 1e200 or 1e-200 is no float64.

    The scale is a power of two, which rounds nothing: a rounded value far from 0 loses what its difference to the mean consists of.
    """
    values = near_one(values)
    values = near_one(values - values.mean())
    return values / np.linalg.norm(values)


def near_one(values: np.ndarray) -> np.ndarray:
    """The values times the power of two that brings the largest into 0.5 .. 1."""
    return np.ldexp(values, -np.frexp(np.abs(values).max())[1])


def spearman(predicted, target) -> float | None:
    """In -1 .. 1; None, undefined, where predictions or targets are constant. predicted, target: (N)."""
    p, t = check(predicted, target)
    return pearson(ranks(p), ranks(t))


def ranks(values: np.ndarray) -> np.ndarray:
    """(N) ranks from 1; equal values have the mean of the ranks that they cover.

    The order of argsort instead (argsort of argsort) ranks equal values by their place in the file: predictions 1 1 2 2 against
    targets 2 1 4 3 then give 0.6 instead of 0.894.
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return ((last - counts + 1 + last) / 2)[inverse]


def regression_metrics(predicted, target) -> dict[str, float | None]:
    """mse, pearson, spearman, and pearson_spearman, the mean of the two; None where it is undefined."""
    linear, monotone = pearson(predicted, target), spearman(predicted, target)
    both = None if linear is None or monotone is None else (linear + monotone) / 2
    return {"mse": mean_squared_error(predicted, target), "pearson": linear, "spearman": monotone, "pearson_spearman": both}
