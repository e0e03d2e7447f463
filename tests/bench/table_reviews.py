"""README's table on the embedded reviews: `python tests/bench/table_reviews.py`. Test accuracy over 5 seeds, about 10 minutes.

Every run is appended to runs/table_reviews.jsonl; a rerun goes on where it stopped.
"""

import statistics

from restartable import collect, train

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
    done = collect("table_reviews.jsonl", [{"flags": flags, "seed": seed} for flags in ROWS.values() for seed in SEEDS], measure)
    print("| command | test accuracy, mean ± standard deviation (lowest to highest) | seconds, whole command |\n|---|---|---|")
    for name, flags in ROWS.items():
        mine = [d for d in done if d["run"]["flags"] == flags]
        accuracy, seconds = ([d[key] for d in mine] for key in ("accuracy", "seconds"))
        spread = f"{statistics.mean(accuracy):.1f} ± {statistics.stdev(accuracy):.1f} ({min(accuracy):.1f} to {max(accuracy):.1f})"
        print(f"| `{name}` | {spread} | {statistics.mean(seconds):.0f} |", flush=True)


if __name__ == "__main__":
    main()
