"""Tables and curves of text, as wide as the terminal at most."""

import shutil
import unicodedata
from itertools import accumulate

from minift.errors import one_line

LEAST = 12  # columns of the terminal to which a column of words is cut at most


def counted(number: int, what: str) -> str:
    """`1 epoch`, `2 epochs`, `1,000 rows`."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def table(header: list[str], rows: list[list], width: int | None = None) -> str:
    """Columns two blanks apart: numbers to the right, words to the left.

    width: of the terminal; unset: that of the one at hand, and without a limit where the output goes to a file. A table that is
    wider has its longest words cut, which `…` marks. Columns that do not fit even then follow in a second block, behind the first
    column again; a `…` behind the header says that there is one.
    """
    width = shutil.get_terminal_size((1 << 20, 24)).columns if width is None else width
    lines = [[one_line(as_text(cell)) for cell in row] for row in (header, *rows)]  # cells of a file may hold anything
    columns = [list(cells) for cells in zip(*lines, strict=True)]
    words = [any(isinstance(row[i], str) and row[i] for row in rows) for i in range(len(header))]
    widths = [max(map(width_of, cells)) for cells in columns]
    for i in sorted((i for i, is_words in enumerate(words) if is_words), key=lambda i: -widths[i]):
        too_wide = sum(widths) + 2 * (len(widths) - 1) - width
        if too_wide > 0:
            widths[i] = min(widths[i], max(LEAST, widths[i] - too_wide))
    texts = [[pad(cut(cell, w), w, is_words) for cell in cells] for cells, w, is_words in zip(columns, widths, words, strict=True)]
    blocks = [
        ["  ".join(line).rstrip() for line in zip(*(texts[i] for i in block), strict=True)] for block in blocks_of(widths, width)
    ]
    for block in blocks[:-1]:
        block[0] += "  …"
    return "\n\n".join("\n".join(block) for block in blocks)


def blocks_of(widths: list[int], width: int) -> list[list[int]]:
    """The columns of each block of a table: all of them if they fit, else as many as fit, the first column in every block."""
    if sum(widths) + 2 * (len(widths) - 1) <= width:
        return [list(range(len(widths)))]
    blocks = [[0]]
    for i in range(1, len(widths)):
        if len(blocks[-1]) > 1 and sum(widths[j] + 2 for j in blocks[-1]) + widths[i] + len("  …") > width:
            blocks.append([0])
        blocks[-1].append(i)
    return blocks


def width_of(text: str) -> int:
    """Columns of the terminal: two for a wide letter, none for one that stands above another."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def cut(text: str, width: int) -> str:
    """The text, or as much of its beginning as fits before a `…`."""
    if width_of(text) <= width:
        return text
    return text[: sum(taken < width for taken in accumulate(map(width_of, text)))] + "…"


def pad(text: str, width: int, left: bool) -> str:
    blanks = " " * (width - width_of(text))
    return text + blanks if left else blanks + text


def as_text(cell: str | int | float | None) -> str:
    if cell is None:
        return "undefined"
    return cell if isinstance(cell, str) else f"{cell:,}" if isinstance(cell, int) else f"{cell:.4f}"


def bars(values: list[float], width: int = 60) -> str:
    """A curve in one line of text; values: 0 or more."""
    blocks = " ▁▂▃▄▅▆▇█"
    width = min(width, len(values))
    picked = [values[round(i * (len(values) - 1) / max(1, width - 1))] for i in range(width)]
    return "".join(blocks[round(value / (max(values) or 1) * 8)] for value in picked)
