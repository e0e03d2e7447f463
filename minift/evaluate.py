"""Score a finished run on labelled data: `python -m minift.evaluate RUN --data FILE-OR-DIRECTORY`."""

import argparse

from minift.data.reading import LAYOUT_FLAGS, Layout, check_table_flags
from minift.errors import UserError, command
from minift.flags import add_flags


def layout_of(arguments: argparse.Namespace, tuned) -> Layout:
    """The layout flags that were given; the others as in training, but for the number of workers, which is this machine's."""
    given = {name: getattr(arguments, name) for name in LAYOUT_FLAGS if getattr(arguments, name) is not None}
    strange = [name for name in given if name not in tuned.task.FLAGS]
    if strange:
        raise UserError(
            f"--{strange[0].replace('_', '-')}: the run is one of {tuned.checkpoint.task['name']}, which has no use for it"
        )
    if arguments.workers is not None and arguments.workers < 0:
        raise UserError(f"--workers {arguments.workers}: 0 or more is wanted")
    check_table_flags(arguments.data, list(given))
    return Layout(**tuned.settings["layout"] | given)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m minift.evaluate", description="Score a finished run on labelled data.")
    parser.add_argument("run", help="directory of a finished run")
    parser.add_argument("--data", required=True, help="file of texts and labels, or directory of images by class")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    add_flags(parser, Layout, inherited="as in training")
    arguments = parser.parse_args(argv)

    from minift.data.decoding import processes
    from minift.finetuned import load
    from minift.report import class_table, table

    tuned = load(arguments.run, arguments.device)
    layout = layout_of(arguments, tuned)
    rows = tuned.task.read(arguments.data, layout)
    ids = tuned.task.ids(rows, tuned.task.labels, complete=False)
    scores, described = tuned.score(rows, ids, processes(layout.workers))
    print(f"{arguments.data}: {len(rows):,} rows; {'; '.join(rows.decided)}")
    print(", ".join(f"{name} {value}" for name, value in described.items()), end="\n\n")
    print(table(list(scores.metrics), [list(scores.metrics.values())]), end="\n\n")
    print(class_table(tuned.task.labels, tuned.task.confusion(scores.logits, ids)))


if __name__ == "__main__":
    command(main, "evaluate")
