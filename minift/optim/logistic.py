"""Multinomial logistic regression by L-BFGS (Liu & Nocedal 1989, algorithm 2.1), and the sweep over its penalty with which frozen
features are scored (Kornblith et al. 2019, arXiv:1805.08974, appendix).

Proved by tests/reference/test_logistic.py: scikit-learn's solution.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

TIGHT, LOOSE = 1e-8, 1e-4  # tolerance of one fit, and of those of a sweep
BLOCK = 65_536  # rows of which products are made at once
ROUND = 100  # steps of L-BFGS before the curvature is computed anew
POLISH = 20  # steps after the last round of a tight fit, by the gradient alone
PATIENCE = 6  # penalties, one and a half decades, after the best validation loss and the best accuracy: then a sweep ends


class Fit(NamedTuple):
    l2: float
    loss: float  # on the validation rows
    weight: Tensor  # (C, D) float64
    bias: Tensor  # (C) float64


class Rows(NamedTuple):
    """Features as Z = (X - mean) Q with a column of ones behind, so that theta (C, R + 1) holds weight and bias.

    |W| does not change by a rotation, and the bias, which bears no penalty, takes up the mean. Where N < D the best W lies in the
    span of the rows, so that N columns of Q are enough; else Q is the identity.

    Axes: N rows, D features, R = min(N, D), C classes.
    """

    mean: Tensor  # (D)
    Q: Tensor | None  # (D, R), columns orthonormal; None: the identity
    Z: Tensor  # (N, R + 1)
    labels: Tensor  # (N)


def fit_logistic(features: Tensor, labels: Tensor, classes: int, l2: float) -> tuple[Tensor, Tensor]:
    """The weight W (C, D) and the bias b (C), in float64, at the minimum of

        1/N sum_n -log softmax(W x_n + b)[y_n]  +  l2/2 |W|^2

    features: (N, D), of any floating type. labels: (N) int64, below C. l2: above 0. Only differences within b matter: its sum is
    0. A class without rows has no best bias, only a very low one. Raises ValueError for features that are not finite.

    Equal to sklearn.linear_model.LogisticRegression with C = 1 / (N l2) (tests/reference/test_logistic.py). Of two classes
    scikit-learn makes one sigmoid with a penalty on w = W[1] - W[0]; here W[1] = -W[0] = w / 2, so that |W|^2 = |w|^2 / 2: the
    same minimum is that of C = 2 / (N l2), with coef_ = 2 W[1] and intercept_ = 2 b[1].
    """
    rows = centred(features, labels)
    return weight_and_bias(rows, minimise(rows, l2, zeros(rows, classes), TIGHT))


def sweep_l2(
    train_features: Tensor,
    train_labels: Tensor,
    valid_features: Tensor,
    valid_labels: Tensor,
    classes: int,
    progress: Callable[[Fit], None] | None = None,
) -> list[Fit]:
    """The fits of the penalties of `kornblith_grid`, from the strongest on, until the validation rows want no weaker one.

    That is where neither their loss nor their accuracy has become better for PATIENCE penalties, while the protocol goes on to the
    end: weak penalties take most of its time. A fit starts where the two before it point to on the axis log l2 (the protocol
    starts from the one before), and stops earlier than `fit_logistic`, about 1e-6 of the objective above its minimum.

    progress: is called after every fit. There are 45 at most.
    """
    rows = centred(train_features, train_labels)
    valid, valid_labels = finite(valid_features).to(rows.Z), valid_labels.to(rows.labels)
    fits, last_two, best, since = [], [], (-math.inf, -math.inf), 0
    for l2 in reversed(kornblith_grid(len(rows.labels))):
        starts = [last_two[-1][1] if last_two else zeros(rows, classes)]
        if len(last_two) == 2:
            (l2_0, theta_0), (l2_1, theta_1) = last_two
            starts.append(theta_1 + math.log(l2 / l2_1) / math.log(l2_1 / l2_0) * (theta_1 - theta_0))
        theta = minimise(rows, l2, min(starts, key=partial(objective, rows, l2)), LOOSE)
        last_two = [*last_two, (l2, theta)][-2:]
        weight, bias = weight_and_bias(rows, theta)
        logits = valid @ weight.T + bias
        loss, accuracy = cross_entropy(logits, valid_labels).item(), (logits.argmax(1) == valid_labels).double().mean().item()
        fits.append(Fit(l2, loss, weight, bias))
        if progress is not None:
            progress(fits[-1])
        since = 0 if accuracy > best[0] or -loss > best[1] else since + 1
        best = max(best[0], accuracy), max(best[1], -loss)
        if since == PATIENCE:
            break
    return fits


def kornblith_grid(rows: int) -> list[float]:
    """45 penalties, from 1e-6 to 1e5 at equal ratios, in the protocol of Kornblith, Shlens & Le 2019 (arXiv:1805.08974, appendix).

    The author's code (google-research, linear_eval/train.py) has lambda beside a sum of losses and without a half,
    sum_n loss_n + lambda |W|^2. Hence l2 = 2 lambda / N here.
    """
    return [2 * 10 ** (i / 4 - 6) / rows for i in range(45)]


# ---- theta (C, R + 1): the weight on the columns of Z, and behind it the bias ----


def finite(features: Tensor) -> Tensor:
    bad = (~features.isfinite()).any(1).nonzero().flatten()
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(features)} rows have features that are infinite or NaN, the first is row {bad[0] + 1}"
        )
    return features


def centred(features: Tensor, labels: Tensor) -> Rows:
    X = finite(features).double()
    mean, Q, (N, D) = X.mean(0), None, X.shape
    Z = X.new_ones(N, min(N, D) + 1)  # the one copy of the features: they may fill half of the memory
    if N < D:
        Q, R = torch.linalg.qr((X - mean).T)
        Z[:, :-1] = R.T
    else:
        torch.sub(X, mean, out=Z[:, :-1])
    return Rows(mean, Q, Z, labels)


def weight_and_bias(rows: Rows, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Those of the features as they were given."""
    a, b = theta[:, :-1], theta[:, -1]
    weight = a if rows.Q is None else a @ rows.Q.T
    bias = b - weight @ rows.mean
    return weight, bias - bias.mean()


def zeros(rows: Rows, classes: int) -> Tensor:
    return rows.Z.new_zeros(classes, rows.Z.shape[1])


def objective(rows: Rows, l2: float, theta: Tensor) -> Tensor:
    return cross_entropy(rows.Z @ theta.T, rows.labels) + l2 / 2 * theta[:, :-1].square().sum()


def minimise(rows: Rows, l2: float, theta: Tensor, tolerance: float) -> Tensor:
    """The theta at the objective's minimum, from the given one on, by L-BFGS in coordinates in which its curvature is about 1.

    With h_n the mean over the classes of p (1 - p) of row n, the curvature of a class's row of theta is about

        M = 1/N Z^T diag(h) Z + l2 (0 for the bias),      M = V diag(d) V^T,      theta = x T^T,  T = V diag(d)^(-1/2)

    A round ends after ROUND steps, where the largest derivative is at most tolerance sqrt(J), at which the objective J could fall
    by the order of tolerance^2 J, or where a step falls by less than that or than float64 resolves. The last round is the one that
    ends with such derivatives, or that falls by less as a whole. Where it was float64 that ended it, POLISH steps follow without a
    line search, since the derivatives are still exact where differences of J no longer are.
    """
    if not (math.isfinite(l2) and l2 > 0):
        raise ValueError(f"l2 is {l2}; without a penalty above 0 rows that can be separated have no best weight")
    resolved = max(tolerance**2, 4 * torch.finfo(theta.dtype).eps)
    penalty = torch.full_like(theta[0], l2)
    penalty[-1] = 0
    J = objective(rows, l2, theta).item()
    while True:
        p = (rows.Z @ theta.T).softmax(1)
        d, V = torch.linalg.eigh(weighted_square(rows.Z, (p * (1 - p)).mean(1)) / len(p) + penalty.diag())
        root = d.clamp_min(torch.finfo(d.dtype).eps * d.max()).sqrt()
        T = V / root
        x = (theta @ (V * root)).requires_grad_()
        flat = tolerance * math.sqrt(J)
        lbfgs = torch.optim.LBFGS(
            [x],
            max_iter=ROUND,
            max_eval=30 * ROUND,  # a line search has up to 25: they shall not end the round
            tolerance_grad=flat,
            tolerance_change=resolved * J,
            history_size=20,
            line_search_fn="strong_wolfe",
        )
        lbfgs.step(partial(differentiate, rows, l2, T, x))
        before, J = J, differentiate(rows, l2, T, x).item()
        theta = (x @ T.T).detach()
        if x.grad.abs().max() <= flat or not before - J > resolved * before:
            break
    if resolved > tolerance**2:
        lbfgs.param_groups[0].update(line_search_fn=None, tolerance_grad=flat / 1000, tolerance_change=0.0, max_iter=POLISH)
        lbfgs.step(partial(differentiate, rows, l2, T, x))
        theta = (x @ T.T).detach()
    return theta


def weighted_square(Z: Tensor, h: Tensor) -> Tensor:
    """Z^T diag(h) Z, in blocks, so that no second copy of Z is made. Z: (N, R + 1). h: (N)."""
    return sum(z.T @ (z * w[:, None]) for z, w in zip(Z.split(BLOCK), h.split(BLOCK), strict=True))


def differentiate(rows: Rows, l2: float, T: Tensor, x: Tensor) -> Tensor:
    """The objective at theta = x T^T, and its gradient in x.grad."""
    loss = objective(rows, l2, x @ T.T)
    (x.grad,) = torch.autograd.grad(loss, [x])
    return loss
