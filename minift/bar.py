"""How far long work has come, on standard error: a bar on a terminal; elsewhere, as in a log file, a line every half minute."""

import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from minift.errors import say

SECONDS = 30.0  # from one line to the next


def bar(what: str, total: int, unit: str = "row", done: int = 0):
    """A context with `update(n)`: n more are done; and `set_postfix(**figures)`: what is shown beside."""
    if sys.stderr is not None and sys.stderr.isatty():
        return tqdm(desc=what, total=total, initial=done, unit=unit, leave=False, delay=1)
    return Lines(what, total, unit, done)


def each(things: Iterable, what: str, total: int, unit: str = "row") -> Iterator:
    """The things, one after another, with a bar."""
    with bar(what, total, unit) as shown:
        for thing in things:
            yield thing
            shown.update()


class Lines:
    """`epoch 1/3  1,408 of 5,000 rows, 46.9 rows/s, 01:16 left, loss=0.612`"""

    def __init__(self, what: str, total: int, unit: str, done: int):
        self.what, self.total, self.unit, self.done, self.start = what, total, unit, done, done
        self.began = self.told = time.perf_counter()
        self.figures: dict[str, str] = {}

    def update(self, n: int = 1) -> None:
        self.done += n
        now = time.perf_counter()
        if now - self.told < SECONDS:
            return
        self.told, speed = now, (self.done - self.start) / (now - self.began)
        left = f", {tqdm.format_interval((self.total - self.done) / speed)} left" if speed else ""
        figures = "".join(f", {name}={value}" for name, value in self.figures.items())
        how_fast = f"{speed:,.{0 if speed >= 100 else 1}f} {self.unit}s/s"
        say(f"{self.what}  {self.done:,} of {self.total:,} {self.unit}s, {how_fast}{left}{figures}")

    def set_postfix(self, **figures: str) -> None:
        self.figures = figures

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *exception) -> None:
        pass
