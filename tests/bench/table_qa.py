"""Question answering beside transformers' model in a plain loop: `python tests/bench/table_qa.py --data ROOT`.

Under half an hour on 2 cores, about a minute on a GPU.

ROOT holds squadshifts/new_wiki_v1.0.json, of which the first 1,500 questions train, and xquad_en/xquad.en.json, whose 1,190 test
(SQuAD v1.1 with one answer each). The embedded checkpoint, one seed; both sides in windows of 256 tokens that share 128, 3 epochs,
batches of 16 windows, the recipe of table_tasks.py. The loop is plain.py's; its answers are chosen as in the usual script: the best
of the 20 best starts with the 20 best ends of every window, at most 30 tokens. minift takes the exact maximum, of each token in the
window where it has the most context. Beside them a span of one to five words drawn at random, and the model with its new head
before training. EM and F1 are transformers' of both predictions; minift's own of the same predictions are equal or
the script stops.

Every run is appended to runs/table_qa.jsonl; a rerun goes on where it stopped.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from restartable import collect, jobs_flag

QUESTIONS, LENGTH, OVERLAP, LONGEST = 1500, 256, 128, 30
LR, EPOCHS, BATCH, SEED = 2e-4, 3, 16, 0
ROWS = {
    "random": "a random span of 1 to 5 words",
    "untrained": "minift, untrained head",
    "plain": "transformers, plain loop",
    "minift": "minift",
}


def questions(path: Path) -> list[dict]:
    """id, question, context, answers (texts), start (of the first one)"""
    found = []
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                answers = {"answers": [a["text"] for a in qa["answers"]], "start": qa["answers"][0]["answer_start"]}
                found.append({"id": qa["id"], "question": qa["question"], "context": paragraph["context"], **answers})
    return found


def first_questions(source: Path, directory: Path) -> Path:
    """A SQuAD file of the first QUESTIONS questions."""
    data, left = json.loads(source.read_text(encoding="utf-8")), QUESTIONS
    for article in data["data"]:
        for paragraph in article["paragraphs"]:
            paragraph["qas"] = paragraph["qas"][:left]
            left -= len(paragraph["qas"])
        article["paragraphs"] = [p for p in article["paragraphs"] if p["qas"]]
    data["data"] = [article for article in data["data"] if article["paragraphs"]]
    path = directory / "train.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def scores(test: list[dict], predictions: dict[str, str]) -> dict[str, float]:
    """By transformers: the best over the answers of each question."""
    from transformers.data.metrics.squad_metrics import compute_exact, compute_f1

    pairs = [(row["answers"], predictions[row["id"]]) for row in test]
    exact, f1 = (
        statistics.mean(max(by(a, found) for a in answers) for answers, found in pairs) for by in (compute_exact, compute_f1)
    )
    return {"exact_match": 100 * exact, "f1": 100 * f1}


def random_spans(test: list[dict]) -> dict[str, str]:
    draw, found = random.Random(SEED), {}
    for row in test:
        words = row["context"].split()
        first = draw.randrange(len(words))
        found[row["id"]] = " ".join(words[first : first + draw.randint(1, 5)])
    return found


def run_minift(train: Path, test: Path, epochs: int, directory: Path) -> dict:
    from minift.metrics.squad import squad_metrics

    out = directory / "run"
    windows = ["--max-length", str(LENGTH), "--overlap", str(OVERLAP), "--max-answer-length", str(LONGEST)]
    recipe = ["--lr", str(LR), "--epochs", str(epochs), "--batch-size", str(BATCH), "--weight-decay", "0.01", "--warmup", "0.1"]
    flags = [
        "--train",
        str(train),
        "--valid",
        "none",
        "--test",
        str(test),
        *windows,
        *recipe,
        "--clip",
        "1",
        "--precision",
        "bfloat16",
    ]
    command = ["train.py", "--task", "question-answering", *flags, "--seed", str(SEED), "--quiet", "--out", str(out)]
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    found = directory / "predictions.json"
    command = ["-m", "minift.predict", str(out), "--data", str(test), "--out", str(found)]
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    result, predictions = json.loads((out / "result.json").read_text()), json.loads(found.read_text(encoding="utf-8"))
    figures = scores(questions(test), predictions)
    own = squad_metrics({row["id"]: row["answers"] for row in questions(test)}, predictions, "1.1")
    assert abs(100 * own["exact"] - figures["exact_match"]) + abs(100 * own["f1"] - figures["f1"]) < 1e-9, (own, figures)
    return {**figures, "steps": result["steps"], "seconds": result["seconds"]["train"]}


def run_plain(train: Path, test: Path, directory: Path) -> dict:
    import plain
    import transformers

    source = plain.export("minilm-l6", directory)
    model, tokenizer = plain.start(transformers.AutoModelForQuestionAnswering, source, SEED)
    rows, test_rows = questions(train), questions(test)

    def windows(rows: list[dict]):
        return tokenizer(
            [row["question"] for row in rows],
            [row["context"] for row in rows],
            truncation="only_second",
            max_length=LENGTH,
            stride=OVERLAP,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )

    encoded, features = windows(rows), []
    for i, row in enumerate(encoded["overflow_to_sample_mapping"]):
        first = last = 0  # [CLS], where the window does not hold the answer
        start, end = rows[row]["start"], rows[row]["start"] + len(rows[row]["answers"][0])
        places, inside = encoded["offset_mapping"][i], [j for j, s in enumerate(encoded.sequence_ids(i)) if s == 1]
        if places[inside[0]][0] <= start and end <= places[inside[-1]][1]:
            first = max(j for j in inside if places[j][0] <= start)
            last = min(j for j in inside if places[j][1] >= end)
        features.append({**inputs(encoded, i), "start_positions": first, "end_positions": last})
    collate = transformers.DataCollatorWithPadding(tokenizer)
    done = plain.fit(model, features, collate, LR, EPOCHS, BATCH)
    encoded = windows(test_rows)
    found = plain.outputs(model, [inputs(encoded, i) for i in range(len(encoded["input_ids"]))], collate)
    logits = [pair for batch in found for pair in zip(batch.start_logits, batch.end_logits, strict=True)]
    best = {row["id"]: (-float("inf"), "") for row in test_rows}
    for i, (row, (starts, ends)) in enumerate(zip(encoded["overflow_to_sample_mapping"], logits, strict=True)):
        row, places, sides = test_rows[row], encoded["offset_mapping"][i], encoded.sequence_ids(i)
        for first in starts[: len(sides)].topk(min(20, len(sides))).indices.tolist():
            for last in ends[: len(sides)].topk(min(20, len(sides))).indices.tolist():
                if sides[first] == sides[last] == 1 and first <= last < first + LONGEST:
                    value, text = float(starts[first] + ends[last]), row["context"][places[first][0] : places[last][1]]
                    best[row["id"]] = max(best[row["id"]], (value, text))
    return {**scores(test_rows, {key: text for key, (_, text) in best.items()}), **done}


def inputs(encoded, i: int) -> dict:
    return {name: encoded[name][i] for name in ("input_ids", "attention_mask", "token_type_ids")}


def measure(root: Path, run: dict) -> dict:
    test = root / "xquad_en" / "xquad.en.json"
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        train = first_questions(root / "squadshifts" / "new_wiki_v1.0.json", directory)
        if run["who"] == "random":
            return scores(questions(test), random_spans(questions(test)))
        if run["who"] == "plain":
            return run_plain(train, test, directory)
        return run_minift(train, test, EPOCHS if run["who"] == "minift" else 0, directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory of the data sets' directories")
    jobs_flag(parser)
    given = parser.parse_args()
    done = collect("table_qa.jsonl", [{"who": who} for who in ROWS], partial(measure, given.data.resolve()), given.jobs)
    print("| XQuAD-en, 1,190 questions | exact match | F1 |\n|---|---|---|")
    for run in done:
        print(f"| {ROWS[run['run']['who']]} | {run['exact_match']:.1f} | {run['f1']:.1f} |")
    sys.exit(len(done) < len(ROWS))


if __name__ == "__main__":
    main()
