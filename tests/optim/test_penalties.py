"""Penalties against their formulas: by hand on two weights, and by finite differences."""

import json

import pytest
import torch
from loop import classifier
from safetensors.torch import load_file
from tiny import converted_directory, rows_file, tiny_body
from torch import nn

import train
from minift.errors import UserError
from minift.optim.groups import Group
from minift.optim.sgd import SGD
from minift.penalties.l2sp import L2SP
from minift.penalties.penalty import Anchored

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


REFUSED = {
    "an unknown one": (["--penalty", "l3"], "--penalty 'l3' is not known; known are l2sp"),
    "an unknown option": (["--penalty", "l2sp:gamma=1"], "'gamma=1' is no option of l2sp"),
    "weight decay beside it": (["--penalty", "l2sp", "--weight-decay", "0.1"], "--weight-decay 0.1 with --penalty l2sp"),
    "nothing to stay near": (["--penalty", "l2sp", "--method", "lora"], "no pretrained weight trains"),
    "random weights": (["--penalty", "l2sp", "--init", "random"], "no pretrained weight trains"),
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
