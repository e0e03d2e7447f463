"""One batch through a model, each stop printed: `python -m minift.trace`, with the flags of train.py, or with a run.

The batch is traced by minift/tracing.py.
"""

import sys
from pathlib import Path

from minift.errors import UserError, command
from minift.flags import Parser, add_flags, spelled
from minift.options import GRID, Options, check, flags_of_other_tasks, is_set, options_of

# Flags of a whole run, with which one batch has nothing to do
IDLE = (
    *("test", "test_rows", "accumulate", "schedule", "warmup", "average", "monitor", "patience", "cache", "compile", "threads"),
    *("seeds", "by", "plan", "out", "save_minutes", "keep", "quiet", "verbose"),
)
FREE = ("batch_size", "device", "precision", "seed")  # flags that may be given with a run


def main(argv: list[str]) -> None:
    run, rest = (Path(argv[0]), argv[1:]) if argv and not argv[0].startswith("-") else (None, argv)
    record = None
    if run is not None:
        from minift.runs import read_record, repeated

        record = read_record(run / "config.json")
    first = Parser("python -m minift.trace", add_help=False)
    first.add_argument("--task")
    task = first.parse_known_args(rest)[0].task or (record["given"]["task"] if record else Options.task)
    options = options_of(task)
    parser = Parser("python -m minift.trace", "Print what happens to one batch: RUN, a finished run, or the flags of train.py.")
    add_flags(parser, options, inherited="as the run has it" if record else None)
    flags = vars(parser.parse(rest, flags_of_other_tasks(task)))
    if record:
        flags = {name: value for name, value in flags.items() if value is not None}
        if fixed := [name for name in flags if name not in FREE]:
            raise UserError(f"{spelled(fixed[0])} with a run: what can be given are {', '.join(map(spelled, FREE))}")
    given = repeated(options, record, flags) if record else options(**flags)
    check(given)
    if several := [name for name in GRID if isinstance(getattr(given, name), tuple)]:
        raise UserError(f"{spelled(several[0])} with several values: give one")
    if getattr(given, "solver", "gradient") == "lbfgs":
        raise UserError("--solver lbfgs: it takes no gradient steps")
    if not record and (idle := [spelled(name) for name in IDLE if is_set(given, name)]):
        print(f"note: one batch is traced and nothing is saved, so these have no effect: {', '.join(idle)}", file=sys.stderr)

    from minift.optim.precision import float32_products
    from minift.tracing import show, trace

    with float32_products(given.precision == "tf32"):
        show(trace(given, run, record))


if __name__ == "__main__":
    command(main, "trace")
