"""masked-lm as a user has it: runs, perplexity, masks filled in, and other tasks from the body of a run."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import LETTERS, WORDS, converted_directory, rows_file, tiny_body
from torch.nn import functional as F

import minift
import train
from minift import evaluate, predict
from minift.errors import UserError
from minift.optim.precision import Float32
from minift.pretrained import read, write
from minift.tasks.masked_lm import MaskedLM
from minift.tasks.task import Model
from minift.training import evaluate as scored

FAST = ("--epochs", "2", "--precision", "float32", "--lr", "1e-2", "--batch-size", "8")


def documents(path: Path, rows: int = 40) -> Path:
    random = np.random.default_rng(0)
    words = [word for word in (*WORDS[:18], *LETTERS) if not word.startswith("#")]
    path.write_text("\n".join(" ".join(random.choice(words, random.integers(3, 60))) for _ in range(rows)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("mlm")
    converted_directory(place / "base", tiny_body(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    documents(place / "docs.txt")
    return place


def run(place: Path, out: str, *flags: str, model: str = "base") -> Path:
    arguments = ["--task", "masked-lm", "--train", str(place / "docs.txt"), "--model", str(place / model), *FAST]
    train.main([*arguments, "--max-length", "24", *flags, "--out", str(place / out)])
    return place / out


@pytest.fixture(scope="module")
def adapted(place):
    return run(place, "adapted")


def test_perplexity_is_the_exponential_of_sum_over_count(adapted, place, capsys):
    """Trap 3: the exponential of a mean of batch means changes with the size of the batches; sum over count does not."""
    tuned = minift.load(adapted)
    examples = tuned.task.read(str(place / "docs.txt"), tuned.layout)
    data = tuned.prepare(examples)
    scores = {size: scored(tuned.model, tuned.task, data, size, Float32()) for size in (2, 7, 40)}
    naive = {}
    for size in scores:
        means = []
        for batch in data.batches(np.array_split(np.argsort(-data.lengths, kind="stable"), len(data) // size), torch.device("cpu")):
            with torch.inference_mode():
                means.append(float(tuned.task.loss(tuned.model(batch)[1], batch).sum() / batch.counts.sum()))
        naive[size] = math.exp(np.mean(means))
    right = [one.metrics["perplexity"] for one in scores.values()]
    assert max(right) - min(right) < 1e-4 * right[0] and max(naive.values()) - min(naive.values()) > 1e-3 * right[0]
    assert math.isclose(right[0], math.exp(scores[2].metrics["loss"]), rel_tol=1e-6)
    evaluate.main([str(adapted), "--data", str(place / "docs.txt")])
    said = capsys.readouterr().out
    assert "masked tokens; blocks of at most 24 tokens within documents, 15% masked (exact)" in said and f"{right[0]:.4f}" in said


def test_without_masks_it_would_be_near_one(place):
    """Trap 3: a model that sees the token itself is sure of it; the figure is of masked tokens, four in five of them hidden."""
    torch.manual_seed(0)
    checkpoint = read(place / "base")
    task = MaskedLM(None, 24, "within", "exact", 0.15)
    data = task.prepare(task.read(str(place / "docs.txt"), task.LAYOUT()), checkpoint)
    body = checkpoint.body(None).eval()
    for layer in body.layers:  # each token says itself: the branches add nothing
        for output in (layer.attention.output, layer.feed_forward.output):
            torch.nn.init.zeros_(output.weight)
            torch.nn.init.zeros_(output.bias)
    torch.nn.init.zeros_(body.embeddings.position.weight)
    torch.nn.init.normal_(body.embeddings.word.weight, std=4.0)
    model = Model(body, task.head(body)).eval()
    with torch.no_grad():
        model.head.dense.weight.copy_(torch.eye(16))
        model.head.norm.weight.fill_(6.0)
    masked = scored(model, task, data, 8, Float32()).metrics["perplexity"]
    total, count = 0.0, 0
    for batch in data.batches([np.arange(len(data))], torch.device("cpu")):
        positions, labels = batch.targets
        open_ids = batch.inputs[0].clone()
        for row in range(len(labels)):
            real = labels[row] >= 0
            open_ids[row, positions[row, real]] = labels[row, real]
        batch.inputs = (open_ids, *batch.inputs[1:])
        with torch.no_grad():
            logits = model(batch)[1]
        total += F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
        count += int((labels >= 0).sum())
    assert math.exp(total / count) < masked / 10


def test_a_run_says_what_is_new_and_shows_the_worst_documents(place, capsys):
    run(place, "said")
    said = capsys.readouterr().out
    assert "newly initialised: head\n" in said and "a document a line" in said
    assert "validation rows with the largest loss\n  line " in said and "of at most 24 tokens within documents" in said
    result = json.loads((place / "said" / "result.json").read_text())
    assert set(result["valid"]) == {"loss", "perplexity", "accuracy"}


@pytest.mark.parametrize("masking", ["exact", "whole-words", "coin"])
@pytest.mark.parametrize("blocks", ["within", "across"])
def test_every_way_of_blocks_and_masks_trains_and_scores_as_it_did(place, capsys, blocks, masking):
    directory = run(place, f"{blocks}-{masking}", "--blocks", blocks, "--masking", masking, "--valid", str(place / "docs.txt"))
    said = capsys.readouterr().out
    assert ("rows with the largest loss" in said) == (blocks == "within")
    result = json.loads((directory / "result.json").read_text())["valid"]
    tuned = minift.load(directory)
    again = tuned.score(tuned.task.read(str(place / "docs.txt"), tuned.layout))[0].metrics
    assert all(math.isclose(again[name], value, rel_tol=1e-5) for name, value in result.items())
    (made,) = tuned.predict(["the film was [MASK] ."])
    assert len(made["masks"]) == 1


def test_masks_are_filled_in(adapted, place, capsys, tmp_path):
    tuned = minift.load(adapted)
    texts = ["the film was [MASK] and [MASK] .", "nothing here", "very " * 40 + "[MASK]"]
    made = tuned.predict(texts)
    assert [len(one["masks"]) for one in made] == [2, 0, 1]
    body, head, tokenizer = tuned.model.body, tuned.model.head, tuned.checkpoint.tokenizer
    ids = torch.tensor([tokenizer.encode(texts[0]).ids])
    with torch.no_grad():
        h = body(ids).hidden[0, ids[0] == tokenizer.token_to_id("[MASK]")]
        logits = head.norm(F.gelu(head.dense(h))) @ body.embeddings.word.weight.T + head.bias
    for mask, p in zip(made[0]["masks"], logits.softmax(-1), strict=True):
        assert math.isclose(mask["score"], p.max().item(), rel_tol=1e-4)
        assert mask["token"] == tokenizer.id_to_token(int(p.argmax())) == mask["candidates"][0]["token"]
        assert len(mask["candidates"]) == 5
    predict.main([str(adapted), texts[0]])
    assert capsys.readouterr().out.count(" | ") == 1
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(texts)))
    predict.main([str(adapted), "--data", str(file), "--out", str(tmp_path / "out.jsonl")])
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == texts and [len(line["masks"]) for line in lines] == [2, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no mask in it"], r"inputs: no \[MASK\] in it, so there is nothing to fill in"),
        (["a [MASK]", "--pair", "b"], "pair"),
    ],
)
def test_mistakes_in_prediction(adapted, arguments, says):
    with pytest.raises(UserError, match=says):
        predict.main([str(adapted), *arguments])


def test_other_tasks_go_on_from_the_body_of_a_run(adapted, place, capsys, tmp_path):
    """The body is the run's, bit for bit; its head is left out, which is said; a pooler is new, which is said."""
    data = rows_file(tmp_path / "rows.csv")
    flags = ["--train", str(data), "--model", str(adapted), *FAST]
    train.main([*flags, "--epochs", "0", "--out", str(tmp_path / "zero")])
    said = capsys.readouterr().out
    assert "newly initialised: head, pooler; its own head, of masked-lm, is left out" in said
    start, run = read(adapted / "model"), read(tmp_path / "zero" / "model")
    shared = run.tensors.keys() & start.tensors.keys()
    assert run.tensors.keys() - shared == {"pooler.dense.weight", "pooler.dense.bias"} and shared == start.tensors.keys()
    assert all(torch.equal(run.tensors[name], start.tensors[name]) for name in shared)
    assert run.head.keys() == {"weight", "bias"} and not run.heads
    train.main([*flags, "--method", "lora:rank=2+bitfit", "--pool", "mean", "--out", str(tmp_path / "lora")])
    said = capsys.readouterr().out
    assert "newly initialised: head; its own head, of masked-lm, is left out" in said
    assert minift.load(tmp_path / "lora").predict(["the film was good"])[0]["label"] in ("positive", "negative")


def test_a_delta_of_masked_lm_is_gone_on_from_too(place, tmp_path, capsys):
    """bitfit changes the plain body, so its run is a start for others; lora adds to it, so it must be merged first."""
    bitfit = run(place, "bitfit", "--method", "bitfit")
    train.main(["--train", str(rows_file(tmp_path / "rows.csv")), "--model", str(bitfit), *FAST, "--out", str(tmp_path / "a")])
    assert "is left out" in capsys.readouterr().out
    assert minift.load(tmp_path / "a").predict(["good"])[0]["label"] in ("positive", "negative")
    lora = run(place, "lora", "--method", "lora:rank=2,sites=word")
    with pytest.raises(UserError, match="merge them first"):
        train.main(["--train", str(tmp_path / "rows.csv"), "--model", str(lora), *FAST, "--out", str(tmp_path / "b")])


def test_masked_lm_goes_on_with_the_head_of_its_own_run(adapted, place, capsys):
    before = json.loads((adapted / "result.json").read_text())["valid"]
    capsys.readouterr()
    again = run(place, "again", "--epochs", "0", model="adapted")
    assert "newly initialised: nothing\n" in capsys.readouterr().out
    after = json.loads((again / "result.json").read_text())["valid"]
    assert all(math.isclose(after[name], value, rel_tol=1e-5) for name, value in before.items())


def test_a_head_is_fitted_on_the_frozen_body_before_anything_is_compared(place, capsys):
    """Trap 5: a new head says nothing of the body. probe fits it, full goes on with the same head: before and after compare."""
    untrained = json.loads((run(place, "untrained", "--epochs", "0") / "result.json").read_text())["valid"]
    fitted = run(place, "fitted", "--method", "probe", "--epochs", "6")
    before = json.loads((fitted / "result.json").read_text())["valid"]
    assert before["perplexity"] < untrained["perplexity"]
    base, kept = read(place / "base"), read(fitted / "model")
    assert all(torch.equal(kept.tensors[name], base.tensors[name]) for name in kept.tensors)
    capsys.readouterr()
    start = run(place, "start", "--epochs", "0", model="fitted")
    assert "newly initialised: nothing\n" in capsys.readouterr().out
    again = json.loads((start / "result.json").read_text())["valid"]
    assert all(math.isclose(again[name], value, rel_tol=1e-5) for name, value in before.items())


@pytest.mark.parametrize(
    "flags",
    [
        ("--checkpoint-activations",),
        ("--unfreeze", "gradual"),
        ("--precision", "bfloat16"),
        ("--cache", "disk", "--method", "probe"),
    ],
)
def test_the_rest_of_a_run_knows_nothing_of_the_task(place, flags):
    result = json.loads((run(place, "rest" + flags[-1], *flags) / "result.json").read_text())
    assert math.isfinite(result["valid"]["perplexity"])


def test_a_head_of_pretraining_is_taken_from_the_checkpoint(adapted, place, capsys):
    base, run_of = read(place / "base"), read(adapted / "model")
    base.heads = {"masked-lm": run_of.head}
    write(place / "pretrained", base)
    directory = run(place, "from-pretrained", "--epochs", "0", "--method", "probe", model="pretrained")
    assert "newly initialised: nothing\n" in capsys.readouterr().out
    made = read(directory / "model")
    assert all(torch.equal(made.head[name], tensor) for name, tensor in run_of.head.items()) and not made.heads
    random = run(place, "random", "--epochs", "0", "--init", "random", model="pretrained")
    assert "newly initialised: everything\n" in capsys.readouterr().out
    assert not torch.equal(read(random / "model").head["dense.weight"], run_of.head["dense.weight"])
    base.heads = {"masked-lm": run_of.head | {"bias": torch.zeros(3)}}
    write(place / "broken", base)
    with pytest.raises(UserError, match=r"model.safetensors: bias is \(3,\), masked-lm asks for"):
        run(place, "broken-run", model="broken")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--max-length", "41"], "the model has 40 positions"),
        (["--blocks", "both"], "--blocks both: expected within or across"),
        (["--mask-share", "1"], "--mask-share 1.0"),
        (["--pool", "cls"], "--pool"),
    ],
)
def test_mistakes_in_flags(place, flags, says):
    with pytest.raises(UserError, match=says):
        run(place, "never", *flags)
    assert not (place / "never").exists()


def test_a_tokenizer_without_a_mask_is_refused(place, tmp_path):
    base = read(place / "base")
    text = base.tokenizer.to_str().replace("[MASK]", "[HIDE]")
    base.tokenizer = type(base.tokenizer).from_str(text)
    write(tmp_path / "base", base)
    with pytest.raises(UserError, match=r"neither \[MASK\] nor <mask>, so nothing can be masked"):
        run(place, "never", model=str(tmp_path / "base"))
