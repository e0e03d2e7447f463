"""Token classification on cases worked by hand: windows, decoding, readings, schemes, offsets, and what is refused."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from contract.tasks import sentences_file
from tiny import converted_directory, tiny_body

import minift
import train
from minift.data.conll import Tagged
from minift.data.layout import Layout
from minift.errors import Diverged, UserError
from minift.options import options_of
from minift.pretrained import Checkpoint, read
from minift.tasks.task import described, task_from
from minift.tasks.token_classification import TokenClassification, Words

CPU = torch.device("cpu")
LABELS = ["O", "B-X", "I-X", "B-Y", "I-Y"]
OUT, BX, IX, BY, IY = range(5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    return read(converted_directory(tmp_path_factory.mktemp("base") / "base"))


def tagged(*rows: tuple[str, str]) -> Tagged:
    """Rows of (words, tags), parted by blanks."""
    return Tagged(Path("rows.conll"), [words.split() for words, _ in rows], [tags.split() for _, tags in rows])


def inputs(examples: Tagged) -> list[dict]:
    return [{"tokens": words, "tags": tags} for words, tags in zip(examples.words, examples.tags, strict=True)]


def prepared(checkpoint, examples, max_length=40, overlap=4) -> tuple[TokenClassification, Words]:
    task = TokenClassification(LABELS, None, max_length, overlap)
    return task, task.prepare(examples, checkpoint)


def scored(checkpoint, examples: Tagged, *paths: list[int], second: dict = {}):  # noqa: B006
    """The meter after logits whose best tags are these paths. second: (row, word) -> a tag that is nearly as good."""
    task, data = prepared(checkpoint, examples)
    meter = task.meter(data)
    for batch in data.batches([np.arange(len(data))], CPU):
        logits = torch.zeros(*batch.inputs[0].shape, len(LABELS))
        for unit, path in enumerate(paths):
            for at, word in zip(data.places[unit], data.words[unit], strict=True):
                logits[unit, at, path[word]] = 5.0
                if (unit, word) in second:
                    logits[unit, at, second[unit, word]] = 4.9
        meter.add(logits, batch)
    return meter


# ---- figures ----


def test_an_i_that_continues_nothing_is_an_entity_to_the_lenient_reading_alone(checkpoint):
    """Trap: conlleval and seqeval's default give 1.0 here, strict IOB2 0.0: which of the two a figure is must be said."""
    meter = scored(checkpoint, tagged(("the film .", "O B-X O")), [OUT, IX, OUT], second={(0, 1): BX})
    figures = meter.metrics()
    assert (figures["f1_lenient_greedy"], figures["f1_strict_greedy"]) == (1.0, 0.0)
    assert figures["f1_lenient"] == figures["f1_strict"] == 1.0  # of all legal paths that of B-X is the best
    table = meter.table()
    assert "all, greedy, strict" in table and "all, viterbi, lenient" in table


def test_single_words_of_iobes_beside_each_other_stay_two_entities(checkpoint):
    """Trap: conlleval's Perl has no rule for S and joins S-X S-X; converted to IOB2 first they are two."""
    for tags in ("S-X S-X O", "U-X U-X O", "B-X B-X O"):
        examples = tagged(("the film .", tags))
        assert scored(checkpoint, examples, [BX, BX, OUT]).metrics()["f1_strict"] == 1.0
        assert scored(checkpoint, examples, [BX, IX, OUT]).metrics()["f1_strict"] == 0.0


def test_an_entity_ends_with_its_sentence_and_keeps_the_hyphens_of_its_type(checkpoint):
    examples = tagged(("the film", "O B-creative-work"), ("was good", "I-creative-work O"))
    task = TokenClassification.learn(examples, options_of("token-classification")(max_length=40))
    assert task.labels == ["O", "B-creative-work", "I-creative-work"]
    data = task.prepare(examples, checkpoint)
    assert data.gold == [["O", "B-creative-work"], ["B-creative-work", "O"]] and task.columns(examples) == {"entities": 2}
    said = TokenClassification.read(inputs(examples), Layout()).decided
    assert said == ["tags are IOB2", "1 of them break its rules: what continues no entity begins one"]


def test_nothing_found_is_zero_and_no_error(checkpoint):
    examples = tagged(("the film .", "O B-X O"), ("good", "O"))
    figures = scored(checkpoint, examples, [OUT, OUT, OUT], [OUT]).metrics()
    assert {name: figures[name] for name in ("f1_strict", "precision_strict", "recall_strict")} == dict.fromkeys(
        ("f1_strict", "precision_strict", "recall_strict"), 0.0
    )
    assert figures["token_accuracy"] == 0.75  # trap: it is high where nothing is found, and is not called F1
    assert scored(checkpoint, tagged(("good", "O")), [OUT]).metrics()["f1_strict"] == 0.0
    only_predicted = scored(checkpoint, examples, [OUT, BX, OUT], [BY])  # trap: a macro average over gold types would not see it
    assert only_predicted.metrics()["precision_strict"] == 0.5 and "\nY " in only_predicted.table()


def test_words_without_a_token_are_scored_as_o_and_counted(checkpoint):
    """Trap: a word that the tokenizer drops is no row of a naive score, which would be 1.0 here."""
    examples = tagged(("good \u200d film", "B-X I-X B-Y"))
    meter = scored(checkpoint, examples, [BX, OUT, BY])
    figures = meter.metrics()
    assert figures["f1_strict"] == 0.5 and figures["token_accuracy"] == pytest.approx(2 / 3)
    _, data = prepared(checkpoint, examples)
    assert data.describe()["without a token"] == 1 and data.describe()["words"] == 3
    nothing = tagged(("\u200d", "B-X"), ("good", "O"))
    task, data = prepared(checkpoint, nothing)
    assert len(data) == 2 and scored(checkpoint, nothing, [OUT], [OUT]).metrics()["token_accuracy"] == 0.5
    outputs = iter([(0, [torch.zeros(2, 5)]), (1, [torch.zeros(3, 5)])])
    assert [p["tags"] for p in task.predict(outputs, data)] == [["O"], ["O"]]


def test_a_word_without_a_token_is_o_wherever_o_stands_among_the_labels(checkpoint):
    task = TokenClassification(["I-X", "B-X", "O"], None, 40, 4)
    data = task.prepare(tagged(("film \u200d film", "B-X I-X B-X")), checkpoint)
    logits = torch.tensor([[0.0, 0.0, 0.0], [0.0, 9.0, 0.0], [9.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    (prediction,) = task.predict(iter([(0, [logits])]), data)
    assert prediction["tags"] == ["B-X", "O", "B-X"]  # no I-X after it
    meter = task.meter(data)
    (batch,) = data.batches([np.arange(1)], CPU)
    meter.add(logits[None], batch)
    assert meter.metrics()["f1_lenient_greedy"] == 0.5 and meter.metrics()["token_accuracy"] == pytest.approx(2 / 3)


def test_a_type_that_training_has_not_seen_counts_as_missed_and_is_not_in_the_loss(checkpoint):
    examples = tagged(("the film .", "B-X B-Z O"))
    _, data = prepared(checkpoint, examples)
    assert data.outline(np.arange(1), None).counts.tolist() == [2.0] and data.describe()["of types not learned"] == 1
    figures = scored(checkpoint, examples, [BX, OUT, OUT]).metrics()
    assert (figures["recall_strict"], figures["token_accuracy"]) == (0.5, pytest.approx(2 / 3))
    task, _ = prepared(checkpoint, examples)
    notes = task.review({"train": tagged(("a", "B-X")), "valid": examples}, None)
    assert any("Z 1; they count as missed" in note for note in notes)


def test_outputs_that_are_not_finite_are_said_to_diverge(checkpoint):
    task, data = prepared(checkpoint, tagged(("the film", "O B-X")))
    (batch,) = data.batches([np.arange(1)], CPU)
    with pytest.raises(Diverged, match="not finite"):
        task.meter(data).add(torch.full((1, 4, 5), torch.nan), batch)


# ---- windows ----


def long_row(words: int = 36) -> Tagged:
    return tagged((" ".join(["film"] * words), " ".join(["B-X", "I-X", "O"] * (words // 3))))


def test_each_word_is_in_one_window_where_it_has_most_context(checkpoint):
    """Trap: a cut at max_length leaves 8 of 36 words; windows that all score their words count those of the overlap twice."""
    _, data = prepared(checkpoint, long_row(), max_length=10, overlap=4)
    assert [len(ids) for ids in data.tokens] == [10] * len(data) and data.rows.tolist() == [0] * len(data)
    assert sorted(np.concatenate(data.words)) == list(range(36))
    assert sum(len(ids) - 2 for ids in data.tokens) > 36
    counts = data.outline(np.arange(len(data)), None).counts
    assert counts.sum() == 36
    for (first, second), (a, b) in zip(pairwise(data.words), pairwise(data.places), strict=True):
        # the last word of a window has as much behind it as the first of the next before it, or one more
        assert second[0] == first[-1] + 1 and 0 <= (9 - a[-1]) - b[0] <= 1, (a, b)
    said = data.describe()
    assert (said["words"], said["longest"], said["in windows of 10"], said["windows"]) == (36, 38, 1, len(data))


def test_a_path_goes_through_the_windows_of_its_row(checkpoint):
    """Tags are decoded over the row: an I at the start of a window may go on what the window before has begun."""
    examples = long_row()
    task, data = prepared(checkpoint, examples, max_length=10, overlap=4)
    gold = [LABELS.index(tag) for tag in examples.tags[0]]
    starts = [words[0] for words in data.words]
    assert any(gold[start] == IX for start in starts), "no entity is parted by a window"
    outputs = []
    for unit in range(len(data)):
        logits = torch.zeros(10, 5)
        logits[data.places[unit], [gold[word] for word in data.words[unit]]] = 9.0
        outputs.append(logits)
    (prediction,) = task.predict(iter([(0, outputs)]), data)
    assert prediction["tags"] == examples.tags[0]
    meter = task.meter(data)
    for unit in reversed(range(len(data))):  # in any order
        assert not meter.seen
        (batch,) = data.batches([np.array([unit])], CPU)
        meter.add(outputs[unit][None], batch)
    assert meter.metrics()["f1_strict"] == 1.0 and meter.seen == 36


def test_one_word_of_many_tokens_makes_no_windows_that_score_nothing(checkpoint):
    examples = tagged((f"good {'x' * 90} film", "O O B-X"))
    _, data = prepared(checkpoint, examples, max_length=10, overlap=4)
    assert len(data) <= 3 and sorted(np.concatenate(data.words)) == [0, 1, 2]


def test_what_does_not_fit_is_refused(checkpoint):
    examples = tagged(("the film", "O B-X"))
    for max_length, overlap, said in ((10, 8, "--overlap 8: expected less than 8"), (99, 4, "--max-length 99: the model has 40")):
        with pytest.raises(UserError, match=said):
            prepared(checkpoint, examples, max_length, overlap)
    options = options_of("token-classification")(max_length=10, overlap=10)
    with pytest.raises(UserError, match="--overlap 10: expected less than --max-length 10"):
        TokenClassification.learn(examples, options)
    with pytest.raises(UserError, match="every tag is O"):
        TokenClassification.learn(tagged(("a b", "O O")), options)
    with pytest.raises(UserError, match=r"rows.conll: .*one scheme is expected"):
        TokenClassification.learn(tagged(("a b", "S-X L-X")), options)
    with pytest.raises(UserError, match="--delimiter is for tables"):
        TokenClassification.read(["a"], Layout(delimiter=","), labelled=False)
    for change, said in (({"labels": ["B-X"]}, "O among"), ({"labels": ["O", "S-X"]}, "IOB"), ({"overlap": 40}, "overlap 40")):
        stored = described("token-classification", TokenClassification(LABELS, None, 40, 4)) | change
        with pytest.raises((UserError, ValueError), match=said):
            task_from(stored)


# ---- a run ----


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("run")
    base = converted_directory(place / "base", tiny_body(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    shared = ["--task", "token-classification", "--train", str(sentences_file(place / "rows.conll")), "--model", str(base)]
    shared += ["--max-length", "12", "--epochs", "12", "--batch-size", "4", "--lr", "5e-3", "--precision", "float32"]
    train.main([*shared, "--out", str(place / "run")])
    return place / "run"


def test_a_run_learns_and_writes_what_it_saw(run):
    result = json.loads((run / "result.json").read_text())
    assert result["valid"]["f1_strict"] > 0.9
    config = json.loads((run / "model" / "config.json").read_text())
    labels = ["O", "B-dislikes", "I-dislikes", "B-likes", "I-likes"]
    learned = {"labels": labels, "pool": None, "max_length": 12, "overlap": 3, "punctuation_apart": True}
    assert config["task"] == {"name": "token-classification", **learned}
    tuned = minift.load(run)
    assert {*tuned.model.head.state_dict()} == {"weight", "bias"} and tuned.model.body.pooler is None


def test_predictions_point_into_the_users_own_text(run):
    tuned = minift.load(run)
    text = "  The film   was\tgood very\u00a0very , the book was bad "
    by_text, by_words = tuned.predict([text, {"tokens": text.split()}])
    assert [(e["type"], e["text"]) for e in by_text["entities"]] == [("likes", "good very\u00a0very"), ("dislikes", "bad")]
    assert all(text[e["start"] : e["end"]] == e["text"] and 0 < e["score"] <= 1 for e in by_text["entities"])
    assert by_words["tags"] == by_text["tags"] and len(by_text["tags"]) == len(text.split())
    (alone,) = tuned.predict([["the", "film", "was", "good", "very"]])
    assert {**alone["entities"][0], "score": 0} == {"type": "likes", "text": "good very", "start": 13, "end": 22, "score": 0}
    assert tuned.task.show(alone).startswith("likes 'good very' ") and tuned.task.show({"entities": []}) == "no entity"


def test_a_text_is_split_as_the_training_rows_are(run):
    """Trap: split at blanks alone, "bad." is a word as no training row has one. Tokens and offsets are those of what was tagged."""
    tuned = minift.load(run)
    assert tuned.task.punctuation_apart
    apart, given = tuned.predict(["the film was bad slowly.", {"tokens": ["the", "film", "bad."]}])
    assert apart["tokens"] == ["the", "film", "was", "bad", "slowly", "."] and given["tokens"] == ["the", "film", "bad."]
    assert [(e["text"], e["start"], e["end"]) for e in apart["entities"]] == [("bad", 13, 16)]
    joined = replace(tuned.task, punctuation_apart=False)
    examples = joined.read(["the film was (bad)."], tuned.layout, labelled=False)
    assert joined.prepare(examples, tuned.checkpoint).examples.words == [["the", "film", "was", "(bad)."]]


def test_what_was_missed_and_what_is_wrong_is_shown(run):
    task = minift.load(run).task
    examples = tagged(("the good film", "O B-likes I-likes"))
    assert task.compare(examples, 0, {"tags": ["O", "B-likes", "I-likes"], "entities": []}) == "all right"
    said = task.compare(examples, 0, {"tags": ["B-dislikes", "O", "O"], "entities": []})
    assert said == "missed likes 'good film'; wrong dislikes 'the'"


def test_all_schemes_of_a_file_give_the_same_model_data(checkpoint, tmp_path):
    iob2 = tagged(("the film was good , bad bad", "B-X I-X I-X B-X O B-Y B-Y"), ("a book", "O B-Y"))
    others = {
        "IOB1": ["I-X I-X I-X B-X O I-Y B-Y", "O I-Y"],
        "IOBES": ["B-X I-X E-X S-X O S-Y S-Y", "O S-Y"],
        "BILOU": ["B-X I-X L-X U-X O U-Y U-Y", "O U-Y"],
    }
    task, expected = prepared(checkpoint, iob2)
    for scheme, tags in others.items():
        examples = replace(iob2, tags=[row.split() for row in tags])
        _, data = prepared(checkpoint, examples)
        assert data.gold == expected.gold and all(map(np.array_equal, data.labels, expected.labels))
        assert task.read(inputs(examples), Layout()).decided == [f"tags are {scheme} and become IOB2"]
    assert task.read(inputs(iob2), Layout()).decided == ["tags are IOB2"]
