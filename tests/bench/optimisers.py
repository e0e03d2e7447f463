"""One step of AdamW beside torch's, in turn: `python tests/bench/optimisers.py [--small] [--threads 2]`, about a minute.

On the parameter list of BERT base (109,482,240 elements, pooler included) or, with --small, of the embedded checkpoint's model
(22,713,216): random float32 values and gradients. Every round takes one step of each; the medians and the ratio to minift's are
printed. torch.optim.AdamW has three ways through a step on a CPU: one tensor at a time, lists of tensors (foreach), one kernel
of its own for the whole update (fused). minift's is stepped in two more ways: told whether the gradients are finite, as the
training loop does, and masked by that answer, as it is done on CUDA alone.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from minift.models.bert import Bert, BertConfig
from minift.optim import optimizer as optimizers
from minift.optim.adamw import AdamW
from minift.optim.groups import Group

SMALL = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
SETTING = {"lr": 5e-5, "weight_decay": 0.01}
WARM = 2  # steps before the clock: the first one makes the state


def shapes(small: bool) -> list[torch.Size]:
    with torch.device("meta"):
        return [p.shape for p in Bert(BertConfig(**(SMALL if small else {}))).parameters()]


def contenders(parameters: list[Tensor]) -> dict[str, Callable[[], None]]:
    """All step the same parameters: what they hold does not change how long a step takes."""

    def masked() -> None:
        optimizers.MASKED.add("cpu")
        optimizer.step(1.0, torch.tensor(True))
        optimizers.MASKED.remove("cpu")

    optimizer = AdamW([Group("all", SETTING["lr"], SETTING["weight_decay"], [], parameters)])
    torchs = {"foreach": {"foreach": True}, "fused": {"fused": True}, "one by one": {"foreach": False, "fused": False}}
    steps = {"minift": optimizer.step, "minift, told": lambda: optimizer.step(1.0, torch.tensor(True)), "minift, masked": masked}
    return steps | {f"torch, {name}": torch.optim.AdamW(parameters, **SETTING, **how).step for name, how in torchs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="22.7 instead of 109.5 million parameters")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default: 2)")
    parser.add_argument("--rounds", type=int, default=15, help="steps of each (default: 15)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes(arguments.small)]
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator)
    steps = contenders(parameters)
    seconds = {name: [] for name in steps}
    for _ in range(WARM + arguments.rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times[WARM:]) for name, times in seconds.items()}
    elements = sum(p.numel() for p in parameters)
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"{elements:,} parameters, torch {torch.__version__}, {torch.get_num_threads()} threads, {capability}")
    print("| AdamW | milliseconds a step, median (least) | beside minift |\n|---|---|---|")
    for name, median in medians.items():
        least = min(seconds[name][WARM:])
        print(f"| {name} | {1000 * median:.0f} ({1000 * least:.0f}) | {median / medians['minift']:.2f} |")


if __name__ == "__main__":
    main()
