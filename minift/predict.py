"""Label texts or images with a finished run: `python -m minift.predict RUN "some text"`, `RUN a.jpg b.jpg`, or `--data FILE`."""

import argparse
import json
import sys
from pathlib import Path

from minift.data.reading import LAYOUT_FLAGS, Layout
from minift.errors import UserError, command
from minift.evaluate import layout_of
from minift.flags import add_flags


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m minift.predict", description="Label texts or images with a finished run.")
    parser.add_argument("run", help="directory of a finished run")
    parser.add_argument("input", nargs="*", help="texts to label, or image files")
    parser.add_argument("--pair", help="the second text, where the run was trained on pairs")
    parser.add_argument("--data", help="file of texts, or directory of images, instead")
    parser.add_argument("--out", help="file for the predictions, one JSON object a row (default: print them)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    add_flags(parser, Layout, inherited="as in training")
    arguments = parser.parse_args(argv)
    if bool(arguments.input) == bool(arguments.data):
        raise UserError("give either texts (or image files) or --data FILE")
    if arguments.data and arguments.pair is not None:
        raise UserError("--pair goes with a text on the command line; in a file name the column with --pair-column")
    if arguments.input and any(getattr(arguments, name) is not None for name in LAYOUT_FLAGS):
        raise UserError("texts on the command line have no layout; the flags that describe a file go with --data FILE")
    if arguments.out and Path(arguments.out).exists():
        raise UserError(f"--out {arguments.out}: exists already; give another name or delete it")
    if arguments.out:
        Path(arguments.out).absolute().parent.mkdir(parents=True, exist_ok=True)

    from minift.data.decoding import processes
    from minift.finetuned import load

    tuned = load(arguments.run, arguments.device)
    if arguments.input:
        pairs = None if arguments.pair is None else [arguments.pair] * len(arguments.input)
        rows = tuned.task.rows(arguments.input, pairs)
    else:
        layout = layout_of(arguments, tuned)
        if layout.format == "label-first" and arguments.format is None:
            raise UserError(
                f"{arguments.data}: the run was trained on lines of `label text`; say --format label-first if these are such lines "
                "too, or --format lines if each is a text and nothing else"
            )
        rows = tuned.task.read(arguments.data, layout, labelled=False)
        print(f"{arguments.data}: {len(rows):,} rows; {'; '.join(rows.decided)}", file=sys.stderr)
    predictions = tuned.predict_rows(rows, processes(arguments.workers) if arguments.data else 0)
    if arguments.input and not arguments.out:
        for text, p in zip(arguments.input, predictions, strict=True):
            print(f"{p['label']}  {p['score']:.3f}  {text}")
        return
    lines = [json.dumps(i | p, ensure_ascii=False) + "\n" for i, p in zip(rows.inputs(), predictions, strict=True)]
    if arguments.out:
        Path(arguments.out).write_text(
            "".join(lines), encoding="utf-8", errors="backslashreplace"
        )  # names of files may be no UTF-8
        print(f"{len(lines):,} predictions in {arguments.out}", file=sys.stderr)
    else:
        sys.stdout.writelines(lines)


if __name__ == "__main__":
    command(main, "predict")
