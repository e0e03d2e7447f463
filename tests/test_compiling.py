"""--compile: the same run as without it, with stages that are thawed later, with a method's surgery, in low precision."""

import functools
import itertools
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny import TEXTS, converted_directory, converted_resnet, photographs, rows_file, tiny_body
from torch import nn

import minift
import train
from minift import compiling
from minift.compiling import TOGETHER, groups
from minift.errors import UserError
from minift.trace import main as trace

COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CASES = {
    "full": [],
    "unfreezing": ["--unfreeze", "gradual:every=2", "--method", "full"],
    "lora": ["--method", "lora:rank=2"],
    "partial": ["--method", "partial:stages=1"],
    "accumulation in bfloat16": ["--accumulate", "2", "--precision", "bfloat16"],
}


@pytest.fixture
def graphs(monkeypatch):
    """As torch compiles, but for what comes behind the graphs, which takes a minute: they run as they are."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


def run(tmp_path, name: str, *flags: str) -> tuple[list[float], dict]:
    """(the losses of the steps, the weights that the run has saved)"""
    if not (tmp_path / "base").exists():
        converted_directory(tmp_path / "base", tiny_body(**NO_DROPOUT))
        rows_file(tmp_path / "rows.csv")
    usual = ["--train", str(tmp_path / "rows.csv"), "--model", str(tmp_path / "base"), "--epochs", "2", "--quiet"]
    recipe = ["--optimizer", "sgd", "--lr", "0.1", "--batch-size", "7"]  # AdamW makes a step of the rounding of a small gradient
    torch._dynamo.reset()
    train.main([*usual, *recipe, *flags, "--out", str(tmp_path / name)])
    events = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events], load_file(tmp_path / name / "model" / "model.safetensors")


def compare(tmp_path, flags: list[str]) -> None:
    (ours, weights), (theirs, expected) = run(tmp_path, "compiled", "--compile", *flags), run(tmp_path, "eager", *flags)
    bound = 2e-2 if "bfloat16" in flags else 1e-5
    assert ours == pytest.approx(theirs, abs=bound) and len(set(theirs)) > 4
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=bound)
    assert len(minift.load(tmp_path / "compiled").predict(TEXTS)) == len(TEXTS)


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("case", ["unfreezing", pytest.param("lora", marks=pytest.mark.slow)])
def test_a_compiled_run_is_the_run(tmp_path, case):
    compare(tmp_path, CASES[case])


def test_a_graph_is_of_at_most_so_many_stages_of_one_kind():
    modules = [nn.ReLU(), *(nn.Tanh() for _ in range(TOGETHER + 2)), nn.ReLU()]
    found = groups(modules)
    assert [len(group) for group in found] == [1, TOGETHER, 2, 1]
    assert all(a is b for a, b in zip(modules, itertools.chain(*found), strict=True))


@pytest.mark.usefixtures("graphs")
def test_several_graphs_of_layers_are_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "TOGETHER", 1)
    compare(tmp_path, CASES["unfreezing"])


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler: inductor needs one on a CPU")
@pytest.mark.parametrize("case", CASES)
def test_by_the_code_generator(tmp_path, case):
    compare(tmp_path, CASES[case])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", CASES)
def test_on_cuda(tmp_path, case):
    compare(tmp_path, CASES[case])


@pytest.mark.slow
@pytest.mark.usefixtures("graphs")
def test_convolutions(tmp_path):
    converted_resnet(tmp_path / "resnet")
    photographs(tmp_path / "photos", 4)
    flags = ["--task", "image-classification", "--train", str(tmp_path / "photos"), "--model", str(tmp_path / "resnet")]
    usual = [*flags, "--method", "full", "--epochs", "2", "--batch-size", "4", "--workers", "0", "--quiet"]
    found = []
    for name, compiled in (("a", ["--compile"]), ("b", [])):
        torch._dynamo.reset()
        train.main([*usual, *compiled, "--out", str(tmp_path / name)])
        found.append(load_file(tmp_path / name / "model" / "model.safetensors"))
    for name, tensor in found[1].items():
        torch.testing.assert_close(found[0][name], tensor, rtol=0, atol=1e-4)


def test_the_trace_compiles_nothing_as_it_looks_into_the_stages(tmp_path, capsys, monkeypatch):
    base, rows = converted_directory(tmp_path / "base", tiny_body()), rows_file(tmp_path / "rows.csv")
    monkeypatch.setattr(torch, "compile", None)
    trace(["--train", str(rows), "--model", str(base), "--compile"])
    assert "layer 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint-activations"], "--compile with --checkpoint-activations: "),
        (["--method", "probe"], "--compile with --method probe: no stage trains"),
        (["--precision", "tf32", "--device", "cpu"], "precision tf32 is not available on cpu, only on cuda; use float32"),
    ],
)
def test_refused(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, "refused", "--compile", *flags)


def test_a_cpu_needs_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="--compile on a CPU: torch needs a C\\+\\+ compiler"):
        run(tmp_path, "refused", "--compile", "--device", "cpu")
