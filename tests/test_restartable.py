"""Tables of tests/bench: runs at once, those that wait for others, those that fail, and what a rerun finds."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "bench"))
import restartable

WANTED = [{"of": "broken", "seed": 0}, {"of": "body", "seed": 0}, {"of": "task", "seed": 0}, {"of": "task", "seed": 1}]


def work(run: dict) -> dict:
    with Path("made").open("a") as made:
        made.write(f"{run['of']} {run['seed']}\n")
    if run["of"] == "broken":
        raise ValueError("no such file")
    return {"figure": run["seed"] + Path("made").read_text().count("body")}


def needs(run: dict) -> dict | None:
    """The task needs the body, of which seed 1 has none."""
    return {"of": "body" if run["seed"] == 0 else "broken", "seed": 0} if run["of"] == "task" else None


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(restartable, "device", lambda: "cpu")


def collected(jobs: int = 2) -> list[dict]:
    return restartable.collect("table.jsonl", WANTED, work, jobs, needs)


def test_a_failed_run_is_reported_and_the_others_go_on(capsys):
    assert [(run["run"]["of"], run["figure"], run["device"]) for run in collected()] == [("body", 1, "cpu"), ("task", 1, "cpu")]
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("{")]
    assert said == [
        "failed: {'of': 'broken', 'seed': 0}: ValueError: no such file",
        "not run: {'of': 'task', 'seed': 1}: it needs {'of': 'broken', 'seed': 0}, which failed",
    ]
    made = Path("made").read_text().splitlines()
    assert sorted(made) == ["body 0", "broken 0", "task 0"] and made.index("body 0") < made.index("task 0")
    collected()
    assert sorted(Path("made").read_text().splitlines()) == ["body 0", "broken 0", "broken 0", "task 0"]


def test_runs_of_another_device_are_another_table(monkeypatch):
    rows = [{"run": WANTED[1], "figure": 5}, {"run": WANTED[2], "figure": 6, "device": "NVIDIA H100"}]
    Path("runs").mkdir()
    Path("runs", "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert collected(jobs=0) == rows[:1]  # what has no device was measured on a CPU
    monkeypatch.setattr(restartable, "device", lambda: "NVIDIA H100")
    assert collected(jobs=0) == rows[1:] and not Path("made").exists()


def test_a_cell_says_how_many_runs_it_stands_on():
    assert [restartable.cell(values, 2, str) for values in ([], [1], [1, 2])] == ["0 of 2 seeds", "[1], 1 of 2 seeds", "[1, 2]"]
