"""Weights of classes against scikit-learn, balanced epochs by counting."""

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from minift.data.balance import class_weights, evenly
from minift.data.batching import shuffled
from minift.data.tokenising import Encoded

CLASSES = np.repeat([0, 1, 3], [70, 25, 5])  # class 2 has no row


def test_class_weights_are_scikit_learns():
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=CLASSES)
    weights = class_weights(CLASSES, 4)
    np.testing.assert_allclose(weights[[0, 1, 3]], expected, rtol=1e-15)
    assert weights[2] == 1 and weights[CLASSES].mean() == pytest.approx(1)


def test_an_epoch_draws_every_class_equally_often():
    shares, seen = [], set()
    for epoch in range(30):
        rows = evenly(CLASSES, np.random.default_rng((1, epoch)))
        assert len(rows) == 100
        counts = np.bincount(CLASSES[rows], minlength=4)
        assert counts[2] == 0 and sorted(counts[[0, 1, 3]]) == [33, 33, 34]
        shares.append(counts[[0, 1, 3]])
        of_row = np.bincount(rows, minlength=100)
        assert of_row[:70].max() == 1  # of the frequent class some are left out
        for members in (of_row[70:95], of_row[95:]):
            assert members.max() - members.min() <= 1 and members.min() >= 1  # of rare ones each as often as another
        seen |= {*rows.tolist()}
    assert len(seen) == 100  # other rows are left out in each epoch
    assert np.mean(shares, 0) == pytest.approx([100 / 3] * 3, abs=0.25)  # the odd row goes to each class in turn
    naive = np.random.default_rng(0).choice(100, 100, p=class_weights(CLASSES, 4)[CLASSES] / 100)  # WeightedRandomSampler
    assert not {*range(70, 95)} <= {*naive.tolist()}, "drawn with replacement, rows of rare classes are missed by chance"


def test_the_order_is_a_function_of_seed_and_epoch():
    random = np.random.default_rng(0)
    lengths = random.integers(2, 9, 100)
    tokens = [np.arange(n) for n in lengths]
    data = Encoded(tokens, None, lengths, (CLASSES,), 0, 9, 0, even=CLASSES)
    one, again, other, seed = (data.order(8, *key) for key in ((1, 5), (1, 5), (1, 6), (2, 5)))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    for different in (other, seed):
        assert not all(len(a) == len(b) and (a == b).all() for a, b in zip(one, different, strict=True))
    assert sum(map(len, one)) == 100 and len(one) == len(shuffled(lengths, 8, 1, 5))
    plain = Encoded(tokens, None, lengths, (CLASSES,), 0, 9, 0)
    assert sorted(np.concatenate(plain.order(8, 1, 5))) == list(range(100))
