"""Scripts in processes of their own, for the tests of what Ctrl-C leaves behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def assert_stops_cleanly(arguments: list, begun: Path, said: str) -> None:
    """Ctrl-C for the script and all its processes, once the file `begun` is there: code 130, `said` and no more, nobody left."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    script = subprocess.Popen(
        [sys.executable, *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    )
    try:
        wait_for(begun.exists, 30)
        os.killpg(script.pid, signal.SIGINT)
        _, errors = script.communicate(timeout=20)
        assert (script.returncode, errors.strip()) == (130, said)
        wait_for(lambda: not group_lives(script.pid), 5)
    finally:
        if group_lives(script.pid):
            os.killpg(script.pid, signal.SIGKILL)


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
