"""Fine-tune a model: `python train.py` on the embedded sample, `python train.py --train FILE` on your own data.

`run_once` reads from top to bottom what a run is: options, data, model and optimizer, fit, results. The training loop is `fit` in
minift/training.py.
"""

import gc
import os
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

from minift.errors import Diverged, UserError, command, look_up
from minift.flags import Parser, add_flags
from minift.options import GRID, Options, check, flags_of_other_tasks, layout_of, options_of
from minift.tasks import TASKS


def main(argv: list[str]) -> None:
    first = Parser("train.py", add_help=False)
    first.add_argument("--task", default=Options.task)
    task = first.parse_known_args(argv)[0].task
    options = options_of(task)
    parser = Parser("train.py", "Fine-tune a model; without flags, on the embedded sample.")
    add_flags(parser, options)
    given = options(**vars(parser.parse(argv, flags_of_other_tasks(task))))
    if given.method == "help":
        from minift.report import list_methods

        list_methods()
        return
    check(given)
    if any(isinstance(getattr(given, name), tuple) for name in GRID):
        run_grid(given)
    elif given.seeds > 1:
        run_seeds(given)
    else:
        run_once(given)


def run_once(given) -> dict | None:
    """One run from options to results: what it writes to result.json; None where --plan stops before training."""
    started = time.perf_counter()
    gc.collect()  # the model of the run before
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # large tensors in huge pages: 4 % of a step on a CPU

    from minift import cache, report, setup
    from minift.data.splits import read_splits
    from minift.optim.precision import without_tf32
    from minift.plan import print_plan
    from minift.runs import Run, stopped_in
    from minift.solve import solve
    from minift.training import Progress, fit

    # Options
    start = setup.start(given)
    options, origins = setup.resolve(given, start)

    # Data
    parts = read_splits(options, start.task, layout_of(options, start.task.LAYOUT))
    task = start.task.learn(parts["train"], options)
    data = setup.prepare(options, task, parts, start.checkpoint)
    report.print_data(parts, data, task, task.review(parts, options))
    options, why, steps_per_epoch = setup.choose_epochs(options, data["train"])

    # Model and optimizer
    training = setup.build(options, given, start, task, data["train"], steps_per_epoch)
    options, measured = setup.with_precision(options, training)
    report.print_model(training, start, options)
    report.print_settings(given, options, origins | why | measured)
    if options.plan:
        print_plan(training, data, options)
        return None

    # Train
    run = Run.create(options, start, training)
    report.print_work(training, start.device, options)
    setup_seconds = time.perf_counter() - started
    with stopped_in(run.directory), without_tf32():
        seen, seconds = cache.keep(data, training.model.body, training.precision, start.device, options, run.directory)
        progress = Progress(seconds_training=seconds)
        if getattr(options, "solver", "gradient") == "lbfgs":
            solve(training, seen["train"], seen.get("valid"), run, options, progress)
        else:
            fit(training, seen["train"], seen.get("valid"), run, options, progress)

    # Results of what was saved
    task, scores = run.score(training, seen, options, progress)
    result = run.finish(training, scores, progress, setup_seconds, start.device)
    report.print_results(run, parts, task, training, scores, progress, options)
    return result


def run_seeds(given) -> None:
    """The same run with several seeds, and what they have in common. A seed that diverges is counted."""
    from minift.runs import directory_of, summarise

    directory = directory_of(given)
    seeds = list(range(given.seed, given.seed + given.seeds))
    runs = {f"seed-{seed}": replace(given, seed=seed, seeds=1, out=str(directory / f"seed-{seed}")) for seed in seeds}
    print(summarise(directory, seeds, list(run_each(runs, directory, "seeds").values()), higher_is_better(given.task)))


def run_grid(given) -> None:
    """A run for every combination of the flags that have several values; the best on the validation rows is kept."""
    from minift.runs import choose_best, directory_of

    directory, runs = directory_of(given), {}
    several = [name for name in GRID if isinstance(getattr(given, name), tuple)]
    for values in product(*(getattr(given, name) for name in several)):
        chosen = dict(zip(several, values, strict=True))
        label = ",".join(f"{name.replace('_', '-')}={value}" for name, value in chosen.items())
        runs[label] = replace(given, **chosen, out=str(directory / label))
    higher = higher_is_better(given.task)
    monitor = next(iter(higher)) if given.monitor is None else given.monitor
    print(choose_best(directory, run_each(runs, directory, "runs"), monitor, higher[monitor]))


def run_each(runs: dict[str, object], directory: Path, what: str) -> dict[str, dict | None]:
    """The results of several runs; None for one that diverged. what: they are, as seeds."""
    results = {}
    for label, options in runs.items():
        if done := next(filter(None, results.values()), None):
            options = replace(options, precision=done["precision"])  # measured once
        print(f"\n======== {label}\n", flush=True)
        try:
            results[label] = run_once(options)
        except Diverged as error:
            print(f"{label} diverged: {error}")
            results[label] = None
    if not any(results.values()):
        raise UserError(f"all {len(runs)} runs have diverged; try a lower --lr")
    print(f"\n======== {len(runs)} {what}, in {directory}\n")
    return results


def higher_is_better(task: str) -> dict[str, bool]:
    return look_up(TASKS, task, "--task").METRICS | {"loss": False}


if __name__ == "__main__":
    command(main, "train")
