"""Blocks and masks: the traps of masked language modelling, the naive figure beside the right one.

TRAPS is what the tests fill: trap -> (naive figure, right figure).
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import converted_directory

from minift.data.documents import Documents
from minift.data.masking import EVALUATION, blocks_of, choose, corrupt, cut, tokenise, vocabulary_of
from minift.pretrained import read
from minift.tasks.masked_lm import MaskedLM

CPU = torch.device("cpu")
MINILM = Path(__file__).parents[2] / "weights" / "minilm-l6"
TRAPS: dict[str, tuple[float, float]] = {}


@pytest.fixture(scope="module")
def minilm():
    return read(MINILM)


def random_of(*key):
    return np.random.default_rng(key)


def documents(texts, filled=True):
    return Documents(Path("rows"), texts, list(range(len(texts))), filled)


class Options:
    seed = 3


TEXT = "Unaffable antidisestablishmentarians, don't they; the café was [SEP] very good and xyzzyq \u4e2d was unmasked [MASK]."


def test_the_budget_is_exact_and_the_coin_leaves_short_blocks_without_a_target():
    """Trap 1: of 1,000 blocks of 5 tokens the coin gives 44 % no target at all; BERT's budget gives each one."""
    special, ids = np.array([0]), np.arange(1, 6)
    counts = {how: [len(choose(ids, np.ones(5, bool), special, how, 0.15, random_of(i))) for i in range(1000)] for how in HOWS}
    assert set(counts["exact"]) == {1} and set(counts["whole-words"]) == {1}
    naive = np.mean(np.array(counts["coin"]) == 0)
    assert abs(naive - 0.85**5) < 0.05
    TRAPS["blocks of 5 tokens without a target"] = (naive, 0.0)
    for n in (1, 2, 3, 4, 10, 30, 126):
        assert len(choose(np.arange(1, n + 1), np.ones(n, bool), special, "exact", 0.15, random_of(0))) == max(1, round(0.15 * n))


HOWS = ("exact", "coin", "whole-words")


def test_eighty_ten_ten_and_the_random_ids(minilm):
    """Trap 1: the random tokens come from the whole vocabulary, [unused] and special ones too; never padding."""
    v = vocabulary_of(minilm.tokenizer, 0)
    ids = np.full(200_000, 2003)
    out = corrupt(ids, np.arange(len(ids)), v, random_of(0))
    masked, kept = np.mean(out == v.mask), np.mean(out == 2003)
    others = out[(out != v.mask) & (out != 2003)]
    assert abs(masked - 0.8) < 0.005 and abs(kept - 0.1) < 0.005 and abs(len(others) / len(ids) - 0.1) < 0.005
    assert (others != 0).all() and others.min() < 10 and others.max() > 30500
    counts = np.histogram(others, 10, (0, 30522))[0]
    assert abs(counts / len(others) - 0.1).max() < 0.01
    assert np.isin(np.arange(1, 104), others).mean() > 0.3, "no [unused] ones and no special ones"


def test_special_tokens_are_never_masked_whatever_their_ids(minilm):
    """Trap 4: `id < 106` would leave out [SEP] in the text as well, but also takes ids of RoBERTa that are words."""
    v = vocabulary_of(minilm.tokenizer, 0)
    (ids,), (begins,) = tokenise(minilm.tokenizer, [TEXT])
    at = {how: set() for how in HOWS}
    for i in range(200):
        for how in HOWS:
            at[how] |= set(choose(ids, begins, v.special, how, 0.15, random_of(i)).tolist())
    special = {i for i, number in enumerate(ids) if number in (0, 100, 101, 102, 103)}
    assert {102, 103} <= {ids[i] for i in special}
    for how, seen in at.items():
        assert seen == set(range(len(ids))) - special or how == "whole-words", how
        assert not seen & special


def test_whole_words_keep_the_budget_of_tokens_and_those_of_transformers_do_not(minilm):
    """Trap 2: transformers 4.57 draws words by a coin and makes all of each [MASK]: no budget, and no 80/10/10."""
    transformers = pytest.importorskip("transformers")
    text = " ".join(["antidisestablishmentarianism unaffability the of a floccinaucinihilipilification"] * 8)
    tokens, begins = tokenise(minilm.tokenizer, [text])
    v = vocabulary_of(minilm.tokenizer, 0)
    (ids,), (begins,) = tokens, begins
    word = np.cumsum(begins)
    rates, replaced = [], []
    for i in range(300):
        at = choose(ids, begins, v.special, "whole-words", 0.15, random_of(i))
        assert all(np.isin(np.flatnonzero(word == w), at).all() for w in set(word[at])), "a word is masked in part"
        rates.append(len(at) / len(ids))
        replaced.append(np.mean(corrupt(ids, at, v, random_of(i, 1))[at] == v.mask))
    tokenizer = transformers.BertTokenizerFast(tokenizer_object=minilm.tokenizer)
    only_masks = {"mask_replace_prob": 1.0, "random_replace_prob": 0.0}
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, whole_word_mask=True, seed=0, **only_masks)
    theirs = [collator([tokenizer(text, return_offsets_mapping=True)]) for _ in range(100)]
    shares = [float((one["labels"][:, 1:-1] != -100).double().mean()) for one in theirs]
    TRAPS["largest share of masked tokens, of whole words at 0.15"] = (max(shares), max(rates))
    assert max(rates) <= round(0.15 * len(ids)) / len(ids) and np.mean(rates) > 0.13 and max(shares) > 0.25
    TRAPS["share of [MASK] among what is masked, of whole words"] = (1.0, np.mean(replaced))
    assert all((one["input_ids"][one["labels"] != -100] == v.mask).all() for one in theirs)
    assert abs(np.mean(replaced) - 0.8) < 0.02


def test_a_whole_word_that_exceeds_the_budget_is_passed_over(minilm):
    (ids,), (begins,) = tokenise(minilm.tokenizer, ["unaffable"])
    assert len(ids) > 1 and not len(choose(ids, begins, np.array([0]), "whole-words", 0.15, random_of(0)))


def test_masks_are_a_function_of_seed_epoch_and_block(minilm):
    """Trap 3: at evaluation of the block alone, in training of seed, epoch and block, whatever the batches."""
    texts = [f"this is the document number {i} and it says nothing new at all" for i in range(7)]
    task = MaskedLM(None, 32, "within", "exact", 0.3)
    train, valid = task.prepare(documents(texts), minilm, Options), task.prepare(documents(texts), minilm)

    def inputs(data, order, epoch):
        batches = list(data.batches(order, CPU, epoch))
        return torch.cat([batch.inputs[0] for batch in batches]), torch.cat([batch.targets[0] for batch in batches])

    whole, pieces = [np.arange(7)], [np.arange(0, 3), np.arange(3, 7)]
    for data, epoch in ((train, 0), (train, 5), (train, None), (valid, None), (valid, 3)):
        for one, other in zip(inputs(data, whole, epoch), inputs(data, pieces, epoch), strict=True):
            assert torch.equal(one, other)
    assert not torch.equal(inputs(train, whole, 0)[1], inputs(train, whole, 1)[1])
    assert torch.equal(inputs(valid, whole, None)[1], inputs(valid, whole, 7)[1])
    assert torch.equal(inputs(train, whole, None)[1], inputs(valid, whole, None)[1])
    assert train.variants is None and valid.variants == 1 and not train.as_evaluated and Options.seed != EVALUATION
    few = task.prepare(documents(texts).take([4, 2]), minilm)  # a document keeps its masks where it stands with others
    for i, row in enumerate((4, 2)):
        for one, other in zip(few.masked(i, None), valid.masked(row, None), strict=True):
            assert np.array_equal(one, other)
    assert any(not np.array_equal(valid.masked(i, None)[1], valid.masked(0, None)[1]) for i in range(7))


@pytest.mark.parametrize("across", [False, True])
def test_no_token_is_dropped_and_no_block_is_too_long(minilm, across):
    """Trap 4: run_mlm.py's group_texts drops what fills no block; here every token stands in one block."""
    random = np.random.default_rng(0)
    texts = [" ".join(["word"] * n) for n in random.integers(0, 60, 50)]
    v = vocabulary_of(minilm.tokenizer, 0)
    tokens, _ = tokenise(minilm.tokenizer, texts)
    blocks, begins, row_of, keys, parted = blocks_of(minilm.tokenizer, texts, list(range(50)), across, 32, v)
    inner = [block[1:-1] for block in blocks]
    assert all(len(block) <= 32 and block[0] == 101 and block[-1] == 102 for block in blocks)
    assert [len(b) for b in begins] == [len(b) for b in blocks] and len({map(tuple, keys)}) == 1
    assert sum((block != 102).sum() for block in inner) == sum(map(len, tokens))
    stream = np.concatenate(inner)
    assert np.array_equal(stream[stream != 102], np.concatenate(tokens))
    lengths = [len(block) for block in blocks]
    if across:
        assert max(lengths) - min(lengths) <= 1 and list(row_of) == list(range(len(blocks)))
        assert (stream == 102).sum() == 49
        stands = np.repeat(np.arange(len(inner)), [len(block) for block in inner])  # number of each token's block
        ends = np.flatnonzero(np.append(stream, 102) == 102)
        starts = np.append(0, ends[:-1] + 1)
        assert parted == sum(len(set(stands[a:b])) > 1 for a, b in zip(starts, ends, strict=True))
        naive = sum(map(len, tokens)) + 50 * 2
        naive -= naive // 32 * 32
        TRAPS["tokens of 50 documents that fill no block of 32"] = (naive, 0)
    else:
        assert sorted(set(row_of)) == list(range(50)) and parted == sum(len(ids) > 30 for ids in tokens)
        for row in range(50):
            of_row = [length for length, r in zip(lengths, row_of, strict=True) if r == row]
            assert max(of_row) - min(of_row) <= 1, "a tail is left without context"


def test_cut():
    assert cut(0, 5) == [slice(0, 0)] and cut(5, 5) == [slice(0, 5)]
    assert cut(6, 5) == [slice(0, 3), slice(3, 6)] and cut(11, 5) == [slice(0, 3), slice(3, 7), slice(7, 11)]


def test_masks_that_are_there_are_found_and_nothing_else_is_touched(minilm):
    task = MaskedLM(None, 16, "across", "exact", 0.15)
    texts = ["the film was [MASK] and [MASK].", "none here", "a " * 30 + "[MASK]"]
    data = task.prepare(documents(texts, filled=False), minilm)
    assert data.rows.tolist()[:2] == [0, 1] and set(data.rows) == {0, 1, 2}
    (batch,) = data.batches([np.arange(len(data))], CPU)
    assert len(batch.targets) == 1 and batch.counts.sum() == 3 and (batch.inputs[0] == 103).sum() == 3
    assert batch.inputs[0][0, batch.targets[0][0]].tolist() == [103, 103]


def test_a_block_without_words_counts_nothing(tmp_path):
    tiny = read(converted_directory(tmp_path / "base"))
    task = MaskedLM(None, 16, "within", "exact", 0.15)
    data = task.prepare(documents(["[SEP] [MASK]"]), tiny)
    (batch,) = data.batches([np.arange(1)], CPU)
    assert batch.counts.tolist() == [0] and batch.targets[0].shape == (1, 0)


def test_the_table_of_traps(capsys):
    """For readers: pytest -s tests/data/test_masking.py"""
    if len(TRAPS) < 3:
        pytest.skip("the tests above have not all run")
    for trap, (naive, right) in TRAPS.items():
        print(f"{trap:55s} naive {naive:8.3f}   here {right:8.3f}")
        assert naive > right
