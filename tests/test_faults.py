"""Faults of a kind that a table finds: devices, batches of one picture, figures of the data, the default dtype."""

import os
import shutil
import signal
import sys
from itertools import product

import numpy as np
import pytest
import torch
from tiny import TEXTS, converted_directory, converted_resnet, photographs, rows_file, tiny_resnet

import minift
import train
from minift import generate, predict
from minift.data.batching import shuffled, without_lone
from minift.data.tokenising import encode
from minift.errors import UserError, look_up
from minift.finetuned import choose_device
from minift.generation import Sampling, Written
from minift.methods import METHODS
from minift.models.resnet import ResNet, ResNetConfig
from minift.optim import OPTIMIZERS
from minift.optim.averaging import AVERAGING
from minift.optim.schedules import SCHEDULES
from minift.penalties import PENALTIES
from minift.pretrained import read_tokenizer
from minift.runs import forget_peak_memory, peak_memory_mb
from minift.specs import options_of, parse


@pytest.mark.parametrize(
    "name", ["meta", "hpu", "privateuseone", "xpu", "fpga", "ort", "nothing", "cpu:-1", "", "cuda:" + "9" * 30]
)
def test_a_device_that_cannot_compute_is_refused(name):
    with pytest.raises(UserError, match=f"--device {name}: not available here") as caught:
        choose_device(name)
    assert "\n" not in str(caught.value)
    assert choose_device("cpu").type == "cpu"


@pytest.mark.parametrize("method", ["full", "lora:rank=2", "prefix:length=3"])
def test_the_callers_default_dtype_has_no_part(tmp_path, method):
    base, out = converted_directory(tmp_path / "base"), tmp_path / "run"
    flags = ["--epochs", "1", "--method", method, "--precision", "float32", "--max-length", "20"]
    train.main(["--train", str(rows_file(tmp_path / "rows.csv")), "--model", str(base), *flags, "--out", str(out)])
    expected = minift.load(out, "cpu").predict(TEXTS)
    torch.set_default_dtype(torch.float64)
    try:
        assert minift.load(out, "cpu").predict(TEXTS) == expected
    finally:
        torch.set_default_dtype(torch.float32)


# ---- a last batch of one picture ----


def test_a_lone_unit_joins_the_batch_before_it():
    for n, size in ((17, 4), (9, 8), (33, 32), (201, 4), (1, 4), (3, 1), (16, 4)):
        for epoch in range(8):
            plain = shuffled(np.ones(n, dtype=np.int64), size, 0, epoch)
            joined = without_lone(plain)
            assert sorted(np.concatenate(joined)) == list(range(n))
            if size == 1 or n == 1 or n % size != 1:
                assert joined is plain
            else:
                assert len(joined) == len(plain) - 1 and sorted(map(len, joined))[-1] == size + 1 and min(map(len, joined)) > 1
                assert all((a == b).all() for a, b in zip(joined, without_lone(plain), strict=True))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A ResNet whose last map is 1 x 1 for images of 32 x 32; 9 photographs."""
    place = tmp_path_factory.mktemp("small")
    config = ResNetConfig((1, 1, 1, 1), 8, (16, 24, 24, 32))
    torch.manual_seed(0)
    converted_resnet(place / "net", ResNet(config, "mean"))
    photographs(place / "photos", 4)
    (place / "photos" / "ants" / "again.jpg").write_bytes((place / "photos" / "ants" / "0.jpg").read_bytes())
    return place


def run(place, out, *flags):
    common = ["--task", "image-classification", "--train", str(place / "photos"), "--model", str(place / "net"), "--valid", "none"]
    train.main([*common, "--workers", "0", "--epochs", "2", "--precision", "float32", "--out", str(out), *flags])


def test_a_last_batch_of_one_picture_over_a_map_of_one(small, tmp_path, capsys):
    run(small, tmp_path / "plan", "--batch-size", "4", "--method", "full", "--plan")
    run(small, tmp_path / "run", "--batch-size", "4", "--method", "full")
    assert "4 steps of 4 rows, 2 epochs" in capsys.readouterr().out  # of 4 and of 5
    run(small, tmp_path / "frozen", "--batch-size", "1", "--method", "lora:rank=2")  # no BatchNorm trains
    with pytest.raises(UserError, match=r"--batch-size 1: BatchNorm takes its statistics from a batch.*1 x 1"):
        run(small, tmp_path / "one", "--batch-size", "1", "--method", "full")
    assert not (tmp_path / "one").exists()


def test_larger_maps_take_a_batch_of_one(small, tmp_path):
    converted_resnet(tmp_path / "net", tiny_resnet())  # two resolutions: 4 x 4
    (tmp_path / "photos").symlink_to(small / "photos")
    run(tmp_path, tmp_path / "run", "--batch-size", "1", "--epochs", "1", "--method", "full")


# ---- figures of the data ----


@pytest.mark.parametrize("pairs", [None, ["a b c"] * 3 + ["the very " * 40]])
def test_the_longest_row_is_told_as_it_was_before_it_was_cut(tmp_path, pairs):
    tokenizer = read_tokenizer(converted_directory(tmp_path / "base"))
    texts = ["the film", "good " * 9, "a slow book, " * 31, ""]
    plain = [len(tokenizer.encode(*([text] if pairs is None else [text, pairs[i]]))) for i, text in enumerate(texts)]
    for length in (6, 12, 30, 1000):
        tokens, _, uncut = encode(tokenizer, texts, pairs, length, filler=0)
        assert uncut.tolist() == plain
        assert [len(ids) for ids in tokens] == [min(n, length) for n in plain]


@pytest.mark.skipif(sys.platform != "linux" or not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset")
def test_the_tokenizer_holds_a_part_of_the_rows_at_once(tmp_path):
    """Of every token, it holds some 220 bytes besides the id: 330 MB of these rows."""
    tokenizer = read_tokenizer(converted_directory(tmp_path / "base"))
    texts = ["the film " * 150] * 5000
    forget_peak_memory()
    before = peak_memory_mb(torch.device("cpu"))
    encode(tokenizer, texts, None, 128, filler=0)
    assert peak_memory_mb(torch.device("cpu")) - before < 150


# ---- numbers of specs ----


@pytest.mark.parametrize("value", ["1e-300", "1e-45", "1e38", "-1e308"])
def test_numbers_beyond_float32_are_refused_in_every_spec(value):
    tables = {
        "--penalty": PENALTIES,
        "--schedule": SCHEDULES,
        "--average": AVERAGING,
        "--optimizer": OPTIMIZERS,
        "--method": METHODS,
    }
    checked = 0
    for flag, known in tables.items():
        for name in known:
            options = options_of(look_up(known, name, flag))
            for option in (option for option, default in options.items() if type(default) in (float, tuple)):
                with pytest.raises(UserError, match=f"{option} is "):
                    parse(f"{name}:{option}={value}", known, flag)
                checked += 1
    assert checked > 15


# ---- what a terminal would obey ----

BELL = "red \x1b[31m\x9b2J\r\tand\nmore"


class Once:
    """A decoder that writes a text in two pieces."""

    def write(self, prompts, sampling):
        yield [Written([1], BELL[:9])]
        yield [Written([1, 2], BELL, "end of text")]


@pytest.mark.parametrize("terminal", [True, False])
def test_control_characters_are_escaped_on_a_terminal_alone(tmp_path, terminal, capsys, monkeypatch):
    base, rows = converted_directory(tmp_path / "base"), rows_file(tmp_path / "rows.csv")
    train.main(
        ["--train", str(rows), "--model", str(base), "--epochs", "0", "--precision", "float32", "--out", str(tmp_path / "run")]
    )
    (tmp_path / "new.jsonl").write_text('{"text": "the \\u009b2J film"}\n')
    capsys.readouterr()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    assert generate.stream(Once(), [1], Sampling()) == BELL
    shown = capsys.readouterr().out
    assert shown == (r"red \x1b[31m\x9b2J\r" + "\tand\nmore\n" if terminal else BELL + "\n")
    predict.main([str(tmp_path / "run"), BELL])
    predict.main([str(tmp_path / "run"), "--data", str(tmp_path / "new.jsonl")])
    shown = capsys.readouterr().out
    assert ("\x1b" in shown, shown.count("\x9b")) == ((False, 0) if terminal else (True, 2))


# ---- a pipe or a directory where a file is expected ----

pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")


@pytest.fixture
def no_waiting():
    """Whoever waits for a pipe is interrupted."""

    def interrupt(number, frame):
        raise AssertionError("it waits for a pipe")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run, with the checkpoint of its one epoch."""
    place = tmp_path_factory.mktemp("saved")
    base, rows = converted_directory(place / "base"), rows_file(place / "rows.csv", 12)
    flags = ["--epochs", "1", "--keep", "1", "--precision", "float32", "--max-length", "20", "--quiet"]
    train.main(["--train", str(rows), "--model", str(base), *flags, "--out", str(place / "run")])
    return place


def resume(place):
    train.main(["--resume", str(place / "run"), "--epochs", "2", "--quiet"])


def start(place):
    train.main(["--train", str(place / "rows.csv"), "--model", str(place / "base"), "--epochs", "0", "--out", str(place / "new")])


FILES = {
    "base/config.json": (start, "a file is expected"),
    "base/model.safetensors": (start, "a file is expected"),
    "base/tokenizer.json": (start, "a file is expected"),
    "run/config.json": (resume, "a file is expected"),
    "run/metrics.jsonl": (resume, "a file is expected"),
    "run/result.json": (resume, "a file is expected"),
    "run/checkpoints/epoch-1-step-1/manifest.json": (resume, "there is no manifest.json"),
    "run/model/config.json": (lambda place: minift.load(place / "run", "cpu"), "a file is expected"),
}


@pipes
@pytest.mark.parametrize(("name", "kind"), [*product(FILES, ("mkfifo", "mkdir"))])
def test_a_pipe_or_a_directory_is_no_file_of_a_run(saved, tmp_path, no_waiting, name, kind):
    for part in ("base", "run"):
        shutil.copytree(saved / part, tmp_path / part)
    rows_file(tmp_path / "rows.csv")
    (tmp_path / name).unlink()
    getattr(os, kind)(tmp_path / name)
    use, said = FILES[name]
    with pytest.raises(UserError, match=said) as error:
        use(tmp_path)
    assert "\n" not in str(error.value)


@pipes
def test_a_pipe_among_photographs_texts_and_notes_is_passed_over(tmp_path, no_waiting, monkeypatch, capsys):
    photos, texts = photographs(tmp_path / "photos", 3), tmp_path / "texts"
    for label in ("good", "bad"):
        (texts / label).mkdir(parents=True)
        for i, text in enumerate(TEXTS):
            (texts / label / f"{i}.txt").write_text(text)
    os.mkfifo(photos / "ants" / "pipe.jpg")
    os.mkfifo(texts / "bad" / "pipe.txt")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "minift").mkdir()
    os.mkfifo(tmp_path / "minift" / "images.jsonl")
    images = ["--task", "image-classification", "--train", str(photos), "--model", str(converted_resnet(tmp_path / "net"))]
    train.main([*images, "--valid", "none", "--workers", "0", "--epochs", "0", "--out", str(tmp_path / "one")])
    said = capsys.readouterr()
    assert "files left out: 1 no regular file" in said.out and "not noted for the next run" in said.err
    train.main(
        [
            "--train",
            str(texts),
            "--model",
            str(converted_directory(tmp_path / "base")),
            "--epochs",
            "0",
            "--out",
            str(tmp_path / "two"),
        ]
    )
    assert "files left out: 1 no regular file" in capsys.readouterr().out


# ---- several runs that cannot begin ----


@pytest.mark.parametrize("several", [["--seeds", "2"], ["--lr", "1e-3,1e-4"]])
def test_several_runs_of_a_missing_file_leave_no_directory(tmp_path, several):
    base = converted_directory(tmp_path / "base")
    with pytest.raises(UserError, match="no such file"):
        train.main(["--train", str(tmp_path / "gone.csv"), "--model", str(base), *several, "--out", str(tmp_path / "runs" / "one")])
    assert not (tmp_path / "runs" / "one").exists()
