"""README's table of the methods: `python tests/bench/table_methods.py --sst2 DIR --trec DIR`, up to 150 minutes on 2 cores.

The embedded checkpoint, the first 2,000 training rows of each, every method with its default rate and epochs, the last epoch kept;
accuracy on SST-2's dev set (3 seeds) and on TREC's test file (6 classes, 2 seeds); of the runs on SST-2 the median of the seconds
of training and of the process's peak memory, and the size of model/. Every run is appended to runs/table_methods-DATA.jsonl; a
rerun goes on where it stopped. `--only SST-2` and `--only TREC` run beside each other, on one core each (OMP_NUM_THREADS=1).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from restartable import cell, collect, first_rows, jobs_flag

from minift.methods import METHODS

ROWS = 2000
DATA = {
    "SST-2": ("train.tsv", "dev.tsv", True, []),
    "TREC": ("train_5500.label", "TREC_10.label", False, ["--format", "label-first", "--encoding", "latin-1", "--label-part", ":"]),
}
SEEDS = {"SST-2": range(3), "TREC": range(2)}


def measure(places: dict[str, Path], run: dict) -> dict:
    rows, test, header, layout = DATA[run["data"]]
    place = places[run["data"]]
    with tempfile.TemporaryDirectory() as directory:
        path = first_rows(place / rows, ROWS, header, Path(directory))
        files = ["--train", str(path), "--valid", "none", "--test", str(place / test), *layout]
        flags = ["--method", run["method"], "--seed", str(run["seed"]), "--out", f"{directory}/run"]
        subprocess.run([sys.executable, "train.py", *files, *flags], check=True, stdout=subprocess.DEVNULL)
        result = json.loads(Path(directory, "run", "result.json").read_text())
        size = sum(file.stat().st_size for file in Path(directory, "run", "model").iterdir())
    return {
        "accuracy": 100 * result["test"]["accuracy"],
        "seconds": result["seconds"]["train"],
        "memory": result["peak_memory_mb"],
        "bytes": size,
        **result["parameters"],
    }


def shown(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sst2", type=Path, required=True, help="directory of GLUE's SST-2")
    parser.add_argument("--trec", type=Path, required=True, help="directory of TREC's two files")
    parser.add_argument("--only", choices=[*DATA], help="run these, and print no table")
    jobs_flag(parser)
    arguments = parser.parse_args()
    places = {"SST-2": arguments.sst2.resolve(), "TREC": arguments.trec.resolve()}
    done, missing = {}, 0
    for data in [arguments.only] if arguments.only else DATA:
        wanted = [{"method": m, "data": data, "seed": s} for s in SEEDS[data] for m in METHODS]
        done[data] = collect(f"table_methods-{data}.jsonl", wanted, partial(measure, places), arguments.jobs)
        missing += len(wanted) - len(done[data])
    if arguments.only:
        sys.exit(missing > 0)
    print("| method | trainable | of all | SST-2 | TREC | seconds | memory | model/ |\n|---|---|---|---|---|---|---|---|")
    for method in METHODS:
        cells = []
        for data, runs in done.items():
            values = [run["accuracy"] for run in runs if run["run"]["method"] == method]
            cells.append(cell(values, len(SEEDS[data]), shown))
        mine = [run for run in done["SST-2"] if run["run"]["method"] == method]
        if not mine:
            print(f"| `{method}` | | | {' | '.join(cells)} | | | |")
            continue
        trainable, total, size = (mine[0][name] for name in ("trainable", "total", "bytes"))
        seconds, memory = (statistics.median(run[name] for run in mine) for name in ("seconds", "memory"))
        figures = [f"{trainable:,}", f"{trainable / total:.3%}", *cells, f"{seconds:.0f}", f"{memory:,} MB", f"{size / 1e6:.2f} MB"]
        print(f"| `{method}` | {' | '.join(figures)} |")
    sys.exit(missing > 0)


if __name__ == "__main__":
    main()
