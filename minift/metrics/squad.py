"""Extractive question answering: exact match and F1 as SQuAD's two official scripts, the best span, the threshold of no answer.

Normalisation, in this order: lower case; ASCII punctuation deleted, with no blank in its place ("well-known" is one word); a, an,
the as whole words become a blank; white space joined. Then

    EM = 1 where the normalised texts are equal,   F1 = 2PR / (P + R) over the multisets of words,   the best over the gold answers

The scripts of v1.1 (Rajpurkar et al. 2016, arXiv:1606.05250) and v2.0 (2018, arXiv:1806.03822) differ in what is empty:

                                    v1.1                      v2.0
    both normalise to nothing       EM 1, F1 0                EM 1, F1 1
    gold that normalises to nothing is compared               is dropped; none left: "" is the gold answer
    question without an answer      not allowed               right is "", and "" alone
    prediction missing              EM 0, F1 0                question left out of the mean

Proved against transformers' squad_metrics for v2.0, by hand for v1.1, and by enumeration for spans and thresholds
(tests/reference/test_metrics_squad.py). All figures are in 0 .. 1; the scripts print percent.

Axes: W windows of one question, S tokens of a window, L lengths of a span.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
VERSIONS = ("1.1", "2.0")


def normalise(text: str) -> str:
    """See above. Curly quotes, dashes and other punctuation that is not ASCII stay."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(NO_PUNCTUATION)).split())


def exact_and_f1(gold: str, predicted: str, version: str) -> tuple[int, float]:
    """(EM, F1) of a prediction against one gold answer, by the script of that version."""
    a, b = normalise(gold), normalise(predicted)
    words, others = Counter(a.split()), Counter(b.split())
    if version == "2.0" and not (words and others):
        return int(a == b), float(a == b)
    common = (words & others).total()
    return int(a == b), 2 * common / (words.total() + others.total()) if common else 0.0


def question_scores(answers: Sequence[str], predicted: str, version: str) -> tuple[int, float]:
    """(EM, F1) of a prediction, each the best over the gold answers, perhaps of two of them. answers: none, in v2.0 only."""
    if version not in VERSIONS:
        raise ValueError(f"version {version!r}; known are {', '.join(VERSIONS)}")
    if version == "2.0":
        answers = [text for text in answers if normalise(text)] or [""]
    if not answers:
        raise ValueError("a question without an answer; v1.1 has none")
    exact, f1 = zip(*(exact_and_f1(gold, predicted, version) for gold in answers), strict=True)
    return max(exact), max(f1)


def squad_scores(
    answers: Mapping[str, Sequence[str]], predictions: Mapping[str, str], version: str
) -> dict[str, tuple[int, float]]:
    """Question -> (EM, F1). answers: question -> gold answers. A question without a prediction has none in v2.0, (0, 0) in v1.1."""
    missing = {} if version == "2.0" else {key: (0, 0.0) for key in answers if key not in predictions}
    return missing | {key: question_scores(answers[key], predictions[key], version) for key in answers if key in predictions}


def squad_metrics(answers: Mapping[str, Sequence[str]], predictions: Mapping[str, str], version: str) -> dict[str, float]:
    """exact, f1, total; missing, the questions without a prediction; in v2.0 exact and f1 of has_answer_ and no_answer_ as well.

    answers: question -> gold answers; predictions: question -> text, "" for no answer. total is what the means are over. Raises
    ValueError where nothing is left to score.
    """
    scores = squad_scores(answers, predictions, version)
    if not scores:
        raise ValueError(f"no prediction for any of the {len(answers)} questions")
    parts = {"": list(scores)}
    if version == "2.0":
        parts["has_answer_"] = [key for key in scores if answers[key]]
        parts["no_answer_"] = [key for key in scores if not answers[key]]
    found: dict[str, float] = {"missing": sum(key not in predictions for key in answers)}
    for prefix, keys in parts.items():
        if keys:
            found[f"{prefix}exact"] = math.fsum(scores[key][0] for key in keys) / len(keys)
            found[f"{prefix}f1"] = math.fsum(scores[key][1] for key in keys) / len(keys)
            found[f"{prefix}total"] = len(keys)
    return found


def no_answer_baseline(answers: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """squad_metrics of v2.0 for a model that never answers: EM and F1 are the share of the questions without an answer."""
    return squad_metrics(answers, dict.fromkeys(answers, ""), "2.0")


# ---- no answer ----


def no_answer_score(starts: np.ndarray, ends: np.ndarray, index: int = 0) -> float:
    """The MINIMUM over the windows of start[CLS] + end[CLS]. starts, ends: (W, S); index: of [CLS].

    A window without the answer says "not here", not "nowhere", so that one window that is sure of its answer is enough: the maximum
    over the windows, or the first of them, would mostly say no answer.
    """
    return float((np.asarray(starts, np.float64)[:, index] + np.asarray(ends, np.float64)[:, index]).min())


def above_threshold(
    scores: Mapping[str, float], no_answer: Mapping[str, float], has_answer: Mapping[str, bool], threshold: float
) -> dict[str, float]:
    """The scores where no_answer > threshold is answered by "", which is right if there is no answer.

    scores: question -> EM or F1 of its best text; no_answer: question -> what speaks for no answer, as no_answer_score minus the
    score of the best span, or a probability.
    """
    return {key: float(not has_answer[key]) if no_answer[key] > threshold else score for key, score in scores.items()}


def official_threshold(
    scores: Mapping[str, float], predictions: Mapping[str, str], no_answer: Mapping[str, float], has_answer: Mapping[str, bool]
) -> tuple[float, float]:
    """(mean score, threshold) as find_best_thresh of the official script of v2.0.

    It begins with no question answered, calls that threshold 0, and lets in one question after the other. Three things follow.
    Where `no_answer` may be negative, as differences of logits are, its 0 answers some questions. Of questions with one and the
    same `no_answer` it may count half, which no threshold does. It holds every text against a question without an answer, also one
    that normalises to "" and is right. So the mean score may be one that the threshold does not give; best_threshold's is.
    With `no_answer` 0 for all, as an old example script passed it, the threshold is 0.0 whatever the model (the
    "best_f1_thresh 0.0" of many model cards).
    """
    current = best = float(sum(not has for has in has_answer.values()))
    threshold = 0.0
    for key in sorted(no_answer, key=no_answer.__getitem__):
        if key in scores:
            current += scores[key] if has_answer[key] else -bool(predictions[key])
            if current > best:
                best, threshold = current, no_answer[key]
    return best / len(scores), threshold


def best_threshold(
    scores: Mapping[str, float], no_answer: Mapping[str, float], has_answer: Mapping[str, bool]
) -> tuple[float, float]:
    """(mean score, threshold) that is the best of above_threshold's over all thresholds; exact, whatever the sign of `no_answer`.

    Tried are "nothing answered" and every distinct value of `no_answer`; of equal means (to 1e-9) the lowest threshold is taken,
    which answers least. "Nothing answered" is the largest float below the lowest value. The mean on the rows that chose the
    threshold is optimistic: choose it on validation rows and say so. Test: test_the_best_threshold_by_enumeration.
    """
    if not scores:
        raise ValueError("no question to choose a threshold by")
    gains: dict[float, list[float]] = {}  # of answering the questions with this no_answer instead of saying ""
    for key, score in scores.items():
        gains.setdefault(float(no_answer[key]), []).append(score - (not has_answer[key]))
    values = sorted(gains)
    current = best = math.fsum(not has_answer[key] for key in scores)
    threshold = math.nextafter(values[0], -math.inf)
    for value in values:
        current += math.fsum(gains[value])
        if current > best + 1e-9:
            best, threshold = current, value
    return best / len(scores), threshold


# ---- spans ----


def best_spans(
    starts, ends, may_start: np.ndarray, may_end: np.ndarray, longest: int, n: int = 1
) -> list[tuple[float, int, int, int]]:
    """The n best legal spans of a question (all if fewer), best first: (start + end, window, first token, last token).

    starts, ends: (W, S), logits; may_start, may_end: (W, S) truth values. Legal: may_start[first], may_end[last] and
    first <= last < first + longest. By Google's run_squad.py both are True in the context alone, and may_start only where the
    window is the token's best (max_context). The search is joint and exact: all S x longest sums. The 20 best starts times the 20
    best ends of the usual scripts find nothing where these all stand in the wrong order. Of equal sums the earlier window is
    taken, then the earlier start, then the shorter span. Test: test_the_best_spans_by_enumeration.
    """
    starts, ends = np.asarray(starts, np.float64), np.asarray(ends, np.float64)
    shapes = {np.shape(a) for a in (starts, ends, may_start, may_end)}
    if len(shapes) != 1 or starts.ndim != 2 or longest < 1 or n < 1:
        raise ValueError(f"(W, S) four times, longest and n of at least 1 are expected, found {shapes}, {longest}, {n}")
    if np.isnan(starts).any() or np.isnan(ends).any():
        raise ValueError("the scores of the spans are not numbers (NaN)")
    first, last = np.where(may_start, starts, -math.inf), np.where(may_end, ends, -math.inf)
    longest = min(longest, starts.shape[1])
    ahead = np.pad(last, ((0, 0), (0, longest - 1)), constant_values=-math.inf)
    sums = first[:, :, None] + np.lib.stride_tricks.sliding_window_view(ahead, longest, axis=1)  # (W, S, L): of S .. S+L
    flat = sums.reshape(-1)
    if n == 1:
        order = flat.argmax()[None]
    else:
        enough = np.partition(flat, -n)[-n] if n < len(flat) else -math.inf
        order = np.flatnonzero(flat >= enough)
        order = order[np.argsort(-flat[order], kind="stable")][:n]
    window, token, more = np.unravel_index(order[flat[order] > -math.inf], sums.shape)
    return [(float(sums[w, s, k]), int(w), int(s), int(s + k)) for w, s, k in zip(window, token, more, strict=True)]


def max_context(windows: Sequence[tuple[int, int]], tokens: int) -> np.ndarray:
    """(N) number of the window in which each token of the document has the most context; -1: in none. tokens: N.

    windows: (first token, token after the last) of the document, in the order of the document. Context, as in Google's
    run_squad.py: the smaller of the numbers of tokens to its left and right in the window, plus 0.01 times the window's length; of
    equal windows the first. Its worked example: "bought" of windows "the man went to the", "to the store and bought", "and bought
    a gallon of" has 4 and 0 tokens around it in the second and 1 and 3 in the third, so it counts in the third.
    """
    best, chosen = np.full(tokens, -math.inf), np.full(tokens, -1)
    for number, (first, end) in enumerate(windows):
        at = np.arange(first, end)
        context = np.minimum(at - first, end - 1 - at) + 0.01 * (end - first)
        better = context > best[first:end]
        best[first:end][better] = context[better]
        chosen[first:end][better] = number
    return chosen
