"""The embedded reviews: enough of them, balanced, and nothing of the test split said twice in the training split."""

import re
from collections import Counter

from minift.data.samples import REVIEWS, reviews_split

LINES = REVIEWS.read_text(encoding="utf-8").splitlines()
ROWS = [tuple(line.split("\t")) for line in LINES[1:]]
KINDS = Counter({"factual": 325, "irony": 196, "mixed": 226, "negation": 102, "plain": 1541, "understatement": 85})


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def test_layout_and_counts():
    assert LINES[0] == "text\tlabel\tkind"
    assert all(len(row) == 3 and row[0].strip() == row[0] and row[1] in ("positive", "negative") for row in ROWS)
    assert Counter(kind for _, _, kind in ROWS) == KINDS
    parts = Counter((reviews_split(f"{text}\t{label}"), label) for text, label, _ in ROWS)
    assert parts == {
        ("train", "negative"): 826,
        ("train", "positive"): 828,
        ("valid", "negative"): 167,
        ("valid", "positive"): 153,
        ("test", "negative"): 246,
        ("test", "positive"): 255,
    }


def test_no_two_rows_share_five_words_in_a_row():
    seen: dict[tuple[str, ...], str] = {}
    for text, *_ in ROWS:
        tokens = words(text)
        for gram in {tuple(tokens[i : i + 5]) for i in range(len(tokens) - 4)}:
            assert gram not in seen, f"{' '.join(gram)!r} stands in {seen[gram]!r} and in {text!r}"
            seen[gram] = text


def test_no_two_rows_are_near_duplicates():
    sets = [set(words(text)) for text, *_ in ROWS]
    for i, a in enumerate(sets):
        for j, b in enumerate(sets[:i]):
            assert len(a & b) <= 0.4 * len(a | b), f"{ROWS[i][0]!r} and {ROWS[j][0]!r}"
