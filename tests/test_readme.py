"""What the README shows is what works: its method and its task are taken out of it and run."""

import ast
import json
import re
import sys
import textwrap
from fnmatch import fnmatch
from itertools import takewhile
from pathlib import Path

import pytest
from tiny import converted_directory, rows_file

import minift
import train
from minift import evaluate
from minift.tasks import FLAGS, TASKS

CHECKOUT = Path(__file__).parents[1]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
MECHANISMS = [
    path
    for folder in ("models", "methods", "optim", "penalties")
    for path in sorted((CHECKOUT / "minift" / folder).glob("*.py"))
    if path.stem != "__init__"
]
PROOFS = (CHECKOUT / "tests" / "README.md").read_text(encoding="utf-8")
# What these files do is in no paper: what all bodies, wrappers, optimisers and penalties share; a kernel; a measurement; gradients
# as they are stored. Of rehearsal there is a paper, whose place is all of it
OF_NO_PAPER = {"body.py", "surgery.py", "optimizer.py", "penalty.py", "fused.py", "measure.py", "rows.py", "rehearsal.py"}


def block_after(sentence: str) -> str:
    """The indented block behind a sentence of the README."""
    lines = README[README.index(sentence) + len(sentence) :].split("\n")[2:]
    return textwrap.dedent("\n".join(takewhile(lambda line: not line or line.startswith("    "), lines)))


@pytest.fixture
def flags(tmp_path):
    base = converted_directory(tmp_path / "base", pool="mean")
    shared = ["--model", str(base), "--precision", "float32", "--batch-size", "8", "--epochs", "8", "--lr", "1e-2"]
    return ["--train", str(rows_file(tmp_path / "rows.csv")), *shared, "--out", str(tmp_path / "run")]


def test_the_task(tmp_path, flags, monkeypatch):
    code = block_after("on what BERT pools, with labels and files as `text-classification` has them, `hinge.py`:")
    assert 30 <= len(code.strip().splitlines()) <= 60
    (tmp_path / "readme_hinge.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(TASKS, "hinge", "readme_hinge:Hinge")
    monkeypatch.setitem(FLAGS, "hinge", "minift.tasks.flags:TextClassificationFlags")
    train.main([*flags, "--task", "hinge", "--method", "lora:rank=2"])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(result["valid"]) == {"loss", "accuracy"}
    for p in minift.load(tmp_path / "run").predict(["the film was good", "the film was bad"]):
        assert p["label"] == ("positive" if p["score"] > 0 else "negative")
    evaluate.main([str(tmp_path / "run"), "--data", str(tmp_path / "rows.csv")])
    sys.modules.pop("readme_hinge")


def test_the_method(tmp_path, flags, monkeypatch):
    code = block_after("Say, a learned factor for each channel behind every LayerNorm, `norm_scale.py`:")
    (tmp_path / "norm_scale.py").write_text(code)
    train.main([*flags, "--method", f"{tmp_path / 'norm_scale.py'}:norm_scale"])
    trained = json.loads((tmp_path / "run" / "result.json").read_text())["parameters"]["trainable"]
    assert trained == 2 * 3 * 16 + 2 * 17  # a factor a channel of two norms in each of three layers, and the head
    monkeypatch.setenv("MINIFT_METHODS", str(tmp_path / "norm_scale.py"))
    assert len(minift.load(tmp_path / "run").predict(["good"])) == 1


# ---- from equation to code ----


def files_in_tables() -> dict[str, list[str]]:
    """Cell of a table -> the files that it names; one without a folder lies beside the one before it."""
    found = {}
    for cell in (cell for line in PROOFS.splitlines() if line.startswith("|") for cell in line.split("|")):
        folder = ""
        for name in re.findall(r"`([\w/*]+(?:\.py|/))`", cell):
            folder = name.rpartition("/")[0] or folder
            found.setdefault(cell, []).append(name if "/" in name else f"{folder}/{name}")
    return found


def test_the_readme_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 250
    links = re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", README) + re.findall(r"\]\(([^)#:]+)\)", PROOFS)
    assert len(links) > 5
    assert not [link for link in links if not ((CHECKOUT / link).exists() or (CHECKOUT / "tests" / link).exists())]


def test_every_file_that_the_tables_name_exists_and_no_mechanism_is_forgotten():
    named = {name for names in files_in_tables().values() for name in names}
    assert len(named) > 50
    gone = [name for name in named if not any(CHECKOUT.glob(name))]
    assert not gone, f"tests/README.md names {gone}"
    forgotten = [str(path.relative_to(CHECKOUT)) for path in MECHANISMS if str(path.relative_to(CHECKOUT)) not in named]
    assert not forgotten, f"tests/README.md does not name {forgotten}"


def test_every_test_of_a_part_is_in_the_tables():
    named = {name for names in files_in_tables().values() for name in names}
    folders = ("reference", "data", "formats", "methods", "models", "optim")
    paths = [path for folder in folders for path in sorted((CHECKOUT / "tests" / folder).glob("test_*.py"))]
    tests = [str(path.relative_to(CHECKOUT)) for path in paths]
    forgotten = [test for test in tests if not any(fnmatch(test, name) for name in named)]
    assert not forgotten, f"tests/README.md does not name {forgotten}"


@pytest.mark.parametrize("path", MECHANISMS, ids=lambda path: path.name)
def test_every_mechanism_names_its_paper_the_place_in_it_and_its_proof(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    said = "\n".join(ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds))
    if path.name not in OF_NO_PAPER:
        assert re.search(r"[A-Z]\w+.* (19|20)\d\d", said), "no paper"
        assert re.search(r"\b(sections?|algorithm|equations?|appendix|table)\b", said), "no place in the paper"
    proofs = re.findall(r"\btests/[\w/*]+(?:\.py|\.md|/)?", said)
    assert proofs and all(any(CHECKOUT.glob(proof)) for proof in proofs), f"proofs: {proofs}"
