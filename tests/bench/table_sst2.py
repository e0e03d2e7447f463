"""README's table on SST-2 beside transformers' Trainer: `python tests/bench/table_sst2.py --data DIR`, about 40 minutes on 2 cores.

DIR holds GLUE's train.tsv and dev.tsv. Both start from the embedded checkpoint and take the first 10,000 training rows, 2 epochs,
batch size 32, learning rate 5e-5, weight decay 0.01, linear decay after 10 % warm-up, float32, and score the dev set after every
epoch; runs alternate, each in a process of its own. The Trainer keeps its last epoch, as it does by default, and so does minift
here. Every run is appended to runs/table_sst2.jsonl; a rerun goes on where it stopped. --all adds one run of minift on all rows, 1
epoch.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETTING = {"lr": 5e-5, "batch_size": 32, "weight_decay": 0.01, "warmup": 0.1, "max_length": 128, "epochs": 2}
SEEDS = range(3)
DONE = Path("runs") / "table_sst2.jsonl"


def rows_file(data: Path, rows: int | None, directory: Path) -> Path:
    lines = (data / "train.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    path = directory / "train.tsv"
    path.write_text("".join(lines if rows is None else lines[: rows + 1]), encoding="utf-8")
    return path


def run_minift(data: Path, seed: int, rows: int | None, directory: Path) -> dict:
    flags = [f for name, value in SETTING.items() for f in ("--" + name.replace("_", "-"), str(value))]
    train = rows_file(data, rows, directory)
    arguments = [
        sys.executable,
        "train.py",
        "--train",
        str(train),
        "--valid",
        str(data / "dev.tsv"),
        *flags,
        "--seed",
        str(seed),
        "--precision",
        "float32",  # as the Trainer's
    ]
    arguments += ["--epochs", "1"] if rows is None else []  # the last one given counts
    subprocess.run([*arguments, "--out", str(directory / "run")], check=True, stdout=subprocess.DEVNULL)
    events = [json.loads(line) for line in (directory / "run" / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((directory / "run" / "result.json").read_text())
    last = [event for event in events if event["split"] == "valid"][-1]
    return {"accuracy": last["accuracy"], "seconds": sum(result["seconds"][name] for name in ("train", "evaluate"))}


def run_trainer(data: Path, seed: int, rows: int | None, directory: Path) -> dict:
    subprocess.run(
        [sys.executable, "convert.py", "minilm-l6", "--to", "hf", "--out", str(directory / "hf")],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    job = {
        "train": str(rows_file(data, rows, directory)),
        "dev": str(data / "dev.tsv"),
        "model": str(directory / "hf"),
        "seed": seed,
    }
    done = subprocess.run([sys.executable, __file__, "--trainer", json.dumps(job)], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def trainer(job: dict) -> None:
    """The same work by transformers, as its own examples do it: dynamic padding, no grouping by length."""
    import torch
    import transformers

    def read(path):
        pairs = [line.split("\t") for line in Path(path).read_text(encoding="utf-8").splitlines()[1:]]
        encoded = tokenizer([text for text, _ in pairs], truncation=True, max_length=SETTING["max_length"])
        return [{**{key: encoded[key][i] for key in encoded}, "label": int(label)} for i, (_, label) in enumerate(pairs)]

    transformers.set_seed(job["seed"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["model"])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(job["model"], num_labels=2, dtype=torch.float32)
    arguments = transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        learning_rate=SETTING["lr"],
        per_device_train_batch_size=SETTING["batch_size"],
        per_device_eval_batch_size=SETTING["batch_size"],
        num_train_epochs=SETTING["epochs"],
        weight_decay=SETTING["weight_decay"],
        warmup_ratio=SETTING["warmup"],
        eval_strategy="epoch",
        save_strategy="no",
        report_to=[],
        seed=job["seed"],
        disable_tqdm=True,
    )
    work = transformers.Trainer(
        model,
        arguments,
        train_dataset=read(job["train"]),
        eval_dataset=read(job["dev"]),
        processing_class=tokenizer,
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    )
    start = time.perf_counter()
    work.train()
    seconds = time.perf_counter() - start
    last = [entry for entry in work.state.log_history if "eval_accuracy" in entry][-1]
    print(json.dumps({"accuracy": last["eval_accuracy"], "seconds": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="directory of GLUE's SST-2")
    parser.add_argument("--all", action="store_true", help="add a run of minift on all 67,349 rows, 1 epoch")
    parser.add_argument("--trainer", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.trainer:
        return trainer(json.loads(arguments.trainer))
    DONE.parent.mkdir(exist_ok=True)
    done = [json.loads(line) for line in DONE.read_text().splitlines()] if DONE.exists() else []
    wanted = [(who, 10_000, seed) for seed in SEEDS for who in ("minift", "Trainer")] + [("minift", None, 0)] * arguments.all
    for who, rows, seed in wanted:
        if any((d["who"], d["rows"], d["seed"]) == (who, rows, seed) for d in done):
            continue
        with tempfile.TemporaryDirectory() as directory:
            figures = (run_minift if who == "minift" else run_trainer)(arguments.data, seed, rows, Path(directory))
        done.append({"who": who, "rows": rows, "seed": seed, **figures})
        print(done[-1], file=sys.stderr, flush=True)
        with DONE.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
    print("| | rows | dev accuracy, mean (each seed) | seconds for training and scoring, mean |\n|---|---|---|---|")
    for who, rows in dict.fromkeys((who, rows) for who, rows, _ in wanted):
        mine = [d for d in done if (d["who"], d["rows"]) == (who, rows)]
        each = ", ".join(f"{100 * d['accuracy']:.1f}" for d in mine)
        mean, seconds = (statistics.mean(d[name] for d in mine) for name in ("accuracy", "seconds"))
        print(f"| {who} | {rows or 'all'} | {100 * mean:.2f} ({each}) | {seconds:.0f} |")


if __name__ == "__main__":
    main()
