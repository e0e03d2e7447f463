"""What the second task makes forget of the first: `python tests/bench/table_forgetting.py --data ROOT`.

Two and a half hours on 2 cores, half an hour a seed; minutes on a GPU with 16 cores and --jobs 14.

ROOT holds trec and sst2. The embedded checkpoint first learns TREC's six kinds of question (all rows, 3 epochs, mean pooling), a
run for each seed; from there SST-2's film reviews (2,000 rows drawn from the training file, 2 epochs), once for each remedy and
seed, so that remedies are paired. Given are the accuracy on SST-2's 872 validation rows, which no run has chosen anything by, the
accuracy on TREC's 500 test rows through one and the same head of TREC afterwards, and the linear CKA of the last stage on these
rows. All remedies but the first line train at the high learning rate, where there is something to forget; LoRA at its own. EWC
takes its Fisher information from 500 training rows of TREC; rehearsal takes its rows from there. WiSE-FT goes back from the run of
the high learning rate by convert.py --interpolate. Strengths were not tuned.

Below it a shift of domain: SST-2's film reviews, 2,000 rows, train; the embedded reviews, of other things, test. DANN sees their
training rows without labels, the last line is trained on these with their labels instead.

Every run is appended to runs/table_forgetting.jsonl; the models that are needed again lie in runs/table_forgetting; a rerun goes on
where it stopped. The runs of a seed wait for the one of the high learning rate, which makes TREC's body. --rows and --seeds make it
small, to try it out.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from restartable import cell, collect, jobs_flag, train

from minift.data.samples import REVIEWS, reviews_split

LOW, HIGH, BATCH = "2e-5", "2e-4", "32"
WHOLE = f"full, learning rate {HIGH}"
STRENGTHS = ("10", "100", "1000", "10000", "100000")
POINTS = ("0.25", "0.5", "0.75")
TREC = ["--format", "label-first", "--encoding", "latin-1", "--label-part", ":"]
SAME = ["--valid", "none", "--pool", "mean", "--batch-size", BATCH, "--precision", "bfloat16", "--quiet"]
REMEDIES = {
    f"full, learning rate {LOW}": ["--lr", LOW],
    WHOLE: ["--lr", HIGH],
    "L2-SP, alpha 1": ["--lr", HIGH, "--penalty", "l2sp:alpha=1,beta=0"],
    **{f"EWC, strength {s}": ["--lr", HIGH, "--penalty", f"ewc:strength={s},rows=500,data=TREC"] for s in STRENGTHS},
    "mixout, p 0.7": ["--lr", HIGH, "--penalty", "mixout:p=0.7"],
    "distillation, features": ["--lr", HIGH, "--penalty", "distill:strength=1"],
    "distillation, logits": ["--lr", HIGH, "--penalty", "distill:strength=1,of=logits"],
    "rehearsal, a tenth": ["--lr", HIGH, "--rehearse", "TREC", "--rehearse-share", "0.1"],
    "LoRA": ["--method", "lora", "--epochs", "2"],
    "gradual unfreezing": ["--lr", HIGH, "--unfreeze", "gradual:every=18"],
    "moving average": ["--lr", HIGH, "--average", "ema:decay=0.99"],
}


DOMAINS = ("source only", "DANN", "target, supervised", "DANN, strength 0.1")


def name_of(rows: int, seed: int, which: str) -> Path:
    return Path("runs") / "table_forgetting" / f"{which}-{rows}-{seed}"


def kept(directory: Path, flags: list[str]) -> Path:
    """A run that stays: made where it is not there yet, taken up where it was stopped."""
    if not (directory / "result.json").exists():
        goes_on = (directory / "config.json").exists() and (directory / "config.json").stat().st_size
        command = ["--resume", str(directory)] if goes_on else [*flags, "--out", str(directory)]
        subprocess.run([sys.executable, "train.py", *command], check=True, stdout=subprocess.DEVNULL)
    return directory


def trec(root: Path, rows: int, seed: int) -> Path:
    data = ["--train", str(root / "trec" / "train_5500.label"), *TREC]
    some = [] if rows == 2000 else ["--train-rows", str(rows)]
    return kept(name_of(rows, seed, "trec"), [*data, *some, *SAME, "--lr", "1e-4", "--epochs", "3", "--seed", str(seed)])


def flags_of(root: Path, rows: int, seed: int, remedy: str) -> list[str]:
    files = {"TREC": str(root / "trec" / "train_5500.label")}
    data = ["--train", str(root / "sst2" / "train.tsv"), "--train-rows", str(rows), "--test", str(root / "sst2" / "dev.tsv")]
    source = ["--model", str(trec(root, rows, seed)), "--source-data", str(root / "trec" / "TREC_10.label")]
    own = [part.replace("TREC", files["TREC"]) for part in REMEDIES[remedy]]
    return [*data, *source, *SAME, "--epochs", "2", "--seed", str(seed), *own]


def measure(root: Path, run: dict) -> dict:
    if "domain" in run:
        return adapted(root, run)
    rows, seed, remedy = run["rows"], run["seed"], run["remedy"]
    if remedy.startswith("WiSE-FT"):
        whole = kept(name_of(rows, seed, "high"), flags_of(root, rows, seed, WHOLE))
        return interpolated(root, whole, trec(root, rows, seed), remedy.rpartition(" ")[2])
    flags = flags_of(root, rows, seed, remedy)
    result = json.loads((kept(name_of(rows, seed, "high"), flags) / "result.json").read_text()) if remedy == WHOLE else train(flags)
    source = result["source"]
    figures = {"task": result["test"]["accuracy"], "before": source["before"]["accuracy"], "after": source["after"]["accuracy"]}
    return figures | {"cka": [*source["stages"].values()][-1]["cka"], "seconds": result["seconds"]["train"]}


def interpolated(root: Path, run: Path, source: Path, share: str) -> dict:
    """Both tasks' figures of a run that has gone part of the way back."""
    import minift

    out = run.with_name(f"{run.name}-{share}")
    if not out.exists():
        command = [sys.executable, "convert.py", str(run), "--to", "minift", "--interpolate", share, "--out", str(out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    tuned, first = minift.load(out), minift.load(source)

    def accuracy(model, file: Path) -> float:
        return model.score(model.task.read(str(file), model.layout))[0].metrics["accuracy"]

    figures = {"task": accuracy(tuned, root / "sst2" / "dev.tsv"), "before": accuracy(first, root / "trec" / "TREC_10.label")}
    first.model.body.load_state_dict(tuned.model.body.state_dict())
    return figures | {"after": accuracy(first, root / "trec" / "TREC_10.label")}


def adapted(root: Path, run: dict) -> dict:
    """The accuracy on the embedded reviews, whose labels are written as SST-2's are."""
    with tempfile.TemporaryDirectory() as directory:
        files = {split: Path(directory, f"{split}.csv") for split in ("train", "test")}
        with REVIEWS.open(encoding="utf-8", newline="") as lines:
            reviews = [(row["text"], row["label"]) for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)]
        for split, path in files.items():
            rows = [(t, int(label == "positive")) for t, label in reviews if reviews_split(f"{t}\t{label}") == split]
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([("sentence", "label"), *rows])
        supervised = run["domain"] == DOMAINS[2]
        source = files["train"] if supervised else root / "sst2" / "train.tsv"
        data = ["--train", str(source), *([] if supervised else ["--train-rows", str(run["rows"])]), "--test", str(files["test"])]
        target = ["--target-data", str(files["train"])] if run["domain"].startswith("DANN") else []
        target += ["--target-strength", "0.1"] if run["domain"].endswith("0.1") else []
        result = train([*data, *target, *SAME, "--lr", "1e-4", "--epochs", "3", "--seed", str(run["seed"])])
    return {"task": result["test"]["accuracy"]}


def needs(run: dict) -> dict | None:
    """The run of the high learning rate, which makes TREC's body for all remedies of its seed and from which WiSE-FT goes back."""
    return None if "domain" in run or run["remedy"] == WHOLE else {**run, "remedy": WHOLE}


def mean(values: list[float | None], scale: float = 100) -> str:
    if None in values:
        return ""
    deviation = f" ± {scale * statistics.stdev(values):.1f}" if len(values) > 1 and scale == 100 else ""
    return f"{scale * statistics.mean(values):.{1 if scale == 100 else 3}f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory of the data sets' directories")
    parser.add_argument("--rows", type=int, default=2000, help="of SST-2; with another number as many of TREC")
    parser.add_argument("--seeds", type=int, default=5)
    jobs_flag(parser)
    given = parser.parse_args()
    remedies = [*REMEDIES, *(f"WiSE-FT, share {share}" for share in POINTS)]
    wanted = [{"rows": given.rows, "seed": seed, "remedy": remedy} for seed in range(given.seeds) for remedy in remedies]
    wanted.sort(key=lambda run: run["remedy"] != WHOLE)  # the others need it
    wanted += [{"rows": given.rows, "seed": seed, "domain": domain} for seed in range(given.seeds) for domain in DOMAINS]
    done = collect("table_forgetting.jsonl", wanted, partial(measure, given.data.resolve()), given.jobs, needs)
    print("| | SST-2 afterwards | TREC before | TREC afterwards | CKA of the last stage |\n|---|---|---|---|---|")
    for remedy in remedies:
        mine = [run for run in done if run["run"].get("remedy") == remedy]
        figures = [cell([run[what] for run in mine], given.seeds, mean) for what in ("task", "before", "after")]
        cka = cell([run.get("cka") for run in mine], given.seeds, partial(mean, scale=1))
        print(f"| {remedy} | {' | '.join(figures)} | {cka} |")
    print("\n| film reviews -> reviews of other things | accuracy |\n|---|---|")
    for domain in DOMAINS:
        mine = [run["task"] for run in done if run["run"].get("domain") == domain]
        print(f"| {domain} | {cell(mine, given.seeds, mean)} |")
    sys.exit(len(done) < len(wanted))


if __name__ == "__main__":
    main()
