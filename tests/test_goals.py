"""What `python -m tests.bench` counts, and that a rerun measures nothing again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import __main__ as bench
from tests.bench.goals import GOALS, RUNS, Files, Goal
from tests.bench.timing import timed

CHECKOUT = Path(__file__).parents[1]
BUSY = """
import json, os, subprocess, sys
used = bytearray(200 << 20)
for i in range(0, len(used), 4096): used[i] = 1
open(os.path.join(os.environ["TMPDIR"], "left"), "w")
subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True)
print(json.dumps({"place": os.environ["TMPDIR"], "threads": os.environ["OMP_NUM_THREADS"]}))
"""


TIMES = """
import json, sys
from tests.bench.timing import timed
print(json.dumps([timed(["-c", sys.argv[1]], {"OMP_NUM_THREADS": "7"}), timed(["-c", "pass"], {})]))
"""


def test_a_command_is_timed_with_its_children_and_leaves_nothing():
    """By a small process: what the tests before this one have imported would count as memory."""
    done = subprocess.run([sys.executable, "-c", TIMES, BUSY], cwd=CHECKOUT, check=True, stdout=subprocess.PIPE, text=True)
    found, idle = json.loads(done.stdout)
    assert found["threads"] == "7" and not Path(found["place"]).exists()
    assert found["memory"] > 200 > 100 > idle["memory"]
    assert found["processor"] > idle["processor"] + 0.05 and found["seconds"] > 0.05


def test_a_command_that_fails_says_why():
    with pytest.raises(SystemExit, match="no such thing"):
        timed(["-c", "raise KeyError('no such thing')"], {})


def test_every_goal_has_its_runs_and_every_run_a_goal():
    assert {name for goal in GOALS for name in (goal.ours, *goal.theirs)} == RUNS.keys()
    assert all(goal.theirs or goal.limit for goal in GOALS)


def figures(seconds: float, **more) -> dict:
    return {"seconds": seconds, "processor": 2 * seconds, "memory": 100 * seconds, **more}


def test_the_fastest_peer_goes_on_and_a_rerun_measures_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = []

    def measured(name: str, seconds: float):
        def work(files, seed):
            ran.append((name, seed))
            return figures(seconds + seed / 10, accuracy=0.8 + seed / 100)

        return work

    for name, seconds in {"ours": 2.0, "peer, float32": 9.0, "peer, bfloat16": 5.0}.items():
        monkeypatch.setitem(RUNS, name, measured(name, seconds))
    goal = Goal("x", "job", "peer", 2.5, "ours", ("peer, float32", "peer, bfloat16"))
    first = ["ours", "peer, float32", "peer, bfloat16"]
    key = {"processor": "one"}
    compared = bench.Bench(None, key).compare(goal, 3)
    assert ran == [(name, 0) for name in first] + [(name, seed) for seed in (1, 2) for name in (first[0], first[2])]
    assert bench.Bench(None, key).compare(goal, 3) == compared and len(ran) == 7
    assert bench.row(goal, *compared) == [
        *("job", "peer, bfloat16", "2.1 (4.2)", "5.1 (10.2)", "2.43", "2.43", "2.5", "no"),
        *("81.0 (80.0, 81.0, 82.0)", "81.0 (80.0, 81.0, 82.0)", "210", "510", "0.41"),
    ]
    bench.Bench(None, {"processor": "another"}).compare(goal, 1)
    assert len(ran) == 10


def test_a_limit_in_seconds_and_memory_beyond_the_peers():
    limit = Goal("x", "job", "60 s", 1, "ours", (), limit=60.0)
    assert bench.row(limit, [figures(40.0)], [])[4:8] == ["1.50", "", "1", "yes"]
    goal = Goal("x", "job", "peer", 3, "ours", ("peer",))
    shown = bench.row(goal, [figures(1.0)], [figures(3.0) | {"memory": 100.0}])
    assert shown[4:8] == ["3.00", "3.00", "3", "yes"] and shown[-1] == "1.00, too much"


def test_with_fewer_rows_all_else_shrinks(tmp_path):
    (tmp_path / "sst2").mkdir()
    lines = [f"text {i}\t{i % 2}\n" for i in range(100)]
    for name in ("train", "dev"):
        (tmp_path / "sst2" / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(lines))
    (tmp_path / "made").mkdir()
    files = Files(tmp_path, 20, 2, tmp_path / "made")
    counts = [len(path.read_text().splitlines()) - 1 for path in (files.train, files.dev, files.short, files.many)]
    assert counts == [20, 8, 100, 10_000] and files.scaled(16) == 2  # of `short` as many as there are
