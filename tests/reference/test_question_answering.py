"""Question answering against transformers' models, tokenizers and loss; beside it the figures of naive versions."""

import functools
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from reference.heads import same_training_step
from tiny import VOCABULARY, converted_directory, tiny_body, tiny_roberta
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor

from minift.data.batching import by_length
from minift.data.squad import Answer, Questions
from minift.data.tokenising import encode_with_places, pair_frame
from minift.formats.huggingface import to_huggingface
from minift.pretrained import Checkpoint, read
from minift.tasks.question_answering import CLS, Passages, QuestionAnswering
from minift.tasks.task import Model

CPU = torch.device("cpu")
WORDS = ["the", "film", "slowly", "good", "zébra", "hotel", "a", "very", "don't", "中文", "fast", ".", "(1895-1943)", "“Rome”"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    return read(converted_directory(tmp_path_factory.mktemp("base") / "base"))


@pytest.fixture(scope="module")
def theirs_tokenizer(tmp_path_factory) -> transformers.BertTokenizerFast:
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in VOCABULARY), encoding="utf-8")
    if int(transformers.__version__.partition(".")[0]) >= 5:
        pytest.skip("transformers 5 takes no vocab_file")
    return transformers.BertTokenizerFast(vocab_file=str(path))


def questions(rows: int = 30, longest: int = 40, seed: int = 0) -> Questions:
    """Random words; every fourth question has no answer, the others one of 1 to 4 words."""
    random = np.random.default_rng(seed)
    contexts, answers = [], []
    for row in range(rows):
        words = [WORDS[i] for i in random.integers(len(WORDS), size=random.integers(1, longest))]
        first = random.integers(len(words))
        text = " ".join(words[first : first + random.integers(1, 5)])
        start = len(" ".join(words[:first])) + (first > 0)
        contexts.append(" ".join(words))
        assert contexts[-1][start : start + len(text)] == text
        answers.append([] if row % 4 == 3 else [Answer(text, int(start))])
    asked = [" ".join(WORDS[i] for i in random.integers(4, size=random.integers(1, 3))) for _ in range(rows)]
    return Questions(Path("rows.json"), asked, contexts, [f"q{i}" for i in range(rows)], answers, version="2.0")


def prepared(checkpoint, examples, max_length=40, overlap=5, longest=30, **fields) -> tuple[QuestionAnswering, Passages]:
    task = QuestionAnswering(None, max_length, overlap, longest, **{"no_answer": True, "threshold": None} | fields)
    return task, task.prepare(examples, checkpoint)


# ---- loss and gradients ----


def twins(kind: str, dropout: float = 0.0) -> tuple[Model, torch.nn.Module]:
    make = {"bert": tiny_body, "roberta": tiny_roberta}[kind]
    body = make(pool=None, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout).double()
    torch.manual_seed(0)
    model = Model(body, QuestionAnswering(None, 40, 4, 30, True, None).head(body)).double()
    for p in model.head.parameters():
        torch.nn.init.normal_(p)
    config = {"bert": transformers.BertConfig, "roberta": transformers.RobertaConfig}[kind](**asdict(body.config))
    make = {"bert": transformers.BertForQuestionAnswering, "roberta": transformers.RobertaForQuestionAnswering}[kind]
    theirs = make(config).double()
    theirs.load_state_dict(in_theirs(model, kind, dict(model.body.state_dict()), model.head.state_dict()), strict=True)
    return model, theirs


def in_theirs(model: Model, kind: str, body: dict[str, Tensor], head: dict[str, Tensor]) -> dict[str, Tensor]:
    weights = to_huggingface({name: t.detach().clone() for name, t in body.items()}, model.body, f"{kind}.")
    return weights | {f"qa_outputs.{name}": t.detach().clone() for name, t in head.items()}


def theirs_on(theirs, batch, longer: int = 0) -> Tensor:
    """The loss of transformers. longer: columns of padding more than the batch needs."""
    tokens, mask, types = batch.inputs
    mask = torch.ones_like(tokens) if mask is None else mask.long()
    types = torch.zeros_like(tokens) if types is None else types
    tokens, mask, types = (torch.nn.functional.pad(x, (0, longer)) for x in (tokens, mask, types))
    starts, ends = batch.targets[0].unbind(1)
    return theirs(tokens, mask, types, start_positions=starts, end_positions=ends).loss


def as_kind(data: Passages, kind: str) -> Passages:
    if kind == "roberta":
        data.pad, data.typed = 1, False
        for tokens in (data.contexts, data.questions):
            tokens[:] = [np.maximum(ids, 2) for ids in tokens]  # 0 and 1 are special to it
    return data


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_loss_and_gradients_are_those_of_transformers(checkpoint, kind, dropout):
    """On windows of one length; there is no dropout before the head in either."""
    model, theirs = twins(kind, dropout)
    task, data = prepared(checkpoint, questions(60), max_length=24)
    data = as_kind(data, kind)
    (batch,) = data.batches([np.flatnonzero(data.lengths == 24)], CPU)
    assert batch.inputs[1] is None and (batch.inputs[2] is None) == (kind == "roberta")
    assert 3 < (batch.targets[0][:, 0] != CLS).sum() < len(batch.rows) - 3
    same_training_step(task, model, theirs, batch, theirs_on, functools.partial(in_theirs, model, kind))


def test_padding_is_not_in_the_softmax(checkpoint):
    """Trap: transformers' softmax runs over the padding, so that the loss of a row changes with the longest row beside it."""
    model, theirs = twins("bert")
    task, data = prepared(checkpoint, questions(), max_length=36)
    (batch,) = data.batches([np.arange(len(data))], CPU)
    singles = list(data.batches([np.array([unit]) for unit in range(len(data))], CPU))
    right = torch.stack([theirs_on(theirs, one) for one in singles])
    torch.testing.assert_close(task.loss(model(batch)[1], batch), right, rtol=0, atol=1e-10)
    naive = theirs_on(theirs, batch)
    assert abs(naive - right.mean()) > 1e-2 and abs(theirs_on(theirs, batch, longer=4) - naive) > 1e-2
    right.mean().backward()
    task.loss(model(batch)[1], batch).mean().backward()
    gradients = in_theirs(model, "bert", *({n: p.grad for n, p in part.named_parameters()} for part in (model.body, model.head)))
    for name, p in theirs.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad, rtol=0, atol=1e-10, msg=name)


def test_targets_outside_the_window_are_not_dropped(checkpoint):
    """Trap: transformers ignores positions of S or more, so that windows without their answer would leave the loss in silence."""
    model, theirs = twins("bert")
    task, data = prepared(checkpoint, questions(60), max_length=20)
    (batch,) = data.batches([np.flatnonzero(data.lengths == 20)], CPU)
    without = batch.targets[0][:, 0] == CLS
    assert 3 < without.sum() < len(without)
    ours = task.loss(model(batch)[1], batch)
    torch.testing.assert_close(ours.mean(), theirs_on(theirs, batch), rtol=0, atol=1e-10)
    outside = batch.targets[0].clone()
    outside[without] = 999
    batch.targets = (outside, batch.targets[1])
    torch.testing.assert_close(theirs_on(theirs, batch), ours[~without].mean(), rtol=0, atol=1e-10)


def test_the_mean_of_batches_is_not_the_mean_over_windows(checkpoint):
    """Trap: a last batch of one window weighs as much as one of seven where means of batches are averaged."""
    model, theirs = twins("bert")
    task, data = prepared(checkpoint, questions(60), max_length=20)
    units = np.flatnonzero(data.lengths == 20)[:15]
    (large,) = data.batches([units], CPU)
    units = units[task.loss(model(large)[1], large).argsort().numpy()]
    batches = list(data.batches([units[:7], units[7:14], units[14:]], CPU))
    ours = sum(task.loss(model(batch)[1], batch).sum() for batch in batches) / sum(batch.counts.sum() for batch in batches)
    torch.testing.assert_close(ours, theirs_on(theirs, large), rtol=0, atol=1e-12)
    assert abs(torch.stack([theirs_on(theirs, batch) for batch in batches]).mean() - ours) > 1e-3


# ---- windows and targets ----


def features_of(tokenizer, examples: Questions, row: int, max_length: int, overlap: int):
    return tokenizer(
        examples.questions[row],
        examples.contexts[row],
        truncation="only_second",
        max_length=max_length,
        stride=overlap,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )


def usual_targets(features, window: int, answers: list[Answer]) -> tuple[int, int]:
    """As the usual preprocessing finds them: walk inwards to the answer's characters; [CLS] where the window does not hold it."""
    offsets, sequence = features["offset_mapping"][window], features.sequence_ids(window)
    if not answers:
        return CLS, CLS
    begin, behind = answers[0].start, answers[0].start + len(answers[0].text)
    inside = [i for i, s in enumerate(sequence) if s == 1]
    if not inside or offsets[inside[0]][0] > begin or offsets[inside[-1]][1] < behind:
        return CLS, CLS
    return max(i for i in inside if offsets[i][0] <= begin), min(i for i in inside if offsets[i][1] >= behind)


@pytest.mark.parametrize(("max_length", "overlap"), [(40, 0), (24, 7), (20, 3), (40, 20)])
def test_windows_and_targets_are_those_of_transformers(checkpoint, theirs_tokenizer, max_length, overlap):
    examples = questions(60)
    _, data = prepared(checkpoint, examples, max_length, overlap)
    unit = holding = 0
    for row in range(len(examples)):
        features = features_of(theirs_tokenizer, examples, row, max_length, overlap)
        for window, ids in enumerate(features["input_ids"]):
            tokens, types = data.window(unit)
            assert tokens.tolist() == ids and types.tolist() == features["token_type_ids"][window]
            assert data.rows[unit] == row and data.lengths[unit] == len(ids)
            expected = usual_targets(features, window, examples.answers[row])
            assert data.targets[unit].tolist() == [*expected]
            holding += expected != (CLS, CLS)
            start, end = data.windows[unit]
            begin = int(data.begin[row])
            for i, token in enumerate(range(start, end)):
                assert data.characters(row, token, token) == features["offset_mapping"][window][begin + i]
            unit += 1
    assert unit == len(data) and holding > 30


def test_the_step_of_google_is_another_figure_than_the_overlap(checkpoint, theirs_tokenizer):
    """Trap: with 384 tokens, of which a question leaves 371, doc_stride 128 of run_squad.py is an overlap of 243, not of 128."""
    context = " ".join(["film"] * 900)
    examples = Questions(Path("rows.json"), ["the film ?"], [context], ["q"], [[]], version="2.0")
    small = Checkpoint(**vars(checkpoint) | {"config": checkpoint.config | {"max_position_embeddings": 512}})
    room = 384 - 3 - 3
    counts = {}
    for name, overlap in (("step 128", room - 128), ("overlap 128", 128)):
        _, data = prepared(small, examples, 384, overlap)
        counts[name] = len(data)
        assert len(data) == len(features_of(theirs_tokenizer, examples, 0, 384, overlap)["input_ids"])
        assert {int(b - a) for a, b in zip(data.windows[:, 0], data.windows[1:, 0], strict=False)} == {room - overlap}
    assert counts == {"step 128": 6, "overlap 128": 4}


def test_byte_level_tokens_and_their_characters(tmp_path):
    bpe = ByteLevelBPETokenizer()
    texts = ["the film was slow and very good", "film slow good very hotel"] * 20
    bpe.train_from_iterator(texts, vocab_size=400, min_frequency=1, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    bpe.save_model(str(tmp_path))
    if int(transformers.__version__.partition(".")[0]) >= 5:
        pytest.skip("transformers 5 takes no vocab_file")
    theirs = transformers.RobertaTokenizerFast(vocab_file=str(tmp_path / "vocab.json"), merges_file=str(tmp_path / "merges.txt"))
    ours, pairs = theirs.backend_tokenizer, [("the film ?", "film was  slow, zébra 中文"), ("  very", " good\nfilm")]
    frame = pair_frame(ours)
    for question, context in pairs:
        expected = theirs(question, context, return_offsets_mapping=True)
        (first,), _ = encode_with_places(ours, [question])
        (second,), (places,) = encode_with_places(ours, [context])
        ids, types = frame.put(first, second)
        assert ids.tolist() == expected.input_ids and not types.any()
        of = [place for place, s in zip(expected.offset_mapping, expected.sequence_ids(), strict=True) if s == 1]
        assert all(context[a:b].strip() in ("", context[c:d]) for (a, b), (c, d) in zip(of, places.tolist(), strict=True))
        assert all(context[a:b] == context[a:b].strip() for a, b in places.tolist() if context[a:b].strip())


def test_what_a_checkpoint_cuts_and_pads_is_not_cut_or_padded(checkpoint):
    tokenizer = type(checkpoint.tokenizer).from_str(checkpoint.tokenizer.to_str())
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=50)
    before = tokenizer.to_str()
    (ids,), _ = encode_with_places(tokenizer, [" ".join(["film"] * 30)])
    assert len(ids) == 30 and tokenizer.to_str() == before
    assert [len(part) for part in pair_frame(tokenizer)[:3]] == [1, 1, 1]


# ---- decoding ----


def test_the_usual_decoding_finds_the_same_spans(checkpoint, theirs_tokenizer):
    """Of random logits: max-context, no answer as the minimum over the windows, spans in the context of at most 3 tokens."""
    examples = questions(40)
    task, data = prepared(checkpoint, examples, max_length=20, overlap=6, longest=3)
    random = np.random.default_rng(0)
    logits = [torch.from_numpy(random.normal(size=(int(n), 2))) for n in data.lengths]
    outputs = [(row, [logits[i] for i in np.flatnonzero(data.rows == row)]) for row in range(len(examples))]
    for (row, parts), prediction in zip(outputs, task.predict(iter(outputs), data), strict=True):
        features = features_of(theirs_tokenizer, examples, row, 20, 6)
        null, spans = usual_spans(features, [x.numpy() for x in parts], 3)
        assert prediction["no_answer"] == pytest.approx(null - spans[0][0], abs=1e-12)
        found = [(one["start"], one["end"]) for one in prediction["n_best"]]
        assert found == [span[1] for span in spans[:20]]
        scores = np.array([span[0] for span in spans[:20]] + [null])
        p = np.exp(scores) / np.exp(scores).sum()
        assert [one["score"] for one in prediction["n_best"]] == pytest.approx(p[:-1].tolist())
        a, b = spans[0][1]
        expected = ("", None, None, p[-1]) if null > spans[0][0] else (examples.contexts[row][a:b], a, b, p[0])
        assert (prediction["answer"], prediction["start"], prediction["end"]) == expected[:3]
        assert prediction["score"] == pytest.approx(expected[3])


def usual_spans(features, logits: list[np.ndarray], longest: int) -> tuple[float, list]:
    """(no-answer score, all legal spans as (score, characters), best first), from transformers' windows alone."""
    best, spans = {}, []
    for window in range(len(logits)):
        inside = [i for i, s in enumerate(features.sequence_ids(window)) if s == 1]
        for n, i in enumerate(inside):
            score = min(n, len(inside) - 1 - n) + 0.01 * len(inside)
            place = features["offset_mapping"][window][i]
            if place not in best or score > best[place][0]:
                best[place] = (score, window)
    for window, scores in enumerate(logits):
        inside = [i for i, s in enumerate(features.sequence_ids(window)) if s == 1]
        offsets = features["offset_mapping"][window]
        for i in inside:
            for j in inside:
                if i <= j < i + longest and best[offsets[i]][1] == window:
                    spans.append((scores[i, 0] + scores[j, 1], (offsets[i][0], offsets[j][1])))
    return min(scores[0].sum() for scores in logits), sorted(spans, key=lambda span: -span[0])


def test_figures_are_those_of_the_predictions(checkpoint):
    """What the meter adds up window by window is what transformers' metrics make of the answers that `predict` gives."""
    theirs = pytest.importorskip("transformers.data.metrics.squad_metrics")  # gone in transformers 5
    compute_exact, compute_f1 = theirs.compute_exact, theirs.compute_f1

    examples = questions(40)
    random, unanswered = np.random.default_rng(0), []
    for threshold in (-6.0, -3.0, None):
        task, data = prepared(checkpoint, examples, max_length=20, overlap=6, longest=5, threshold=threshold)
        logits = {unit: torch.from_numpy(random.normal(size=(int(n), 2))) for unit, n in enumerate(data.lengths)}
        meter = task.meter(data)
        for units in by_length(data.lengths, 7):
            longest = int(data.lengths[units].max())
            outputs = torch.full((len(units), longest, 2), -torch.inf, dtype=torch.float64)
            for i, unit in enumerate(units):
                outputs[i, : data.lengths[unit]] = logits[unit]
            meter.add(outputs, data.outline(units, None))
        outputs = [(row, [logits[i] for i in np.flatnonzero(data.rows == row)]) for row in range(len(examples))]
        texts = [prediction["answer"] for prediction in task.predict(iter(outputs), data)]
        gold = [answers[0].text if answers else "" for answers in examples.answers]
        figures = meter.metrics()
        assert figures["f1"] == pytest.approx(np.mean([compute_f1(a, b) for a, b in zip(gold, texts, strict=True)]), abs=1e-12)
        assert figures["exact_match"] == pytest.approx(np.mean([compute_exact(a, b) for a, b in zip(gold, texts, strict=True)]))
        assert 0 < figures["f1"] < 1
        unanswered.append(texts.count(""))
    assert 40 > unanswered[0] > unanswered[1] > unanswered[2]
