"""Score a finished run on labelled data: `python -m minift.evaluate RUN --data FILE-OR-DIRECTORY`."""

import argparse
import sys
from dataclasses import fields, replace

from minift.data.layout import LAYOUTS, Layout
from minift.errors import UserError, command, one_line
from minift.flags import Parser, add_flags, check_ranges, spelled
from minift.outputs import by_row, check_out, write_rows


def add_layout_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of all layouts; which of them a run can use its task says."""
    own = {f.name for f in fields(Layout)}
    add_flags(parser, Layout, inherited="as in training")
    for kind in LAYOUTS:
        add_flags(parser, kind, inherited="as in training", without=own)


def given_of(arguments: argparse.Namespace, kind: type[Layout]) -> list[str]:
    return [f.name for f in fields(kind) if getattr(arguments, f.name) is not None]


def layout_of(arguments: argparse.Namespace, tuned) -> Layout:
    """The layout flags that were given; the others as in training, but for the number of workers, which is this machine's."""
    given = {name: getattr(arguments, name) for kind in LAYOUTS for name in given_of(arguments, kind)}
    known = {f.name for f in fields(tuned.layout)}
    if strange := sorted(given.keys() - known):
        raise UserError(f"{spelled(strange[0])}: the run is one of {tuned.checkpoint.task['name']}, which has no use for it")
    inherited = tuned.layout
    if given.get("format") == "lines":  # a text a line has no columns, whatever those of the training file were called
        columns = [f.name for f in fields(tuned.layout) if f.name.endswith("_column")]
        inherited = replace(inherited, **dict.fromkeys(columns))
    layout = replace(inherited, **given)
    check_ranges(layout)
    return layout


def main(argv: list[str]) -> None:
    parser = Parser("python -m minift.evaluate", "Score a finished run on labelled data.")
    parser.add_argument("run", help="directory of a finished run")
    parser.add_argument("--data", required=True, help="file of texts and labels, or directory of images by class")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    parser.add_argument("--out", help="file for the loss and the prediction of every row: .csv, .tsv, else JSON lines")
    parser.add_argument("--by", metavar="COLUMN", help="the figures for each value of a column of the file as well")
    add_layout_flags(parser)
    arguments = parser.parse(argv)
    check_out(arguments.out)

    from minift.data.decoding import processes
    from minift.data.splits import check_directory
    from minift.finetuned import load
    from minift.slices import scores_by, table_by
    from minift.tables import table

    tuned = load(arguments.run, arguments.device)
    if arguments.out and not tuned.task.by_row:
        raise UserError(
            f"--out: the units of {tuned.checkpoint.task['name']} in this run are no rows, so there is no figure of a row"
        )
    layout = layout_of(arguments, tuned)
    check_directory(arguments.data, [name for name in given_of(arguments, Layout) if name not in layout.OF_FILES])
    rows = tuned.task.read(arguments.data, layout)
    by = (
        None
        if arguments.by is None
        else scores_by(rows, arguments.by, lambda part: tuned.score(part, processes(arguments.workers))[0])
    )
    scores, described = tuned.score(rows, processes(arguments.workers))
    print(one_line(f"{arguments.data}: {len(rows):,} rows; {'; '.join(rows.decided)}"))
    print(", ".join(f"{name}: {value}" for name, value in described.items()), end="\n\n")
    print(table(list(scores.metrics), [list(scores.metrics.values())]), end="\n\n")
    print(scores.meter.table())
    if by:
        print(f"\n{table_by(arguments.by, by)}")
    if arguments.out:
        right = [{}] * len(rows) if (gold := getattr(rows, "labels", None)) is None else [{"gold": one} for one in gold]
        made = tuned.predict_rows(rows, processes(arguments.workers))
        made = (
            one | {"loss": loss} | prediction for one, loss, prediction in zip(right, scores.losses.tolist(), made, strict=True)
        )
        print(f"{write_rows(arguments.out, by_row(rows, made)):,} rows in {arguments.out}", file=sys.stderr)


if __name__ == "__main__":
    command(main, "evaluate")
