"""What a file holds, row by row, before it becomes numbers."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np


@dataclass
class Examples:
    """The rows of one source. A subclass holds one kind of input, as lists with an entry for each row.

    Such a subclass names its lists in ROWS, the first of which is always there; the others may be None.
    """

    path: Path  # the file or directory that was named
    decided: list[str] = field(default_factory=list, kw_only=True)  # how it was read: what to tell the user
    lines: list[int] | None = field(default=None, kw_only=True)  # line of the file on which each row begins; None: no such file

    ROWS: ClassVar[tuple[str, ...]]

    def __len__(self) -> int:
        return len(getattr(self, self.ROWS[0]))

    def take(self, rows: np.ndarray) -> "Examples":
        """The rows with these numbers, in this order."""
        lists = {name: getattr(self, name) for name in (*self.ROWS, "lines")}
        return replace(self, **{name: [values[i] for i in rows] for name, values in lists.items() if values is not None})

    def inputs(self) -> list[dict]:
        """The input of each row, as predictions repeat it."""
        raise NotImplementedError

    def example(self) -> str:
        """An input as one writes it on the command line of predict."""
        raise NotImplementedError

    def place(self, row: int) -> str:
        """Where to look for a row, to be put before its input; empty where the input itself says so."""
        return "" if self.lines is None else f"line {self.lines[row]}: "

    def where(self, row: int) -> str:
        """The place of a row in an error."""
        return str(self.path) if self.lines is None else f"{self.path}:{self.lines[row]}"

    def strata(self) -> list | None:
        """For each row what a split shall keep in proportion, as its class; None: nothing."""
        return None

    def groups(self) -> list | None:
        """For each row the group that a split must not part, as the context of a question; None: every row stands alone."""
        return None
