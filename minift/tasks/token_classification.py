"""A tag for every word of a sentence: the entities in it.

    logits = W dropout(h) + b,    loss = -log softmax(logits)[tag]      h the last hidden state of a word's first token

as in transformers' BertForTokenClassification where the first token of a word bears its label and all others are ignored. There
the loss of a batch is the mean over its words, so that accumulated batches of unequal numbers of words weigh their words unequally;
here the gradient is that of the one large batch.

Tags of all schemes (IOB1, IOB2, IOBES, BILOU) become IOB2, which the model learns, predicts and is scored in. A row longer than
max_length goes into overlapping windows. Each word is trained, scored and predicted once: in the window in which its first token
has the most context. A word that the tokenizer makes nothing of is O with certainty; it is scored as all others and counted.

The tags of a row are decoded over all of its words at once, whatever windows they were in:

    Viterbi    the most probable path among those that IOB2 allows: I-X only after B-X or I-X. This is what `predict` gives
    greedy     the most probable tag of every word for itself. It may begin an entity with I, so that its lenient score (as
               conlleval's) and its strict one (IOB2) differ; those of a Viterbi path never do

A type of entity that no training row has is not in the loss; in the score its entities are missed ones, and its words wrong. Such
words are counted.

Axes: B windows of a batch, S the longest window, T tags, W words of a row.
Proved by tests/reference/test_token_classification.py: loss and every gradient of transformers' model, float64, 1e-10.
"""

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minift.data.batching import Batch, Data
from minift.data.conll import Tagged, has_punctuation_apart, punctuation_apart, read_conll
from minift.data.layout import Layout
from minift.data.tokenising import encode_words, frame, pad
from minift.data.windows import most_context, windows
from minift.errors import Diverged, UserError
from minift.flags import spelled
from minift.metrics.entities import (
    READINGS,
    Span,
    add_counts,
    detect_scheme,
    entity_counts,
    entity_scores,
    grammar,
    greedy,
    overall,
    split_tag,
    strict_spans,
    to_iob2,
    viterbi,
)
from minift.tables import table
from minift.tasks.task import Mark, Meter, Task, TokenLinear, text_defaults

IGNORED = -100  # the label of a token that bears none, as in transformers
TABULAR = ("header", "delimiter", "label_part", "skip_unlabelled")  # flags that say nothing of sentences


@dataclass(frozen=True)
class TokenClassification(Task):
    labels: list[str]  # the tags in IOB2, in the order of their ids
    pool: None
    max_length: int  # tokens of a window, special ones counted
    overlap: int  # tokens that neighbouring windows share
    punctuation_apart: bool = False  # whether punctuation is made words of its own where a text is split at blanks

    MODEL: ClassVar = "minilm-l6"
    OPTIMIZER: ClassVar = "adamw"
    WEIGHT_DECAY: ClassVar = 0.01
    METRICS: ClassVar = {
        "f1_strict": True,
        "f1_lenient": True,
        "precision_strict": True,
        "recall_strict": True,
        "f1_strict_greedy": True,
        "f1_lenient_greedy": True,
        "token_accuracy": True,
    }
    LAYOUT: ClassVar = Layout

    def __post_init__(self):
        if len({*self.labels}) != len(self.labels) or "O" not in self.labels:
            raise ValueError(f"labels {str(self.labels)[:80]}: expected tags that differ, O among them")
        grammar(self.labels)  # raises ValueError for what is no tag of IOB2
        if not 0 <= self.overlap < self.max_length:
            raise ValueError(f"overlap {self.overlap}, max_length {self.max_length}: expected 0 <= overlap < max_length")

    @classmethod
    def defaults(cls, method: str, checkpoint) -> dict[str, tuple]:
        return text_defaults(checkpoint)

    @staticmethod
    def read(source: str | Iterable, layout: Layout, labelled: bool = True) -> Tagged:
        if idle := [name for name in TABULAR if getattr(layout, name) != getattr(Layout, name)]:
            raise UserError(f"{spelled(idle[0])} is for tables; files of words and tags have no use for it")
        examples = read_conll(
            source,
            encoding=layout.encoding,
            format=layout.format,
            text_column=layout.text_column,
            label_column=layout.label_column,
            labelled=labelled,
        )
        if labelled:
            _, scheme, broken = in_iob2(examples)
            examples.decided.append(f"tags are {scheme}{' and become IOB2' * (scheme != 'IOB2')}")
            examples.decided += [f"{broken:,} of them break its rules: what continues no entity begins one"] if broken else []
        return examples

    @classmethod
    def learn(cls, train: Tagged, options) -> "TokenClassification":
        types = sorted(entities(train))
        if not types:
            raise UserError(f"{train.path}: every tag is O; expected some entity to learn, as B-person")
        overlap = options.max_length // 4 if options.overlap is None else options.overlap
        if overlap >= options.max_length:
            raise UserError(f"--overlap {overlap}: expected less than --max-length {options.max_length}")
        labels = ["O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]
        return cls(labels, None, options.max_length, overlap, has_punctuation_apart(train))

    def review(self, parts: dict[str, Tagged], options) -> list[str]:
        notes, known = [], {split_tag(label)[1] for label in self.labels}
        for split, part in parts.items():
            found = entities(part)
            if split == "train":
                listed = ", ".join(f"{kind} {n:,}" for kind, n in found.most_common(12))
                notes.append(f"entities of the training rows: {listed}{', ...' * (len(found) > 12)}")
            elif not found:
                notes.append(f"no entity in the {split} rows: precision, recall and F1 are 0")
            if strange := [f"{kind} {found[kind]:,}" for kind in sorted(found.keys() - known)]:
                notes.append(f"entities of the {split} rows that no training row has: {', '.join(strange)}; they count as missed")
        return notes

    def columns(self, examples: Tagged) -> dict[str, int]:
        return {"entities": entities(examples).total()}

    def prepare(self, examples: Tagged, checkpoint, options=None, workers: int = 0) -> "Words":
        positions = checkpoint.max_length
        if self.max_length > positions:
            raise UserError(f"--max-length {self.max_length}: the model has {positions} positions")
        before, after = frame(checkpoint.tokenizer)
        room = self.max_length - len(before) - len(after)
        if self.overlap >= room:
            raise UserError(
                f"--overlap {self.overlap}: expected less than {room}, the tokens that a window of --max-length "
                f"{self.max_length} has room for"
            )
        if examples.texts is not None and self.punctuation_apart:
            rows = zip(examples.words, examples.texts, strict=True)
            examples = replace(examples, words=[words if text is None else punctuation_apart(words) for words, text in rows])
        return Words(examples, self, checkpoint, before, after, room)

    def head(self, body: nn.Module) -> TokenLinear:
        return TokenLinear(body, len(self.labels))

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """logits: (B, S, T). batch.targets: labels (B, S), IGNORED where a token bears none; words (B, S)."""
        losses = F.cross_entropy(logits.transpose(1, 2), batch.targets[0], ignore_index=IGNORED, reduction="none")
        return losses.sum(1)  # (B, S) -> (B)

    def expected(self, batch: Batch, unit: int, tokenizer) -> dict[int, str]:
        return {at: self.labels[label] for at, label in enumerate(batch.targets[0][unit].tolist()) if label != IGNORED}

    def meter(self, data: "Words") -> "Entities":
        return Entities(self.labels, data)

    def predict(self, outputs: Iterable[tuple[int, list[Tensor]]], data: "Words") -> Iterator[dict]:
        """tokens; tags of them, in IOB2; entities: type, text, start and end (characters of the row's text), score.

        The text is the user's own, or where words were given these joined by blanks. score: the mean over the words of an entity of
        the probability of the tag that they have. A text is split at blanks, and its punctuation set apart where the training rows
        have it so.
        """
        unit, legal = 0, grammar(self.labels)
        for row, parts in outputs:
            scores = nothing_seen(len(data.examples.words[row]), self.labels)
            for logits in parts:
                scores[data.words[unit]] = log_probabilities(logits[data.places[unit]])
                unit += 1
            path, _ = viterbi(scores, *legal)
            tags = [self.labels[i] for i in path]
            p = np.exp(scores[np.arange(len(path)), path])
            text, offsets = data.examples.text(row), data.examples.offsets(row)
            found = []
            for kind, first, end in strict_spans(tags):
                a, b = offsets[first][0], offsets[end - 1][1]
                found.append({"type": kind, "text": text[a:b], "start": a, "end": b, "score": float(p[first:end].mean())})
            yield {"tokens": data.examples.words[row], "tags": tags, "entities": found}

    def show(self, prediction: dict) -> str:
        return ", ".join(f"{e['type']} {e['text']!r} {e['score']:.3f}" for e in prediction["entities"]) or "no entity"

    def compare(self, examples: Tagged, row: int, prediction: dict) -> str:
        """The entities that were missed, and those that were found and are none."""
        (gold,), _, _ = in_iob2(examples.take(np.array([row])))
        right, found = strict_spans(gold), strict_spans(prediction["tags"])
        missed, wrong = ([span for span in a if span not in b] for a, b in ((right, found), (found, right)))
        parts = [f"{what} {named(spans, examples.words[row])}" for what, spans in (("missed", missed), ("wrong", wrong)) if spans]
        return "; ".join(parts) or "all right"

    def marked(self, examples: Tagged, row: int, prediction: dict) -> tuple[str, list[Mark], list[Mark]]:
        (gold,), _, _ = in_iob2(examples.take(np.array([row])))
        places = examples.offsets(row)
        right = [Mark(places[first][0], places[end - 1][1], kind) for kind, first, end in strict_spans(gold)]
        return examples.text(row), right, [Mark(e["start"], e["end"], e["type"]) for e in prediction["entities"]]


def named(spans: list[Span], words: list[str]) -> str:
    """The first three of some entities, in words."""
    shown = [f"{kind} {textwrap.shorten(' '.join(words[first:end]), 40, placeholder=' …')!r}" for kind, first, end in spans[:3]]
    return ", ".join(shown) + f" and {len(spans) - 3} more" * (len(spans) > 3)


def in_iob2(examples: Tagged) -> tuple[list[list[str]], str, int]:
    """(the tags of each row in IOB2, the scheme that they were in, how many broke its rules)"""
    try:
        scheme = detect_scheme(examples.tags)
    except ValueError as error:
        raise UserError(f"{examples.path}: {error}") from None
    converted = [to_iob2(tags, scheme) for tags in examples.tags]
    return [tags for tags, _ in converted], scheme, sum(broken for _, broken in converted)


def entities(examples: Tagged) -> Counter:
    """Type -> how many entities."""
    return Counter(kind for tags in in_iob2(examples)[0] for kind, _, _ in strict_spans(tags))


class Words(Data):
    """Sentences as windows of tokens. A unit is a window; of a row longer than one, those in which some word has most context."""

    def __init__(self, examples: Tagged, task: TokenClassification, checkpoint, before: np.ndarray, after: np.ndarray, room: int):
        """before, after: the special tokens of a text. room: tokens of a window besides these."""
        self.examples = examples
        self.pad = checkpoint.config["pad_token_id"]
        self.max_length = task.max_length
        self.gold = None if examples.tags is None else in_iob2(examples)[0]
        number = {label: i for i, label in enumerate(task.labels)}
        self.tokens, self.places, self.words, self.labels, row_of, self.row_lengths = [], [], [], [], [], []
        self.unseen = self.windowed = self.unknown = 0
        for row, (ids, first) in enumerate(zip(*encode_words(checkpoint.tokenizer, examples.words), strict=True)):
            spans = windows(len(ids), room, task.overlap)
            best = np.array([-1 if at < 0 else most_context(spans, at) for at in first.tolist()])
            labels = None if self.gold is None else np.array([number.get(tag, IGNORED) for tag in self.gold[row]])
            for window in sorted({*best.tolist()} - {-1}) or [0]:
                start, end = spans[window]
                words = np.flatnonzero(best == window)
                row_of.append(row)
                window_ids = np.concatenate([before, ids[start:end], after])
                self.tokens.append(window_ids if len(window_ids) else np.array([self.pad]))  # words that are no token of a GPT-2
                self.words.append(words)  # of the window: numbers of the words in it that are its own
                self.places.append(first[words] - start + len(before))  # where their first tokens stand
                self.labels.append(None if labels is None else labels[words])
            self.row_lengths.append(len(before) + len(ids) + len(after))
            self.windowed += len(spans) > 1
            self.unseen += int((first < 0).sum())
            self.unknown += 0 if labels is None else int((labels == IGNORED).sum())
        self.row_of = np.array(row_of, dtype=np.int64)
        self.lengths = np.array([len(ids) for ids in self.tokens], dtype=np.int64)

    @property
    def rows(self) -> np.ndarray:
        return self.row_of

    def describe(self) -> dict[str, int]:
        return {
            "words": sum(map(len, self.examples.words)),
            "without a token": self.unseen,
            "of types not learned": self.unknown,
            "median tokens": int(np.median(self.row_lengths)),
            "longest": max(self.row_lengths),
            f"in windows of {self.max_length}": self.windowed,
            "windows": len(self),
        }

    def outline(self, units: np.ndarray, epoch: int | None) -> Batch:
        if self.gold is None:
            return Batch((), (), self.row_of[units], torch.zeros(len(units)))
        labels, words = (np.full((len(units), self.lengths[units].max()), IGNORED) for _ in range(2))
        for i, unit in enumerate(units):
            labels[i, self.places[unit]] = self.labels[unit]
            words[i, self.places[unit]] = self.words[unit]
        counts = torch.from_numpy((labels != IGNORED).sum(1)).float()
        return Batch((), (torch.from_numpy(labels), torch.from_numpy(words)), self.row_of[units], counts)

    def batches(self, order: list[np.ndarray], device: torch.device, epoch: int | None = None) -> Iterator[Batch]:
        for units in order:
            yield replace(self.outline(units, epoch), inputs=pad([self.tokens[i] for i in units], self.pad)).to(device)


def nothing_seen(words: int, labels: list[str]) -> np.ndarray:
    """(W, T) log-probabilities of words of which the model has seen nothing: O, with certainty."""
    scores = np.full((words, len(labels)), -np.inf)
    scores[:, labels.index("O")] = 0.0
    return scores


def log_probabilities(logits: Tensor) -> np.ndarray:
    """(W, T) logits to log softmax in float64."""
    scores = logits.double().log_softmax(-1).numpy()
    if np.isnan(scores).any():
        raise Diverged("the outputs of the model are not finite: training has diverged; try a lower --lr")
    return scores


class Entities(Meter):
    """Entities that are right, predicted and gold, by decoding, reading and type; a row is decoded once all its windows are in."""

    def __init__(self, labels: list[str], data: Words):
        self.labels = labels
        self.legal = grammar(labels)
        self.gold = data.gold
        self.left = np.bincount(data.rows)  # windows of each row that are still to come
        self.scores: dict[int, np.ndarray] = {}  # of rows that have not come whole: (W, T)
        self.counts: dict[tuple[str, str], dict[str, np.ndarray]] = {
            (decoding, reading): {} for decoding in ("viterbi", "greedy") for reading in READINGS
        }
        self.right = self.seen = 0  # words

    def add(self, logits: Tensor, batch: Batch) -> None:
        _, words = batch.targets
        for i, row in enumerate(batch.rows.tolist()):
            if row not in self.scores:
                self.scores[row] = nothing_seen(len(self.gold[row]), self.labels)
            own = words[i] != IGNORED
            self.scores[row][words[i][own].numpy()] = log_probabilities(logits[i][own])
            self.left[row] -= 1
            if not self.left[row]:
                self.decode(self.gold[row], self.scores.pop(row))

    def decode(self, gold: list[str], scores: np.ndarray) -> None:
        paths = {"viterbi": viterbi(scores, *self.legal)[0], "greedy": greedy(scores)}
        tags = {decoding: [self.labels[i] for i in path] for decoding, path in paths.items()}
        for decoding, reading in self.counts:
            found = entity_counts([gold], [tags[decoding]], reading)
            self.counts[decoding, reading] = add_counts(self.counts[decoding, reading], found)
        self.right += sum(a == b for a, b in zip(gold, tags["viterbi"], strict=True))
        self.seen += len(gold)

    def merge(self, other: "Entities") -> None:
        self.counts = {key: add_counts(counts, other.counts[key]) for key, counts in self.counts.items()}
        self.right, self.seen = self.right + other.right, self.seen + other.seen
        self.scores |= other.scores

    def metrics(self) -> dict[str, float]:
        assert not self.scores, "windows of a row are missing"
        strict, lenient, strict_greedy, lenient_greedy = (
            overall(self.counts[decoding, reading]) for decoding in ("viterbi", "greedy") for reading in ("strict", "lenient")
        )
        return {
            "f1_strict": strict["f1"],
            "f1_lenient": lenient["f1"],
            "precision_strict": strict["precision"],
            "recall_strict": strict["recall"],
            "f1_strict_greedy": strict_greedy["f1"],
            "f1_lenient_greedy": lenient_greedy["f1"],
            "token_accuracy": self.right / max(self.seen, 1),
        }

    def details(self) -> dict:
        """by_label: precision, recall, F1 and counts of every type of entity, decoded by Viterbi and read strictly."""
        return {"by_label": entity_scores(self.counts["viterbi", "strict"])}

    def table(self) -> str:
        """Type by type, decoded by Viterbi; below all types together, in each decoding and reading."""
        together = {f"all, {decoding}, {reading}": overall(counts) for (decoding, reading), counts in self.counts.items()}
        rows = [[name, *figures.values()] for name, figures in (self.details()["by_label"] | together).items()]
        return table(["entities", "precision", "recall", "f1", "predicted", "gold"], rows)
