"""Extractive question answering (Rajpurkar et al. 2016, arXiv:1606.05250; Devlin et al. 2019, section 4.2): the answer to a
question is a span of its context.

    s, e = W h + b        h the last hidden state of each token: the logits of a span's start and of its end
    loss = (-log softmax(s)[first] - log softmax(e)[last]) / 2

as in transformers' BertForQuestionAnswering, where the softmax runs over the padding too, so that the loss of a row changes with
the rows beside it; here padding has the logit -inf.

A window is [CLS] question [SEP] part of the context [SEP]. The question stands whole in each; a context that is too long goes into
several windows, which share `overlap` tokens. Google's run_squad.py names the step instead (doc_stride): with room for r tokens of
the context in a window, its step of 128 is an overlap of r - 128 here; transformers' tokenizers call the overlap `stride`. Windows
that do not hold the whole answer are trained on [CLS], as in both of these, also where every question has an answer.

An answer is trained on the tokens that overlap its characters; of several gold answers the first is taken. Predicted is the user's
own text, from the first character of the best span's first token to the last one of its last token. The best span is the exact
maximum of s[first] + e[last] over all windows, where first <= last < first + max_answer_length, both lie in the context, and
`first` has the most context in this window. Where some training questions have no answer (SQuAD 2.0),

    margin = min over the windows of (s[CLS] + e[CLS]) - (s[first] + e[last]),    no answer where margin > threshold

threshold is 0, or after training the one of the best F1 on the validation rows.

Axes: B windows of a batch, S the longest window, N windows.
Proved by tests/reference/test_question_answering.py: loss and every gradient of transformers' models, float64, 1e-10.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minift.data.batching import Batch, Data
from minift.data.layout import Layout, TextLayout
from minift.data.squad import Questions, check_trainable, read_squad
from minift.data.tokenising import encode_with_places, pad, pair_frame
from minift.data.windows import windows
from minift.errors import Diverged, UserError
from minift.flags import spelled
from minift.metrics.squad import (
    best_spans,
    best_threshold,
    max_context,
    no_answer_baseline,
    normalise,
    squad_metrics,
    squad_scores,
)
from minift.tables import table
from minift.tasks.task import Mark, Meter, Task, text_defaults

N_BEST = 20  # spans that `predict` gives, as in the usual scripts
CLS = 0  # the position that stands for "no answer in this window"
TABULAR = ("header", "label_part", "skip_unlabelled")  # flags that say nothing of questions

Span = tuple[float, int, int, int]  # logit, unit, first and last token of the context


@dataclass(frozen=True)
class QuestionAnswering(Task):
    pool: None
    max_length: int  # tokens of a window
    overlap: int  # tokens of the context that neighbouring windows share
    max_answer_length: int  # tokens of the longest answer that is predicted
    no_answer: bool  # whether a question may have none
    threshold: float | None  # of the margin; None: 0, as no validation rows have chosen one

    MODEL: ClassVar = "minilm-l6"
    OPTIMIZER: ClassVar = "adamw"
    WEIGHT_DECAY: ClassVar = 0.01
    METRICS: ClassVar = {"f1": True, "exact_match": True}
    LAYOUT: ClassVar = TextLayout
    OFFICIAL: ClassVar = ("id", "answer")

    def __post_init__(self):
        if not 0 <= self.overlap < self.max_length:
            raise ValueError(f"overlap {self.overlap}, max_length {self.max_length}: expected 0 <= overlap < max_length")
        if self.max_answer_length < 1 or not (self.threshold is None or math.isfinite(self.threshold)):
            raise ValueError(f"max_answer_length {self.max_answer_length}, threshold {self.threshold}: expected 1 or more, finite")

    @classmethod
    def defaults(cls, method: str, checkpoint) -> dict[str, tuple]:
        return text_defaults(checkpoint, 384, both_sides=True)

    @staticmethod
    def read(source: str | Iterable, layout: TextLayout, labelled: bool = True) -> Questions:
        if idle := [name for name in TABULAR if getattr(layout, name) != getattr(Layout, name)]:
            raise UserError(f"{spelled(idle[0])} is for tables of texts and labels; files of questions have no use for it")
        columns = {"question": layout.text_column, "context": layout.pair_column, "answer": layout.label_column}
        return read_squad(
            source,
            encoding=layout.encoding,
            format=layout.format,
            labelled=labelled,
            columns=columns if isinstance(source, str) else {},
            delimiter=layout.delimiter,
        )

    @classmethod
    def learn(cls, train: Questions, options) -> "QuestionAnswering":
        check_trainable(train)
        if not any(train.answers):
            raise UserError(f"{train.path}: no question has an answer, so there is nothing to learn")
        overlap = options.max_length // 3 if options.overlap is None else options.overlap
        if overlap >= options.max_length:
            raise UserError(f"--overlap {overlap}: expected less than --max-length {options.max_length}")
        return cls(None, options.max_length, overlap, options.max_answer_length, not all(train.answers), None)

    def review(self, parts: dict[str, Questions], options) -> list[str]:
        notes = [f"a context that is too long goes into windows of {self.max_length} tokens that share {self.overlap} of its own"]
        seen = {*parts["train"].contexts}
        if several := sum(len(answers) > 1 for answers in parts["train"].answers):
            notes.append(f"{several:,} training questions have several answers; the first is learned")
        for split, part in parts.items():
            contexts = {*part.contexts}
            if split != "train" and (shared := len(contexts & seen)):
                notes.append(f"{shared:,} of the {len(contexts):,} contexts of the {split} rows are in the training rows too")
            without = sum(not answers for answers in part.answers)
            if without and not self.no_answer:
                notes.append(
                    f"every training question has an answer, so the model always gives one; {without:,} {split} questions have none"
                )
        if self.no_answer:
            chosen = "validation rows with and without an answer choose its threshold after training"
            valid = parts.get("valid")
            tunable = valid is not None and len({bool(answers) for answers in valid.answers}) == 2
            notes.append(f"no answer may be predicted; {chosen if tunable else 'its threshold stays 0: no rows to choose it by'}")
        return notes

    def columns(self, examples: Questions) -> dict[str, int]:
        return {"contexts": len({*examples.contexts}), "without answer": sum(not answers for answers in examples.answers)}

    def prepare(self, examples: Questions, checkpoint, options=None, workers: int = 0) -> "Passages":
        if self.max_length > checkpoint.max_length:
            raise UserError(f"--max-length {self.max_length}: the model has {checkpoint.max_length} positions")
        return Passages(examples, self, checkpoint)

    def head(self, body: nn.Module) -> "SpanHead":
        return SpanHead(body)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """logits: (B, S, 2). batch.targets: places (B, 2) of the first and the last token of the answer; units (B)."""
        return F.cross_entropy(logits, batch.targets[0], reduction="none").mean(1)  # (B, S, 2), (B, 2) -> (B)

    def expected(self, batch: Batch, unit: int, tokenizer) -> dict[int, str]:
        first, last = batch.targets[0][unit].tolist()
        return {first: "start and end"} if first == last else {first: "start", last: "end"}

    def meter(self, data: "Passages") -> "Answers":
        return Answers(self, data)

    def tune(self, meter: "Answers") -> "QuestionAnswering":
        """The threshold of the best F1, halfway to the next margin, so that rounding does not decide."""
        if not (self.no_answer and len({*meter.has_answer.values()}) == 2):
            return self
        margins = meter.margins()
        scores = {key: f1 for key, (_, f1) in squad_scores(meter.gold, meter.best_texts(), "2.0").items()}
        _, best = best_threshold(scores, margins, meter.has_answer)
        finite = [margin for margin in margins.values() if math.isfinite(margin)]
        below, above = ([m for m in finite if (m <= best) == side] for side in (True, False))
        if below and above:
            return replace(self, threshold=(max(below) + min(above)) / 2)
        return replace(self, threshold=max(below) + 1.0 if below else min(above) - 1.0 if above else None)

    def predict(self, outputs: Iterable[tuple[int, list[Tensor]]], data: "Passages") -> Iterator[dict]:
        """answer, "" for none; start and end, its characters in the context; score, its probability among the n best spans and,
        where there may be none, no answer; no_answer, the margin; n_best, these spans.
        """
        unit = 0
        for row, parts in outputs:
            nulls, spans = [], []
            for logits in parts:
                null, found = data.spans(unit, logits, self.max_answer_length, N_BEST)
                nulls.append(null)
                spans += found
                unit += 1
            spans = sorted(spans, key=lambda span: -span[0])[:N_BEST]
            yield self.answer(row, min(nulls), spans, data)

    def answer(self, row: int, null: float, spans: list[Span], data: "Passages") -> dict:
        """spans: the best first."""
        logits = np.array([span[0] for span in spans] + [null] * self.no_answer)
        p = np.exp(logits - logits.max(initial=-np.inf)) if len(logits) else logits
        p = (p / p.sum()).tolist()
        candidates = []
        for (_, _, first, last), score in zip(spans, p[: len(spans)], strict=True):
            a, b = data.characters(row, first, last)
            candidates.append({"answer": data.examples.contexts[row][a:b], "start": a, "end": b, "score": score})
        margin = null - spans[0][0] if spans else math.inf
        best = None if self.refuses(margin) else candidates[0]
        nothing = {"answer": "", "start": None, "end": None, "score": p[-1] if self.no_answer else 0.0}
        return (best or nothing) | {"no_answer": margin if spans else None, "n_best": candidates}

    def refuses(self, margin: float) -> bool:
        """Whether no answer is given: by the threshold, and where no span is legal."""
        return margin == math.inf or (self.no_answer and margin > (self.threshold or 0.0))

    def show(self, prediction: dict) -> str:
        return f"{prediction['answer'] or '(no answer)'}  {prediction['score']:.3f}"

    def compare(self, examples: Questions, row: int, prediction: dict) -> str:
        gold = examples.answers[row]
        right = repr(gold[0].text) if gold else "no answer"
        found = repr(prediction["answer"]) if prediction["answer"] else "no answer"
        return f"{right}, predicted {found} {prediction['score']:.3f}"

    def marked(self, examples: Questions, row: int, prediction: dict) -> tuple[str, list[Mark], list[Mark]]:
        right = [Mark(a.start, a.start + len(a.text), "answer") for a in examples.answers[row][:1] if a.start is not None]
        found = [Mark(prediction["start"], prediction["end"], "answer")] if prediction["answer"] else []
        return examples.contexts[row], right, found


class SpanHead(nn.Linear):
    """W h + b, without dropout. Its files hold head.weight (2, D) and head.bias (2); transformers calls it qa_outputs."""

    def __init__(self, body: nn.Module):
        super().__init__(body.config.width, 2)
        body.initialise(self)

    def forward(self, state: tuple, batch: Batch) -> Tensor:
        """(B, S, 2) logits of start and end; -inf where there is padding"""
        logits = super().forward(state.hidden)  # (B, S, D) -> (B, S, 2)
        return logits if state.mask is None else logits.masked_fill(~state.mask.unsqueeze(-1), -math.inf)


class Passages(Data):
    """Questions with their contexts, in windows; a unit is a window. Each context is tokenised and held once."""

    def __init__(self, examples: Questions, task: QuestionAnswering, checkpoint):
        self.examples = examples
        self.pad = checkpoint.config["pad_token_id"]
        self.typed = checkpoint.config["type_vocab_size"] > 1
        self.max_length = task.max_length
        self.max_answer_length = task.max_answer_length
        self.frame = pair_frame(checkpoint.tokenizer)
        if not len(self.frame.before):
            raise UserError(f"{checkpoint.source}: the tokenizer puts no special token first, which is to stand for no answer")
        contexts = list(dict.fromkeys(examples.contexts))
        number = {context: i for i, context in enumerate(contexts)}
        self.context_of = [number[context] for context in examples.contexts]  # of each row
        self.contexts, self.places = encode_with_places(checkpoint.tokenizer, contexts)
        self.questions, _ = encode_with_places(checkpoint.tokenizer, examples.questions)
        special = sum(len(part) for part in self.frame[:3])
        row_of, spans, self.own, self.row_lengths = [], [], [], []
        for row, question in enumerate(self.questions):
            length = len(self.contexts[self.context_of[row]])
            room = task.max_length - special - len(question)
            if room < 1 or (length > room and task.overlap >= room):
                raise UserError(
                    f"{examples.where(row)}: the question has {len(question):,} tokens; with it a window of --max-length "
                    f"{task.max_length} has room for {max(room, 0)} of the context, and more than --overlap {task.overlap} are "
                    "expected; shorten the question, or train with a higher --max-length or a lower --overlap"
                )
            found = windows(length, room, min(task.overlap, room - 1))
            best = max_context(found, length) if len(found) > 1 else np.zeros(length, dtype=np.int64)
            row_of += [row] * len(found)
            spans += found
            self.own += [best[start:end] == i for i, (start, end) in enumerate(found)]  # tokens that may begin an answer here
            self.row_lengths.append(special + len(question) + length)
        self.row_of = np.array(row_of, dtype=np.int64)
        self.windows = np.array(spans, dtype=np.int64)  # (N, 2) the part of the context: first token, token behind the last
        self.begin = np.array([len(self.frame.before) + len(q) + len(self.frame.between) for q in self.questions])  # of the context
        self.lengths = self.begin[self.row_of] + self.windows[:, 1] - self.windows[:, 0] + len(self.frame.after)
        self.targets = None if examples.answers is None else self.find_answers()

    @property
    def rows(self) -> np.ndarray:
        return self.row_of

    def find_answers(self) -> np.ndarray:
        """(N, 2) the places of the first and the last token of the answer in each window; CLS where it does not hold the answer."""
        targets = np.full((len(self), 2), CLS)
        answered = np.zeros(len(self.questions), dtype=bool)
        self.answered = self.between = self.beyond = 0
        tokens = [self.tokens_of(row) for row in range(len(self.questions))]
        for unit, row in enumerate(self.row_of.tolist()):
            start, end = self.windows[unit]
            if tokens[row] is not None and start <= tokens[row][0] and tokens[row][1] < end:
                targets[unit] = np.array(tokens[row]) - start + self.begin[row]
                answered[row] = True
        self.unanswered = sum(bool(answers) and not there for answers, there in zip(self.examples.answers, answered, strict=True))
        for row in np.flatnonzero(answered).tolist():
            a, b = self.characters(row, *tokens[row])
            self.between += normalise(self.examples.contexts[row][a:b]) != normalise(self.examples.answers[row][0].text)
            self.beyond += tokens[row][1] - tokens[row][0] >= self.max_answer_length
        return targets

    def tokens_of(self, row: int) -> tuple[int, int] | None:
        """The first and the last token of the context that overlap the characters of the first answer; None: there are none."""
        answers = self.examples.answers[row]
        if not answers or answers[0].start is None:
            return None
        places, (text, start) = self.places[self.context_of[row]], answers[0]
        inside = np.flatnonzero((places[:, 1] > start) & (places[:, 0] < start + len(text)))
        return (int(inside[0]), int(inside[-1])) if len(inside) else None

    def characters(self, row: int, first: int, last: int) -> tuple[int, int]:
        """Where a span of tokens stands in the context: first character, character behind the last."""
        places = self.places[self.context_of[row]]
        return int(places[first, 0]), int(places[last, 1])

    def spans(self, unit: int, logits: Tensor, longest: int, n: int) -> tuple[float, list[Span]]:
        """(s[CLS] + e[CLS], the n best legal spans of a window, the best first). logits: (S, 2)."""
        (start, end), begin = self.windows[unit].tolist(), int(self.begin[self.row_of[unit]])
        scores = logits.double().numpy()
        null, scores = float(scores[CLS].sum()), scores[begin : begin + end - start]
        if math.isnan(null) or np.isnan(scores).any():
            raise Diverged("the outputs of the model are not numbers: training has diverged; try a lower --lr")
        if not len(scores):
            return null, []
        found = best_spans(*scores.T[:, None], self.own[unit][None], np.ones((1, len(scores)), dtype=bool), longest, n)
        return null, [(score, unit, start + first, start + last) for score, _, first, last in found]

    def describe(self) -> dict[str, int]:
        described = {
            "median tokens": int(np.median(self.row_lengths)),
            "longest": max(self.row_lengths),
            f"in windows of {self.max_length}": int((np.bincount(self.row_of) > 1).sum()),
            "windows": len(self),
        }
        if self.targets is None:
            return described
        return described | {
            "answers in no window": self.unanswered,
            "between tokens": self.between,
            f"above {self.max_answer_length} tokens": self.beyond,
        }

    def outline(self, units: np.ndarray, epoch: int | None) -> Batch:
        targets = () if self.targets is None else (torch.from_numpy(self.targets[units]), torch.from_numpy(units))
        return Batch((), targets, self.row_of[units], torch.ones(len(units)))

    def batches(self, order: list[np.ndarray], device: torch.device, epoch: int | None = None) -> Iterator[Batch]:
        for units in order:
            tokens, types = zip(*map(self.window, units.tolist()), strict=True)
            inputs = pad(tokens, self.pad, types if self.typed else None)
            yield replace(self.outline(units, epoch), inputs=inputs).to(device)

    def window(self, unit: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, token types)"""
        row, (start, end) = self.row_of[unit], self.windows[unit]
        return self.frame.put(self.questions[row], self.contexts[self.context_of[row]][start:end])


class Answers(Meter):
    """Of each question the best span and the lowest s[CLS] + e[CLS] over the windows that have been seen."""

    def __init__(self, task: QuestionAnswering, data: Passages):
        self.task, self.data = task, data
        self.version = data.examples.version
        self.gold = data.examples.gold()
        # as v2.0 counts: an answer of punctuation alone is none
        self.has_answer = {key: any(map(normalise, texts)) for key, texts in self.gold.items()}
        self.nulls: dict[int, float] = {}
        self.best: dict[int, Span] = {}

    def add(self, logits: Tensor, batch: Batch) -> None:
        units = batch.targets[1].tolist()
        for row, unit, scores in zip(batch.rows.tolist(), units, logits, strict=True):
            null, spans = self.data.spans(unit, scores, self.task.max_answer_length, 1)
            self.take(row, null, spans[0] if spans else None)

    def take(self, row: int, null: float, span: Span | None) -> None:
        self.nulls[row] = min(self.nulls.get(row, math.inf), null)
        if span is not None:  # of equal ones that of the earlier window, in whatever order they come
            self.best[row] = max(self.best.get(row, span), span, key=lambda span: (span[0], -span[1]))

    def merge(self, other: "Answers") -> None:
        for row, null in other.nulls.items():
            self.take(row, null, other.best.get(row))

    def margins(self) -> dict[str, float]:
        """Question -> its margin; infinite where no span is legal."""
        ids = self.data.examples.ids
        return {ids[row]: null - self.best[row][0] if row in self.best else math.inf for row, null in self.nulls.items()}

    def best_texts(self) -> dict[str, str]:
        """Question -> the text of its best span."""
        examples, texts = self.data.examples, {}
        for row in self.nulls:
            a, b = self.data.characters(row, *self.best[row][2:]) if row in self.best else (0, 0)
            texts[examples.ids[row]] = examples.contexts[row][a:b]
        return texts

    def figures(self, task: QuestionAnswering) -> dict[str, float]:
        margins = self.margins()
        texts = {key: "" if task.refuses(margins[key]) else text for key, text in self.best_texts().items()}
        return squad_metrics(self.gold, texts, self.version)

    def metrics(self) -> dict[str, float]:
        figures = self.figures(self.task)
        return {"f1": figures["f1"], "exact_match": figures["exact"]}

    def details(self) -> dict:
        """Of SQuAD 2.0 the questions with and without an answer apart, a model that never answers, and the threshold."""
        if self.version == "1.1":
            return {}
        never = no_answer_baseline(self.gold)
        return self.figures(self.task) | {
            "never_answered": {name: never[name] for name in ("f1", "exact")},
            "at_threshold_0": {name: self.figures(replace(self.task, threshold=None))[name] for name in ("f1", "exact")},
            "threshold": self.task.threshold,
        }

    def table(self) -> str:
        """Of SQuAD 2.0 the questions with and without an answer apart, beside a model that never answers."""
        if self.version == "1.1":
            return "f1 and exact_match as SQuAD 1.1's official script counts them, from 0 to 1"
        task, rows = self.task, []
        never = no_answer_baseline(self.gold)
        for name, figures, prefix in (
            ("all", self.figures(task), ""),
            ("with an answer", self.figures(task), "has_answer_"),
            ("without one", self.figures(task), "no_answer_"),
            *([("all, at threshold 0", self.figures(replace(task, threshold=None)), "")] if task.threshold is not None else []),
            ("all, if it never answered", never, ""),
        ):
            if f"{prefix}total" in figures:
                rows.append([name, figures[f"{prefix}total"], figures[f"{prefix}f1"], figures[f"{prefix}exact"]])
        return f"{table(['SQuAD 2.0', 'questions', 'f1', 'exact_match'], rows)}\n{self.said()}"

    def said(self) -> str:
        task = self.task
        if not task.no_answer:
            return "the model always answers: it was trained on questions that all have an answer"
        if task.threshold is None:
            return "no answer where the margin is above 0; no validation rows have chosen a threshold"
        chosen = "chosen by F1 on the validation rows, whose own figures it flatters"
        return f"no answer where the margin is above {task.threshold:.4g}, {chosen}"
