"""Which method for which task: `python tests/bench/table_which.py --data ROOT`, about 45 minutes on 2 cores.

full, lora, pfeiffer, bitfit and probe on RTE, STS-B, WNUT-17 and TREC's 50 classes, one seed, in the recipe and with the data, the
epochs and so the steps of table_tasks.py, whose ROOT it takes; each method at its own learning rate. Methods of few parameters
would take more steps by themselves (10 epochs): this is the table at equal cost in steps.

Every run is appended to runs/table_which.jsonl, those of full to runs/table_tasks.jsonl, where they are table_tasks.py's of this
seed; a rerun goes on where it stopped.
"""

import argparse
from functools import partial
from pathlib import Path

import table_tasks
from restartable import collect, train
from table_tasks import TASKS, flags_of

METHODS = ("lora", "pfeiffer", "bitfit", "probe")
FIGURES = {"rte": "accuracy", "stsb": "spearman", "wnut": "f1_strict", "trec50": "accuracy"}
SEED = 0


def measure(root: Path, run: dict) -> dict:
    result = train([*flags_of(run["task"], root), "--method", run["method"], "--seed", str(SEED)])
    return {**result["test"], "steps": result["steps"], "seconds": result["seconds"]["train"], **result["parameters"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory of the data sets' directories")
    root = parser.parse_args().data
    wanted = [{"task": task, "who": "minift", "seed": SEED} for task in FIGURES]
    done = {"full": collect("table_tasks.jsonl", wanted, partial(table_tasks.measure, root))}
    wanted = [{"task": task, "method": method} for task in FIGURES for method in METHODS]
    others = collect("table_which.jsonl", wanted, partial(measure, root))
    done |= {method: [run for run in others if run["run"]["method"] == method] for method in METHODS}
    heads = [
        f"{TASKS[task].name}, {TASKS[task].metrics[figure]} ({run['steps']:.0f} steps)"
        for (task, figure), run in zip(FIGURES.items(), done["full"], strict=True)
    ]
    print(f"| method | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for method, runs in done.items():
        assert [run["steps"] for run in runs] == [run["steps"] for run in done["full"]], method
        cells = [f"{100 * run[figure]:.1f}" for figure, run in zip(FIGURES.values(), runs, strict=True)]
        print(f"| `{method}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
