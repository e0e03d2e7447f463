"""How many rows does it take? `python tests/bench/table_rows.py --sst2 DIR`, about 35 minutes of one core.

16, 50, 100 and 1,000 training rows of SST-2 (DIR with GLUE's train.tsv and dev.tsv), as many of each class, drawn anew for every
seed. Prompt tuning, LoRA, full fine-tuning and a probe of the embedded model at their defaults, the last epoch kept, and TF-IDF
with logistic regression (scikit-learn) on the same rows. Accuracy on the dev set's 872 rows.

Every run is appended to runs/table_rows.jsonl; a rerun goes on where it stopped.
"""

import argparse
import random
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

from restartable import cell, collect, jobs_flag, train

ROWS, SEEDS = (16, 50, 100, 1000), (0, 1)
METHODS = ("TF-IDF", "probe", "prompt", "lora", "full")


def drawn(root: Path, rows: int, seed: int) -> list[str]:
    """Lines of train.tsv, without its header, as many of each class."""
    lines = (root / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    generator = random.Random(seed)
    return [line for label in "01" for line in generator.sample([line for line in lines if line.endswith(f"\t{label}")], rows // 2)]


def tfidf(lines: list[str], tested: list[str]) -> float:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=1000))
    (texts, labels), (others, right) = (zip(*(line.rsplit("\t", 1) for line in part), strict=True) for part in (lines, tested))
    return float(model.fit(texts, labels).score(others, right))


def measure(root: Path, run: dict) -> dict:
    lines = drawn(root, run["rows"], run["seed"])
    if run["method"] == "TF-IDF":
        return {"accuracy": tfidf(lines, (root / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:])}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rows.tsv"
        path.write_text("\n".join(["sentence\tlabel", *lines]) + "\n", encoding="utf-8")
        flags = ["--train", str(path), "--valid", "none", "--test", str(root / "dev.tsv"), "--method", run["method"]]
        result = train([*flags, "--seed", str(run["seed"]), "--precision", "float32", "--quiet"])
    return {"accuracy": result["test"]["accuracy"], "steps": result["steps"]}


def shown(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sst2", type=Path, required=True, help="directory of train.tsv and dev.tsv")
    jobs_flag(parser)
    given = parser.parse_args()
    wanted = [{"method": method, "rows": rows, "seed": seed} for seed in SEEDS for rows in ROWS for method in METHODS]
    done = collect("table_rows.jsonl", wanted, partial(measure, given.sst2.resolve()), given.jobs)
    print(f"| rows | {' | '.join(METHODS)} |\n|---|{'---|' * len(METHODS)}")
    for rows in ROWS:
        cells = []
        for method in METHODS:
            found = [100 * d["accuracy"] for d in done if (d["run"]["method"], d["run"]["rows"]) == (method, rows)]
            cells.append(cell(found, len(SEEDS), shown))
        print(f"| {rows:,} | {' | '.join(cells)} |")
    sys.exit(len(done) < len(wanted))


if __name__ == "__main__":
    main()
