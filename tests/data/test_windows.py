"""Windows over a text: against transformers' tokenizer library, and the window of most context against all of them."""

from itertools import pairwise, product

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from minift.data.windows import most_context, windows

CASES = [(n, room, overlap) for n, room in product((0, 1, 5, 6, 7, 10, 11, 23), (1, 2, 6, 7)) for overlap in range(room)]


@pytest.mark.parametrize(("length", "room", "overlap"), CASES)
def test_are_those_of_the_tokenizers_library(length, room, overlap):
    tokenizer = Tokenizer(WordLevel({str(i): i for i in range(30)}, unk_token="0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.enable_truncation(room, stride=overlap)
    first = tokenizer.encode(" ".join(map(str, range(length))))
    expected = [one.ids for one in (first, *first.overflowing)]
    assert [list(range(*span)) for span in windows(length, room, overlap)] == expected


@pytest.mark.parametrize(("length", "room", "overlap"), CASES)
def test_cover_every_token_and_neighbours_share_the_overlap(length, room, overlap):
    spans = windows(length, room, overlap)
    assert spans[0][0] == 0 and spans[-1][1] == length and all(end - start <= room for start, end in spans)
    assert all(a[1] - b[0] == overlap for a, b in pairwise(spans))
    for position in range(length):
        context = [min(position - start, end - 1 - position) for start, end in spans]
        assert max(context) >= 0 and most_context(spans, position) == context.index(max(context))


def test_by_hand():
    spans = windows(10, 6, 2)
    assert spans == [(0, 6), (4, 10)]
    # 4 has one token to its right in the first window and none to its left in the second; 5 the reverse
    assert [most_context(spans, i) for i in range(10)] == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert [most_context(windows(9, 5, 1), i) for i in (3, 4, 5)] == [0, 0, 1]  # 4 is at the edge of both: the earlier


def test_refuses_what_makes_no_windows():
    for room, overlap in ((4, 4), (4, 5), (4, -1), (0, 0)):
        with pytest.raises(ValueError, match="overlap"):
            windows(10, room, overlap)
    for position in (-1, 10):
        with pytest.raises(ValueError, match="no window"):
            most_context(windows(10, 6, 2), position)
