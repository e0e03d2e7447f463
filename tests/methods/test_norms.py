"""What a BatchNorm does under full and partial: three choices, the momentum, and runs that were trained with them."""

from types import SimpleNamespace

import pytest
import torch
from loop import batch_of, classifier, logits
from tiny import converted_resnet, photographs, tiny_body, tiny_efficientnet, tiny_resnet
from torch import nn

import minift
import train
from minift.adapting import adapt
from minift.errors import UserError
from minift.optim.groups import make_groups
from minift.optim.sgd import SGD
from minift.pretrained import read
from minift.setup import set_momentum

IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
MAKE = {"resnet": tiny_resnet, "efficientnet": tiny_efficientnet}


def moved(kind: str, method: str) -> set[str]:
    """What of the BatchNorms two steps in train mode have changed: affine, statistics."""
    body = MAKE[kind]()
    adapt(body, method)
    model = classifier(body, 3)
    before = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    optimizer = SGD(make_groups(model, 0.1, 0.1))
    for _ in range(2):
        model.train()
        nn.functional.cross_entropy(logits(model, batch_of((IMAGES,))), torch.arange(6) % 3).backward()
        optimizer.step()
        optimizer.zero_grad()
    norms = {name for name, module in body.named_modules() if isinstance(module, nn.BatchNorm2d)}
    changed = [name.rpartition(".") for name, tensor in body.state_dict().items() if not torch.equal(tensor, before[name])]
    assert any(name not in norms for name, _, _ in changed)  # the convolutions train in any case
    return {"affine" if leaf in ("weight", "bias") else "statistics" for name, _, leaf in changed if name in norms}


@pytest.mark.parametrize("kind", MAKE)
def test_the_three_choices(kind):
    assert moved(kind, "full") == moved(kind, "full:norms=train") == {"affine", "statistics"}
    assert moved(kind, "full:norms=affine") == {"affine"}
    assert moved(kind, "full:norms=frozen") == set()
    assert moved(kind, "partial:stages=2,norms=affine") == {"affine"}


def test_choices_that_say_nothing_are_refused():
    with pytest.raises(UserError, match="norms=off: known are train, affine and frozen"):
        adapt(tiny_resnet(), "full:norms=off")
    with pytest.raises(UserError, match="norms=frozen: a Bert has no BatchNorm"):
        adapt(tiny_body(), "full:norms=frozen")


@pytest.mark.parametrize("norms", ["affine", "frozen"])
def test_such_a_run_is_saved_and_goes_on(tmp_path, norms):
    base, photos = converted_resnet(tmp_path / "net", tiny_efficientnet()), photographs(tmp_path / "photos")
    common = ["--task", "image-classification", "--train", str(photos), "--model", str(base), "--workers", "0", "--quiet"]
    method = ["--method", f"full:norms={norms}", "--batch-size", "8", "--epochs", "1"]
    train.main([*common, *method, "--keep", "1", "--out", str(tmp_path / "run")])
    run, start = read(tmp_path / "run" / "model"), read(base)
    name = "blocks.1.branch.norm2"
    assert torch.equal(run.tensors[f"{name}.running_mean"], start.tensors[f"{name}.running_mean"])
    assert torch.equal(run.tensors[f"{name}.weight"], start.tensors[f"{name}.weight"]) == (norms == "frozen")
    train.main(["--resume", str(tmp_path / "run"), "--epochs", "2"])
    assert len(minift.load(tmp_path / "run").predict([str(photos / "ants" / "0.jpg")])) == 1


@pytest.mark.parametrize(
    ("given", "steps", "expected"), [("kornblith", 8, 0.1), ("kornblith", 100, 0.1), ("kornblith", 1000, 0.01), ("0.03", 8, 0.03)]
)
def test_momentum(given, steps, expected):
    """Kornblith et al. keep max(1 - 10 / s, 0.9) of the old statistics."""
    body = tiny_efficientnet()
    adapt(body, "partial:stages=2")
    set_momentum(SimpleNamespace(bn_momentum=given, method="partial"), body, steps)
    found = {name: m.momentum for name, m in body.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert {m for name, m in found.items() if name.startswith(("top", "blocks.2"))} == {expected}
    assert {m for name, m in found.items() if name.startswith(("stem", "blocks.0", "blocks.1"))} == {0.01}


@pytest.mark.parametrize(
    ("given", "method", "said"),
    [
        ("2", "full", "expected a number from 0 to 1, or kornblith"),
        ("much", "full", "expected a number"),
        ("nan", "full", "expected a number"),
        ("0.1", "probe", "no statistics of a BatchNorm move"),
        ("kornblith", "full:norms=affine", "no statistics of a BatchNorm move"),
    ],
)
def test_momentum_that_says_nothing_is_refused(given, method, said):
    body = tiny_efficientnet()
    adapt(body, method)
    with pytest.raises(UserError, match=said):
        set_momentum(SimpleNamespace(bn_momentum=given, method=method), body, 8)
