"""How a run starts from its checkpoint: with new weights in its highest stages, with another dropout."""

import pytest
import torch
from test_train import run
from tiny import converted_directory, converted_resnet, photographs, tiny_body

import train
from minift.errors import UserError
from minift.pretrained import read, read_tensors


@pytest.fixture
def base(tmp_path):
    return converted_directory(tmp_path / "base", tiny_body(pool="cls"), pool="cls")


def untrained(tmp_path, base, **flags):
    """(tensors of the checkpoint, of the body of a run of no epochs)"""
    made = read_tensors(run(tmp_path, base, epochs=0, **flags) / "model" / "model.safetensors")
    return read(base).tensors, {name: theta for name, theta in made.items() if not name.startswith("head.")}


@pytest.mark.parametrize("stages", [0, 1, 2])
def test_the_highest_stages_and_the_pooler_start_anew(tmp_path, base, stages):
    before, after = untrained(tmp_path, base, reinit=stages)
    assert before.keys() == after.keys()
    last = len(tiny_body().layers)
    new = ["pooler.", *(f"layers.{last - 1 - i}." for i in range(stages))] if stages else []
    for name, theta in before.items():
        assert torch.equal(theta, after[name]) != name.startswith(tuple(new)), name
    for name in after:
        if name.startswith(tuple(new)) and name.endswith("norm.weight"):
            assert torch.equal(after[name], torch.ones_like(after[name]))


def test_of_a_resnet(tmp_path):
    base = converted_resnet(tmp_path / "resnet")
    photographs(tmp_path / "photos", each=4)
    flags = {
        "--train": tmp_path / "photos",
        "--model": base,
        "--out": tmp_path / "run",
        "--reinit": 1,
        "--epochs": 0,
        "--method": "full",
    }
    train.main(["--task", "image-classification", *(str(x) for pair in flags.items() for x in pair), "--workers", "0"])
    before, after = read(base).tensors, read_tensors(tmp_path / "run" / "model" / "model.safetensors")
    changed = {".".join(name.split(".")[:2]) for name, theta in before.items() if not torch.equal(theta, after[name])}
    assert changed == {f"blocks.{max(int(name.split('.')[1]) for name in before if name.startswith('blocks.'))}"}


def test_what_would_not_train_stays(tmp_path, base):
    for flags, said in (
        ({"reinit": 1, "method": "lora"}, "--reinit 1: --method lora would not train all of the new weights"),
        ({"reinit": 2, "method": "partial:stages=1"}, "would not train all"),
        ({"reinit": 9}, "--reinit 9: the model has"),
        ({"reinit": 1, "init": "random"}, "all weights are new already"),
        ({"dropout": 1}, "--dropout 1"),
        ({"attention_dropout": "nan"}, "--attention-dropout nan"),
    ):
        with pytest.raises(UserError) as error:
            run(tmp_path, base, **flags)
        assert said in str(error.value)


def test_dropout_is_that_of_the_flags(tmp_path, base):
    run(tmp_path, base, dropout=0, attention_dropout=0.5, epochs=1)
    config = read(tmp_path / "run" / "model").config
    assert (config["hidden_dropout_prob"], config["attention_probs_dropout_prob"]) == (0, 0.5)
    body = read(tmp_path / "run" / "model").body()
    assert {m.p for m in body.modules() if isinstance(m, torch.nn.Dropout)} == {0}
    assert {layer.attention.attend.p for layer in body.layers} == {0.5}
