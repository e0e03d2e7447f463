"""README's table on stability, after Mosbach et al. 2021 (arXiv:2006.04884): `python tests/bench/table_stability.py --trec DIR`.

The embedded checkpoint on the first 1,000 rows of TREC (6 classes), 5 epochs, the last one kept, 5 seeds: default rate and 10 times
that, with and without AdamW's bias correction, with and without warm-up. A run has collapsed where its accuracy on the test file is
not above that of the most frequent class there. Under an hour; every run is appended to runs/table_stability.jsonl; a rerun goes on
where it stopped.
"""

import argparse
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

from restartable import cell, collect, first_rows, jobs_flag, spread, train

ROWS, SEEDS = 1000, range(5)
RATES = {"default": "2e-4", "10 times": "2e-3"}
LAYOUT = ["--format", "label-first", "--encoding", "latin-1", "--label-part", ":"]


def measure(place: Path, run: dict) -> dict:
    with tempfile.TemporaryDirectory() as directory:
        path = first_rows(place / "train_5500.label", ROWS, False, Path(directory))
        flags = ["--lr", RATES[run["rate"]], "--optimizer", f"adamw:bias_correction={run['correction']}"]
        flags += ["--warmup", "0.1" if run["warmup"] else "0", "--seed", str(run["seed"]), "--epochs", "5"]
        files = ["--train", str(path), "--valid", "none", "--test", str(place / "TREC_10.label")]
        result = train([*files, *LAYOUT, *flags])
    return {"accuracy": 100 * result["test"]["accuracy"], "seconds": result["command_seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trec", type=Path, required=True, help="directory of TREC's two files")
    jobs_flag(parser)
    given = parser.parse_args()
    place = given.trec.resolve()
    settings = [(rate, correction, warmup) for rate in RATES for correction in (True, False) for warmup in (True, False)]
    wanted = [{"rate": r, "correction": c, "warmup": w, "seed": seed} for seed in SEEDS for r, c, w in settings]
    done = collect("table_stability.jsonl", wanted, partial(measure, place), given.jobs)
    labels = [line.split(b":")[0] for line in (place / "TREC_10.label").read_bytes().splitlines()]
    majority = 100 * Counter(labels).most_common(1)[0][1] / len(labels)
    print("| rate | bias correction | warm-up | accuracy, mean ± standard deviation (lowest to highest) | collapsed |")
    print("|---|---|---|---|---|")
    for rate, correction, warmup in settings:
        key = {"rate": rate, "correction": correction, "warmup": warmup}
        mine = [d["accuracy"] for d in done if key.items() <= d["run"].items()]
        collapsed = f"{sum(a <= majority for a in mine)} of {len(mine)}"
        cells = [rate, "on" if correction else "off", "10 %" if warmup else "none", cell(mine, len(SEEDS), spread), collapsed]
        print(f"| {' | '.join(cells)} |")
    sys.exit(len(done) < len(wanted))


if __name__ == "__main__":
    main()
