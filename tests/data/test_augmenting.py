"""Augmentation of texts: how often what is drawn, that no text is emptied, that evaluation sees none of it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_train import run
from tiny import TEXTS, converted_directory

import train
from minift.data.augmenting import augmented, chosen, cutoff, eda
from minift.data.layout import TextLayout
from minift.data.texts import read_texts
from minift.data.tokenising import Encoded, encode
from minift.errors import UserError
from minift.pretrained import read

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return read(converted_directory(tmp_path_factory.mktemp("base") / "bert")).tokenizer


def rows(tokenizer, pairs=None, max_length=40, **flags):
    """(the rows as evaluation has them, the rows as training has them)"""
    tokens, types, uncut = encode(tokenizer, TEXTS, pairs, max_length, 0)
    lengths, labels = np.array([len(ids) for ids in tokens]), np.arange(len(TEXTS))
    plain = Encoded(tokens, types, lengths, (labels,), 0, max_length, uncut)
    examples = read_texts(TEXTS if pairs is None else zip(TEXTS, pairs, strict=True), TextLayout(), labelled=False)
    options = SimpleNamespace(**{"augment": None, "paraphrases": None, "seed": 5} | flags)
    return plain, augmented(plain, examples, tokenizer, options)


def batch(data, epoch, units=None):
    (one,) = data.batches([np.arange(len(data)) if units is None else np.array(units)], CPU, epoch)
    return one


def bits(one):
    return [None if x is None else x.tolist() for x in (*one.inputs, *one.targets)]


def texts_of(tokenizer, data, epoch):
    return [tokenizer.decode(ids.tolist()) for ids in batch(data, epoch).inputs[0]]


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_each_word_is_deleted_with_the_probability_that_is_given(share):
    words, n = [f"w{i}" for i in range(20)], 2000
    kept = [eda(" ".join(words), np.random.default_rng((0, i)), deletion=share, swap=0).split() for i in range(n)]
    deviation = (share * (1 - share) / n) ** 0.5
    for word in words:
        assert abs(sum(word not in row for row in kept) / n - share) < 4 * deviation
    assert all(row == [word for word in words if word in row] for row in kept)  # without swaps they stay in order


def test_no_text_is_emptied():
    found = {eda("a b c", np.random.default_rng(i), deletion=0.99, swap=0) for i in range(500)}
    assert {"a", "b", "c"} <= found and "" not in found
    assert eda("word", np.random.default_rng(0)) == "word" and eda(" ", np.random.default_rng(0)) == " "


def test_swaps_are_of_as_many_words_as_said():
    words = [str(i) for i in range(20)]
    for swap, most in ((0.05, 2), (0.1, 4), (0.2, 8)):  # max(1, floor(20 swap)) exchanges move at most two words each
        moved = []
        for i in range(300):
            row = eda(" ".join(words), np.random.default_rng(i), deletion=0, swap=swap).split()
            assert sorted(row) == sorted(words)
            moved.append(sum(a != b for a, b in zip(row, words, strict=True)))
        assert max(moved) == most
    assert {eda("a b", np.random.default_rng(i), deletion=0, swap=0.1) for i in range(9)} == {"b a"}  # at least one


def test_cutoff_takes_its_share_and_no_special_token():
    real = np.array([False, *[True] * 25, False, False])
    cuts = np.array([cutoff(real, np.random.default_rng(i), rate=0.2) for i in range(1000)])
    assert (cuts.sum(1) == 5).all() and not cuts[:, ~real].any()
    assert np.abs(cuts[:, real].mean(0) - 0.2).max() < 4 * (0.16 / 1000) ** 0.5


@pytest.mark.parametrize("pairs", [None, TEXTS[::-1]])
def test_cutoff_hides_tokens_and_leaves_the_ids_in_place(tokenizer, pairs):
    plain, data = rows(tokenizer, pairs, augment="cutoff:rate=0.5")
    (ids, mask, types), (same, full, types_too) = batch(data, 0).inputs, batch(plain, None).inputs
    assert torch.equal(ids, same) and (types is None or torch.equal(types, types_too))
    hidden = full & ~mask
    special = torch.isin(ids, torch.tensor(tokenizer.encode("", "").ids))
    assert not (hidden & special).any() and not (mask & ~full).any()
    assert hidden.sum(1).tolist() == ((full & ~special).sum(1) // 2).tolist()


@pytest.mark.parametrize("augment", ["eda:deletion=0.3,swap=0.3", "cutoff:rate=0.3"])
def test_draws_are_a_function_of_seed_epoch_and_row(tokenizer, augment):
    plain, data = rows(tokenizer, augment=augment)
    again, other = (rows(tokenizer, augment=augment, seed=seed)[1] for seed in (5, 6))
    assert bits(batch(data, 0)) == bits(batch(again, 0))
    assert bits(batch(data, 0)) != bits(batch(data, 1)) and bits(batch(data, 0)) != bits(batch(other, 0))
    ids, mask = batch(data, 3).inputs[:2]
    for row in range(len(TEXTS)):  # whatever stands beside it
        alone, seen = batch(data, 3, [row]).inputs[:2]
        n = alone.shape[1]
        assert torch.equal(alone[0], ids[row, :n]) and (seen is None or torch.equal(seen[0], mask[row, :n]))
    assert bits(batch(data, None)) == bits(batch(plain, None))
    assert data.variants is None and not data.as_evaluated  # what frozen stages make of it cannot be kept


def test_a_row_is_its_text_or_one_of_its_paraphrases(tokenizer, tmp_path, capsys):
    file = tmp_path / "paraphrases.csv"
    file.write_text(f'text,paraphrase\n{TEXTS[0]},the film was fast\n{TEXTS[0]},"the film , again"\nof another split,never seen\n')
    _, data = rows(tokenizer, paraphrases=str(file))
    assert f"{file}: 1 of the 2 texts are no training rows and are left out" in capsys.readouterr().out
    seen = [texts_of(tokenizer, data, epoch) for epoch in range(90)]
    first = [row[0] for row in seen]
    assert {*first} == {TEXTS[0], "the film was fast", "the film, again"}  # the decoder joins the comma
    assert all(18 <= first.count(text) <= 45 for text in {*first})  # 30 expected, deviation 4.5
    assert all(row[1:] == seen[0][1:] for row in seen)
    assert texts_of(tokenizer, data, None)[0] == TEXTS[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,other\na,b\n", "no column 'paraphrase'; expected a table with the columns text and paraphrase"),
        ("text,paraphrase\na, \n", ":2: the paraphrase is empty"),
        ("text,paraphrase\na,b\n", "none of the 1 texts is that of a training row"),
    ],
)
def test_files_of_paraphrases_that_are_refused(tokenizer, tmp_path, content, message):
    (tmp_path / "p.csv").write_text(content)
    with pytest.raises(UserError) as error:
        rows(tokenizer, paraphrases=str(tmp_path / "p.csv"))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("spec", ["synonyms", "eda:deletion=1", "cutoff:rate=-0.1", "eda:insert=0.1", "cutoff:rate=x"])
def test_augmentations_that_are_refused(spec):
    with pytest.raises(UserError, match="--augment"):
        chosen(spec)


def test_other_paraphrases_than_at_the_start_are_refused_on_resume(tmp_path):
    file, flags = tmp_path / "p.csv", {"keep": "1", "schedule": "constant", "valid": "none"}
    file.write_text("text,paraphrase\nthe film was good,a good film\n")
    base = converted_directory(tmp_path / "base", pool="mean")
    directory = run(tmp_path, base, paraphrases=str(file), **flags)
    file.write_text("text,paraphrase\nthe film was good,the good film\n")
    with pytest.raises(UserError, match=r"--paraphrases .*p.csv: its content has changed since the run began"):
        train.main(["--resume", str(directory), "--epochs", "3"])
