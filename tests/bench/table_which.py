"""Which method for which task: `python tests/bench/table_which.py --data ROOT`, about 45 minutes on 2 cores.

full, lora, pfeiffer, bitfit and probe on RTE, STS-B, WNUT-17 and TREC's 50 classes, one seed, in the recipe and with the data, the
epochs and so the steps of table_tasks.py, whose ROOT it takes; each method at its own learning rate. Methods of few parameters
would take more steps by themselves (10 epochs): this is the table at equal cost in steps.

Every run is appended to runs/table_which.jsonl; a rerun goes on where it stopped.
"""

import argparse
from functools import partial
from pathlib import Path

from restartable import collect, train
from table_tasks import TASKS, flags_of

METHODS = ("full", "lora", "pfeiffer", "bitfit", "probe")
FIGURES = {"rte": "accuracy", "stsb": "spearman", "wnut": "f1_strict", "trec50": "accuracy"}
SEED = 0


def measure(root: Path, run: dict) -> dict:
    result = train([*flags_of(run["task"], root), "--method", run["method"], "--seed", str(SEED)])
    return {**result["test"], "steps": result["steps"], "seconds": result["seconds"]["train"], **result["parameters"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory of the data sets' directories")
    wanted = [{"task": task, "method": method} for task in FIGURES for method in METHODS]
    done = collect("table_which.jsonl", wanted, partial(measure, parser.parse_args().data))
    steps = {task: next(run["steps"] for run in done if run["run"]["task"] == task) for task in FIGURES}
    heads = [f"{TASKS[task].name}, {TASKS[task].metrics[figure]} ({steps[task]:,} steps)" for task, figure in FIGURES.items()]
    print(f"| method | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for method in METHODS:
        cells = [run[FIGURES[run["run"]["task"]]] for run in done if run["run"]["method"] == method]
        print(f"| `{method}` | {' | '.join(f'{100 * cell:.1f}' for cell in cells)} |")


if __name__ == "__main__":
    main()
