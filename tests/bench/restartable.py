"""Tables that a rerun goes on with: every run is appended to a JSONL file, and what is there already is not run again.

A run is a dictionary of what a table needs to know, such as {"task": "rte", "seed": 0}. What was found stands beside it, and the
device: figures of different devices do not belong in one table, so that only the runs of the device at hand count. A table is
printed from what is there; its script ends with exit code 1 as long as a run is missing.
"""

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path


def jobs_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, a process each; 0: print what is there (default 1)")


def device() -> str:
    """Where minift and the plain loops run: the name of the GPU, or cpu."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def collect(
    file: str,
    wanted: list[dict],
    work: Callable[[dict], dict],
    jobs: int = 1,
    needs: Callable[[dict], dict | None] = lambda run: None,
) -> list[dict]:
    """Those of the wanted runs that are there in the end, each with what `work` found added to it.

    file: its name below runs/. work: called with a run in one of `jobs` processes. needs: the run that has to be there before this
    one starts, as it leaves a model that this one reads. A run that fails is reported on stderr, and the others go on.
    """
    path, here = Path("runs") / file, device()
    path.parent.mkdir(exist_ok=True)
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    found = {key(line["run"]): line for line in lines if line.get("device", "cpu") == here}
    waiting, running = [run for run in wanted if key(run) not in found] if jobs else [], {}
    # spawn: the parent has asked CUDA for its name, after which a fork could not use it
    with ProcessPoolExecutor(max(1, jobs), multiprocessing.get_context("spawn")) as pool:
        while waiting or running:
            ready = [run for run in waiting if needs(run) is None or key(needs(run)) in found]
            waiting = [run for run in waiting if run not in ready]
            running |= {pool.submit(work, run): run for run in ready}
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                run = running.pop(future)
                if error := future.exception():
                    print(f"failed: {run}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                    continue
                found[key(run)] = {"run": run, **future.result(), "device": here}
                print(found[key(run)], file=sys.stderr, flush=True)
                with path.open("a") as lines:
                    lines.write(json.dumps(found[key(run)]) + "\n")
            if not running and not any(key(needs(run)) in found for run in waiting):
                for run in waiting:
                    print(f"not run: {run}: it needs {needs(run)}, which failed", file=sys.stderr, flush=True)
                break
    return [found[key(run)] for run in wanted if key(run) in found]


def key(run: dict) -> str:
    return json.dumps(run, sort_keys=True)


def cell(values: list, wanted: int, write: Callable[[list], str]) -> str:
    """What a table shows of the values; and how many there are, where some are missing."""
    if len(values) == wanted:
        return write(values)
    return f"{write(values)}, {len(values)} of {wanted} seeds" if values else f"0 of {wanted} seeds"


def spread(values: list[float]) -> str:
    """Mean ± standard deviation (lowest to highest)."""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation} ({min(values):.1f} to {max(values):.1f})"


def train(flags: list[str]) -> dict:
    """result.json of `python train.py` with these flags, the figures of the last epoch, and the seconds of the whole command."""
    with tempfile.TemporaryDirectory() as directory:
        start = time.perf_counter()
        command = [sys.executable, "train.py", *flags, "--out", f"{directory}/run"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        run = Path(directory, "run")
        return json.loads((run / "result.json").read_text()) | {"last_epoch": last_epoch(run), "command_seconds": seconds}


def last_epoch(run: Path) -> dict:
    """The figures of the validation rows after the last epoch of a run of minift, which need not be the one that it keeps."""
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return next((event for event in reversed(events) if event["split"] == "valid"), {})


def first_rows(source: Path, rows: int, header: bool, directory: Path) -> Path:
    """A copy of the file's first rows under its own name."""
    lines = source.read_bytes().splitlines(keepends=True)
    path = directory / source.name
    path.write_bytes(b"".join(lines[: rows + header]))
    return path
