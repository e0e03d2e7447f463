"""Tables and curves of text."""


def counted(number: int, what: str) -> str:
    """`1 epoch`, `2 epochs`, `1,000 rows`."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def table(header: list[str], rows: list[list]) -> str:
    """Columns two blanks apart: numbers to the right, words to the left."""
    lines = [header, *([as_text(cell) for cell in row] for row in rows)]
    columns = []
    for i, cells in enumerate(zip(*lines, strict=True)):
        width = max(map(len, cells))
        words = any(isinstance(row[i], str) and row[i] for row in rows)
        columns.append([cell.ljust(width) if words else cell.rjust(width) for cell in cells])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


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
