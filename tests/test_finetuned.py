"""A run in use from Python: inputs of any kind, threads, random streams, and runs of an older layout."""

import json
import threading

import pytest
import torch
from tiny import TEXTS, converted_directory, rows_file

import minift
import train
from minift.errors import UserError


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    place = tmp_path_factory.mktemp("run")
    base = converted_directory(place / "base", pool="mean")
    flags = ["--model", str(base), "--precision", "float32", "--epochs", "2", "--lr", "1e-2", "--method", "lora:rank=2"]
    train.main(["--train", str(rows_file(place / "rows.csv")), *flags, "--out", str(place / "run")])
    return place / "run"


def test_inputs_of_any_kind(directory):
    tuned = minift.load(directory)
    expected = tuned.predict(TEXTS)
    assert tuned.predict(text for text in TEXTS) == tuned.predict(map(str, TEXTS)) == tuned.predict(iter(tuple(TEXTS))) == expected
    assert tuned.predict([]) == tuned.predict(iter([])) == []
    for wrong, said in (("one text", "a list"), (TEXTS[0].encode(), "a list"), ([1], "input 0"), (["a", None], "input 1")):
        with pytest.raises(UserError, match=said):
            tuned.predict(wrong)
    with pytest.raises(UserError, match="single texts"):
        tuned.predict(TEXTS, iter(TEXTS))


def test_threads_predict_together(directory):
    tuned = minift.load(directory)
    expected, wrong = tuned.predict(TEXTS), []

    def work():
        for _ in range(20):
            try:
                if tuned.predict(TEXTS) != expected:
                    wrong.append("other predictions")
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_loading_draws_nothing_from_the_global_stream(directory):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    minift.load(directory)
    assert torch.equal(torch.rand(3), expected)


def test_a_run_of_the_older_layout_is_read(directory, tmp_path):
    """Parts of the task stood among the settings, and the layout had flags for all tasks."""
    path = directory / "model" / "config.json"
    original = path.read_text()
    config, expected = json.loads(original), minift.load(directory).predict(TEXTS)
    moved = {name: config["task"].pop(name) for name in ("max_length", "pairs")}
    config["task"].pop("written")
    config["settings"] |= moved | {"layout": config["settings"]["layout"] | {"skip_bad_images": False}}
    path.write_text(json.dumps(config))
    try:
        tuned = minift.load(directory)
        assert tuned.predict(TEXTS) == expected and (tuned.task.max_length, tuned.task.pairs) == (40, False)
        tuned.score(tuned.task.read(str(directory.parent / "rows.csv"), tuned.layout))
    finally:
        path.write_text(original)
