"""The directory that a run leaves: config.json, metrics.jsonl, result.json and model/."""

import json
import platform
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import safetensors
import tokenizers
import torch
from torch import nn

import minift
from minift.errors import UserError
from minift.methods.surgery import plain_name
from minift.pretrained import Checkpoint, read_tensors, write, write_json


class Run:
    """template: the checkpoint that is saved, all but its tensors. saved: which of the body's tensors; None: all."""

    def __init__(self, directory: Path, template: Checkpoint, saved: list[str] | None = None):
        self.directory = directory
        self.template = template
        self.saved = saved
        directory.mkdir(parents=True, exist_ok=True)
        try:
            (directory / "config.json").touch(exist_ok=False)
        except FileExistsError:
            raise UserError(f"{directory}: another run has just taken it; start again") from None

    def write_json(self, name: str, content: dict) -> None:
        beside = self.directory / (name + ".part")
        write_json(beside, content)
        beside.replace(self.directory / name)

    def log(self, events: list[dict]) -> None:
        with (self.directory / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(event) + "\n" for event in events)

    def save(self, model: nn.Module) -> None:
        tensors, head = plain_state(model.body), model.head.state_dict()
        tensors = tensors if self.saved is None else {name: tensors[name] for name in self.saved}
        tensors, head = ({name: t.detach().cpu() for name, t in part.items()} for part in (tensors, head))
        write(self.directory / "model", replace(self.template, tensors=tensors, head=head))

    def restore(self, model: nn.Module) -> None:
        """Put the weights that were saved last back into `model`."""
        tensors = read_tensors(self.directory / "model" / "model.safetensors")
        state = plain_state(model.body) | {f"head.{name}": tensor for name, tensor in model.head.state_dict().items()}
        for name, tensor in tensors.items():
            state[name].copy_(tensor)


def plain_state(body: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict under the plain model's names."""
    return {plain_name(name): tensor for name, tensor in body.state_dict().items()}


def choose_directory(out: str | None, data: Path, model: str, method: str) -> Path:
    """--out, which must be empty; else runs/DATA-MODEL-METHOD, numbered where it is taken."""
    if out is not None:
        directory = Path(out)
        if directory.is_file() or (directory.is_dir() and any(directory.iterdir())):
            raise UserError(f"--out {out}: exists and is not empty; give another directory or delete it")
        return directory
    stem = data.parent.resolve().name if data.stem.lower().startswith("train") else data.stem
    name = re.sub(r"[^\w.=-]+", "-", f"{stem}-{Path(model).name}-{method}")  # a colon is no letter of a name on Windows
    name = name[:100]
    directory, number = Path("runs") / name, 1
    while directory.exists():
        number += 1
        directory = Path("runs") / f"{name}-{number}"
    return directory


def versions() -> dict[str, str]:
    modules = (minift, torch, tokenizers, safetensors, numpy)
    return {"python": platform.python_version()} | {module.__name__: str(module.__version__) for module in modules}


def describe_device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device}, {torch.get_num_threads()} threads"


def peak_memory_mb(device: torch.device) -> int | None:
    """Of the GPU's memory, or of the process on a CPU; None on Windows, which does not tell."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    if sys.platform == "win32":
        return None
    import resource  # is not there on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)
