"""Logistic regression against scikit-learn, and the sweep over its penalty against one fit after the other."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy

from minift.optim.logistic import fit_logistic, kornblith_grid, sweep_l2

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


@pytest.mark.parametrize("shape", SHAPES)
def test_from_any_start_to_the_same_end(shape):
    _, width, classes = shape
    features, labels = sample(*shape)
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(classes, width, generator=generator), torch.randn(classes, generator=generator)
    for a, b in zip(
        fit_logistic(features, labels, classes, 1e-2, start), fit_logistic(features, labels, classes, 1e-2), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


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
    grid = [1e-4, 3.0, 1e-2, 100.0, 0.1, 1e-3, 1e-3]
    fits = sweep_l2(*train, *valid, classes, grid)
    assert [fit.l2 for fit in fits] == [100.0, 3.0, 0.1, 1e-2, 1e-3, 1e-4]
    for fit in fits:
        weight, bias = fit_logistic(*train, classes, fit.l2)
        best = objective(*train, weight, bias, fit.l2)
        assert best - 1e-12 <= objective(*train, fit.weight, fit.bias, fit.l2) <= best * (1 + 1e-5)
        logits = valid[0] @ fit.weight.T + fit.bias
        assert fit.loss == pytest.approx(cross_entropy(logits, valid[1]).item())
        assert fit.loss == pytest.approx(cross_entropy(valid[0] @ weight.T + bias, valid[1]).item(), rel=1e-2)
        assert fit.accuracy == pytest.approx((logits.argmax(1) == valid[1]).double().mean().item())
    best = max(fits, key=lambda fit: fit.accuracy)
    assert best.l2 == max(fit.l2 for fit in fits if fit.accuracy == best.accuracy)


def test_the_grid_of_the_protocol():
    grid = kornblith_grid(500)
    np.testing.assert_allclose(grid, 2 * np.logspace(-6, 5, 45) / 500, rtol=1e-12)
    features, labels = sample(100, 4, 3)
    fits = sweep_l2(features[:50], labels[:50], features[50:], labels[50:], 3)
    assert [fit.l2 for fit in fits] == sorted(kornblith_grid(50), reverse=True)
