"""What is forgotten of a source, measured, and what keeps it: whole runs of a tiny model that has learned one task before."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from contract.tasks import sentences_file
from safetensors.torch import load_file
from tiny import WORDS, byte_checkpoint, converted_directory, converted_resnet, photographs, rows_file, tiny_body

import minift
import train
from minift import source
from minift.errors import UserError
from minift.models.bert import State
from minift.pretrained import write

ROOT = Path(__file__).parents[1]


def topics_file(path, rows: int = 48):
    """Other labels than those of `rows_file`: which thing a text is about."""
    lines = ["text,label"]
    for i in range(rows):
        lines.append(f"{'very ' * (i % 3)}{('good', 'bad')[i // 2 % 2]} {WORDS[8 + i % 2]} !,{WORDS[8 + i % 2]}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """base, a tiny checkpoint; source, a run of it; rows.csv of the source's task, topics.csv of the next one."""
    place = tmp_path_factory.mktemp("forgetting")
    write(place / "decoder", byte_checkpoint())
    converted_directory(place / "base", tiny_body(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1), pool="mean")
    rows_file(place / "rows.csv")
    topics_file(place / "topics.csv")
    (place / "texts.txt").write_text("\n".join(["the film was very good", "a bad slow book !", "never again"] * 8))
    go(place, "source", "--model", place / "base", "--train", place / "rows.csv", "--pool", "mean", "--lr", "3e-3", epochs=6)
    return place


def go(place, out, *flags, epochs=2):
    """Train in place/out; what result.json says."""
    fixed = ["--precision", "float32", "--batch-size", "8", "--quiet", "--epochs", epochs, "--out", place / out]
    train.main([str(flag) for flag in (*fixed, *flags)])
    return json.loads((place / out / "result.json").read_text())


def after(place, out, *flags, epochs=2):
    """Train the source on the topics, measuring."""
    given = ["--model", place / "source", "--train", place / "topics.csv", "--source-data", place / "rows.csv"]
    defaults = [part for name, value in (("--lr", "1e-2"), ("--pool", "mean")) if name not in flags for part in (name, value)]
    return go(place, out, *given, *defaults, *flags, epochs=epochs)


def weights(place, out):
    return load_file(place / out / "model" / "model.safetensors")


# ---- the meter ----


def test_before_and_after_are_the_figures_of_the_source_through_its_own_head(place, tmp_path):
    """Before, as `evaluate` tells them of the source; after, through the source's head on the new run's body."""
    found = after(place, tmp_path / "run")["source"]
    run = minift.load(place / "source")
    rows = run.task.read(str(place / "rows.csv"), run.layout)
    assert found["before"] == pytest.approx(run.score(rows)[0].metrics, abs=1e-6)
    run.model.body.load_state_dict(minift.load(tmp_path / "run").model.body.state_dict(), strict=False)
    assert found["after"] == pytest.approx(run.score(rows)[0].metrics, abs=1e-6)
    assert found["after"]["loss"] > found["before"]["loss"] + 0.01


def test_the_drift_of_every_stage(place, tmp_path):
    """Frozen stages have not moved; the weights of the others as the files tell."""
    stages = after(place, tmp_path / "run", "--method", "partial:stages=1")["source"]["stages"]
    assert [*stages] == ["embeddings", "layer 0", "layer 1", "layer 2"]
    for stage in ("embeddings", "layer 0", "layer 1"):
        assert stages[stage] == {"weights": 0.0, "cka": pytest.approx(1.0, abs=1e-9)}
    then, now = weights(place, "source"), weights(tmp_path, "run")
    names = [name for name in then if name.startswith("layers.2.")]
    moved, size = (sum(x.square().sum().item() for x in tensors) ** 0.5
                   for tensors in ([now[n] - then[n] for n in names], [then[n] for n in names]))  # fmt: skip
    assert stages["layer 2"]["weights"] == pytest.approx(moved / size, rel=1e-5) and 0 < stages["layer 2"]["cka"] < 0.9999


def test_what_is_wrapped_has_moved_as_it_moves_when_it_is_merged(place, tmp_path):
    found = after(place, tmp_path / "run", "--method", "lora:rank=2")["source"]["stages"]
    assert found["embeddings"]["weights"] == 0.0 and found["layer 1"]["weights"] > 1e-4 and found["layer 1"]["cka"] < 1.0
    found = after(place, tmp_path / "other", "--method", "prefix:length=2")["source"]["stages"]  # cannot be merged
    assert found["layer 1"]["weights"] == 0.0 and found["layer 1"]["cka"] < 1.0


def test_cka_by_hand_and_what_it_does_not_see():
    """Kernel matrices K = X X^T: <K, L> / (|K| |L|), here in the other form; unmoved by rotation, factor and shift."""
    torch.manual_seed(0)
    X, Y = torch.randn(20, 5, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    K, L = ((Z - Z.mean(0)) @ (Z - Z.mean(0)).T for Z in (X, Y))
    assert source.cka(X, Y) == pytest.approx(((K * L).sum() / (K.norm() * L.norm())).item(), abs=1e-12)
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    assert source.cka(X, 3 * X @ rotation + 1) == pytest.approx(1.0, abs=1e-12)
    assert source.cka(X, torch.ones(20, 3, dtype=torch.float64)) is None


def test_the_mean_over_places_leaves_padding_out():
    """Of a mask by token, by row and column as packed texts have it, and of a map."""
    torch.manual_seed(0)
    h, mask = torch.randn(2, 3, 4), torch.tensor([[True, True, True], [True, True, False]])
    expected = torch.stack([h[0].mean(0), h[1, :2].mean(0)])
    for one in (mask, (mask[:, None, :, None] & mask[:, None, None, :])):
        torch.testing.assert_close(source.mean_over_places(State(None, None, one, hidden=h)), expected)
    whole = source.mean_over_places(State(None, None, None, hidden=h.transpose(1, 2)[..., None]))
    torch.testing.assert_close(whole, h.mean(1))


def test_a_body_that_pools_otherwise_is_measured_through_the_pool_of_the_source(place, tmp_path):
    """The source reads the mean, the next run a new pooler over [CLS]; and a head for masked words reads no pool at all."""
    found = after(place, tmp_path / "run", "--pool", "cls", "--lr", "1e-9", "--weight-decay", "0", epochs=1)["source"]
    assert found["after"] == pytest.approx(found["before"], abs=1e-4)
    words = ["--task", "masked-lm", "--train", place / "texts.txt", "--model", place / "base", "--method", "probe"]
    go(tmp_path, "words", *words)
    more = ["--model", tmp_path / "words", "--train", place / "topics.csv", "--source-data", place / "texts.txt"]
    found = go(tmp_path, "next", *more, "--lr", "1e-2")["source"]
    assert {"loss", "perplexity", "accuracy"} == {*found["before"]} and found["before"]["loss"] != found["after"]["loss"]


def test_a_task_that_pools_nothing_is_measured_through_the_pool_of_the_source(place, tmp_path):
    sentences_file(tmp_path / "rows.conll")
    flags = ["--task", "token-classification", "--model", place / "source", "--train", tmp_path / "rows.conll", "--lr", "1e-9"]
    keeps = ["--source-data", place / "rows.csv", "--penalty", "ewc:rows=4+distill:of=logits", "--rehearse", place / "rows.csv"]
    found = go(tmp_path, "run", *flags, *keeps, epochs=1)["source"]
    assert found["after"] == pytest.approx(found["before"], abs=1e-4)


def test_images(tmp_path):
    """A ResNet: convolutions mixed, the Fisher information with the statistics of the BatchNorms as they are, a map by channel."""
    for name, classes, seed in (("first", ("ants", "bees"), 0), ("next", ("cats", "dogs"), 1)):
        photographs(tmp_path / name, each=5, seed=seed, classes=classes)
    converted_resnet(tmp_path / "base")
    task = ["--task", "image-classification", "--workers", "0", "--augment", "none", "--valid", "none", "--method", "full"]
    go(tmp_path, "source", *task, "--model", tmp_path / "base", "--train", tmp_path / "first", epochs=1)
    keeps = ["--source-data", tmp_path / "first", "--penalty", "ewc:rows=4+mixout:p=0.5+distill", "--rehearse", tmp_path / "first"]
    more = ["--model", tmp_path / "source", "--train", tmp_path / "next", "--average", "last:epochs=1"]
    found = go(tmp_path, "run", *task, *more, *keeps, epochs=1)["source"]
    assert next(iter(found["stages"])) == "stem" and all(0 < f["cka"] < 1 and f["weights"] > 0 for f in found["stages"].values())
    assert found["before"]["accuracy"] is not None


def test_measuring_changes_no_bit(place, tmp_path):
    given = ["--model", place / "source", "--train", place / "topics.csv", "--lr", "1e-2", "--pool", "mean"]
    go(tmp_path, "alone", *given)
    after(place, tmp_path / "measured")
    one, two = weights(tmp_path, "alone"), weights(tmp_path, "measured")
    assert all(torch.equal(one[name], two[name]) for name in one)


REFUSED = {
    "no head": (["--model", "base", "--source-data", "rows.csv"], "base has no head, so its figures cannot be told; fit one"),
    "no head, of a decoder": (["--model", "decoder", "--source-data", "rows.csv"], "--task causal-lm --epochs 0 --train TEXTS"),
    "random": (["--source-data", "rows.csv", "--init", "random"], "nothing was known before"),
    "labels of another task": (["--source-data", "topics.csv"], "topics.csv:2"),
    "ewc without rows": (["--penalty", "ewc"], "add --source-data FILE"),
    "ewc without a head": (["--model", "base", "--penalty", "ewc", "--source-data", "rows.csv"], "base has no head"),
    "ewc of frozen weights": (
        ["--penalty", "ewc", "--source-data", "rows.csv", "--method", "lora", "--pool", "mean"],
        "no pretrained weight trains",
    ),
    "ewc of other labels": (["--penalty", "ewc:labels=best", "--source-data", "rows.csv"], "there are drawn, all, data"),
    "ewc and weight decay": (["--penalty", "ewc", "--source-data", "rows.csv", "--weight-decay", "0.1"], "--weight-decay 0.1 with"),
    "ewc twice": (["--penalty", "ewc:data=rows.csv+ewc:data=topics.csv"], "ewc is given twice"),  # the second took the first's
    "ewc of a file that is not there": (["--penalty", "ewc:data=nowhere.csv"], "nowhere.csv: no such file"),
    "ewc of a file of another task": (["--penalty", "ewc:data=topics.csv"], "topics.csv:2"),
    "ewc of a negative strength": (["--penalty", "ewc:strength=-1", "--source-data", "rows.csv"], "strength=-1.0: a number"),
    "rehearsal without a head": (["--model", "base", "--rehearse", "rows.csv"], "--rehearse rows.csv: base has no head"),
    "rehearsal of labels that the head does not know": (["--rehearse", "topics.csv"], "topics.csv:2"),
    "rehearsal of a frozen body": (["--rehearse", "rows.csv", "--method", "probe"], "nothing of the body trains"),
    "a share of nothing": (["--rehearse-share", "0.2"], "--rehearse-share 0.2 without --rehearse"),
    "a strength of nothing": (["--target-strength", "0.2"], "--target-strength 0.2 without --target-data"),
    "logits without a head": (["--model", "base", "--penalty", "distill:of=logits"], "no head that chooses one label"),
    "distillation of a frozen body": (["--penalty", "distill", "--method", "probe"], "nothing of the body trains"),
    "distillation of random weights": (["--penalty", "distill", "--init", "random"], "the weights are random"),
    "distillation of something else": (["--penalty", "distill:of=words"], "expected features or logits"),
    "no such file": (["--source-data", "nowhere.csv"], "nowhere.csv"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_nothing_to_act_on_is_refused_in_one_line(place, tmp_path, case, monkeypatch):
    monkeypatch.chdir(place)
    flags, expected = REFUSED[case]
    flags = flags if "--model" in flags else ["--model", "source", *flags]
    with pytest.raises(UserError) as error:
        go(tmp_path, "run", "--train", "topics.csv", *flags)
    assert expected in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "run").exists()


# ---- what keeps it ----


def farther(place, out, *flags, **how):
    """(by how much the source's loss has risen, the change of the body's weights)"""
    found = after(place, out, "--dropout", "0", "--attention-dropout", "0", *flags, **how)["source"]
    then, now = weights(place, "source"), weights(place, out)
    moved = sum((now[name] - then[name]).square().sum().item() for name in then if not name.startswith("head.")) ** 0.5
    return found["after"]["loss"] - found["before"]["loss"], moved


def test_ewc_the_stronger_the_less_is_forgotten(place, tmp_path):
    plain = farther(place, tmp_path / "plain", "--weight-decay", "0", epochs=4)
    weak, strong = (farther(place, tmp_path / s, "--penalty", f"ewc:strength={s}", epochs=4) for s in ("10", "10000"))
    assert strong[0] < weak[0] < plain[0] and strong[1] < weak[1] < plain[1]
    kept = load_file(tmp_path / "10" / "fisher.safetensors")
    assert all((F >= 0).all() for F in kept.values()) and {*kept} == {n for n in weights(place, "source") if "head" not in n}


def test_ewc_without_strength_changes_no_bit(place, tmp_path):
    after(place, tmp_path / "one", "--weight-decay", "0", epochs=1)
    after(place, tmp_path / "two", "--penalty", "ewc:strength=0", epochs=1)
    one, two = weights(tmp_path, "one"), weights(tmp_path, "two")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_kept_fisher_information_is_used_again_and_another_one_is_refused(place, tmp_path, capsys):
    flags = ["--penalty", f"ewc:strength=100,rows=20,labels=all,data={place / 'rows.csv'}", "--keep", "1", "--valid", "none"]
    flags += ["--schedule", "constant", "--warmup", "0"]
    after(place, tmp_path / "whole", *flags, epochs=2)
    after(place, tmp_path / "parts", *flags, epochs=1)
    assert "of 20 units of the source, labels=all" in capsys.readouterr().err
    train.main(["--resume", str(tmp_path / "parts"), "--epochs", "2", "--quiet"])
    assert "as " in capsys.readouterr().err
    one, two = weights(tmp_path, "whole"), weights(tmp_path, "parts")
    assert all(torch.equal(one[name], two[name]) for name in one)
    (tmp_path / "parts" / "fisher.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"fisher\.safetensors: cut short .*; delete it, and it is computed again$"):
        train.main(["--resume", str(tmp_path / "parts"), "--epochs", "3", "--quiet"])


def test_ewc_of_masked_words(place, tmp_path):
    words = ["--task", "masked-lm", "--train", place / "texts.txt", "--model", place / "base", "--method", "probe"]
    go(tmp_path, "words", *words, epochs=1)
    more = ["--model", tmp_path / "words", "--train", place / "topics.csv", "--source-data", place / "texts.txt"]
    go(tmp_path, "next", *more, "--penalty", "ewc:rows=5", "--pool", "mean", epochs=1)
    kept = load_file(tmp_path / "next" / "fisher.safetensors")
    assert (kept["embeddings.word.weight"].amax(1) > 0).all()  # each word through the head, the words of the texts below as well
    assert all(F.max() > 0 for F in kept.values())


KEEPERS = {
    "mixout": ["--penalty", "mixout:p=0.7"],
    "mixout of the authors": ["--penalty", "mixout:p=0.7,authors=true"],
    "features": ["--penalty", "distill:strength=10"],
    "logits": ["--penalty", "distill:strength=10,of=logits"],
    "rehearsal": ["--rehearse", "rows.csv", "--rehearse-share", "0.3"],
    "ewc and mixout": ["--penalty", "ewc:rows=8,strength=100+mixout:p=0.5"],
}


@pytest.mark.parametrize("name", ["features", "logits", "rehearsal"])
def test_less_is_forgotten(place, tmp_path, name, monkeypatch):
    monkeypatch.chdir(place)
    flags = ["--dropout", "0", "--attention-dropout", "0"]
    plain = farther(place, tmp_path / "plain", *flags, epochs=4)
    kept = farther(place, tmp_path / "kept", *flags, *KEEPERS[name], epochs=4)
    assert kept[0] < 0.8 * plain[0]


@pytest.mark.parametrize("name", KEEPERS)
def test_a_resumed_run_ends_in_the_same_bits_and_activations_may_be_computed_again(place, tmp_path, name, monkeypatch):
    monkeypatch.chdir(place)
    flags = [*KEEPERS[name], "--keep", "1", "--valid", "none", "--schedule", "constant", "--warmup", "0", "--accumulate", "2"]
    after(place, tmp_path / "whole", *flags, epochs=2)
    after(place, tmp_path / "parts", *flags, "--checkpoint-activations", epochs=1)
    monkeypatch.chdir(tmp_path)  # files are found from everywhere
    train.main(["--resume", str(tmp_path / "parts"), "--epochs", "2", "--quiet"])
    after(place, tmp_path / "without", *flags[len(KEEPERS[name]) :], epochs=2)
    whole, parts, without = (weights(tmp_path, run) for run in ("whole", "parts", "without"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not all(torch.equal(whole[name], without[name]) for name in whole)


@pytest.mark.parametrize("name", KEEPERS)
def test_precisions_and_methods(place, tmp_path, name, monkeypatch):
    """bfloat16, and a lower part of the model that stands still and whose output is kept."""
    monkeypatch.chdir(place)
    found = after(place, tmp_path / "run", *KEEPERS[name], "--precision", "bfloat16", "--method", "partial:stages=1", epochs=1)
    assert found["valid"]["loss"] < 10 and found["source"]["after"]["loss"] < 10


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="torch.distributed with gloo")
def test_several_processes_are_one(place, tmp_path):
    """Each penalty once, no dropout: the weights, the Fisher information and what was forgotten."""
    penalty = "ewc:strength=100,rows=8+distill+l2sp:alpha=0.1,beta=0"
    flags = ["--model", place / "source", "--train", place / "topics.csv", "--source-data", place / "rows.csv", "--pool", "mean"]
    flags += ["--penalty", penalty, "--rehearse", place / "rows.csv", "--average", "ema:decay=0.5", "--target-data"]
    flags += [place / "topics.csv", "--dropout", 0, "--attention-dropout", 0, "--lr", "1e-3", "--optimizer", "sgd"]
    fixed = ["--precision", "float32", "--batch-size", 8, "--epochs", 2, "--quiet"]
    go(tmp_path, "one", *flags)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", ROOT / "train.py"]
    command = [str(part) for part in (*start, *flags, *fixed, "--out", tmp_path / "two")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    for file in ("model/model.safetensors", "fisher.safetensors"):
        one, two = (load_file(tmp_path / run / file) for run in ("one", "two"))
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-5)
    one, two = (json.loads((tmp_path / run / "result.json").read_text())["source"] for run in ("one", "two"))
    assert two["after"] == pytest.approx(one["after"], abs=1e-5)
