"""Training in 1, 2 and 3 processes, for tests/test_distributed.py: `python tests/together.py PLACE` leaves PLACE/SCENARIO-N.pt.

A process that has imported everything forks those of a run, one run after the other. Weights are float64, without dropout.
"""

import os
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from contract.tasks import BASES
from contract.test_tasks import Started, as_double
from loop import loop_options

from minift import distributed
from minift.errors import command
from minift.training import Progress, evaluate, fit


@dataclass(frozen=True)
class Scenario:
    task: str
    model: str = "bert"
    method: str = "full"
    loop: dict = field(default_factory=dict)
    flags: dict = field(default_factory=dict)
    three: bool = False  # also in three processes


SCENARIOS = {
    "uneven last batches": Scenario("text-classification", loop={"batch_size": 5}, three=True),
    "batches of one": Scenario("text-classification", loop={"batch_size": 1, "epochs": 1}, three=True),
    "accumulated": Scenario("text-classification", loop={"accumulate": 3, "epochs": 6}),
    "gradual unfreezing": Scenario("text-classification", flags={"unfreeze": "gradual:every=4"}, three=True),
    "lora": Scenario("text-classification", method="lora:rank=2", three=True),
    "l2sp": Scenario("text-classification", flags={"penalty": "l2sp:alpha=0.1,beta=0.01"}),
    "weighted classes": Scenario("classification with weights"),
    "frozen features kept": Scenario("text-classification", method="partial:stages=1", flags={"cache": "memory"}),
    "words of windows": Scenario("token-classification", three=True),
    "answers in windows": Scenario("question-answering"),
    "masked tokens": Scenario("masked-lm", model="roberta"),
    "numbers": Scenario("text-regression"),
    "several labels": Scenario("multi-label-classification"),
    "frozen statistics": Scenario("image-classification", model="resnet", method="lora:rank=2", loop={"epochs": 4}),
}


class Kept:
    """Takes the place of a run: every loss of training."""

    def __init__(self):
        self.losses = []

    def log(self, events):
        self.losses += [event["loss"] for event in events if event["split"] == "train"]

    def save(self, model, task): ...


def run(name: str, place: Path, bases: dict) -> dict:
    """20 steps or more, then the figures of the validation rows. What every process has, the meter's table being the first's."""
    scenario = SCENARIOS[name]
    place.mkdir(exist_ok=True)
    # the gradient of a key's bias is 0 but for rounding, which AdamW with a smaller eps makes as large as its learning rate
    flags = {"optimizer": "adamw:eps=1e-6"} | scenario.flags
    started = Started(place, bases, scenario.task, scenario.model, method=scenario.method, **flags)
    training, data, kept = started.training, started.data, Kept()
    training.model.double()
    if scenario.model == "resnet":
        for split in data.values():
            as_double(split)
    options = loop_options(**{"epochs": 3, "batch_size": 4} | scenario.loop, monitor="loss")
    progress = Progress(changed=True)
    fit(training, data["train"], data["valid"], kept, options, progress)
    scores = evaluate(training.model, training.task, data["valid"], 3, training.precision)
    weights = {name: p.detach().clone() for name, p in training.model.named_parameters()}
    return {"losses": kept.losses, "metrics": scores.metrics, "row losses": scores.losses, "best": progress.best, **weights} | {
        "steps": progress.step,
        "table": scores.meter.table() if distributed.rank() == 0 else "",
    }


def in_processes(name: str, number: int, place: Path, bases: dict) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(number):
        child = os.fork()
        if not child:
            environment = {"RANK": rank, "WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({key: str(value) for key, value in environment.items()})
            own = place / f"{name}-{number}-{rank}"

            def work(_, own=own):
                if number == 1:
                    torch.save(run(name, own, bases), f"{own}.pt")
                else:
                    with distributed.together("cpu"):
                        torch.save(run(name, own, bases), f"{own}.pt")

            try:
                command(work, "together")
            except SystemExit as end:
                sys.stdout.flush()
                os._exit(end.code or 0)
            finally:
                os._exit(70)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * number, f"{name} in {number} processes ended with {codes}"


def main(place: Path) -> None:
    bases = {name: make(place / name) for name, make in BASES.items()}
    for name, scenario in SCENARIOS.items():
        for number in (1, 2, 3)[: 2 + scenario.three]:
            in_processes(name, number, place, bases)


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    main(Path(sys.argv[1]))
