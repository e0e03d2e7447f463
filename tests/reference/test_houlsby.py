"""minift.methods.houlsby against adapters' double_seq_bn, and on a ResNet against the formula written out."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
import transformers
from bottlenecks import assert_twins, minilm, sizes, twins
from tiny import tiny_body
from torch import Tensor, nn
from twins import bert, close, images, resnet, texts

from minift.methods.houlsby import ADAPTERS, Bottleneck, houlsby
from minift.methods.surgery import freeze, plain_modules
from minift.models.bert import Bert, BertConfig

adapters = pytest.importorskip("adapters")
DoubleSeqBnConfig = adapters.DoubleSeqBnConfig


@pytest.mark.parametrize("activation", ["gelu", "relu", "swish", "tanh"])
@pytest.mark.parametrize(
    ("options", "reduction", "size"),
    [({}, 16, 1), ({"reduction": 3.0}, 3, 5), ({"reduction": 0.5}, 0.5, 32), ({"size": 4}, 4, 4), ({"size": 21}, 0.75, 21)],
)
def test_twin_in_float64(activation, options, reduction, size):
    config = DoubleSeqBnConfig(reduction_factor=reduction, non_linearity=activation)
    body, theirs = twins(bert(), partial(houlsby, activation=activation, norms=False, **options), ADAPTERS, config)
    assert sizes(body) == sizes(theirs) == {size}
    assert_twins(body.eval(), theirs.eval(), ADAPTERS, texts())


def test_the_layer_norms_train_too():
    """The library leaves them frozen; once they are not, their gradients are the same, the embeddings' among them."""
    body, theirs = twins(bert(), partial(houlsby, size=4), ADAPTERS, DoubleSeqBnConfig(reduction_factor=4, non_linearity="gelu"))
    for module in theirs.modules():
        if isinstance(module, nn.LayerNorm):
            module.requires_grad_(True)
    assert_twins(body.eval(), theirs.eval(), ADAPTERS, texts())


def test_the_bottleneck_stands_behind_the_dropout_of_its_branch():
    """With the same random numbers drawn in the same order, outputs are equal in train mode."""
    method = partial(houlsby, size=4, norms=False)
    body, theirs = twins(bert(0.5), method, ADAPTERS, DoubleSeqBnConfig(reduction_factor=4, non_linearity="gelu"))
    theirs.train().embeddings.eval()  # nothing in them trains, so minift leaves dropout off there
    assert_twins(body.train(), theirs, ADAPTERS, texts())


@pytest.mark.parametrize("width", [8, 24, 40, 384])
@pytest.mark.parametrize("reduction", [None, 1.0, 3.2, 6.4, 0.1, 100.0])
def test_sizes_are_the_librarys(width, reduction):
    config = BertConfig(vocab_size=10, hidden_size=width, num_hidden_layers=1, num_attention_heads=2, intermediate_size=4)
    theirs = transformers.BertModel(transformers.BertConfig(**vars(config)))
    adapters.init(theirs)
    theirs.add_adapter("test", DoubleSeqBnConfig() if reduction is None else DoubleSeqBnConfig(reduction_factor=reduction))
    body = Bert(config)
    freeze(body)
    houlsby(body) if reduction is None else houlsby(body, reduction=reduction)
    assert sizes(body) == sizes(theirs)


@pytest.mark.parametrize("init", ["bert", "houlsby"])
def test_starts_are_the_librarys(init):
    torch.manual_seed(0)
    ours = Bottleneck(512, 256, "swish", init, torch.zeros(()))
    config = DoubleSeqBnConfig(init_weights=init)
    theirs = adapters.methods.modeling.Adapter("test", 512, 256, config)
    for layer, other in ((ours.down, theirs.adapter_down[0]), (ours.up, theirs.adapter_up)):
        assert not layer.bias.any() and not other.bias.any()
        assert abs(layer.weight.std() / other.weight.std() - 1) < 0.02 and abs(layer.weight.mean()) < 2e-4
        assert (layer.weight.abs().max() <= 0.02) == (other.weight.abs().max() <= 0.02) == (init == "houlsby")


def test_starts_as_the_pretrained_model():
    body, given = tiny_body().eval(), texts()
    before = body(*given).hidden
    freeze(body)
    houlsby(body)
    assert torch.equal(body(*given).hidden, before)
    downs = [p for name, p in body.named_parameters() if name.endswith("adapter.down.weight")]
    assert len(downs) == 6 and all(p.std() > 0 for p in downs)


def test_resnet():
    """The bottleneck written out as products of matrices, in train mode: the statistics of the BatchNorms stand still."""
    body, plain = resnet(), resnet().eval()
    freeze(body)
    houlsby(body, size=3, activation="tanh")
    generator = torch.Generator().manual_seed(2)
    for p in body.parameters():
        if p.requires_grad:
            p.data = torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.3
    bottlenecks = [plain_modules(body)[f"blocks.{i}.branch"].adapter for i in range(3)]
    twin = [{name: flat(p).detach().clone().requires_grad_() for name, p in one.named_parameters()} for one in bottlenecks]

    (x,) = images()
    hidden = plain.stem(plain.begin(x)).hidden
    for block, weights in zip(plain.blocks, twin, strict=True):
        y = block.branch(hidden)
        low = torch.tanh(torch.einsum("mc,bcyx->bmyx", weights["down.weight"], y) + weights["down.bias"][:, None, None])
        y = y + torch.einsum("cm,bmyx->bcyx", weights["up.weight"], low) + weights["up.bias"][:, None, None]
        hidden = F.relu(y + block.shortcut(hidden))
    before = {name: tensor.clone() for name, tensor in body.named_buffers()}
    state = body.train()(x)
    close(state.hidden, hidden, "hidden")
    assert before and all(torch.equal(tensor, before[name]) for name, tensor in body.named_buffers())

    for top in (state.hidden, hidden):
        top.square().mean().backward()
    assert sum(p.requires_grad for p in body.parameters()) == sum(len(weights) for weights in twin)
    for i, (one, weights) in enumerate(zip(bottlenecks, twin, strict=True)):
        for name, expected in weights.items():
            assert expected.grad.any()
            close(flat(one.get_parameter(name).grad), expected.grad, f"{i} {name}")


def flat(kernel: Tensor) -> Tensor:
    """The matrix that a 1x1 convolution is; a bias as it is."""
    return kernel.flatten(1) if kernel.dim() > 1 else kernel


def test_real_weights_in_float32():
    body, given = minilm()
    body, theirs = twins(body, partial(houlsby, norms=False), ADAPTERS, DoubleSeqBnConfig(non_linearity="gelu"), std=0.02)
    assert sizes(body) == sizes(theirs) == {384 // 16}
    assert_twins(body.eval(), theirs.eval(), ADAPTERS, given, atol=1e-5)
