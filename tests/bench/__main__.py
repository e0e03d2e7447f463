"""Goals of speed and memory, as ratios in one run: `python -m tests.bench --data ROOT`, from the checkout, 90 minutes on 2 cores.

ROOT has sst2 (GLUE's train.tsv and dev.tsv) and hymenoptera_data (train/CLASS and val/CLASS, of PyTorch's transfer learning
tutorial). Texts: the first 2,000 training rows of SST-2, batches of 32, the embedded model, the dev set scored after every epoch on
both sides, the same learning rate, decay and warm-up; minift is train.py as it is, --precision auto included. Each side is a
process of its own, in turn with the peer, timed from its start to its end. The peers are the scripts *_script.py beside this file.
`Trainer at its best` groups rows by length, takes the fused AdamW, and bfloat16 where that is faster: the first seed is run with
and without it. Of `step` the fastest step counts, and `its products alone` are the products of its matrices: the bound.

Seconds, seconds of the processor (user and system, of all cores) and the highest resident memory (of one process: what workers that
decode images have is not added) are medians over --seeds; photographs, predict and tokenise run once. A goal is reached by the
clock; where other work disturbs it the ratio of processor seconds tells more. Memory is to be at most 0.8 of the peer's.

Every run is appended to runs/goals.jsonl and not repeated by a rerun with the same processor, threads, rows and versions; delete
the file to measure again what has changed. `--only full lora` measures these. Several at once do not meet, each on its cores:
`taskset -c 2,3 python -m tests.bench --data ROOT --only probe`. On a processor with AMX, ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 gives
the row without. Needs the test extra; `tokenise` datasets as well.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import statistics
import tempfile
from pathlib import Path

from tests.bench.goals import GOALS, GROWTH, GROWTH_FROM, ROWS, RUNS, Files, Goal, step
from tests.bench.timing import once

DONE = Path("runs") / "goals.jsonl"
MEMORY = 0.8  # of the peer's, at most
SETS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "asimd", "sve", "bf16")
LIBRARIES = ("torch", "transformers", "peft", "datasets")
COLUMNS = (
    *("job", "peer", "minift, s (of the processor)", "peer, s (of the processor)", "ratio", "of the processor", "goal", "reached"),
    *("accuracy, minift", "peer", "memory, MB", "peer", "ratio"),
)


def processor() -> tuple[str, list[str]]:
    """(the name, the instruction sets that matter here)"""
    name, flags = platform.processor() or platform.machine(), []
    if Path("/proc/cpuinfo").exists():
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
        said = {key.strip(): value.strip() for key, _, value in reversed(lines)}
        name, flags = said.get("model name", name), said.get("flags", said.get("Features", "")).split()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return name + (f", held to {limit}" if limit else ""), [one for one in SETS if one in flags]


def version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


class Bench:
    """Runs and their figures. key: what a run is known by besides its name and seed."""

    def __init__(self, files: Files, key: dict):
        self.files, self.key = files, key

    def run(self, name: str, seed: int) -> dict:
        return once(DONE, {"name": name, "seed": seed} | self.key, lambda: RUNS[name](self.files, seed))

    def compare(self, goal: Goal, seeds: int) -> tuple[list[dict], list[dict]]:
        """The figures of minift and of the peer, one for each seed."""
        ours, theirs, names = [], [], goal.theirs
        for seed in range(1 if goal.once else seeds):
            ours.append(self.run(goal.ours, seed))
            found = {name: self.run(name, seed) for name in names}
            names = [min(found, key=lambda name: found[name]["seconds"])] if found else []
            theirs += [found[name] for name in names]
        return ours, theirs

    def step(self, side: str, sizes: dict) -> dict:
        run = {"name": "growth", "side": side, "sizes": sizes} | self.key
        flags = [word for name, value in sizes.items() for word in (f"--{name}", value)]
        return once(DONE, run, lambda: step(self.files, 0, side, *flags))


def median(runs: list[dict], name: str) -> float | None:
    values = [run[name] for run in runs if run.get(name) is not None]
    return statistics.median(values) if values else None


def shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def three(value: float) -> str:
    """In three digits at least."""
    return format(value, ".3g" if value < 100 else ".0f")


def accuracies(runs: list[dict]) -> str:
    """The mean in percent, and each."""
    values = [100 * run["accuracy"] for run in runs if run.get("accuracy") is not None]
    each = f" ({', '.join(f'{value:.1f}' for value in values)})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{each}" if values else ""


def row(goal: Goal, ours: list[dict], theirs: list[dict]) -> list[str]:
    seconds, used_seconds, memory = ([median(side, name) for side in (ours, theirs)] for name in ("seconds", "processor", "memory"))
    seconds[1] = seconds[1] or goal.limit
    ratio, of_processor, of_memory = (None if None in pair else pair[1] / pair[0] for pair in (seconds, used_seconds, memory[::-1]))
    precision = {run["precision"] for run in ours if "precision" in run}
    chosen = f", {theirs[0]['run']['name'].rpartition(', ')[2]}" if len(goal.theirs) > 1 else ""
    gflops = median(theirs, "gflops")
    return [
        goal.job + "".join(f", {one}" for one in sorted(precision)),
        goal.peer + chosen + ("" if gflops is None else f", {gflops:.0f} GFLOP/s"),
        *(three(value) + ("" if used is None else f" ({three(used)})") for value, used in zip(seconds, used_seconds, strict=True)),
        shown(ratio, ".2f"),
        shown(of_processor, ".2f"),
        shown(goal.least, "g"),
        "" if goal.least is None else "yes" if ratio >= goal.least else "no",
        accuracies(ours),
        accuracies(theirs),
        *(shown(value, ",.0f") for value in memory),
        shown(of_memory, ".2f") + ("" if of_memory is None or of_memory <= MEMORY else ", too much"),
    ]


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def print_goals(bench: Bench, goals: list[Goal], seeds: int) -> None:
    print(line(COLUMNS) + "\n|" + "---|" * len(COLUMNS), flush=True)
    left_out = []
    for goal in goals:
        if goal.needs and importlib.util.find_spec(goal.needs) is None:
            left_out.append(f"not measured: {goal.job}: {goal.needs} is not installed")
            continue
        print(line(row(goal, *bench.compare(goal, seeds))), flush=True)
    print("".join(f"\n{one}\n" for one in left_out), end="")


def print_growth(bench: Bench) -> None:
    """How a step becomes longer and larger, of minift and of transformers."""
    rows = bench.files.scaled(GROWTH_FROM["rows"])
    print("\n| a step with | minift, time | transformers, time | minift, memory | transformers, memory |\n|---|---|---|---|---|")
    for what, changes in GROWTH.items():
        cells = {}
        for side in ("minift", "transformers"):
            sizes = [GROWTH_FROM | change for change in changes]
            for one in sizes:
                one["rows"] = one["rows"] * rows // GROWTH_FROM["rows"]
            before, after = (bench.step(side, one) for one in sizes)
            cells["seconds", side] = f"{after['seconds'] / before['seconds']:.2f} ({before['seconds']:.3g} s)"
            cells["memory", side] = f"{after['memory'] / before['memory']:.2f} ({before['memory']:,.0f} MB)"
        order = [cells[name, side] for name in ("seconds", "memory") for side in ("minift", "transformers")]
        print(line([what, *order]), flush=True)


def main() -> None:
    names = [*dict.fromkeys(goal.name for goal in GOALS), "growth"]
    parser = argparse.ArgumentParser(
        "python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT", help="directory of the data sets")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--seeds", type=int, default=3, help="default 3")
    parser.add_argument("--threads", type=int, default=2, help="of both sides, default 2")
    parser.add_argument("--rows", type=int, default=ROWS, help="of SST-2 to train on; with fewer all else shrinks alike")
    arguments = parser.parse_args()

    name, sets = processor()
    versions = {library: version(library) for library in LIBRARIES}
    installed = ", ".join(f"{library} {number or 'not installed'}" for library, number in versions.items())
    print(f"{name} ({', '.join(sets)}), --threads {arguments.threads}; Python {platform.python_version()}, {installed}\n")
    key = {"processor": name, "threads": arguments.threads, "rows": arguments.rows, "versions": versions}
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Files(arguments.data.resolve(), arguments.rows, arguments.threads, Path(directory)), key)
        goals = [goal for goal in GOALS if goal.name in arguments.only]
        if goals:
            print_goals(bench, goals, arguments.seeds)
        if "growth" in arguments.only:
            print_growth(bench)


if __name__ == "__main__":
    main()
