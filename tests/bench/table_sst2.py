"""README's table on SST-2 beside transformers' Trainer: `python tests/bench/table_sst2.py --data DIR`, about 40 minutes on 2 cores.

DIR holds GLUE's train.tsv and dev.tsv. Both start from the embedded checkpoint and take the first 10,000 training rows, 2 epochs,
batch size 32, learning rate 5e-5, weight decay 0.01, linear decay after 10 % warm-up, float32, and score the dev set after every
epoch; runs alternate, each in a process of its own. The Trainer (trainer_script.py) keeps its last epoch, as it does by default,
and so does minift here. Every run is appended to runs/table_sst2.jsonl; a rerun goes on where it stopped. --all adds one run of
minift on all rows, 1 epoch.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from plain import export
from restartable import cell, collect, first_rows, jobs_flag, train

ROWS, EPOCHS, LR, SEEDS = 10_000, 2, "5e-5", range(3)


def run_minift(data: Path, seed: int, rows: int | None, directory: Path) -> dict:
    source = data / "train.tsv" if rows is None else first_rows(data / "train.tsv", rows, True, directory)
    flags = ["--train", str(source), "--valid", str(data / "dev.tsv"), "--lr", LR, "--seed", str(seed)]
    result = train([*flags, "--epochs", str(1 if rows is None else EPOCHS), "--precision", "float32"])  # as the Trainer's
    return {"accuracy": result["last_epoch"]["accuracy"], "seconds": sum(result["seconds"][name] for name in ("train", "evaluate"))}


def run_trainer(data: Path, seed: int, rows: int, directory: Path) -> dict:
    files = {"model": export("minilm-l6", directory), "dev": data / "dev.tsv"}
    files["train"] = first_rows(data / "train.tsv", rows, True, directory)
    flags = [
        word for name, value in (files | {"epochs": EPOCHS, "lr": LR, "seed": seed}).items() for word in (f"--{name}", str(value))
    ]
    command = [sys.executable, "tests/bench/trainer_script.py", *flags]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    return {"accuracy": found["accuracy"], "seconds": found["train_seconds"]}


def work(data: Path, run: dict) -> dict:
    with tempfile.TemporaryDirectory() as directory:
        return (run_minift if run["who"] == "minift" else run_trainer)(data, run["seed"], run["rows"], Path(directory))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory of GLUE's SST-2")
    parser.add_argument("--all", action="store_true", help="add a run of minift on all 67,349 rows, 1 epoch")
    jobs_flag(parser)
    arguments = parser.parse_args()
    wanted = [{"who": who, "rows": ROWS, "seed": seed} for seed in SEEDS for who in ("minift", "Trainer")]
    wanted += [{"who": "minift", "rows": None, "seed": 0}] * arguments.all
    done = collect("table_sst2.jsonl", wanted, partial(work, arguments.data), arguments.jobs)
    print("| | rows | dev accuracy, mean (each seed) | seconds for training and scoring, mean |\n|---|---|---|---|")
    for who, rows in dict.fromkeys((run["who"], run["rows"]) for run in wanted):
        mine = [d for d in done if (d["run"]["who"], d["run"]["rows"]) == (who, rows)]
        accuracy, seconds = ([d[name] for d in mine] for name in ("accuracy", "seconds"))
        mean = f"{statistics.mean(seconds):.0f}" if seconds else ""
        print(f"| {who} | {rows or 'all'} | {cell(accuracy, 1 if rows is None else len(SEEDS), shown)} | {mean} |")
    sys.exit(len(done) < len(wanted))


def shown(values: list[float]) -> str:
    return f"{100 * statistics.mean(values):.2f} ({', '.join(f'{100 * value:.1f}' for value in values)})"


if __name__ == "__main__":
    main()
