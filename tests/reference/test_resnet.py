"""minift.models.resnet against torchvision, transformers and timm: every block, every gradient, every BatchNorm statistic."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torchvision
import transformers
from tiny import randomise_norms
from torch import nn

from minift.formats.huggingface import look_up_module, to_huggingface, translate
from minift.models.resnet import DEPTHS, ResNet, ResNetConfig, State

NARROW = ResNetConfig(depths=(2, 1, 1, 2), embedding_size=8, hidden_sizes=(16, 8, 24, 32))
NO_SHORTCUT = ResNetConfig(depths=(2, 1), embedding_size=16, hidden_sizes=(16, 32))  # the first block needs no projection
NARROW_BLOCKS = replace(NARROW, embedding_size=64)  # timm's stem has no other width
WIDE = ResNetConfig(depths=(1, 2, 1, 1))

# Module here -> module there after which the map is the stage's output
STAGES = {
    "torchvision": {"stem": "maxpool", "blocks.{}": "layer{G}.{b}"},
    "transformers": {"stem": "embedder", "blocks.{}": "encoder.stages.{g}.layers.{b}"},
}


def random_body(config: ResNetConfig) -> ResNet:
    """Every norm and statistic random, so that a swapped or forgotten one shows."""
    torch.manual_seed(0)
    body = ResNet(config).double()
    randomise_norms(body, std=0.5, batches=7)
    return body


def in_torchvision(body: ResNet) -> nn.Module:
    resnet = torchvision.models.resnet
    reference = resnet.ResNet(resnet.Bottleneck, list(body.config.depths)).double()
    reference.fc = nn.Identity()
    table = translate(body, body.TORCHVISION)
    reference.load_state_dict({table[name]: tensor.clone() for name, tensor in body.state_dict().items()})
    return reference


def in_transformers(body: ResNet) -> nn.Module:
    c = body.config
    sizes = {"embedding_size": c.embedding_size, "hidden_sizes": list(c.hidden_sizes), "depths": list(c.depths)}
    reference = transformers.ResNetModel(transformers.ResNetConfig(**sizes, layer_type="bottleneck")).double()
    reference.load_state_dict(to_huggingface({name: t.clone() for name, t in body.state_dict().items()}, body, ""))
    return reference


def in_timm(body: ResNet) -> nn.Module:
    resnet = pytest.importorskip("timm").models.resnet
    channels = [width // 4 for width in body.config.hidden_sizes]
    reference = resnet.ResNet(resnet.Bottleneck, body.config.depths, num_classes=0, channels=channels).double()
    table = translate(body, body.TORCHVISION)
    reference.load_state_dict({table[name]: tensor.clone() for name, tensor in body.state_dict().items()})
    return reference


def stage_outputs(body: ResNet, images: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """(the map after the stem and after every block, the pooled one)"""
    state, hidden = State(images), []
    for stage in body.walk():
        state = stage(state)
        hidden.append(state.hidden)
    return hidden[:-1], state.pooled


def reference_outputs(reference: nn.Module, body: ResNet, library: str, images: torch.Tensor):
    hidden, hooks = [], []
    for name in ["stem", *(f"blocks.{i}" for i in range(len(body.blocks)))]:
        module = reference.get_submodule(look_up_module(name, STAGES[library], body.numbering()))
        hooks.append(module.register_forward_hook(lambda module, inputs, output: hidden.append(output)))
    output = reference(images)
    for hook in hooks:
        hook.remove()
    return hidden, output if isinstance(output, torch.Tensor) else output.pooler_output.flatten(1)


TWINS = {
    "torchvision": (WIDE, in_torchvision, "torchvision"),
    "transformers": (NARROW, in_transformers, "transformers"),
    "transformers, no shortcut": (NO_SHORTCUT, in_transformers, "transformers"),
    "timm": (NARROW_BLOCKS, in_timm, "torchvision"),
}

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("twin", TWINS)
def test_twin_in_float64(twin, mode):
    config, build, library = TWINS[twin]
    body = random_body(config)
    reference = build(body)
    table = translate(body, body.TORCHVISION if library == "torchvision" else body.HUGGINGFACE)
    for model in (body, reference):
        model.train(mode == "train")
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, 72, 56, generator=generator, dtype=torch.float64)  # an odd number of rows and columns further up

    ours, pooled = stage_outputs(body, images)
    theirs, expected = reference_outputs(reference, body, library, images)
    assert len(ours) == len(theirs) == 1 + sum(config.depths)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        close(a, b, msg=lambda text, i=i: f"stage {i}: {text}")
    close(pooled, expected)

    weight = torch.randn(pooled.shape, generator=generator, dtype=torch.float64)
    map_weight = torch.randn(ours[-1].shape, generator=generator, dtype=torch.float64)
    for hidden, output in ((ours[-1], pooled), (theirs[-1], expected)):
        ((hidden * map_weight).sum() + (output * weight).sum()).backward()
    for name, parameter in body.named_parameters():
        assert parameter.grad.any(), name
        close(parameter.grad, reference.get_parameter(table[name]).grad, msg=lambda text, name=name: f"{name}: {text}")

    statistics = {name: tensor for name, tensor in body.named_buffers()}
    assert len(statistics) == 3 * (1 + 3 * sum(config.depths) + sum(name.endswith("shortcut.norm.weight") for name in table))
    for name, tensor in statistics.items():
        close(tensor, reference.get_buffer(table[name]), msg=lambda text, name=name: f"{name}: {text}")
        if name.endswith("num_batches_tracked"):
            assert tensor == (8 if mode == "train" else 7)


@pytest.mark.parametrize("name", DEPTHS)
def test_full_size_has_the_names_and_shapes_of_torchvision_transformers_and_timm(name):
    with torch.device("meta"):
        body = ResNet(ResNetConfig(depths=DEPTHS[name]))
        theirs = torchvision.models.get_model(name)
        twin = transformers.ResNetModel(transformers.ResNetConfig(depths=list(DEPTHS[name])))
    shapes = {key: tensor.shape for key, tensor in body.state_dict().items()}
    for table, reference in ((body.TORCHVISION, theirs), (body.HUGGINGFACE, twin)):
        translated = {theirs: shapes[ours] for ours, theirs in translate(body, table).items()}
        expected = {key: tensor.shape for key, tensor in reference.state_dict().items() if not key.startswith("fc.")}
        assert translated == expected
    parameters = sum(p.numel() for p in body.parameters())
    head = 2048 * 1000 + 1000
    assert parameters + head == torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]

    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        other = timm.create_model(name)
    assert {k: t.shape for k, t in other.state_dict().items()} == {k: t.shape for k, t in theirs.state_dict().items()}


def test_initial_weights_follow_the_same_rule():
    torch.manual_seed(0)
    body = ResNet(ResNetConfig(depths=(1, 1, 1, 1)))
    resnet = torchvision.models.resnet
    reference = resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1])
    table = translate(body, body.TORCHVISION)
    for name, parameter in body.named_parameters():
        a, b = parameter.detach(), reference.get_parameter(table[name]).detach()
        if b.dim() == 1:
            assert torch.equal(a, b), name
        else:  # 4,096 numbers at least: the standard deviation of a standard deviation is 1.1 %
            assert abs(a.std() / b.std() - 1) < 0.08 and abs(a.mean()) < 4 * a.std() / a.numel() ** 0.5, name
    for name, tensor in body.named_buffers():
        assert torch.equal(tensor, reference.get_buffer(table[name])), name


def test_without_pooler_the_map_is_the_same():
    body = random_body(NARROW).eval()
    bare = ResNet(NARROW, pool=None).double().eval()
    bare.load_state_dict(body.state_dict())
    images = torch.randn(2, 3, 32, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        state = bare(images)
        assert state.pooled is None and torch.equal(state.hidden, body(images).hidden)
