"""Speed and memory of mixed precision and of activation checkpointing, as ratios: `python tests/bench/precision.py`, 5 minutes.

A BERT of BERT-base's size with random weights, full fine-tuning, 16 rows of 128 tokens; each configuration is a process of its
own, 3 steps after one that is not timed. Memory is the process's highest: weights, gradients and AdamW's moments
included.
"""

import json
import resource
import subprocess
import sys
import time

CONFIGURATIONS = {
    "float32": ("float32", False),
    "float32, checkpointed": ("float32", True),
    "bfloat16": ("bfloat16", False),
    "bfloat16, checkpointed": ("bfloat16", True),
}
STEPS, ROWS, LENGTH = 3, 16, 128


def measure(name: str, checkpointed: str) -> None:
    import torch

    from minift.checkpointing import checkpoint_activations
    from minift.data.batching import Batch
    from minift.methods.full import full
    from minift.methods.surgery import freeze
    from minift.models.bert import Bert
    from minift.optim.adamw import AdamW
    from minift.optim.groups import make_groups
    from minift.optim.precision import around
    from minift.tasks.classification import Classification

    torch.manual_seed(0)
    body, precision = Bert(Bert.Config()), around(getattr(torch, name))
    freeze(body)
    full(body)
    task = Classification(["a", "b"], "cls")
    model = task.model(body).train()
    if checkpointed == "True":
        checkpoint_activations(body, precision)
    optimizer = AdamW(make_groups(model, 5e-5, 0.01))
    batch = Batch((torch.randint(1000, 30000, (ROWS, LENGTH)),), torch.arange(ROWS) % 2)
    seconds = []
    for _ in range(1 + STEPS):
        start = time.perf_counter()
        with precision:
            loss, count = task.loss(model(batch), batch.labels)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    print(json.dumps([min(seconds[1:]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def main() -> None:
    if len(sys.argv) > 1:
        return measure(*sys.argv[1:])
    figures = {}
    print("| | step, beside float32 | peak memory, beside float32 |\n|---|---|---|")
    for name, configuration in CONFIGURATIONS.items():
        done = subprocess.run([sys.executable, __file__, *map(str, configuration)], check=True, stdout=subprocess.PIPE, text=True)
        seconds, memory = figures[name] = json.loads(done.stdout)
        first = figures["float32"]
        print(f"| {name} | {seconds / first[0]:.2f} ({seconds:.2f} s) | {memory / first[1]:.2f} ({memory:,.0f} MB) |", flush=True)


if __name__ == "__main__":
    main()
