"""Metrics of regression against scipy's, and the figures of the naive versions."""

import numpy as np
import pytest
import scipy.stats
import torch

from minift.metrics.regression import mean_squared_error, pearson, ranks, regression_metrics, spearman

random = np.random.default_rng(0)
CASES = {
    "random": (random.normal(size=500), random.normal(size=500)),
    "correlated": ((x := random.normal(size=300)), 3 * x + random.normal(size=300) - 100),
    "ties in both": (random.integers(0, 4, 200) / 4, random.integers(0, 11, 200) / 2),
    "ties in one": (random.normal(size=50), random.integers(0, 2, 50)),
    "far from zero": (1e6 + random.normal(size=100), random.normal(size=100)),
    "two rows": (np.array([1.0, 2.0]), np.array([5.0, 3.0])),
    "perfect": (np.arange(10.0), 2 * np.arange(10.0) + 1),
    "reversed": (np.arange(10.0), -(np.arange(10.0) ** 3)),
    "large": (random.normal(size=30) * 1e200, random.normal(size=30)),
    "small": (random.normal(size=30) * 1e-200, random.normal(size=30)),
    "bool and int": (random.integers(0, 2, 40).astype(bool), random.integers(0, 3, 40)),
}


@pytest.mark.parametrize("case", CASES)
def test_against_scipy(case):
    p, t = CASES[case]
    assert pearson(p, t) == pytest.approx(scipy.stats.pearsonr(p.astype(float), t.astype(float))[0], abs=1e-12)
    assert spearman(p, t) == pytest.approx(scipy.stats.spearmanr(p, t)[0], abs=1e-12)
    np.testing.assert_array_equal(ranks(p), scipy.stats.rankdata(p, "average"))
    assert -1 <= pearson(p, t) <= 1 and -1 <= spearman(p, t) <= 1


def test_tensors_and_the_mean_of_both():
    p, t = CASES["correlated"]
    found = regression_metrics(torch.tensor(p), torch.tensor(t))
    assert found["mse"] == pytest.approx(torch.nn.functional.mse_loss(torch.tensor(p), torch.tensor(t)).item(), rel=1e-12)
    assert found["pearson_spearman"] == pytest.approx((found["pearson"] + found["spearman"]) / 2)
    assert found["pearson"] != found["spearman"]


@pytest.mark.filterwarnings("ignore::scipy.stats.ConstantInputWarning")
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e100])
def test_a_constant_is_undefined_and_not_nan(constant):
    """The mean of three times 0.1 is not 0.1, so that rounding noise would be correlated; scipy answers NaN."""
    p, t = np.full(3, constant), np.array([1.0, 2.0, 4.0])
    assert np.isnan(scipy.stats.spearmanr(p, t)[0])
    for a, b in ((p, t), (t, p), (p, p)):
        assert pearson(a, b) is None and spearman(a, b) is None
    found = regression_metrics(p, t)
    assert found["mse"] == pytest.approx(((p - t) ** 2).mean()) and found["pearson_spearman"] is None
    assert pearson(np.array([1.0]), np.array([2.0])) is None


def test_a_mean_that_no_float_can_be_is_undefined(recwarn):
    assert mean_squared_error([1e200, 0.0], [0.0, 0.0]) is None and not recwarn.list
    assert mean_squared_error([2.0**500, 0.0], [0.0, 0.0]) == 2.0**999


def test_ties_ranked_by_their_place_give_another_figure():
    p, t = np.array([1.0, 1, 2, 2]), np.array([2.0, 1, 4, 3])
    naive = np.corrcoef(p.argsort(kind="stable").argsort(kind="stable"), t.argsort().argsort())[0, 1]
    assert naive == pytest.approx(0.6)
    assert spearman(p, t) == pytest.approx(2 / 5**0.5) == pytest.approx(scipy.stats.spearmanr(p, t)[0])


def test_a_column_of_predictions_is_refused():
    """(N, 1) against (N) broadcasts to N x N: perfect predictions then have an error of 4/3."""
    p, t = np.array([[1.0], [2.0], [3.0]]), np.array([1.0, 2.0, 3.0])
    assert ((p - t) ** 2).mean() == pytest.approx(4 / 3)
    assert mean_squared_error(p[:, 0], t) == 0
    for metric in (mean_squared_error, pearson, spearman):
        with pytest.raises(ValueError, match=r"expected to be \(N\).*\(3, 1\) and \(3,\)"):
            metric(p, t)
        with pytest.raises(ValueError, match=r"row 1: the prediction is not finite"):
            metric(np.array([1.0, np.nan, 2.0]), t)
        with pytest.raises(ValueError, match=r"row 2: the target is not finite"):
            metric(t, np.array([1.0, 2.0, np.inf]))
        with pytest.raises(ValueError, match="N > 0"):
            metric(np.array([]), np.array([]))
