"""Entities in sequences of tags: reading the tag schemes, scoring, and decoding by the grammar of the tags.

A tag is O, or a prefix and a type: B-person. The type is all after the FIRST hyphen, so B-creative-work is of type creative-work;
a prefix alone (B) has the type _. Scheme by scheme, what a prefix says about its word:

    IOB2    B first of an entity, I a later word
    IOB1    I any word of an entity, B only where it would else grow together with the entity of the same type before it
    IOBES   B first, I inner, E last word of an entity of several words, S an entity of one word
    BILOU   the same with L for E and U for S

All are converted to IOB2 before scoring: the rules of conlleval for E and S differ between its Perl original, which joins S-X S-X
into one entity, and its ports, which do not; of IOB2 all say the same.

Two ways to read the entities from IOB tags, both given under their names, since figures of one are often compared with the other:

    lenient   an I-X after O, after another type or at the start begins an entity, as in conlleval (Tjong Kim Sang & Buchholz 2000)
              and in seqeval by default
    strict    an entity begins with B; an I-X that continues none belongs to no entity, as in seqeval's mode="strict", scheme=IOB2

An entity is right if its first word, last word and type are. P = right / predicted, R = right / gold, F1 = 2PR / (P + R), 0 where
0/0. A sentence end ends every entity. Proved on all 625 strings of length 4 over two types against both modes of seqeval, and
by hand against the rules of conlleval (tests/reference/test_metrics_entities.py).

Axes: S words, T tags.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

Span = tuple[str, int, int]  # type, first word, word after the last

IOBES_OF = {"BILOU": {"B": "B", "I": "I", "L": "E", "U": "S"}, "IOBES": {letter: letter for letter in "BIES"}}
SCHEMES = ("IOB1", "IOB2", "IOBES", "BILOU")


def split_tag(tag: str) -> tuple[str, str]:
    """(prefix, type) of a tag: ("O", "") of O, ("B", "creative-work") of B-creative-work, ("B", "_") of B. Raises ValueError."""
    prefix, hyphen, kind = tag.partition("-")
    if tag == "O":
        return "O", ""
    if len(prefix) != 1 or prefix not in "BIESLU" or (hyphen and not kind):
        raise ValueError(f"the tag {tag!r} is neither O nor a prefix (B, I, E, S, L or U), a hyphen and a type, as in B-person")
    return prefix, kind or "_"


# ---- schemes ----


def detect_scheme(sentences: Iterable[Sequence[str]]) -> str:
    """The scheme of the tags of a whole file: IOB1, IOB2, IOBES or BILOU.

    E or S: IOBES; L or U: BILOU. Else IOB1 where every B follows an entity of its own type and some I begins one; else IOB2. A file
    that fits neither, as one in which some entities begin with B after O and others with I, is read as IOB2; to_iob2 counts its
    irregular tags. Raises ValueError for a tag that is none, and for E or S beside L or U.
    """
    prefixes, begun_by_i, needless_b = set(), 0, 0
    for tags in sentences:
        before = ("O", "")
        for tag in tags:
            prefix, kind = split_tag(tag)
            prefixes.add(prefix)
            begun_by_i += prefix == "I" and kind != before[1]
            needless_b += prefix == "B" and kind != before[1]
            before = prefix, kind
    if prefixes & set("ES") and prefixes & set("LU"):
        raise ValueError("the tags have prefixes of IOBES (E, S) and of BILOU (L, U); one scheme is expected")
    if prefixes & set("ES"):
        return "IOBES"
    if prefixes & set("LU"):
        return "BILOU"
    return "IOB1" if begun_by_i and not needless_b else "IOB2"


def to_iob2(tags: Sequence[str], scheme: str) -> tuple[list[str], int]:
    """(the tags of a sentence in IOB2, how many of them break the rules of `scheme`).

    A broken rule never loses a word: what continues no entity begins one, as in conlleval's reading. Counted are: in IOB2 an I that
    continues nothing; in IOB1 a B that parts nothing; in IOBES and BILOU an I or E that continues nothing, and a B or I with
    neither I nor E of its type after it. Raises ValueError for a tag or a prefix that the scheme does not have.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme {scheme!r}; known are {', '.join(SCHEMES)}")
    names = IOBES_OF.get(scheme, {"B": "B", "I": "I"})
    converted, broken, open_type, ended_type = (
        [],
        0,
        None,
        None,
    )  # type of the entity that may go on; of the one just before this word
    for tag in tags:
        prefix, kind = split_tag(tag)
        if prefix != "O" and prefix not in names:
            raise ValueError(f"the tag {tag!r} does not belong to {scheme}")
        prefix = names.get(prefix, "O")
        goes_on = prefix in "IE" and kind == open_type
        if scheme in IOBES_OF:
            broken += (open_type is not None and not goes_on) + (prefix in "IE" and not goes_on)
        elif scheme == "IOB2":
            broken += prefix == "I" and not goes_on
        else:
            broken += prefix == "B" and kind != ended_type
        converted.append("O" if prefix == "O" else f"{'I' if goes_on else 'B'}-{kind}")
        open_type = kind if prefix in "BI" else None
        ended_type = kind or None
    return converted, broken + (scheme in IOBES_OF and open_type is not None)


# ---- spans and scores ----


def iob(tag: str) -> tuple[str, str]:
    prefix, kind = split_tag(tag)
    if prefix not in "OBI":
        raise ValueError(f"the tag {tag!r} is not of IOB; convert with to_iob2 first")
    return prefix, kind


def lenient_spans(tags: Sequence[str]) -> list[Span]:
    """Entities of a sentence as conlleval reads them: B begins one, and so does an I that continues none. tags: IOB1 or IOB2."""
    spans: list[Span] = []
    for i, tag in enumerate(tags):
        prefix, kind = iob(tag)
        if prefix == "I" and spans and spans[-1][0] == kind and spans[-1][2] == i:
            spans[-1] = (kind, spans[-1][1], i + 1)
        elif prefix != "O":
            spans.append((kind, i, i + 1))
    return spans


def strict_spans(tags: Sequence[str]) -> list[Span]:
    """Entities of a sentence by the rules of IOB2: B begins one, I of its type right after goes on, another I belongs to none."""
    spans: list[Span] = []
    for i, tag in enumerate(tags):
        prefix, kind = iob(tag)
        if prefix == "I" and spans and spans[-1][0] == kind and spans[-1][2] == i:
            spans[-1] = (kind, spans[-1][1], i + 1)
        elif prefix == "B":
            spans.append((kind, i, i + 1))
    return spans


READINGS: dict[str, Callable[[Sequence[str]], list[Span]]] = {"lenient": lenient_spans, "strict": strict_spans}


def entity_counts(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], reading: str) -> dict[str, np.ndarray]:
    """Type -> (3) numbers of entities that are right, predicted, gold. reading: "lenient" or "strict".

    gold, predicted: sentences of as many IOB2 tags. Counts of parts may be added, type by type (add_counts).
    """
    counts: dict[str, np.ndarray] = {}
    for row, (g, p) in enumerate(zip(gold, predicted, strict=True)):
        if len(g) != len(p):
            raise ValueError(f"sentence {row}: {len(g)} gold tags and {len(p)} predicted ones")
        a, b = set(READINGS[reading](g)), set(READINGS[reading](p))
        for column, spans in enumerate((a & b, b, a)):
            for kind, _, _ in spans:
                counts.setdefault(kind, np.zeros(3, dtype=np.int64))[column] += 1
    return counts


def add_counts(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    nothing = np.zeros(3, dtype=np.int64)
    return {kind: a.get(kind, nothing) + b.get(kind, nothing) for kind in a | b}


def entity_scores(counts: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Type -> precision, recall, f1, predicted, gold; by the alphabet. A type that is only predicted has its line, too."""
    return {kind: prf(counts[kind]) for kind in sorted(counts)}


def overall(counts: dict[str, np.ndarray]) -> dict[str, float]:
    """precision, recall, f1, predicted, gold of all entities together (micro): conlleval's first line."""
    return prf(sum(counts.values(), np.zeros(3, dtype=np.int64)))


def prf(counts: np.ndarray) -> dict[str, float]:
    right, predicted, gold = (int(n) for n in counts)
    return {
        "precision": right / max(predicted, 1),
        "recall": right / max(gold, 1),
        "f1": 2 * right / max(predicted + gold, 1),
        "predicted": predicted,
        "gold": gold,
    }


def entity_metrics(counts: dict[str, dict[str, np.ndarray]]) -> dict[str, float]:
    """precision, recall, f1 with _lenient and _strict. counts: reading -> what entity_counts gives under that reading."""
    scores = {reading: overall(counts[reading]) for reading in READINGS}
    return {f"{name}_{reading}": scores[reading][name] for reading in READINGS for name in ("precision", "recall", "f1")}


def token_accuracy(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """The share of the words whose tag is right. No F1: tags that are all O have most words right and no entity found.

    The conlleval of CoNLL-2003 counts the -DOCSTART- lines as words here; minift's reader does not hand them on.
    """
    pairs = [pair for g, p in zip(gold, predicted, strict=True) for pair in zip(g, p, strict=True)]
    return sum(g == p for g, p in pairs) / max(len(pairs), 1)


# ---- decoding ----


def grammar(tags: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(which tags may begin a sentence (T), which may follow which (T, T), [before, after]) by the rules of IOB2.

    I-X stands only after B-X or I-X; all else is free, and every tag may end a sentence. tags: the tag set in the order of its ids.
    """
    split = [iob(tag) for tag in tags]
    start = np.array([prefix != "I" for prefix, _ in split])
    after = np.array([[prefix != "I" or kind == before for prefix, kind in split] for _, before in split])
    return start, after


def greedy(log_probabilities) -> list[int]:
    """The best tag of every word for itself; of equal ones the first. May break the grammar. log_probabilities: (S, T)."""
    return check(log_probabilities).argmax(1).tolist()


def viterbi(log_probabilities, start: np.ndarray, after: np.ndarray) -> tuple[list[int], float]:
    """The path of the highest sum of log-probabilities among those that the grammar allows, and that sum (Viterbi 1967).

        best_1(j) = log p_1(j) for j that may start,   best_s(j) = log p_s(j) + max over i before j of best_{s-1}(i)

    log_probabilities: (S, T), natural logarithms; -inf is allowed. start, after: of grammar. Of paths with the same sum the one
    with the smallest last tag is taken, of these the one with the smallest tag before it, and so on. ([], 0.0) of no words.
    Raises ValueError where no path is possible. Test: test_viterbi_is_the_best_of_all_paths.
    """
    scores = check(log_probabilities)
    if not len(scores):
        return [], 0.0
    best = np.where(start, scores[0], -math.inf)  # (T)
    came_from = []
    for row in scores[1:]:
        paths = np.where(after, best[:, None], -math.inf)  # (T, T): before, after
        came_from.append(paths.argmax(0))
        best = paths.max(0) + row
    tag = int(best.argmax())
    total = float(best[tag])
    if total == -math.inf:
        raise ValueError("no sequence of these tags is possible: every path has a tag of probability 0 or breaks the grammar")
    path = [tag]
    for back in reversed(came_from):
        path.append(int(back[path[-1]]))
    return path[::-1], total


def check(log_probabilities) -> np.ndarray:
    """(S, T) float64. Raises ValueError for another shape, NaN and +inf."""
    scores = np.asarray(log_probabilities, dtype=np.float64)
    if scores.ndim != 2 or np.isnan(scores).any() or (scores == math.inf).any():
        raise ValueError(f"log-probabilities: (S, T) without NaN is expected, found {scores.shape}")
    return scores
