"""Ants and bees from the embedded weights: `python tests/bench/table_images.py --data DIR`.

Two hours on one core, minutes on a GPU with 16 cores and --jobs 14 (when the seconds of the table are those of a crowded machine).

DIR has train/CLASS and val/CLASS, as hymenoptera_data of PyTorch's transfer learning tutorial has them: 245 photographs to train on
and 153 that are scored once, at the end; the last epoch is kept. `methods`: each at its own learning rate, EPOCHS epochs, 3 seeds,
beside timm's tf_efficientnet_lite0 with the same weights, crops, flips, optimizer, learning rate, schedule and batches in the loop
that tutorials teach. `few`: some photographs a class, drawn anew for every draw, about STEPS steps of full and lora; the probe as
by default. Both sides in float32, one process that decodes. The photographs may have been among ImageNet's own.

Every run is appended to runs/table_images.jsonl; a rerun goes on where it stopped. `--only few` runs and prints one table.
"""

import argparse
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from restartable import cell, collect, jobs_flag, train

EPOCHS, BATCH, LR, SEEDS, STEPS = 5, 32, 1e-2, 3, 30
METHODS = {  # row of the table -> flags
    "probe, lbfgs": ["--method", "probe", "--solver", "lbfgs", "--l2", "1e-2"],
    "probe": ["--method", "probe"],
    "full": ["--method", "full"],
    "lora": ["--method", "lora"],
    "partial, 5 of 18 stages": ["--method", "partial:stages=5"],
    "gradual unfreezing, discriminative rates": [
        *("--method", "full", "--unfreeze", "gradual:every=2", "--layer-decay", "0.9"),
    ],
    "full, BatchNorm's statistics fixed": ["--method", "full:norms=affine"],
    "full, BatchNorm frozen": ["--method", "full:norms=frozen"],
    "full, Kornblith's momentum": ["--method", "full", "--bn-momentum", "kornblith"],
}
PEER = "timm, plain loop"
FEW = {2: 5, 5: 5, 10: 5, 20: 5, 50: 5}  # photographs of a class -> draws
FEW_METHODS = ("probe", "full", "lora")


def flags_of(train_on: Path, test: Path) -> list[str]:
    files = ["--task", "image-classification", "--train", str(train_on), "--valid", "none", "--test", str(test)]
    return [*files, "--precision", "float32", "--workers", "1", "--quiet"]


def run_minift(run: dict, data: Path) -> dict:
    method, flags = run["method"], flags_of(data / "train", data / "val")
    if method == "probe, lbfgs":
        result = train([*flags, *METHODS[method]])
    else:
        epochs = [] if method == "probe" else ["--epochs", str(EPOCHS)]
        result = train([*flags, *METHODS[method], *epochs, "--seed", str(run["seed"])])
    return {"accuracy": result["test"]["accuracy"], "seconds": result["command_seconds"]}


def run_few(run: dict, data: Path) -> dict:
    """Some photographs of each class, the same for all methods."""
    with tempfile.TemporaryDirectory() as name:
        for folder in sorted((data / "train").iterdir()):
            files = sorted(folder.iterdir())
            (Path(name) / folder.name).mkdir()
            for file in random.Random(run["draw"]).sample(files, run["each"]):
                (Path(name) / folder.name / file.name).symlink_to(file.resolve())
        epochs = math.ceil(STEPS / math.ceil(2 * run["each"] / BATCH))
        own = [] if run["method"] == "probe" else ["--epochs", str(epochs)]
        flags = flags_of(Path(name), data / "val")
        result = train([*flags, "--method", run["method"], *own, "--seed", str(run["draw"])])
    return {"accuracy": result["test"]["accuracy"], "seconds": result["command_seconds"]}


def run_plain(run: dict, data: Path) -> dict:
    """A process of its own, timed like the others."""
    start = time.perf_counter()
    command = [sys.executable, __file__, "--data", str(data), "--plain", str(run["seed"])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {"accuracy": float(done.stdout.split()[-1]), "seconds": time.perf_counter() - start}


def run_method(run: dict, data: Path) -> dict:
    return (run_plain if run["method"] == PEER else run_minift)(run, data)


def plain(data: Path, seed: int) -> float:
    import timm
    import torch
    from safetensors.torch import load_file
    from torchvision import datasets
    from torchvision import transforms as t

    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = timm.create_model("tf_efficientnet_lite0", num_classes=2, drop_rate=0.2, drop_path_rate=0.2)
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "convert.py", "efficientnet-lite0", "--to", "timm", "--out", f"{name}/lite0.safetensors"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        weights = {key: value.float() for key, value in load_file(f"{name}/lite0.safetensors").items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing == ["classifier.weight", "classifier.bias"] and not unexpected
    model.to(device)
    bicubic, last = t.InterpolationMode.BICUBIC, [t.ToTensor(), t.Normalize([0.5] * 3, [0.5] * 3)]
    moving = t.Compose([t.RandomResizedCrop(224, interpolation=bicubic), t.RandomHorizontalFlip(), *last])
    still = t.Compose([t.Resize(256, bicubic), t.CenterCrop(224), *last])
    rows = datasets.ImageFolder(str(data / "train"), moving)
    loader = torch.utils.data.DataLoader(rows, BATCH, shuffle=True, num_workers=1)
    test = torch.utils.data.DataLoader(datasets.ImageFolder(str(data / "val"), still), BATCH, num_workers=1)
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9, weight_decay=1e-4)
    steps, warmup = EPOCHS * len(loader), math.ceil(0.1 * EPOCHS * len(loader))
    factor = lambda step: step / warmup if step < warmup else (steps - step) / (steps - warmup)  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    model.train()
    for _ in range(EPOCHS):
        for images, labels in loader:
            loss = torch.nn.functional.cross_entropy(model(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        right = sum((model(images.to(device)).argmax(-1).cpu() == labels).sum().item() for images, labels in test)
    return right / len(test.dataset)


def shown(values: list[float]) -> str:
    return f"{100 * statistics.mean(values):.1f} ({', '.join(f'{100 * value:.1f}' for value in values)})"


def methods(data: Path, seeds: int, jobs: int) -> int:
    """Prints the table; returns how many runs are missing."""
    rows = [*METHODS]
    rows.insert(3, PEER)
    once = ("probe, lbfgs",)  # the solution is the same for every seed
    wanted = [{"table": "methods", "method": m, "seed": s} for s in range(seeds) for m in rows if not s or m not in once]
    done = collect("table_images.jsonl", wanted, partial(run_method, data=data), jobs)
    print("| | accuracy, mean (each seed) | seconds of the command, median |\n|---|---|---|")
    for row in rows:
        found = [run for run in done if run["run"]["method"] == row]
        seconds = f"{statistics.median(run['seconds'] for run in found):.0f}" if found else ""
        print(f"| {row} | {cell([r['accuracy'] for r in found], 1 if row in once else seeds, shown)} | {seconds} |")
    return len(wanted) - len(done)


def few(data: Path, draws: int, jobs: int) -> int:
    """Prints the table; returns how many runs are missing."""
    wanted = [
        {"table": "few", "method": m, "each": n, "draw": d} for d in range(draws) for n in FEW if d < FEW[n] for m in FEW_METHODS
    ]
    done = collect("table_images.jsonl", wanted, partial(run_few, data=data), jobs)
    print(f"\n| photographs a class | draws | {' | '.join(FEW_METHODS)} |\n|---|---|{'---|' * len(FEW_METHODS)}")
    for n in FEW:
        found = {m: [r["accuracy"] for r in done if r["run"]["method"] == m and r["run"]["each"] == n] for m in FEW_METHODS}
        cells = [cell(found[m], min(draws, FEW[n]), shown) for m in FEW_METHODS]
        print(f"| {n} | {min(draws, FEW[n])} | {' | '.join(cells)} |")
    return len(wanted) - len(done)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory with train/CLASS and val/CLASS")
    parser.add_argument("--only", choices=["methods", "few"], help="run and print this one")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of methods (default 3)")
    parser.add_argument("--draws", type=int, default=5, help="of few, at most (default 5)")
    jobs_flag(parser)
    parser.add_argument("--plain", type=int, metavar="SEED", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain is not None:
        return print(plain(arguments.data, arguments.plain))
    missing = 0
    if arguments.only != "few":
        missing += methods(arguments.data.resolve(), arguments.seeds, arguments.jobs)
    if arguments.only != "methods":
        missing += few(arguments.data.resolve(), arguments.draws, arguments.jobs)
    sys.exit(missing > 0)


if __name__ == "__main__":
    main()
