"""The tasks that the contract is checked on: for each a training file, and the models that can take it.

A new task adds its row to CASES.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from tiny import (
    WORDS,
    byte_checkpoint,
    converted_directory,
    converted_resnet,
    photographs,
    rows_file,
    tiny_body,
    tiny_efficientnet,
    tiny_gpt2,
    tiny_resnet,
    tiny_roberta,
)

from minift.formats.bytelevel import tokenizer_of_bytes
from minift.pretrained import Checkpoint, read, write


class Case(NamedTuple):
    models: tuple[str, ...]
    data: Callable[[Path], Path]  # writes a training file, or directory, of some 20 to 50 rows into a directory
    flags: Mapping = MappingProxyType({})  # of the task, besides its name
    task: str = ""  # where the case is not called as its task
    probe: bool = True  # whether the head has weights of its own, which --method probe trains


def converted_bert(directory: Path) -> Path:
    return converted_directory(directory, tiny_body(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))


def converted_roberta(directory: Path) -> Path:
    """With the tokenizer of a tiny BERT: what a token is called is nothing to a body."""
    body = tiny_roberta(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    tokenizer = read(converted_bert(directory.with_name("bert-of-roberta"))).tokenizer
    tensors = {name: tensor.detach().clone() for name, tensor in body.state_dict().items()}
    write(directory, Checkpoint("roberta", asdict(body.config), tensors, tokenizer, "roberta"))
    return directory


def converted_gpt2(directory: Path) -> Path:
    """Over bytes."""
    off = dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), 0.0)
    body = tiny_gpt2(pool=None, vocab_size=257, eos_token_id=256, n_positions=128, classifier_dropout=0.0, **off)
    tensors = {name: tensor.detach().clone() for name, tensor in body.state_dict().items()}
    write(directory, Checkpoint("gpt2", asdict(body.config), tensors, tokenizer_of_bytes(), "gpt2"))
    return directory


def sentences_file(path: Path, rows: int = 40) -> Path:
    """CoNLL columns: `good` and `bad` begin entities, which `very` may go on; every third row is longer than a window of 12."""
    kinds = {"good": "B-likes", "bad": "B-dislikes"}
    lines = []
    for i in range(rows):
        words = ["the", "film", "was", ("good", "bad")[i % 2], *["very"] * (i % 3), "slowly"]
        words += [*["xyz", "bad"] * (4 * (i % 3 == 0)), "."]
        tags = [kinds.get(word, "O") for word in words]
        for at in range(1, len(words)):
            tags[at] = f"I-{tags[at - 1][2:]}" if words[at] == "very" else tags[at]
        lines += [*map("\t".join, zip(words, tags, strict=True)), ""]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def questions_file(path: Path, rows: int = 40) -> Path:
    """JSON lines on 20 contexts: the answer follows `was`; every fifth question has none, every third context has two windows."""
    lines = []
    for i in range(rows):
        word = ("good", "bad")[i // 2 % 2]
        context = f"the {WORDS[8 + i // 2 % 5]} was {word} ." + " very slow food again !" * (3 * (i // 2 % 3 == 0)) + f" {i // 2}"
        question, answer = (f"the {WORDS[10 + i % 3]} is ?", "" if i % 5 == 4 else word)
        lines.append(json.dumps({"id": f"q{i}", "question": question, "context": context, "answer": answer}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def plain_resnet(directory: Path) -> Path:
    return converted_resnet(directory, tiny_resnet())


def documents_file(path: Path, rows: int = 40) -> Path:
    """Lines of text; every third is longer than two blocks of 40 bytes."""
    texts = [
        f"the {WORDS[8 + i % 5]} was {('good', 'bad')[i % 2]}" + " very slow food again !" * (3 * (i % 3 == 0)) for i in range(rows)
    ]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def instructions_file(path: Path, rows: int = 40) -> Path:
    """JSON lines: a word is to be said once, twice or three times; of two rows the question alone is longer than 100 bytes."""
    lines = []
    for i in range(rows):
        word = ("red", "blue")[i % 2]
        asked = f"Say {word} {i}." + " Please!" * (15 * (i in (5, 30)))
        lines.append(json.dumps({"instruction": asked, "input": "now" * (i % 4 == 0), "output": word * (1 + i % 3)}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def over_bytes(directory: Path) -> Path:
    """A GPT-2 over bytes."""
    sizes = {"vocab_size": 257, "n_positions": 120, "eos_token_id": 256, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
    write(directory, byte_checkpoint(tiny_gpt2(pool=None, **sizes)))
    return directory


def plain_efficientnet(directory: Path) -> Path:
    return converted_resnet(directory, tiny_efficientnet(drop_connect_rate=0.0, dropout_rate=0.0))  # else it draws as it trains


BASES = {
    "bytes": over_bytes,
    "bert": converted_bert,
    "roberta": converted_roberta,
    "gpt2": converted_gpt2,
    "resnet": plain_resnet,
    "efficientnet": plain_efficientnet,
}
IMAGES = ("resnet", "efficientnet")
TEXT = ("bert", "roberta")
ALL = (*TEXT, "gpt2")


def numbers_file(path: Path) -> Path:
    """Texts with a number each, in units far from 0 and 1."""
    lines = rows_file(path).read_text(encoding="utf-8").splitlines()
    texts = [line.rpartition(",")[0] for line in lines[1:]]
    numbers = [250 * text.count("very") + 1000 * text.count("good") + 3 * i for i, text in enumerate(texts)]
    path.write_text("text,score\n" + "".join(f"{t},{n}\n" for t, n in zip(texts, numbers, strict=True)), encoding="utf-8")
    return path


def sets_file(path: Path) -> Path:
    """Texts with none, one or two of three labels, one of them rare."""
    lines = rows_file(path).read_text(encoding="utf-8").splitlines()
    texts = [line.rpartition(",")[0] for line in lines[1:]]
    cells = ["|".join(w for w in ("good", "very", "rare") if w in t or (w == "rare" and i % 16 < 2)) for i, t in enumerate(texts)]
    path.write_text("text,labels\n" + "".join(f"{t},{c}\n" for t, c in zip(texts, cells, strict=True)), encoding="utf-8")
    return path


def tagged_photographs(path: Path) -> Path:
    """A table of photographs: the reddish are ants, the bluish bees, every third is large, and some are nothing."""
    photographs(path.parent / "pictures", classes=("ants", "bees", "neither"))
    lines = ["path,labels"]
    for name in ("ants", "bees", "neither"):
        for i in range(10):
            lines.append(f"pictures/{name}/{i}.jpg,{'|'.join([name] * (name != 'neither') + ['large'] * (i % 3 == 2))}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


BALANCED = {"class_weights": "balanced", "label_smoothing": 0.1}
CASES = {
    "text-classification": Case(ALL, lambda place: rows_file(place / "rows.csv")),
    "image-classification": Case(IMAGES, lambda place: photographs(place / "photos"), {"workers": 0, "augment": "standard"}),
    "token-classification": Case(ALL, lambda place: sentences_file(place / "rows.conll"), {"max_length": 12, "overlap": 3}),
    "classification with weights": Case(TEXT, lambda place: rows_file(place / "rows.csv"), BALANCED, task="text-classification"),
    "augmented texts": Case(
        ("bert",), lambda place: rows_file(place / "rows.csv"), {"augment": "eda:deletion=0.2,swap=0.2"}, task="text-classification"
    ),
    "text-regression": Case(ALL, lambda place: numbers_file(place / "rows.csv")),
    "multi-label-classification": Case(ALL, lambda place: sets_file(place / "rows.csv"), {"pos_weight": "balanced"}),
    "multi-label-image-classification": Case(
        ("resnet",), lambda place: tagged_photographs(place / "rows.csv"), {"workers": 0, "augment": "standard"}
    ),
    "masked-lm": Case(TEXT, lambda place: rows_file(place / "rows.csv")),
    "question-answering": Case(TEXT, lambda place: questions_file(place / "rows.jsonl"), {"max_length": 20, "overlap": 3}),
    "causal-lm": Case(
        ("bytes",), lambda place: documents_file(place / "rows.txt"), {"max_length": 40, "blocks": "within"}, probe=False
    ),
    "instruction-tuning": Case(("bytes",), lambda place: instructions_file(place / "rows.jsonl"), {"max_length": 100}, probe=False),
    "packed instructions": Case(
        ("bytes",),
        lambda place: instructions_file(place / "rows.jsonl"),
        {"max_length": 100, "packing": True},
        task="instruction-tuning",
        probe=False,
    ),
    "toy": Case(TEXT, lambda place: rows_file(place / "rows.csv")),
    "toy of two variants": Case(TEXT, lambda place: rows_file(place / "rows.csv"), {"anew": False}, task="toy"),
}
