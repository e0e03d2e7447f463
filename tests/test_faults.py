"""Faults of a kind that a table finds: devices, batches of one picture, figures of the data, the default dtype."""

import os
import sys

import numpy as np
import pytest
import torch
from tiny import TEXTS, converted_directory, converted_resnet, photographs, rows_file, tiny_resnet

import minift
import train
from minift.data.batching import shuffled, without_lone
from minift.data.tokenising import encode
from minift.errors import UserError
from minift.finetuned import choose_device
from minift.models.resnet import ResNet, ResNetConfig
from minift.pretrained import read_tokenizer
from minift.runs import forget_peak_memory, peak_memory_mb


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
