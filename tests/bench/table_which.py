"""Which method for which task: `python tests/bench/table_which.py --data ROOT`.

Over two hours on 2 cores, 45 minutes with --seeds 1; minutes on a GPU with 16 cores and --jobs 14.

full, lora, pfeiffer, bitfit and probe on RTE, STS-B, WNUT-17 and TREC's 50 classes, 3 seeds, in the recipe and with the data, the
epochs and so the steps of table_tasks.py, whose ROOT it takes; each method at its own learning rate. Methods of few parameters
would take more steps by themselves (10 epochs): this is the table at equal cost in steps.

Every run is appended to runs/table_which.jsonl, those of full to runs/table_tasks.jsonl, where they are table_tasks.py's of these
seeds; a rerun goes on where it stopped.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import table_tasks
from restartable import cell, collect, jobs_flag, train
from table_tasks import TASKS, flags_of, shown

METHODS = ("lora", "pfeiffer", "bitfit", "probe")
FIGURES = {"rte": "accuracy", "stsb": "spearman", "wnut": "f1_strict", "trec50": "accuracy"}
SEEDS = 3


def measure(root: Path, run: dict) -> dict:
    result = train([*flags_of(run["task"], root), "--method", run["method"], "--seed", str(run["seed"])])
    return {**result["test"], "steps": result["steps"], "seconds": result["seconds"]["train"], **result["parameters"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory of the data sets' directories")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"(default {SEEDS})")
    jobs_flag(parser)
    given = parser.parse_args()
    root, seeds = given.data.resolve(), range(given.seeds)
    full = [{"task": task, "who": "minift", "seed": seed} for task in FIGURES for seed in seeds]
    others = [{"task": task, "method": method, "seed": seed} for seed in seeds for task in FIGURES for method in METHODS]
    done = collect("table_tasks.jsonl", full, partial(table_tasks.measure, root), given.jobs)
    done += collect("table_which.jsonl", others, partial(measure, root), given.jobs)
    found = {(method, task): [] for method in ("full", *METHODS) for task in FIGURES}
    for run in done:
        found[run["run"].get("method", "full"), run["run"]["task"]].append(run)
    heads = []
    for task, figure in FIGURES.items():
        steps = {run["steps"] for run in done if run["run"]["task"] == task}
        assert len(steps) < 2, (task, steps)
        heads.append(f"{TASKS[task].name}, {TASKS[task].metrics[figure]} ({', '.join(f'{n:.0f}' for n in steps)} steps)")
    print(f"| method | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for method in ("full", *METHODS):
        cells = [cell([run[figure] for run in found[method, task]], given.seeds, shown) for task, figure in FIGURES.items()]
        print(f"| `{method}` | {' | '.join(cells)} |")
    sys.exit(len(done) < len(full) + len(others))


if __name__ == "__main__":
    main()
