"""Tables that a rerun goes on with: every run is appended to a JSONL file, and what is there already is not run again."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path


def collect(file: str, wanted: list[dict], work: Callable[[dict], dict]) -> list[dict]:
    """The wanted runs, each with what `work` found added to it; file: its name below runs/."""
    path = Path("runs") / file
    path.parent.mkdir(exist_ok=True)
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    results = []
    for run in wanted:
        found = next((d for d in done if d["run"] == run), None)
        if found is None:
            found = {"run": run, **work(run)}
            print(found, file=sys.stderr, flush=True)
            with path.open("a") as lines:
                lines.write(json.dumps(found) + "\n")
        results.append(found)
    return results


def train(flags: list[str]) -> dict:
    """result.json of `python train.py` with these flags, and the seconds of the whole command."""
    with tempfile.TemporaryDirectory() as directory:
        start = time.perf_counter()
        command = [sys.executable, "train.py", *flags, "--out", f"{directory}/run"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        return json.loads(Path(directory, "run", "result.json").read_text()) | {"command_seconds": seconds}


def first_rows(source: Path, rows: int, header: bool, directory: Path) -> Path:
    """A copy of the file's first rows under its own name."""
    lines = source.read_bytes().splitlines(keepends=True)
    path = directory / source.name
    path.write_bytes(b"".join(lines[: rows + header]))
    return path
