"""Whole commands, timed from outside. Torch is not imported here, nor by who uses it: see `timed`."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path


def timed(command: list[str], environment: dict[str, str]) -> dict:
    """Seconds of a Python command from its start to its end, seconds of the processor (user and system, its children included) and
    the highest resident memory of a process in MB, with what the last line that it prints holds where that is a JSON object.

    Its temporary files and caches are its own and go with it. Who calls this must be small: a process begins with the memory of
    the one that starts it in its account.
    """
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        own = {name: place for name in ("TMPDIR", "XDG_CACHE_HOME", "HF_HOME")}
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *command], env=os.environ | environment | own, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        seconds, process.returncode = time.perf_counter() - start, os.waitstatus_to_exitcode(status)
        said, complaints = (file.seek(0) or file.read().decode(errors="replace") for file in (out, err))
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(command)}\n{complaints[-3000:]}")
    lines = said.splitlines()
    figures = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    return {"seconds": seconds, "processor": usage.ru_utime + usage.ru_stime, "memory": usage.ru_maxrss / 1024} | figures


def once(file: Path, run: dict, work: Callable[[], dict]) -> dict:
    """What `work` finds, appended to a file of JSON lines together with the run; what is there already is not measured again."""
    lines = file.read_text().splitlines() if file.exists() else []
    found = next((done for done in map(json.loads, lines) if done["run"] == run), None)
    if found is None:
        found = {"run": run, **work()}
        print(found, file=sys.stderr, flush=True)
        file.parent.mkdir(exist_ok=True)
        with file.open("a") as end:
            end.write(json.dumps(found) + "\n")
    return found
