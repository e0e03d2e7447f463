"""What a file holds, row by row, before it becomes numbers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from minift.data.stored import take
from minift.errors import UserError


@dataclass
class Examples:
    """The rows of one source. A subclass holds one kind of input, as lists with an entry for each row, or as what stands in
    their place where a file is large (stored.py).

    Such a subclass names its lists in ROWS, the first of which is always there; the others may be None.
    """

    path: Path  # the file or directory that was named; of inputs that come from none, as predict() gets them, what errors call them
    decided: list[str] = field(default_factory=list, kw_only=True)  # how it was read: what to tell the user
    lines: Sequence[int] | None = field(default=None, kw_only=True)  # line of the file on which each row begins; None: no such file
    columns: dict[str, Sequence] = field(default_factory=dict, kw_only=True)  # the row's other cells, as an id, for predictions
    given: bool = field(default=False, kw_only=True)  # the inputs were given one by one, not by a file

    ROWS: ClassVar[tuple[str, ...]]
    UNIT: ClassVar[str] = "row"  # what errors call one of them
    shortened = 0  # labels of which --label-part has kept a part

    def __len__(self) -> int:
        return len(getattr(self, self.ROWS[0]))

    def take(self, rows: np.ndarray) -> "Examples":
        """The rows with these numbers, in this order."""
        lists = {name: getattr(self, name) for name in (*self.ROWS, "lines")}
        taken = take(lists | {(name,): values for name, values in self.columns.items()}, rows)
        columns = {name: taken.pop((name,)) for name in self.columns}
        return replace(self, **taken, columns=columns)

    def inputs(self) -> Sequence[dict]:
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


@dataclass
class Blocks:
    """The rows of a source to predict, in order, some at a time, so that they need not all be in memory. They are read once."""

    count: int  # of all rows
    decided: list[str]  # how they are read: what to tell the user
    examples: Iterator[Examples]


def check_characters(text: str, where: str) -> None:
    """Raises UserError where a text cannot be written as UTF-8. where: what the text is, or its place."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        # Python keeps the bytes of names and arguments that are not UTF-8 as these characters.
        what = (
            f"a byte that is not UTF-8 (0x{code - 0xDC00:02x})"
            if 0xDC80 <= code <= 0xDCFF
            else "half of a character (a lone surrogate), as of an emoji cut in two"
        )
        shown = text[max(0, error.start - 100) : error.start + 100]
        raise UserError(f"{where}: {what} in {shown!r}; fix the text or rename the file") from None


def listed(source: Iterable, what: str) -> list:
    """The inputs that an iterable holds, which is gone through once. what: of which kind they are, for the error."""
    several = getattr(source, "ndim", 1) != 1  # a data frame would be gone through by its columns
    if isinstance(source, Mapping | Set | bytes) or several or not isinstance(source, Iterable):
        raise UserError(f"a list of {what} is expected, found {type(source).__name__}")
    return list(source)
