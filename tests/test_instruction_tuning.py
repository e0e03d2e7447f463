"""instruction-tuning as a user has it: what trains, packed or not; rows without room for an answer; a model that learns to stop."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from contract.tasks import instructions_file
from reference.test_causal_lm import model_of
from tiny import byte_checkpoint
from twins import close

import minift
import train
from minift import evaluate, generate, predict
from minift.data.layout import Layout
from minift.data.masking import NO_LABEL
from minift.errors import UserError
from minift.tasks.instruction_tuning import InstructionTuning

CPU = torch.device("cpu")
PACKED, APART = (SimpleNamespace(packing=packing, init="pretrained", seed=0) for packing in (True, False))


def prepared(file, options=None, max_length: int = 100):
    rows = InstructionTuning.read(str(file), Layout())
    return InstructionTuning(None, max_length, "instruction").prepare(rows, byte_checkpoint(), options)


@pytest.mark.parametrize("method", ["full", "prefix:length=2", "prompt:length=2", "prompt:length=2+lora:rank=2", "houlsby"])
def test_packed_rows_have_the_loss_and_the_gradient_of_rows_apart(tmp_path, method):
    """Trap: rows that are packed without a mask see each other, go on counting positions, and learn to predict across the seam."""
    file = instructions_file(tmp_path / "rows.jsonl", 12)
    model, gradients, losses, shapes = model_of(method), [], [], []
    for options in (PACKED, APART):
        data = prepared(file, options)
        (units,) = data.order(50, 0, 0)
        (batch,) = data.batches([np.sort(units)], CPU, 0)
        loss = InstructionTuning.loss(None, model(batch)[1], batch).sum()
        loss.backward()
        losses.append(loss.detach())
        shapes.append(tuple(batch.inputs[0].shape))
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
        assert batch.counts.sum() == data.counts.sum()
        if options is PACKED:
            (tokens, _, _), labels = batch.inputs, batch.targets
            naive = model(type(batch)((tokens, None, None), labels, batch.rows, batch.counts))[1][0].sum()
            assert abs(naive / loss - 1) > 1e-4, "without the mask it is another loss"
    close(losses[0] / losses[1], torch.ones_like(losses[0]), "loss")
    for name, gradient in gradients[0].items():
        close(gradient, gradients[1][name], name, 1e-10 * max(1.0, gradient.abs().max().item()))
    assert shapes[0][0] < shapes[1][0] and shapes[0][1] <= 100


def test_no_target_stands_across_a_seam_and_positions_start_anew(tmp_path, capsys):
    """The table of a run with --packing, read literally."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in (("ab", "c"), ("x", "yz"))))
    assert (
        prepared(path, PACKED, 20).sample()[1]
        == [
            [0, 0, "'x'", "0-0", "'y'", "yes"],
            [1, 1, "'y'", "0-1", "'z'", "yes"],
            [2, 2, "'z'", "0-2", "'<|endoftext|>'", "yes"],
            [3, 0, "'a'", "3-3", "", "no"],
            [4, 1, "'b'", "3-4", "'c'", "yes"],
            [5, 2, "'c'", "3-5", "'<|endoftext|>'", "yes"],
        ]
        or prepared(path, PACKED, 20).sample()[1][0][2] == "'a'"
    )
    assert prepared(path, APART, 20).sample()[1] == [
        [0, 0, "'a'", "0-0", "", "no"],
        [1, 1, "'b'", "0-1", "'c'", "yes"],
        [2, 2, "'c'", "0-2", "'<|endoftext|>'", "yes"],
    ]


def test_rows_whose_prompt_fills_the_window_are_named_and_never_give_a_mean_over_nothing(tmp_path, capsys):
    """Trap: no target in a row is a mean over 0, NaN."""
    file = instructions_file(tmp_path / "rows.jsonl")
    data = prepared(file, APART)
    said = capsys.readouterr().err
    assert (
        f"note: 2 rows whose prompt fills --max-length 100, with no answer left: {file}:6, {file}:31; left out of training" in said
    )
    assert data.figures["no answer left"] == 2 and not {5, 30} & {*np.concatenate(data.order(7, 0, 0)).tolist()}
    assert len(data) == 40 and data.counts[[5, 30]].tolist() == [0, 0]
    model = model_of()
    (batch,) = data.batches([np.array([5, 30])], CPU)
    assert model(batch)[1][0].sum() == 0 and batch.counts.sum() == 0
    with pytest.raises(
        UserError, match=r"40 rows whose prompt fills --max-length 20, with no answer left: .*; no other row is left"
    ):
        prepared(file, APART, 20)
    packed = prepared(file, PACKED)
    for size in (1, 7, 40):
        for batch in packed.batches(packed.order(size, 0, 0), CPU, 0):
            assert batch.counts.min() > 0 and batch.inputs[0].shape[1] <= 100, "a long row never stalls a pack"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A tiny GPT-2 from random weights on 240 rows: say a word once, twice or three times."""
    place = tmp_path_factory.mktemp("tuned")
    rows = []
    for i in range(240):
        word, times = ("red", "blue", "green", "pink")[i % 4], i // 4 % 3
        rows.append({"prompt": f"{word} x{times + 1}: ", "completion": " ".join([word] * (times + 1))})
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--model", "gpt2:n_layer=2,n_embd=32,n_head=2,n_positions=48", "--init", "random", "--max-length", "48", "--valid"]
    flags += [str(place / "rows.jsonl"), "--lr", "1e-2", "--epochs", "12", "--batch-size", "16", "--precision", "float32"]
    flags += ["--dropout", "0", "--attention-dropout", "0", "--packing", "--quiet"]
    train.main(["--task", "instruction-tuning", "--train", str(place / "rows.jsonl"), *flags, "--out", str(place / "run")])
    return place


def test_the_loss_on_the_answers_falls_and_generation_ends_by_itself(tuned, capsys):
    events = [json.loads(line) for line in (tuned / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["split"] == "train"]
    assert losses[0] > 4 and losses[-1] < 0.3
    generate.main([str(tuned / "run"), "red x1: ", "blue x2: ", "green x3: "])
    out, err = capsys.readouterr()
    assert out == "red\nblue blue\ngreen green green\n" and not err, (
        "each ends at its end of text, of 200 tokens that it might have"
    )


def test_files_are_answered_in_batches_as_one_by_one(tuned, tmp_path, capsys):
    rows = [json.loads(line) for line in (tuned / "rows.jsonl").read_text().splitlines()[:9]]
    (tmp_path / "ask.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))
    found = []
    for size in ("1", "4"):
        generate.main([str(tuned / "run"), "--data", str(tmp_path / "ask.jsonl"), "--batch-size", size])
        found.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert found[0] == found[1] and [one["text"] for one in found[0]] == [row["prompt"] for row in rows]
    assert sum(one["output"] == row["completion"] for one, row in zip(found[0], rows, strict=True)) >= 8
    assert {one["stopped"] for one in found[0]} <= {"end of text", "number of tokens", "window"}
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "x" * 60}) + "\n" + json.dumps({"prompt": "red x1: "}) + "\n")
    generate.main([str(tuned / "run"), "--data", str(tmp_path / "long.jsonl"), "--out", str(tmp_path / "made.jsonl")])
    first, second = map(json.loads, (tmp_path / "made.jsonl").read_text().splitlines())
    assert first["output"] is None and first["stopped"] == "the prompt fills the window" and second["output"] == "red"
    assert "1 rows are not answered: their prompts fill the window of 48 tokens" in capsys.readouterr().err


def test_predict_and_evaluate_score_the_answers_that_a_file_has(tuned, capsys):
    evaluate.main([str(tuned / "run"), "--data", str(tuned / "rows.jsonl")])
    assert "of answers alone, in rows of at most 48 tokens" in capsys.readouterr().out
    run = minift.load(tuned / "run")
    rows = run.task.read(str(tuned / "rows.jsonl"), run.layout)
    predictions = list(run.predict_rows(rows))
    scores = run.score(rows)[0].metrics
    total = sum(one["loss"] * one["tokens"] for one in predictions) / sum(one["tokens"] for one in predictions)
    assert total == pytest.approx(scores["loss"], rel=1e-5) and np.log(scores["perplexity"]) == pytest.approx(total, rel=1e-5)
    with pytest.raises(
        UserError, match=r"rows without an answer cannot be scored; to have them answered: python -m minift.generate"
    ):
        predict.main([str(tuned / "run"), "red x1: "])
    with pytest.raises(UserError, match="--chat: the run has not learned to answer under headings"):
        generate.main([str(tuned / "run"), "--chat"])


def test_a_chat_keeps_what_was_said_in_the_window_and_says_what_it_forgets(tmp_path, monkeypatch, capsys):
    """With weights that have learned nothing: what is looked at is what the model is asked."""
    file = instructions_file(tmp_path / "rows.jsonl", 20)
    model = "gpt2:n_layer=1,n_embd=16,n_head=2,n_positions=170"
    flags = ["--model", model, "--init", "random", "--max-length", "170", "--epochs", "1", "--precision", "float32", "--quiet"]
    train.main(["--task", "instruction-tuning", *flags, "--train", str(file), "--out", str(tmp_path / "run")])
    lines, asked = iter(["Say red.", "", "Say blue.", "\udcff", "Say a.", "z" * 200, "Say b."]), []
    monkeypatch.setattr("minift.generate.ask", lambda: next(lines, None))
    from minift.generation import Writer

    plain = Writer.write
    monkeypatch.setattr(
        Writer, "write", lambda self, prompts, sampling: asked.append(prompts[0][1]) or plain(self, prompts, sampling)
    )
    capsys.readouterr()
    generate.main([str(tmp_path / "run"), "--chat", "--new-tokens", "20"])
    out, err = capsys.readouterr()
    said = [bytes(b for b in ids.tolist() if b < 256).decode(errors="replace") for ids in asked]
    assert len(said) == 4 and said[0] == "### Instruction:\nSay red.\n\n### Response:\n"
    assert said[1].startswith(said[0]) and said[1].endswith("### Instruction:\nSay blue.\n\n### Response:\n")
    assert "Say red" not in said[2] and said[2].endswith("Say a.\n\n### Response:\n"), "the oldest went first"
    assert "the oldest is forgotten, 1 exchange" in err and "a message of 233 tokens" in err
    assert "the message: a byte that is not UTF-8 (0xff)" in err
    assert all(len(ids) + 20 <= 171 for ids in asked) and len(out.splitlines()) >= 4


WRONG = {
    ("text", "--chat"): "give one of a text, --chat, or --data FILE",
    (): "give one of a text, --chat, or --data FILE",
    ("text", "--top-k", "3"): "--top-k with --temperature 0: nothing is drawn",
    ("text", "--seed", "3"): "--seed with --temperature 0: nothing is drawn",
    ("text", "--seed", str(2**64), "--temperature", "1"): "--seed 18446744073709551616: expected a whole number at least 0",
    ("text", "--batch-size", "3"): "--batch-size goes with --data",
    ("text", "--temperature", "-1"): "--temperature -1.0: expected 0, or a number at least 1e-06",
    ("text", "--temperature", "1e-320"): "expected 0, or a number at least 1e-06",
    ("text", "--temperature", "1", "--top-p", "1.5"): "--top-p 1.5: expected a number above 0 and at most 1",
    ("text", "--new-tokens", "0"): "--new-tokens 0: expected a whole number at least 1",
    ("text", "--stop", ""): "--stop is empty",
    ("a\udcff",): "the text: a byte that is not UTF-8 (0xff)",
    ("text", "--out", "a"): "--out goes with --data",
    ("x" * 60,): "a prompt of 60 tokens; the window of the model takes from 1 to 48",
}


@pytest.mark.parametrize("flags", WRONG, ids=lambda flags: " ".join(flags)[:30])
def test_what_cannot_be_written_is_said_in_one_line(tuned, flags):
    with pytest.raises(UserError) as error:
        generate.main([str(tuned / "run"), *flags])
    assert WRONG[flags] in str(error.value)


def test_labels_before_the_answer_do_not_count(tmp_path):
    data = prepared(instructions_file(tmp_path / "rows.jsonl", 4), APART)
    for tokens, targets in zip(data.tokens, data.targets, strict=True):
        first = np.flatnonzero(targets != NO_LABEL)[0]
        assert bytes(tokens[: first + 1].tolist()).endswith(b"### Response:\n") and (targets[first:] != NO_LABEL).all()
