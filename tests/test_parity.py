"""The table of parity: `python -m tests.parity` measures what the tests of reference/ compare, and does not hide what fails."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import parity

CHECKOUT = Path(__file__).parents[1]


def test_some_rows_of_the_table():
    command = [sys.executable, "-m", "tests.parity", "trajectories", "seqeval", "scipy"]
    wide = {**os.environ, "COLUMNS": "300"}  # pytest tells the processes that it starts of a terminal of 80 columns
    made = subprocess.run(command, cwd=CHECKOUT, env=wide, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stdout + made.stderr
    lines = [line for line in made.stdout.splitlines() if " tests/reference/" in line]
    assert [re.split("  +", line)[0] for line in lines] == [
        row.mechanism for row in parity.chosen(["trajectories", "seqeval", "scipy"])
    ]
    for line in lines:
        _, reference, error, test = re.split("  +", line)
        assert reference.split()[0] in ("scipy", "seqeval", "torch") and float(error) < 1e-10 and "::" in test


def test_every_row_names_a_test_that_exists():
    for row in parity.ROWS:
        file, _, name = row.tests.partition("[")[0].partition("::")
        assert f"\ndef {name}(" in (CHECKOUT / "tests" / file).read_text(encoding="utf-8"), row


def test_what_is_seen_is_the_largest_error_in_float64():
    watch = parity.Watch()
    watch.now = "one"
    a = torch.tensor([1.0, 2.0], dtype=torch.float64)
    with watch.comparisons():
        torch.testing.assert_close(a, a + 1e-11, rtol=0, atol=1e-10)
        assert pytest.approx(1.5, abs=1e-9) == 1.5 + 2e-10
        assert pytest.approx({"y": 2.0, "x": 1.0}) == {"x": 1.0, "y": 2.0}
        assert np.array([1.0]) == pytest.approx([1.0])
        torch.testing.assert_close(a.float(), a.float() + 1e-3, rtol=0, atol=1e-2)  # not in float64
        with pytest.raises(AssertionError):
            torch.testing.assert_close(a, a + 1.0)
        assert watch.errors["one"] == 1.0
        watch.errors.clear()
        assert pytest.approx(1.5, abs=1e-9) == 1.5 + 2e-10
    assert watch.errors["one"] == pytest.approx(2e-10, rel=1e-5)
    torch.testing.assert_close(a, a + 1e-11, rtol=0, atol=1e-10)  # not watched any more
    assert watch.errors["one"] == pytest.approx(2e-10, rel=1e-5)


def test_a_failure_and_a_missing_library_are_said(monkeypatch, capsys):
    rows = [
        parity.Row("one", "torch", "reference/test_a.py::test"),
        parity.Row("two", "no_such_library", "reference/test_b.py::test"),
    ]
    watch = parity.Watch()
    watch.ended["tests/reference/test_a.py::test[x]"] = "failed"
    monkeypatch.setattr(parity, "ROWS", rows)
    monkeypatch.setattr(parity, "run", lambda there: (watch, "the traceback"))
    assert parity.main([]) == 1
    said = capsys.readouterr().out
    assert "FAILED" in said and "the traceback" in said and "not installed: no_such_library, for two" in said
    watch.ended = {"tests/reference/test_a.py::test[x]": "skipped"}
    assert parity.main([]) == 0 and "skipped with this version" in capsys.readouterr().out
    watch.ended = {}
    assert parity.main([]) == 1 and "did not run" in capsys.readouterr().out
    assert parity.main(["word"]) == 2
