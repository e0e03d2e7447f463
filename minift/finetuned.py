"""A trained model in use: load it from a run, label texts or images with it, score it."""

import time
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minift.cache import Recomputed, Trunk
from minift.data.batching import by_length
from minift.errors import UserError, look_up
from minift.optim.precision import around
from minift.pretrained import Checkpoint, read
from minift.tasks import TASKS


@dataclass
class FineTuned:
    """A trained model with all that it takes to use it."""

    model: nn.Module
    task: object
    checkpoint: Checkpoint  # without its tensors
    precision: AbstractContextManager  # as `optim.precision.around` makes it
    trunk: Trunk | None  # the stages that were frozen in training, run as they were then

    @property
    def settings(self) -> dict:
        """How the run read and batched its data."""
        return self.checkpoint.settings

    def prepare(self, rows, labels=None, workers: int = 0):
        """Rows as the task reads them -> data for `score`, through the frozen trunk as in training."""
        data = self.task.prepare(rows, labels, self.checkpoint, self.settings, workers)
        return data if self.trunk is None else Recomputed(data, self.trunk)

    def score(self, rows, labels, workers: int = 0) -> tuple["Scores", dict]:
        """(scores of labelled rows, figures of the data). labels: (N) ids. workers: processes that read images."""
        data = self.prepare(rows, labels, workers)
        return score(self.model, self.task, data, self.settings["batch_size"], self.precision), data.describe()

    def predict(self, inputs: list[str], pairs: list[str] | None = None) -> list[dict]:
        """One object a text or image file, in order: label, score (its probability), probabilities by label.

        pairs: the second texts, for a run that was trained on pairs.
        """
        return self.predict_rows(self.task.rows(inputs, pairs))

    def predict_rows(self, rows, workers: int = 0) -> list[dict]:
        if not len(rows):
            return []
        data = self.prepare(rows, None, workers)
        return self.task.decode(logits_of(self.model, data, self.settings["batch_size"], self.precision))


def load(directory: str | Path, device: str | None = None) -> FineTuned:
    """A finished run, ready to predict. device: as torch names it; None: CUDA where there is one, else the CPU."""
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; a run's directory is wanted, as runs/NAME")
    checkpoint = read(directory / "model" if (directory / "model").is_dir() else directory)
    if checkpoint.task is None:
        raise UserError(f"{directory}: a body without a head; train one first: python train.py --model {directory} --train FILE")
    described = dict(checkpoint.task)
    task = look_up(TASKS, described.pop("name"), "task")(**described)
    model = task.model(checkpoint.body(checkpoint.task["pool"]))
    model.head.load_state_dict({name: tensor.float() for name, tensor in checkpoint.head.items()})
    model = model.to(choose_device(device), memory_format=torch.channels_last).eval()
    precision = around(getattr(torch, checkpoint.settings.get("precision", "float32")))
    frozen = checkpoint.settings.get("frozen", 0)
    trunk = Trunk(model.body, frozen, precision) if frozen else None
    return FineTuned(model, task, replace(checkpoint, tensors={}, head={}), precision, trunk)


def choose_device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name}: not to be had here ({str(error).splitlines()[0][:150]})") from None
    return device


def logits_of(model: nn.Module, data, batch_size: int, precision: AbstractContextManager) -> Tensor:
    """The logits of every row in the order of the rows, (N, C), on the CPU. The model is left in evaluation mode."""
    device = next(model.parameters()).device
    model.eval()
    order, logits = by_length(data.lengths, batch_size), None
    with torch.inference_mode(), closing(data.batches(order, device)) as stream:
        for rows, batch in zip(order, stream, strict=True):
            with precision:
                output = model(batch).cpu()
            output = output.float() if output.dtype.itemsize < 4 else output
            logits = output.new_empty(len(data), *output.shape[1:]) if logits is None else logits
            logits[rows] = output
    return logits


@dataclass
class Scores:
    metrics: dict[str, float]  # loss and the task's
    logits: Tensor  # (N, C)
    seconds: float


def score(model: nn.Module, task, data, batch_size: int, precision: AbstractContextManager) -> Scores:
    """Mean loss and metrics over all rows at once, never averaged over batches. data must have labels."""
    start = time.perf_counter()
    logits = logits_of(model, data, batch_size, precision)
    labels = torch.from_numpy(data.labels)
    total, count = task.loss(logits, labels)
    return Scores({"loss": total.item() / count} | task.metrics(logits, data.labels), logits, time.perf_counter() - start)
