"""train.py on photographs, with evaluate and predict on what it leaves."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny import converted_directory, converted_resnet, photographs

import minift
import train
from minift import evaluate, predict
from minift.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path):
    return photographs(tmp_path / "photos" / "train"), photographs(tmp_path / "photos" / "val", 5, seed=1)


def run(tmp_path, *data, out="run", **flags):
    base = tmp_path / "resnet"
    if not base.exists():
        converted_resnet(base)
    usual = {"task": "image-classification", "model": base, "epochs": 2, "batch_size": 8, "workers": 0}
    flags = usual | {"out": out and tmp_path / out} | flags
    flags |= dict(zip(("train", "valid"), data, strict=False))
    flags = {name: value for name, value in flags.items() if value is not None}
    train.main([word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))])
    return out and json.loads((tmp_path / out / "result.json").read_text())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["full", "partial:stages=1", "probe"])
def test_a_run_is_what_evaluate_finds(tmp_path, data, capsys, method, precision):
    result = run(tmp_path, *data, method=method, precision=precision, lr=0.02)
    printed = capsys.readouterr().out
    assert ("frozen  valid: 10 rows computed once" in printed) == (method != "full")
    evaluate.main([str(tmp_path / "run"), "--data", str(data[1])])
    accuracy, f1, matthews = (result["valid"][name] for name in ("accuracy", "f1_macro", "matthews"))
    line = f"{result['valid']['loss']:.4f}    {accuracy:.4f}    {f1:.4f}   {matthews: .4f}"
    assert " ".join(line.split()) in " ".join(capsys.readouterr().out.split())


def test_it_learns_and_predicts(tmp_path, data, capsys):
    result = run(tmp_path, *data, method="probe", epochs=10)
    assert result["valid"]["accuracy"] == 1.0 and result["parameters"]["trainable"] == 2 * 24 + 2
    files = [str(data[1] / "bees" / "0.jpg"), str(data[1] / "ants" / "3.jpg")]
    assert [p["label"] for p in minift.load(tmp_path / "run").predict(files)] == ["bees", "ants"]
    predict.main([str(tmp_path / "run"), *files])
    assert capsys.readouterr().out.splitlines()[-2].startswith("bees")
    predict.main([str(tmp_path / "run"), "--data", str(data[1]), "--out", str(tmp_path / "p.jsonl")])
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert len(rows) == 10 and all(row["label"] in row["image"] for row in rows)


def test_statistics_of_thawed_blocks_move_and_frozen_ones_are_not_saved(tmp_path, data):
    run(tmp_path, *data, method="partial:stages=1", augment="strong", mixup=0.2, label_smoothing=0.1)
    before, after = (load_file(tmp_path / place / "model.safetensors") for place in ("resnet", "run/model"))
    assert after.keys() == {name for name in before if name.startswith("blocks.2.")} | {"head.weight", "head.bias"}
    assert not any(torch.equal(after[name], tensor) for name, tensor in before.items() if name in after)
    assert after["blocks.2.branch.norm1.num_batches_tracked"] == 2 * 3


@pytest.mark.parametrize("flags", [{}, {"augment": "standard"}, {"augment": "standard", "views": 2}, {"mixup": 0.5, "cutmix": 1.0}])
def test_the_same_again_with_any_number_of_workers(tmp_path, data, flags):
    for out, workers in (("a", 0), ("b", 2)):
        run(tmp_path, *data, out=out, method="probe", workers=workers, **flags)
    a, b = (load_file(tmp_path / out / "model" / "model.safetensors") for out in ("a", "b"))
    assert all(torch.equal(a[name], tensor) for name, tensor in b.items())


@pytest.mark.parametrize("cache", ["memory", "disk", "off"])
def test_a_cache_changes_nothing(tmp_path, data, cache):
    both, same = (("off", "off"), ("kept", cache)), {"method": "probe", "precision": "float32"}
    results = [run(tmp_path, *data, out=out, cache=kind, **same) for out, kind in both]
    assert results[0]["valid"] == results[1]["valid"]
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == ["config.json", "metrics.jsonl", "model", "result.json"]


def test_from_random_weights_without_a_checkpoint(tmp_path, data, monkeypatch, capsys):
    monkeypatch.setenv("MINIFT_WEIGHTS", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"python convert.py resnet50"):
        run(tmp_path, *data, model="resnet50")
    run(tmp_path, *data, model="resnet50", init="random", epochs=0, method="probe", valid="none")
    assert "resnet50 without weights" in capsys.readouterr().out
    assert minift.load(tmp_path / "run").predict([str(data[1] / "ants" / "0.jpg")])[0]["label"] in ("ants", "bees")


WRONG = {
    "a text file": ("ants/note.jpg", b"hello", "1 of 21 images cannot be read; delete them or add --skip-bad-images"),
    "cut short": ("ants/0.jpg", 300, "cut short"),
    "empty file": ("ants/0.jpg", b"", "zero bytes"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_files_are_named_before_training(tmp_path, data, name):
    file, content, message = WRONG[name]
    path = data[0] / file
    path.write_bytes(path.read_bytes()[:content] if isinstance(content, int) else content)
    with pytest.raises(UserError, match=message) as error:
        run(tmp_path, *data)
    assert str(path) in str(error.value) and not (tmp_path / "run").exists()
    train.main(
        [*("--train", str(data[0]), "--valid", str(data[1]), "--task", "image-classification", "--model", str(tmp_path / "resnet")),
         *("--epochs", "1", "--workers", "0", "--skip-bad-images", "--out", str(tmp_path / "run"))]
    )  # fmt: skip


def test_mistakes_with_classes(tmp_path, data):
    (data[0] / "wasps").mkdir()
    with pytest.raises(UserError, match="wasps: no images in this class folder"):
        run(tmp_path, *data)
    (data[0] / "wasps").rmdir()
    shutil.copytree(data[1] / "bees", data[1] / "wasps")
    with pytest.raises(UserError, match="'wasps' does not occur in the training images"):
        run(tmp_path, *data)
    shutil.rmtree(data[1] / "wasps")
    shutil.rmtree(data[1] / "bees")
    with pytest.raises(UserError, match="no image of the class bees"):
        run(tmp_path, *data)
    with pytest.raises(UserError, match="one class folder only"):
        run(tmp_path, data[1])


def test_flags_and_models_of_the_other_kind(tmp_path, data):
    with pytest.raises(UserError, match="--max-length belongs to text-classification"):
        run(tmp_path, *data, max_length=12)
    with pytest.raises(UserError, match="--mixup belongs to image-classification"):
        train.main(["--mixup", "0.2"])
    with pytest.raises(UserError, match="images are a task of their own"):
        train.main(["--train", str(data[0])])
    with pytest.raises(UserError, match="is a model of texts; expected one of images"):
        run(tmp_path, *data, model=converted_directory(tmp_path / "bert"))
    with pytest.raises(UserError, match="is a model of images; expected one of texts"):
        train.main(["--model", str(converted_resnet(tmp_path / "other"))])
    with pytest.raises(UserError, match="stages=9: the body has 4, from stem to block 2"):
        run(tmp_path, *data, method="partial:stages=9")
    with pytest.raises(UserError, match="give --train"):
        run(tmp_path)


@pytest.mark.parametrize("flags", [{}, {"l2": 0.01}, {"augment": "standard", "views": 2}, {"monitor": "loss"}])
def test_a_probe_solved_exactly(tmp_path, data, capsys, flags):
    result = run(tmp_path, *data, method="probe", solver="lbfgs", epochs=None, **flags)
    printed = capsys.readouterr().out
    assert result["valid"]["accuracy"] == 1.0 and result["steps"] == 0
    assert ("best of 45 penalties" in printed) == ("l2" not in flags)
    if flags.get("monitor") == "loss":
        events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        assert result["valid"]["loss"] == pytest.approx(min(event["loss"] for event in events), rel=0.05)
    assert minift.load(tmp_path / "run").predict([str(data[1] / "ants" / "0.jpg")])[0]["label"] == "ants"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"method": "full"}, "it solves a linear head alone"),
        ({"valid": "none"}, "give it with --l2"),
        ({"augment": "strong"}, "say how often with --views"),
        ({"lr": 0.1}, "--lr with --solver lbfgs: it takes no gradient steps"),
        ({"l2": -1}, "a number above 0"),
    ],
)
def test_wrong_use_of_the_solver(tmp_path, data, flags, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, *data[: 1 if "valid" in flags else 2], **{"method": "probe", "solver": "lbfgs", "epochs": None} | flags)


def test_one_view_is_augmented_and_the_same_in_every_epoch(tmp_path, data):
    kept = run(tmp_path, *data, out="kept", method="probe", augment="strong", views=1)
    afresh = run(tmp_path, *data, out="afresh", method="probe", augment="strong", views=1, cache="off")
    plain = run(tmp_path, *data, out="plain", method="probe", augment="none")
    assert kept["valid"] == afresh["valid"] != plain["valid"]


def test_what_the_start_says_of_batch_norm_and_what_is_refused(tmp_path, data, capsys):
    run(tmp_path, *data, accumulate=2, epochs=1, method="full")
    assert "BatchNorm takes its statistics from each batch, not all of a step" in capsys.readouterr().out
    run(tmp_path, *data, accumulate=2, epochs=1, method="probe", out="probe")
    assert "BatchNorm takes" not in capsys.readouterr().out
    with pytest.raises(UserError, match="--cache disk with --method full: the lowest stage trains"):
        run(tmp_path, *data, cache="disk", out="other", method="full")


def test_the_name_of_a_run_is_one_that_every_system_takes(tmp_path, data, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(tmp_path, *data, method="partial:stages=2", epochs=0, out=None)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["photos-resnet-partial-stages=2"]


REFUSED = {
    "a label's part of folders": ({"label_part": ":"}, "--label-part: .* is a directory; the flag describes a table"),
    "nothing to compute again": ({"method": "probe", "checkpoint_activations": None}, "no stage trains"),
    "two rates for one head": ({"method": "probe", "lr": 0.1, "head_lr": 0.1}, "one learning rate is enough"),
    "betas": ({"optimizer": "adamw:betas=0.9"}, "--optimizer adamw:betas=0.9: betas="),
    "momentum": ({"optimizer": "sgd:momentum=2"}, "momentum=2.0: a number from 0 to below 1"),
    "unfreezing backwards": ({"method": "full", "unfreeze": "chain:every=-1"}, "every=-1: 0 or more"),
    "a pair of images": ({"pair_column": "b"}, "--pair-column belongs to text-classification"),
    "a penalty and a choice": ({"method": "probe", "solver": "lbfgs", "l2": 1, "monitor": "loss", "epochs": ""}, "to choose"),
    "no number": ({"method": "probe", "solver": "lbfgs", "l2": "nan", "epochs": ""}, "a number above 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_ignored_is_refused(tmp_path, data, name):
    flags, message = REFUSED[name]
    base = converted_resnet(tmp_path / "resnet")
    usual = {"task": "image-classification", "model": base, "train": data[0], "epochs": 2, "out": tmp_path / "run"} | flags
    words = []
    for flag, value in usual.items():
        if value != "":
            words += [f"--{flag.replace('_', '-')}", *([] if value is None else [str(value)])]
    with pytest.raises(UserError, match=message):
        train.main(words)
    assert not (tmp_path / "run").exists()


def test_a_class_too_small_to_be_held_back_is_said(tmp_path, capsys):
    photographs(tmp_path / "few", 10)
    photographs(tmp_path / "few", 3, classes=("wasps",))
    run(tmp_path, tmp_path / "few", method="probe")
    assert "no validation row has the label wasps" in capsys.readouterr().out


def test_unfreezing_counts_what_the_method_trains_and_says_what_is_never_reached(tmp_path, data, capsys):
    result = run(tmp_path, *data, method="full", unfreeze="gradual", epochs=2)
    assert result["parameters"]["trainable"] == result["parameters"]["total"]
    assert "stem, block 0, block 1 never train in 6 steps" in capsys.readouterr().out


def test_evaluate_takes_the_flags_of_its_task_alone(tmp_path, data):
    run(tmp_path, *data, method="probe")
    for flag, message in ((["--pair-column", "b"], "has no use for it"), (["--header", "no"], "describes a table")):
        with pytest.raises(UserError, match=message):
            evaluate.main([str(tmp_path / "run"), "--data", str(data[1]), *flag])


def test_predictions_have_stdout_to_themselves_and_wrong_inputs_are_named(tmp_path, data, capsys):
    run(tmp_path, *data, method="probe")
    capsys.readouterr()
    predict.main([str(tmp_path / "run"), "--data", str(data[1])])
    assert all("label" in json.loads(line) for line in capsys.readouterr().out.splitlines())
    (tmp_path / "text.jpg").write_text("hello")
    wrong = {"nope.jpg": "no such file", str(data[1]): "a directory; for all images in it say --data"}
    for name, message in (wrong | {str(tmp_path / "text.jpg"): "no image of a format that is read"}).items():
        with pytest.raises(UserError, match=message):
            predict.main([str(tmp_path / "run"), name])
