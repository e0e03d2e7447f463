"""SQuAD's figures against transformers' squad_metrics (v2.0) and by hand (v1.1); spans and thresholds by enumeration."""

import itertools
import re
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minift.metrics.squad import (
    above_threshold,
    best_spans,
    best_threshold,
    exact_and_f1,
    max_context,
    no_answer_baseline,
    no_answer_score,
    normalise,
    official_threshold,
    question_scores,
    squad_metrics,
    squad_scores,
)

reference = pytest.importorskip("transformers.data.metrics.squad_metrics")  # gone in transformers 5
_check_is_max_context = pytest.importorskip("transformers.data.processors.squad")._check_is_max_context

WORDS = [
    "the",
    "a",
    "An",
    "U.S.",
    "well-known",
    "1895",
    "(1895-1943)",
    "“Paris”",
    "Paris,",
    "paris",
    "–",
    "...",
    "¿Qué?",
    "theatre",
    "\u00a0",
]


def texts(n: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(0, 5))) for _ in range(n)]


# ---- EM and F1 ----


def test_normalisation():
    for text in texts(2000, 0):
        assert normalise(text) == reference.normalize_answer(text)
    assert normalise("The  well-known U.S. theatre, a") == "wellknown us theatre"
    assert normalise("“Paris” – ¿Qué?") == "“paris” – ¿qué"


def test_another_order_gives_other_figures():
    """Articles before punctuation: the a of "a.m." is a whole word. A blank for punctuation: "well-known" is two words."""
    articles_first = re.sub(r"\b(a|an|the)\b", " ", "10 a.m.").replace(".", "").split()
    assert articles_first == ["10", "m"] and normalise("10 a.m.") == "10 am"
    assert exact_and_f1("10 am", " ".join(articles_first), "1.1") == (0, 0.5)
    assert exact_and_f1("10 am", "10 a.m.", "1.1") == (1, 1)
    assert exact_and_f1("well-known", "known", "1.1") == (0, 0)
    assert exact_and_f1("well known", "known", "1.1") == (0, pytest.approx(2 / 3))


def test_scores_of_pairs_are_those_of_v2():
    for gold, predicted in zip(texts(3000, 1), texts(3000, 2), strict=True):
        exact, f1 = exact_and_f1(gold, predicted, "2.0")
        assert exact == reference.compute_exact(gold, predicted)
        assert f1 == pytest.approx(reference.compute_f1(gold, predicted), abs=1e-12)
        same = exact_and_f1(gold, predicted, "1.1")
        assert same == (exact, f1) or not (normalise(gold) and normalise(predicted))


@pytest.mark.parametrize(
    ("answers", "predicted", "v1", "v2"),
    [
        (["Denver Broncos"], "the Denver Broncos!", (1, 1), (1, 1)),
        (["Denver Broncos"], "Broncos of Denver", (0, 0.8), (0, 0.8)),  # P 2/3, R 1
        (["to be or not to be"], "to to to", (0, 4 / 9), (0, 4 / 9)),  # a multiset: 2 of 3 and 2 of 6; as sets F1 is 2/5
        (["one two", "three"], "three four", (0, 2 / 3), (0, 2 / 3)),
        (["x", "a b c d"], "x y", (0, 2 / 3), (0, 2 / 3)),
        (["cat"], "dog", (0, 0), (0, 0)),
        (["the"], "a", (1, 0), (1, 1)),  # both are nothing: v1.1 finds no common word
        (["the", "cat"], "an", (1, 0), (0, 0)),  # v2.0 drops the gold answer that is nothing
        (["..."], "", (1, 0), (1, 1)),
        (["cat"], "", (0, 0), (0, 0)),
    ],
)
def test_what_is_empty_by_hand(answers, predicted, v1, v2):
    assert question_scores(answers, predicted, "1.1") == pytest.approx(v1)
    assert question_scores(answers, predicted, "2.0") == pytest.approx(v2)


def test_a_question_without_an_answer():
    assert question_scores([], "", "2.0") == (1, 1) == question_scores([], "the", "2.0")
    assert question_scores([], "cat", "2.0") == (0, 0)
    with pytest.raises(ValueError, match=r"v1.1 has none"):
        question_scores([], "", "1.1")
    with pytest.raises(ValueError, match=r"known are 1.1, 2.0"):
        question_scores(["a"], "", "2")


Example = namedtuple("Example", "qas_id answers")


def questions(n: int, seed: int) -> tuple[dict[str, list[str]], dict[str, str], list[Example]]:
    """Gold answers, predictions and what the reference takes; a third of the questions has no answer."""
    random = np.random.default_rng(seed)
    pool = texts(4 * n, seed + 1)
    answers = {f"q{i}": [] if random.random() < 1 / 3 else pool[4 * i : 4 * i + random.integers(1, 4)] for i in range(n)}
    predictions, other = {}, iter(texts(n, seed + 2))
    for key, gold in answers.items():
        drawn = random.random()
        predictions[key] = next(other) if drawn < 0.4 else gold[0] if gold and drawn < 0.8 else ""
    return answers, predictions, [Example(key, [{"text": text} for text in gold]) for key, gold in answers.items()]


@pytest.mark.parametrize("seed", range(5))
def test_metrics_of_v2(seed):
    answers, predictions, examples = questions(120, seed)
    expected = reference.squad_evaluate(examples, predictions)
    ours = squad_metrics(answers, predictions, "2.0")
    for theirs, prefix in (("", ""), ("HasAns_", "has_answer_"), ("NoAns_", "no_answer_")):
        for name in ("exact", "f1"):
            assert 100 * ours[prefix + name] == pytest.approx(expected[theirs + name], abs=1e-10)
        assert ours[f"{prefix}total"] == expected[f"{theirs}total"]


def test_missing_predictions():
    answers, predictions, examples = questions(40, 9)
    for key in list(predictions)[::4]:
        del predictions[key]
    exact, f1 = reference.get_raw_scores(examples, predictions)
    assert squad_scores(answers, predictions, "2.0") == {key: (exact[key], pytest.approx(f1[key])) for key in predictions}
    assert squad_metrics(answers, predictions, "2.0")["missing"] == 10
    found = squad_metrics({"a": ["x"], "b": ["y"]}, {"a": "x"}, "1.1")
    assert found == {"missing": 1, "exact": 0.5, "f1": 0.5, "total": 2}
    found = squad_metrics({"a": ["x"], "b": ["y"]}, {"a": "x"}, "2.0")
    assert (found["missing"], found["exact"], found["total"]) == (1, 1, 1)
    with pytest.raises(ValueError, match="no prediction for any of the 1 questions"):
        squad_metrics({"a": ["x"]}, {}, "2.0")


def test_the_baseline_without_answers():
    answers = {"a": ["x"], "b": [], "c": [], "d": ["y", "z"]}
    found = no_answer_baseline(answers)
    assert (found["exact"], found["f1"], found["has_answer_f1"], found["no_answer_f1"]) == (0.5, 0.5, 0, 1)


# ---- no answer ----


def test_the_least_sure_window_speaks_for_no_answer():
    """The answer stands in the second window, which says so; the first says "not here", as it should."""
    starts = np.array([[5.0, 0, 0], [-2.0, 4, 0]])
    ends = np.array([[5.0, 0, 0], [-1.0, 0, 4]])
    assert no_answer_score(starts, ends) == -3
    best = best_spans(starts, ends, np.array([[0, 1, 1]] * 2), np.array([[0, 1, 1]] * 2), 30)[0][0]
    assert no_answer_score(starts, ends) - best < 0 < (starts[:, 0] + ends[:, 0]).max() - best  # the maximum would say no answer
    assert no_answer_score(torch.tensor(starts), torch.tensor(ends)) == -3


@pytest.mark.parametrize("seed", range(5))
def test_the_official_threshold(seed):
    answers, predictions, examples = questions(120, seed)
    random = np.random.default_rng(seed)
    has_answer = {key: bool(gold) for key, gold in answers.items()}
    no_answer = {key: float(random.integers(0, 12) / 4 + has - 2) for key, has in has_answer.items()}
    exact, f1 = reference.get_raw_scores(examples, predictions)
    for scores in (exact, f1):
        best, threshold = reference.find_best_thresh(predictions, scores, no_answer, has_answer)
        ours = official_threshold(scores, predictions, no_answer, has_answer)
        assert (100 * ours[0], ours[1]) == (pytest.approx(best, abs=1e-10), threshold)
        applied = reference.apply_no_ans_threshold(scores, no_answer, has_answer, threshold)
        assert above_threshold(scores, no_answer, has_answer, threshold) == applied
        assert best_threshold(scores, no_answer, has_answer)[0] >= sum(applied.values()) / len(applied) - 1e-12


@pytest.mark.parametrize("seed", range(20))
def test_the_best_threshold_by_enumeration(seed):
    random = np.random.default_rng(seed)
    keys = [str(i) for i in range(random.integers(1, 12))]
    has_answer = {key: bool(random.random() < 0.5) for key in keys}
    scores = {key: float(random.integers(0, 4) / 3) if has_answer[key] else float(random.integers(0, 2)) for key in keys}
    no_answer = {key: float(random.integers(-3, 4)) for key in keys}
    tried = [-np.inf, *sorted(set(no_answer.values()))]
    means = [sum(above_threshold(scores, no_answer, has_answer, t).values()) / len(keys) for t in tried]
    best, threshold = best_threshold(scores, no_answer, has_answer)
    assert best == pytest.approx(max(means), abs=1e-12)
    assert best == pytest.approx(sum(above_threshold(scores, no_answer, has_answer, threshold).values()) / len(keys), abs=1e-12)
    lowest = next(t for t, mean in zip(tried, means, strict=True) if mean > max(means) - 1e-9)
    assert threshold == (lowest if lowest > -np.inf else np.nextafter(min(no_answer.values()), -np.inf))
    shuffled = {key: no_answer[key] for key in random.permutation(keys)}
    assert best_threshold({key: scores[key] for key in shuffled}, shuffled, has_answer) == (best, threshold)


def test_what_the_official_search_gets_wrong():
    # 1: all probabilities 0, as once passed: threshold 0.0 whatever the model
    scores, has_answer, nothing = {"a": 1.0, "b": 1.0}, {"a": True, "b": True}, {"a": 0.0, "b": 0.0}
    assert official_threshold(scores, {"a": "x", "b": "y"}, nothing, has_answer) == (1, 0.0)
    # 2: of two questions with the same value it lets in one and promises 1.0; no threshold gives more than 0.5
    scores, has_answer, same = {"a": 1.0, "b": 0.0}, {"a": True, "b": False}, {"a": 0.3, "b": 0.3}
    promised, threshold = official_threshold(scores, {"a": "x", "b": "y"}, same, has_answer)
    assert (promised, sum(above_threshold(scores, same, has_answer, threshold).values()) / 2) == (1, 0.5)
    assert best_threshold(scores, same, has_answer)[0] == 0.5
    # 3: differences of logits below 0: its "no question answered" is 0, which answers both and gives 0
    scores, has_answer, negative = {"a": 0.0, "b": 0.0}, {"a": False, "b": False}, {"a": -2.0, "b": -1.0}
    promised, threshold = official_threshold(scores, {"a": "x", "b": "y"}, negative, has_answer)
    assert (promised, threshold) == (1, 0.0) and sum(above_threshold(scores, negative, has_answer, threshold).values()) == 0
    best, threshold = best_threshold(scores, negative, has_answer)
    assert best == 1 and sum(above_threshold(scores, negative, has_answer, threshold).values()) == 2
    with pytest.raises(ValueError, match="no question"):
        best_threshold({}, {}, {})


# ---- spans ----


def all_spans(starts, ends, may_start, may_end, longest: int) -> list[tuple[float, int, int, int]]:
    spans = [
        (starts[w, i] + ends[w, j], w, i, j)
        for w in range(len(starts))
        for i in range(starts.shape[1])
        for j in range(i, min(i + longest, starts.shape[1]))
        if may_start[w, i] and may_end[w, j]
    ]
    return sorted((span for span in spans if span[0] > -np.inf), key=lambda span: (-span[0], *span[1:]))


@pytest.mark.parametrize("seed", range(40))
def test_the_best_spans_by_enumeration(seed):
    random = np.random.default_rng(seed)
    windows, tokens = int(random.integers(1, 4)), int(random.integers(1, 9))
    starts, ends = random.normal(size=(2, windows, tokens))
    if seed % 2:  # many equal sums, without rounding
        starts, ends = random.integers(0, 3, (2, windows, tokens)) / 4
    may_start, may_end = random.random((2, windows, tokens)) < 0.7
    for longest, n in itertools.product((1, 2, 3, 20), (1, 2, 5, 1000)):
        expected = all_spans(starts, ends, may_start, may_end, longest)[:n]
        assert best_spans(starts, ends, may_start, may_end, longest, n) == expected
        assert best_spans(torch.tensor(starts), torch.tensor(ends), may_start, may_end, longest, n) == expected


def test_length_is_inclusive():
    """A span of `longest` tokens is legal, one of a token more is not."""
    starts, ends, everywhere = np.array([[9.0, 0, 0, 0]]), np.array([[0.0, 0, 1, 9]]), np.ones((1, 4), bool)
    assert best_spans(starts, ends, everywhere, everywhere, 4)[0] == (18, 0, 0, 3)
    assert best_spans(starts, ends, everywhere, everywhere, 3)[0] == (10, 0, 0, 2)


def test_20_starts_times_20_ends_find_nothing():
    """The usual n-best takes the 20 best of each; where all those ends stand before all those starts, no legal span is left."""
    tokens = 60
    starts, ends = np.zeros((1, tokens)), np.zeros((1, tokens))
    starts[0, 35:55], ends[0, 5:25] = 2, 2
    starts[0, 30], ends[0, 32] = 1.5, 1.5
    tops = [np.argsort(-scores[0], kind="stable")[:20] for scores in (starts, ends)]
    assert not [(i, j) for i in tops[0] for j in tops[1] if i <= j]
    everywhere = np.ones((1, tokens), bool)
    assert best_spans(starts, ends, everywhere, everywhere, 30)[0] == (3, 0, 30, 32)
    apart = (int(starts.argmax()), int(ends.argmax()))  # each argmax for itself: the end before the start
    assert apart == (35, 5)


def test_no_legal_span_and_wrong_shapes():
    zeros, nowhere = np.zeros((1, 3)), np.zeros((1, 3), bool)
    assert best_spans(zeros, zeros, nowhere, ~nowhere, 3) == [] == best_spans(zeros, zeros, nowhere, ~nowhere, 3, 5)
    assert best_spans(np.full((1, 3), -np.inf), zeros, ~nowhere, ~nowhere, 3) == []
    for bad in (zeros[0], np.zeros((1, 4))):
        with pytest.raises(ValueError, match=r"\(W, S\) four times"):
            best_spans(bad, zeros, nowhere, nowhere, 3)
    with pytest.raises(ValueError, match="NaN"):
        best_spans(np.full((1, 3), np.nan), zeros, ~nowhere, ~nowhere, 3)


def test_every_token_counts_where_it_has_the_most_context():
    # Google's example: windows "the man went to the", "to the store and bought", "and bought a gallon of"; bought is token 7
    windows = [(0, 5), (3, 8), (6, 11)]
    assert max_context(windows, 11).tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    random = np.random.default_rng(0)
    for _ in range(50):
        windows, first = [], 0
        while not windows or windows[-1][1] < 40:
            windows.append((first, min(40, first + int(random.integers(5, 15)))))
            first += int(random.integers(1, 5))
        spans = [SimpleNamespace(start=first, length=end - first) for first, end in windows]
        for token, window in enumerate(max_context(windows, 40)):
            assert [number for number in range(len(spans)) if _check_is_max_context(spans, number, token)] == [window]
    assert max_context([(0, 2)], 3).tolist() == [0, 0, -1]
