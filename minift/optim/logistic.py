"""Multinomial logistic regression by L-BFGS, and the sweep over its penalty with which the literature scores frozen features."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

TIGHT, LOOSE = 1e-8, 1e-4  # tolerance of one fit, and of those of a sweep
ROUND = 100  # steps of L-BFGS before the curvature is looked at anew


class Fit(NamedTuple):
    l2: float
    accuracy: float  # this and the loss on the validation rows
    loss: float
    weight: Tensor  # (C, D) float64
    bias: Tensor  # (C) float64


class Rows(NamedTuple):
    """Features moved and turned into Z = (X - mean) Q, on which a fit is quick and the same.

    |W| does not change by a rotation, and the bias, which bears no penalty, takes up the mean. Where N < D the best W lies in the
    span of the rows, so that N columns of Q do for it.

    Axes: N rows, D features, R = min(N, D).
    """

    mean: Tensor  # (D)
    Q: Tensor  # (D, R), columns orthonormal
    Z: Tensor  # (N, R), columns orthogonal
    variance: Tensor  # (R), of the columns of Z
    labels: Tensor  # (N)


def fit_logistic(
    features: Tensor, labels: Tensor, classes: int, l2: float, start: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The weight W (C, D) and the bias b (C), in float64, at the minimum of

        1/N sum_n -log softmax(W x_n + b)[y_n]  +  l2/2 |W|^2

    features: (N, D), of any floating type. labels: (N) int64, below C. l2: above 0. start: a weight and a bias to begin from, zeros
    unless given. Only differences within b matter: its sum is 0. A class without rows has no best bias, only a very low one.

    Equal to sklearn.linear_model.LogisticRegression with C = 1 / (N l2) (tests/reference/test_logistic.py). Of two classes
    scikit-learn makes one sigmoid with a penalty on w = W[1] - W[0]; here W[1] = -W[0] = w / 2, so that |W|^2 = |w|^2 / 2: the
    same minimum is that of C = 2 / (N l2), with coef_ = 2 W[1] and intercept_ = 2 b[1].
    """
    rows = turned(features, labels)
    a, b = zeros(rows, classes)
    if start is not None:
        weight, bias = (x.to(rows.Z) for x in start)
        a, b = weight @ rows.Q, bias + weight @ rows.mean
    return turned_back(rows, *descend(rows, l2, a, b, TIGHT))


def sweep_l2(
    train_features: Tensor,
    train_labels: Tensor,
    valid_features: Tensor,
    valid_labels: Tensor,
    classes: int,
    grid: Iterable[float] | None = None,
) -> list[Fit]:
    """The fit of every penalty in `grid`, from the strongest on; unset, the grid is `kornblith_grid`.

    `max(fits, key=lambda fit: fit.accuracy)` is the protocol's choice; of equally accurate ones it takes the strongest penalty. A
    fit starts where the two before it point to on the axis log l2 (the protocol starts from the one before), and comes to rest
    earlier than `fit_logistic`, about 1e-6 of the objective above its minimum.
    """
    rows = turned(train_features, train_labels)
    valid, valid_labels = valid_features.to(rows.Z), valid_labels.to(rows.labels)
    fits, last_two = [], []
    for l2 in sorted(set(kornblith_grid(len(rows.labels)) if grid is None else grid), reverse=True):
        starts = [last_two[-1][1:] if last_two else zeros(rows, classes)]
        if len(last_two) == 2:
            (l2_0, a_0, b_0), (l2_1, a_1, b_1) = last_two
            ahead = math.log(l2 / l2_1) / math.log(l2_1 / l2_0)
            starts.append((a_1 + ahead * (a_1 - a_0), b_1 + ahead * (b_1 - b_0)))
        a, b = descend(rows, l2, *min(starts, key=lambda start, l2=l2: objective(rows, l2, *start)), LOOSE)
        last_two = [*last_two, (l2, a, b)][-2:]
        weight, bias = turned_back(rows, a, b)
        logits = valid @ weight.T + bias
        accuracy = (logits.argmax(1) == valid_labels).double().mean()
        fits.append(Fit(l2, accuracy.item(), cross_entropy(logits, valid_labels).item(), weight, bias))
    return fits


def kornblith_grid(rows: int) -> list[float]:
    """45 penalties, from 1e-6 to 1e5 at equal ratios, in the protocol of Kornblith, Shlens & Le 2019 (arXiv:1805.08974, appendix).

    The author's code (google-research, linear_eval/train.py) has lambda beside a sum of losses and without a half,
    sum_n loss_n + lambda |W|^2. Hence l2 = 2 lambda / N here.
    """
    return [2 * 10 ** (i / 4 - 6) / rows for i in range(45)]


# ---- on turned rows: a = W Q and b, the bias there ----


def turned(features: Tensor, labels: Tensor) -> Rows:
    X = features.double()
    mean = X.mean(0)
    Z, span = X - mean, None
    if Z.shape[0] < Z.shape[1]:
        span, R = torch.linalg.qr(Z.T)
        Z = R.T
    variance, Q = torch.linalg.eigh(Z.T @ Z / len(Z))
    return Rows(mean, Q if span is None else span @ Q, Z @ Q, variance.clamp_min(0.0), labels)


def turned_back(rows: Rows, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    weight = a @ rows.Q.T
    bias = b - weight @ rows.mean
    return weight, bias - bias.mean()


def zeros(rows: Rows, classes: int) -> tuple[Tensor, Tensor]:
    return rows.Z.new_zeros(classes, rows.Z.shape[1]), rows.Z.new_zeros(classes)


def objective(rows: Rows, l2: float, a: Tensor, b: Tensor) -> Tensor:
    return cross_entropy(rows.Z @ a.T + b, rows.labels) + l2 / 2 * a.square().sum()


def descend(rows: Rows, l2: float, a: Tensor, b: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """The objective's minimum from (a, b) on, by L-BFGS in units in which its curvature is about 1.

    With h the mean of p (1 - p) over rows and classes, the curvature along column r of a is about h variance_r + l2, along b about
    h. A round ends after ROUND steps, or where the largest derivative is below tolerance sqrt(J): there the objective J could
    fall by the order of tolerance^2 J. The last round is the one that falls by less than that.
    """
    if not l2 > 0:
        raise ValueError(f"l2 is {l2}; without a penalty above 0 rows that can be separated have no best weight")
    J = objective(rows, l2, a, b).item()
    while True:
        p = (rows.Z @ a.T + b).softmax(1)
        h = (p * (1 - p)).mean().clamp_min(torch.finfo(p.dtype).eps)
        unit_a, unit_b = (h * rows.variance + l2).rsqrt(), h.rsqrt()
        x, y = (a / unit_a).requires_grad_(), (b / unit_b).requires_grad_()
        lbfgs = torch.optim.LBFGS(
            [x, y],
            max_iter=ROUND,
            max_eval=30 * ROUND,  # a line search has up to 25: they shall not end the round
            tolerance_grad=tolerance * math.sqrt(J),
            tolerance_change=0.0,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def derive(x=x, y=y, unit_a=unit_a, unit_b=unit_b) -> Tensor:
            loss = objective(rows, l2, x * unit_a, y * unit_b)
            x.grad, y.grad = torch.autograd.grad(loss, [x, y])
            return loss

        lbfgs.step(derive)
        a, b = (x * unit_a).detach(), (y * unit_b).detach()
        before, J = J, objective(rows, l2, a, b).item()
        fall = before - J
        if not fall > tolerance**2 * before:
            return a, b
