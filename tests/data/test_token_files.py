"""Token ids that are kept from start to start: those without a file, to the last one, whatever has happened to the file."""

import os
import time

import numpy as np
import pytest
import torch
from contract.tasks import numbers_file, sets_file
from test_train import run
from tiny import TEXTS, byte_checkpoint, converted_directory, rows_file

from minift.data import stored, token_files
from minift.data.layout import TextLayout
from minift.data.texts import read_texts
from minift.data.token_files import tokenised
from minift.data.tokenising import encode, encoded_chunks
from minift.pretrained import read, read_json
from minift.tasks.multi_label_classification import MultiLabelClassification
from minift.tasks.text_classification import TextClassification
from minift.tasks.text_regression import TextRegression

LONG = [*TEXTS * 3, "", "good " * 50, "é 中 - ü"]
PAIRS = [*TEXTS[::-1] * 3, "never " * 30, "a", ""]
BERT = {"max_length": 12, "filler": 0}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "minift" / "tokens"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return converted_directory(tmp_path_factory.mktemp("base") / "bert")


@pytest.fixture(scope="module")
def tokenizer(base):
    return read(base).tokenizer


def listed(found) -> tuple:
    tokens, types, uncut = found
    return [ids.tolist() for ids in tokens], types and [ids.tolist() for ids in types], uncut.tolist()


def never(*_):
    raise AssertionError("tokenised again")


@pytest.mark.parametrize("pairs", [None, PAIRS])
@pytest.mark.parametrize("length", [5, 12, 40, 1000])
def test_ids_are_those_without_a_file(tokenizer, place, monkeypatch, pairs, length):
    monkeypatch.setattr("minift.data.tokenising.CHUNK", 4)
    right = listed(encode(tokenizer, LONG, pairs, length, 0))
    assert max(map(len, right[0])) <= length and (max(right[2]) > length) == (length < 1000)
    for told in ("kept for the next start", "as an earlier start has left them"):
        decided = []
        assert listed(tokenised(tokenizer, LONG, pairs, length, 0, decided)) == right
        assert decided == [f"token ids of {len(LONG)} rows {told}{', in' if 'earlier' in told else ' in'} {place}"]
        monkeypatch.setattr(token_files, "encoded_chunks", never)
    (file,) = place.iterdir()
    tokens = sum(map(len, right[0]))
    cut = any(len(ids) < n for ids, n in zip(right[0], right[2], strict=True))
    assert file.stat().st_size == tokens * (1 if pairs is None else 2) + 4 * len(LONG) * (1 + cut) + 48  # a vocabulary below 256


def test_a_text_without_a_token(place):
    """GPT-2's tokenizer makes nothing of an empty text, whose place a filler takes; and has more than 256 ids."""
    tokenizer, texts = byte_checkpoint().tokenizer, ["", "abc", ""]
    for _ in range(2):
        found = tokenised(tokenizer, texts, None, 9, 256, [])
        assert listed(found) == listed(encode(tokenizer, texts, None, 9, 256)) and found[0][2].tolist() == [256]
        assert found[2].tolist() == [0, 3, 0]


def test_another_text_or_setting_has_a_file_of_its_own(tokenizer, place):
    other = byte_checkpoint().tokenizer
    arguments = [
        (tokenizer, TEXTS, None, 12, 0),
        (tokenizer, TEXTS[::-1], None, 12, 0),
        (tokenizer, [*TEXTS[:4], TEXTS[4] + TEXTS[5]], None, 12, 0),
        (tokenizer, TEXTS, None, 13, 0),
        (tokenizer, TEXTS, TEXTS, 12, 0),
        (tokenizer, TEXTS, PAIRS[:6], 12, 0),
        (other, TEXTS, None, 12, 0),
        (other, TEXTS, None, 12, 1),
    ]
    for one in arguments:
        assert listed(tokenised(*one, [])) == listed(encode(*one))
    assert len(list(place.iterdir())) == len(arguments)


@pytest.mark.parametrize("pairs", [None, PAIRS])
def test_a_damaged_file_is_made_anew(tokenizer, place, monkeypatch, pairs):
    right = listed(encode(tokenizer, LONG, pairs, **BERT))
    tokenised(tokenizer, LONG, pairs, **BERT, decided=[])
    (file,) = place.iterdir()
    content = file.read_bytes()
    damages = [content[:n] for n in (0, 1, 47, 48, len(content) // 2, len(content) - 1)] + [content + b"\0", b"\0" * len(content)]
    for at in (0, len(content) // 3, len(content) - 49, len(content) - 48, len(content) - 40, len(content) - 1):
        damages.append(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
    for damage in damages:
        file.write_bytes(damage)
        decided = []
        assert listed(tokenised(tokenizer, LONG, pairs, **BERT, decided=decided)) == right
        assert decided == [f"token ids of {len(LONG)} rows were damaged, made anew in {place}"]
        assert file.read_bytes() == content and list(place.iterdir()) == [file]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_in_its_place_is_not_waited_for(tokenizer, place):
    place.mkdir(parents=True)
    os.mkfifo(place / token_files.key(tokenizer, LONG, None, **BERT))
    for told in ("were damaged, made anew", "as an earlier start has left them,"):
        decided = []
        assert listed(tokenised(tokenizer, LONG, None, **BERT, decided=decided)) == listed(encode(tokenizer, LONG, None, **BERT))
        assert decided == [f"token ids of {len(LONG)} rows {told} in {place}"]


HOMES = {  # $XDG_CACHE_HOME, $HOME -> where the cache is; None: nowhere
    ("/c", "/h"): "/c/minift",
    ("", "/h"): "/h/.cache/minift",
    ("c", "/h"): "/h/.cache/minift",  # another directory wherever a run is started is no cache
    ("c", "h"): None,
    ("", ""): None,
    ("", "~"): None,  # what a user has whom the system does not know
}


@pytest.mark.skipif(os.name == "nt", reason="paths as POSIX has them")
@pytest.mark.parametrize(("cache", "home"), HOMES)
def test_the_cache_is_one_place_for_all_directories(tokenizer, tmp_path, monkeypatch, cache, home):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    monkeypatch.setenv("HOME", home)
    if found := HOMES[cache, home]:
        assert str(stored.user_cache()) == found
        return
    decided = []
    assert listed(tokenised(tokenizer, LONG, None, **BERT, decided=decided)) == listed(encode(tokenizer, LONG, None, **BERT))
    assert "not kept for the next start" in decided[0] and not list(tmp_path.iterdir())


def test_two_processes_may_write_at_once(tokenizer, place, monkeypatch):
    """The second writes all of it while the first is in the midst of it."""
    monkeypatch.setattr("minift.data.tokenising.CHUNK", 4)
    second = []

    def interrupted(*arguments):
        for i, chunk in enumerate(encoded_chunks(*arguments)):
            yield chunk
            if i == 1:
                monkeypatch.setattr(token_files, "encoded_chunks", encoded_chunks)
                second.append(tokenised(tokenizer, LONG, PAIRS, **BERT, decided=[]))
                assert len(list(place.iterdir())) == 2

    monkeypatch.setattr(token_files, "encoded_chunks", interrupted)
    first = tokenised(tokenizer, LONG, PAIRS, **BERT, decided=[])
    assert listed(first) == listed(*second) == listed(encode(tokenizer, LONG, PAIRS, **BERT))
    assert len(list(place.iterdir())) == 1


def test_a_process_that_is_stopped_leaves_nothing(tokenizer, place, monkeypatch):
    def stopped(*arguments):
        yield next(encoded_chunks(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(token_files, "encoded_chunks", stopped)
    with pytest.raises(KeyboardInterrupt):
        tokenised(tokenizer, LONG, None, **BERT, decided=[])
    assert not list(place.iterdir())


def test_without_a_place_the_ids_are_in_memory(tokenizer, place):
    place.parent.parent.write_text("a file where the directory would be")
    decided = []
    found = tokenised(tokenizer, LONG, None, **BERT, decided=decided)
    assert listed(found) == listed(encode(tokenizer, LONG, None, **BERT))
    assert decided == [f"token ids of {len(LONG)} rows not kept for the next start: {place}: Not a directory"]


def test_what_no_start_has_used_for_a_month_is_deleted(tokenizer, place):
    for texts in (TEXTS, TEXTS[:3]):
        tokenised(tokenizer, texts, None, **BERT, decided=[])
    old = time.time() - 31 * 86400
    for file in place.iterdir():
        os.utime(file, (old, old))
    tokenised(tokenizer, TEXTS, None, **BERT, decided=[])  # is used again
    tokenised(tokenizer, TEXTS[:2], None, **BERT, decided=[])
    assert len(list(place.iterdir())) == 2
    assert all(file.stat().st_mtime > old + 86400 for file in place.iterdir())


@pytest.mark.parametrize(
    ("task", "file", "label"),
    [
        (TextClassification(["negative", "positive"], "cls", 9, False), rows_file, "name"),
        (TextRegression("cls", 9, False, 0.0, 1.0, False), numbers_file, "number"),
        (
            MultiLabelClassification(["good", "rare", "very"], "cls", 9, False, thresholds=[0.5] * 3, tuning="one", tuned_on=0),
            sets_file,
            "names",
        ),
    ],
)
def test_tasks(tmp_path, place, base, monkeypatch, task, file, label):
    """Of a file that is no smaller than a large one the units are those in memory, the second start included."""
    path, checkpoint = file(tmp_path / "rows.csv"), read(base)
    prepared = []
    for size in (stored.LARGE, 0, 0):
        monkeypatch.setattr(stored, "LARGE", size)
        examples = read_texts(path, TextLayout(), label=label)
        data = task.prepare(examples.take(np.arange(40)[::-1]), checkpoint)
        batches = data.batches(data.order(7, 1, 0), torch.device("cpu"), 0)
        prepared.append([[None if x is None else x.tolist() for x in (*one.inputs, *one.targets)] for one in batches])
        prepared[-1].append((data.describe(), data.lengths.tolist()))
        assert place.exists() == (size == 0)
    assert prepared[0] == prepared[1] == prepared[2] and len(list(place.iterdir())) == 1


def test_runs_are_alike_and_small_data_leaves_no_file(tmp_path, place, base, monkeypatch, capsys):
    results = []
    starts = ((stored.LARGE, None), (0, "kept for the next start in"), (0, "as an earlier start has left them, in"))
    for i, (size, told) in enumerate(starts):
        monkeypatch.setattr(stored, "LARGE", size)
        results.append(read_json(run(tmp_path, base, f"run{i}") / "result.json"))
        printed = capsys.readouterr().out
        assert printed.count(told) == 2 if told else "token ids" not in printed  # of the training and the validation rows
        assert place.exists() == (told is not None)
    assert results[0]["valid"] == results[1]["valid"] == results[2]["valid"]
