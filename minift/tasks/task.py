"""The contract of a task: what the training loop, prediction and the files of a run ask of it. One task = one file.

    read     a file, or inputs by hand  -> Examples      the rows as the user has them
    learn    the training rows          -> Task          what must be remembered: labels, lengths, means
    prepare  Examples                   -> Data          numbers, in units and batches
    head     Body                       -> nn.Module     head(state, batch) -> outputs of any structure
    loss     outputs, Batch             -> (B)           of each unit, summed over what its count counts
    meter    Data                       -> Meter         metrics, added up batch by batch
    predict  outputs row by row         -> dicts         one object a row

The gradient of a step is that of sum(losses) / sum(counts) over all its batches, so that accumulation, batches of different
sizes and several processes give the gradient of the one large batch. Proved for every task by tests/contract/test_tasks.py.

Axes: B units of a batch.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from minift.data.batching import Batch, Data
from minift.data.examples import Blocks, Examples
from minift.data.layout import Layout
from minift.errors import UserError, look_up
from minift.fields import read_fields, shown
from minift.tasks import TASKS


class Mark(NamedTuple):
    """A span of a text, and what it is called."""

    start: int  # its first character
    end: int  # the character after its last
    name: str


class Meter:
    """The metrics of a split, from outputs that come batch by batch and need not be kept."""

    def add(self, outputs, batch: Batch) -> None:
        """outputs, and the targets of the batch, on the CPU."""
        raise NotImplementedError

    def merge(self, other: "Meter") -> None:
        """Take over what another meter, of other rows of the same split, has added up."""
        raise NotImplementedError

    def metrics(self) -> dict[str, float | None]:
        """The figures under the names of the task's METRICS; None where one is undefined."""
        raise NotImplementedError

    def details(self) -> dict:
        """What result.json has of a split besides the metrics; empty: nothing."""
        return {}

    def table(self) -> str:
        """What to print of a split besides the metrics; empty: nothing."""
        return ""


class Task:
    """What a run must know, besides weights, to train and to predict. A task is a frozen dataclass of plain values.

    Its fields stand in config.json, from which `of` makes it again.
    """

    MODEL: ClassVar[str]  # the default of --model
    OPTIMIZER: ClassVar[str]  # of --optimizer
    WEIGHT_DECAY: ClassVar[float]  # of --weight-decay
    METRICS: ClassVar[dict[str, bool]]  # name -> whether higher is better; the first one chooses the best epoch
    LAYOUT: ClassVar[type[Layout]]  # how its files are read: the flags that predict and evaluate share with training
    # (field of an input, field of a prediction): key and value of the JSON object that official scripts of the task read, which is
    # what `predict --out FILE.json` writes; None: there is no such format
    OFFICIAL: ClassVar[tuple[str, str] | None] = None
    FISHER: ClassVar[tuple[str, ...]] = ("data",)  # labels that the Fisher information can take, see penalties/ewc.py

    WRITES: ClassVar[bool] = False  # whether `minift.generate RUN` writes with its runs

    pool: str | None  # what the body pools its output to, as cls, mean or last; None: the head reads the hidden states

    @classmethod
    def defaults(cls, method: str, checkpoint) -> dict[str, tuple]:
        """Flag -> (its value where it is unset, where that comes from). Raises UserError for a checkpoint of another kind."""
        return {}

    @staticmethod
    def read(source: str | Iterable, layout: Layout, labelled: bool = True) -> Examples:
        """source: a path, or any iterable of inputs. labelled: every row must have what the task learns."""
        raise NotImplementedError

    @classmethod
    def in_blocks(cls, source: str, layout: Layout, size: int) -> Blocks:
        """The rows of a path, without labels, for prediction: `size` at a time where the task can, so that a file may be larger
        than memory; here all together."""
        rows = cls.read(source, layout, labelled=False)
        return Blocks(len(rows), rows.decided, iter([rows]))

    @classmethod
    def learn(cls, train: Examples, options) -> "Task":
        raise NotImplementedError

    def review(self, parts: dict[str, Examples], options) -> list[str]:
        """What to note of the splits. Raises UserError for splits that the task cannot do with."""
        return []

    def columns(self, examples: Examples) -> dict[str, int]:
        """Figures of a split for the table of the data, as the rows of each class; the same names for every split."""
        return {}

    def prepare(self, examples: Examples, checkpoint, options=None, workers: int = 0) -> Data:
        """options: the run's, where the rows are to train on: they are augmented, smoothed, and so on; None: as evaluation sees
        them. checkpoint: has the tokenizer or the preprocessing. workers: processes that read images."""
        raise NotImplementedError

    @property
    def by_row(self) -> bool:
        """Whether each unit of the data is of one row, so that rows have a loss of their own and the worst can be shown."""
        return True

    def head(self, body: nn.Module) -> nn.Module:
        """A new head on the body, on its device: forward(state, batch) -> outputs."""
        raise NotImplementedError

    def pretrained_head(self, checkpoint) -> dict[str, Tensor] | None:
        """The weights that a checkpoint has for such a head, from its pretraining or from a run; None: the head is new."""
        return None

    def loss(self, outputs, batch: Batch) -> Tensor:
        raise NotImplementedError

    def drawn(self, outputs, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch with labels that are drawn from the model; generator: on the CPU. Of a task with "drawn" in FISHER."""
        raise NotImplementedError

    def outcomes(self, outputs, batch: Batch) -> list[tuple[float, Batch]]:
        """(probability, batch with these labels) for all labels of a batch of one unit. Of a task with "all" in FISHER."""
        raise NotImplementedError

    def expected(self, batch: Batch, unit: int, tokenizer) -> dict[int | None, str]:
        """What the loss expects of a unit of the batch, in words: position of a token -> what is right there; None: of all."""
        return {None: ", ".join(str(x[unit].tolist()) for x in batch.targets)}

    def meter(self, data: Data) -> Meter:
        raise NotImplementedError

    def tune(self, meter: Meter) -> "Task":
        """The task with thresholds chosen on the validation rows that the meter has seen, after training."""
        return self

    def remarks(self, metrics: dict[str, float | None]) -> list[str]:
        """What to note of the figures of a split after training."""
        return []

    def predict(self, outputs: Iterable[tuple[int, list]], data: Data) -> Iterator[dict]:
        """outputs: for every row of `data`, in order, its number and the outputs of its units, without the axis B."""
        raise NotImplementedError

    def example(self, examples: Examples) -> str:
        """What one types behind `minift.predict RUN`."""
        return examples.example()

    def show(self, prediction: dict) -> str:
        """A prediction in a few words."""
        return json.dumps(prediction, ensure_ascii=False)

    def compare(self, examples: Examples, row: int, prediction: dict) -> str:
        """The prediction of a row beside what is right."""
        return self.show(prediction)

    def marked(self, examples: Examples, row: int, prediction: dict) -> tuple[str, list[Mark], list[Mark]] | None:
        """(a text, its right spans, the predicted ones), for a task that predicts spans; None: it does not."""
        return None


class Model(nn.Module):
    """A body and a head: the model of every task."""

    def __init__(self, body: nn.Module, head: nn.Module):
        super().__init__()
        self.body = body
        self.head = head

    @property
    def parts(self) -> dict[str, list[nn.Module]]:
        """Each stage of the body, and the head -> its modules, from input to output."""
        stages = {stage: [self.body.get_submodule(name) for name in names] for stage, names in self.body.stages.items()}
        return stages | {"head": [self.head]}

    def forward(self, batch: Batch) -> tuple:
        """(the body's State, the outputs of the head)"""
        state = self.body(*batch.inputs) if batch.state is None else self.body.resume(batch.state, batch.done)
        return state, self.head(state, batch)


class PooledLinear(nn.Linear):
    """W dropout(pooled) + b: the head of a task that reads what the body pools. Its files hold head.weight and head.bias; of a
    GPT-2, as in transformers, there is no b and no dropout."""

    def __init__(self, body: nn.Module, outputs: int):
        super().__init__(body.config.width, outputs, bias=body.config.head_bias)
        self.dropout = nn.Dropout(body.config.head_dropout)
        body.initialise(self)

    def forward(self, state: tuple, batch: Batch) -> Tensor:
        return super().forward(self.dropout(state.pooled))  # (B, D) -> (B, outputs)


class TokenLinear(nn.Linear):
    """W dropout(h) + b of every token, 0 where there is padding: the head of a task that reads the hidden states.

    Its files hold head.weight and head.bias. dropout: of h; None: as the model's configuration says for a head.
    """

    def __init__(self, body: nn.Module, outputs: int, dropout: float | None = None):
        super().__init__(body.config.width, outputs)
        self.dropout = nn.Dropout(body.config.token_dropout if dropout is None else dropout)
        body.initialise(self)

    def forward(self, state: tuple, batch: Batch) -> Tensor:
        outputs = super().forward(self.dropout(state.hidden))  # (B, S, D) -> (B, S, outputs)
        return outputs if state.mask is None else outputs.masked_fill(~state.mask.unsqueeze(-1), 0.0)


def text_defaults(checkpoint, longest: int = 128, both_sides: bool = False) -> dict[str, tuple]:
    """`defaults` of a task of texts: max_length is `longest`, or what the checkpoint can take if that is less.

    both_sides: whether a token must see those behind it.
    """
    if checkpoint.tokenizer is None:
        raise UserError(f"{checkpoint.source} is a model of images; expected one of texts, as --model minilm-l6")
    if both_sides and checkpoint.causal:
        raise UserError(f"{checkpoint.source} is a causal model: its tokens do not see those behind them, as this task needs; "
                        "expected a BERT or a RoBERTa, as --model minilm-l6")  # fmt: skip
    return {"max_length": (min(longest, checkpoint.max_length), "default")}


def described(name: str, task: Task) -> dict:
    """The task as config.json stores it."""
    return {"name": name, **asdict(task)}


def task_from(stored: dict) -> Task:
    """The task that config.json describes. Raises UserError for an unknown name and for fields of another type or value."""
    values = {key: value for key, value in stored.items() if key != "name"}
    name = stored.get("name")
    if not isinstance(name, str):
        raise UserError(f"task: the name is {shown(name)}; expected one of {', '.join(TASKS)}")
    cls = look_up(TASKS, name, "task")
    return read_fields(cls, values, f"task: {name}")
