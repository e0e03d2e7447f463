"""Scripts in processes of their own, for the tests of what Ctrl-C leaves behind."""

import contextlib
import json
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


def assert_nobody_stays(arguments: list, begun: Path) -> None:
    """kill -9 for the script alone, once the file `begun` is there: its worker processes end as well."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    script = subprocess.Popen([sys.executable, *arguments], start_new_session=True, env=environment)
    try:
        wait_for(begun.exists, 60)
        script.kill()
        script.wait()
        wait_for(lambda: not group_lives(script.pid), 10)
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


# Imports what training takes once, and forks a process for every line of arguments that it reads.
NURSERY = """
import json, os, signal, sys, traceback
import torch, torchvision.transforms.v2
import train, minift.plan, minift.printing, minift.setup, minift.solve, minift.checkpoints, minift.data.loading
import minift.tasks.text_classification, minift.tasks.image_classification, minift.methods.lora
import minift.tasks.token_classification, minift.tasks.masked_lm, minift.tasks.text_regression, minift.tasks.question_answering
from minift.errors import command
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if "wait" in order:
        print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
        continue
    child = os.fork()
    if not child:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
        for number, name in ((1, order["out"]), (2, order["err"])):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.argv = ["train.py", *order["arguments"]]
        try:
            command(train.main, "train")
        finally:
            sys.stdout.flush()
            code = sys.exc_info()[1]
            if not isinstance(code, SystemExit):
                traceback.print_exc()
            os._exit(code.code if isinstance(code, SystemExit) else 70)
    print(child, flush=True)
"""


class Nursery:
    """Training processes that start within milliseconds: forks of a process that has imported everything and run nothing."""

    def __init__(self, log: Path):
        self.log = log
        paths = os.pathsep.join(str(path) for path in (Path(__file__).parents[1], Path(__file__).parent))
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, order: dict) -> int:
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, *arguments) -> int:
        """Its process id. What it prints is added to `log`."""
        return self.ask({"arguments": [str(a) for a in arguments], "out": str(self.log), "err": str(self.log)})

    def wait(self, child: int) -> int:
        return self.ask({"wait": child})

    def close(self) -> None:
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()
