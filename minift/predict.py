"""Label texts or images with a finished run: `python -m minift.predict RUN "some text"`, `RUN a.jpg b.jpg`, or `--data FILE`."""

import json
import sys
from itertools import chain, starmap
from pathlib import Path

from minift.data.layout import Layout
from minift.errors import UserError, command, one_line, printable
from minift.evaluate import add_layout_flags, given_of, layout_of
from minift.flags import Parser, check_whole, spelled
from minift.outputs import by_row, check_out, write_official, write_rows

ROWS = 10_000  # that are in memory at a time


def main(argv: list[str]) -> None:
    parser = Parser("python -m minift.predict", "Label texts or images with a finished run.")
    parser.add_argument("run", help="directory of a finished run")
    parser.add_argument("input", nargs="*", help="texts to label, or image files")
    parser.add_argument("--pair", help="the second text, where the run was trained on pairs")
    parser.add_argument("--data", help="file of texts, or directory of images, instead")
    parser.add_argument(
        "--out",
        help="file for the predictions: .csv, .tsv, else JSON lines; of answers to questions a .json holds {id: text}, as SQuAD's "
        "scripts read it (default: print them)",
    )
    parser.add_argument("--batch-size", type=int, help="rows of a batch (default: as in training)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    own = {action.dest for action in parser._actions}
    add_layout_flags(parser)
    arguments = parser.parse(argv)
    if bool(arguments.input) == bool(arguments.data):
        raise UserError("give either texts (or image files) or --data FILE")
    if arguments.data and arguments.pair is not None:
        raise UserError("--pair goes with a text on the command line; in a file name the column with --pair-column")
    if arguments.input and any(value is not None for name, value in vars(arguments).items() if name not in own):
        raise UserError("texts on the command line have no layout; the flags that describe a file go with --data FILE")
    if idle := [
        spelled(name) for name in ("label_column", "label_part", "skip_unlabelled") if getattr(arguments, name) is not None
    ]:
        raise UserError(f"{idle[0]}: predictions read no labels; leave it out")
    check_whole(arguments, batch_size=(1, 1_000_000))
    check_out(arguments.out)

    from minift.bar import each
    from minift.data.batching import whole_windows
    from minift.data.decoding import processes
    from minift.data.splits import check_directory
    from minift.finetuned import load

    tuned = load(arguments.run, arguments.device)
    if arguments.input:
        pairs = None if arguments.pair is None else [arguments.pair] * len(arguments.input)
        inputs = arguments.input if pairs is None else zip(arguments.input, pairs, strict=True)
        rows = tuned.task.read(inputs, tuned.layout, labelled=False)
        count, blocks = len(rows), [rows]
    else:
        layout = layout_of(arguments, tuned)
        check_directory(arguments.data, [name for name in given_of(arguments, Layout) if name not in layout.OF_FILES])
        if layout.format == "label-first" and arguments.format is None:
            raise UserError(
                f"{arguments.data}: the run was trained on lines of `label text`; say --format label-first if these are such lines "
                "too, or --format lines if each is a text and nothing else"
            )
        size = whole_windows(ROWS, arguments.batch_size or tuned.settings["batch_size"])
        read = tuned.task.in_blocks(arguments.data, layout, size)
        print(one_line(f"{arguments.data}: {read.count:,} rows; {'; '.join(read.decided)}"), file=sys.stderr)
        count, blocks = read.count, read.examples
    workers = processes(arguments.workers) if arguments.data else 0
    made = ((rows, tuned.predict_rows(rows, workers, arguments.batch_size)) for rows in blocks)
    first = next(made)  # what the task refuses it refuses before a file is begun
    if arguments.input and not arguments.out:
        for text, prediction in zip(arguments.input, first[1], strict=True):
            print(printable(f"{one_line(tuned.task.show(prediction))}  {text}"))
        return
    predicted = each(chain.from_iterable(starmap(by_row, chain([first], made))), "predict", count)
    if not arguments.out:
        sys.stdout.writelines(printable(json.dumps(row, ensure_ascii=False)) + "\n" for row in predicted)
        return
    if tuned.task.OFFICIAL and Path(arguments.out).suffix.lower() == ".json":
        written = write_official(arguments.out, predicted, *tuned.task.OFFICIAL)
    else:
        written = write_rows(arguments.out, predicted)
    print(f"{written:,} predictions in {arguments.out}", file=sys.stderr)


if __name__ == "__main__":
    command(main, "predict")
