"""The figures of a split for each value of a column, as the kind of a review or the source of a row: --by COLUMN."""

from collections.abc import Callable

import numpy as np

from minift.data.examples import Examples
from minift.errors import UserError
from minift.outputs import as_cell
from minift.tables import table
from minift.training import Scores

MOST = 100  # values of such a column


def rows_by(examples: Examples, column: str) -> dict[str, np.ndarray]:
    """Value -> numbers of its rows, in the order in which the values first come.

    Raises UserError for a column that the file does not have besides those of the task, and for one of more than MOST values.
    """
    if column not in examples.columns:
        known = ", ".join(examples.columns) or "none"
        raise UserError(f"--by {column}: {examples.path} has no such column besides those of the task; others: {known}")
    rows: dict[str, list[int]] = {}
    for i, value in enumerate(examples.columns[column]):
        rows.setdefault(value if isinstance(value, str) else as_cell(value), []).append(i)
    if len(rows) > MOST:
        raise UserError(f"--by {column}: {examples.path} has {len(rows):,} values in it, expected at most {MOST}")
    return {value: np.array(numbers) for value, numbers in rows.items()}


def scores_by(examples: Examples, column: str, score: Callable[[Examples], Scores]) -> dict[str, dict[str, float | None]]:
    """Value -> the number of its rows and the metrics over them. Proved by tests/test_slices.py."""
    by = rows_by(examples, column)
    return {value: {"rows": len(rows)} | score(examples.take(rows)).metrics for value, rows in by.items()}


def table_by(column: str, figures: dict[str, dict[str, float | None]]) -> str:
    header = next(iter(figures.values()))
    return table([column, *header], [[value, *row.values()] for value, row in figures.items()])
