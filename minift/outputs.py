"""What predict and evaluate write of every row: JSON lines, or by the extension of the file CSV or TSV."""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from minift.errors import UserError, say

if TYPE_CHECKING:  # it needs numpy
    from minift.data.examples import Examples

DELIMITERS = {".csv": ",", ".tsv": "\t"}


def check_out(out: str | None) -> None:
    """Raises UserError where the file cannot be begun."""
    if out is None:
        return
    if not out or Path(out).is_dir():
        raise UserError(f"--out {out}: the name of a file is expected")
    if Path(out).exists():
        raise UserError(f"--out {out}: exists already; give another name or delete it")


def by_row(rows: "Examples", made: Iterable[dict]) -> Iterator[dict]:
    """The input of each row, the other cells that its file has, and what was made of it.

    A cell whose column is called as one of the others is named `data_NAME`.
    """
    inputs = rows.inputs()
    for i, (one, prediction) in enumerate(zip(inputs, made, strict=True)):
        taken, cells = {*one, *prediction}, {}
        for name, values in rows.columns.items():
            while name in taken:
                name = f"data_{name}"
            taken.add(name)
            cells[name] = values[i]
        yield one | cells | prediction


def write_rows(out: str, rows: Iterable[dict]) -> int:
    """Write them as they come to OUT.part, which is called OUT in the end; returns how many there are.

    Where it ends before, what has been made so far is in OUT.part, and said.
    """
    from minift.checkpoints import lock  # --help needs no torch

    place = Path(out)
    place.absolute().parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(place.name + ".part")
    count = 0
    try:
        # names of files may be no UTF-8; a CSV has its own ends of lines
        with part.open("a", encoding="utf-8", errors="backslashreplace", newline="") as file:
            try:
                lock(file.fileno())
            except OSError:
                raise UserError(f"--out {out}: another process is writing {part}; wait, or give another name") from None
            file.truncate(0)
            delimiter = DELIMITERS.get(place.suffix.lower())
            write = write_line(file) if delimiter is None else write_cells(file, delimiter)
            for row in rows:
                write(row)
                count += 1
    except KeyboardInterrupt as stop:
        raise type(stop)(f"the first {count:,} rows are in {part}") from None
    except (UserError, MemoryError, RuntimeError):
        if count:
            say(f"note: the first {count:,} rows are in {part}")
        raise
    except OSError as error:  # of a full disk, which does not say where
        error.filename = error.filename or str(part)
        raise
    part.replace(place)
    return count


def write_official(out: str, rows: Iterable[dict], key: str, value: str) -> int:
    """One JSON object {key: value} of all rows, as the scripts of a benchmark read it; returns how many there are."""
    made = {row[key]: row[value] for row in rows}
    place = Path(out)
    place.absolute().parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(made, ensure_ascii=False, indent=1) + "\n", encoding="utf-8", errors="backslashreplace")
    return len(made)


def write_line(file):
    def write(row: dict) -> None:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")

    return write


def write_cells(file, delimiter: str):
    """A row of cells; the names of the first row's are the header. Probabilities have a column each, `p(LABEL)`."""
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    header: list[str] = []

    def write(row: dict) -> None:
        cells = flat(row)
        if not header:
            header.extend(cells)
            writer.writerow(header)
        assert cells.keys() == {*header}, f"{[*cells]}, and the first row has {header}"
        writer.writerow([cells[name] for name in header])

    return write


def flat(row: dict) -> dict:
    cells = {name: value for name, value in row.items() if name != "probabilities"}
    cells |= {f"p({label})": p for label, p in row.get("probabilities", {}).items()}
    return {name: value if isinstance(value, str | int | float) else as_cell(value) for name, value in cells.items()}


def as_cell(value) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False)
