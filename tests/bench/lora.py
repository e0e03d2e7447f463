"""LoRA beside peft over transformers, on the same work: `python tests/bench/lora.py`, 5 minutes on 2 cores. Needs the test extra.

The embedded checkpoint in float32, rank 8 on query and value, the same start, the same 25 batches of 32 embedded reviews, padded to
the longest of each, AdamW, no dropout, so that the losses can be compared. Every run is a process of its own, the sides take turns.
A side's seconds are the median of its steps after the first three; its memory is the process's highest, imports included.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch

REPETITIONS, STEPS, WARM, ROWS, LR = 3, 25, 3, 32, 2e-3
WEIGHTS = Path(__file__).parents[2] / "weights" / "minilm-l6"


def minift_side(directory: Path):
    """(model, what trains, inputs of a batch -> logits, AdamW's step)"""
    from minift.adapting import adapt
    from minift.data.batching import Batch
    from minift.optim.adamw import AdamW
    from minift.optim.groups import make_groups
    from minift.pretrained import read
    from minift.tasks.classification import Classification
    from minift.tasks.task import Model

    checkpoint = read(WEIGHTS)
    checkpoint.config |= NO_DROPOUT
    body = checkpoint.body()
    adapt(body, "lora")
    model = Model(body, Classification(["negative", "positive"], "cls").head(body))
    optimizer = AdamW(make_groups(model, LR, 0.0))

    def step():
        optimizer.step()
        optimizer.zero_grad()

    def logits(tokens, mask, types):
        rows = len(tokens)
        return model(Batch((tokens, mask, types), (), np.arange(rows), torch.ones(rows)))[1]

    return model, logits, step


def peft_side(directory: Path):
    import peft
    import transformers

    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory / "hf", num_labels=2, dtype=torch.float32)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    config = peft.LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])
    model = peft.get_peft_model(model, config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR, weight_decay=0.0, fused=True)

    def step():
        optimizer.step()
        optimizer.zero_grad()

    def forward(tokens, mask, types):
        return model(tokens, attention_mask=None if mask is None else mask.long(), token_type_ids=types).logits

    return model, forward, step


SIDES = {"minift": minift_side, "peft": peft_side}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def train(side: str, directory: Path) -> None:
    model, forward, step = SIDES[side](directory)
    start_alike(model, directory)
    model.train()
    losses, seconds = [], []
    for tokens, mask, types, labels in torch.load(directory / "batches.pt"):
        begin = time.perf_counter()
        loss = torch.nn.functional.cross_entropy(forward(tokens, mask, types), labels)
        loss.backward()
        step()
        seconds.append(time.perf_counter() - begin)
        losses.append(loss.item())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": statistics.median(seconds[WARM:]), "memory": memory, "losses": losses}))


def start_alike(model: torch.nn.Module, directory: Path) -> None:
    """The same numbers, drawn one after the other, in what trains: every A and the head's weight; B is 0 on both sides."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (
            name.endswith(".A") or "lora_A" in name or name.endswith(("head.weight", "default.weight"))
        ):
            if "lora_B" not in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.02
        elif parameter.requires_grad:
            torch.nn.init.zeros_(parameter)


def prepare(directory: Path) -> None:
    """The checkpoint for transformers, and the batches."""
    from minift.data.batching import shuffled
    from minift.data.layout import TextLayout
    from minift.data.samples import REVIEWS
    from minift.formats import huggingface
    from minift.pretrained import read
    from minift.tasks.text_classification import TextClassification

    checkpoint = read(WEIGHTS)
    huggingface.write(directory / "hf", checkpoint)
    rows = TextClassification.read(str(REVIEWS), TextLayout())
    data = TextClassification(["negative", "positive"], "cls", 128, pairs=False).prepare(rows, checkpoint)
    stream = data.batches(shuffled(data.lengths, ROWS, 0, 0), torch.device("cpu"), 0)
    batches = [(batch.inputs[0], batch.inputs[1], batch.inputs[2], *batch.targets) for batch in islice(stream, STEPS)]
    torch.save(batches, directory / "batches.pt")


def main() -> None:
    if len(sys.argv) > 1:
        return train(sys.argv[1], Path(sys.argv[2]))
    found = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as directory:
        prepare(Path(directory))
        for _ in range(REPETITIONS):
            for side in SIDES:
                command = [sys.executable, __file__, side, directory]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found[side].append(json.loads(done.stdout.splitlines()[-1]))
    seconds, memory = (
        {side: statistics.median(run[key] for run in runs) for side, runs in found.items()} for key in ("seconds", "memory")
    )
    losses = [found[side][0]["losses"] for side in SIDES]
    apart = max(abs(a - b) for a, b in zip(*losses, strict=True))
    ours, theirs = SIDES
    for what, figures, unit in (("step", seconds, "s"), ("memory", memory, "MB")):
        ratio = figures[ours] / figures[theirs]
        print(f"{what}: {ours} {figures[ours]:,.3g} {unit}, {theirs} {figures[theirs]:,.3g} {unit}, {ratio:.2f} of it")
    print(f"losses of {STEPS} steps: from {losses[0][0]:.4f} to {losses[0][-1]:.4f}, at most {apart:.1e} apart")


if __name__ == "__main__":
    main()
