"""What train.py prints: before training the data, the model and the settings, after it the results and the next commands."""

import shlex
import shutil
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import numpy as np
from torch.nn import BatchNorm2d

from minift.cli import spelled as command_of
from minift.distributed import count
from minift.errors import Diverged, UserError, look_up, one_line
from minift.finetuned import predictions
from minift.flags import typed
from minift.formats import adapters, peft
from minift.formats.huggingface import why_no_export
from minift.methods import METHODS
from minift.methods.surgery import lengthened, mergeable
from minift.models import MODELS
from minift.pretrained import read
from minift.runs import describe_device
from minift.slices import table_by
from minift.source import table_of as source_table
from minift.specs import as_option, options_of
from minift.tables import counted, cut, table, width_of


def beside(head: str, text: str) -> str:
    """A text behind `head`, cut where the line of the terminal ends; in a line of its own where `head` leaves it too little."""
    columns = min(shutil.get_terminal_size((120, 24)).columns, 160)
    head, text = one_line(head), one_line(" ".join(text.split()))
    if columns - width_of(head) < 40:
        return f"{head.rstrip()}\n    {cut(text, max(20, columns - 4))}"
    return head + cut(text, columns - width_of(head))


def print_data(parts: dict, data: dict, task, notes: list[str]) -> None:
    for line in dict.fromkeys(f"data   {shown(part.path)}: {'; '.join(part.decided)}" for part in parts.values()):
        print(one_line(line))
    rows = [[split, len(part), *task.columns(part).values(), *data[split].describe().values()] for split, part in parts.items()]
    print(table(["split", "rows", *task.columns(parts["train"]), *data["train"].describe()], rows))
    for note in notes:
        print(f"note: {one_line(note)}")
    others = [split for split in parts if split != "train"]
    held = {str(row) for split in others for row in parts[split].inputs()}  # a row may hold a list of words
    seen = held.intersection(map(str, parts["train"].inputs()))  # of these there are few, where the training rows may be many
    for split in others:
        shared = sum(str(row) in seen for row in parts[split].inputs())
        if shared:
            print(f"note: {shared:,} of the {len(parts[split]):,} {split} rows are in the training rows too")
    print()
    if (sample := data["train"].sample()) is not None:
        print(f"a training row, token by token\n{table(*sample)}\n")


def print_model(training, start, options) -> None:
    """What will train: stage by stage the parameters, the learning rate, the weight decay and the mode."""
    model = training.model
    model.train()
    rows = []
    for stage, modules in model.parts.items():
        parameters = [p for module in modules for p in module.parameters()]
        mine = [group for group in training.optimizer.groups if group.stage == stage]
        decays = " / ".join(f"{d:g}" for d in sorted({g.weight_decay for g in mine}, reverse=True))
        norms = any(isinstance(m, BatchNorm2d) for module in modules for m in module.modules())
        mode = "train" if modules[0].training else "frozen, statistics too" if norms else "frozen, no dropout"
        rows.append([stage, sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad),
                     f"{mine[0].lr:g}" if mine else "", decays, mode])  # fmt: skip
    rows.append(["total", sum(row[1] for row in rows), sum(row[2] for row in rows), "", "", ""])
    origin = f"{shown(start.place)}, from {start.checkpoint.source}" if start.place else start.checkpoint.source
    other_head = start.checkpoint.task and "head" in training.new
    dropped = f"; its own head, of {start.checkpoint.task['name']}, is left out" if other_head else ""
    print(one_line(f"model  {origin}; newly initialised: {', '.join(training.new) or 'nothing'}{dropped}"))
    print(table(["stage", "parameters", "trainable", "lr", "weight decay", "mode"], rows))
    if taken := lengthened(model.body):
        print(f"note: the method takes {taken} positions before every text")
    if any(isinstance(m, BatchNorm2d) and m.training for m in model.modules()):
        if options.accumulate > 1:
            print(f"note: --accumulate {options.accumulate}: BatchNorm takes its statistics from each batch, not all of a step")
        if count() > 1:
            print(f"note: BatchNorm takes its statistics from the rows of each process: {options.batch_size // count()} of a batch")
    print()


def print_settings(given, options, origins: dict[str, str]) -> None:
    """The flags with their values, beside where these come from; with --verbose also those that are at their defaults."""
    by_origin: dict[str, list[str]] = {}
    for f in fields(options):
        value = getattr(options, f.name)
        origin = origins.get(f.name) or ("default" if getattr(given, f.name) == f.default else "given")
        if value is not None and (origin != "default" or options.verbose):
            by_origin.setdefault(origin, []).append(typed(f.name, value))
    width = max(map(len, by_origin))
    columns = min(shutil.get_terminal_size((120, 24)).columns, 120)
    for origin, flags in by_origin.items():
        print(
            textwrap.fill(
                "  ".join(flag.replace(" ", "\0") for flag in flags),  # a flag and its value stay on one line
                columns,
                break_on_hyphens=False,
                break_long_words=False,
                initial_indent=f"{origin.ljust(width)}  ",
                subsequent_indent=" " * (width + 2),
            ).replace("\0", " ")
        )
    if not options.verbose:
        print("all other flags are at their defaults; --verbose shows them")
    print()


def print_work(training, device, options) -> None:
    rows = options.batch_size * options.accumulate
    lbfgs = getattr(options, "solver", "gradient") == "lbfgs"
    work = "L-BFGS" if lbfgs else f"{counted(training.steps, 'step')} of {counted(rows, 'row')}, {counted(options.epochs, 'epoch')}"
    seconds = ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in training.seconds.items())
    measured = f" (the products of a step, measured: {seconds})" if seconds else ""
    print(f"{work}, on {describe_device(device)}, {options.precision}{measured}", flush=True)


@contextmanager
def rows_named(examples, checkpoints) -> Iterator[None]:
    """Training that diverges within tells the rows of its step by file and line, and the last good checkpoint."""
    try:
        yield
    except Diverged as error:
        rows = [examples.where(int(row)) for row in dict.fromkeys(error.rows)]
        more = f" and {len(rows) - 5} more" if rows[5:] else ""
        named = f"; the rows of the step: {', '.join(rows[:5])}{more}" if rows else ""
        raise Diverged(f"{error}{named}{checkpoints.before()}") from None


def print_results(
    run, parts: dict, task, training, scores: dict, by: dict, progress, options, forgotten: dict | None = None
) -> None:
    print()
    if scores:
        header = next(iter(scores.values())).metrics
        epoch = f"epoch {progress.best_epoch}" if progress.best_epoch else ""
        print(table([epoch, "rows", *header], [[split, len(parts[split]), *s.metrics.values()] for split, s in scores.items()]))
        for split, s in scores.items():
            for remark in task.remarks(s.metrics):
                print(f"note: {split}: {remark}")
        last = list(scores)[-1]
        if not options.quiet and (shown_table := scores[last].meter.table()):
            print(f"\n{last}, in detail\n{shown_table}\n")
    if by:
        print(f"{last}, by {options.by}\n{table_by(options.by, by)}\n")
    if forgotten:
        print(f"\n{options.source_data}, through the head of {options.model}\n{source_table(forgotten)}\n")
    if "valid" in scores and task.by_row and not options.quiet:
        print_worst(run, parts["valid"], task, training, scores["valid"].losses, options)
    quoted, scored = shlex.quote(str(run.directory)), options.test or options.valid
    print(f"predict   python -m minift.predict {quoted} {task.example(parts['train'])}")
    if task.WRITES:
        print(f'generate  python -m minift.generate {quoted} "text"')
    print(f"evaluate  python -m minift.evaluate {quoted} --data {'DATA' if scored in (None, 'none') else shlex.quote(scored)}")
    print(f"export    {export_of(run, training.model.body, options.method)}")


def export_of(run, body, method: str) -> str:
    """The command that writes the run for another library, or why there is none. method: as it was given."""
    reason = why_no_export(run.template)
    to, suffix = "hf", "-hf"
    if not mergeable(body):
        to, library = ("adapters", adapters) if method.partition(":")[0] in adapters.KINDS else ("peft", peft)
        suffix = f"-{to}"
        try:
            if not reason:
                library.check_writable(read(run.directory / "model"))
        except UserError as error:
            why = str(error).removeprefix(f"--method {run.template.method}: ")  # with all its options
            reason = f"{method} cannot be merged into plain layers; nor with --to {to}: {why}"
    elif reason and run.template.architecture == "efficientnet":
        reason, to, suffix = None, "timm", ".safetensors"
    if reason:
        return f"not as a plain model of transformers: {reason}"
    place, out = (shlex.quote(f"{run.directory}{end}") for end in ("", suffix))
    return f"{command_of('convert')} {place} --to {to} --out {out}"


def print_worst(run, examples, task, training, losses: np.ndarray, options) -> None:
    """The rows of the largest loss, with what the model makes of them beside what is right."""
    worst = np.argsort(-losses, kind="stable")[:5]
    rows = examples.take(worst)
    data = task.prepare(rows, run.template)
    print("validation rows with the largest loss")
    made = predictions(training.model, task, data, options.batch_size, training.precision)
    for i, (loss, prediction, content) in enumerate(zip(losses[worst], made, rows.inputs(), strict=True)):
        head = f"  {rows.place(i)}loss {loss:.2f}, {task.compare(rows, i, prediction)}  "
        shown = (" ".join(value) if isinstance(value, list) else str(value) for value in content.values())
        print(beside(head, " | ".join(shown)))
    print()


def list_methods() -> None:
    """--method help"""
    width = max(map(len, METHODS))
    for name in METHODS:
        function = look_up(METHODS, name, "--method")
        options = ",".join(f"{key}={as_option(value)}" for key, value in options_of(function).items())
        print(f"{name:{width}s} {function.__doc__.splitlines()[0]}")
        if options:
            print(f"{'':{width}s} {name}:{options}")
    print("\nSeveral in order, joined by +: prefix:length=5+lora:rank=4. What an option means stands in minift/methods/NAME.py.")
    print("sites=A/B: roles, or regular expressions that the names of modules match in full. Roles")
    for name in MODELS:
        print(f"  of {name}: {', '.join(look_up(MODELS, name, '').SITES)}")


def shown(path: Path) -> str:
    """A path as short as it can be said from here."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
