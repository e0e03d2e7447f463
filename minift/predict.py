"""Label texts or images with a finished run: `python -m minift.predict RUN "some text"`, `RUN a.jpg b.jpg`, or `--data FILE`."""

import json
import sys
from pathlib import Path

from minift.data.layout import Layout
from minift.errors import UserError, command
from minift.evaluate import add_layout_flags, given_of, layout_of
from minift.flags import Parser


def main(argv: list[str]) -> None:
    parser = Parser("python -m minift.predict", "Label texts or images with a finished run.")
    parser.add_argument("run", help="directory of a finished run")
    parser.add_argument("input", nargs="*", help="texts to label, or image files")
    parser.add_argument("--pair", help="the second text, where the run was trained on pairs")
    parser.add_argument("--data", help="file of texts, or directory of images, instead")
    parser.add_argument(
        "--out",
        help="file for the predictions, one JSON object for each row; of answers to questions a .json holds {id: text}, as SQuAD's "
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
    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise UserError(f"--batch-size {arguments.batch_size}: expected a whole number at least 1")
    if arguments.out and Path(arguments.out).exists():
        raise UserError(f"--out {arguments.out}: exists already; give another name or delete it")

    from tqdm import tqdm

    from minift.data.decoding import processes
    from minift.data.splits import check_directory
    from minift.finetuned import load

    tuned = load(arguments.run, arguments.device)
    if arguments.input:
        pairs = None if arguments.pair is None else [arguments.pair] * len(arguments.input)
        inputs = arguments.input if pairs is None else zip(arguments.input, pairs, strict=True)
        rows = tuned.task.read(inputs, tuned.layout, labelled=False)
    else:
        layout = layout_of(arguments, tuned)
        check_directory(arguments.data, [name for name in given_of(arguments, Layout) if name not in layout.OF_FILES])
        if layout.format == "label-first" and arguments.format is None:
            raise UserError(
                f"{arguments.data}: the run was trained on lines of `label text`; say --format label-first if these are such lines "
                "too, or --format lines if each is a text and nothing else"
            )
        rows = tuned.task.read(arguments.data, layout, labelled=False)
        print(f"{arguments.data}: {len(rows):,} rows; {'; '.join(rows.decided)}", file=sys.stderr)
    made = tuned.predict_rows(rows, processes(arguments.workers) if arguments.data else 0, arguments.batch_size)
    if arguments.input and not arguments.out:
        for text, prediction in zip(arguments.input, made, strict=True):
            print(f"{tuned.task.show(prediction)}  {text}")
        return
    bar = tqdm(zip(rows.inputs(), made, strict=True), total=len(rows), unit="row", leave=False, disable=None)
    if tuned.task.OFFICIAL and Path(arguments.out or "").suffix.lower() == ".json":
        key, value = tuned.task.OFFICIAL
        lines = [json.dumps({one[key]: prediction[value] for one, prediction in bar}, ensure_ascii=False, indent=1) + "\n"]
    else:
        lines = (json.dumps(one | prediction, ensure_ascii=False) + "\n" for one, prediction in bar)
    if not arguments.out:
        sys.stdout.writelines(lines)
        return
    Path(arguments.out).absolute().parent.mkdir(parents=True, exist_ok=True)
    with Path(arguments.out).open("w", encoding="utf-8", errors="backslashreplace") as file:  # names of files may be no UTF-8
        file.writelines(lines)
    print(f"{len(rows):,} predictions in {arguments.out}", file=sys.stderr)


if __name__ == "__main__":
    command(main, "predict")
