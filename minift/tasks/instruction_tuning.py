"""Instruction tuning: a decoder learns to answer (Wei et al. 2022, arXiv:2109.01652; Ouyang et al. 2022, arXiv:2203.02155, step 1).

The loss is that of causal-lm on the tokens of the answers and on the end of text behind each, so that the model learns to stop;
prompts and headings are read and not learned. Rows, headings and what counts: minift/data/instructions.py. Padding is known by
length alone, so that the end of text is a target though batches are filled up with it.

A row longer than --max-length keeps its start. Where the prompt fills it, nothing of the answer is left: such rows are named,
counted, and left out of training; if no others are left, it is an error.
--packing puts the rows of a batch side by side in rows of --max-length, each seeing itself alone, with positions of its own: the
batch has the same rows, so loss and gradient are the same. The rows of a batch are then drawn without regard to their length.

Axes: as in causal_lm.py.
Proved by tests/reference/test_causal_lm.py (loss, gradients) and tests/test_instruction_tuning.py (mask, packing, traps).
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from minift.data.batching import Data
from minift.data.causal import Sequences
from minift.data.instructions import FORMS, Instructions, read_instructions, tokenised
from minift.data.layout import Layout
from minift.data.masking import NO_LABEL
from minift.errors import UserError
from minift.tables import counted
from minift.tasks.causal_lm import Likelihood, NextToken

NAMED = 5  # rows that a note names


@dataclass(frozen=True)
class InstructionTuning(NextToken):
    pool: None
    max_length: int  # tokens of a row, prompt and answer
    form: str  # of the training file: what `minift.generate` takes a text for

    METRICS: ClassVar = {"perplexity": False, "accuracy": True}
    LAYOUT: ClassVar = Layout
    LONGEST: ClassVar = 512

    def __post_init__(self):
        if self.form not in FORMS:
            raise ValueError(f"form {self.form!r}: expected {', '.join(FORMS)}")
        if self.max_length < 2:
            raise ValueError(f"max_length {self.max_length}: expected 2 or more")

    @staticmethod
    def read(source: str | Iterable, layout: Layout, labelled: bool = True) -> Instructions:
        """labelled: every row has an answer. `predict` scores answers too, so a file without them is for minift.generate."""
        rows = read_instructions(source, layout, labelled)
        if not all(any(piece.counts for piece in row) for row in rows.pieces):
            raise UserError(f"{rows.path}: rows without an answer cannot be scored; to have them answered: "
                            'python -m minift.generate RUN "text", or RUN --data FILE')  # fmt: skip
        return rows

    @classmethod
    def learn(cls, train: Instructions, options) -> "InstructionTuning":
        return cls(None, options.max_length, train.form)

    def prepare(self, examples: Instructions, checkpoint, options=None, workers: int = 0) -> Sequences:
        self.check_length(checkpoint, options)
        c = checkpoint.config
        rows = tokenised(checkpoint.tokenizer, examples.pieces, c["eos_token_id"])
        whole = np.array([len(ids) for ids, _ in rows])
        rows = [(ids[: self.max_length], counts[: self.max_length]) for ids, counts in rows]
        targets = [np.where(counts[1:], ids[1:], NO_LABEL) for ids, counts in rows]
        filled = [i for i, one in enumerate(targets) if (one == NO_LABEL).all()]
        if filled:
            places = ", ".join(examples.where(i) for i in filled[:NAMED]) + ", ..." * (len(filled) > NAMED)
            said = f"{counted(len(filled), 'row')} whose prompt fills --max-length {self.max_length}, with no answer left: {places}"
            if len(filled) == len(rows):
                raise UserError(f"{said}; no other row is left, give a larger --max-length")
            print(f"note: {said}; {'left out of training' if options else 'not scored'}", file=sys.stderr)
        figures = {
            "median tokens": int(np.median(whole)),
            "longest": int(whole.max()),
            "tokens that count": int(sum((one != NO_LABEL).sum() for one in targets)),
            f"cut by {self.max_length}": int((whole > self.max_length).sum()),
            "no answer left": len(filled),
        }
        return Sequences(
            [ids[:-1] for ids, _ in rows],
            targets,
            np.arange(len(rows)),
            checkpoint.tokenizer,
            c["pad_token_id"],
            self.max_length,
            packing=options is not None and options.packing,
            figures=figures,
        )

    def meter(self, data: Data) -> Likelihood:
        return Likelihood(tuple(self.METRICS), f"of answers alone, in rows of at most {self.max_length} tokens")

    def example(self, examples: Instructions) -> str:
        return examples.example()

    def compare(self, examples: Instructions, row: int, prediction: dict) -> str:
        answer = next(piece.text for piece in reversed(examples.pieces[row]) if piece.counts)
        return f"{self.show(prediction)}: {answer[:60]!r}"
