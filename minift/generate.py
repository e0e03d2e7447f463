"""Write with a decoder: `python -m minift.generate RUN "text"`, `RUN --chat`, or `RUN --data FILE --out FILE.jsonl`.

A run of causal-lm, or a converted decoder, goes on with the text; one of instruction-tuning answers it. `--chat` reads a message a
line and keeps what was said in the window of the model: where that is full, the oldest exchange is forgotten, and it is said.
"""

import json
import sys
from collections.abc import Iterator

from minift.errors import UserError, command, printable
from minift.flags import Parser, check_whole
from minift.outputs import by_row, check_out, write_rows
from minift.tables import counted

MOST = 1_000_000  # rows of a batch, tokens
COLDEST = 1e-6  # of temperatures above 0; what is divided by a lower one is too large for float32


def main(argv: list[str]) -> None:
    parser = Parser("python -m minift.generate", "Write with a decoder.")
    parser.add_argument("run", help="a finished run of causal-lm or instruction-tuning, or a converted decoder")
    parser.add_argument("text", nargs="*", help="what to go on with, or to answer; an empty one: a text from its start")
    parser.add_argument("--chat", action="store_true", help="read messages from standard input, and answer each")
    parser.add_argument("--data", help="file of texts or, for instruction-tuning, JSON lines of instructions, instead")
    parser.add_argument("--out", help="file for what is written: .csv, .tsv, else JSON lines (default: print it)")
    parser.add_argument("--new-tokens", type=int, default=200, metavar="N", help="at most so many (default: 200)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="X", help="0: the most probable token (default: 0)")
    parser.add_argument("--top-k", type=int, metavar="N", help="draw from the N most probable tokens")
    parser.add_argument("--top-p", type=float, metavar="X", help="draw from the fewest tokens that have this share together")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="ends the answer, and is no part of it; several"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of what is drawn, for the first row (default: 0)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="rows of a batch with --data (default: 8)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    arguments = parser.parse(argv)
    check(arguments)

    from minift.generation import Sampling, open_writer

    writer = open_writer(arguments.run, arguments.device)
    sampling = Sampling(*(getattr(arguments, name) for name in ("new_tokens", "temperature", "top_k", "top_p")),
                        tuple(arguments.stop), arguments.seed or 0)  # fmt: skip
    if arguments.chat:
        chat(writer, sampling)
    elif arguments.data:
        rows, prompts = read(writer, arguments.data)
        made = by_row(rows, written(writer, prompts, sampling, arguments.batch_size or 8))
        if arguments.out:
            print(f"{write_rows(arguments.out, made):,} rows in {arguments.out}", file=sys.stderr)
        else:
            sys.stdout.writelines(printable(json.dumps(row, ensure_ascii=False)) + "\n" for row in made)
    else:
        for i, text in enumerate(arguments.text):
            stream(writer, writer.prompt(text), sampling, i)


def check(arguments) -> None:
    if sum(map(bool, (arguments.text, arguments.chat, arguments.data))) != 1:
        raise UserError("give one of a text, --chat, or --data FILE")
    if arguments.out and not arguments.data:
        raise UserError("--out goes with --data")
    check_out(arguments.out)
    if arguments.batch_size is not None and not arguments.data:
        raise UserError("--batch-size goes with --data")
    check_whole(arguments, new_tokens=(1, MOST), top_k=(1, MOST), batch_size=(1, MOST), seed=(0, 2**62))
    if arguments.temperature and not COLDEST <= arguments.temperature < float("inf"):
        raise UserError(f"--temperature {arguments.temperature}: expected 0, or a number at least {COLDEST}")
    if arguments.top_p is not None and not 0 < arguments.top_p <= 1:
        raise UserError(f"--top-p {arguments.top_p}: expected a number above 0 and at most 1")
    for name in ("top_k", "top_p", "seed"):
        if getattr(arguments, name) is not None and not arguments.temperature:
            raise UserError(f"--{name.replace('_', '-')} with --temperature 0: nothing is drawn; add --temperature 1")
    if "" in arguments.stop:
        raise UserError("--stop is empty: give it a text or leave it out")


def stream(writer, prompt, sampling, first: int = 0) -> str:
    """Print what is written as it comes. Returns it."""
    shown = ""
    for (one,) in writer.write([(first, prompt)], sampling):
        text = one.settled(sampling.stop)
        print(printable(text[len(shown) :]), end="", flush=True)
        shown = max(shown, text, key=len)
    print(flush=True)
    if one.over in ("number of tokens", "window"):
        note(f"stopped by the {one.over} after {len(one.tokens):,}")
    return one.text


def chat(writer, sampling) -> None:
    """Messages from standard input, a line each, until it ends."""
    from minift.data.examples import check_characters
    from minift.data.instructions import conversation

    if writer.form in (None, "prompt"):
        raise UserError("--chat: the run has not learned to answer under headings; expected one of instruction-tuning on rows of "
                        "{instruction, output} or {messages}")  # fmt: skip
    said: list[tuple[str, str]] = []
    for line in iter(ask, None):
        if not line.strip():
            continue
        try:
            check_characters(line, "the message")
        except UserError as error:
            note(f"{error}: it is not answered")
            continue
        said.append(("user", line))
        ids, forgotten = writer.ids(conversation(said)), 0
        while len(ids) + sampling.new_tokens > writer.window + 1 and len(said) > 2:
            said, forgotten = said[2:], forgotten + 1
            ids = writer.ids(conversation(said))
        if forgotten:
            gone = counted(forgotten, "exchange")
            note(f"the window of {writer.window:,} tokens is full: the oldest is forgotten, {gone}")
        if len(ids) > writer.window:
            note(f"a message of {len(ids):,} tokens, and the window has {writer.window:,}: it is not answered")
            said.pop()
            continue
        said.append(("assistant", stream(writer, ids, sampling)))


def note(said: str) -> None:
    print(f"note: {said}", file=sys.stderr)


def ask() -> str | None:
    if sys.stdin is None:
        raise UserError("standard input is closed")
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None


def read(writer, data: str):
    """(the rows of a file, the ids of each one's prompt)"""
    if writer.form is None:
        from minift.data.documents import read_documents
        from minift.data.layout import DocumentLayout

        rows = read_documents(data, DocumentLayout(), filled=False)
        return rows, [writer.prompt(text) for text in rows.texts]
    from minift.data.instructions import asked, read_instructions
    from minift.data.layout import Layout

    rows = read_instructions(data, Layout(), labelled=False)
    return rows, [writer.ids(asked(row)) for row in rows.pieces]


def written(writer, prompts: list, sampling, batch_size: int) -> Iterator[dict]:
    """{output, stopped} of each row, in order. A prompt that leaves no room is not answered, and counted."""
    from minift.generation import last

    full = 0
    for start in range(0, len(prompts), batch_size):
        batch = list(enumerate(prompts[start : start + batch_size], start))
        full += sum(len(ids) > writer.window for _, ids in batch)
        fits = [(i, ids) for i, ids in batch if len(ids) <= writer.window]
        made = dict(zip([i for i, _ in fits], last(writer.write(fits, sampling)), strict=True)) if fits else {}
        for i, _ in batch:
            one = made.get(i)
            yield {"output": one and one.text, "stopped": one.over if one else "the prompt fills the window"}
    if full:
        note(f"{full:,} rows are not answered: their prompts fill the window of {writer.window:,} tokens")


if __name__ == "__main__":
    command(main, "generate")
