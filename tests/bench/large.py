"""Files larger than memory, until the first step, beside Hugging Face's datasets: `python tests/bench/large.py [--peer PYTHON]`.

CSV files of up to 1,000,000 rows of 40 bytes, made from the words of the embedded reviews, for the embedded model: read, split,
tokenised, checked, and one batch made. Of each start, which is a process of its own, the seconds of the processor and what the
resident memory grows by, from where the tokenizer is loaded; the second start finds the ids of the first. The peer reads the file
and maps the same tokenizer over it, `load_dataset("csv").map(batched=True)`, with an interpreter that has datasets and transformers
(PYTHON). `--task text-regression`: a number for each row. All on one thread, in turn. About 3 minutes.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS = (10_000, 100_000, 300_000, 1_000_000)


def resident() -> float:
    """MB"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def minift_side(file: str, task: str) -> None:
    import torch

    from minift import printing, setup
    from minift.data.splits import read_splits
    from minift.data.tokenising import encode
    from minift.options import layout_of, options_of

    given = options_of(task)(task=task, train=file, out=f"{file}-run")
    start = setup.start(given)
    options, _ = setup.resolve(given, start, None)
    encode(start.checkpoint.tokenizer, ["what is loaded on first use"] * 2000, None, 128, 0)
    before, began = resident(), time.process_time()
    parts = read_splits(options, start.task, layout_of(options, start.task.LAYOUT))
    task = start.task.learn(parts["train"], options)
    data = setup.prepare(options, task, parts, start.checkpoint)
    printing.print_data(parts, data, task, task.review(parts, options))
    order = data["train"].order(options.batch_size, options.seed, 0)
    next(iter(data["train"].batches(order, torch.device("cpu"), 0)))
    print("\n", time.process_time() - began, resident() - before)


def peer_side(file: str, tokenizer: str) -> None:
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=tokenizer, pad_token="[PAD]")
    tokenizer(["what is loaded on first use"] * 2000)
    before, began = resident(), time.process_time()
    rows = datasets.load_dataset("csv", data_files=file, split="train")
    rows = rows.map(lambda batch: tokenizer(batch["text"], truncation=True, max_length=128), batched=True)
    rows[:32]
    print("\n", time.process_time() - began, resident() - before)


def write(file: Path, rows: int, task: str) -> None:
    from minift.data.samples import REVIEWS

    draw = random.Random(0)
    words = [word for word in REVIEWS.read_text(encoding="utf-8").lower().split() if word.isalpha()]
    with file.open("w", encoding="utf-8") as out:
        out.write("text,label\n")
        for _ in range(rows):
            text = ""
            while len(text) < 40:
                text += f" {draw.choice(words)}"
            out.write(f"{text[1:]},{draw.random() if task == 'text-regression' else draw.choice(('negative', 'positive'))}\n")


def figures(python: str, *arguments: str, **environment: str) -> tuple[float, float]:
    """(seconds of the processor, MB)"""
    command = [python, __file__, *arguments]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds, memory = done.stdout.split()[-2:]
    return float(seconds), float(memory)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", metavar="PYTHON")
    parser.add_argument("--task", choices=["text-classification", "text-regression"], default="text-classification")
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS)
    arguments = parser.parse_args()
    tokenizer = str(Path(__file__).parents[2] / "weights" / "minilm-l6" / "tokenizer.json")
    with tempfile.TemporaryDirectory() as place:
        fixed = {name: "1" for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")} | {"TOKENIZERS_PARALLELISM": "false"}
        fixed |= {"XDG_CACHE_HOME": place, "HF_HOME": place, "PYTHONPATH": str(Path(__file__).parents[2])}
        for rows in arguments.rows:
            file = Path(place, f"{rows}.csv")
            write(file, rows, arguments.task)
            sides = {"first": figures(sys.executable, "--minift", str(file), arguments.task, **fixed)}
            sides["second"] = figures(sys.executable, "--minift", str(file), arguments.task, **fixed)
            if arguments.peer:
                sides["datasets"] = figures(arguments.peer, "--datasets", str(file), tokenizer, **fixed)
            print(f"{rows:9,} rows", *(f"{name} {s:6.2f} s {m:6.1f} MB" for name, (s, m) in sides.items()), sep="  ", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--minift"]:
        minift_side(*sys.argv[2:])
    elif sys.argv[1:2] == ["--datasets"]:
        peer_side(*sys.argv[2:])
    else:
        main()
