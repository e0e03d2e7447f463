"""A body adapted to a domain: `python tests/bench/table_mlm.py --data ROOT`.

About 50 minutes on 2 cores, minutes on a GPU with --jobs 4.

ROOT holds wikitext2/wiki.test.raw (62 articles of Wikipedia) and trec. The first 80 % of the articles train, the rest test, in
blocks of 128 tokens across paragraphs, 15 % masked; not to be compared with published figures, which have another split and other
tokens. The embedded checkpoint has no head for masked words. So before = a new head fitted on the frozen body, 10 epochs; after =
everything trained from there, the head included, 5 epochs. Beside it transformers' BertForMaskedLM from the same head and body, in
the loop of plain.py, which masks by a coin; its weights come back by convert.py and are scored on the same masks. unigram = each
token's share of the training tokens. Then TREC's 50 classes from 3,000 training rows (they have all of the classes), 3 epochs, 3
seeds, from the adapted body beside the original one; both pool by the mean, as a body that has learned to fill in words has no
pooler any more.

Every run is appended to runs/table_mlm.jsonl, the models lie in runs/table_mlm; a rerun goes on where it stopped.
"""

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

from restartable import cell, collect, first_rows, jobs_flag, train
from table_forgetting import kept
from table_tasks import paired, shown

LENGTH, BATCH, SEED, SHARE = 128, 32, 0, 0.8
HEAD_LR, HEAD_EPOCHS, LR, EPOCHS = 1e-3, 10, 2e-4, 5
ROWS, SEEDS, TASK_EPOCHS = 3000, 3, 3
MODELS = Path("runs") / "table_mlm"
SHOWN = {
    "unigram": "unigram",
    "before": "before: the head fitted on the frozen body",
    "after": "after: everything trained, minift",
    "plain": "after: everything trained, transformers in a plain loop",
}


def split(root: Path, directory: Path) -> tuple[Path, Path]:
    """(file of the training articles, of the test articles)"""
    text = (root / "wikitext2" / "wiki.test.raw").read_text(encoding="utf-8")
    articles = re.split(r"(?m)^(?= = [^=].* = $)", text)
    articles = [article for article in articles if article.strip()]
    cut = round(SHARE * len(articles))
    paths = directory / "train.txt", directory / "test.txt"
    for path, part in zip(paths, (articles[:cut], articles[cut:]), strict=True):
        path.write_text("".join(part), encoding="utf-8")
    return paths


def masked_lm(files: tuple[Path, Path], name: str, flags: list[str]) -> dict:
    """result.json of the run that lies in MODELS."""
    data = ["--train", str(files[0]), "--valid", "none", "--test", str(files[1]), "--blocks", "across"]
    recipe = ["--max-length", str(LENGTH), "--batch-size", str(BATCH), "--precision", "bfloat16", "--seed", str(SEED), "--quiet"]
    return json.loads((kept(MODELS / name, ["--task", "masked-lm", *data, *recipe, *flags]) / "result.json").read_text())


def before(files: tuple[Path, Path]) -> dict:
    return masked_lm(files, "before", ["--method", "probe", "--lr", str(HEAD_LR), "--epochs", str(HEAD_EPOCHS)])


def after(files: tuple[Path, Path]) -> dict:
    before(files)
    return masked_lm(files, "after", ["--model", str(MODELS / "before"), "--lr", str(LR), "--epochs", str(EPOCHS)])


def plain_loop(files: tuple[Path, Path], directory: Path) -> dict:
    import plain
    import transformers

    before(files)
    model, tokenizer = plain.start(transformers.BertForMaskedLM, plain.export(str(MODELS / "before"), directory), SEED)
    paragraphs = [p for p in files[0].read_text(encoding="utf-8").split("\n") if p.strip()]
    stream = [i for ids in tokenizer(paragraphs, add_special_tokens=False)["input_ids"] for i in ids]
    room = LENGTH - 2
    blocks = [stream[i : i + room] for i in range(0, len(stream) - room + 1, room)]
    rows = [{"input_ids": [tokenizer.cls_token_id, *block, tokenizer.sep_token_id]} for block in blocks]
    done = plain.fit(model, rows, transformers.DataCollatorForLanguageModeling(tokenizer), LR, EPOCHS, BATCH)
    model.save_pretrained(directory / "trained")
    tokenizer.save_pretrained(directory / "trained")
    command = [sys.executable, "convert.py", str(directory / "trained"), "--out", str(directory / "back")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return {"test": masked_lm(files, "plain", ["--model", str(directory / "back"), "--epochs", "0"])["test"], **done}


def unigram(files: tuple[Path, Path]) -> dict:
    """Add-one smoothed over the vocabulary; of all tokens of the test articles, as every one is masked equally often."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file("weights/minilm-l6/tokenizer.json")
    count, test = (Counter(tokenizer.encode(path.read_text(encoding="utf-8"), add_special_tokens=False).ids) for path in files)
    total = count.total() + tokenizer.get_vocab_size()
    loss = -sum(n * math.log((count[token] + 1) / total) for token, n in test.items()) / test.total()
    return {"perplexity": math.exp(loss), "accuracy": test[count.most_common(1)[0][0]] / test.total()}


def trec(root: Path, files: tuple[Path, Path], body: str, seed: int, directory: Path) -> dict:
    if body == "adapted":
        after(files)
    path = first_rows(root / "trec" / "train_5500.label", ROWS, False, directory)
    data = ["--train", str(path), "--valid", "none", "--test", str(root / "trec" / "TREC_10.label")]
    recipe = ["--format", "label-first", "--encoding", "latin-1", "--pool", "mean", "--lr", str(LR), "--epochs", str(TASK_EPOCHS)]
    model = ["--model", str(MODELS / "after") if body == "adapted" else "minilm-l6"]
    return train([*data, *recipe, *model, "--precision", "bfloat16", "--seed", str(seed), "--quiet"])["test"]


def measure(root: Path, files: tuple[Path, Path], run: dict) -> dict:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if "body" in run:
            return trec(root, files, run["body"], run["seed"], directory)
        if run["who"] == "unigram":
            return unigram(files)
        work = {"before": before, "after": after, "plain": partial(plain_loop, directory=directory)}[run["who"]]
        result = work(files)
        return {**result["test"], "steps": result["steps"]}


def needs(run: dict) -> dict | None:
    """The run whose model this one starts from."""
    if run.get("body") == "adapted":
        return {"who": "after"}
    return {"who": "before"} if run.get("who") in ("after", "plain") else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory of the data sets' directories")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"of TREC (default {SEEDS})")
    jobs_flag(parser)
    given = parser.parse_args()
    wanted = [{"who": who} for who in SHOWN] + [{"body": b, "seed": s} for s in range(given.seeds) for b in ("original", "adapted")]
    root = given.data.resolve()
    MODELS.mkdir(parents=True, exist_ok=True)
    done = collect("table_mlm.jsonl", wanted, partial(measure, root, split(root, MODELS)), given.jobs, needs)
    print("| | perplexity of the test articles | right |\n|---|---|---|")
    for run in (run for run in done if "who" in run["run"]):
        print(f"| {SHOWN[run['run']['who']]} | {run['perplexity']:.1f} | {100 * run['accuracy']:.1f} % |")
    print("\n| TREC, 50 classes, 3,000 rows, from | test accuracy, mean (each seed) |\n|---|---|")
    sides = {"original": {}, "adapted": {}}
    for run in (run for run in done if "body" in run["run"]):
        sides[run["run"]["body"]][run["run"]["seed"]] = run["accuracy"]
    for body, side in sides.items():
        print(f"| the {body} body | {cell([*side.values()], given.seeds, shown)} |")
    original, adapted = sides.values()
    differences = [adapted[seed] - original[seed] for seed in adapted if seed in original]
    print(f"| difference over paired seeds | {cell(differences, given.seeds, paired)} |")
    sys.exit(len(done) < len(wanted))


if __name__ == "__main__":
    main()
