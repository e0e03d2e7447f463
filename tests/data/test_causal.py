"""minift.data.causal: every token is the target of one position, whatever the blocks; packed rows see themselves alone."""

import numpy as np
import pytest
import torch

from minift.data.causal import blocks_of, first_fit, ids_of
from minift.data.masking import NO_LABEL
from minift.formats.bytelevel import tokenizer_of_bytes

TOKENIZER, END = tokenizer_of_bytes(), 256
TEXTS = ["to be or not", "", "é中!", "that is the question, " * 3]
CPU = torch.device("cpu")


def made(across: bool, max_length: int = 8, texts: list[str] = TEXTS):
    return blocks_of(TOKENIZER, texts, across, max_length, END, END)


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("max_length", [2, 3, 8, 1000])
def test_every_token_and_every_end_is_the_target_of_one_position(across, max_length):
    """Trap: blocks that are cut before the shift lose a target at every seam, and the remainder of the stream is often dropped."""
    data = made(across, max_length)
    assert data.lengths.max() <= max_length
    expected = [*(id for ids in ids_of(TOKENIZER, TEXTS) for id in (*ids.tolist(), END))]
    assert np.concatenate(data.targets).tolist() == expected
    assert all((one[1:] == targets[:-1]).all() for one, targets in zip(data.tokens, data.targets, strict=True)), "shifted by one"
    assert data.tokens[0][0] == END, "the first token follows something"
    if not across:
        assert all(data.tokens[np.flatnonzero(data.rows == row)[0]][0] == END for row in range(len(TEXTS)))
    assert np.ptp(data.lengths[data.rows == data.rows[-1]] if not across else data.lengths) <= 1, "of nearly the same length"


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("max_length", [2, 8, 1000])
def test_words_and_bytes_are_counted_once_whatever_the_blocks(across, max_length):
    data = made(across, max_length)
    assert data.words.sum() == 4 + 0 + 1 + 12 and data.bytes.sum() == sum(len(text.encode()) for text in TEXTS)


def test_the_end_of_text_is_a_target_although_batches_are_filled_up_with_it():
    """Trap: where padding is known by its id, an end of text that is padding too never trains. Here it is known by length."""
    data = made(False, 40, ["a", "b<|endoftext|>cde"])
    (batch,) = data.batches([np.array([0, 1])], CPU)
    labels = batch.targets[0]
    assert labels[0].tolist() == [97, END, *[NO_LABEL] * 4] and batch.inputs[0][0].tolist() == [END, 97, *[END] * 4]
    assert labels[1].tolist() == [98, END, 99, 100, 101, END], "also one that stands in the text"
    by_id = labels.masked_fill(labels == END, NO_LABEL)  # what a mask by id leaves
    assert (by_id != NO_LABEL).sum() == 5 and batch.counts.tolist() == [2, 6]


def test_rows_are_packed_first_fit_the_longest_first():
    lengths = np.array([3, 7, 2, 5, 1, 9])
    packs = first_fit(lengths, 8)
    assert packs == [[5], [1, 4], [3, 0], [2]], "and a row that is longer than the room stands alone"
    assert sorted(i for pack in packs for i in pack) == [*range(6)]


def test_a_sample_is_read_from_the_batch_that_trains():
    header, rows = made(False, 40, ["ab\né"]).sample()
    assert header == ["column", "position", "token", "sees columns", "target", "counts"]
    assert rows[0] == [0, 0, "'<|endoftext|>'", "0-0", "'a'", "yes"] and rows[2] == [2, 2, "'b'", "0-2", "'\\n'", "yes"]
    assert rows[-1][4:] == ["'<|endoftext|>'", "yes"] and rows[-1][2] == "'©'", "the second byte of é, as the vocabulary has it"
