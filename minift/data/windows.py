"""A long text in overlapping windows, and for each of its tokens the window that sees most around it.

    text       0 1 2 3 4 5 6 7 8 9        length 10, room 6, overlap 2: the step from a window to the next is room - overlap = 4
    window 0   0 1 2 3 4 5
    window 1           4 5 6 7 8 9

Google's run_squad.py takes the step (`doc_stride`), transformers' tokenizers the overlap (`stride`): 128 is not the same in both.

Tests: tests/data/test_windows.py.
"""

from bisect import bisect_right


def windows(length: int, room: int, overlap: int) -> list[tuple[int, int]]:
    """(start, end) of each window over `length` tokens, end not included. Those are transformers' windows.

    room: tokens of a window, without the special ones; the last window may be shorter. overlap: tokens that neighbours share.
    Text that fits is one window, as is an empty one. Raises ValueError unless 0 <= overlap < room.
    """
    if not 0 <= overlap < room:
        raise ValueError(f"windows of {room} tokens that share {overlap}: expected 0 <= overlap < room")
    starts = range(0, max(length - overlap, 1), room - overlap)
    return [(start, min(start + room, length)) for start in starts]


def most_context(spans: list[tuple[int, int]], position: int) -> int:
    """The index of the window in which a token has the most context: the largest min(tokens to its left, tokens to its right).

    spans: windows in order, as `windows` returns them. Of equal ones the earlier. Google's run_squad.py adds 0.01 x the length of
    the window, which alone may prefer a full window to a last one that is shorter by 100 tokens or more. Raises ValueError where no
    window holds the position.
    """
    first = bisect_right(spans, position, key=lambda span: span[1])  # those before it end at or before the position
    last = bisect_right(spans, position, key=lambda span: span[0])  # those from it on start behind the position
    if first >= last:
        raise ValueError(f"position {position} lies in no window")
    return max(range(first, last), key=lambda i: min(position - spans[i][0], spans[i][1] - 1 - position))
