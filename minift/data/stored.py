"""The rows of a large file: in a temporary file that is gone with the process, and read again as they are asked for.

A row in memory costs several times its length, as each of its cells is an object. On disk it costs at most 4 bytes, the number
of the row in a split. The file is where the system has temporary ones; where these lie in memory, as /tmp may, TMPDIR should
name another directory. Proved by tests/data/test_stored.py.
"""

import marshal
import os
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from minift.errors import UserError

LARGE = 4 << 20  # bytes: about 80,000 short rows, which would take 50 MB of memory, and 2 to 3 seconds to tokenise
BLOCK = 64  # rows that are read and written together


def user_cache() -> Path:
    """Where is kept what many runs of a user can take: the same directory wherever a run is started.

    A relative $XDG_CACHE_HOME is none, as its specification says. Where the user has no home it is a path that cannot be made.
    """
    named, home = os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~")
    if os.path.isabs(named):
        return Path(named) / "minift"
    return Path(home if os.path.isabs(home) and os.environ.get("HOME") != "" else os.devnull) / ".cache" / "minift"


class Stored:
    """Values that marshal knows, as the cells of a row, in a file: block by block, of which one is in memory."""

    def __init__(self, file, starts: np.ndarray, numbers: range | np.ndarray):
        """starts: where each block begins, and where the last one ends. numbers: those of the values in the file that this is."""
        self.file, self.starts, self.numbers = file, starts, numbers
        self.held, self.block = -1, []

    @classmethod
    def of(cls, values: Iterable) -> "Stored":
        file, starts, count = tempfile.TemporaryFile(), [0], 0  # noqa: SIM115
        values = iter(values)
        try:
            while some := list(islice(values, BLOCK)):
                starts.append(starts[-1] + file.write(marshal.dumps(some, 2)))
                count += len(some)
            file.flush()
        except ValueError:
            place = f"one of the rows {count + 1:,} to {count + len(some):,}"
            raise UserError(f"{place}: JSON that is nested too deep; one flat object a line is expected") from None
        except OSError as error:
            raise UserError(f"{tempfile.gettempdir()}: no room for the rows of a large file ({error.strerror}); "
                            "the environment variable TMPDIR names another directory") from None  # fmt: skip
        return cls(file, np.array(starts), range(count))

    @property
    def size(self) -> int:
        """Bytes of these values in the file, if all are of the same length."""
        return int(self.starts[-1]) * len(self) // max(BLOCK * (len(self.starts) - 1), 1)

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator:
        numbers = self.numbers
        return map(self.value, numbers if isinstance(numbers, range) else memoryview(numbers))

    def value(self, number: int):
        block, i = divmod(number, BLOCK)
        if block != self.held:
            self.file.seek(self.starts[block])
            self.held, self.block = block, marshal.loads(self.file.read(self.starts[block + 1] - self.starts[block]))
        return self.block[i]

    def take(self, rows: np.ndarray | slice) -> "Stored":
        numbers = self.numbers
        if isinstance(numbers, range) and not isinstance(rows, slice):
            numbers = np.arange(numbers.start, numbers.stop, numbers.step, dtype=np.min_scalar_type(len(self.starts) * BLOCK))
        return Stored(self.file, self.starts, numbers[rows])


class View(Sequence):
    """What a function makes of each stored value, made anew whenever it is asked for. A sequence like a list, but for `==`."""

    def __init__(self, stored: Stored, made: Callable):
        self.stored, self.made = stored, made

    def __len__(self) -> int:
        return len(self.stored)

    def __iter__(self) -> Iterator:
        return map(self.made, self.stored)

    def __getitem__(self, row: int | slice):
        if isinstance(row, slice):
            return View(self.stored.take(row), self.made)
        return self.made(self.stored.value(int(self.stored.numbers[row])))


class Few(Sequence):
    """Values of which few differ, as labels: each of these once, and for each row a number of 1 to 4 bytes."""

    def __init__(self, values: Iterable):
        known: dict = {}
        codes = array("I", (known.setdefault(tuple(one) if isinstance(one, list) else one, len(known)) for one in values))
        self.values = [list(one) if isinstance(one, tuple) else one for one in known]
        self.codes = np.array(codes, dtype=np.min_scalar_type(len(known)))

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, row: int | slice):
        if isinstance(row, slice):
            return self.take(row)
        return self.values[self.codes[row]]

    def __iter__(self) -> Iterator:
        return map(self.values.__getitem__, memoryview(self.codes))

    def take(self, rows: np.ndarray | slice) -> "Few":
        taken = object.__new__(Few)
        taken.values, taken.codes = self.values, self.codes[rows]
        return taken


def itself(value):
    return value


def keep(values: Iterable, size: int) -> Sequence:
    """The values as a list, or as a view where the file that they come from has so many bytes that it is large."""
    return list(values) if size < LARGE else View(Stored.of(values), itself)


def is_large(rows: Sequence) -> bool:
    return isinstance(rows, View) and rows.stored.size >= LARGE


def mapped(rows: Iterable, made: Callable) -> Sequence:
    """What a function makes of each row: of a view a view, else a list."""
    if isinstance(rows, View):
        before = rows.made
        return View(rows.stored, made if before is itself else lambda value: made(before(value)))
    return [made(row) for row in rows]


def zipped(several: list[Sequence]) -> Iterable[tuple]:
    """The values of several sequences of the same rows, row by row: of views of the same stored values a view."""
    if all(isinstance(one, View) and one.stored is several[0].stored for one in several):
        functions = [one.made for one in several]
        return View(several[0].stored, lambda value: tuple(made(value) for made in functions))
    return zip(*several, strict=True)


def take(lists: dict[str, Sequence | None], rows: np.ndarray | Sequence[int] | slice) -> dict[str, Sequence]:
    """The entries with these numbers of each of several lists of the same rows; views that share stored values share them again."""
    stored, taken = {}, {}
    rows = rows if isinstance(rows, slice) else np.asarray(rows, dtype=np.int64)
    for name, values in lists.items():
        if isinstance(values, View):
            key = id(values.stored)
            if key not in stored:
                stored[key] = values.stored.take(rows)
            taken[name] = View(stored[key], values.made)
        elif isinstance(values, Few):
            taken[name] = values.take(rows)
        elif values is not None:
            taken[name] = values[rows] if isinstance(rows, slice) else [values[i] for i in rows.tolist()]
    return taken
