"""minift.trace: what it prints is what autograd computes and what the update does, for every task and several methods."""

import json

import numpy as np
import pytest
import torch
from contract.tasks import CASES
from contract.test_tasks import Started, bases, toy  # noqa: F401  (fixtures)
from tiny import rows_file

import train
from minift import trace, tracing
from minift.errors import UserError
from minift.optim.rows import numbers
from minift.training import seed_dropout

CPU = torch.device("cpu")
TRACED = [(name, case.models[0], method) for name, case in CASES.items() for method in ("full", "lora:rank=2")]
TRACED += [("text-classification", "bert", m) for m in ("probe", "bitfit", "houlsby", "prefix:length=2+lora", "prompt:length=3")]
TRACED += [("text-classification", "roberta", "full"), ("text-classification", "gpt2", "prefix:length=2")]
TITLES = ("row", "batch", "tokens of the first", "stages", "loss", "gradients and the update", "parameters that have moved most")


@pytest.mark.parametrize(("name", "model", "method"), TRACED)
def test_it_shows_what_happens(tmp_path, bases, name, model, method, capsys):  # noqa: F811
    room = {"max_length": 30} if method.startswith("prompt") else {}
    by_hand = Started(tmp_path, bases, name, model, method=method, **room)
    traced = tracing.trace(by_hand.given)
    batch, network, options = traced.batch, by_hand.model, by_hand.options
    (again,) = by_hand.data["train"].batches([by_hand.data["train"].order(options.batch_size, options.seed, 0)[0]], CPU, 0)
    assert all(torch.equal(a, b) for a, b in zip(batch.targets, again.targets, strict=True))
    # the loss and the gradients, by autograd
    network.train()
    seed_dropout(CPU, options.seed, 0, 0, 0)
    loss = by_hand.task.loss(network(again)[1], again).sum() / again.counts.sum()
    loss.backward()
    gradients = {n: torch.linalg.vector_norm(numbers(p)).item() for n, p in network.named_parameters() if p.grad is not None}
    assert traced.seen.gradients == pytest.approx(gradients, rel=1e-5, abs=1e-8)
    assert traced.taken.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert traced.taken.norm.item() == pytest.approx(np.linalg.norm([*gradients.values()]), rel=1e-5)
    # the update
    after = dict(traced.training.model.named_parameters())
    for n, p in network.named_parameters():
        assert torch.equal(traced.before[n], p), "the weights before the step"
        assert p.requires_grad or torch.equal(after[n], p), "a frozen one"
    assert any(not torch.equal(after[n], p) for n, p in network.named_parameters())
    # the stages, in their order
    stages = list(dict.fromkeys(stage for stage, _, _ in traced.seen.stops))
    assert stages == [*network.body.stages, "head"]
    # what is attended
    for weights in traced.seen.weights.values():
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert bool(traced.seen.weights) == (model != "resnet")
    # all of it is printed
    tracing.show(traced)
    said = capsys.readouterr().out
    assert all(f"==== {title}\n" in said for title in TITLES)
    assert ("==== what is attended" in said) == (model != "resnet")


@pytest.mark.parametrize("name", ["token-classification", "masked-lm"])
def test_what_is_expected_is_what_counts(tmp_path, bases, name):  # noqa: F811
    traced = tracing.trace(Started(tmp_path, bases, name, "bert").given)
    for unit, count in enumerate(traced.batch.counts.tolist()):
        assert len(traced.training.task.expected(traced.batch, unit, traced.tokenizer)) == count > 0


def test_the_attention_is_that_of_the_layer(tmp_path, bases):  # noqa: F811
    """softmax(Q K^T / sqrt(d)) V is what `attend` gives, and padding has no weight."""
    started = Started(tmp_path, bases, "text-classification", "bert", attention_dropout=0.0)
    body, given = started.model.body.eval(), []
    module = body.layers[1].attention.attend
    module.register_forward_hook(lambda module, inputs, output: given.append((inputs, output)))
    tokens, mask = torch.tensor([[2, 5, 6, 0], [2, 5, 6, 7]]), torch.tensor([[True, True, True, False], [True] * 4])
    body(tokens, mask, torch.zeros_like(tokens))
    ((inputs, output),) = given
    weights = tracing.attention_of(*inputs)
    assert torch.equal(weights[:, :, 3], torch.zeros(4, 4))
    torch.testing.assert_close(weights @ inputs[2][0], output[0])


def test_a_run_is_traced_with_its_weights(tmp_path, bases, capsys):  # noqa: F811
    data, base = rows_file(tmp_path / "rows.csv"), str(bases["bert"])
    flags = ["--train", str(data), "--model", base, "--method", "lora", "--lr", "1e-2", "--precision", "float32", "--epochs", "12"]
    train.main([*flags, "--out", str(tmp_path / "run")])
    capsys.readouterr()
    losses = []
    for arguments in ([str(tmp_path / "run"), "--batch-size", "44"], [*flags, "--batch-size", "44", "--out", str(tmp_path / "no")]):
        trace.main(arguments)
        said = capsys.readouterr().out
        losses.append(float(said.split("==== loss\n")[1].split(":")[0]))
    assert losses[0] < 0.9 * losses[1] and not (tmp_path / "no").exists() and not (tmp_path / "nowhere").exists()
    with pytest.raises(UserError, match=r"--method with a run: what can be given are --batch-size"):
        trace.main([str(tmp_path / "run"), "--method", "full"])
    with pytest.raises(UserError, match="several values"):
        trace.main(["--lr", "1e-3,1e-4"])
    with pytest.raises(UserError, match="no gradient steps"):
        trace.main(["--method", "probe", "--solver", "lbfgs"])
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(record | {"data": {"train": "0" * 64}}))
    with pytest.raises(UserError, match="has changed"):
        trace.main([str(tmp_path / "run")])


def test_flags_of_a_whole_run_are_reported(tmp_path, bases, capsys):  # noqa: F811
    flags = ["--train", str(rows_file(tmp_path / "rows.csv")), "--model", str(bases["bert"]), "--precision", "float32"]
    trace.main([*flags, "--by", "label", "--seeds", "2", "--lr", "1e-3"])
    said = "note: one batch is traced and nothing is saved, so these have no effect: --seeds, --by\n"
    assert said in capsys.readouterr().err


def test_stages_that_are_not_yet_on_stand_still(tmp_path, bases, capsys):  # noqa: F811
    traced = tracing.trace(Started(tmp_path, bases, "text-classification", "bert", unfreeze="gradual").given)
    assert {name.partition(".")[0] for name in traced.seen.gradients} == {"head"}
    assert {mode for *_, mode in map(str.split, tracing.stops(traced).splitlines()[1:-1])} == {"frozen"}


def test_what_is_added_to_the_loss_is_there_too(tmp_path, bases, capsys):  # noqa: F811
    """Rehearsal, EWC and DANN need rows and a head besides those of the run."""
    data = rows_file(tmp_path / "rows.csv")
    flags = ["--train", str(data), "--valid", "none", "--precision", "float32", "--dropout", "0", "--attention-dropout", "0"]
    train.main([*flags, "--model", str(bases["bert"]), "--epochs", "1", "--out", str(tmp_path / "run")])
    capsys.readouterr()
    losses = {}
    for name, more in {
        "plain": [],
        "rehearsal": ["--rehearse", str(data)],
        "ewc": ["--penalty", "ewc:labels=all", "--source-data", str(data)],
        "dann": ["--target-data", str(data)],
    }.items():
        trace.main([*flags, "--model", str(tmp_path / "run"), *more])
        losses[name] = float(capsys.readouterr().out.split("==== loss\n")[1].split(":")[0])
    assert losses["ewc"] == losses["plain"]  # theta is theta_0 before the update
    assert losses["rehearsal"] > losses["plain"] and losses["dann"] > losses["plain"] + 1
