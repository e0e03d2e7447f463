"""README's table on the embedded reviews: `python tests/bench/table_reviews.py`. Test accuracy over 5 seeds, about 10 minutes.

Every run is appended to runs/table_reviews.jsonl; a rerun goes on where it stopped.
"""

import argparse
import statistics
import sys

from restartable import cell, collect, jobs_flag, spread, train

ROWS = {
    "python train.py --precision float32": [],
    "the same with --epochs 0 (untrained)": ["--epochs", "0"],
    "the same with --init random": ["--init", "random"],
}
SEEDS = range(5)


def measure(run: dict) -> dict:
    result = train(["--precision", "float32", *run["flags"], "--seed", str(run["seed"])])
    return {"accuracy": 100 * result["test"]["accuracy"], "seconds": result["command_seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs_flag(parser)
    wanted = [{"flags": flags, "seed": seed} for flags in ROWS.values() for seed in SEEDS]
    done = collect("table_reviews.jsonl", wanted, measure, parser.parse_args().jobs)
    print("| command | test accuracy, mean ± standard deviation (lowest to highest) | seconds, whole command |\n|---|---|---|")
    for name, flags in ROWS.items():
        mine = [d for d in done if d["run"]["flags"] == flags]
        accuracy, seconds = ([d[key] for d in mine] for key in ("accuracy", "seconds"))
        mean = f"{statistics.mean(seconds):.0f}" if seconds else ""
        print(f"| `{name}` | {cell(accuracy, len(SEEDS), spread)} | {mean} |")
    sys.exit(len(done) < len(wanted))


if __name__ == "__main__":
    main()
