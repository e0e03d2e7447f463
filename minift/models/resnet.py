"""ResNet-50, -101 and -152 (He et al. 2016, arXiv:1512.03385, section 4.1), equal to torchvision's and transformers'.

    x      = maxpool(relu(BN(conv_7x7(image))))                              stem
    F(x)   = BN(conv_1x1(relu(BN(conv_3x3(relu(BN(conv_1x1(x))))))))         bottleneck, the residual branch of a block
    x      = relu(F(x) + shortcut(x))                                        shortcut: x, or BN(conv_1x1(x)) where the shape changes
    pooled = mean of x over height and width                                 pooler

Differs from the paper in one thing, as both libraries do ("v1.5"): a block that halves the resolution does so in its 3x3
convolution, not in the first 1x1. timm's resnet50 has torchvision's names and is the same network.
What methods rely on: the residual branch is a module whose output is what is added; no module is used twice in one forward; a
BatchNorm stands directly behind the convolution whose output it normalises.

Axes: B batch, C channels, Y height, X width, D channels of the last block.
Proved by tests/reference/test_resnet.py: every block's output, every gradient and every BatchNorm statistic, float64, 1e-10.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from minift.models.body import Body, only

REDUCTION = 4  # the 3x3 convolution has a quarter of the block's channels
DEPTHS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}  # blocks a resolution


@dataclass(frozen=True)
class ResNetConfig:
    """The fields of a `config.json` that shape the computation, under their Hugging Face names; defaults are ResNet-50's."""

    depths: tuple[int, ...] = DEPTHS["resnet50"]
    embedding_size: int = 64  # channels of the stem
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)  # channels of the blocks at each resolution
    num_channels: int = 3  # of the image
    head_bias: ClassVar[bool] = True
    head_dropout: ClassVar[float] = 0.0
    DROPOUT: ClassVar = {}

    def __post_init__(self):
        for name, limit in (("embedding_size", 2**20), ("num_channels", 2**20), ("depths", 1000), ("hidden_sizes", 2**20)):
            value = getattr(self, name)
            numbers = value if name in ("depths", "hidden_sizes") else (value,)
            if not isinstance(numbers, list | tuple) or not all(type(n) is int and 1 <= n < limit for n in numbers) or not numbers:
                raise ValueError(f"{name} is {value!r:.40}; whole numbers from 1 to below {limit} are expected")
        if sum(self.depths) >= 1000:
            raise ValueError(f"depths are {sum(self.depths)} blocks; fewer than 1000 are expected")
        if odd := next((width for width in self.hidden_sizes if width % REDUCTION), None):
            raise ValueError(f"hidden_sizes has {odd}, which is no multiple of {REDUCTION}, as a bottleneck's channels are")
        if len(self.depths) != len(self.hidden_sizes):
            raise ValueError(f"depths has {len(self.depths)} resolutions, hidden_sizes {len(self.hidden_sizes)}")

    @property
    def width(self) -> int:
        """D"""
        return self.hidden_sizes[-1]


class State(NamedTuple):
    """What flows from stage to stage; a stage returns it with some fields replaced."""

    hidden: Tensor | None  # (B, C, Y, X), the image to begin with
    pooled: Tensor | None = None  # (B, D) once the pooler has run

    only = classmethod(only)


class Stem(nn.Module):
    def __init__(self, c: ResNetConfig):
        super().__init__()
        self.conv = nn.Conv2d(c.num_channels, c.embedding_size, 7, stride=2, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(c.embedding_size)

    def forward(self, state: State) -> State:
        x = F.relu(self.norm(self.conv(state.hidden)), inplace=True)  # (B, 3, Y, X) -> (B, C, Y/2, X/2)
        return state._replace(hidden=F.max_pool2d(x, 3, stride=2, padding=1))  # -> (B, C, Y/4, X/4)


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        inner = outputs // REDUCTION
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)), inplace=True)  # (B, C, Y, X) -> (B, C'/4, Y, X)
        x = F.relu(self.norm2(self.conv2(x)), inplace=True)  # -> (B, C'/4, Y/stride, X/stride)
        return self.norm3(self.conv3(x))  # -> (B, C', Y/stride, X/stride)


class Projection(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))  # (B, C, Y, X) -> (B, C', Y/stride, X/stride)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.branch = Bottleneck(inputs, outputs, stride)
        self.shortcut = nn.Identity() if inputs == outputs and stride == 1 else Projection(inputs, outputs, stride)

    def forward(self, state: State) -> State:
        x = state.hidden
        return state._replace(hidden=F.relu(self.branch(x) + self.shortcut(x), inplace=True))


class Pooler(nn.Module):
    def forward(self, state: State) -> State:
        return state._replace(pooled=state.hidden.mean((2, 3)))  # (B, D, Y, X) -> (B, D)


class ResNet(Body):
    """The network up to its last features. `pool=None` leaves the pooler out, for tasks that read the map itself.

    Weights start as torchvision's do: convolutions N(0, 2 / fan_out) (He et al. 2015, arXiv:1502.01852), BatchNorms as 1 and 0.
    """

    Config = ResNetConfig
    State = State
    STAGES: ClassVar = {"stem": "stem", "block": "blocks"}
    FLOWS: ClassVar = {"hidden": "unit"}
    POOLS: ClassVar = ("mean",)

    # Role -> regular expression that the dotted name of a module matches in full.
    SITES: ClassVar = {
        "conv1": r"blocks\.\d+\.branch\.conv1",
        "conv2": r"blocks\.\d+\.branch\.conv2",
        "conv3": r"blocks\.\d+\.branch\.conv3",
        "shortcut": r"blocks\.\d+\.shortcut\.conv",
        "branch": r"blocks\.\d+\.branch",
    }

    # Module here -> module there; {} = number of the block; G and g number the resolutions from 1 and 0, b the blocks of one.
    TORCHVISION: ClassVar = {
        "stem.conv": "conv1",
        "stem.norm": "bn1",
        "blocks.{}.branch.conv1": "layer{G}.{b}.conv1",
        "blocks.{}.branch.norm1": "layer{G}.{b}.bn1",
        "blocks.{}.branch.conv2": "layer{G}.{b}.conv2",
        "blocks.{}.branch.norm2": "layer{G}.{b}.bn2",
        "blocks.{}.branch.conv3": "layer{G}.{b}.conv3",
        "blocks.{}.branch.norm3": "layer{G}.{b}.bn3",
        "blocks.{}.shortcut.conv": "layer{G}.{b}.downsample.0",
        "blocks.{}.shortcut.norm": "layer{G}.{b}.downsample.1",
    }
    HUGGINGFACE: ClassVar = {
        "stem.conv": "embedder.embedder.convolution",
        "stem.norm": "embedder.embedder.normalization",
        "blocks.{}.branch.conv1": "encoder.stages.{g}.layers.{b}.layer.0.convolution",
        "blocks.{}.branch.norm1": "encoder.stages.{g}.layers.{b}.layer.0.normalization",
        "blocks.{}.branch.conv2": "encoder.stages.{g}.layers.{b}.layer.1.convolution",
        "blocks.{}.branch.norm2": "encoder.stages.{g}.layers.{b}.layer.1.normalization",
        "blocks.{}.branch.conv3": "encoder.stages.{g}.layers.{b}.layer.2.convolution",
        "blocks.{}.branch.norm3": "encoder.stages.{g}.layers.{b}.layer.2.normalization",
        "blocks.{}.shortcut.conv": "encoder.stages.{g}.layers.{b}.shortcut.convolution",
        "blocks.{}.shortcut.norm": "encoder.stages.{g}.layers.{b}.shortcut.normalization",
    }

    def __init__(self, config: ResNetConfig, pool: str | None = "mean"):
        super().__init__()
        self.check_pool(pool)
        self.config = config
        self.stem = Stem(config)
        self.blocks = nn.ModuleList()
        channels = config.embedding_size
        for number in self.numbering():
            outputs = config.hidden_sizes[number["g"]]
            self.blocks.append(Block(channels, outputs, stride=2 if number["g"] > 0 and number["b"] == 0 else 1))
            channels = outputs
        self.pooler = Pooler() if pool == "mean" else None
        self.apply(self.initialise)

    def numbering(self) -> list[dict[str, int]]:
        """For every block the numbers that the name tables use."""
        return [{"G": g + 1, "g": g, "b": b} for g, depth in enumerate(self.config.depths) for b in range(depth)]

    def begin(self, images: Tensor) -> State:
        """images: (B, 3, Y, X), normalised as in the weights' pretraining."""
        return State(images)

    def initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d | nn.Linear):
            module.reset_parameters()
