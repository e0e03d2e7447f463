"""Classes of unequal size: weights of the classes in the loss, and epochs that draw from every class equally often.

    w_c = N / (K n_c)        of a class, of which n_c of the N rows are; K classes have a row (scikit-learn's "balanced")
    w_l = (N - n_l) / n_l    of having the label l, where a row may have several (torch's pos_weight)

Either one makes a rare class count as much as a frequent one: weights by larger gradients, draws by more of them. What comes out
is no longer a probability of the data: a rare class is predicted more often than it occurs.

Proved by tests/reference/test_balance.py, against scikit-learn and by counting.
Axes: N rows, C classes, L labels.
"""

import numpy as np


def class_weights(classes: np.ndarray, C: int) -> np.ndarray:
    """(C) weights of mean 1 over the rows; 1 for a class without a row. classes: (N) integers in 0 .. C-1."""
    n = np.bincount(classes, minlength=C)
    return np.where(n, len(classes) / (np.count_nonzero(n) * np.maximum(n, 1)), 1.0)


def positive_weights(sets: np.ndarray) -> np.ndarray:
    """(L) of each label the rows without it by the rows with it; 1 where all rows have it, or none. sets: (N, L) of 0 and 1."""
    n = sets.sum(0)
    return np.where((n > 0) & (n < len(sets)), (len(sets) - n) / np.maximum(n, 1), 1.0)


def evenly(classes: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """(N) numbers of rows, of every class equally many, up to one: which classes have one more is drawn.

    Of a class with fewer rows than its share every row is taken as often as another, up to once; of one with more some are left
    out, others in each epoch. So an epoch has as many steps as without. classes: (N).
    """
    rows = [np.flatnonzero(classes == one) for one in np.unique(classes)]
    share, more = divmod(len(classes), len(rows))
    shares = share + (random.permutation(len(rows)) < more)
    taken = []
    for of_class, n in zip(rows, shares, strict=True):
        whole, rest = divmod(int(n), len(of_class))
        taken += [np.tile(of_class, whole), random.permutation(of_class)[:rest]]
    return np.concatenate(taken)
