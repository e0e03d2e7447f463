"""Question answering on cases worked by hand: windows, answers, thresholds, what a user gets, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from contract.tasks import questions_file
from tiny import converted_directory

import minift
import train
from minift import evaluate, predict
from minift.data.layout import TextLayout
from minift.data.squad import Answer, Questions
from minift.errors import Diverged, UserError
from minift.metrics.squad import squad_metrics
from minift.options import options_of
from minift.pretrained import Checkpoint, read
from minift.tasks.question_answering import CLS, Passages, QuestionAnswering
from minift.tasks.task import described, task_from

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    return read(converted_directory(tmp_path_factory.mktemp("base") / "base"))


def asked(*rows: tuple[str, str, str | None], version: str = "1.1") -> Questions:
    """Rows of (question, context, answer or None); the answer stands at the first place that holds it."""
    answers = [[] if answer is None else [Answer(answer, context.find(answer))] for _, context, answer in rows]
    version = "2.0" if not all(answers) else version
    questions, contexts = ([row[i] for row in rows] for i in (0, 1))
    return Questions(Path("rows.json"), questions, contexts, [f"q{i}" for i in range(len(rows))], answers, version=version)


def prepared(checkpoint, examples, max_length=40, overlap=4, longest=30, no_answer=False, threshold=None):
    task = QuestionAnswering(None, max_length, overlap, longest, no_answer, threshold)
    return task, task.prepare(examples, checkpoint)


def logits_of(data: Passages, null: float = -9.0, **spans: tuple[str, float]) -> dict[int, torch.Tensor]:
    """Unit -> logits in which each question's span, as q0=(text, score), stands out in all windows that hold it."""
    outputs = {}
    for unit, row in enumerate(data.rows.tolist()):
        scores = torch.full((int(data.lengths[unit]), 2), -20.0)
        scores[CLS] = null / 2
        text, score = spans.get(data.examples.ids[row], ("", 0.0))
        at = data.examples.contexts[row].find(text) if text else -1
        start, end = data.windows[unit]
        for token in range(start, end):
            a, b = data.characters(row, token, token)
            for side, edge in enumerate((a == at, b == at + len(text))):
                scores[token - start + data.begin[row], side] = score / 2 if edge else scores[token - start + data.begin[row], side]
        outputs[unit] = scores
    return outputs


def answered(task, data, outputs) -> list[dict]:
    rows = range(len(data.examples))
    return list(task.predict(iter([(row, [outputs[i] for i in np.flatnonzero(data.rows == row)]) for row in rows]), data))


def scored(task, data, outputs, units=None):
    meter = task.meter(data)
    for unit in range(len(data)) if units is None else units:
        meter.add(outputs[unit][None], data.outline(np.array([unit]), None))
    return meter


# ---- windows and answers ----


def test_the_question_stands_whole_in_every_window_and_windows_without_the_answer_learn_cls(checkpoint):
    """Trap: a cut at max_length loses the answer without a word; here it is in the second of three windows."""
    context = " ".join(["film"] * 20 + ["good"] + ["film"] * 9)
    _, data = prepared(checkpoint, asked(("the hotel ?", context, "good")), max_length=20, overlap=4)
    assert len(data) == 3 and data.windows.tolist() == [[0, 14], [10, 24], [20, 30]]
    ids = checkpoint.tokenizer.encode("the hotel ?").ids
    for unit in range(3):
        tokens, types = data.window(unit)
        assert tokens[: len(ids)].tolist() == ids and types.tolist() == [0] * 5 + [1] * (len(tokens) - 5)
    assert data.targets.tolist() == [[CLS, CLS], [15, 15], [5, 5]]  # of the third window it is the first token
    assert data.outline(np.arange(3), None).counts.tolist() == [1.0, 1.0, 1.0]
    described = data.describe()
    assert (described["in windows of 20"], described["windows"], described["answers in no window"]) == (1, 3, 0)


def test_answers_that_cannot_be_given_are_counted(checkpoint):
    long = " ".join(["good"] * 12)
    examples = asked(
        ("the ?", f"film {long} film film film film film", long),  # in no window of 12
        ("the ?", "the very hotels", "very hotel"),  # the tokens give hotels: h and ##s are parted, hotel is a token
        ("the ?", "the xfilmx", "film"),  # within what the tokenizer takes apart by letters
        ("the ?", "the \u200d film", "\u200d"),  # no token
        ("the ?", "very very very bad", "very very very"),  # above 2 tokens
        ("the ?", "very bad", None),
    )
    _, data = prepared(checkpoint, examples, max_length=12, overlap=2, longest=2, no_answer=True)
    figures = data.describe()
    assert figures["answers in no window"] == 2 and figures["above 2 tokens"] >= 1 and figures["between tokens"] == 0
    assert data.targets[data.rows == 0].tolist() == [[CLS, CLS]] * int((data.rows == 0).sum())
    _, data = prepared(checkpoint, asked(("the ?", "the film was slow", "fil")))
    assert data.describe()["between tokens"] == 1 and data.tokens_of(0) == (1, 1)


def test_a_blank_before_the_answer_takes_no_word_more(checkpoint):
    """Trap: the usual walk to the characters ends on the word before, where the answer begins with a blank."""
    examples = asked(("the ?", "the film was good .", " was"))
    _, data = prepared(checkpoint, examples)
    assert data.tokens_of(0) == (2, 2) and data.characters(0, 2, 2) == (9, 12)
    naive = max(i for i in range(5) if data.places[0][i][0] <= examples.answers[0][0].start)
    assert naive == 1


def test_the_answer_is_the_text_of_the_user(checkpoint):
    """Characters, not decoded tokens: case, accents and blanks stay."""
    context = "Ça:  the FILM   was Véry\tgood!"
    task, data = prepared(checkpoint, asked(("the ?", context, "FILM   was Véry\tgood")))
    (one,) = answered(task, data, logits_of(data, q0=("FILM   was Véry\tgood", 5.0)))
    assert one["answer"] == "FILM   was Véry\tgood" == context[one["start"] : one["end"]]
    assert list(one) == ["answer", "start", "end", "score", "no_answer", "n_best"] and len(one["n_best"]) == 20
    assert one["n_best"][0] == {key: one[key] for key in ("answer", "start", "end", "score")}
    assert json.loads(json.dumps(one)) == one


def test_an_answer_at_the_edge_of_a_window_counts_where_it_has_more_context(checkpoint):
    """Trap: the same token in two windows; only the one that sees more around it may begin an answer."""
    context = " ".join(["film"] * 12 + ["good"] + ["film"] * 9)
    task, data = prepared(checkpoint, asked(("the ?", context, "good")), max_length=18, overlap=6)
    assert data.windows.tolist()[:2] == [[0, 13], [7, 20]]
    outputs = logits_of(data, q0=("good", 5.0))
    outputs[0][12 + data.begin[0], 0] = 40.0  # the first window is sure of it, with no word after it
    (one,) = answered(task, data, outputs)
    assert one["no_answer"] == pytest.approx(-9.0 - 5.0) and one["answer"] == "good"


def test_the_joint_maximum_is_found_where_the_best_starts_and_ends_do_not_fit(checkpoint):
    """Trap: of the 20 best starts and ends none fit, and the usual scripts give the fake answer "empty"."""
    words = [f"{'the' if i < 25 else 'good'}" for i in range(50)]
    small = Checkpoint(**vars(checkpoint) | {"config": checkpoint.config | {"max_position_embeddings": 64}})
    task, data = prepared(small, asked(("the ?", " ".join(words), "good")), max_length=64)
    scores = torch.full((int(data.lengths[0]), 2), -20.0)
    begin = int(data.begin[0])
    scores[begin + 25 : begin + 50, 0] = 5.0  # starts all late
    scores[begin : begin + 25, 1] = 5.0  # ends all early
    scores[begin + 3 : begin + 5] = torch.tensor([[-6.0, -6.0], [-6.0, -6.0]])
    starts, ends = (scores[:, i].argsort(descending=True)[:20] for i in (0, 1))
    assert not any(a <= b for a in starts.tolist() for b in ends.tolist())
    (one,) = answered(task, data, {0: scores})
    assert one["answer"] and one["start"] == 12  # from the fourth word, to an early end


def test_nothing_legal_is_no_answer(checkpoint):
    examples = asked(("the ?", "\u200d", None), ("the ?", "", None), ("the ?", "the film", "film"))
    for no_answer in (False, True):
        task, data = prepared(checkpoint, examples, no_answer=no_answer)
        outputs = logits_of(data, q2=("film", 3.0))
        first, second, third = answered(task, data, outputs)
        assert first["answer"] == second["answer"] == "" and first["no_answer"] is None and first["n_best"] == []
        assert first["score"] == float(no_answer) and third["answer"] == "film"
        meter = scored(task, data, outputs)
        assert meter.metrics() == {"f1": 1.0, "exact_match": 1.0}
        assert task.tune(meter).threshold is None or np.isfinite(task.tune(meter).threshold)
        json.dumps(first, allow_nan=False)


# ---- figures ----


def test_empties_are_scored_as_each_version_does(checkpoint):
    """Trap: an answer of punctuation alone has F1 0 by the script of 1.1 and 1 by that of 2.0."""
    rows = [("the ?", "the film , was", ","), ("the ?", "the film", "film")]
    for version, f1 in (("1.1", 0.5), ("2.0", 1.0)):
        task, data = prepared(checkpoint, asked(*rows, version=version))
        meter = scored(task, data, logits_of(data, q0=(",", 3.0), q1=("film", 3.0)))
        assert meter.metrics() == {"f1": f1, "exact_match": 1.0}
        assert ("SQuAD 2.0" in meter.table()) == (version == "2.0")


def test_no_answer_is_the_minimum_over_the_windows(checkpoint):
    """Trap: the maximum would refuse what one window is sure of, as a window without the answer says "not here"."""
    context = " ".join(["film"] * 20 + ["good"] + ["film"] * 9)
    task, data = prepared(checkpoint, asked(("the hotel ?", context, "good")), max_length=20, overlap=4, no_answer=True)
    outputs = logits_of(data, q0=("good", 5.0))
    outputs[0][CLS] = outputs[2][CLS] = 10.0  # 20, where the answer is not
    (one,) = answered(task, data, outputs)
    assert one["answer"] == "good" and one["no_answer"] == pytest.approx(-14.0)
    for units in ((0, 1, 2), (2, 1, 0)):
        assert scored(task, data, outputs, units).margins() == {"q0": pytest.approx(-14.0)}


def tuned_case(checkpoint):
    """The right texts, with margins -8, -4, -2 of which -4 is of a question that has no answer."""
    examples = asked(("the ?", "the film was", "film"), ("the ?", "very good food", None), ("the ?", "a bad app", "bad"))
    task, data = prepared(checkpoint, examples, no_answer=True)
    outputs = logits_of(data, q0=("film", -1.0), q1=("good", -5.0), q2=("bad", -7.0))
    return task, data, outputs


def test_the_threshold_is_the_best_on_the_rows_and_said(checkpoint):
    """Trap: a threshold of 0 answers all here; where no-answer scores are all 0, as on many model cards, 0.0 comes out always."""
    task, data, outputs = tuned_case(checkpoint)
    meter = scored(task, data, outputs)
    assert meter.margins() == {"q0": -8.0, "q1": -4.0, "q2": -2.0}
    assert meter.metrics()["f1"] == pytest.approx(2 / 3)
    tuned = task.tune(meter)
    assert tuned.threshold == -6.0  # of two equal ones the lower; halfway between -8 and -4
    again = scored(tuned, data, outputs)
    assert again.metrics()["f1"] == pytest.approx(2 / 3)
    assert [one["answer"] for one in answered(tuned, data, outputs)] == ["film", "", ""]
    outputs[2][:] = logits_of(data, q2=("bad", 0.0))[2]  # a margin of -9: now -6 parts right from wrong
    tuned = task.tune(scored(task, data, outputs))
    meter = scored(tuned, data, outputs)
    assert tuned.threshold == -6.0 and meter.metrics() == {"f1": 1.0, "exact_match": 1.0}
    table = meter.table()
    assert "above -6, chosen by F1 on the validation rows, whose own figures it flatters" in table
    figures = {line.rsplit(maxsplit=3)[0].strip(): line.split()[-3:] for line in table.splitlines()[1:-1]}
    third, two_thirds = ([n, f, f] for n, f in (("3", "0.3333"), ("3", "0.6667")))
    assert figures["all, if it never answered"] == third and figures["all, at threshold 0"] == two_thirds
    assert figures["all"] == ["3", "1.0000", "1.0000"] and figures["with an answer"][0] == "2" and figures["without one"][0] == "1"


def test_what_has_nothing_to_tune_is_left_alone(checkpoint):
    task, data, outputs = tuned_case(checkpoint)
    some = data.examples.take(np.array([0, 2]))
    all_answered = task.prepare(some, checkpoint)
    assert task.tune(scored(task, all_answered, logits_of(all_answered, q0=("film", 1.0), q2=("bad", 1.0)))) == task
    always, data = prepared(checkpoint, data.examples, no_answer=False)
    meter = scored(always, data, outputs)
    assert always.tune(meter) == always and "the model always answers" in meter.table()
    assert answered(always, data, outputs)[1]["answer"] == "good"


def test_meters_of_parts_of_a_row_merge(checkpoint):
    context = " ".join(["film"] * 20 + ["good"] + ["film"] * 9)
    task, data = prepared(checkpoint, asked(("the ?", context, "good")), max_length=20, overlap=4, no_answer=True)
    outputs = {unit: torch.randn(int(n), 2, generator=torch.Generator().manual_seed(unit)) for unit, n in enumerate(data.lengths)}
    whole, first, second = (scored(task, data, outputs, units) for units in (None, (1,), (2, 0)))
    first.merge(second)
    assert (first.margins(), first.best_texts(), first.metrics()) == (whole.margins(), whole.best_texts(), whole.metrics())


def test_outputs_that_are_no_numbers_are_said_to_diverge(checkpoint):
    task, data = prepared(checkpoint, asked(("the ?", "the film", "film")))
    with pytest.raises(Diverged, match="not numbers"):
        scored(task, data, {0: torch.full((int(data.lengths[0]), 2), torch.nan)})


# ---- what is learned, noted, refused ----


def test_what_is_learned_and_noted(checkpoint):
    train_rows = asked(("the ?", "the film", "film"), ("a ?", "the film", "the"), ("a ?", "bad app", None))
    train_rows.answers[0].append(Answer("the film", 0))
    options = options_of("question-answering")(max_length=30)
    task = QuestionAnswering.learn(train_rows, options)
    assert task == QuestionAnswering(None, 30, 10, 30, True, None) and task_from(described("question-answering", task)) == task
    assert task.columns(train_rows) == {"contexts": 2, "without answer": 1}
    notes = task.review({"train": train_rows, "valid": train_rows.take(np.array([0, 2]))}, options)
    assert "1 training questions have several answers; the first is learned" in notes
    assert "2 of the 2 contexts of the valid rows are in the training rows too" in notes
    assert "windows of 30 tokens that share 10 of its own" in " ".join(notes) and "choose its threshold" in notes[-1]
    assert "stays 0" in task.review({"train": train_rows}, options)[-1]
    always = QuestionAnswering.learn(train_rows.take(np.array([0, 1])), options)
    notes = always.review({"train": train_rows.take(np.array([0])), "test": train_rows}, options)
    assert not always.no_answer and "1 test questions have none" in notes[-1]


def test_what_cannot_be_learned_is_refused(checkpoint):
    options = options_of("question-answering")(max_length=30)
    absent = asked(("the ?", "the film", "film"), ("the ?", "the film", "app"))
    absent.answers[1] = [Answer("app", None)]
    for examples, said in ((absent, "rows.json: question q1: the answer 'app' does not"), (absent.take([]), "no question has an")):
        with pytest.raises(UserError, match=said):
            QuestionAnswering.learn(examples, options)
    with pytest.raises(UserError, match="--overlap 30: expected less than --max-length 30"):
        QuestionAnswering.learn(asked(("the ?", "the film", "film")), options_of("question-answering")(max_length=30, overlap=30))
    examples = asked((" ".join(["the"] * 30), "the film was very very good and slow", "film"))
    for max_length, said in ((99, "--max-length 99: the model has 40"), (36, "q0: the question has 30 tokens; .* room for 3 of")):
        with pytest.raises(UserError, match=said):
            prepared(checkpoint, examples, max_length=max_length)
    _, data = prepared(checkpoint, asked((" ".join(["the"] * 30), "the film", "film")), max_length=36)
    assert len(data) == 1  # it fits, so there is nothing to share
    for layout, said in ((TextLayout(header="yes"), "--header"), (TextLayout(skip_unlabelled=True), "--skip-unlabelled")):
        with pytest.raises(UserError, match=said):
            QuestionAnswering.read("rows.json", layout)
    for fields in ((40, 40, 30, True, None), (40, 4, 0, True, None), (40, 4, 30, True, float("nan"))):
        with pytest.raises(ValueError, match="expected"):
            QuestionAnswering(None, *fields)


# ---- as a user has it ----


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("run")
    converted_directory(place / "base")
    train.main([
        *("--task", "question-answering", "--train", str(questions_file(place / "rows.jsonl")), "--model", str(place / "base")),
        *("--max-length", "20", "--overlap", "3", "--epochs", "2", "--precision", "float32", "--out", str(place / "out")),
    ])  # fmt: skip
    return place / "out"


def test_a_run_knows_its_threshold_and_its_questions_are_split_by_context(run, capsys):
    tuned = minift.load(run)
    assert tuned.task.no_answer and tuned.task.threshold is not None
    result = json.loads((run / "result.json").read_text())
    assert set(result["valid"]) == {"loss", "f1", "exact_match"}
    details = result["details"]["valid"]
    assert (details["threshold"], details["f1"]) == (tuned.task.threshold, result["valid"]["f1"])
    assert details["never_answered"]["f1"] == pytest.approx(details["no_answer_total"] / details["total"])
    assert details["f1"] >= max(details["at_threshold_0"]["f1"], details["never_answered"]["f1"])
    assert {*tuned.model.head.state_dict()} == {"weight", "bias"} and tuned.model.body.pooler is None
    evaluate.main([str(run), "--data", str(run.parent / "rows.jsonl")])
    said = capsys.readouterr().out
    assert "all, if it never answered" in said and "chosen by F1 on the validation rows" in said and "windows" in said


def test_predictions_as_json_lines_and_as_the_official_scripts_read_them(run, tmp_path, capsys):
    data = run.parent / "rows.jsonl"
    predict.main([str(run), "--data", str(data), "--out", str(tmp_path / "p.jsonl")])
    predict.main([str(run), "--data", str(data), "--out", str(tmp_path / "p.json")])
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    official = json.loads((tmp_path / "p.json").read_text())
    assert official == {line["id"]: line["answer"] for line in lines} and len(lines) == 40
    for line in lines:
        assert line["answer"] == (line["context"][line["start"] : line["end"]] if line["answer"] else "")
    tuned = minift.load(run)
    examples = tuned.task.read(str(data), tuned.layout)
    figures = squad_metrics(examples.gold(), official, examples.version)
    metrics = tuned.score(examples)[0].metrics
    assert (metrics["f1"], metrics["exact_match"]) == pytest.approx((figures["f1"], figures["exact"]))


def test_one_question_and_one_context(run, capsys):
    predict.main([str(run), "the film is ?", "--pair", "the film was good ."])
    printed = capsys.readouterr().out
    assert printed.endswith("  the film is ?\n")
    tuned = minift.load(run)
    (one,) = tuned.predict([("the film is ?", "the film was good .")])
    assert tuned.predict(["the film is ?"], pairs=["the film was good ."]) == [one]
    assert printed.startswith(one["answer"] or "(no answer)")
    assert tuned.predict([{"question": "the film is ?", "context": "the film was good ."}]) == [one]
    with pytest.raises(UserError, match="on the command line the context is given by --pair"):
        predict.main([str(run), "the film is ?"])
    with pytest.raises(UserError, match="question 1: context: a text is expected, found 3"):
        tuned.predict([("a", 3)])
