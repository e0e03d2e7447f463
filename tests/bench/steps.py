"""Seconds of one step of training, for `python -m tests.bench`: `python tests/bench/steps.py SIDE --dtype bfloat16 --rows 16`.

SIDE: minift; the library beside it, transformers for a BERT, torchvision for a ResNet-50; or `products`, those of the BERT's
matrices alone, forward and backward. Random weights; dropout, clipping and the optimizer's update are parts of a step. The fastest
of the steps after the first one is printed as JSON, with the seconds of the processor. Without --image a BERT, by default of
BERT-base's size and 128 tokens, is trained by AdamW; transformers' has sdpa and a mask of ones, as its collators make it; with
--rank both have a LoRA of query and value. With --image a ResNet-50 is trained by SGD, torchvision's in the default memory format.
"""

import argparse
import json
import time
from collections.abc import Callable
from types import SimpleNamespace

import torch

HEADS, VOCABULARY = 12, 30522
LEAST, SECONDS = 3, 3.0  # steps that are timed, at least, and for how long, at least


def minift_step(a: argparse.Namespace) -> Callable[[], None]:
    from minift.adapting import adapt
    from minift.data.batching import Batch
    from minift.models.bert import Bert
    from minift.models.resnet import ResNet
    from minift.optim.adamw import AdamW
    from minift.optim.groups import make_groups
    from minift.optim.measure import choose
    from minift.optim.precision import autocast
    from minift.optim.sgd import SGD
    from minift.setup import take_fast_paths
    from minift.tasks.classification import Classification
    from minift.tasks.task import Model
    from minift.training import Progress, Training, step

    sizes = {"hidden_size": a.width, "num_hidden_layers": a.layers, "intermediate_size": 4 * a.width}
    body = ResNet(ResNet.Config()) if a.image else Bert(Bert.Config(**sizes, num_attention_heads=HEADS))
    adapt(body, f"lora:rank={a.rank}" if a.rank else "full")
    task = Classification(["a", "b"], "mean" if a.image else "cls")
    model = Model(body, task.head(body)).to(memory_format=torch.channels_last).train()
    take_fast_paths(model)
    groups = make_groups(model, 1e-5, 0.01)
    inputs = inputs_of(a)
    inputs = (inputs.to(memory_format=torch.channels_last) if a.image else inputs,)
    precision = autocast(choose(a.dtype, torch.device("cpu"), body, inputs).dtype, model)
    training = Training(model, task, SGD(groups) if a.image else AdamW(groups), lambda step: 1.0, precision)
    labels = labels_of(a)
    batch, progress = Batch(inputs, (labels,), labels.numpy(), torch.ones(a.rows)), Progress()

    def one_step() -> None:
        step(training, [batch], 1.0, SimpleNamespace(seed=0, clip=1.0), None, progress)
        progress.step += 1

    return one_step


def transformers_step(a: argparse.Namespace) -> Callable[[], None]:
    import transformers

    sizes = {"hidden_size": a.width, "num_hidden_layers": a.layers, "intermediate_size": 4 * a.width}
    config = transformers.BertConfig(**sizes, num_attention_heads=HEADS, vocab_size=VOCABULARY)
    model = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa")
    if a.rank:
        import peft

        config = peft.LoraConfig(task_type="SEQ_CLS", r=a.rank, lora_alpha=2 * a.rank, target_modules=["query", "value"])
        model = peft.get_peft_model(model, config)
    tokens, labels = inputs_of(a), labels_of(a)
    mask = torch.ones_like(tokens)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.01, fused=True)
    model.train()

    def one_step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=a.dtype == "bfloat16"):
            loss = model(tokens, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return one_step


def torchvision_step(a: argparse.Namespace) -> Callable[[], None]:
    import torchvision

    images, labels, model = inputs_of(a), labels_of(a), torchvision.models.resnet50(num_classes=2).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-5, momentum=0.9, weight_decay=1e-4)

    def one_step() -> None:
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return one_step


def products(a: argparse.Namespace) -> Callable[[], None]:
    """The products of all layers, forward and backward; the matrices of one layer stand for those of all."""
    dtype, N, D, S = getattr(torch, a.dtype), a.rows * a.length, a.width // HEADS, a.length
    linear = [(a.width, a.width)] * 4 + [(a.width, 4 * a.width), (4 * a.width, a.width)]  # (inputs, outputs)
    calls = []
    for i, o in linear:
        x, W, dy = (torch.randn(shape, dtype=dtype) for shape in ((N, i), (o, i), (N, o)))
        calls += [(torch.mm, x, W.T), (torch.mm, dy, W), (torch.mm, dy.T, x)]
    q, p = (torch.randn(a.rows * HEADS, S, width, dtype=dtype) for width in (D, S))
    # q k' and p v, each with the two products of its gradients: in all each shape twice
    calls += 2 * [(torch.bmm, q, q.mT), (torch.bmm, p, q), (torch.bmm, p.mT, q)]
    calls = [(product, x, y, product(x, y)) for product, x, y in calls]

    def one_step() -> None:
        for _ in range(a.layers):
            for product, x, y, out in calls:
                product(x, y, out=out)

    return one_step


def operations(a: argparse.Namespace) -> float:
    """Multiplications and additions of `products`."""
    linear = 3 * a.rows * a.length * 12 * a.width**2  # the forward product and two backward, of 4 + 4 + 4 squares of the width
    return 2.0 * a.layers * (linear + 6 * a.rows * a.length**2 * a.width)


def inputs_of(a: argparse.Namespace) -> torch.Tensor:
    return torch.randn(a.rows, 3, 224, 224) if a.image else torch.randint(1000, 30000, (a.rows, a.length))


def labels_of(a: argparse.Namespace) -> torch.Tensor:
    return torch.arange(a.rows) % 2


SIDES = {"minift": minift_step, "transformers": transformers_step, "torchvision": torchvision_step, "products": products}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16; of minift also auto")
    for name, default in {"rows": 16, "length": 128, "layers": 12, "width": 768, "rank": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--image", action="store_true")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    step = SIDES[arguments.side](arguments)
    step()
    taken = []  # (seconds, seconds of the processor)
    while len(taken) < LEAST or sum(seconds for seconds, _ in taken) < SECONDS:
        clocks = time.perf_counter(), time.process_time()
        step()
        taken.append((time.perf_counter() - clocks[0], time.process_time() - clocks[1]))
    figures = {"seconds": min(s for s, _ in taken), "processor": min(p for _, p in taken)}
    if arguments.side == "products":
        figures["gflops"] = operations(arguments) / figures["seconds"] / 1e9
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
