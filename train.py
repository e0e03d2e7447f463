"""Fine-tune a model: `python train.py` on the embedded sample, `python train.py --train FILE` on your own data.

`run_once` reads from top to bottom what a run is: options, data, model and optimizer, fit, results. The training loop is `fit` in
minift/training.py.
"""

import gc
import os
import time
from contextlib import closing
from dataclasses import replace
from itertools import product
from pathlib import Path

from minift.errors import Diverged, UserError, command, look_up
from minift.flags import Parser, add_flags
from minift.options import GRID, Options, check, flags_of_other_tasks, layout_of, options_of
from minift.tasks import TASKS

PROCESSES = int(os.environ.get("WORLD_SIZE", 1))  # that torchrun has started


def main(argv: list[str]) -> None:
    first = Parser("train.py", add_help=False)
    for name in ("--task", "--resume", "--config", "--device"):
        first.add_argument(name)
    named = first.parse_known_args(argv)[0]
    if PROCESSES == 1:
        return begin(argv, named)
    from minift.distributed import together

    with together(named.device):
        return begin(argv, named)


def begin(argv: list[str], named) -> None:
    """named: the flags that are read before the others, as these depend on them."""
    record, directory = read_earlier(named.resume, named.config)
    task = named.task or (record["given"]["task"] if record else Options.task)
    options = options_of(task)
    parser = Parser("train.py", "Fine-tune a model; without flags, on the embedded sample.")
    parser.add_argument("--resume", metavar="RUN", help="continue a run that was stopped, given its directory")
    parser.add_argument("--config", metavar="FILE", help="run it again: config.json of a run; other flags on the line win")
    add_flags(parser, options, inherited="as the run has it" if record else None)
    flags = vars(parser.parse(argv, flags_of_other_tasks(task)))
    del flags["resume"], flags["config"]
    if record:
        from minift.runs import continued, repeated, stopped_in

        line = {name: value for name, value in flags.items() if value is not None}
        given = continued(options, record, line, directory) if directory else repeated(options, record, line)
    else:
        given = options(**flags)
    if given.method == "help":
        from minift.printing import list_methods

        list_methods()
        return
    check(given)
    grid, seeds = any(isinstance(getattr(given, name), tuple) for name in GRID), given.seeds > 1 and not given.plan
    lbfgs = getattr(given, "solver", "gradient") == "lbfgs"
    if PROCESSES > 1 and (grid or seeds or lbfgs):
        what = "--solver lbfgs" if lbfgs else "--seeds" if seeds else "several values of a flag"
        raise UserError(f"{what} in several processes is not possible; start it without torchrun")
    if grid:
        run_grid(given, directory)
    elif seeds:
        run_seeds(given, directory)
    elif directory:
        with stopped_in(directory):  # while it loads
            run_once(given, record)
    else:
        run_once(given)


def read_earlier(resume: str | None, config: str | None) -> tuple[dict | None, Path | None]:
    """(what the run that is continued or repeated was started with, its directory where it is continued)"""
    if resume is not None and config is not None:
        raise UserError("--resume with --config: one continues a run, the other starts it again in a new directory; give one")
    if resume is None and config is None:
        return None, None
    from minift.runs import SEVERAL, read_record

    if config is not None:
        return read_record(Path(config)), None
    directory = Path(resume)
    if not directory.is_dir():
        raise UserError(f"--resume {resume}: no such directory; expected that of a run, as runs/NAME")
    several = directory / SEVERAL
    return read_record(several if several.is_file() else directory / "config.json"), directory


def run_once(given, record: dict | None = None) -> dict | None:
    """One run from options to results: what it writes to result.json; None where --plan stops before training.

    record: the config.json of a run that goes on in --out.
    """
    started = time.perf_counter()
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # large tensors in huge pages: 4 % of a step on a CPU
    # A thread that waits for the others gives its core back soon: as fast on an idle machine, twice as fast beside other work
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

    import torch

    from minift import cache, printing, setup
    from minift.checkpoints import Checkpoints, Signals
    from minift.data.splits import read_splits
    from minift.distributed import rank
    from minift.optim.precision import float32_products
    from minift.plan import print_plan
    from minift.runs import Run, finished, forget_peak_memory, stopped_in
    from minift.slices import rows_by
    from minift.solve import solve
    from minift.training import Progress, fit

    directory = Path(given.out) if record else None
    if record and (result := finished(directory, record, given)):
        return result

    if given.threads is not None:
        torch.set_num_threads(given.threads)
    forget_peak_memory()

    # Options
    start = setup.start(given)
    options, origins = setup.resolve(given, start, directory)

    # Data
    parts = read_splits(options, start.task, layout_of(options, start.task.LAYOUT))
    task = start.task.learn(parts["train"], options)
    data = setup.prepare(options, task, parts, start.checkpoint)
    printing.print_data(parts, data, task, task.review(parts, options))
    if options.by:
        rows_by(list(parts.values())[-1], options.by)  # a column that is not there is told before training
    options, why, steps_per_epoch = setup.choose_epochs(options, data["train"])

    # Model and optimizer
    training = setup.build(options, given, start, task, data["train"], steps_per_epoch)
    start = replace(start, checkpoint=start.checkpoint.without_tensors())  # the model has copied them
    options, measured = setup.with_precision(options, training)
    if not options.quiet:
        printing.print_model(training, start, options)
        printing.print_settings(given, options, origins | why | measured)
    if options.plan:
        print_plan(training, data, options)
        return None

    # Train
    if record:
        run = Run.reopen(directory, record, options, start, training, parts)
    else:
        run = Run.create(options, given, start, training, parts)
    with closing(run), stopped_in(run.directory), Signals() as signals, float32_products(options.precision == "tf32"):
        checkpoints = Checkpoints(run, options, signals)
        printing.print_work(training, start.device, options)
        setup_seconds = time.perf_counter() - started
        body, kept = training.model.body, run.record.get("kept")
        for penalty in training.penalties:
            penalty.begin(run.directory)
        seen, seconds = cache.keep(data, body, training.precision, start.device, options, run.directory, kept)
        if training.frozen:
            run.remember(kept={split: isinstance(rows, cache.CachedFeatures) for split, rows in seen.items()})
        progress = Progress(seconds_training=seconds)
        if getattr(options, "solver", "gradient") == "lbfgs":
            known = solve(training, seen["train"], seen.get("valid"), run, options, progress)
        else:
            with signals.patiently(), printing.rows_named(parts["train"], checkpoints):
                known = fit(training, seen["train"], seen.get("valid"), run, options, progress, checkpoints)

        # Results of what was saved
        task, scores = run.score(training, seen, options, progress, known)
        by = run.score_by(training, task, parts, options) if options.by and scores else {}
        forgotten = None
        if options.source_data:
            forgotten = training.source.measure(training.model.body, training.precision, options.batch_size)
        if rank():  # the first process alone has the figures of all rows
            return None
        result = run.finish(training, seen, scores, by, progress, setup_seconds, start.device, forgotten)
    printing.print_results(run, parts, task, training, scores, by, progress, options, forgotten)
    return result


def run_seeds(given, directory: Path | None = None) -> None:
    """The same run with several seeds, and what they have in common. A seed that diverges is counted.

    directory: where they were interrupted and go on.
    """
    from minift.runs import begin_several, summarise

    if directory and (directory / "result.json").is_file():
        return print(f"{directory}: all {given.seeds} seeds have finished")
    directory = directory or begin_several(given)
    seeds = list(range(given.seed, given.seed + given.seeds))
    runs = {f"seed-{seed}": replace(given, seed=seed, seeds=1, out=str(directory / f"seed-{seed}")) for seed in seeds}
    print(summarise(directory, seeds, list(run_each(runs, directory, "seeds").values()), higher_is_better(given.task)))


def run_grid(given, directory: Path | None = None) -> None:
    """A run for every combination of the flags that have several values; the best on the validation rows is kept.

    directory: where they were interrupted and go on.
    """
    from minift.runs import begin_several, choose_best, keep_best

    if directory and (directory / "grid.json").is_file():
        return keep_best(directory)
    directory, runs = directory or begin_several(given), {}
    several = [name for name in GRID if isinstance(getattr(given, name), tuple)]
    for values in product(*(getattr(given, name) for name in several)):
        chosen = dict(zip(several, values, strict=True))
        label = ",".join(f"{name.replace('_', '-')}={value}" for name, value in chosen.items())
        runs[label] = replace(given, **chosen, out=str(directory / label))
    higher = higher_is_better(given.task)
    monitor = next(iter(higher)) if given.monitor is None else given.monitor
    print(choose_best(directory, run_each(runs, directory, "runs"), monitor, higher[monitor]))


def run_each(runs: dict[str, object], directory: Path, what: str) -> dict[str, dict | None]:
    """The results of several runs; None for one that diverged. what: they are, as seeds. One that was interrupted goes on."""
    from minift.runs import continued, delete_if_unused, read_record, resume_command

    results = {}
    for label, options in runs.items():
        if done := next(filter(None, results.values()), None):
            options = replace(options, precision=done["precision"])  # measured once
        print(f"\n======== {label}\n", flush=True)
        place, record = Path(options.out), None
        if (place / "config.json").is_file() and (place / "config.json").stat().st_size:
            record = read_record(place / "config.json")
            line = {name: value for name in ("device", "workers") if (value := getattr(options, name, None)) is not None}
            options = continued(type(options), record, line, place)
        else:
            (place / "config.json").unlink(missing_ok=True)
        gc.collect()  # the model of the run before
        try:
            results[label] = run_once(options, record)
        except Diverged as error:
            print(f"{label} diverged: {error}")
            results[label] = None
        except UserError:
            delete_if_unused(directory)
            raise
        except KeyboardInterrupt as stop:
            raise type(stop)(f"in {label}; to continue: {resume_command(directory)}") from None
    if not any(results.values()):
        raise UserError(f"all {len(runs)} runs have diverged; try a lower --lr")
    print(f"\n======== {len(runs)} {what}, in {directory}\n")
    return results


def higher_is_better(task: str) -> dict[str, bool]:
    return look_up(TASKS, task, "--task").METRICS | {"loss": False}


if __name__ == "__main__":
    command(main, "train")
