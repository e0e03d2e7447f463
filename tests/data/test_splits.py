"""A part of the rows held back: in proportion, by whole groups, the same part each time."""

from pathlib import Path

import numpy as np
import pytest

from minift.data.examples import Examples
from minift.data.splits import drawn, split
from minift.data.texts import Texts
from minift.errors import UserError


class Grouped(Texts):
    def groups(self):
        return self.columns.get("group")


def rows(labels: list | None = None, groups: list | None = None, n: int | None = None) -> Examples:
    n = len(labels or groups or range(n))
    columns = {} if groups is None else {"group": groups}
    return Grouped(Path("rows.csv"), ["a"] * n, None, labels, columns=columns)


def test_split_is_stratified_and_repeats():
    labels = ["a"] * 50 + ["b"] * 30 + ["c"] * 2 + ["d"]
    kept, held = split(rows(labels), 0.1, 0)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    assert [sum(labels[i] == name for i in held) for name in "abcd"] == [5, 3, 0, 0]
    again, other = split(rows(labels), 0.1, 0), split(rows(labels), 0.1, 1)
    assert np.array_equal(held, again[1]) and not np.array_equal(held, other[1])


def test_rows_are_drawn_by_class():
    labels = ["a"] * 50 + ["b"] * 30 + ["c"] * 20
    some, again, other = (drawn(rows(labels), 20, seed, "--train-rows") for seed in (0, 0, 1))
    assert [some.labels.count(name) for name in "abc"] == [10, 6, 4]
    assert some.decided == ["20 of the 100 rows drawn"] and some.labels == again.labels == other.labels
    numbered = [drawn(rows(labels=[str(i % 2) for i in range(40)], groups=list(range(40))), 10, seed, "") for seed in (0, 0, 1)]
    first, second, third = (part.columns["group"] for part in numbered)
    assert first == second != third and len({*first}) == 10
    assert drawn(one := rows(labels), None, 0, "") is one and drawn(one, 100, 0, "") is one
    with pytest.raises(UserError, match=r"--test-rows 101: rows.csv has 100"):
        drawn(rows(labels), 101, 0, "--test-rows")


def test_split_without_groups_holds_back_the_rows_that_it_always_did():
    """Recorded before groups were known: a validation part must not change under a run that is repeated."""
    labels = ["a"] * 50 + ["b"] * 30 + ["c"] * 2 + ["d"]
    assert split(rows(labels), 0.1, 0)[1].tolist() == [2, 4, 18, 23, 36, 55, 57, 78]
    assert split(rows(labels), 0.1, 7)[1].tolist() == [10, 20, 24, 45, 46, 53, 71, 77]
    labels = list("xzxyxyyyzyxxyxyyzxzyyzxzxyxxxzzxyzxyzxzxyyzxyxzxyyxyzzxxzzyx")
    held = [0, 14, 15, 16, 23, 26, 31, 45, 47, 48, 51, 52]
    assert split(rows(labels), 0.2, 3)[1].tolist() == held
    assert split(rows(labels, groups=list(range(60))), 0.2, 3)[1].tolist() == held  # groups of one row are no groups


def test_split_of_few_rows_a_class_holds_back_one_of_each():
    examples = rows([f"{i % 50}" for i in range(200)] + ["alone"])
    kept, held = split(examples, 0.1, 0)
    assert sorted(examples.labels[i] for i in held) == sorted(map(str, range(50))) and 200 in kept
    assert examples.decided == ["10 % rounds to no row of any class: 50 held back, one of each class that has two or more"]


def test_split_of_rows_without_strata_is_random():
    kept, held = split(rows(n=100), 0.1, 0)
    assert len(held) == 10 and sorted([*kept, *held]) == list(range(100))
    assert held.tolist() != split(rows(n=100), 0.1, 1)[1].tolist()
    assert len(split(rows([0.5] * 30), 0.1, 0)[1]) == 3  # numbers are no classes
    assert len(split(rows(n=3), 0.1, 0)[1]) == 1


@pytest.mark.parametrize("labels", [["a", "b"], ["a"]])
def test_split_of_too_few_rows_is_an_error(labels):
    with pytest.raises(
        UserError, match=rf"rows.csv: {len(labels)} rows are too few to hold 10 % back for validation; give --valid"
    ):
        split(rows(labels), 0.1, 0)


def test_split_never_parts_a_group():
    random = np.random.default_rng(0)
    for seed in range(20):
        groups = random.integers(0, 80, 400).tolist()
        labels = [str(v) for v in random.integers(0, 3, 400)]
        examples = rows(labels, groups)
        kept, held = split(examples, 0.1, seed)
        assert not {groups[i] for i in kept} & {groups[i] for i in held}
        assert sorted([*kept, *held]) == list(range(400))
        for name in "012":
            assert abs(sum(labels[i] == name for i in held) - 0.1 * labels.count(name)) <= 3
        assert {labels[i] for i in kept} == {"0", "1", "2"}
        assert examples.decided == [f"split by group: {len(set(groups))} groups, none of which stands on both sides"]


def test_split_by_groups_without_strata():
    groups = [i // 7 for i in range(210)]
    kept, held = split(rows(groups=groups), 0.1, 0)
    assert len(held) == 21 and not {groups[i] for i in kept} & {groups[i] for i in held}
    kept, held = split(rows(groups=[0] * 50 + [1] * 40), 0.1, 0)  # whole groups only: the smaller one
    assert held.tolist() == list(range(50, 90))
    with pytest.raises(UserError, match="too few to hold 10 % back"):
        split(rows(groups=[0] * 50), 0.1, 0)
