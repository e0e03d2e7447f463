"""minift.methods.pfeiffer against adapters' seq_bn."""

from functools import partial

import pytest
import torch
from bottlenecks import assert_twins, minilm, sizes, twins
from tiny import tiny_body
from twins import bert, texts

from minift.methods.pfeiffer import ADAPTERS, pfeiffer
from minift.methods.surgery import freeze

SeqBnConfig = pytest.importorskip("adapters").SeqBnConfig


@pytest.mark.parametrize("activation", ["gelu", "relu", "swish", "tanh"])
@pytest.mark.parametrize(
    ("options", "reduction", "size"),
    [({}, 16, 1), ({"reduction": 3.0}, 3, 5), ({"reduction": 0.5}, 0.5, 32), ({"size": 4}, 4, 4), ({"size": 21}, 0.75, 21)],
)
def test_twin_in_float64(activation, options, reduction, size):
    config = SeqBnConfig(reduction_factor=reduction, non_linearity=activation)
    body, theirs = twins(bert(), partial(pfeiffer, activation=activation, **options), ADAPTERS, config)
    assert sizes(body) == sizes(theirs) == {size}
    assert_twins(body.eval(), theirs.eval(), ADAPTERS, texts())


def test_activation_and_size_are_by_default_the_librarys():
    body, theirs = twins(bert(), pfeiffer, ADAPTERS, SeqBnConfig())
    assert sizes(body) == sizes(theirs)
    assert_twins(body.eval(), theirs.eval(), ADAPTERS, texts())


def test_dropout_comes_before_the_bottleneck():
    """With the same random numbers drawn in the same order, outputs are equal in train mode."""
    body, theirs = twins(bert(0.5), partial(pfeiffer, size=4), ADAPTERS, SeqBnConfig(reduction_factor=4))
    theirs.train().embeddings.eval()  # nothing in them trains, so minift leaves dropout off there
    assert_twins(body.train(), theirs, ADAPTERS, texts())


def test_starts_as_the_pretrained_model():
    body, given = tiny_body().eval(), texts()
    before = body(*given).hidden
    freeze(body)
    pfeiffer(body)
    assert torch.equal(body(*given).hidden, before)


def test_real_weights_in_float32():
    body, given = minilm()
    body, theirs = twins(body, pfeiffer, ADAPTERS, SeqBnConfig(), std=0.02)
    assert sizes(body) == sizes(theirs) == {384 // 16}
    assert_twins(body.eval(), theirs.eval(), ADAPTERS, given, atol=1e-5)
