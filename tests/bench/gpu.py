"""Training steps on a GPU beside transformers and torchvision: `python tests/bench/gpu.py`, eight minutes on an H100.

Whole steps of full fine-tuning, with dropout, clipping and the update, on batches that lie on the device, of random weights:
BERT-base and BERT-large with a classification head, 128 and 512 tokens, all of them real, and ResNet-50 with photographs of 224
pixels. The peer is transformers' (sdpa) and torchvision's (channels last) model under torch.autocast with torch's fused AdamW and
SGD, torch.amp.GradScaler in float16. Both sides eager and compiled: minift as --compile does, the peer whole.

A row gives the tokens or photographs of a second, the share of the GPU's peak that the operations of the model make up (MFU; those
of matrix products, convolutions and attention, counted by torch, forward and backward), and the highest memory. First stands the
rate of a large product alone. Seconds are of STEPS steps after WARM-UP steps, the best of ROUNDS rounds, in which the sides take
turns. Nothing is compared between calls. Rows go to runs/gpu.jsonl as they are done; `--only` takes rows by part of their name.
`--tiny --device cpu` tries it out.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from minift.compiling import compile_stages
from minift.data.batching import Batch
from minift.models.bert import Bert, BertConfig
from minift.models.resnet import ResNet, ResNetConfig
from minift.optim.adamw import AdamW
from minift.optim.groups import make_groups
from minift.optim.precision import LossScaler, by_name, float32_products
from minift.optim.sgd import SGD
from minift.tasks.task import Model, PooledLinear
from minift.tasks.text_classification import TextClassification
from minift.training import Progress, Training, step

WARMUP, STEPS, ROUNDS, LR, CLIP = 4, 10, 3, 1e-5, 1.0
PEAK = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
}  # operations a second of dense products in 16 bits, the vendor's
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 99}
BERTS = {"BERT-base": {}, "BERT-large": LARGE}
ROWS = [  # model, rows, tokens or pixels, precision, whether compiled too
    ("BERT-base", 32, 128, "bfloat16", False),
    ("BERT-base", 128, 128, "bfloat16", True),
    ("BERT-base", 128, 128, "float16", False),
    ("BERT-base", 128, 128, "tf32", False),
    ("BERT-base", 128, 128, "float32", False),
    ("BERT-base", 32, 512, "bfloat16", False),
    ("BERT-large", 128, 128, "bfloat16", False),
    ("BERT-large", 32, 512, "bfloat16", True),
    ("ResNet-50", 128, 224, "bfloat16", True),
]


def config_of(name: str, tiny: bool) -> dict:
    return TINY if tiny else BERTS[name]


def inputs_of(name: str, rows: int, size: int, tiny: bool, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (rows,), generator=generator)
    if name == "ResNet-50":
        x = torch.randn(rows, 3, size, size, generator=generator).to(device, memory_format=torch.channels_last)
    else:
        x = torch.randint(5, BertConfig(**config_of(name, tiny)).vocab_size, (rows, size), generator=generator).to(device)
    return x, labels.to(device)


def ours(name: str, x: Tensor, labels: Tensor, precision: str, compiled: bool, tiny: bool) -> Callable[[], Tensor]:
    """minift's step: -> loss."""
    images = name == "ResNet-50"
    body = ResNet(ResNetConfig()) if images else Bert(BertConfig(**config_of(name, tiny)))
    model = Model(body, PooledLinear(body, 2)).to(x.device, memory_format=torch.channels_last).train()
    optimizer = (SGD if images else AdamW)(make_groups(model, LR, 0.01))
    context = by_name(precision, model, compiled=compiled)
    inputs = (x,) if images else (x, None, torch.zeros_like(x))
    if compiled:
        with context:
            compile_stages(body, inputs)
    training = Training(
        model, TextClassification(labels=("a", "b"), pool="cls", max_length=512, pairs=False), optimizer, lambda s: 1.0, context
    )
    batch = Batch(inputs, (labels,), np.arange(len(labels)), torch.ones(len(labels)))
    options, progress = SimpleNamespace(seed=0, clip=CLIP), Progress(changed=True)
    scaler = LossScaler() if precision == "float16" else None

    def one() -> Tensor:
        progress.step += 1
        return step(training, [batch], 1.0, options, scaler, progress).loss

    return one


def theirs(name: str, x: Tensor, labels: Tensor, precision: str, compiled: bool, tiny: bool) -> Callable[[], Tensor]:
    """The peer's step: -> loss."""
    if name == "ResNet-50":
        import torchvision

        model = torchvision.models.resnet50(num_classes=2).to(x.device, memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9, weight_decay=0.01)
    else:
        import transformers

        config = transformers.BertConfig(**config_of(name, tiny), num_labels=2, attn_implementation="sdpa")
        model = transformers.BertForSequenceClassification(config).to(x.device)
        optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=0.01, fused=True)
    model.train()
    called = torch.compile(model) if compiled else model
    mask, dtype = torch.ones_like(x), getattr(torch, precision) if precision.endswith("16") else torch.float32
    scaler = torch.amp.GradScaler(x.device.type, enabled=precision == "float16")

    def one() -> Tensor:
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            if name == "ResNet-50":
                loss = torch.nn.functional.cross_entropy(called(x), labels)
            else:
                loss = called(input_ids=x, attention_mask=mask, labels=labels).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss.detach()

    return one


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def operations(one: Callable[[], Tensor]) -> int:
    """Of a step."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        one()
    return counter.get_total_flops()


def measure(row: tuple, compiled: bool, tiny: bool, device: str) -> dict:
    """Of both sides seconds of a step, memory in GB, and the loss after all steps."""
    name, rows, size, precision, _ = row
    x, labels = inputs_of(name, rows, size, tiny, device)
    found, best = {}, {}
    with float32_products(precision == "tf32"):
        sides = {}
        for side, make in (("minift", ours), ("peer", theirs)):
            torch.manual_seed(0)
            before = torch.cuda.memory_allocated() if device == "cuda" else 0
            sides[side] = make(name, x, labels, precision, compiled, tiny)
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            began = now(device)
            for _ in range(WARMUP):
                sides[side]()
            found[side] = {"seconds of the first steps": now(device) - began}
            if device == "cuda":
                found[side]["GB"] = (torch.cuda.max_memory_allocated() - before) / 1e9
            best[side] = float("inf")
        for _ in range(ROUNDS):
            for side, one in sides.items():
                began = now(device)
                for _ in range(STEPS):
                    loss = one()
                best[side] = min(best[side], (now(device) - began) / STEPS)
                found[side]["loss"] = loss.item()
        if not compiled:
            found["operations"] = operations(sides["peer"])
    for side in sides:
        found[side]["seconds"] = best[side]
    return found


def product_rate(device: str, tiny: bool) -> float:
    """Operations a second of a square product in bfloat16."""
    n = 64 if tiny else 8192
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    began = now(device)
    for _ in range(10):
        a @ b
    return 10 * 2 * n**3 / (now(device) - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of the name of a row, as 'BERT-base 128 x 128'")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small models, to try it out")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    given = parser.parse_args()
    name = torch.cuda.get_device_name() if given.device == "cuda" else "cpu"
    peak = next((rate for key, rate in PEAK.items() if key in name), None)
    alone = product_rate(given.device, given.tiny)
    share = f", {alone / peak:.0%} of {peak / 1e12:.0f}" if peak else ""
    print(f"{name}, torch {torch.__version__}: a product of 8192 x 8192 in bfloat16 {alone / 1e12:.0f} TFLOP/s{share}")
    print("| | | minift a second | peer a second | ratio | MFU minift | MFU peer | GB minift | GB peer | loss minift | peer |")
    print(f"|{'---|' * 11}", flush=True)
    path, operations_of = Path("runs") / "gpu.jsonl", {}
    path.parent.mkdir(exist_ok=True)
    planned = [(row, False) for row in ROWS] + [(row, True) for row in ROWS if row[4] and not given.eager]  # what takes long last
    for row, compiled in planned:
        model, rows, size, precision, _ = row
        rows, size = (rows // 32, size // 4) if given.tiny else (rows, size)
        title = f"{model} {row[1]} x {row[2]}"
        if given.only not in title:
            continue
        try:
            found = measure((model, rows, size, precision, None), compiled, given.tiny, given.device)
        except Exception as error:  # the other rows go on
            print(f"{title}, {precision}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr, flush=True)
            continue
        finally:
            torch._dynamo.reset()
            gc.collect()
            torch.cuda.empty_cache()
        operations_of.setdefault((model, rows, size), found.pop("operations", None))
        with path.open("a") as lines:
            lines.write(json.dumps({"row": title, "precision": precision, "compiled": compiled, "on": name} | found) + "\n")
        work, units = operations_of[model, rows, size], rows * (1 if model == "ResNet-50" else size)
        sides = [found["minift"], found["peer"]]
        used = [f"{work / side['seconds'] / peak:.1%}" if peak and work else "" for side in sides]
        cells = [f"{units / side['seconds']:,.0f}" for side in sides]
        cells += [f"{sides[1]['seconds'] / sides[0]['seconds']:.2f}", *used, *(f"{side.get('GB', 0):.1f}" for side in sides)]
        cells += [f"{side['loss']:.3f}" for side in sides]
        print(f"| {title} | {precision}{', compiled' * compiled} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
