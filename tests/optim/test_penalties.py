"""Penalties against their formulas: by hand on two weights, and by finite differences."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from loop import batch_of, classifier, encoded
from safetensors.torch import load_file
from tiny import converted_directory, rows_file, tiny_body
from torch import Tensor, nn

import train
from minift.data.batching import Batch
from minift.errors import UserError
from minift.optim.groups import Group
from minift.optim.sgd import SGD
from minift.penalties.dann import DANN
from minift.penalties.distill import Distill
from minift.penalties.ewc import EWC, fisher
from minift.penalties.l2sp import L2SP
from minift.penalties.mixout import Mixout, mixed
from minift.penalties.penalty import Anchored
from minift.penalties.rehearsal import Rehearsal
from minift.source import Source
from minift.tasks.classification import Classification
from minift.training import Progress

TRUE = torch.tensor(True)


def two_weights() -> tuple[nn.Parameter, nn.Parameter, Anchored]:
    """theta = (3, 1), which started at (1, 2); w = (4), which is new."""
    theta = nn.Parameter(torch.tensor([3.0, 1.0], dtype=torch.float64))
    w = nn.Parameter(torch.tensor([4.0], dtype=torch.float64))
    return theta, w, Anchored([(theta, torch.tensor([1.0, 2.0], dtype=torch.float64))], [w])


def test_l2sp_by_hand():
    theta, w, anchored = two_weights()
    term = L2SP(anchored, alpha=0.5, beta=0.25).term(None)
    assert term.item() == 0.5 / 2 * (2**2 + 1**2) + 0.25 / 2 * 4**2 == 3.25
    term.backward()
    assert theta.grad.tolist() == [0.5 * 2, 0.5 * -1] and w.grad.tolist() == [0.25 * 4]


def test_the_gradient_is_that_of_finite_differences():
    model = classifier(tiny_body()).double()
    pairs = [(p, torch.randn_like(p)) for p in model.body.parameters()]
    penalty = L2SP(Anchored(pairs, list(model.head.parameters())))
    for theta in (model.body.embeddings.word.weight, model.body.embeddings.norm.bias, model.head.weight):
        theta.grad = None
        penalty.term(model).backward()
        place, h = (0,) * theta.dim(), 1e-4
        with torch.no_grad():
            values = []
            for step in (h, -2 * h):
                theta[place] += step
                values.append(penalty.term(model).item())
            theta[place] += h
        assert theta.grad[place].item() == pytest.approx((values[0] - values[1]) / (2 * h), abs=1e-6)


def test_decoupled_l2sp_by_hand():
    theta, w, anchored = two_weights()
    penalty = L2SP(anchored, alpha=0.5, beta=0.25, decoupled=True)
    assert penalty.term(None) == 0.0
    groups = [Group("layer 1", 0.2, 0.0, ["theta"], [theta]), Group("head", 0.4, 0.0, ["w"], [w])]
    penalty.pull(groups, 0.5, TRUE)  # nothing has a gradient: as in a stage that is switched off
    assert theta.tolist() == [3.0, 1.0] and w.tolist() == [4.0]
    theta.grad, w.grad = torch.ones(2, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    penalty.pull(groups, 0.5, torch.tensor(False))
    assert theta.tolist() == [3.0, 1.0] and w.tolist() == [4.0]
    penalty.pull(groups, 0.5, TRUE)
    torch.testing.assert_close(theta.data, torch.tensor([3 - 0.05 * 2, 1 + 0.05 * 1], dtype=torch.float64))
    torch.testing.assert_close(w.data, torch.tensor([4 * (1 - 0.5 * 0.4 * 0.25)], dtype=torch.float64))


def test_under_sgd_both_ways_are_one_step():
    """From the same weights, with the gradient g of the loss: theta - lr (g + alpha (theta - theta_0))."""
    ends = []
    for decoupled in (False, True):
        theta, w, anchored = two_weights()
        penalty, groups = L2SP(anchored, decoupled=decoupled), [Group("layer 1", 0.1, 0.0, ["theta", "w"], [theta, w])]
        loss = (theta * torch.tensor([1.0, -2.0])).sum() + w.sum()
        (loss + penalty.term(None)).backward()
        penalty.pull(groups, 1.0, TRUE)
        SGD(groups, momentum=0.0).step()
        ends.append(torch.cat([theta, w]).detach())
    torch.testing.assert_close(*ends, rtol=0, atol=1e-15)


@pytest.mark.parametrize("options", [{"alpha": -1.0}, {"beta": float("nan")}, {"alpha": float("inf")}])
def test_a_strength_out_of_range(options):
    with pytest.raises(ValueError, match="a number of 0 or above"):
        L2SP(two_weights()[2], **options)


# ---- EWC ----


class Known:
    """A source whose Fisher information is known."""

    task, data = SimpleNamespace(FISHER=("drawn",)), [0]

    def __init__(self, *F: Tensor):
        self.F = [*F]

    def fisher(self, *asked) -> list[Tensor]:
        return self.F


def ewc(pairs: list, F: list[Tensor], **options) -> EWC:
    penalty = EWC(Anchored(pairs, [], source=Known(*F)), **options)
    penalty.begin(None)
    return penalty


def test_ewc_by_hand():
    theta, _, anchored = two_weights()
    term = ewc(anchored.pretrained, [torch.tensor([0.5, 3.0], dtype=torch.float64)], strength=10.0).term(None)
    assert term.item() == 10 / 2 * (0.5 * 2**2 + 3 * 1**2) == 25.0
    term.backward()
    assert theta.grad.tolist() == [10 * 0.5 * 2, 10 * 3 * -1]


def test_the_gradient_of_ewc_is_that_of_finite_differences():
    torch.manual_seed(0)
    theta = nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    penalty = ewc([(theta, torch.randn_like(theta))], [torch.rand_like(theta)])
    assert torch.autograd.gradcheck(lambda theta: penalty.term(None), (theta,))


def by_unit(batch: Batch) -> list[Batch]:
    """Batches of one unit each, without padding behind it."""
    mask = batch.inputs[1]
    return [
        replace(
            batch,
            inputs=tuple(None if x is None else x[i : i + 1, : int(mask[i].sum())] for x in batch.inputs),
            targets=tuple(x[i : i + 1] for x in batch.targets),
            rows=batch.rows[i : i + 1],
            counts=batch.counts[i : i + 1],
        )
        for i in range(len(batch.rows))
    ]


def three_rows() -> tuple[nn.Module, Classification, Batch]:
    torch.manual_seed(0)
    model = classifier(tiny_body(), 3).double().eval()
    tokens = torch.randint(5, 30, (3, 6))
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[1, 4:] = False
    return model, Classification(["a", "b", "c"], "cls"), batch_of((tokens, mask), torch.tensor([0, 2, 1]))


@pytest.mark.parametrize("labels", ["data", "all"])
def test_the_fisher_information_is_that_of_a_slow_loop(labels):
    """Row by row and class by class, each probability's logarithm differentiated by itself."""
    model, task, batch = three_rows()
    parameters = [*model.parameters()]
    F = fisher(model, task, by_unit(batch), parameters, labels)
    slow = [torch.zeros_like(p) for p in parameters]
    for i in range(3):
        for c in range(3):
            model.zero_grad()
            logits = model(batch)[1][i]
            weight = logits.softmax(-1)[c].item() if labels == "all" else float(batch.targets[0][i] == c)
            logits.softmax(-1)[c].log().backward()
            for total, p in zip(slow, parameters, strict=True):
                total += weight / 3 * (0 if p.grad is None else p.grad**2)
    for ours, theirs in zip(F, slow, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_labels_that_are_drawn_give_on_the_average_what_all_labels_give():
    """100 times the same rows: the head's bias, where the spread of the mean is known to be small."""
    model, task, batch = three_rows()
    bias = [model.head.bias]
    drawn = fisher(model, task, by_unit(batch) * 100, bias, "drawn")[0]
    exact = fisher(model, task, by_unit(batch), bias, "all")[0]
    torch.testing.assert_close(drawn, exact, rtol=0.1, atol=0)
    likeliest = [replace(row, targets=(model(row)[1].argmax(-1),)) for row in by_unit(batch)]
    assert not torch.allclose(fisher(model, task, likeliest, bias, "data")[0], exact, rtol=0.1, atol=0)


def test_two_rows_of_opposite_gradient_do_not_cancel():
    """The same text with either of two labels of probability 1/2: the batch's gradient is 0, each row's is not."""
    model, _, batch = three_rows()
    task, one = Classification(["a", "b"], "cls"), by_unit(batch)[0]
    model.head = task.head(model.body).double().eval()
    nn.init.zeros_(model.head.weight)
    rows = [replace(one, targets=(torch.tensor([c]),)) for c in (0, 1)]
    F = fisher(model, task, rows, [model.head.bias], "data")[0]
    assert F.tolist() == [0.25, 0.25]
    total = sum(task.loss(model(row)[1], row).sum() for row in rows)
    assert torch.autograd.grad(total, [model.head.bias])[0].abs().max() < 1e-12


# ---- mixout ----


def mixed_layer(authors: bool, p: float = 0.75) -> tuple[nn.Module, Tensor]:
    """(a layer of two inputs and three outputs under mixout, its weight w_0), float64; w = w_0 + 1, and so the bias"""
    torch.manual_seed(0)
    layer, model = nn.Linear(2, 3).double(), nn.Module()
    model.body, model.dropout = nn.Sequential(layer, nn.Dropout(0.5)), nn.Dropout(0.5)
    w_0, b_0 = (t.detach().clone() for t in (layer.weight, layer.bias))
    Mixout(Anchored([(layer.weight, w_0), (layer.bias, b_0)], [], model=model), p, authors)
    with torch.no_grad():
        layer.weight += 1.0
        layer.bias += 1.0
    assert (model.body[1].p, model.dropout.p) == ((0.0, 0.0) if authors else (0.5, 0.5))
    return layer, w_0


def test_mixout_by_hand():
    """p = 3/4: where M = 1 a weight is (w - p w_0) / (1 - p) = w_0 + 4 (w - w_0), where M = 0 it is w_0; gradients 4 M."""
    layer, w_0 = mixed_layer(authors=False)
    x = torch.eye(2, dtype=torch.float64)
    torch.manual_seed(3)
    M = torch.empty(3, 2, dtype=torch.float64).bernoulli_(0.25)
    N = torch.empty(3, dtype=torch.float64).bernoulli_(0.25)
    assert 0 < M.sum() < 6 and not torch.equal(M[0], M[1])
    torch.manual_seed(3)
    y = layer(x)
    bias = layer.bias.detach() - 1 + 4 * N
    torch.testing.assert_close(y, (w_0 + 4 * M).T + bias, rtol=0, atol=1e-12)
    y.sum().backward()
    torch.testing.assert_close(layer.weight.grad, 4 * M, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.bias.grad, 2 * 4 * N, rtol=0, atol=1e-12)
    layer.eval()
    torch.testing.assert_close(layer(x), layer.weight.T + layer.bias, rtol=0, atol=1e-12)


def test_the_authors_mixout_by_hand():
    """One row of M for all outputs, the bias as it is, gradients M."""
    layer, w_0 = mixed_layer(authors=True)
    x, M = torch.eye(2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    seed = 0
    while M.sum() != 1:
        seed += 1
        torch.manual_seed(seed)
        M.bernoulli_(0.25)
    torch.manual_seed(seed)
    y = layer(x)
    torch.testing.assert_close(y, (w_0 + 4 * M).T + layer.bias, rtol=0, atol=1e-12)
    y.sum().backward()
    torch.testing.assert_close(layer.weight.grad, M.expand(3, 2), rtol=0, atol=1e-12)
    assert layer.bias.grad.tolist() == [2.0] * 3


def test_the_gradient_of_mixout_is_that_of_finite_differences():
    """With the same mask at every call; the authors' is not, by 1 / (1 - p)."""
    torch.manual_seed(0)
    w, w_0 = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), torch.randn(4, 3, dtype=torch.float64)

    def value(w: Tensor, authors: bool) -> Tensor:
        torch.manual_seed(3)
        return mixed(w, w_0, 0.75, authors)

    assert torch.autograd.gradcheck(lambda w: value(w, False), (w,))
    assert not torch.autograd.gradcheck(lambda w: value(w, True), (w,), raise_exception=False)


@pytest.mark.parametrize("authors", [False, True])
def test_the_mean_of_mixout_is_the_weight(authors):
    torch.manual_seed(0)
    w, w_0 = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    mean = sum(mixed(w, w_0, 0.5, authors) for _ in range(4000)) / 4000
    torch.testing.assert_close(mean, w, rtol=0, atol=0.1)
    torch.testing.assert_close(mixed(w, w_0, 0.0, authors), w, rtol=0, atol=1e-15)


def test_mixout_of_a_convolution():
    torch.manual_seed(0)
    conv, model = nn.Conv2d(2, 3, 3, padding=1, bias=False).double(), nn.Module()
    model.body = nn.Sequential(conv)
    w_0, x = conv.weight.detach().clone(), torch.randn(1, 2, 4, 4, dtype=torch.float64)
    Mixout(Anchored([(conv.weight, w_0)], [], model=model), 0.5)
    with torch.no_grad():
        conv.weight += 1.0
    torch.manual_seed(1)
    y = conv(x)
    torch.manual_seed(1)
    w = w_0 + 2 * torch.empty_like(w_0).bernoulli_(0.5)
    torch.testing.assert_close(y, torch.nn.functional.conv2d(x, w, padding=1), rtol=0, atol=1e-12)


# ---- distillation and rehearsal ----


def before_and_now() -> tuple[Source, nn.Module, Batch]:
    """A source of three classes, a model of two whose body has moved, three rows; float64."""
    model, task, batch = three_rows()
    torch.manual_seed(1)
    other = classifier(tiny_body()).double()
    with torch.no_grad():
        for p in other.body.parameters():
            p += 0.1 * torch.randn_like(p)
    return Source(model.body, task, model.head), other, batch


def test_distillation_of_features_by_hand():
    source, model, batch = before_and_now()
    state, outputs = model(batch)
    f, f_0 = state.pooled, source.body(*batch.inputs).pooled
    terms = Distill(Anchored([], [], model=model, source=source), 3.0).units(state, outputs, batch, None)
    for i in range(3):
        expected = 3.0 * (f[i] - f_0[i]).norm() ** 2 / f_0[i].norm() ** 2
        assert terms[i].item() == pytest.approx(expected.item(), rel=1e-12) and expected > 0
    terms.sum().backward()
    assert all(p.grad is None for p in source.model.parameters()) and model.body.embeddings.word.weight.grad.abs().max() > 0


def test_distillation_of_logits_is_the_divergence_of_torch():
    source, model, batch = before_and_now()
    state, outputs = model(batch)
    z, z_0 = source.head(state, batch), source.head(source.body(*batch.inputs), batch)
    q, q_0 = ((x / 2).log_softmax(-1) for x in (z, z_0))
    expected = 4 * nn.functional.kl_div(q, q_0, reduction="none", log_target=True).sum(-1)
    terms = Distill(Anchored([], [], model=model, source=source), of="logits").units(state, outputs, batch, None)
    torch.testing.assert_close(terms, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("of", ["features", "logits"])
def test_the_gradient_of_distillation_is_that_of_finite_differences(of):
    source, model, batch = before_and_now()
    penalty = Distill(Anchored([], [], model=model, source=source), of=of)
    pooled = model(batch)[0].pooled.detach().requires_grad_()
    state = model(batch)[0]
    assert torch.autograd.gradcheck(lambda f: penalty.units(state._replace(pooled=f), None, batch, None), (pooled,))


def test_rehearsal_is_one_batch_of_rows_of_both_tasks():
    """share 1/3 of steps of 4 rows of the new task: 2 rows of the source, each of the 6 rows once in 3 steps."""
    source, model, batch = before_and_now()
    random = np.random.default_rng(0)
    data = encoded([random.integers(5, 30, n) for n in (3, 4, 5, 6, 7, 8)], np.array([0, 1, 2, 0, 1, 2]))
    rehearsal = Rehearsal(model, source, data, share=1 / 3, rows=4, seed=0)
    model.eval()
    order = data.order(2, 0, 0)
    assert sorted(np.concatenate(order)) == list(range(6))
    new = Classification(["a", "b"], "cls")
    for number, units in enumerate([*order, data.order(2, 0, 1)[0]]):
        old = next(iter(data.batches([units], torch.device("cpu"))))
        four = [new.loss(model(batch)[1], replace(batch, targets=(torch.tensor([0, 1, 1]),)))] * 2
        losses = torch.cat([torch.cat(four)[:4], source.task.loss(source.on(model.body)(old)[1], old)])
        together = losses.mean()  # of 4 + 2 rows
        apart = losses[:4].mean() + rehearsal.term(model, Progress(step=number))
        assert apart.item() * 2 / 3 == pytest.approx(together.item(), abs=1e-12)
        parameters = [*model.body.parameters()]
        one, two = (torch.autograd.grad(x, parameters, retain_graph=True) for x in (apart * 2 / 3, together))
        for a, b in zip(one, two, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


# ---- DANN ----


@pytest.mark.parametrize("largest", [1.0, 0.25])
def test_the_reversal_is_in_the_gradient_of_the_features_alone(largest):
    """lambda = largest (2 / (1 + exp(-10 p)) - 1) at p = 1/4: f has -lambda times the plain gradient, the domain head 1 times."""
    torch.manual_seed(0)
    penalty = DANN(SimpleNamespace(order=lambda *_: [0]), 4, rows=2, steps=101, seed=0, largest=largest)
    penalty.head.double()
    f = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    progress = Progress(step=25)
    assert [penalty.strength(Progress(step=s)) for s in (0, 100)] == [0.0, pytest.approx(largest, abs=1e-4)]
    strength = largest * (2 / (1 + math.exp(-2.5)) - 1)
    reversed_ = penalty.losses(f, 1.0, progress).sum()
    plain = nn.functional.softplus(-penalty.head(f)).sum()  # -log sigmoid(z)
    assert reversed_.item() == pytest.approx(plain.item(), abs=1e-12)
    parameters = [f, *penalty.head.parameters()]
    one, two = (torch.autograd.grad(loss, parameters) for loss in (reversed_, plain))
    torch.testing.assert_close(one[0], -strength * two[0], rtol=0, atol=1e-12)
    for a, b in zip(one[1:], two[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    right = (penalty.head(f) > 0).double().mean().item()
    assert penalty.figures() == {"domain_accuracy": pytest.approx(right)} and penalty.figures() == {}


REFUSED = {
    "an unknown one": (["--penalty", "l3"], "--penalty 'l3' is not known; known are l2sp, ewc, mixout, distill"),
    "an unknown option": (["--penalty", "l2sp:gamma=1"], "'gamma=1' is no option of l2sp"),
    "weight decay beside it": (["--penalty", "l2sp", "--weight-decay", "0.1"], "--weight-decay 0.1 with --penalty l2sp"),
    "nothing to stay near": (["--penalty", "l2sp", "--method", "lora"], "no pretrained weight trains"),
    "random weights": (["--penalty", "l2sp", "--init", "random"], "no pretrained weight trains"),
    "mixing frozen weights": (["--penalty", "mixout", "--method", "lora"], "so there is nothing to mix"),
    "mixing where biases train": (["--penalty", "mixout", "--method", "bitfit"], "so there is nothing to mix"),
    "mixing all": (["--penalty", "mixout:p=1"], "p=1.0: a share from 0 to below 1 is expected"),
    "dropout beside the authors' mixout": (["--penalty", "mixout:authors=true", "--dropout", "0.1"], "stands in their place"),
    "mixing twice": (["--penalty", "mixout:p=0.5+l2sp+mixout"], "l2sp+mixout: mixout is given twice; give it once"),
    "negative": (["--penalty", "l2sp:alpha=-1"], "alpha=-1.0: a number of 0 or above is expected"),
    "an exact solver": (["--penalty", "l2sp", "--method", "probe", "--solver", "lbfgs"], "it takes no gradient steps"),
}


# ---- whole runs ----


def run(tmp_path, name: str, *flags: str, epochs: str = "2"):
    base = tmp_path / "base"
    if not base.exists():
        converted_directory(base, pool="mean")
    rows = rows_file(tmp_path / "rows.csv")
    fixed = {"--train": rows, "--model": base, "--out": tmp_path / name, "--epochs": epochs, "--lr": "1e-2", "--batch-size": "8"}
    train.main([*(str(x) for pair in fixed.items() for x in pair), "--precision", "float32", "--quiet", *flags])
    return load_file(tmp_path / name / "model" / "model.safetensors")


def distance(tmp_path, tensors) -> float:
    base = load_file(tmp_path / "base" / "model.safetensors")
    return sum((tensors[name] - theta).square().sum().item() for name, theta in base.items() if name in tensors) ** 0.5


@pytest.mark.parametrize("how", ["", ",decoupled=true"])
def test_the_stronger_the_nearer(tmp_path, how):
    plain = distance(tmp_path, run(tmp_path, "plain", "--weight-decay", "0"))
    weak, strong = (distance(tmp_path, run(tmp_path, f"a{alpha}", "--penalty", f"l2sp:alpha={alpha}{how}")) for alpha in (1, 30))
    assert strong < weak < plain
    assert json.loads((tmp_path / "a1" / "config.json").read_text())["flags"]["weight_decay"] == 0


def test_without_strength_it_changes_no_bit(tmp_path):
    one = run(tmp_path, "one", "--weight-decay", "0")
    two = run(tmp_path, "two", "--penalty", "l2sp:alpha=0,beta=0")
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_a_resumed_run_stays_near_where_the_first_one_started(tmp_path):
    flags = ["--penalty", "l2sp:alpha=3", "--schedule", "constant", "--warmup", "0", "--keep", "1", "--valid", "none"]
    whole = run(tmp_path, "whole", *flags)
    run(tmp_path, "parts", *flags, epochs="1")
    train.main(["--resume", str(tmp_path / "parts"), "--epochs", "2", "--quiet"])
    parts = load_file(tmp_path / "parts" / "model" / "model.safetensors")
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_nothing_to_act_on_is_refused_in_one_line(tmp_path, case):
    flags, expected = REFUSED[case]
    with pytest.raises(UserError) as error:
        run(tmp_path, "run", *flags)
    assert expected in str(error.value) and not (tmp_path / "run").exists()
