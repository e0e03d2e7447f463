"""The tour runs from its first cell to its last, learns something, and ends with a model that transformers loads."""

import runpy
from pathlib import Path

import pytest
import torch


def test_the_tour(capsys):
    tour = runpy.run_path(str(Path(__file__).with_name("tour.py")))
    assert tour["trained"] == 6 * 2 * 4 * (384 + 384) + 2 * 385  # LoRA's factors of two layers in each of six, and the head
    assert tour["reached"] > tour["untrained"] + 0.1 and tour["losses"][-1] < tour["losses"][0]
    assert torch.allclose(tour["before"], tour["after"], atol=1e-5) and not torch.equal(tour["before"], torch.zeros(()))
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertForSequenceClassification(transformers.BertConfig(**tour["checkpoint"].config))
    missing, unexpected = theirs.load_state_dict(tour["tensors"], strict=False)
    assert not unexpected and {name.split(".")[0] for name in missing if "pooler" not in name} == {"classifier"}
    assert "step 8" in capsys.readouterr().out
