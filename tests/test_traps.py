"""Every test that tests/traps.md names exists, and no row of the table is without one."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
ROWS = [line for line in (TESTS / "traps.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]


def test_every_trap_is_a_test():
    functions, missing = {}, []
    for row in ROWS:
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert len(cells) == 5 and all(cells), row
        path, name = re.fullmatch(r"`(tests/\S+\.py)::(test_\w+)`", cells[4]).groups()
        if path not in functions:
            tree = ast.parse((TESTS.parent / path).read_text(encoding="utf-8"))
            functions[path] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        if name not in functions[path]:
            missing.append(f"{path}::{name}")
    assert not missing and len(ROWS) > 40
