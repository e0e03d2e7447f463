"""Activation checkpointing: the same gradients, buffers and random draws as without, and less memory."""

import copy
from functools import partial as partial_function

import pytest
import torch
from loop import batch_of, classifier, logits
from tiny import tiny_body, tiny_efficientnet, tiny_resnet

from minift.checkpointing import checkpoint_activations
from minift.methods.full import full, partial
from minift.methods.surgery import freeze
from minift.optim.precision import autocast

TOKENS = torch.randint(5, 60, (4, 9), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stages", [None, 1, 2])
@pytest.mark.parametrize("kind", ["bert", "resnet", "efficientnet"])
def test_same_gradients_and_buffers(kind, stages, dtype):
    images = {"resnet": tiny_resnet, "efficientnet": partial_function(tiny_efficientnet, drop_connect_rate=0.9)}
    body = tiny_body(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3) if kind == "bert" else images[kind]()
    freeze(body)
    full(body) if stages is None else partial(body, stages=stages)
    plain = classifier(body)
    lean = copy.deepcopy(plain)
    precision = autocast(dtype)
    checkpoint_activations(lean.body, precision)
    losses = []
    for model in (plain, lean):
        model.train()
        torch.manual_seed(1)
        for _ in range(2):  # two batches, as in an accumulated step
            with precision:
                made = logits(model, batch_of((TOKENS if kind == "bert" else IMAGES,)))
                loss = torch.nn.functional.cross_entropy(made, torch.tensor([0, 1, 1, 0]))
            loss.backward()
            losses.append(loss.item())
    assert losses[:2] == losses[2:]
    theirs = dict(lean.named_parameters())
    for name, p in plain.named_parameters():
        assert (p.grad is None) == (theirs[name].grad is None), name
        assert p.grad is None or torch.equal(p.grad, theirs[name].grad), name
    for (name, a), b in zip(plain.state_dict().items(), lean.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    usual = 0.01 if kind == "efficientnet" else 0.1
    assert all(m.momentum == usual for m in lean.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_fewer_tensors_are_kept_for_the_backward_pass():
    kept = {}
    for lean in (False, True):
        body = tiny_resnet()
        if lean:
            checkpoint_activations(body, autocast(torch.float32))
        sizes = {}
        count = partial_function(lambda sizes, x: sizes.update({x.data_ptr(): x.nbytes}) or x, sizes)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            pooled = body(IMAGES).pooled
        kept[lean] = sum(sizes.values())
        pooled.sum().backward()
    assert kept[True] < 0.5 * kept[False]
