"""Logistic regression against scikit-learn, and the sweep over its penalty against one fit after the other."""

import math
import os
import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy

from minift.optim import logistic
from minift.optim.logistic import fit_logistic, kornblith_grid, sweep_l2
from minift.runs import forget_peak_memory, peak_memory_mb

# rows, features, classes: more rows than features, and fewer, where the classes can be separated
SHAPES = [(150, 8, 2), (150, 8, 5), (40, 60, 2), (40, 60, 5)]
PENALTIES = [10.0, 1.0, 1e-2, 1e-4]


def sample(rows: int, width: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of unequal size, turned and off centre; labels that overlap."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    true = torch.randn(width, classes, generator=generator, dtype=torch.float64)
    generator.manual_seed(seed + 1)
    raw = torch.randn(rows, width, generator=generator, dtype=torch.float64) * torch.logspace(0.5, -1, width, dtype=torch.float64)
    labels = (raw @ true + 2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)).argmax(1)
    assert len(labels.unique()) == classes
    return raw @ turn + 3, labels


def objective(features, labels, weight, bias, l2) -> float:
    return (cross_entropy(features @ weight.T + bias, labels) + l2 / 2 * weight.square().sum()).item()


def by_sklearn(features, labels, classes, l2) -> tuple[torch.Tensor, torch.Tensor]:
    C = 1 / (len(labels) * l2)
    solver = LogisticRegression(C=2 * C if classes == 2 else C, solver="newton-cholesky", tol=1e-11, max_iter=1000)
    solver.fit(features.numpy(), labels.numpy())
    weight, bias = solver.coef_, solver.intercept_
    if classes == 2:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return torch.from_numpy(weight), torch.from_numpy(bias - bias.mean())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("l2", PENALTIES)
def test_fit(shape, l2):
    features, labels = sample(*shape)
    weight, bias = fit_logistic(features, labels, shape[2], l2)
    expected, expected_bias = by_sklearn(features, labels, shape[2], l2)
    assert weight.dtype == bias.dtype == torch.float64 and abs(bias.sum()) < 1e-12
    torch.testing.assert_close(weight, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(bias, expected_bias, rtol=0, atol=1e-4)
    ours, theirs = objective(features, labels, weight, bias, l2), objective(features, labels, expected, expected_bias, l2)
    assert ours == pytest.approx(theirs, rel=0, abs=1e-12)
    assert objective(features, labels, weight * 1.001, bias, l2) > ours + 1e-10


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_vanishes(shape):
    features, labels = sample(*shape)
    weight, bias = (x.requires_grad_() for x in fit_logistic(features, labels, shape[2], 1e-3))
    loss = cross_entropy(features @ weight.T + bias, labels) + 1e-3 / 2 * weight.square().sum()
    for gradient in torch.autograd.grad(loss, (weight, bias)):
        assert gradient.abs().max() < 1e-8


def test_features_of_one_value_rows_alike_and_a_class_without_rows():
    features, labels = sample(60, 5, 2)
    features = torch.cat([features, torch.ones(60, 2)], 1)
    features[1], labels[1] = features[0], 1 - labels[0]
    weight, bias = fit_logistic(features.float(), labels, 3, 0.1)
    assert weight.isfinite().all() and weight[:, 5:].abs().max() < 1e-6
    probabilities = (features @ weight.T + bias).softmax(1)
    assert probabilities[:, 2].max() < 1e-6
    expected, expected_bias = by_sklearn(features.float().double(), labels, 2, 0.1)
    torch.testing.assert_close(weight[:2], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(bias[1] - bias[0], expected_bias[1] - expected_bias[0], rtol=0, atol=1e-5)


def test_a_penalty_is_needed():
    with pytest.raises(ValueError, match="l2 is 0"):
        fit_logistic(*sample(20, 3, 2), 2, 0.0)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sweep_is_one_fit_after_the_other(shape):
    rows, width, classes = shape
    features, labels = sample(rows + 50, width, classes)
    train, valid = (features[:rows], labels[:rows]), (features[rows:], labels[rows:])
    fits = sweep_l2(*train, *valid, classes)
    assert [fit.l2 for fit in fits] == sorted(kornblith_grid(rows), reverse=True)[: len(fits)]
    for fit in fits:
        weight, bias = fit_logistic(*train, classes, fit.l2)
        best = objective(*train, weight, bias, fit.l2)
        assert best - 1e-12 <= objective(*train, fit.weight, fit.bias, fit.l2) <= best * (1 + 1e-5)
        logits = valid[0] @ fit.weight.T + fit.bias
        assert fit.loss == pytest.approx(cross_entropy(logits, valid[1]).item())
        assert fit.loss == pytest.approx(cross_entropy(valid[0] @ weight.T + bias, valid[1]).item(), rel=1e-2)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sweep_ends_where_validation_wants_no_weaker_penalty(shape, monkeypatch):
    rows, width, classes = shape
    features, labels = sample(rows + 50, width, classes)
    split = (features[:rows], labels[:rows], features[rows:], labels[rows:])
    seen = []
    fits = sweep_l2(*split, classes, progress=seen.append)
    assert seen == fits
    monkeypatch.setattr(logistic, "PATIENCE", 1000)
    every = sweep_l2(*split, classes)
    assert len(every) == 45
    losses = [fit.loss for fit in every]
    right = [((split[2] @ fit.weight.T + fit.bias).argmax(1) == split[3]).sum().item() for fit in every]
    better = [i for i in range(45) if losses[i] < min(losses[:i], default=math.inf) or right[i] > max(right[:i], default=-1)]
    last = next(i for i, j in zip(better, [*better[1:], math.inf], strict=True) if j - i > 6)
    assert len(fits) == min(45, last + 7)
    assert [fit.loss for fit in fits] == losses[: len(fits)]
    assert min(losses[: len(fits)]) == min(losses), "nothing better lies behind the end"


def test_the_grid_of_the_protocol():
    np.testing.assert_allclose(kornblith_grid(500), 2 * np.logspace(-6, 5, 45) / 500, rtol=1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_features_that_are_not_finite_are_refused(value):
    features, labels = sample(40, 4, 3)
    bad = features.clone()
    bad[7, 2] = bad[9, 1] = value
    with pytest.raises(ValueError, match="2 of 40 rows have features that are infinite or NaN, the first is row 8"):
        fit_logistic(bad, labels, 3, 1.0)
    for split in ((bad, labels, features, labels), (features, labels, bad, labels)):
        with pytest.raises(ValueError, match="the first is row 8"):
            sweep_l2(*split, 3)


@pytest.mark.parametrize("l2", [1e-6, 1e-9])
def test_rows_nearly_alike_of_other_classes_under_a_weak_penalty(l2, monkeypatch):
    """They can be told apart at weights that differ by decades."""
    features, labels = sample(300, 20, 4)
    closeness = torch.logspace(-3, 0, 30, dtype=torch.float64)[:, None]
    features[:30] = features[30:60] + closeness * (features[:30] - features[30:60])
    evaluations = []
    derive = logistic.differentiate
    monkeypatch.setattr(logistic, "differentiate", lambda *arguments: evaluations.append(None) or derive(*arguments))
    weight, bias = fit_logistic(features, labels, 4, l2)
    assert len(evaluations) < 1000
    expected = objective(features, labels, *by_sklearn(features, labels, 4, l2), l2)
    assert objective(features, labels, weight, bias, l2) <= expected * (1 + 1e-9)


@pytest.mark.skipif(sys.platform != "linux" or not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset")
def test_one_copy_of_the_features_is_made():
    features = torch.randn(200_000, 100, dtype=torch.float64)
    labels = (features[:, 0] > 0).long()
    size = features.nbytes / 2**20
    forget_peak_memory()
    before = peak_memory_mb(torch.device("cpu"))
    fit_logistic(features, labels, 2, 1.0)
    assert peak_memory_mb(torch.device("cpu")) - before < 1.6 * size


def test_a_product_in_blocks_is_the_whole(monkeypatch):
    Z, h = torch.randn(150, 9, dtype=torch.float64), torch.rand(150, dtype=torch.float64)
    monkeypatch.setattr(logistic, "BLOCK", 40)
    torch.testing.assert_close(logistic.weighted_square(Z, h), Z.T @ h.diag() @ Z, rtol=0, atol=1e-12)
