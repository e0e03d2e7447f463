"""minift.models.efficientnet against torchvision, timm and transformers: blocks, gradients, BatchNorm statistics, names, shapes."""

import math
from dataclasses import replace
from functools import partial

import pytest
import timm
import torch
import torchvision
import transformers
from tiny import randomise_norms
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from minift.formats.huggingface import efficientnet_out, look_up_module, translate
from minift.models.efficientnet import SIZES, EfficientNet, EfficientNetConfig, State, fields_of

SYMMETRIC = {"padding": "symmetric", "batch_norm_eps": 1e-5, "batch_norm_momentum": 0.1}
TF = {"batch_norm_momentum": 0.1}  # timm's tf_ models: TensorFlow's padding and eps with torch's momentum
STILL = {"drop_connect_rate": 0.0}
LESS = {"width_coefficient": 0.5, "depth_coefficient": 0.5}  # 9 blocks
KERNEL_SIZES = {"kernel_sizes": (5, 3, 7, 3, 5, 5, 3)}

# Module here -> module there after which the map is the stage's output
STAGES = {
    "torchvision": {"stem": "features.0", "blocks.{}": "features.{G}.{b}", "top": "features.8"},
    "timm": {"stem": "bn1", "blocks.{}": "blocks.{g}.{b}", "top": "bn2"},  # timm's BatchNorms hold the activation behind them
    "transformers": {"stem": "embeddings", "blocks.{}": "encoder.blocks.{i}", "top": "encoder.top_activation"},
}
TABLES = {"torchvision": "TORCHVISION", "timm": "TIMM", "transformers": "HUGGINGFACE"}


def random_body(config: EfficientNetConfig) -> EfficientNet:
    """Every norm and statistic random, and every bias, so that a swapped or forgotten one shows."""
    torch.manual_seed(0)
    body = EfficientNet(config).double()
    randomise_norms(body, std=0.5, batches=7)
    for name, parameter in body.named_parameters():
        if name.endswith(("reduce.bias", "expand.bias")):
            nn.init.normal_(parameter, std=0.5)
    return body


def in_torchvision(body: EfficientNet) -> nn.Module:
    c, model = body.config, torchvision.models.efficientnet
    inputs = (32, *c.out_channels[:-1])
    groups = zip(c.expand_ratios, c.kernel_sizes, c.strides, inputs, c.out_channels, c.num_block_repeats, strict=True)
    scaled = [model.MBConvConfig(*group, c.width_coefficient, c.depth_coefficient) for group in groups]
    norm = partial(nn.BatchNorm2d, eps=c.batch_norm_eps, momentum=c.batch_norm_momentum)
    reference = model.EfficientNet(scaled, 0.0, c.drop_connect_rate, norm_layer=norm, last_channel=c.width)
    reference.classifier = nn.Identity()
    return reference


def in_timm(body: EfficientNet, name: str) -> nn.Module:
    c = body.config
    if c.width_coefficient == c.depth_coefficient == 1:
        return timm.create_model(name, num_classes=0, drop_path_rate=c.drop_connect_rate)
    generate = timm.models.efficientnet._gen_efficientnet_lite if "lite" in name else timm.models.efficientnet._gen_efficientnet
    kind = {"pad_type": "same", "bn_eps": 1e-3} if name.startswith("tf_") else {}
    factors = {"channel_multiplier": c.width_coefficient, "depth_multiplier": c.depth_coefficient}
    return generate(name, **factors, num_classes=0, drop_path_rate=c.drop_connect_rate, **kind)


def in_transformers(body: EfficientNet) -> nn.Module:
    reference = transformers.EfficientNetModel(transformers.EfficientNetConfig(**efficientnet_out(body.config)))
    for block in reference.encoder.blocks:
        if hasattr(block, "expansion"):  # the only BatchNorm of theirs that does not have the config's momentum
            block.expansion.expand_bn.momentum = body.config.batch_norm_momentum
    return reference


LITE = {k: v for k, v in fields_of("efficientnet-lite0").items() if k not in ("width_coefficient", "depth_coefficient")}
TWINS = {  # library, what builds the twin, config, size of the images: an even number that becomes odd further up
    "torchvision": ("torchvision", in_torchvision, SYMMETRIC, 36),
    "torchvision, less": ("torchvision", in_torchvision, SYMMETRIC | LESS | KERNEL_SIZES, 47),
    "timm": ("timm", partial(in_timm, name="efficientnet_b0"), SYMMETRIC, 36),
    "timm, tf": ("timm", partial(in_timm, name="tf_efficientnet_b0"), TF, 36),
    "timm, tf, less": ("timm", partial(in_timm, name="tf_efficientnet_b0"), TF | LESS, 47),
    "timm, lite, less": ("timm", partial(in_timm, name="efficientnet_lite0"), SYMMETRIC | LITE | LESS, 47),
    "timm, tf lite": ("timm", partial(in_timm, name="tf_efficientnet_lite0"), TF | LITE, 36),
    "timm, tf lite, less": ("timm", partial(in_timm, name="tf_efficientnet_lite0"), TF | LITE | LESS, 47),
    "transformers": ("transformers", in_transformers, STILL | {"image_size": 36}, 36),
    "transformers, less": ("transformers", in_transformers, STILL | LESS | KERNEL_SIZES | {"image_size": 46}, 46),
}
SMALL = [name for name in TWINS if name.endswith("less")]

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


def twins(twin: str) -> tuple[EfficientNet, nn.Module, dict[str, str]]:
    """(body, the library's model with the same weights, name here -> name there of every tensor)"""
    library, build, fields, _ = TWINS[twin]
    body = random_body(EfficientNetConfig(**fields))
    table = translate(body, getattr(body, TABLES[library]))
    reference = build(body).double()
    reference.load_state_dict({table[name]: tensor.clone() for name, tensor in body.state_dict().items()})
    return body, reference, table


@pytest.mark.parametrize(("twin", "mode"), [(twin, "train") for twin in TWINS] + [(twin, "eval") for twin in SMALL])
def test_twin_in_float64(twin, mode):
    """In training with stochastic depth, which draws the same numbers; that of transformers is another, so there it is off."""
    library, _, _, size = TWINS[twin]
    body, reference, table = twins(twin)
    for model in (body, reference):
        model.train(mode == "train")
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, size, size, generator=generator, dtype=torch.float64)

    state, ours, theirs, places = State(images), [], [], []
    torch.manual_seed(2)
    for stage in body.walk():
        state = stage(state)
        ours.append(state.hidden)
    names = ["stem", *(f"blocks.{i}" for i in range(len(body.blocks))), "top"]
    for name in names:
        place = reference.get_submodule(look_up_module(name, STAGES[library], body.numbering()))
        places.append(place.register_forward_hook(lambda module, inputs, output: theirs.append(output)))
    torch.manual_seed(2)
    output = reference(images)
    for hook in places:
        hook.remove()
    output = output if isinstance(output, torch.Tensor) else output.pooler_output.flatten(1)
    for name, a, b in zip(names, ours[:-1], theirs, strict=True):
        close(a, b, msg=lambda text, name=name: f"{name}: {text}")
    close(state.pooled, output)

    weight = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    for pooled in (state.pooled, output):
        (pooled * weight).sum().backward()
    for name, parameter in body.named_parameters():
        assert parameter.grad.any(), name
        close(parameter.grad, reference.get_parameter(table[name]).grad, msg=lambda text, name=name: f"{name}: {text}")

    statistics = dict(body.named_buffers())
    assert len(statistics) == 3 * sum(isinstance(module, _BatchNorm) for module in reference.modules())
    for name, tensor in statistics.items():
        close(tensor, reference.get_buffer(table[name]), msg=lambda text, name=name: f"{name}: {text}")
        if name.endswith("num_batches_tracked"):
            assert tensor == (8 if mode == "train" else 7)


@pytest.mark.parametrize("twin", [name for name in SMALL if name.startswith("timm, tf")])
def test_the_other_padding_and_the_other_eps_show(twin):
    """What mixing the two kinds of timm's weights costs: the twin above would not pass."""
    body, reference, _ = twins(twin)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = reference.eval()(images)
    for change in ({"padding": "symmetric"}, {"batch_norm_eps": 1e-5}):
        other = EfficientNet(replace(body.config, **change)).double().eval()
        other.load_state_dict(body.state_dict())
        assert (other(images).pooled - expected).abs().max() > 1e-3 * expected.abs().max(), change


FEW = ("efficientnet-b0", "efficientnet-b7", "efficientnet-lite0", "efficientnet-lite4")


@pytest.mark.parametrize("name", [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in SIZES])
def test_every_size_has_the_names_and_shapes_of_torchvision_timm_and_transformers(name):
    lite = "lite" in name
    with torch.device("meta"):
        body = EfficientNet(EfficientNetConfig(**fields_of(name)))
        libraries = {"TIMM": timm.create_model(f"tf_{name.replace('-', '_')}")}
        if not lite:
            libraries["TORCHVISION"] = torchvision.models.get_model(name.replace("-", "_"))
            libraries["HUGGINGFACE"] = in_transformers(body)
    shapes = {key: tensor.shape for key, tensor in body.state_dict().items()}
    for table, reference in libraries.items():
        translated = {theirs: shapes[ours] for ours, theirs in translate(body, getattr(body, table)).items()}
        expected = {key: tensor.shape for key, tensor in reference.state_dict().items() if not key.startswith("classifier")}
        assert translated == expected, table
    for theirs, block in zip(blocks_of(libraries["TIMM"]), body.blocks, strict=True):
        ours = block.branch.depthwise
        assert (theirs.conv_dw.stride, theirs.conv_dw.kernel_size) == (ours.stride, ours.kernel_size)
    if not lite:
        parameters = sum(p.numel() for p in body.parameters()) + 1000 * (body.config.width + 1)
        weights = torchvision.models.get_model_weights(name.replace("-", "_")).DEFAULT
        assert parameters == weights.meta["num_params"]
        hub = {"b0": [], "b1": [16], "b2": [5, 8, 16], "b3": [5, 18], "b4": [6], "b5": [13, 27], "b6": [31], "b7": [18]}
        assert efficientnet_out(body.config)["depthwise_padding"] == hub[name[-2:]]  # of google's checkpoints on the hub


def blocks_of(network: nn.Module) -> list[nn.Module]:
    return [block for group in network.blocks for block in group]


def test_initial_weights_follow_timms_rule():
    torch.manual_seed(0)
    body, reference = EfficientNet(EfficientNetConfig()), timm.create_model("efficientnet_b0", num_classes=0)
    table = translate(body, body.TIMM)
    for name, parameter in body.named_parameters():
        a, b = parameter.detach(), reference.get_parameter(table[name]).detach()
        if b.dim() == 1:
            assert torch.equal(a, b), name
        else:  # 5 deviations of the ratio of two standard deviations
            assert abs(a.std() / b.std() - 1) < 5 / math.sqrt(a.numel()), name
    for name, tensor in body.named_buffers():
        assert torch.equal(tensor, reference.get_buffer(table[name])), name


def test_stochastic_depth_leaves_out_rows():
    body = random_body(EfficientNetConfig(**LESS, drop_connect_rate=0.8)).train()
    block = next(block for block in reversed(body.blocks) if block.residual)
    x = torch.randn(200, block.branch.project.out_channels, 2, 2, dtype=torch.float64)
    torch.manual_seed(0)
    change = block(State(x)).hidden - x
    left_out = (change == 0).flatten(1).all(1)
    assert abs(left_out.double().mean() - block.drop) < 4 * math.sqrt(block.drop * (1 - block.drop) / 200)
    assert not block.eval()(State(x)).hidden.eq(x).flatten(1).all(1).any()


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_image_smaller_than_the_kernel(padding, size):
    body = random_body(EfficientNetConfig(**LESS, padding=padding)).eval()
    state = body(torch.randn(2, 3, size, size, dtype=torch.float64))
    assert state.hidden.shape == (2, body.config.width, 1, 1) and state.pooled.isfinite().all()


def test_without_pooler_the_map_is_the_same():
    config = EfficientNetConfig(**LESS)
    body, bare = random_body(config).eval(), EfficientNet(config, pool=None).double().eval()
    bare.load_state_dict(body.state_dict())
    images = torch.randn(2, 3, 32, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        state = bare(images)
        assert state.pooled is None and torch.equal(state.hidden, body(images).hidden)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kernel_sizes": (3, 3, 4, 3, 5, 5, 3)}, "odd numbers"),
        ({"strides": (1, 2)}, "of unequal length"),
        ({"out_channels": (16, 24, 40, 80, 112, 192, 0)}, "out_channels is"),
        ({"strides": (1, 2, 3, 2, 1, 2, 1)}, "strides is"),
        ({"batch_norm_eps": "1e-3"}, "batch_norm_eps is '1e-3'"),
        ({"width_coefficient": 1e9}, "width_coefficient is 1000000000.0"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; known are swish and relu6"),
        ({"padding": "valid"}, "padding is 'valid'; known are same and symmetric"),
        ({"num_block_repeats": (999, 1, 1, 1, 1, 1, 1)}, "fewer than 1000"),
        ({"out_channels": (32, 24, 40, 80, 112, 192, 320)}, "group 0 leaves the shape as it is"),
    ],
)
def test_fields_that_no_network_has(fields, said):
    with pytest.raises(ValueError, match=said):
        EfficientNetConfig(**fields)
