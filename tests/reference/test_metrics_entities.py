"""Entities against seqeval's two modes, conlleval's rules by hand, and all paths of small cases."""

import functools
import itertools
import warnings

import numpy as np
import pytest
import torch

from minift.metrics.entities import (
    READINGS,
    SCHEMES,
    add_counts,
    detect_scheme,
    entity_counts,
    entity_metrics,
    entity_scores,
    grammar,
    greedy,
    lenient_spans,
    overall,
    split_tag,
    strict_spans,
    to_iob2,
    token_accuracy,
    viterbi,
)

TAGS = ["O", "B-X", "I-X", "B-Y", "I-Y"]
ALL = list(itertools.product(TAGS, repeat=4))  # 625 strings
VALID = [tags for tags in ALL if to_iob2(tags, "IOB2")[1] == 0]


def inclusive(spans) -> list[tuple[str, int, int]]:
    return sorted((kind, first, end - 1) for kind, first, end in spans)


def scorer(reading: str):
    """seqeval's precision, recall and F1 in its default mode, or in its strict one with IOB2."""
    if reading == "lenient":
        return pytest.importorskip("seqeval.metrics.sequence_labeling").precision_recall_fscore_support
    strict = pytest.importorskip("seqeval.metrics.v1").precision_recall_fscore_support
    return functools.partial(strict, scheme=pytest.importorskip("seqeval.scheme").IOB2)


# ---- spans and scores ----


def test_all_625_strings_hold_the_entities_of_seqeval():
    scheme = pytest.importorskip("seqeval.scheme")
    labeling = pytest.importorskip("seqeval.metrics.sequence_labeling")
    assert len(set(ALL)) == 625
    for tags in ALL:
        assert inclusive(lenient_spans(tags)) == sorted(labeling.get_entities(list(tags)))
        strict = [e.to_tuple() for e in scheme.Entities([list(tags)], scheme.IOB2).entities[0]]
        assert sorted(strict_spans(tags)) == sorted((kind, first, end) for _, kind, first, end in strict)


@pytest.mark.parametrize("gold", [("B-X", "I-X", "O", "B-Y"), ("I-X", "B-X", "I-Y", "O"), ("O", "O", "O", "O")], ids=" ".join)
@pytest.mark.parametrize("reading", READINGS)
def test_all_625_strings_score_as_in_seqeval(reading, gold):
    score = scorer(reading)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # seqeval warns of 0/0 that it counts as 0
        for tags in ALL:
            counts = entity_counts([gold], [tags], reading)
            ours, pair = overall(counts), ([list(gold)], [list(tags)])
            if not counts:  # where neither has an entity, its strict mode fails with an empty array
                assert (ours["precision"], ours["recall"], ours["f1"]) == (0, 0, 0)
                continue
            expected = score(*pair, average="micro", zero_division=0)
            assert (ours["precision"], ours["recall"], ours["f1"]) == pytest.approx(tuple(expected[:3]), abs=1e-12)
            expected = np.array(score(*pair, average=None, zero_division=0)).T
            by_type = [[s["precision"], s["recall"], s["f1"], s["gold"]] for s in entity_scores(counts).values()]
            np.testing.assert_allclose(by_type, expected, rtol=0, atol=1e-12)


def test_all_625_strings_in_one_corpus_score_as_in_seqeval():
    metrics = pytest.importorskip("seqeval.metrics")
    order = np.random.default_rng(0).permutation(625)
    gold, predicted = [list(tags) for tags in ALL], [list(ALL[i]) for i in order]
    ours = entity_metrics({reading: entity_counts(gold, predicted, reading) for reading in READINGS})
    for reading in READINGS:
        expected = scorer(reading)(gold, predicted, average="micro")
        found = tuple(ours[f"{name}_{reading}"] for name in ("precision", "recall", "f1"))
        assert found == pytest.approx(tuple(expected[:3]), abs=1e-12)
    assert ours["f1_lenient"] != ours["f1_strict"]
    assert token_accuracy(gold, predicted) == pytest.approx(metrics.accuracy_score(gold, predicted))


# tags -> entities by the rules of conlleval: a chunk ends before B, O and a change of type, and starts at B, at I after O, and at a
# change of type. Second: those that are left when an I must continue.
BY_HAND = {
    "I-X": ([("X", 0, 1)], []),
    "O I-X I-X": ([("X", 1, 3)], []),
    "B-X I-X O I-X": ([("X", 0, 2), ("X", 3, 4)], [("X", 0, 2)]),
    "B-X I-Y": ([("X", 0, 1), ("Y", 1, 2)], [("X", 0, 1)]),
    "I-X B-X": ([("X", 0, 1), ("X", 1, 2)], [("X", 1, 2)]),
    "B-X B-X I-X": ([("X", 0, 1), ("X", 1, 3)], [("X", 0, 1), ("X", 1, 3)]),
    "B-X I-X I-Y I-X": ([("X", 0, 2), ("Y", 2, 3), ("X", 3, 4)], [("X", 0, 2)]),
    "B-creative-work I-creative-work": ([("creative-work", 0, 2)],) * 2,
    "B I O B": ([("_", 0, 2), ("_", 3, 4)],) * 2,
    "": ([], []),
}


@pytest.mark.parametrize("tags", BY_HAND)
def test_entities_by_hand(tags):
    assert (lenient_spans(tags.split()), strict_spans(tags.split())) == BY_HAND[tags]


def test_a_report_by_hand():
    """As conlleval prints it: 12 tokens, 4 phrases, found 5, correct 2; accuracy 66.67 %, precision 40.00, recall 50.00, FB1 44.44.

    By type (correct, found, phrases): PER 1 2 1, LOC 0 1 2, ORG 1 2 1.
    """
    gold = ["B-PER I-PER O B-LOC", "O B-ORG I-ORG O", "B-LOC O O O"]
    predicted = ["B-PER I-PER O B-ORG", "O B-ORG I-ORG I-PER", "O O O I-LOC"]
    gold, predicted = ([line.split() for line in lines] for lines in (gold, predicted))
    counts = {reading: entity_counts(gold, predicted, reading) for reading in READINGS}
    assert overall(counts["lenient"]) == pytest.approx({"precision": 0.4, "recall": 0.5, "f1": 4 / 9, "predicted": 5, "gold": 4})
    assert {k: tuple(v) for k, v in counts["lenient"].items()} == {"PER": (1, 2, 1), "LOC": (0, 1, 2), "ORG": (1, 2, 1)}
    # strict: the I-PER after I-ORG and the I-LOC after O are no entities
    assert overall(counts["strict"]) == pytest.approx({"precision": 2 / 3, "recall": 0.5, "f1": 4 / 7, "predicted": 3, "gold": 4})
    both = entity_metrics(counts)
    assert both["f1_lenient"] == pytest.approx(4 / 9) and both["f1_strict"] == pytest.approx(4 / 7)
    assert token_accuracy(gold, predicted) == 8 / 12
    parts = [entity_counts([g], [p], "lenient") for g, p in zip(gold, predicted, strict=True)]
    whole = add_counts(add_counts(parts[0], parts[1]), parts[2])
    assert {k: v.tolist() for k, v in whole.items()} == {k: v.tolist() for k, v in counts["lenient"].items()}
    assert entity_scores(counts["lenient"])["LOC"] == {"precision": 0, "recall": 0, "f1": 0, "predicted": 1, "gold": 2}


def test_nothing_found_is_zero_and_no_error():
    metrics = entity_metrics({reading: entity_counts([["B-X"]], [["O"]], reading) for reading in READINGS})
    assert set(metrics.values()) == {0.0}
    assert overall({})["f1"] == 0


def test_token_accuracy_is_no_f1():
    gold, predicted = [["O"] * 18 + ["B-X", "I-X"]], [["O"] * 20]
    assert token_accuracy(gold, predicted) == 0.9
    assert overall(entity_counts(gold, predicted, "lenient"))["f1"] == 0


def test_the_last_hyphen_gives_another_figure():
    gold, predicted = [["B-creative-work"]], [["B-field-work"]]
    naive = [[tag[0] + "-" + tag.split("-")[-1] for tag in tags[0]] for tags in (gold, predicted)]
    assert overall(entity_counts(naive[:1], naive[1:], "lenient"))["f1"] == 1
    assert overall(entity_counts(gold, predicted, "lenient"))["f1"] == 0


def test_an_entity_does_not_cross_sentences():
    gold, predicted = [["B-X"], ["I-X"]], [["B-X"], ["O"]]
    flat = [[tag for tags in sentences for tag in tags] for sentences in (gold, predicted)]
    assert overall(entity_counts(flat[:1], flat[1:], "lenient"))["f1"] == 0
    assert overall(entity_counts(gold, predicted, "lenient"))["f1"] == pytest.approx(2 / 3)


def test_a_mean_over_gold_types_hides_what_is_only_predicted():
    counts = entity_counts([["B-X", "O", "O"]], [["B-X", "B-Y", "B-Y"]], "lenient")
    scores = entity_scores(counts)
    assert np.mean([s["f1"] for s in scores.values() if s["gold"]]) == 1
    assert scores["Y"] == {"precision": 0, "recall": 0, "f1": 0, "predicted": 2, "gold": 0}
    assert overall(counts)["f1"] == pytest.approx(0.5)


# ---- schemes ----


def encode(spans, words: int, scheme: str) -> list[str]:
    """The tags of a scheme that say these entities."""
    tags = ["O"] * words
    for n, (kind, first, end) in enumerate(spans):
        touches = n > 0 and spans[n - 1][0] == kind and spans[n - 1][2] == first
        single, begin, last = {
            "IOB1": ("BI"[not touches], "BI"[not touches], "I"),
            "IOB2": ("B", "B", "I"),
            "IOBES": ("S", "B", "E"),
            "BILOU": ("U", "B", "L"),
        }[scheme]
        letters = [begin, *"I" * (end - first - 2), last] if end - first > 1 else [single]
        tags[first:end] = [f"{letter}-{kind}" for letter in letters]
    return tags


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_is_converted(scheme):
    """Every way to lay entities of two types over four words, written in the scheme, comes back as IOB2 without a broken rule."""
    assert len(VALID) == len({tuple(strict_spans(tags)) for tags in VALID}) == 153
    written = [encode(strict_spans(tags), 4, scheme) for tags in VALID]
    assert [to_iob2(tags, scheme) for tags in written] == [(list(tags), 0) for tags in VALID]
    assert detect_scheme(written) == scheme


@pytest.mark.parametrize("scheme", ["IOBES", "BILOU"])
def test_strict_schemes_hold_the_entities_of_seqeval(scheme):
    schemes = pytest.importorskip("seqeval.scheme")
    for tags in VALID:
        entities = schemes.Entities([encode(strict_spans(tags), 4, scheme)], getattr(schemes, scheme)).entities[0]
        assert sorted((kind, first, end) for _, kind, first, end in (e.to_tuple() for e in entities)) == sorted(strict_spans(tags))


def test_broken_iobes_holds_the_entities_of_seqeval():
    """All 6,561 strings of length 4: converted, they have the entities of seqeval's default mode, which knows E and S."""
    labeling = pytest.importorskip("seqeval.metrics.sequence_labeling")
    tags_of_two_types = ["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in "XY")]
    for tags in itertools.product(tags_of_two_types, repeat=4):
        converted, _ = to_iob2(tags, "IOBES")
        assert inclusive(lenient_spans(converted)) == sorted(labeling.get_entities(list(tags)))
        assert strict_spans(converted) == lenient_spans(converted)


def test_singles_that_touch_are_two_entities():
    """The Perl conlleval has no rule for S and joins them; so does a conversion of S and E to I."""
    gold, predicted = ["S-X", "S-X"], ["S-X", "O"]
    naive = [[tag.replace("S-", "I-") for tag in tags] for tags in (gold, predicted)]
    right = [to_iob2(tags, "IOBES")[0] for tags in (gold, predicted)]
    assert overall(entity_counts(naive[:1], naive[1:], "lenient"))["f1"] == 0
    assert overall(entity_counts(right[:1], right[1:], "lenient"))["f1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("tags", "scheme", "converted", "broken"),
    [
        ("O I-X I-X B-X", "IOB2", "O B-X I-X B-X", 1),
        ("B-X I-Y", "IOB2", "B-X B-Y", 1),
        ("O I-X I-X B-X I-X I-Y", "IOB1", "O B-X I-X B-X I-X B-Y", 0),
        ("O B-X I-X", "IOB1", "O B-X I-X", 1),
        ("B-X O", "IOBES", "B-X O", 1),
        ("B-X", "IOBES", "B-X", 1),
        ("E-X I-X", "IOBES", "B-X B-X", 3),
        ("B-X I-X E-Y", "IOBES", "B-X I-X B-Y", 2),
        ("B-X L-X U-Y", "BILOU", "B-X I-X B-Y", 0),
        ("B I O", "IOB2", "B-_ I-_ O", 0),
        ("", "IOB2", "", 0),
    ],
)
def test_broken_rules_are_counted_and_lose_no_word(tags, scheme, converted, broken):
    assert to_iob2(tags.split(), scheme) == (converted.split(), broken)


def test_schemes_are_detected():
    assert detect_scheme([["O", "O"], []]) == "IOB2"
    assert detect_scheme([["I-X", "O"], ["I-X", "B-X"]]) == "IOB1"
    assert detect_scheme([["I-X", "O"], ["O", "B-X"]]) == "IOB2"  # fits neither
    assert detect_scheme([["B-X", "I-X"]]) == "IOB2"
    with pytest.raises(ValueError, match=r"IOBES .* and of BILOU"):
        detect_scheme([["S-X"], ["U-X"]])


def test_what_is_no_tag_is_refused():
    assert split_tag("B-creative-work") == ("B", "creative-work")
    for tag in ("X-PER", "PER", "B-", "", "o", "-X", "BI-X", "BIES"):
        with pytest.raises(ValueError, match="neither O nor a prefix"):
            split_tag(tag)
    with pytest.raises(ValueError, match="'S-X' does not belong to IOB2"):
        to_iob2(["S-X"], "IOB2")
    with pytest.raises(ValueError, match="known are IOB1"):
        to_iob2(["O"], "BIO")
    for spans in READINGS.values():
        with pytest.raises(ValueError, match="convert with to_iob2"):
            spans(["S-X"])
    with pytest.raises(ValueError, match="sentence 1: 2 gold tags and 1 predicted"):
        entity_counts([["O"], ["O", "O"]], [["O"], ["O"]], "lenient")


# ---- decoding ----


def test_the_grammar_allows_what_breaks_no_rule():
    start, after = grammar(TAGS)
    for path in itertools.product(range(5), repeat=4):
        allowed = start[path[0]] and all(after[a, b] for a, b in itertools.pairwise(path))
        assert allowed == (tuple(TAGS[i] for i in path) in VALID)


def best_of_all(scores: np.ndarray, start: np.ndarray, after: np.ndarray) -> tuple[list[int], float] | None:
    """By enumeration: the legal path of the highest sum, of equal ones the smallest read from its end."""
    legal = [
        path
        for path in itertools.product(range(scores.shape[1]), repeat=len(scores))
        if start[path[0]] and all(after[a, b] for a, b in itertools.pairwise(path))
    ]
    sums = {path: sum(scores[s, tag] for s, tag in enumerate(path)) for path in legal}
    possible = [path for path in legal if sums[path] > -np.inf]
    if not possible:
        return None
    best = min(possible, key=lambda path: (-sums[path], path[::-1]))
    return list(best), sums[best]


@pytest.mark.parametrize("tags", [TAGS, ["I-X", "B-X", "O"], ["O", "B-X", "B-Y", "I-Y"]], ids=" ".join)
@pytest.mark.parametrize("kind", ["random", "equal sums", "impossible tags"])
def test_viterbi_is_the_best_of_all_paths(tags, kind):
    random = np.random.default_rng(len(tags))
    start, after = grammar(tags)
    for words in (1, 2, 3, 4, 5):
        for _ in range(15):
            scores = random.normal(size=(words, len(tags)))
            if kind == "equal sums":  # quarters add up without rounding
                scores = -random.integers(0, 3, (words, len(tags))) / 4
            if kind == "impossible tags":
                scores[random.random(scores.shape) < 0.5] = -np.inf
            expected = best_of_all(scores, start, after)
            if expected is None:
                with pytest.raises(ValueError, match="no sequence of these tags is possible"):
                    viterbi(scores, start, after)
                continue
            path, total = viterbi(torch.tensor(scores), start, after)
            assert path == expected[0] and total == pytest.approx(expected[1], abs=1e-12)
            assert to_iob2([tags[i] for i in path], "IOB2")[1] == 0


def test_greedy_may_break_the_grammar_and_viterbi_repairs_it():
    """p(O) = 0.6 then p(I-X) = 0.9: greedy says O I-X, an entity of one word; the best path is B-X I-X (0.4 x 0.9 > 0.6 x 0.06)."""
    tags = ["O", "B-X", "I-X"]
    scores = np.log([[0.6, 0.4, 1e-9], [0.06, 0.04, 0.9]])
    first, (second, total) = greedy(scores), viterbi(scores, *grammar(tags))
    assert [tags[i] for i in first] == ["O", "I-X"] and [tags[i] for i in second] == ["B-X", "I-X"]
    assert total == pytest.approx(np.log(0.36))
    gold = [["B-X", "I-X"]]
    for path, f1 in ((first, 0), (second, 1)):
        assert overall(entity_counts(gold, [[tags[i] for i in path]], "lenient"))["f1"] == f1


def test_decoding_of_no_words_and_of_what_is_no_number():
    start, after = grammar(TAGS)
    assert viterbi(np.zeros((0, 5)), start, after) == ([], 0.0) and greedy(np.zeros((0, 5))) == []
    assert greedy([[1.0, 1.0], [0.0, 1.0]]) == [0, 1]
    for bad in (np.full((2, 5), np.nan), np.full((2, 5), np.inf), np.zeros(5)):
        with pytest.raises(ValueError, match=r"\(S, T\) without NaN"):
            viterbi(bad, start, after)
