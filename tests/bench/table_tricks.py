"""README's ablation of ULMFiT's three tricks on BERT: `python tests/bench/table_tricks.py --sst2 DIR --trec DIR`, under an hour.

The embedded checkpoint, the first 1,000 training rows of each, 5 epochs, the last one kept, 5 seeds; accuracy on SST-2's dev set
and on TREC's test file (6 classes). Every run is appended to runs/table_tricks.jsonl; a rerun goes on where it stopped.

The tricks are those of Howard & Ruder 2018 (arXiv:1801.06146): rates that fall by 2.6 from stage to stage, the slanted triangular
schedule, and unfreezing from the top, here one stage more every 16 steps, so that all train for the last 48 of 160.
"""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

from restartable import cell, collect, first_rows, jobs_flag, spread, train

ROWS = 1000
TRICKS = {
    "discriminative rates": ["--layer-decay", "0.385"],
    "slanted triangular": ["--schedule", "slanted-triangular"],
    "gradual unfreezing": ["--unfreeze", "gradual:every=16"],
}
CONFIGURATIONS = {
    "full": [],
    **{f"full + {name}": flags for name, flags in TRICKS.items()},
    "full + all three": [flag for flags in TRICKS.values() for flag in flags],
}
SEEDS = range(5)
DATA = {
    "SST-2": ("train.tsv", "dev.tsv", True, []),
    "TREC": ("train_5500.label", "TREC_10.label", False, ["--format", "label-first", "--encoding", "latin-1", "--label-part", ":"]),
}


def measure(places: dict[str, Path], run: dict) -> dict:
    rows, test, header, layout = DATA[run["data"]]
    place = places[run["data"]]
    with tempfile.TemporaryDirectory() as directory:
        path = first_rows(place / rows, ROWS, header, Path(directory))
        files = ["--train", str(path), "--valid", "none", "--test", str(place / test), *layout]
        result = train([*files, "--epochs", "5", "--seed", str(run["seed"]), *CONFIGURATIONS[run["configuration"]]])
    return {"accuracy": 100 * result["test"]["accuracy"], "seconds": result["command_seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sst2", type=Path, required=True, help="directory of GLUE's SST-2")
    parser.add_argument("--trec", type=Path, required=True, help="directory of TREC's two files")
    jobs_flag(parser)
    arguments = parser.parse_args()
    places = {"SST-2": arguments.sst2.resolve(), "TREC": arguments.trec.resolve()}
    wanted = [{"configuration": c, "data": d, "seed": s} for s in SEEDS for c in CONFIGURATIONS for d in DATA]
    done = collect("table_tricks.jsonl", wanted, partial(measure, places), arguments.jobs)
    print(f"| | {' | '.join(DATA)} |\n|---|{'---|' * len(DATA)}")
    for configuration in CONFIGURATIONS:
        cells = []
        for data in DATA:
            mine = [d["accuracy"] for d in done if (d["run"]["configuration"], d["run"]["data"]) == (configuration, data)]
            cells.append(cell(mine, len(SEEDS), spread))
        print(f"| {configuration} | {' | '.join(cells)} |")
    sys.exit(len(done) < len(wanted))


if __name__ == "__main__":
    main()
