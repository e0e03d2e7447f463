"""EfficientNet B0 to B7 (Tan & Le 2019, arXiv:1905.11946, table 1) and Lite0 to Lite4: torchvision's, timm's, transformers'.

    x      = act(BN(conv_3x3(image)))                                                   stem, which halves the resolution
    h      = act(BN(dw_kxk(act(BN(conv_1x1(x))))))                                      the first 1x1 widens x by expand_ratio
    F(x)   = BN(conv_1x1(h * sigmoid(W_2 act(W_1 mean(h)))))                            branch; the factor is squeeze-and-excitation
    x      = x + drop(F(x))                                                             where the shape stays, else F(x)
    pooled = mean of act(BN(conv_1x1(x))) over height and width                         top, pooler

act is SiLU. The factor on h is missing in the Lite models, whose act is ReLU6. drop is stochastic depth (Huang et al. 2016,
arXiv:1603.09382): in training the branch of a row is left out with probability drop_connect_rate i / N in block i of N, and
divided by the probability that it stays. W_1 has a quarter of the channels of x.

The same weights give other numbers under another padding or another eps, without any error. What a checkpoint was trained with
stands in its config:

    source                                   padding     batch_norm_eps        batch_norm_momentum
    torchvision; timm's efficientnet_*       symmetric   1e-5 (B5 to B7 of     0.1 (B5 to B7 of
                                                         torchvision: 1e-3)    torchvision: 0.01)
    timm's tf_efficientnet_*                 same        1e-3                  0.1
    Keras, transformers, efficientnet_pytorch  same      1e-3                  0.01

"same" is TensorFlow's padding: where a stride of 2 meets an even size, one row less stands above than below. transformers fixes
it at the image size of the checkpoint; here it follows the size of the map, as in Keras. transformers drops single numbers of a
branch where this drops whole rows of the batch.
What methods rely on: the branch is a module whose output is what is added; a BatchNorm stands directly behind the convolution
whose output it normalises; padding that depends on the size stands before a convolution, not in it.

Axes: B batch, C channels, Y height, X width, D channels of the top.
Proved by tests/reference/test_efficientnet.py: every block's output, every gradient and every BatchNorm statistic, float64, 1e-10.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from minift.models.body import Body, only

STEM, TOP, DIVISOR = 32, 1280, 8  # channels before scaling; all numbers of channels are multiples of DIVISOR
ACTIVATIONS = {"swish": F.silu, "relu6": partial(F.relu6, inplace=True)}

# Name -> width, depth (factors on B0's channels and blocks), image size, dropout of the head
SIZES = {
    "efficientnet-b0": (1.0, 1.0, 224, 0.2),
    "efficientnet-b1": (1.0, 1.1, 240, 0.2),
    "efficientnet-b2": (1.1, 1.2, 260, 0.3),
    "efficientnet-b3": (1.2, 1.4, 300, 0.3),
    "efficientnet-b4": (1.4, 1.8, 380, 0.4),
    "efficientnet-b5": (1.6, 2.2, 456, 0.4),
    "efficientnet-b6": (1.8, 2.6, 528, 0.5),
    "efficientnet-b7": (2.0, 3.1, 600, 0.5),
    "efficientnet-lite0": (1.0, 1.0, 224, 0.2),
    "efficientnet-lite1": (1.0, 1.1, 240, 0.2),
    "efficientnet-lite2": (1.1, 1.2, 260, 0.3),
    "efficientnet-lite3": (1.2, 1.4, 280, 0.3),
    "efficientnet-lite4": (1.4, 1.8, 300, 0.3),
}


@dataclass(frozen=True)
class EfficientNetConfig:
    """The fields of a `config.json` that shape the computation, under their Hugging Face names where it has them; defaults: B0."""

    width_coefficient: float = 1.0
    depth_coefficient: float = 1.0
    kernel_sizes: tuple[int, ...] = (3, 3, 5, 3, 5, 5, 3)  # of the groups of blocks, before scaling; likewise the next four
    out_channels: tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)  # of the first block of a group
    num_block_repeats: tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
    expand_ratios: tuple[int, ...] = (1, 6, 6, 6, 6, 6, 6)
    squeeze_expansion_ratio: float = 0.25  # 0: no squeeze-and-excitation, as in Lite
    hidden_act: str = "swish"  # swish, which is SiLU, or relu6
    batch_norm_eps: float = 1e-3
    batch_norm_momentum: float = 0.01  # in torch's sense: the share of the newest batch in the moving statistics
    drop_connect_rate: float = 0.2
    dropout_rate: float = 0.2  # of what the head reads
    image_size: int = 224
    padding: str = "same"  # same: TensorFlow's; symmetric
    fixed_ends: bool = False  # stem, top, and the numbers of blocks in the first and the last group are not scaled, as in Lite
    head_bias: ClassVar[bool] = True
    DROPOUT: ClassVar = {}

    def __post_init__(self):
        groups = ("kernel_sizes", "out_channels", "strides", "num_block_repeats", "expand_ratios")
        limits = dict(zip(groups, (64, 2**16, 3, 1000, 100), strict=True)) | {"image_size": 2**16}
        for name, limit in limits.items():
            value = getattr(self, name)
            numbers = value if name in groups else (value,)
            if not isinstance(numbers, list | tuple) or not all(type(n) is int and 1 <= n < limit for n in numbers) or not numbers:
                raise ValueError(f"{name} is {value!r:.40}; whole numbers from 1 to below {limit} are expected")
        for name, least, most in (
            *(("width_coefficient", 0.01, 100), ("depth_coefficient", 0.01, 100), ("squeeze_expansion_ratio", 0, 1)),
            *(("batch_norm_eps", 0, 1), ("batch_norm_momentum", 0, 1), ("drop_connect_rate", 0, 0.99), ("dropout_rate", 0, 0.99)),
        ):
            value = getattr(self, name)
            if type(value) not in (int, float) or not least <= value <= most:
                raise ValueError(f"{name} is {value!r:.40}; a number from {least} to {most} is expected")
        if len({len(getattr(self, name)) for name in groups}) > 1:
            raise ValueError(f"{', '.join(groups)} are of unequal length; each has a number for every group of blocks")
        if even := next((k for k in self.kernel_sizes if k % 2 == 0), None):
            raise ValueError(f"kernel_sizes has {even}; odd numbers are expected")
        for name, known in (("hidden_act", (*ACTIVATIONS,)), ("padding", ("same", "symmetric")), ("fixed_ends", (False, True))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r:.40}; known are {' and '.join(map(str, known))}")
        if sum(self.depths) >= 1000:
            raise ValueError(f"num_block_repeats are {sum(self.depths)} blocks; fewer than 1000 are expected")
        for g, stride in enumerate(self.strides):
            if stride == 1 and self.channels[g] == self.channels[g + 1]:
                raise ValueError(
                    f"group {g} leaves the shape as it is; the libraries do not agree on a residual in its first block"
                )

    @property
    def depths(self) -> list[int]:
        """Blocks of each group."""
        last = len(self.num_block_repeats) - 1
        fixed = (0, last) if self.fixed_ends else ()
        return [n if g in fixed else math.ceil(self.depth_coefficient * n) for g, n in enumerate(self.num_block_repeats)]

    @property
    def channels(self) -> list[int]:
        """Of the stem, of the groups and of the top."""
        scaled = [multiple(n * self.width_coefficient) for n in (STEM, *self.out_channels, TOP)]
        return [STEM, *scaled[1:-1], TOP] if self.fixed_ends else scaled

    @property
    def width(self) -> int:
        """D"""
        return self.channels[-1]

    @property
    def head_dropout(self) -> float:
        return self.dropout_rate


def multiple(channels: float) -> int:
    """The nearest multiple of DIVISOR that is not below nine tenths of the number."""
    near = max(DIVISOR, int(channels + DIVISOR / 2) // DIVISOR * DIVISOR)
    return near if near >= 0.9 * channels else near + DIVISOR


def fields_of(name: str) -> dict:
    """The fields of the config of a row of SIZES; padding and BatchNorm are the source's, and stay at their defaults here."""
    width, depth, size, dropout = SIZES[name]
    fields = {"width_coefficient": width, "depth_coefficient": depth, "image_size": size, "dropout_rate": dropout}
    if "lite" in name:
        fields |= {"squeeze_expansion_ratio": 0, "hidden_act": "relu6", "fixed_ends": True}
    return fields


class State(NamedTuple):
    """What flows from stage to stage; a stage returns it with some fields replaced."""

    hidden: Tensor | None  # (B, C, Y, X), the image to begin with
    pooled: Tensor | None = None  # (B, D) once the pooler has run

    only = classmethod(only)


def same(x: Tensor, kernel: int) -> Tensor:
    """x with the rows and columns of zeros that TensorFlow's `same` puts around it before a convolution of stride 2."""
    sides = []
    for size in (x.shape[3], x.shape[2]):
        total = kernel - 2 + size % 2  # so that ceil(size / 2) numbers come out
        sides += [total // 2, total - total // 2]
    return F.pad(x, sides)


def convolution(inputs: int, outputs: int, kernel: int, stride: int, padding: str, groups: int = 1) -> nn.Conv2d:
    """Without a bias, as a BatchNorm follows; under `same` and a stride of 2 its input is padded outside, see `same`."""
    inside = 0 if padding == "same" and stride > 1 else kernel // 2
    return nn.Conv2d(inputs, outputs, kernel, stride, inside, groups=groups, bias=False)


class Stem(nn.Module):
    def __init__(self, c: EfficientNetConfig):
        super().__init__()
        self.act = ACTIVATIONS[c.hidden_act]
        self.padded = c.padding == "same"
        self.conv = convolution(3, c.channels[0], 3, 2, c.padding)
        self.norm = norm(c.channels[0], c)

    def forward(self, state: State) -> State:
        x = same(state.hidden, 3) if self.padded else state.hidden
        return state._replace(hidden=self.act(self.norm(self.conv(x))))  # (B, 3, Y, X) -> (B, C, Y/2, X/2)


def norm(channels: int, c: EfficientNetConfig) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=c.batch_norm_eps, momentum=c.batch_norm_momentum)


class SqueezeExcitation(nn.Module):
    """A factor from 0 to 1 for each channel, computed from the means of all (Hu et al. 2018, arXiv:1709.01507)."""

    def __init__(self, channels: int, squeezed: int, act: Callable[[Tensor], Tensor]):
        super().__init__()
        self.act = act
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)  # (B, C, Y, X) -> (B, C, 1, 1)
        return x * self.expand(self.act(self.reduce(means))).sigmoid()


class MBConv(nn.Module):
    """Inverted bottleneck (Sandler et al. 2018, arXiv:1801.04381): wide inside, thin at both ends."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, ratio: int, c: EfficientNetConfig):
        super().__init__()
        inner = inputs * ratio
        self.act = ACTIVATIONS[c.hidden_act]
        self.padded = kernel if c.padding == "same" and stride > 1 else 0
        self.expand = convolution(inputs, inner, 1, 1, c.padding) if ratio > 1 else None
        self.norm1 = norm(inner, c) if ratio > 1 else None
        self.depthwise = convolution(inner, inner, kernel, stride, c.padding, groups=inner)
        self.norm2 = norm(inner, c)
        squeezed = max(1, int(inputs * c.squeeze_expansion_ratio))
        self.excitation = SqueezeExcitation(inner, squeezed, self.act) if c.squeeze_expansion_ratio else None
        self.project = convolution(inner, outputs, 1, 1, c.padding)
        self.norm3 = norm(outputs, c)

    def forward(self, x: Tensor) -> Tensor:
        if self.expand is not None:
            x = self.act(self.norm1(self.expand(x)))  # (B, C, Y, X) -> (B, ratio C, Y, X)
        x = same(x, self.padded) if self.padded else x
        x = self.act(self.norm2(self.depthwise(x)))  # -> (B, ratio C, Y/stride, X/stride)
        if self.excitation is not None:
            x = self.excitation(x)
        return self.norm3(self.project(x))  # -> (B, C', Y/stride, X/stride)


class Block(nn.Module):
    """drop: the probability with which the branch of a row is left out in training."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, ratio: int, drop: float, c: EfficientNetConfig):
        super().__init__()
        self.drop = drop
        self.branch = MBConv(inputs, outputs, kernel, stride, ratio, c)
        self.residual = inputs == outputs and stride == 1

    def forward(self, state: State) -> State:
        x = state.hidden
        y = self.branch(x)
        if self.residual and self.training and self.drop:
            y = y * y.new_empty(len(y), 1, 1, 1).bernoulli_(1 - self.drop).div_(1 - self.drop)
        return state._replace(hidden=x + y if self.residual else y)


class Top(nn.Module):
    def __init__(self, c: EfficientNetConfig):
        super().__init__()
        self.act = ACTIVATIONS[c.hidden_act]
        self.conv = convolution(c.channels[-2], c.channels[-1], 1, 1, c.padding)
        self.norm = norm(c.channels[-1], c)

    def forward(self, state: State) -> State:
        return state._replace(hidden=self.act(self.norm(self.conv(state.hidden))))  # (B, C, Y, X) -> (B, D, Y, X)


class Pooler(nn.Module):
    def forward(self, state: State) -> State:
        return state._replace(pooled=state.hidden.mean((2, 3)))  # (B, D, Y, X) -> (B, D)


class EfficientNet(Body):
    """The network up to its last features. `pool=None` leaves the pooler out, for tasks that read the map itself.

    Weights start as timm's do: convolutions N(0, 2 / fan_out) with the fan_out of one group, BatchNorms and biases as 1 and 0.
    """

    Config = EfficientNetConfig
    State = State
    STAGES: ClassVar = {"stem": "stem", "block": "blocks", "top": "top"}
    FLOWS: ClassVar = {"hidden": "unit"}
    POOLS: ClassVar = ("mean",)

    # Role -> regular expression that the dotted name of a module matches in full.
    SITES: ClassVar = {
        "expand": r"blocks\.\d+\.branch\.expand",
        "depthwise": r"blocks\.\d+\.branch\.depthwise",
        "project": r"blocks\.\d+\.branch\.project",
        "excitation": r"blocks\.\d+\.branch\.excitation\.(reduce|expand)",
        "top": r"top\.conv",
        "branch": r"blocks\.\d+\.branch",
    }

    # Module here -> module there; {} and {i} = number of the block; {g}, {G} number the groups from 0 and 1, {b} the blocks of one.
    # Of a block without the first 1x1 convolution the modules behind it move up: {D} is 0 there, else 1, {S} and {P} 1 and 2 more,
    # and timm then calls the last convolution otherwise ({l}).
    TORCHVISION: ClassVar = {
        "stem.conv": "features.0.0",
        "stem.norm": "features.0.1",
        "blocks.{}.branch.expand": "features.{G}.{b}.block.0.0",
        "blocks.{}.branch.norm1": "features.{G}.{b}.block.0.1",
        "blocks.{}.branch.depthwise": "features.{G}.{b}.block.{D}.0",
        "blocks.{}.branch.norm2": "features.{G}.{b}.block.{D}.1",
        "blocks.{}.branch.excitation.reduce": "features.{G}.{b}.block.{S}.fc1",
        "blocks.{}.branch.excitation.expand": "features.{G}.{b}.block.{S}.fc2",
        "blocks.{}.branch.project": "features.{G}.{b}.block.{P}.0",
        "blocks.{}.branch.norm3": "features.{G}.{b}.block.{P}.1",
        "top.conv": "features.8.0",
        "top.norm": "features.8.1",
    }
    TIMM: ClassVar = {
        "stem.conv": "conv_stem",
        "stem.norm": "bn1",
        "blocks.{}.branch.expand": "blocks.{g}.{b}.conv_pw",
        "blocks.{}.branch.norm1": "blocks.{g}.{b}.bn1",
        "blocks.{}.branch.depthwise": "blocks.{g}.{b}.conv_dw",
        "blocks.{}.branch.norm2": "blocks.{g}.{b}.bn{S}",
        "blocks.{}.branch.excitation.reduce": "blocks.{g}.{b}.se.conv_reduce",
        "blocks.{}.branch.excitation.expand": "blocks.{g}.{b}.se.conv_expand",
        "blocks.{}.branch.project": "blocks.{g}.{b}.conv_pw{l}",
        "blocks.{}.branch.norm3": "blocks.{g}.{b}.bn{P}",
        "top.conv": "conv_head",
        "top.norm": "bn2",
    }
    HUGGINGFACE: ClassVar = {
        "stem.conv": "embeddings.convolution",
        "stem.norm": "embeddings.batchnorm",
        "blocks.{}.branch.expand": "encoder.blocks.{i}.expansion.expand_conv",
        "blocks.{}.branch.norm1": "encoder.blocks.{i}.expansion.expand_bn",
        "blocks.{}.branch.depthwise": "encoder.blocks.{i}.depthwise_conv.depthwise_conv",
        "blocks.{}.branch.norm2": "encoder.blocks.{i}.depthwise_conv.depthwise_norm",
        "blocks.{}.branch.excitation.reduce": "encoder.blocks.{i}.squeeze_excite.reduce",
        "blocks.{}.branch.excitation.expand": "encoder.blocks.{i}.squeeze_excite.expand",
        "blocks.{}.branch.project": "encoder.blocks.{i}.projection.project_conv",
        "blocks.{}.branch.norm3": "encoder.blocks.{i}.projection.project_bn",
        "top.conv": "encoder.top_conv",
        "top.norm": "encoder.top_bn",
    }
    PACKAGE: ClassVar = {  # the efficientnet_pytorch package's
        "stem.conv": "_conv_stem",
        "stem.norm": "_bn0",
        "blocks.{}.branch.expand": "_blocks.{i}._expand_conv",
        "blocks.{}.branch.norm1": "_blocks.{i}._bn0",
        "blocks.{}.branch.depthwise": "_blocks.{i}._depthwise_conv",
        "blocks.{}.branch.norm2": "_blocks.{i}._bn1",
        "blocks.{}.branch.excitation.reduce": "_blocks.{i}._se_reduce",
        "blocks.{}.branch.excitation.expand": "_blocks.{i}._se_expand",
        "blocks.{}.branch.project": "_blocks.{i}._project_conv",
        "blocks.{}.branch.norm3": "_blocks.{i}._bn2",
        "top.conv": "_conv_head",
        "top.norm": "_bn1",
    }

    def __init__(self, config: EfficientNetConfig, pool: str | None = "mean"):
        super().__init__()
        c = self.config = config
        self.stem = Stem(c)
        self.blocks = nn.ModuleList()
        inputs, total = c.channels[0], sum(c.depths)
        for i, number in enumerate(self.numbering()):
            g, first = number["g"], number["b"] == 0
            outputs, stride = c.channels[1 + g], c.strides[g] if first else 1
            drop = c.drop_connect_rate * i / total
            self.blocks.append(Block(inputs, outputs, c.kernel_sizes[g], stride, c.expand_ratios[g], drop, c))
            inputs = outputs
        self.top = Top(c)
        self.pooler = Pooler() if pool == "mean" else None
        self.apply(self.initialise)

    def numbering(self) -> list[dict[str, int | str]]:
        """For every block the numbers that the name tables use."""
        pairs = [(g, b) for g, depth in enumerate(self.config.depths) for b in range(depth)]
        numbers = []
        for i, (g, b) in enumerate(pairs):
            wide = int(self.config.expand_ratios[g] > 1)
            numbers.append({"i": i, "g": g, "G": g + 1, "b": b, "D": wide, "S": wide + 1, "P": wide + 2, "l": "l" * wide})
        return numbers

    def begin(self, images: Tensor) -> State:
        """images: (B, 3, Y, X), normalised as in the weights' pretraining."""
        return State(images)

    def initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d | nn.Linear):
            module.reset_parameters()
