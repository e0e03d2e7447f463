"""Speed and memory of mixed precision and of activation checkpointing, as ratios: `python tests/bench/precision.py`, 5 minutes.

A BERT of BERT-base's size with random weights, full fine-tuning, 16 rows of 128 tokens; each configuration is a process of its
own, 3 steps after one that is not timed. Memory is the process's highest: weights, gradients and AdamW's moments
included.

`python tests/bench/precision.py auto`, 2 minutes: what `--precision auto` measures in under a second beside whole training steps of
the same models in both dtypes: their ratios need not be equal, but must be on the same side of the gain that auto asks for.
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
    from minift.optim.precision import autocast
    from minift.tasks.classification import Classification
    from minift.tasks.task import Model

    torch.manual_seed(0)
    body, precision = Bert(Bert.Config()), autocast(getattr(torch, name))
    freeze(body)
    full(body)
    task = Classification(["a", "b"], "cls")
    model = Model(body, task.head(body)).train()
    if checkpointed == "True":
        checkpoint_activations(body, precision)
    optimizer = AdamW(make_groups(model, 5e-5, 0.01))
    tokens, labels = torch.randint(1000, 30000, (ROWS, LENGTH)), torch.arange(ROWS) % 2
    batch = Batch((tokens,), (labels,), labels.numpy(), torch.ones(ROWS))
    seconds = []
    for _ in range(1 + STEPS):
        start = time.perf_counter()
        with precision:
            loss = task.loss(model(batch)[1], batch).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    print(json.dumps([min(seconds[1:]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def compare_with_steps() -> None:
    import torch
    from torch.nn.functional import cross_entropy

    from minift.models.bert import Bert
    from minift.models.resnet import ResNet
    from minift.optim.adamw import AdamW
    from minift.optim.groups import Group
    from minift.optim.measure import GAIN, choose
    from minift.optim.precision import autocast

    small = Bert.Config(hidden_size=384, num_hidden_layers=6, intermediate_size=1536)
    tokens, images = (torch.randint(1000, 30000, (32, 64)),), (torch.randn(8, 3, 224, 224).to(memory_format=torch.channels_last),)
    models = {"BERT, 6 layers of 384": (Bert(small, "mean"), tokens), "ResNet-50": (ResNet(ResNet.Config()), images)}
    agree = True
    print("| | auto measures | in seconds | a step takes float32 / bfloat16 | frozen |\n|---|---|---|---|---|")
    for name, (body, inputs) in models.items():
        body.to(memory_format=torch.channels_last)
        for frozen in (False, True):
            body.requires_grad_(not frozen)
            start = time.perf_counter()
            found = choose("auto", torch.device("cpu"), body, inputs).seconds
            cost, gain = time.perf_counter() - start, found["float32"] / found["bfloat16"]
            head = torch.nn.Linear(body.config.width, 2)
            optimizer = AdamW([Group("", 1e-5, 0.0, [], [p for m in (body, head) for p in m.parameters() if p.requires_grad])])
            contexts = {dtype: autocast(dtype) for dtype in (torch.float32, torch.bfloat16)}
            seconds = {dtype: [] for dtype in contexts}
            for _ in range(1 + STEPS):
                for dtype, context in contexts.items():
                    start = time.perf_counter()
                    with context:
                        loss = cross_entropy(head(body(*inputs).pooled), torch.arange(len(inputs[0])) % 2)
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    seconds[dtype].append(time.perf_counter() - start)
            ratio = min(seconds[torch.float32][1:]) / min(seconds[torch.bfloat16][1:])
            agree &= (ratio >= GAIN) == (gain >= GAIN)
            print(f"| {name} | {gain:.2f} | {cost:.2f} | {ratio:.2f} | {'yes' if frozen else 'no'} |", flush=True)
    print("both choose the same dtype everywhere" if agree else "THEY DIFFER")


def main() -> None:
    if sys.argv[1:] == ["auto"]:
        return compare_with_steps()
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
