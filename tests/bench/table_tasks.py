"""The tasks beside transformers' models in a plain loop: `python tests/bench/table_tasks.py --data ROOT`.

Three hours on 2 cores, 40 minutes with --seeds 1; minutes on a GPU with 16 cores and --jobs 14.

ROOT holds the directories rte, stsb_glue and cola (GLUE's train.tsv and dev.tsv), wnut17 (emerging entities) and trec. The embedded
checkpoint; both sides in the same recipe: AdamW, weight decay 0.01 but for biases and norms, linear warm-up over 10 % of the steps
and linear decay, gradients clipped at 1, batches of 32, bfloat16, the last epoch kept, learning rate and epochs of TASKS. minift by
its command line, transformers' model in the loop of plain.py, which pads each batch to its longest row too, without grouping by
length. What differs besides: minift scales the targets of regression and decodes tags by Viterbi (both decodings are scored on both
sides). Beside them the majority class (the mean; for tags nothing), and TF-IDF with logistic regression (ridge for a number; for
tags each word's most frequent one) by scikit-learn.

Every run is appended to runs/table_tasks.jsonl; a rerun goes on where it stopped. `--only rte cola` runs and prints
these. Without seqeval WNUT-17 is left out.
"""

import argparse
import statistics
import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from restartable import cell, collect, jobs_flag, train

LR, BATCH, LENGTH = 2e-4, 32, 128


@dataclass(frozen=True)
class Setting:
    name: str
    kind: str  # class, number or tags
    train: str
    test: str
    epochs: int
    seeds: int
    metrics: dict[str, str]  # name in result.json -> in the table
    flags: list[str] = field(default_factory=list)


F1 = {"f1_lenient_greedy": "F1 greedy, lenient", "f1_strict_greedy": "F1 greedy, strict", "f1_strict": "F1 Viterbi"}
TASKS = {
    "rte": Setting("RTE", "class", "rte/train.tsv", "rte/dev.tsv", 3, 5, {"accuracy": "dev accuracy"}),
    "cola": Setting(
        "CoLA",
        "class",
        "cola/train.tsv",
        "cola/dev.tsv",
        3,
        5,
        {"matthews": "dev Matthews"},
        ["--text-column", "4", "--label-column", "2"],
    ),
    "trec50": Setting(
        "TREC-50",
        "class",
        "trec/train_5500.label",
        "trec/TREC_10.label",
        4,
        3,
        {"accuracy": "test accuracy"},
        ["--format", "label-first", "--encoding", "latin-1"],
    ),
    "wnut": Setting(
        "WNUT-17",
        "tags",
        "wnut17/wnut17train.conll",
        "wnut17/emerging.test.annotated",
        3,
        3,
        {name: f"test {shown}" for name, shown in F1.items()},
        ["--task", "token-classification"],
    ),
    "stsb": Setting(
        "STS-B",
        "number",
        "stsb_glue/train.tsv",
        "stsb_glue/dev.tsv",
        2,
        3,
        {"pearson": "dev Pearson", "spearman": "dev Spearman"},
        ["--task", "text-regression"],
    ),
}


def read(task: str, path: Path) -> tuple[list, list]:
    """(texts, pairs of texts or lists of words; labels, numbers or lists of tags)"""
    text = path.read_bytes().decode("latin-1" if task == "trec50" else "utf-8")
    if task == "wnut":
        rows = [[line.split("\t") for line in block.split("\n")] for block in text.replace("\n\t\n", "\n\n").strip().split("\n\n")]
        rows = [[cells for cells in row if cells[0]] for row in rows]
        return [[word for word, _ in row] for row in rows if row], [[tag for _, tag in row] for row in rows if row]
    lines = text.strip("\n").split("\n")
    if task == "trec50":
        return [line.split(" ", 1)[1] for line in lines], [line.split(" ", 1)[0] for line in lines]
    rows = [line.split("\t") for line in lines]
    if task == "cola":
        return [row[3] for row in rows], [row[1] for row in rows]
    columns = [rows[0].index(name) for name in ("sentence1", "sentence2", "label" if task == "rte" else "score")]
    rows = [[row[i] for i in columns] for row in rows[1:]]
    return [(a, b) for a, b, _ in rows], [float(y) if task == "stsb" else y for _, _, y in rows]


def score(kind: str, right: list, found: list) -> dict[str, float]:
    """By the libraries that everyone uses. found: labels, numbers, or lists of tags."""
    if kind == "number":
        from scipy.stats import pearsonr, spearmanr

        if len({*found}) == 1:
            return {"pearson": None, "spearman": None}
        return {"pearson": pearsonr(right, found)[0], "spearman": spearmanr(right, found)[0]}
    if kind == "tags":
        from seqeval.metrics import f1_score
        from seqeval.scheme import IOB2

        if not any(tag != "O" for tags in found for tag in tags):
            return {"lenient": 0.0, "strict": 0.0}
        return {"lenient": f1_score(right, found), "strict": f1_score(right, found, mode="strict", scheme=IOB2)}
    from sklearn.metrics import accuracy_score, matthews_corrcoef

    return {"accuracy": accuracy_score(right, found), "matthews": matthews_corrcoef(right, found)}


def tag_scores(right: list, greedy: list, best: list) -> dict[str, float]:
    at_once, path = score("tags", right, greedy), score("tags", right, best)
    return {"f1_lenient_greedy": at_once["lenient"], "f1_strict_greedy": at_once["strict"], "f1_strict": path["strict"]}


def baselines(task: str, root: Path) -> dict[str, dict]:
    """Scores of the majority class (the mean, no entity) and of TF-IDF (the word's tag)."""
    setting = TASKS[task]
    (x, y), (x_test, y_test) = (read(task, root / name) for name in (setting.train, setting.test))
    if setting.kind == "tags":
        seen = defaultdict(Counter)
        for words, tags in zip(x, y, strict=True):
            for word, tag in zip(words, tags, strict=True):
                seen[word][tag] += 1
        looked_up = [[seen[word].most_common(1)[0][0] if word in seen else "O" for word in words] for words in x_test]
        tags = tag_scores(y_test, looked_up, looked_up) | {"f1_strict": None}
        return {"majority": dict.fromkeys(setting.metrics, 0.0), "tfidf": tags}
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge

    constant = statistics.mean(y) if setting.kind == "number" else Counter(y).most_common(1)[0][0]
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    vectors.fit([text for row in x for text in ([row] if isinstance(row, str) else row)])

    def features(rows: list):
        if isinstance(rows[0], str):
            return vectors.transform(rows)
        a, b = (vectors.transform(side) for side in zip(*rows, strict=True))
        return hstack([a, b, csr_matrix(a.multiply(b).sum(1))]).tocsr()  # both, and their cosine

    model = Ridge() if setting.kind == "number" else LogisticRegression(C=10, max_iter=2000)
    found = model.fit(features(x), y).predict(features(x_test))
    sides = {"majority": [constant] * len(y_test), "tfidf": list(found)}
    return {name: plain_numbers(score(setting.kind, y_test, side)) for name, side in sides.items()}


def plain_numbers(figures: dict) -> dict:
    return {name: value if value is None else float(value) for name, value in figures.items()}


def flags_of(task: str, root: Path) -> list[str]:
    """Of minift, all but the method and the seed."""
    setting = TASKS[task]
    files = ["--train", str(root / setting.train), "--valid", "none", "--test", str(root / setting.test), *setting.flags]
    recipe = ["--batch-size", str(BATCH), "--max-length", str(LENGTH), "--weight-decay", "0.01", "--warmup", "0.1", "--clip", "1"]
    return [*files, *recipe, "--epochs", str(setting.epochs), "--precision", "bfloat16", "--quiet"]


def run_minift(task: str, seed: int, root: Path) -> dict:
    result = train([*flags_of(task, root), "--lr", str(LR), "--seed", str(seed)])
    return {**result["test"], "steps": result["steps"], "seconds": result["seconds"]["train"]}


def run_plain(task: str, seed: int, root: Path) -> dict:
    import plain
    import transformers

    setting = TASKS[task]
    (x, y), (x_test, y_test) = (read(task, root / name) for name in (setting.train, setting.test))
    labels = sorted({tag for tags in y for tag in tags} if setting.kind == "tags" else {*y})
    number = {label: i for i, label in enumerate(labels)}
    with tempfile.TemporaryDirectory() as directory:
        source = plain.export("minilm-l6", Path(directory))
        if setting.kind == "tags":
            model, tokenizer = plain.start(transformers.AutoModelForTokenClassification, source, seed, num_labels=len(labels))
        else:
            outputs = 1 if setting.kind == "number" else len(labels)
            model, tokenizer = plain.start(transformers.AutoModelForSequenceClassification, source, seed, num_labels=outputs)

    def words_of(row) -> tuple:
        """(the encoding, word -> its first token; a word beyond the length, or without a token, has none)"""
        encoded = tokenizer(row, is_split_into_words=True, truncation=True, max_length=LENGTH)
        return encoded, {word: place for place, word in reversed([*enumerate(encoded.word_ids())]) if word is not None}

    def encode(row, target) -> dict:
        if setting.kind == "tags":
            encoded, first = words_of(row)
            marked = [-100] * len(encoded["input_ids"])
            for word, place in first.items():
                marked[place] = number[target[word]]
            return {**encoded, "labels": marked}
        encoded = tokenizer(*([row] if isinstance(row, str) else row), truncation=True, max_length=LENGTH)
        return {**encoded, "labels": target if setting.kind == "number" else number[target]}

    rows, test = ([encode(a, b) for a, b in zip(*part, strict=True)] for part in ((x, y), (x_test, y_test)))
    collator = transformers.DataCollatorForTokenClassification if setting.kind == "tags" else transformers.DataCollatorWithPadding
    collate = collator(tokenizer)
    done = plain.fit(model, rows, collate, LR, setting.epochs, BATCH)
    logits = [row.numpy() for batch in plain.outputs(model, test, collate) for row in batch.logits]
    if setting.kind == "tags":
        return {**tag_scores(y_test, *decode(logits, [words_of(row)[1] for row in x_test], y_test, labels)), **done}
    found = [float(row[0]) for row in logits] if setting.kind == "number" else [labels[row.argmax()] for row in logits]
    return {**score(setting.kind, y_test, found), **done}


def decode(logits: list, firsts: list[dict[int, int]], right: list, labels: list[str]) -> tuple[list, list]:
    """(greedy, Viterbi) tags of all words. firsts: word -> its first token; a word that has none is O."""
    from minift.metrics.entities import grammar, viterbi

    greedy, best = [], []
    for scores, first, tags in zip(logits, firsts, right, strict=True):
        log_p = np.where(np.array(labels) == "O", 0.0, -np.inf) * np.ones((len(tags), 1))
        for word, place in first.items():
            log_p[word] = scores[place] - np.logaddexp.reduce(scores[place].astype(np.float64))
        greedy.append([labels[i] for i in log_p.argmax(1)])
        best.append([labels[i] for i in viterbi(log_p, *grammar(labels))[0]])
    return greedy, best


def measure(root: Path, run: dict) -> dict:
    if run["who"] == "baselines":
        return baselines(run["task"], root)
    return plain_numbers((run_minift if run["who"] == "minift" else run_plain)(run["task"], run["seed"], root))


def of_one(value: float | None) -> str:
    return "undefined" if value is None else f"{100 * value:.1f}"


def shown(values: list[float]) -> str:
    return f"{100 * statistics.mean(values):.1f} ({', '.join(f'{100 * value:.1f}' for value in values)})"


def paired(differences: list[float]) -> str:
    """Mean ± its standard error."""
    error = f" ± {100 * statistics.stdev(differences) / len(differences) ** 0.5:.1f}" if len(differences) > 1 else ""
    return f"{100 * statistics.mean(differences):+.1f}{error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory of the data sets' directories")
    parser.add_argument("--only", choices=[*TASKS], nargs="+", help="run and print these")
    parser.add_argument("--seeds", type=int, help="(default: each task's own, 3 or 5)")
    jobs_flag(parser)
    arguments = parser.parse_args()
    seeds = {task: arguments.seeds or TASKS[task].seeds for task in arguments.only or TASKS}
    wanted = [{"task": t, "who": who, "seed": seed} for t in seeds for seed in range(seeds[t]) for who in ("minift", "plain")]
    wanted += [{"task": task, "who": "baselines"} for task in seeds]
    tasks = [task for task in seeds if task != "wnut" or find_spec("seqeval")]
    if len(tasks) < len(seeds):
        print("WNUT-17 is skipped: seqeval, which scores its tags, is not installed", file=sys.stderr)
    runs = [run for run in wanted if run["task"] in tasks]
    done = collect("table_tasks.jsonl", runs, partial(measure, arguments.data.resolve()), arguments.jobs)
    print("| data | figure | majority | TF-IDF | transformers, plain loop | minift | difference over paired seeds |")
    print("|---|---|---|---|---|---|---|")
    for task in tasks:
        simple = next((run for run in done if run["run"] == {"task": task, "who": "baselines"}), None)
        for metric, name in TASKS[task].metrics.items():
            sides = [
                {run["run"]["seed"]: run[metric] for run in done if (run["run"]["task"], run["run"]["who"]) == (task, who)}
                for who in ("plain", "minift")
            ]
            differences = [sides[1][seed] - sides[0][seed] for seed in sides[0] if seed in sides[1]]
            cells = [of_one(simple[side][metric]) if simple else "" for side in ("majority", "tfidf")]
            cells += [cell([*side.values()], seeds[task], shown) for side in sides]
            print(f"| {TASKS[task].name} | {name} | {' | '.join(cells)} | {cell(differences, seeds[task], paired)} |")
    sys.exit(len(done) < len(wanted))


if __name__ == "__main__":
    main()
