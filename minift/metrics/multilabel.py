"""Metrics of multi-label classification: every row has any number of the L labels, none of them included.

    precision = TP / predicted,   recall = TP / gold,   F1 = 2 TP / (predicted + gold),   each 0 where it is 0/0

per class; micro: of the sums over the classes; macro: mean over all the classes, those without a row included. Subset accuracy:
the share of the rows whose labels are all right, which is what scikit-learn's accuracy_score gives for such rows.

    AP = sum_k (R_k - R_{k-1}) P_k      over the distinct scores, from the highest down

with precision P_k and recall R_k of what scores at least the k-th: equal scores are taken in or left out together. The mean over
the classes is mAP. The trapezoids below the precision-recall curve are another figure: of two equal scores, one of them of a
positive row, their area is 0.75 and AP is 0.5.

All equal to scikit-learn's, zero_division=0, at 1e-12 (tests/reference/test_metrics_multilabel.py); as there, the AP of a class
without a positive row is 0 and counts in the mean. `rows` of per_class tells which classes those are.

Axes: N rows, L labels, K cut points.
"""

import numpy as np


def label_counts(gold, predicted) -> np.ndarray:
    """(3, L): rows where a label is right and predicted, rows where it is predicted, rows that have it. Parts add up.

    gold, predicted: (N, L) of 0 and 1 or of truth values.
    """
    gold, predicted = check(gold, "gold"), check(predicted, "predicted")
    if gold.shape != predicted.shape:
        raise ValueError(f"gold {gold.shape} and predicted {predicted.shape} are expected to have one shape")
    return np.stack([(gold & predicted).sum(0), predicted.sum(0), gold.sum(0)])


def check(labels, name: str) -> np.ndarray:
    """(N, L) truth values. Raises ValueError for another shape and for other numbers than 0 and 1, as scores would be."""
    labels = np.asarray(labels)
    if labels.ndim != 2 or not np.isin(labels, (0, 1)).all():
        raise ValueError(f"{name}: (N, L) of 0 and 1 is expected, found {labels.shape} {labels.dtype}")
    return labels.astype(bool)


def check_scores(gold, scores) -> tuple[np.ndarray, np.ndarray]:
    gold, scores = check(gold, "gold"), np.asarray(scores, dtype=np.float64)
    if gold.shape != scores.shape or not np.isfinite(scores).all():
        raise ValueError(f"scores: finite numbers of the shape {gold.shape} are expected, found {scores.shape}")
    return gold, scores


def f1(right, predicted, gold):
    return 2 * right / np.maximum(predicted + gold, 1)


def prf(right, predicted, gold) -> dict:
    """precision, recall and F1 from counts, numbers or arrays."""
    return {"precision": right / np.maximum(predicted, 1), "recall": right / np.maximum(gold, 1), "f1": f1(right, predicted, gold)}


def per_class(counts: np.ndarray) -> dict[str, np.ndarray]:
    """precision, recall, f1 and rows of every label, (L) each. counts: (3, L), of label_counts."""
    return prf(*counts) | {"rows": counts[2]}


def multilabel_metrics(counts: np.ndarray) -> dict[str, float]:
    """precision, recall and f1 with _micro and _macro. counts: (3, L), of label_counts."""
    means = {"micro": prf(*counts.sum(1)), "macro": {name: values.mean() for name, values in prf(*counts).items()}}
    return {f"{name}_{how}": float(value) for how, values in means.items() for name, value in values.items()}


def subset_accuracy(gold, predicted) -> float:
    """The share of the rows all of whose labels are right. gold, predicted: (N, L) of 0 and 1."""
    return float((check(gold, "gold") == check(predicted, "predicted")).all(1).mean())


# ---- from scores ----


def cut_points(gold: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(distinct scores from the highest down, TP at each as the threshold, number predicted), (K) each. gold, scores: (N)."""
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], gold[order].cumsum()
    last = np.append(scores[1:] != scores[:-1], True)  # of equal scores the last row stands for all
    return scores[last], right[last], np.arange(1, len(scores) + 1)[last]


def average_precision(gold, scores) -> np.ndarray:
    """(L) AP of every label, 0 where no row has it. gold: (N, L) of 0 and 1; scores: (N, L), probabilities or logits."""
    gold, scores = check_scores(gold, scores)
    found = np.zeros(gold.shape[1])
    for j in range(gold.shape[1]):
        _, right, predicted = cut_points(gold[:, j], scores[:, j])
        found[j] = np.diff(right, prepend=0) @ (right / predicted) / max(gold[:, j].sum(), 1)
    return found


def mean_average_precision(gold, scores) -> float:
    """Mean of the AP of all labels, those without a row counted as 0, as scikit-learn does."""
    return float(average_precision(gold, scores).mean())


def best_threshold(gold: np.ndarray, scores: np.ndarray, default: float = 0.5) -> float:
    """The threshold t of the highest F1, where scores >= t is predicted. gold: (N) of truth values; scores: (N).

    All distinct cut points are tried. Of cut points with equal F1 the highest is taken, so that the fewest rows are predicted. The
    threshold lies halfway between the lowest score taken in and the highest left out, or is the former where none is left out.
    Where no row has the label, every threshold has the F1 0 and `default` is returned. The F1 on the rows that chose the threshold
    is optimistic: choose it on validation rows and say so. Test: test_thresholds_by_enumeration.
    """
    if not gold.any():
        return default
    cuts, right, predicted = cut_points(gold, scores)
    best = int(f1(right, predicted, gold.sum()).argmax())  # the first of equals
    if best + 1 == len(cuts):
        return float(cuts[best])
    between = cuts[best + 1] + (cuts[best] - cuts[best + 1]) / 2
    return float(between if cuts[best + 1] < between else cuts[best])  # of neighbouring floats the middle is one of them


def tune_thresholds(gold, scores, default: float = 0.5) -> np.ndarray:
    """(L) thresholds, of every label its own best. They maximise the macro F1, which is a mean over labels; micro F1 they need not.

    gold: (N, L) of 0 and 1; scores: (N, L). See best_threshold.
    """
    gold, scores = check_scores(gold, scores)
    return np.array([best_threshold(g, s, default) for g, s in zip(gold.T, scores.T, strict=True)])


def tune_threshold(gold, scores, default: float = 0.5) -> float:
    """One threshold for all labels, which maximises the micro F1. gold: (N, L) of 0 and 1; scores: (N, L). See best_threshold."""
    gold, scores = check_scores(gold, scores)
    return best_threshold(gold.reshape(-1), scores.reshape(-1), default)
