"""The house's own laws: who may import whom, what lies where."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
PACKAGE = CHECKOUT / "minift"
REFERENCES = {"transformers", "peft", "adapters", "timm", "sklearn", "accelerate"}

# Folder -> what its files may import besides the standard library; a name stands for itself and all below it.
ALLOWED = {
    "models": {"torch", "minift.models"},
    "methods": {"torch", "minift.methods"},
    "optim": {"torch", "minift.optim"},
    "tasks": {
        "torch",
        "numpy",
        "minift.tasks",
        "minift.data",
        "minift.metrics",
        "minift.errors",
        "minift.fields",
        "minift.flags",
        "minift.tables",
    },
    "data": {
        "torch",
        "torchvision",
        "PIL",
        "numpy",
        "tokenizers",
        "minift.bar",
        "minift.data",
        "minift.errors",
        "minift.specs",
        "minift.fields",
        "minift.flags",
    },
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports(path):
    outside = {name for name in imports(path) if name.partition(".")[0] not in sys.stdlib_module_names}
    assert not {name.partition(".")[0] for name in outside} & REFERENCES
    folder = path.parent.name
    if folder in ALLOWED:
        strange = {name for name in outside if not any(name == a or name.startswith(a + ".") for a in ALLOWED[folder])}
        assert not strange, f"{folder} may not import {strange}"
    if any(name.startswith("huggingface_hub") for name in outside):
        assert path == PACKAGE / "formats" / "hub.py"


def test_nothing_is_deeper_than_two_and_init_files_hold_a_table_or_nothing():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.relative_to(PACKAGE).parts) <= 2, path
    for path in PACKAGE.glob("*/__init__.py"):
        assert all(isinstance(node, ast.Expr | ast.Assign) for node in ast.parse(path.read_text()).body), path


def test_top_level():
    listed = subprocess.run(["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.split("\n")
    top = {name.partition("/")[0] for name in listed if name and not name.startswith(".")}
    assert top == {"pyproject.toml", "README.md", "LICENSE", "minift", "weights", "tests", "train.py", "convert.py"}


def test_no_function_is_long():
    for path in (*PACKAGE.rglob("*.py"), CHECKOUT / "train.py", CHECKOUT / "convert.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 130, f"{path}: {node.name}"


def test_the_loop_and_the_cache_know_no_task():
    for name in ("training.py", "cache.py"):
        assert not re.search(r"\b(labels|logits|classes|tokens|pooled|hidden)\b", code_of(PACKAGE / name)), name


def code_of(path: Path) -> str:
    """A file's names and strings without docstrings and comments."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body.pop(0)
    return ast.unparse(ast.fix_missing_locations(tree))


def test_tables_name_what_exists():
    from minift.errors import look_up
    from minift.methods import METHODS
    from minift.models import MODELS
    from minift.optim import OPTIMIZERS
    from minift.optim.schedules import SCHEDULES
    from minift.optim.unfreezing import UNFREEZING
    from minift.tasks import TASKS

    for table in (METHODS, MODELS, OPTIMIZERS, SCHEDULES, TASKS, UNFREEZING):
        assert all(callable(look_up(table, name, "")) for name in table)
