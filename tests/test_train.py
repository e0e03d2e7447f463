"""The commands as a user runs them, on a tiny model: what a run leaves, that it repeats, and one line for every mistake."""

import json
import math
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from tiny import TEXTS, converted_directory, rows_file, tiny_body

import convert
import minift
import minift.training
import train
from minift import evaluate, predict
from minift.errors import Diverged, UserError
from minift.methods import METHODS
from minift.options import options_of
from minift.pretrained import read
from minift.tasks.text_classification import TextClassification

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture
def base(tmp_path):
    return converted_directory(tmp_path / "base", pool="mean")


def run(tmp_path, base, name="run", **flags):
    rows = rows_file(tmp_path / "rows.csv")
    arguments = [
        "--train",
        str(rows),
        "--model",
        str(base),
        "--out",
        str(tmp_path / name),
        "--epochs",
        "2",
        "--lr",
        "1e-2",
        "--precision",
        "float32",
        "--batch-size",
        "8",
    ]
    for flag, value in flags.items():
        arguments += ["--" + flag.replace("_", "-"), *([] if value is None else [str(value)])]
    train.main(arguments)
    return tmp_path / name


def result(directory):
    return json.loads((directory / "result.json").read_text())


def config_of(directory):
    return json.loads((directory / "model" / "config.json").read_text())


def events(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_what_a_run_leaves(tmp_path, base, capsys):
    directory = run(tmp_path, base)
    assert {path.name for path in directory.iterdir()} == {"config.json", "metrics.jsonl", "result.json", "model"}
    assert {path.name for path in (directory / "model").iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    config = json.loads((directory / "config.json").read_text())
    assert set(config["flags"]) == {f.name for f in fields(options_of("text-classification"))} and config["flags"]["lr"] == 1e-2
    assert config["flags"]["max_length"] == 40 and config["versions"]["minift"] == minift.__version__
    steps = [event for event in events(directory) if event["split"] == "train"]
    assert [event["step"] for event in steps] == list(range(1, 13))
    assert steps[0]["lr"] == 0 and max(event["lr"] for event in steps) <= 1e-2
    assert [event["epoch"] for event in events(directory) if event["split"] == "valid"] == [1, 2]
    r = result(directory)
    assert set(r["valid"]) == {"loss", "accuracy", "f1_macro", "matthews"} and r["peak_memory_mb"] > 0
    assert set(r["seconds"]) == {"setup", "train", "evaluate"}
    printed = capsys.readouterr().out
    for wanted in (
        "layer 2",
        "trainable",
        "validation rows with the largest loss",
        "minift.predict",
        "minift.evaluate",
        "--to hf",
        "44",
        "--lr 0.01",
    ):
        assert wanted in printed


def test_a_line_for_every_epoch_but_where_many_pass_in_a_moment(tmp_path, base, capsys):
    run(tmp_path, base, method="probe", epochs=60)
    shown = [line.split("/")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ") and "/60 " in line]
    assert shown[0] == "epoch 1" and shown[-1] == "epoch 60" and {f"epoch {n}" for n in range(3, 61, 3)} <= {*shown}
    assert len(shown) < 60, "an epoch of the cached features takes milliseconds"


def test_the_printed_settings_can_be_typed(tmp_path, base, capsys):
    """A path with a blank among them."""
    rows = rows_file(tmp_path / "my rows.csv")
    train.main(["--train", str(rows), "--model", str(base), "--epochs", "1", "--verbose", "--out", str(tmp_path / "a b")])
    settings = capsys.readouterr().out.split("\n\n")[2]
    typed = [word for line in settings.splitlines() for word in shlex.split(line[line.index("--") :])]
    assert {"--train", "--no-plan", "--lr", "--precision"} <= {*typed} and str(rows) in typed
    train.main([*typed, "--out", str(tmp_path / "again")])
    assert result(tmp_path / "again")["valid"] == result(tmp_path / "a b")["valid"]


def test_of_equal_metrics_the_lower_loss_is_better():
    def rank(loss: float, accuracy: float) -> tuple[float, float]:
        return minift.training.rank_of({"loss": loss, "accuracy": accuracy}, "accuracy", TextClassification)

    assert rank(1.3, 0.85) > rank(1.5, 0.85) and rank(1.5, 0.9) > rank(1.3, 0.85)


def test_the_same_seed_gives_the_same_bits(tmp_path, base):
    first, again, other = run(tmp_path, base, "a"), run(tmp_path, base, "b"), run(tmp_path, base, "c", seed=1)
    weights = [(directory / "model" / "model.safetensors").read_bytes() for directory in (first, again, other)]
    assert weights[0] == weights[1] != weights[2]


def test_the_best_epoch_is_kept_and_evaluating_it_gives_the_recorded_figures(tmp_path, base, capsys):
    directory = run(tmp_path, base, epochs=6, lr=0.05, valid=rows_file(tmp_path / "valid.csv", 13), monitor="loss")
    valid = [event for event in events(directory) if event["split"] == "valid"]
    best = min(valid, key=lambda event: event["loss"])
    r = result(directory)
    assert r["best_epoch"] == best["epoch"] and r["valid"] == {name: best[name] for name in r["valid"]}
    assert len({event["loss"] for event in valid}) > 1
    capsys.readouterr()
    evaluate.main([str(directory), "--data", str(tmp_path / "valid.csv")])
    printed = capsys.readouterr().out.splitlines()
    assert [f"{r['valid'][name]:.4f}" for name in printed[3].split()] == printed[4].split()


def test_a_tie_keeps_the_earlier_epoch(tmp_path, base):
    assert result(run(tmp_path, base, lr=1e-12, epochs=3))["best_epoch"] == 1


def test_valid_none_keeps_the_last_epoch_and_zero_epochs_the_start(tmp_path, base):
    r = result(run(tmp_path, base, valid="none"))
    assert r["best_epoch"] == 2 and "valid" not in r
    r = result(run(tmp_path, base, "zero", epochs=0))
    assert r["best_epoch"] == 0 and r["steps"] == 0 and 0 < r["valid"]["accuracy"] < 1


def test_it_learns(tmp_path, base):
    assert result(run(tmp_path, base, epochs=15, lr=1e-2))["valid"]["accuracy"] == 1.0


def test_probe_leaves_the_body_alone_and_pools_as_the_checkpoint_says(tmp_path, base):
    directory = run(tmp_path, base, method="probe")
    before, after = read(base), read(directory / "model")
    assert all(torch.equal(after.tensors[name], tensor) for name, tensor in before.tensors.items() if name in after.tensors)
    assert after.task["pool"] == "mean" and after.own_pool is None
    assert result(directory)["parameters"]["trainable"] == 34


def test_random_weights_and_going_on_from_a_run(tmp_path, base):
    first = run(tmp_path, base, "first", init="random")
    second = run(tmp_path, first, "second", epochs=0)
    before, after = read(first / "model"), read(second / "model")
    assert all(torch.equal(after.tensors[name], tensor) for name, tensor in before.tensors.items())


def test_predict(tmp_path, base, capsys):
    directory = run(tmp_path, base, epochs=15, lr=1e-2, dropout=0, attention_dropout=0)
    predictions = minift.load(directory).predict(["the film was good", "the hotel was very bad"])
    assert [p["label"] for p in predictions] == ["positive", "negative"]
    assert all(
        math.isclose(sum(p["probabilities"].values()), 1) and p["score"] == p["probabilities"][p["label"]] for p in predictions
    )
    assert minift.load(directory).predict([]) == []

    capsys.readouterr()
    predict.main([str(directory), "the film was good", "the hotel was very bad"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["positive", "negative"]

    rows = tmp_path / "new.csv"
    rows.write_text("id,text\n" + "".join(f'{i},"{text}"\n' for i, text in enumerate(TEXTS)))
    predict.main([str(directory), "--data", str(rows), "--out", str(tmp_path / "out.jsonl")])
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == TEXTS
    assert [line["label"] for line in lines] == [p["label"] for p in minift.load(directory).predict(TEXTS)]
    with pytest.raises(UserError, match="a list of texts"):
        minift.load(directory).predict("the film was good")
    with pytest.raises(UserError, match="2 texts and 1 second texts"):
        minift.load(directory).predict(["a", "b"], ["c"])
    with pytest.raises(UserError, match="exists already"):
        predict.main([str(directory), "--data", str(rows), "--out", str(tmp_path / "out.jsonl")])
    for flags, said in (
        (["--batch-size", "9" * 20], "expected a whole number at least 1 and at most 1,000,000"),
        (["--label-column", "id"], "--label-column: predictions read no labels; leave it out"),
    ):
        with pytest.raises(UserError, match=said):
            predict.main([str(directory), "--data", str(rows), *flags])
    predict.main([str(directory), "--data", str(rows), "--format", "lines", "--header", "yes"])
    assert "--header yes does not apply to lines" in capsys.readouterr().err


def test_pairs(tmp_path, base, capsys):
    path = tmp_path / "pairs.tsv"
    path.write_text(
        "sentence1\tsentence2\tlabel\n" + "".join(f"a film\ta {('good', 'bad')[i % 2]} one\t{i % 2}\n" for i in range(60))
    )
    train.main(
        [
            "--train",
            str(path),
            "--model",
            str(base),
            "--epochs",
            "40",
            "--lr",
            "1e-2",
            "--batch-size",
            "8",
            "--out",
            str(tmp_path / "run"),
        ]
    )
    assert re.search(r'^predict   python -m minift.predict \S+ ".*" --pair ".*"$', capsys.readouterr().out, re.M)
    tuned = minift.load(tmp_path / "run")
    assert [p["label"] for p in tuned.predict(["a film", "a film"], ["a good one", "a bad one"])] == ["0", "1"]
    with pytest.raises(UserError, match="pairs of texts"):
        tuned.predict(["a film"])
    with pytest.raises(UserError, match="single texts"):
        minift.load(run(tmp_path, base, "single")).predict(["a"], ["b"])


def test_layout_flags_are_remembered_and_can_be_given_anew(tmp_path, base, capsys):
    lines = [f"{'XY'[i % 2]}:z the film was {('good', 'bad')[i % 2]}" for i in range(30)]
    (tmp_path / "train.label").write_text("\n".join(lines))
    flags = ["--format", "label-first", "--label-part", ":", "--epochs", "1"]
    train.main(["--train", str(tmp_path / "train.label"), *flags, "--model", str(base), "--out", str(tmp_path / "run")])
    assert minift.load(tmp_path / "run").task.labels == ["X", "Y"]
    capsys.readouterr()
    evaluate.main([str(tmp_path / "run"), "--data", str(tmp_path / "train.label")])
    assert "30 rows" in capsys.readouterr().out
    (tmp_path / "new.txt").write_text("good film\n\nbad\n")
    with pytest.raises(UserError, match="--format lines"):
        predict.main([str(tmp_path / "run"), "--data", str(tmp_path / "new.txt")])
    predict.main([str(tmp_path / "run"), "--data", str(tmp_path / "new.txt"), "--format", "lines"])
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == ["good film", "", "bad"]
    (tmp_path / "dev.csv").write_text("label,text\nX:1,good\nY:2,bad\n")
    evaluate.main([str(tmp_path / "run"), "--data", str(tmp_path / "dev.csv"), "--format", "csv"])
    assert "2 rows" in capsys.readouterr().out


def test_rows_cut_and_texts_seen_in_training_are_counted(tmp_path, base, capsys):
    run(tmp_path, base, max_length=5, epochs=0)
    printed = capsys.readouterr().out
    assert "cut by 5" in printed and "are in the training rows too" in printed


WRONG = {
    "no such file": ({"train": "gone.csv"}, "gone.csv: no such file"),
    "no such model": ({"model": "bert-base-uncased"}, "python convert.py bert-base-uncased"),
    "no such method": ({"method": "lorra"}, "known are full, partial, probe"),
    "no such task": ({"task": "regression"}, "known are text-classification"),
    "no such metric": ({"monitor": "accurracy"}, "known are loss, accuracy"),
    "no such init": ({"init": "zero"}, "pretrained or random"),
    "no such pool": ({"pool": "max"}, "cls, mean or last"),
    "no such device": ({"device": "quantum"}, "not available here"),
    "negative epochs": ({"epochs": -1}, "--epochs -1"),
    "batch of nothing": ({"batch_size": 0}, "--batch-size 0"),
    "rate of nothing": ({"lr": 0}, "--lr 0"),
    "warm-up longer than the run": ({"warmup": 100}, "never reach its peak"),
    "part that no label has": ({"label_part": ":"}, "no label in the file contains it"),
    "more rows than there are": ({"train_rows": 10_000}, "--train-rows 10000: "),
    "test rows of no test file": ({"test_rows": 5}, "--test-rows without --test"),
    "an unknown augmentation": ({"augment": "synonyms"}, "--augment 'synonyms' is not known; known are eda, cutoff"),
    "augmented texts solved at once": (
        {"augment": "eda", "method": "probe", "solver": "lbfgs"},
        "--solver lbfgs with --augment or --paraphrases",
    ),
    "split seed without a split": ({"valid": "neutral.csv", "split_seed": 1}, "nothing is split off"),
    "monitor without validation": ({"valid": "none", "monitor": "loss"}, "nothing to choose by"),
    "stages where only the head trains": ({"method": "probe", "layer_decay": 0.5}, "no stages to step through"),
    "a slant out of range": ({"schedule": "slanted-triangular:cut_frac=0"}, "0 < cut_frac < 1"),
    "no end of warm-up": ({"warmup": "inf"}, "expected a number at least 0"),
    "nothing to accumulate": ({"accumulate": 0}, "--accumulate 0"),
    "no such schedule": (
        {"schedule": "triangle"},
        "known are constant, linear, cosine, polynomial, inverse-sqrt, slanted-triangular",
    ),
    "no such option of a schedule": ({"schedule": "cosine:power=2"}, "'power=2' is no option of cosine"),
    "a word for a number": ({"schedule": "polynomial:power=two"}, "power is a number, not 'two'"),
    "two warm-ups": ({"schedule": "slanted-triangular", "warmup": 0.3}, "its own rise"),
    "patience without validation": ({"patience": 2, "valid": "none"}, "--patience with --valid none"),
    "a decay that grows": ({"layer_decay": 1.5}, "--layer-decay 1.5"),
    "too long": ({"max_length": 512}, "the model has 40 positions"),
    "a rate that blows up": ({"lr": 1e5, "epochs": 5}, "try a lower --lr"),
    "validation without a label column": ({"valid": "texts.csv"}, "no column bears a usual name for the label"),
    "validation with an unknown label": ({"valid": "neutral.csv"}, "neutral.csv:2: the label 'neutral'"),
    "validation in pairs": ({"valid": "pairs.csv"}, "trained on single texts, and here are pairs"),
    "one class only": ({"train": "neutral.csv", "valid": "none"}, "every row has the label"),
    "nothing to hold back": ({"train": "two.csv"}, "too few to hold 10 % back"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_one_line_and_loses_nothing(tmp_path, base, case, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINIFT_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "texts.csv").write_text("text,other\na,b\nc,d\n")
    (tmp_path / "neutral.csv").write_text("text,label\na,neutral\n")
    (tmp_path / "pairs.csv").write_text("sentence1,sentence2,label\na,b,positive\n")
    (tmp_path / "two.csv").write_text("text,label\na,x\nb,y\n")
    flags, wanted = WRONG[case]
    with pytest.raises(UserError) as error:
        run(tmp_path, base, **flags)
    assert wanted in str(error.value) and "\n" not in str(error.value)
    assert case == "a rate that blows up" or not (tmp_path / "run").exists()


def test_flags_that_would_do_nothing_without_a_file():
    for flags in (["--valid", "a.csv"], ["--encoding", "latin-1"], ["--split-seed", "1"]):
        with pytest.raises(UserError, match="without --train"):
            train.main(flags)


def test_a_new_pooler_is_not_left_untrained(tmp_path):
    base = converted_directory(tmp_path / "plain", tiny_body(pool=None))
    with pytest.raises(UserError, match="has no pooler, and probe would not train a new one; add --pool mean"):
        run(tmp_path, base, method="probe")
    run(tmp_path, base, epochs=0)


def test_a_name_with_an_owner_is_that_owners(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIFT_WEIGHTS", str(tmp_path))
    source = converted_directory(tmp_path / "tiny").name + "-source"
    with pytest.raises(UserError, match=f"someone/tiny: .* was converted from {source}"):
        run(tmp_path, "someone/tiny")
    run(tmp_path, "tiny", epochs=0)


def test_a_directory_in_use_is_refused(tmp_path, base):
    directory = run(tmp_path, base, epochs=0)
    before = (directory / "result.json").read_bytes()
    with pytest.raises(UserError, match="not empty"):
        run(tmp_path, base)
    assert (directory / "result.json").read_bytes() == before
    (tmp_path / "nothing").mkdir()
    useless_ones = ((tmp_path / "gone", "no such directory"), (base, "without a head"), (tmp_path / "nothing", "no config.json"))
    for useless, wanted in (*useless_ones, (tmp_path, "holds several runs")):
        with pytest.raises(UserError, match=wanted):
            minift.load(useless)


def test_a_run_stopped_early_says_so(tmp_path, base, capsys):
    directory = run(tmp_path, base, epochs=50, lr=1e-12, patience=2)
    assert result(directory)["best_epoch"] == 1 and result(directory)["steps"] == 3 * 6
    assert "stopped: no better accuracy for 2 epochs" in capsys.readouterr().out
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "config.json").write_bytes((directory / "config.json").read_bytes())
    with pytest.raises(UserError, match="stopped before its first epoch"):
        minift.load(tmp_path / "stopped")


def test_schedule_and_rates_reach_the_steps(tmp_path, base):
    directory = run(tmp_path, base, schedule="polynomial:power=1,end=0.5", warmup=4, layer_decay=0.5, head_lr=0.02, batch_size=4)
    rates = [event["lr"] for event in events(directory) if event["split"] == "train"]
    assert rates[:5] == [0.0, 0.005, 0.01, 0.015, 0.02] and rates[-1] == pytest.approx(0.02 * (0.5 + 0.5 / 18))


def test_a_broken_base_is_refused(tmp_path, base):
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="cut short"):
        run(tmp_path, base)


def test_threads(tmp_path, base):
    before = torch.get_num_threads()
    try:
        other = 2 if before == 1 else 1
        directory = run(tmp_path, base, threads=other, epochs=1)
        assert torch.get_num_threads() == json.loads((directory / "config.json").read_text())["threads"] == other
    finally:
        torch.set_num_threads(before)


def test_runs_are_numbered(tmp_path, base, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows_file(tmp_path / "reviews.csv")
    for _ in range(2):
        train.main(["--train", "reviews.csv", "--model", str(base), "--epochs", "0"])
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["reviews-base-full", "reviews-base-full-2"]


def command(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=CHECKOUT, capture_output=True, text=True, timeout=120, **options)


def test_in_a_process_of_its_own_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    done = command("train.py", "--train", str(tmp_path / "gone.csv"))
    assert (done.returncode, done.stderr) == (2, f"train: {tmp_path / 'gone.csv'}: no such file\n")
    done = command("-m", "minift.predict", str(tmp_path / "gone"), "text")
    assert done.returncode == 2 and done.stderr.startswith("predict: ") and done.stderr.count("\n") == 1


COMMANDS = {  # every file that is run -> what brings it as far as its first package
    "train": [],
    "convert": ["gone", "--to", "hf", "--out", "out"],
    "evaluate": ["gone", "--data", "gone"],
    "generate": ["gone", "text"],
    "predict": ["gone", "text"],
    "prompting": ["--model", "gone", "--train", "gone", "--test", "gone"],
    "report": ["gone"],
    "trace": [],
}


def test_every_command_is_known():
    files = [CHECKOUT / "train.py", CHECKOUT / "convert.py", *(CHECKOUT / "minift").rglob("*.py")]
    assert {file.stem for file in files if "__main__" in file.read_text(encoding="utf-8")} == {*COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_without_packages_a_command_says_what_to_install(name):
    start = [f"{name}.py"] if (CHECKOUT / f"{name}.py").is_file() else ["-m", f"minift.{name}"]
    shown = command("-S", *start, "--help")  # a Python without packages
    assert shown.returncode == 0 and "usage:" in shown.stdout and not shown.stderr
    done = command("-S", *start, *COMMANDS[name])
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1
    assert re.fullmatch(rf"{name}: this Python, .+, has no (torch|numpy|tqdm); in the checkout: pip install -e \.\n", done.stderr)


def test_help_shows_what_a_flag_takes(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    shown = capsys.readouterr().out
    assert all(flag in shown for flag in ("--batch-size N", "--lr X", "--pool {cls,mean,last}", "--train VALUE"))


IN_PROCESS = """
import sys, train, convert
from minift import evaluate, predict
rows, base, out = sys.argv[1:]
train.main(["--train", rows, "--model", base, "--out", out, "--epochs", "1", "--method", "lora+houlsby+prefix:length=2"])
predict.main([out, "good"])
evaluate.main([out, "--data", rows])
print([name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules])
"""


def test_no_command_waits_for_torch_s_compiler(tmp_path, base):
    """Its import takes longer than all else that predict does."""
    done = command("-c", IN_PROCESS, str(rows_file(tmp_path / "rows.csv")), str(base), str(tmp_path / "run"))
    assert done.returncode == 0 and done.stdout.endswith("\n[]\n"), done.stdout + done.stderr


def test_ctrl_c_keeps_what_was_saved(tmp_path, base):
    rows = rows_file(tmp_path / "rows.csv", 2000)
    out = tmp_path / "run"
    arguments = ["train.py", "--train", str(rows), "--model", str(base), "--out", str(out), "--epochs", "1000"]
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(600):
        if (out / "metrics.jsonl").exists() and '"valid"' in (out / "metrics.jsonl").read_text() and (out / "model").is_dir():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in stderr
    assert f"the best epoch so far is in {out}" in stderr
    assert len(minift.load(out).predict(TEXTS)) == len(TEXTS)


def test_several_seeds_and_what_they_have_in_common(tmp_path, base, capsys):
    directory = run(tmp_path, base, seeds=3)
    accuracies = [result(directory / f"seed-{seed}")["valid"]["accuracy"] for seed in (42, 43, 44)]
    summary = result(directory)["valid"]["accuracy"]
    assert summary["values"] == accuracies and summary["mean"] == pytest.approx(sum(accuracies) / 3)
    assert (summary["best"], summary["worst"]) == (max(accuracies), min(accuracies))
    assert result(directory)["valid"]["loss"]["best"] == min(result(directory)["valid"]["loss"]["values"])
    assert "3 seeds, in" in capsys.readouterr().out


def test_a_seed_that_diverges_is_counted_and_the_others_stay(tmp_path, base, capsys, monkeypatch):
    run_once = train.run_once

    def diverging(options, record=None):
        if options.seed == 43:
            raise Diverged("the loss is nan at step 3")
        return run_once(options, record)

    monkeypatch.setattr(train, "run_once", diverging)
    directory = run(tmp_path, base, seeds=3)
    assert result(directory)["diverged"] == 1 and len(result(directory)["valid"]["loss"]["values"]) == 2
    assert "seed-43 diverged: the loss is nan" in capsys.readouterr().out
    monkeypatch.setattr(train, "run_once", lambda options, record=None: diverging(replace(options, seed=43)))
    with pytest.raises(UserError, match="all 2 runs have diverged"):
        run(tmp_path, base, "none", seeds=2)


def test_several_learning_rates_are_a_grid_of_which_the_best_is_kept(tmp_path, base, capsys):
    directory = run(tmp_path, base, lr="1e-9,1e-2", batch_size="8,16", epochs=10, monitor="loss")
    printed = capsys.readouterr().out
    grid = json.loads((directory / "grid.json").read_text())
    assert len(grid["runs"]) == 4 and "4 runs, in" in printed
    losses = {label: one["valid"]["loss"] for label, one in grid["runs"].items()}
    assert grid["best"] == min(losses, key=losses.get) and "lr=0.01" in grid["best"]
    assert result(directory)["valid"] == grid["runs"][grid["best"]]["valid"]  # moved up, with its model
    assert len(minift.load(directory).predict(TEXTS)) == len(TEXTS)
    others = [path for path in directory.iterdir() if path.name.startswith(("lr", "batch"))]
    assert len(others) == 3 and not any((path / "model").exists() for path in others)
    assert all((path / "result.json").is_file() for path in others)


def test_precision_is_measured_once_and_recorded(tmp_path, base, capsys, monkeypatch):
    times = []
    monkeypatch.setattr("minift.optim.measure.LEAST", 0)
    monkeypatch.setattr("minift.optim.measure.measure", lambda *a: times.append(1) or {"float32": 0.3, "bfloat16": 0.1})
    directory = run(tmp_path, base, precision="auto", seeds=2)
    config = json.loads((directory / "seed-42" / "config.json").read_text())
    assert len(times) == 1 and config["flags"]["precision"] == "bfloat16"
    assert config["seconds_of_products"] == {"float32": 0.3, "bfloat16": 0.1}
    assert "measured: float32 300 ms, bfloat16 100 ms" in capsys.readouterr().out
    assert config_of(directory / "seed-43")["settings"]["precision"] == "bfloat16"
    minift.load(directory / "seed-43").predict(TEXTS)
    assert len(times) == 1


def test_a_model_of_nan_is_never_the_best(tmp_path, base, monkeypatch):
    """What breaks in the last step of an epoch shows in validation alone."""
    train_step = minift.training.step

    def breaking(training, *rest):
        taken = train_step(training, *rest)
        if rest[-1].step == 11:  # the last one of the second epoch
            with torch.no_grad():
                next(training.model.parameters()).fill_(torch.nan)
        return taken

    monkeypatch.setattr("minift.training.step", breaking)
    for monitor in ("loss", "accuracy"):
        with pytest.raises(Diverged, match="the validation loss is nan"):
            run(tmp_path, base, monitor, monitor=monitor)
        assert [p["label"] for p in minift.load(tmp_path / monitor).predict(TEXTS)]  # of the first epoch
        assert all(tensor.isfinite().all() for tensor in read(tmp_path / monitor / "model").tensors.values())


def test_a_run_of_one_step_trains(tmp_path, base):
    directory = run(tmp_path, base, epochs=1, batch_size=64)
    assert [event["lr"] for event in events(directory) if event["split"] == "train"] == [1e-2]


def test_wrong_flags_are_one_line(capsys):
    for argv, said in (
        (["--batchsize", "8"], "did you mean --batch-size"),
        (["--lr"], "expected one argument"),
        (["--lr", "fast"], "invalid float value"),
        (["--mixup", "0.2"], "--mixup belongs to image-classification, and the task is text-classification"),
        (["--task", "image-classification", "--max-length", "9"], "--max-length belongs to text-classification"),
        (["--lr", "1e-3,nan"], "--lr nan: expected a number above 0"),
        (["--lr", "1e-3,1e-2", "--seeds", "2"], "give one with --seeds"),
        (["--lr", "1e-3,1e-2", "--valid", "none"], "nothing to choose the best by"),
        (["--model", ""], "--model is empty"),
        (["--unfreeze", ""], "--unfreeze is empty"),
        (["--optimizer", ""], "--optimizer is empty"),
        (["--accumulate", "99999999999999999999"], "at most 1e+06"),
        (["--epochs", "9" * 20], "--epochs 99999999999999999999: expected a number at least 0 and at most 1e+06"),
        (["--lr", "1e-3,1e-4,0.001"], "--lr 0.001,0.0001,0.001: a value stands there twice"),
        (["--method", "probe", "--solver", "lbfgs", "--on-nonfinite", "skip"], "--on-nonfinite with --solver lbfgs"),
    ):
        with pytest.raises(UserError) as error:
            train.main(argv)
        assert said in str(error.value) and "\n" not in str(error.value)


def test_flags_that_have_no_effect_are_said(tmp_path, base, capsys):
    rows = str(rows_file(tmp_path / "rows.csv"))
    flags = ["--lr", "1", "--epochs=9", "--lr", "2", "--epochs", "0", "--compile", "--no-compile", "--penalty", "l2sp", "--quiet"]
    train.main(["--train", rows, "--model", str(base), *flags, "--out", str(tmp_path / "run")])
    said = capsys.readouterr().err
    assert [line for line in said.splitlines() if "times" in line] == [
        f"note: {name} is given 2 times; the last one counts" for name in ("--lr", "--epochs", "--compile")
    ]
    assert "note: --epochs 0: nothing is trained, so these have no effect: --lr, --penalty\n" in said


def test_a_plan_trains_nothing_and_leaves_nothing(tmp_path, base, capsys):
    for method in ("full", "probe"):
        directory = run(tmp_path, base, plan=None, method=method)
        printed = capsys.readouterr().out
        assert not directory.exists() and "in all    about" in printed and "█" in printed and "highest 0.0" in printed
        assert ("s for 2 times\n" if method == "full" else " times, the frozen stages once\n") in printed  # of scoring


def test_a_plan_of_several_seeds(tmp_path, base, capsys):
    directory = run(tmp_path, base, plan=None, seeds=3)
    printed = capsys.readouterr().out
    one, all_three = re.search(r"in all    about ([\d,]+) s a seed, ([\d,]+) s for 3; memory", printed).groups()
    assert not directory.exists() and printed.count("in all") == 1
    assert abs(int(all_three.replace(",", "")) - 3 * int(one.replace(",", ""))) <= 2  # both are rounded


@pytest.mark.parametrize(
    ("method", "pool", "to", "reason"),
    [
        *((method, "cls", "hf", None) for method in ("full", "partial:stages=1", "probe", "bitfit", "lora", "dora", "ia3")),
        *((method, "cls", "adapters", None) for method in ("houlsby:norms=False", "pfeiffer")),
        *((method, "cls", "peft", None) for method in ("prefix:shift=true", "prompt:pooler=all")),
        ("houlsby", "cls", None, "train with houlsby:norms=False"),
        ("prefix", "cls", None, "train with prefix:shift=true"),
        ("prompt", "cls", None, "train with prompt:pooler=all"),
        ("prefix:shift=true+lora", "cls", None, "a directory of peft's holds one of"),
        ("pfeiffer", "mean", None, "train with --pool cls"),
        ("full", "mean", None, "the head reads pool=mean, which transformers' classifier cannot; train with --pool cls"),
    ],
)
def test_the_command_at_the_end_brings_the_run_out(tmp_path, base, capsys, method, pool, to, reason):
    """Of every method: what is printed works, or says how to train so that it would."""
    run(tmp_path, base, method=method, pool=pool, epochs=0, max_length=12)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("export    ")]
    if reason:
        assert line.startswith("export    not as a plain model of transformers: ") and reason in line
        return
    python, script, *arguments = shlex.split(line.removeprefix("export    "))
    assert (python, script, arguments[1:3]) == ("python", "convert.py", ["--to", to])
    assert not convert.main(arguments) and any(Path(arguments[-1]).iterdir())


def test_every_method_has_a_command_at_the_end():
    (mark,) = test_the_command_at_the_end_brings_the_run_out.pytestmark
    assert {case[0].partition(":")[0] for case in mark.args[1] if case[2]} == {*METHODS}


def test_precision_and_checkpointing_reach_the_run(tmp_path, base, capsys):
    for precision in ("float32", "bfloat16", "float16"):
        directory = run(tmp_path, base, name=precision, precision=precision, checkpoint_activations=None)
        assert config_of(directory)["settings"]["precision"] == precision
        assert 0 < result(directory)["valid"]["loss"] < 2
    assert ("float16 on a CPU" in capsys.readouterr().err) == (not torch.cuda.is_available())


@pytest.mark.parametrize("unfreeze", ["gradual", "chain:every=3", "all-at:n=1"])
def test_unfreezing_reaches_the_run(tmp_path, base, capsys, unfreeze):
    run(tmp_path, base, unfreeze=unfreeze, epochs=3)
    printed = capsys.readouterr().out
    assert "step 1: head trains\n" in printed and printed.count("step ") >= 2
    with pytest.raises(UserError, match="nothing to switch"):
        run(tmp_path, base, name="other", unfreeze=unfreeze, method="probe")
