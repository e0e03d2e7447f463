"""A decoder from scratch, and what it forgets: `python tests/bench/table_gpt2.py --data ROOT`, about 20 minutes of one core.

ROOT holds tinyshakespeare/input.txt and wikitext2/wiki.test.raw. A GPT-2 of 4 layers of width 128 over bytes trains from random
weights on the first two thirds of Tiny Shakespeare, as one document in blocks of 128 bytes; the next 20,000 bytes choose the epoch.
Then the whole model, and a LoRA of all its linear layers, go on with 300,000 bytes of Wikipedia. All three are scored on both: on
100,000 bytes of plays that no run has seen, and on 100,000 of other articles. bigram: each byte from the one before it, counted in
the same training bytes, add-one smoothed. Last a sample of each.

Every run is appended to runs/table_gpt2.jsonl, the models lie in runs/table_gpt2; a rerun goes on where it stopped.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path

from restartable import collect, jobs_flag

MODELS = Path("runs") / "table_gpt2"
SIZE = "gpt2:n_layer=4,n_embd=128,n_head=4,n_positions=128"
SHARED = ["--task", "causal-lm", "--documents", "file", "--max-length", "128", "--batch-size", "16", "--precision", "float32"]
SHARED += ["--dropout", "0", "--attention-dropout", "0", "--quiet"]
RUNS = {
    "scratch": ["--model", SIZE, "--init", "random", "--epochs", "6", "--lr", "2e-3"],
    "full": ["--model", str(MODELS / "scratch"), "--epochs", "4", "--lr", "5e-4"],
    "lora": ["--model", str(MODELS / "scratch"), "--epochs", "4", "--lr", "5e-3", "--method",
             "lora:rank=8,sites=qkv/attention_output/feed_forward_hidden/feed_forward_output"],
}  # fmt: skip
SHOWN = {
    "bigram": "bigram",
    "scratch": "from scratch on Shakespeare",
    "full": "then all of it on Wikipedia",
    "lora": "then a LoRA on Wikipedia",
}
STARTS = {"plays": "ROMEO:\n", "articles": " The city of "}


def texts(root: Path) -> dict[str, bytes]:
    """The parts of both texts; none of them overlap."""
    plays = (root / "tinyshakespeare" / "input.txt").read_bytes()
    articles = (root / "wikitext2" / "wiki.test.raw").read_bytes().decode().encode("ascii", "replace")
    third = len(plays) // 3
    return {
        "scratch": plays[: 2 * third],
        "valid of scratch": plays[2 * third : 2 * third + 20_000],
        "plays": plays[-100_000:],
        "wiki": articles[:300_000],
        "valid of wiki": articles[300_000:320_000],
        "articles": articles[-100_000:],
    }


def measure(root: Path, run: dict) -> dict:
    parts, who = texts(root), run["who"]
    if who == "bigram":
        return {name: bigram(parts["scratch"], parts[name]) for name in STARTS}
    with tempfile.TemporaryDirectory() as name:
        files = {part: Path(name) / f"{part.replace(' ', '-')}.txt" for part in parts}
        for part, file in files.items():
            file.write_bytes(parts[part])
        train, out = "scratch" if who == "scratch" else "wiki", MODELS / who
        if not (out / "result.json").exists():
            data = ["--train", str(files[train]), "--valid", str(files[f"valid of {train}"]), "--out", str(out)]
            command("train.py", *SHARED, *data, *RUNS[who])
        result = json.loads((out / "result.json").read_text())
        found = {"minutes": result["seconds"]["train"] / 60, "best_epoch": result["best_epoch"], "steps": result["steps"]}
        for part, start in STARTS.items():
            score = [sys.executable, "-m", "minift.evaluate", str(out), "--data", str(files[part])]
            lines = subprocess.run(score, check=True, capture_output=True, text=True).stdout.splitlines()
            at = next(i for i, line in enumerate(lines) if line.split()[:1] == ["loss"])
            found[part] = dict(zip(lines[at].split(), map(float, lines[at + 1].replace(",", "").split()), strict=True))
            way = ["--temperature", "0.8", "--top-k", "40", "--new-tokens", "115", "--seed", "1"]
            say = [sys.executable, "-m", "minift.generate", str(out), start, *way]
            found[f"sample of {part}"] = start + subprocess.run(say, check=True, capture_output=True, text=True).stdout
    return found


def command(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def bigram(train: bytes, test: bytes) -> dict:
    pairs, singles = Counter(pairwise(train)), Counter(train)
    loss = -sum(math.log((pairs[pair] + 1) / (singles[pair[0]] + 256)) for pair in pairwise(test)) / (len(test) - 1)
    return {"perplexity": math.exp(loss), "bits_per_byte": loss / math.log(2)}


def needs(run: dict) -> dict | None:
    return {"who": "scratch"} if run["who"] in ("full", "lora") else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory of the data sets' directories")
    jobs_flag(parser)
    given = parser.parse_args()
    wanted = [{"who": who} for who in SHOWN]
    done = collect("table_gpt2.jsonl", wanted, partial(measure, given.data.resolve()), given.jobs, needs)
    print("| | perplexity per byte, plays | articles | bits per byte, plays | articles | minutes of training |")
    print("|---|---|---|---|---|---|")
    for run in done:
        cells = [f"{run[part][name]:.2f}" for name in ("perplexity", "bits_per_byte") for part in STARTS]
        print(f"| {SHOWN[run['run']['who']]} | {' | '.join(cells)} | {run.get('minutes', 0):.1f} |")
    for run in (run for run in done if run["run"]["who"] != "bigram"):
        for part in STARTS:
            print(f"\n{SHOWN[run['run']['who']]}:\n{run[f'sample of {part}']}")
    sys.exit(len(done) < len(SHOWN))


if __name__ == "__main__":
    main()
