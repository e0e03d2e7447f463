"""The loop that tutorials teach, around transformers' models: the peer of the tables of the tasks.

AdamW without decay of biases and norms, linear warm-up and decay, clipping, shuffled batches padded to their longest row;
torch.autocast in bfloat16, on a GPU where there is one. The last epoch is kept.
"""

import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers

WEIGHT_DECAY, WARMUP, CLIP = 0.01, 0.1, 1.0
NO_DECAY = ("bias", "LayerNorm.weight", "LayerNorm.bias")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def export(model: str, directory: Path) -> str:
    """The checkpoint, or a run of minift, as a directory of transformers."""
    command = [sys.executable, "convert.py", model, "--to", "hf", "--out", str(directory / "hf")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return str(directory / "hf")


def start(cls: type, source: str, seed: int, **config) -> tuple:
    """(model with a new head, tokenizer)"""
    transformers.logging.set_verbosity_error()
    transformers.set_seed(seed)
    return cls.from_pretrained(source, dtype=torch.float32, **config), transformers.AutoTokenizer.from_pretrained(source)


def fit(model, rows: list[dict], collate: Callable, lr: float, epochs: int, batch_size: int) -> dict:
    """Train in place; the steps taken, and their seconds."""
    loader = torch.utils.data.DataLoader(rows, batch_size, shuffle=True, collate_fn=collate)
    decayed, free = [], []
    for name, parameter in model.named_parameters():
        (free if name.endswith(NO_DECAY) else decayed).append(parameter)
    model.to(DEVICE)
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": free, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr)
    steps = epochs * len(loader)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, math.ceil(WARMUP * steps), steps)
    began = time.perf_counter()
    model.train()
    for _ in range(epochs):
        for batch in loader:
            with torch.autocast(DEVICE, torch.bfloat16):
                loss = model(**to_device(batch)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    loss.item()  # waits for the GPU
    return {"steps": steps, "seconds": time.perf_counter() - began}


def to_device(batch: dict) -> dict:
    return {name: value.to(DEVICE) for name, value in batch.items()}


@torch.no_grad()
def outputs(model, rows: list[dict], collate: Callable, batch_size: int = 32) -> list:
    """What the model gives for each batch of the rows, their labels left out, in float32 on the CPU."""
    model.eval()
    found = []
    for i in range(0, len(rows), batch_size):
        batch = collate(rows[i : i + batch_size])
        batch.pop("labels", None)
        with torch.autocast(DEVICE, torch.bfloat16):
            given = model(**to_device(batch))
        found.append(SimpleNamespace(**{name: value.float().cpu() for name, value in given.items()}))
    return found
