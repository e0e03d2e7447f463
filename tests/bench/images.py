"""Speed on images and of the cached trunk, as ratios in one run: `python tests/bench/images.py --data DIR`, 25 minutes on 2 cores.

DIR has train/CLASS and val/CLASS. The peer is the loop that tutorials teach: torchvision's resnet50, frozen body in evaluation
under no_grad, ImageFolder, DataLoader with batches of 32 and 2 workers, float32, the default memory format, evaluation after each
epoch. Each side is a process of its own, in turn, timed from its start to its end, imports and the check of the images included;
weights are random, and the same. --text DIR, with GLUE's SST-2, adds the cached BERT probe beside transformers' Trainer.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BATCH, EPOCHS, WORKERS, LR = 32, 5, 2, 0.1
STEPS = 3  # of full fine-tuning that are timed, after one that is not


# ---- the plain loops ----


def plain_probe(data: str, weights: str, augment: str) -> None:
    import torch
    import torchvision
    from torchvision import transforms as t

    normalise = [t.ToTensor(), t.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    still = t.Compose([t.Resize(232), t.CenterCrop(224), *normalise])
    moving = t.Compose([t.RandomResizedCrop(224), t.RandomHorizontalFlip(), *normalise]) if augment == "standard" else still
    sets = {split: torchvision.datasets.ImageFolder(f"{data}/{split}", move) for split, move in (("train", moving), ("val", still))}
    loaders = {
        split: torch.utils.data.DataLoader(s, BATCH, shuffle=split == "train", num_workers=WORKERS) for split, s in sets.items()
    }
    model = torchvision.models.resnet50()
    model.load_state_dict(torch.load(weights))
    model.requires_grad_(False)
    body = torch.nn.Sequential(*list(model.children())[:-1], torch.nn.Flatten()).eval()
    head = torch.nn.Linear(2048, len(sets["train"].classes))
    optimizer = torch.optim.SGD(head.parameters(), LR, momentum=0.9)
    for _ in range(EPOCHS):
        for images, labels in loaders["train"]:
            with torch.no_grad():
                features = body(images)
            loss = torch.nn.functional.cross_entropy(head(features), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        right = 0
        with torch.no_grad():
            for images, labels in loaders["val"]:
                right += (head(body(images)).argmax(-1) == labels).sum().item()
    print("accuracy", right / len(sets["val"]), file=sys.stderr)


def trainer_probe(train: str, dev: str, model: str) -> None:
    """Transformers' Trainer with the body frozen, as its examples do it: dynamic padding."""
    import torch
    import transformers

    def read(path):
        pairs = [line.split("\t") for line in Path(path).read_text(encoding="utf-8").splitlines()[1:]]
        encoded = tokenizer([text for text, _ in pairs], truncation=True, max_length=128)
        return [{**{key: encoded[key][i] for key in encoded}, "label": int(label)} for i, (_, label) in enumerate(pairs)]

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    network = transformers.AutoModelForSequenceClassification.from_pretrained(model, num_labels=2, dtype=torch.float32)
    network.base_model.requires_grad_(False)
    arguments = transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        learning_rate=1e-2,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        num_train_epochs=EPOCHS,
        eval_strategy="epoch",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    transformers.Trainer(
        network, arguments, train_dataset=read(train), eval_dataset=read(dev), processing_class=tokenizer
    ).train()  # fmt: skip


# ---- a step of full fine-tuning ----


def full_steps() -> None:
    """Seconds of a step of each, in turn, in one process: forward, backward, SGD, on the same 32 images."""
    import torch
    import torchvision

    from minift.data.batching import Batch
    from minift.methods.full import full
    from minift.methods.surgery import freeze
    from minift.models.resnet import ResNet
    from minift.optim.groups import make_groups
    from minift.optim.precision import autocast
    from minift.optim.sgd import SGD
    from minift.tasks.classification import Classification
    from minift.tasks.task import Model

    images, labels = torch.randn(BATCH, 3, 224, 224), torch.arange(BATCH) % 2
    plain = torchvision.models.resnet50(num_classes=2)
    theirs = torch.optim.SGD(plain.parameters(), 1e-3, momentum=0.9, weight_decay=1e-4)

    def plain_step():
        theirs.zero_grad()
        torch.nn.functional.cross_entropy(plain(images), labels).backward()
        theirs.step()

    def minift_step(dtype):
        body = ResNet(ResNet.Config())
        freeze(body)
        full(body)
        task = Classification(["a", "b"], "mean")
        model = Model(body, task.head(body)).to(memory_format=torch.channels_last).train()
        optimizer, precision = SGD(make_groups(model, 1e-3, 1e-4)), autocast(dtype)
        batch = Batch((images.to(memory_format=torch.channels_last),), (labels,), labels.numpy(), torch.ones(BATCH))

        def step():
            with precision:
                loss = task.loss(model(batch)[1], batch).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    steps = {"plain": plain_step} | {
        str(dtype).removeprefix("torch."): minift_step(dtype) for dtype in (torch.float32, torch.bfloat16)
    }
    seconds = dict.fromkeys(steps, float("inf"))
    for i in range(1 + STEPS):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if i:
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    print(json.dumps(seconds))


# ---- timing ----


def timed(command: list[str]) -> tuple[float, float]:
    """(seconds, peak memory in MB of the process) of a command."""
    environment = os.environ | {"XDG_CACHE_HOME": tempfile.mkdtemp()}  # no verdict on an image from an earlier run
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def compare(what: str, plain: list[str], ours: dict[str, list[str]]) -> None:
    base, memory = timed(plain)
    print(f"{what}\n  {'plain':22s} {base:7.1f} s  {memory:6.0f} MB", flush=True)
    for name, command in ours.items():
        seconds, mb = timed(command)
        print(f"  minift {name:15s} {seconds:7.1f} s  {mb:6.0f} MB  {base / seconds:5.1f} times as fast", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory with train/CLASS and val/CLASS")
    parser.add_argument("--text", type=Path, help="directory of GLUE's SST-2")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        name, *rest = arguments.role
        return {"probe": plain_probe, "trainer": trainer_probe, "full": full_steps}[name](*rest)

    import torch
    import torchvision

    def role(*words: str) -> list[str]:
        return [__file__, "--data", str(arguments.data), "--role", *words]

    paths = ("bfloat16", "float32")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        os.environ["MINIFT_WEIGHTS"] = name
        torch.manual_seed(0)
        torch.save(torchvision.models.resnet50().state_dict(), directory / "random.pth")
        convert = [sys.executable, "convert.py", str(directory / "random.pth"), "--out", str(directory / "random")]
        subprocess.run(convert, check=True)
        data = ["--train", str(arguments.data / "train"), "--valid", str(arguments.data / "val")]
        probe = [*data, "--task", "image-classification", "--model", "random", "--method", "probe"]
        for augment in ("none", "standard"):
            flags = ["--epochs", str(EPOCHS), "--lr", str(LR), "--augment", augment]
            ours = {
                path: ["train.py", *probe, *flags, "--precision", path, "--out", str(directory / f"{augment}-{path}")]
                for path in paths
            }
            plain = role("probe", str(arguments.data), str(directory / "random.pth"), augment)
            compare(f"linear probe, {EPOCHS} epochs, augment {augment}", plain, ours)
        done = subprocess.run([sys.executable, *role("full")], check=True, stdout=subprocess.PIPE, text=True)
        seconds = json.loads(done.stdout)
        print(f"full fine-tuning, one step\n  {'plain':22s} {seconds['plain']:7.2f} s")
        for path in paths:
            print(f"  minift {path:15s} {seconds[path]:7.2f} s  {seconds['plain'] / seconds[path]:5.1f} times as fast")
        if arguments.text:
            lines = (arguments.text / "train.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
            (directory / "train.tsv").write_text("".join(lines[:2001]), encoding="utf-8")
            train, dev, hf = str(directory / "train.tsv"), str(arguments.text / "dev.tsv"), str(directory / "hf")
            subprocess.run([sys.executable, "convert.py", "weights/minilm-l6", "--to", "hf", "--out", hf], check=True)
            flags = ["--train", train, "--valid", dev, "--model", "weights/minilm-l6", "--method", "probe", "--epochs", str(EPOCHS)]
            ours = {path: ["train.py", *flags, "--precision", path, "--out", str(directory / f"text-{path}")] for path in paths}
            compare(f"BERT probe, 2,000 rows of SST-2, {EPOCHS} epochs", role("trainer", train, dev, hf), ours)


if __name__ == "__main__":
    main()
