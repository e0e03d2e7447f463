"""The embedded sample: short reviews, positive or negative, written for this project, with a third column that says their kind.

plain: the judgement can be read directly; negation: it hangs on one; irony: the opposite is meant; mixed: good and bad are weighed;
understatement: more is meant than said; factual: a report, from which the judgement follows.
"""

import hashlib
from pathlib import Path

REVIEWS = Path(__file__).parent.parent / "samples" / "reviews.tsv"


def reviews_split(row: str) -> str:
    """train, valid or test (65, 15, 20 %) for one row of reviews.tsv: its text and label as they stand there, with the tab.

    The sha256 of the row decides, so that a row can never change sides when others come or go.
    """
    percent = int(hashlib.sha256(row.encode()).hexdigest()[:8], 16) % 100
    return "test" if percent < 20 else "valid" if percent < 35 else "train"
