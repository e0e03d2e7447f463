"""Gradients by rows, and moments, are the dense ones: 50 steps in float64, with decay, clipping, accumulation and resumption."""

import numpy as np
import pytest
import torch
from loop import batch_of, loop_options
from tiny import CONFIG, tiny_body

from minift.data.batching import Data
from minift.optim import rows
from minift.optim.adamw import AdamW
from minift.optim.groups import Group, clip_gradients, make_groups
from minift.optim.precision import Float32, LossScaler
from minift.optim.sgd import SGD
from minift.tasks.classification import Classification
from minift.tasks.task import Model
from minift.training import Progress, Training, fit

OPTIMIZERS = {
    "adamw": AdamW,
    "adamw by hand": lambda groups: AdamW(groups, fused=False),
    "amsgrad": lambda groups: AdamW(groups, amsgrad=True),
    "nesterov": lambda groups: SGD(groups, nesterov=True),
}


class Some(Data):
    """Texts of 6 of the 80 words at a time, the last half of them padding."""

    def __init__(self):
        random = np.random.default_rng(0)
        self.tokens = random.integers(5, 30, (51, 6))
        self.tokens[::3, 4:] = CONFIG.pad_token_id
        self.labels, self.lengths = torch.from_numpy(random.integers(0, 2, 51)), np.ones(51, dtype=np.int64)

    def batches(self, order, device, epoch=None):
        tokens = torch.from_numpy(self.tokens)
        return (batch_of((tokens[units], tokens[units] != CONFIG.pad_token_id), self.labels[units], units) for units in order)


class Run:
    """Keeps the weights after every epoch; begins with those of an earlier run, with its optimizer."""

    def log(self, events): ...

    def save(self, model, task): ...


def trained(make, by_rows: bool, stop: int | None = None) -> tuple[dict, float]:
    """(the weights after 51 steps, the sum of the norms). stop: after so many epochs another optimizer goes on from the state."""
    task = Classification(["a", "b"], "cls")
    torch.manual_seed(0)
    body = tiny_body(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = Model(body, task.head(body)).double()
    if by_rows:
        rows.by_rows(model)
        assert [m.sparse for m in model.modules() if isinstance(m, torch.nn.Embedding)] == [True, True, True]
    norms = []

    def spied(parameters, clip):
        norms.append(clip_gradients(parameters, clip))
        return norms[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minift.training.clip_gradients", spied)
        progress, state = Progress(changed=True), None
        for epochs in [6] if stop is None else [stop, 6]:
            optimizer = make(make_groups(model, 1e-2, 0.1))
            if state is not None:
                optimizer.load_state_dict(state)
            training = Training(model, task, optimizer, lambda step: 1 / (1 + step), Float32())
            fit(training, Some(), None, Run(), loop_options(epochs=epochs, batch_size=3, accumulate=2, clip=0.5), progress)
            state = {name: tensor.clone() for name, tensor in optimizer.state_dict().items()}
            for p in model.parameters():
                assert p.grad is None
    return {name: p.detach() for name, p in model.named_parameters()}, torch.stack(norms)


@pytest.mark.parametrize("name", ["adamw", "adamw by hand", "amsgrad"])
def test_a_resumed_run_has_the_same_bits(monkeypatch, name):
    monkeypatch.setattr(rows, "LARGE", 1)
    (whole, _), (resumed, _) = (trained(OPTIMIZERS[name], True, stop) for stop in (None, 2))
    assert all(torch.equal(resumed[key], weight) for key, weight in whole.items())


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("stop", [None, 2])
def test_rows_are_the_dense_gradient(monkeypatch, name, stop):
    monkeypatch.setattr(rows, "LARGE", 1)
    (dense, norms), (by_rows, same) = (trained(OPTIMIZERS[name], way, stop) for way in (False, True))
    assert len(norms) >= 50 and norms.min() < 0.5 < norms.max()
    torch.testing.assert_close(same, norms, rtol=0, atol=1e-12)
    for key, weight in dense.items():
        torch.testing.assert_close(by_rows[key], weight, rtol=0, atol=1e-12)
    start = tiny_body().embeddings.word.weight
    word = by_rows["body.embeddings.word.weight"]
    assert (word[40:] != start[40:]).any(1).all(), "rows that no batch reads decay"
    torch.testing.assert_close(word[40:] / start[40:], (word[40, 0] / start[40, 0]).expand_as(word[40:]))


def test_loss_scaling_goes_over_the_rows(monkeypatch):
    monkeypatch.setattr(rows, "LARGE", 1)
    table = torch.nn.Embedding(9, 2)
    rows.by_rows(table)
    scaler = LossScaler(8.0)
    scaler.scale(table(torch.tensor([1, 1, 4])).sum()).backward()
    assert table.weight.grad.is_sparse and scaler.unscale([table.weight])
    assert table.weight.grad.to_dense().tolist() == [[0, 0], [2, 2], [0, 0], [0, 0], [1, 1], *[[0, 0]] * 4]
    table.weight.grad = None
    (table(torch.tensor([3])).sum() * float("inf")).backward()
    assert not scaler.unscale([table.weight])
    assert not clip_gradients([table.weight], 1.0).isfinite()


def test_a_second_gradient_makes_it_dense(monkeypatch):
    monkeypatch.setattr(rows, "LARGE", 1)
    table = torch.nn.Embedding(9, 2)
    rows.by_rows(table)
    (table(torch.tensor([1])).sum() + (table.weight[2:4] ** 2).sum()).backward()
    assert not table.weight.grad.is_sparse and table.weight.grad[1].tolist() == [1, 1]
    torch.testing.assert_close(table.weight.grad[2:4], 2 * table.weight[2:4].detach())


def steps_of(optimizer, table: torch.nn.Parameter, gradients: list[torch.Tensor], sparse: tuple[bool, ...]) -> None:
    for gradient, by_rows in zip(gradients, sparse, strict=True):
        used = gradient.any(1).nonzero()[:, 0]
        table.grad = (
            torch.sparse_coo_tensor(used[None], gradient[used], gradient.shape, check_invariants=True)
            if by_rows
            else gradient.clone()
        )
        optimizer.step(0.5)


@pytest.mark.parametrize("name", ["adamw", "adamw by hand", "amsgrad"])
@pytest.mark.parametrize("sparse", [(True,) * 6, (True, True, False, True, True, False), (False, True, True, True, True, True)])
def test_moments_are_of_the_rows_that_had_a_gradient(name, sparse):
    """Until a gradient is dense; and there are none of the other rows. Six steps; of six rows the last two have no gradient."""
    torch.manual_seed(0)
    start, gradients = torch.randn(6, 3, dtype=torch.float64), torch.zeros(6, 6, 3, dtype=torch.float64)
    for step, used in enumerate([[1, 3], [3], [0, 3], [1], [2, 0], [3, 1]]):
        gradients[step, used] = torch.randn(len(used), 3, dtype=torch.float64)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimizer, dense = (OPTIMIZERS[name]([Group("word", 0.1, 0.2, ["word"], [table])]) for table in (ours, theirs))
    steps_of(optimizer, ours, gradients, sparse)
    steps_of(dense, theirs, gradients, (False,) * 6)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)
    torch.testing.assert_close(ours[4:], start[4:] * (1 - 0.5 * 0.1 * 0.2) ** 6)
    state = optimizer.state_dict()
    assert state["word/t"] == 6
    if all(sparse):
        assert state["word/rows"].tolist() == [1, 3, 0, 2] and state["word/m"].shape == (4, 3)
        torch.testing.assert_close(state["word/m"], dense.state_dict()["word/m"][[1, 3, 0, 2]], rtol=0, atol=1e-15)
    else:
        assert "word/rows" not in state
        torch.testing.assert_close(state["word/v"], dense.state_dict()["word/v"], rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("rows", "moments", "message"),
    [
        (torch.tensor([0, 6]), 2, "word/rows: different numbers from 0 to 5"),
        (torch.tensor([-1, 2]), 2, "word/rows: different numbers from 0 to 5"),
        (torch.tensor([2, 2]), 2, "word/rows: different numbers from 0 to 5"),
        (torch.tensor([0.0, 1.0]), 2, r"word/rows is \(2,\) torch.float32: the numbers of rows"),
        (torch.tensor([0, 1, 2]), 2, r"word/m is \(2, 3\) torch.float32, the parameter \(3, 3\)"),
        (torch.tensor([0, 1]), 0, "word/t is missing beside word/rows"),
    ],
)
def test_a_state_of_other_rows_is_refused_and_changes_nothing(rows, moments, message):
    table = torch.nn.Parameter(torch.ones(6, 3))
    optimizer = AdamW([Group("word", 0.1, 0.2, ["word"], [table])])
    stored = {"word/t": torch.tensor(1), "word/m": torch.ones(moments, 3), "word/v": torch.ones(moments, 3)} if moments else {}
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(stored | {"word/rows": rows})
    assert not optimizer.state and not optimizer.rows
    with pytest.raises(ValueError, match="belong to no parameter"):
        SGD([Group("word", 0.1, 0.2, ["word"], [table])]).load_state_dict({"word/m": table.data, "word/rows": rows})


def test_small_and_frozen_tables_are_left_alone():
    model = torch.nn.ModuleList([torch.nn.Embedding(10, 2), torch.nn.Embedding(2**19, 2), torch.nn.Embedding(2**19, 2)])
    model[2].requires_grad_(False)
    rows.by_rows(model)
    assert [table.sparse for table in model] == [False, True, False]
