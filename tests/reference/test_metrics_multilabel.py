"""Metrics of multi-label classification against scikit-learn's; thresholds against trying all of them."""

import numpy as np
import pytest
import sklearn.metrics

from minift.metrics.multilabel import (
    average_precision,
    best_threshold,
    label_counts,
    mean_average_precision,
    multilabel_metrics,
    per_class,
    subset_accuracy,
    tune_threshold,
    tune_thresholds,
)

random = np.random.default_rng(0)


def drawn(rows: int, labels: int, share: float, steps: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """gold and scores; steps: that many different scores, so that many are equal."""
    gold = random.random((rows, labels)) < share
    scores = np.clip(0.4 * gold + 0.6 * random.random((rows, labels)), 0, 1)
    return gold, scores if steps is None else np.round(scores * steps) / steps


CASES = {
    "random": drawn(200, 5, 0.4),
    "equal scores": drawn(200, 5, 0.3, 4),
    "one label": drawn(30, 1, 0.5),
    "rare labels, some without a row, rows without a label": drawn(20, 12, 0.04),
    "all labels on all rows": (np.ones((6, 3), bool), random.random((6, 3))),
    "no label at all": (np.zeros((6, 3), bool), random.random((6, 3))),
    "no label predicted": (np.ones((6, 3), bool), 0.4 * random.random((6, 3))),
    "one row": (np.array([[True, False, True]]), np.array([[0.7, 0.8, 0.2]])),
}


@pytest.mark.filterwarnings("ignore:No positive class")
@pytest.mark.parametrize("case", CASES)
def test_against_scikit_learn(case):
    gold, scores = CASES[case]
    predicted = scores >= 0.5
    # scikit-learn takes one column for plain two classes; a second label without a row leaves it multi-label
    wide = [np.pad(a, ((0, 0), (0, 1))) if a.shape[1] == 1 else a for a in (gold, predicted, scores)]
    counts = label_counts(wide[0], wide[1])
    ours = multilabel_metrics(counts)
    for how in ("micro", "macro"):
        expected = sklearn.metrics.precision_recall_fscore_support(wide[0], wide[1], average=how, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), expected, strict=False):
            assert ours[f"{name}_{how}"] == pytest.approx(value, abs=1e-12)
    expected = sklearn.metrics.precision_recall_fscore_support(wide[0], wide[1], average=None, zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "rows"), expected, strict=True):
        np.testing.assert_allclose(per_class(counts)[name], values, rtol=0, atol=1e-12)
    assert subset_accuracy(gold, predicted) == pytest.approx(sklearn.metrics.accuracy_score(wide[0], wide[1]), abs=1e-12)
    expected = sklearn.metrics.average_precision_score(wide[0], wide[2], average=None)
    np.testing.assert_allclose(average_precision(wide[0], wide[2]), expected, rtol=0, atol=1e-12)
    expected = sklearn.metrics.average_precision_score(gold, scores, average="macro")
    assert mean_average_precision(gold, scores) == pytest.approx(expected, abs=1e-12)


def test_counts_of_parts_add_up():
    gold, scores = CASES["random"]
    whole = label_counts(gold, scores >= 0.5)
    assert np.array_equal(whole, sum(label_counts(gold[i : i + 7], scores[i : i + 7] >= 0.5) for i in range(0, len(gold), 7)))


def test_the_mean_of_the_f1_of_batches_is_another_figure():
    gold, predicted = np.array([[1, 0], [1, 0], [0, 1]]), np.array([[1, 0], [0, 0], [0, 1]])
    batches = [multilabel_metrics(label_counts(gold[rows], predicted[rows]))["f1_micro"] for rows in ([0, 1], [2])]
    assert sum(batches) / 2 == pytest.approx(5 / 6)
    assert multilabel_metrics(label_counts(gold, predicted))["f1_micro"] == pytest.approx(4 / 5)


def test_a_row_without_a_label_is_a_row():
    """It can be wrong by what is predicted, and counts in subset accuracy; left out, the figures rise."""
    gold, predicted = np.array([[1, 0], [0, 0], [0, 0]]), np.array([[1, 0], [0, 1], [0, 0]])
    kept = gold.any(1)
    assert multilabel_metrics(label_counts(gold[kept], predicted[kept]))["f1_micro"] == 1.0
    assert multilabel_metrics(label_counts(gold, predicted))["f1_micro"] == pytest.approx(2 / 3)
    assert subset_accuracy(gold, predicted) == pytest.approx(2 / 3)


def test_average_precision_takes_equal_scores_together_and_draws_no_lines():
    gold, scores = np.array([[1], [0]]), np.array([[0.5], [0.5]])
    precision, recall, _ = sklearn.metrics.precision_recall_curve(gold[:, 0], scores[:, 0])
    assert sklearn.metrics.auc(recall, precision) == 0.75
    assert average_precision(gold, scores).tolist() == [0.5] == average_precision(gold[::-1], scores).tolist()


@pytest.mark.filterwarnings("ignore:No positive class")
def test_a_label_without_a_row_counts_as_zero():
    gold, scores = np.array([[1, 0], [0, 0]]), np.array([[0.9, 0.8], [0.1, 0.2]])
    assert average_precision(gold, scores).tolist() == [1.0, 0.0]
    assert mean_average_precision(gold, scores) == 0.5 == sklearn.metrics.average_precision_score(gold, scores)


def by_enumeration(gold: np.ndarray, scores: np.ndarray) -> tuple[float, int]:
    """(the highest F1 of any threshold that predicts at least one row, the fewest rows predicted with it)."""
    tried = [(sklearn.metrics.f1_score(gold, scores >= t, zero_division=0), -int((scores >= t).sum())) for t in np.unique(scores)]
    best, rows = max((round(f1, 12), rows) for f1, rows in tried)
    return best, -rows


@pytest.mark.parametrize("case", CASES)
def test_thresholds_by_enumeration(case):
    gold, scores = CASES[case]
    for g, s, t in zip(gold.T, scores.T, tune_thresholds(gold, scores), strict=True):
        if not g.any():
            assert t == 0.5
            continue
        found = sklearn.metrics.f1_score(g, s >= t, zero_division=0)
        assert (round(found, 12), int((s >= t).sum())) == by_enumeration(g, s)
    if gold.any():
        t = tune_threshold(gold, scores)
        found = sklearn.metrics.f1_score(gold.reshape(-1), (scores >= t).reshape(-1), zero_division=0)
        assert (round(found, 12), int((scores >= t).sum())) == by_enumeration(gold.reshape(-1), scores.reshape(-1))


def test_thresholds_of_few_rows_by_enumeration():
    for _ in range(300):
        gold, scores = random.integers(0, 2, 6), random.integers(0, 5, 6) / 4
        if gold.any():
            t = best_threshold(gold.astype(bool), scores)
            found = sklearn.metrics.f1_score(gold, scores >= t, zero_division=0)
            assert (round(found, 12), int((scores >= t).sum())) == by_enumeration(gold, scores)


def test_a_threshold_is_halfway_and_the_same_in_every_order():
    gold, scores = np.array([1, 1, 0, 0], bool), np.array([0.9, 0.7, 0.3, 0.1])
    order = random.permutation(4)
    assert best_threshold(gold, scores) == pytest.approx(0.5) == best_threshold(gold[order], scores[order])
    assert best_threshold(np.array([1, 0], bool), np.array([0.2, 0.2])) == 0.2  # both or none
    assert best_threshold(np.array([0, 0], bool), np.array([0.2, 0.9]), default=0.3) == 0.3
    above = np.nextafter(0.2, 1)
    assert best_threshold(np.array([1, 0], bool), np.array([above, 0.2])) == above  # nothing lies between
    # F1 is 2/3 at 0.9 and again, with all three rows, at 0.4: the higher
    assert 0.9 >= best_threshold(np.array([1, 0, 0, 1], bool), np.array([0.9, 0.6, 0.5, 0.4])) > 0.6


def test_default_and_tuned_thresholds_differ():
    """The figure at 0.5 says little of a model whose scores are all low: micro F1 0 against 1."""
    gold, scores = np.array([[1, 0], [0, 1], [0, 0]]), np.array([[0.4, 0.1], [0.1, 0.3], [0.1, 0.1]])
    assert multilabel_metrics(label_counts(gold, scores >= 0.5))["f1_micro"] == 0
    assert multilabel_metrics(label_counts(gold, scores >= tune_threshold(gold, scores)))["f1_micro"] == 1
    assert multilabel_metrics(label_counts(gold, scores >= tune_thresholds(gold, scores)))["f1_macro"] == 1


def test_what_is_no_label_is_refused():
    with pytest.raises(ValueError, match=r"predicted: .* of 0 and 1"):
        label_counts(np.array([[1, 0]]), np.array([[0.7, 0.2]]))  # scores, not yet compared with a threshold
    with pytest.raises(ValueError, match="gold: "):
        label_counts(np.array([1, 0]), np.array([1, 0]))
    with pytest.raises(ValueError, match="one shape"):
        label_counts(np.ones((2, 3), int), np.ones((3, 2), int))
    with pytest.raises(ValueError, match="finite numbers"):
        tune_threshold(np.array([[1, 0]]), np.array([[0.7, np.nan]]))
