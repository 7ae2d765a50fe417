"""MobileNetV2 (Sandler et al. 2018) with torchvision's names, and tf_mobilenetv2: the
same network with TensorFlow's SAME padding, which puts the odd pixel at the bottom
right.

The hidden channels of a block are the expanded ones, after the depthwise convolution,
its batch norm and ReLU6: one set of indices cuts expansion, depthwise convolution, both
batch norms and the input side of the projection. features.1 has no expansion: its
channels are made by the stem, so stem and features.1 are one block here.
"""

from typing import Literal

import flax.linen as nn
from jaxtyping import Array, Float

from ispasp_jax.groups import Group
from ispasp_jax.models.layers import BatchNorm, Conv
from ispasp_jax.models.network import Block, Head, Network, Part

#: expansion, channels, blocks, stride of the first: table 2 of the paper.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU6: torchvision's Conv2dNormActivation."""

    features: int
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    padding: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool = False):
        x = Conv(
            self.features,
            self.kernel,
            self.stride,
            depthwise=self.depthwise,
            padding=self.padding,
            name="0",
        )(x)
        return nn.relu6(BatchNorm(name="1")(x, train))


class InvertedResidual(Block):
    """Expansion, depthwise 3x3, projection; a skip where shapes allow.

    Attributes:
      features: channels of the output.
      stride: of the depthwise convolution.
      residual: whether the input is added to the output.
      padding: None (torch's) or "SAME".
    """

    groups = (
        Group(
            "",
            axes=(
                ("conv.0/0/*", -1),
                ("conv.0/1/*", -1),
                ("conv.1/0/*", -1),
                ("conv.1/1/*", -1),
                ("conv.2/kernel", -2),
            ),
            consumer=("conv.2", "conv.3"),
        ),
    )

    features: int = 16
    stride: int = 1
    residual: bool = False
    padding: str | None = None

    def setup(self):
        (wide,) = self.widths
        self.expand = ConvNorm(wide, name="conv.0")
        self.depthwise = ConvNorm(
            wide, 3, self.stride, True, self.padding, name="conv.1"
        )
        self.project = Conv(self.features, name="conv.2")
        self.project_norm = BatchNorm(name="conv.3")

    def hidden(self, x, i, train=False):
        return self.depthwise(self.expand(x, train), train)

    def consumer(self, h, i, train=False):
        return self.project_norm(self.project(h), train)

    def skip(self, x, train=False):
        return x if self.residual else super().skip(x, train)


class FirstBlock(Block):
    """The stem and features.1, whose depthwise convolution runs on the stem's
    channels.
    """

    groups = (
        Group(
            "",
            axes=(
                ("features.0/0/*", -1),
                ("features.0/1/*", -1),
                ("features.1/conv.0/0/*", -1),
                ("features.1/conv.0/1/*", -1),
                ("features.1/conv.1/kernel", -2),
            ),
            consumer=("features.1/conv.1", "features.1/conv.2"),
        ),
    )

    features: int = 16
    stride: int = 2
    padding: str | None = None

    def setup(self):
        (wide,) = self.widths
        self.stem = ConvNorm(
            wide, 3, self.stride, padding=self.padding, name="features.0"
        )
        self.separable = Separable(wide, self.features, self.padding, name="features.1")

    def hidden(self, x, i, train=False):
        return self.separable.filter(self.stem(x, train), train)

    def consumer(self, h, i, train=False):
        return self.separable.project(h, train)


class Separable(nn.Module):
    """The layers of features.1: depthwise 3x3 and projection."""

    wide: int
    features: int
    padding: str | None = None

    def setup(self):
        self.depthwise = ConvNorm(self.wide, 3, 1, True, self.padding, name="conv.0")
        self.pointwise = Conv(self.features, name="conv.1")
        self.norm = BatchNorm(name="conv.2")

    def filter(self, x: Float[Array, "n h w c"], train: bool = False):
        return self.depthwise(x, train)

    def project(self, h: Float[Array, "n h w d"], train: bool = False):
        return self.norm(self.pointwise(h), train)


class LastLayer(Block):
    """features.18: a 1x1 convolution to 1280 channels, which all stay."""

    groups = (Group("", axes=(), consumer=("0", "1")),)

    def setup(self):
        self.conv = Conv(1280, name="0")
        self.norm = BatchNorm(name="1")

    def hidden(self, x, i, train=False):
        return x

    def consumer(self, h, i, train=False):
        return self.norm(self.conv(h), train)

    def finish(self, z):
        return nn.relu6(z)


class MobileNetV2(Network):
    """MobileNetV2, width 1.0.

    Attributes:
      stem: "imagenet", or "small": the first two strides are 1, for small images.
      padding: None (torch's) or "SAME" (TensorFlow's) for the 3x3 convolutions.
    """

    stem: str = "imagenet"
    padding: str | None = None

    @nn.nowrap
    def parts(self):
        small = self.stem == "small"
        first = FirstBlock(
            (32,), stride=1 if small else 2, padding=self.padding, parent=None
        )
        parts = [Part("features.1", first, keys=("features.0", "features.1"))]
        channels = 16
        for stage, (expansion, features, depth, stride) in enumerate(STAGES[1:], 1):
            for index in range(depth):
                strided = stride if index == 0 and not (small and stage == 1) else 1
                module = InvertedResidual(
                    (channels * expansion,),
                    features=features,
                    stride=strided,
                    residual=index > 0,
                    padding=self.padding,
                    parent=None,
                )
                parts.append(Part(f"features.{len(parts) + 1}", module))
                channels = features
        parts.append(Part("features.18", LastLayer(parent=None)))
        head = Head(
            num_classes=self.num_classes, name_of_dense="classifier.1", parent=None
        )
        return (*parts, Part("head", head, keys=("classifier.1",)))

    @nn.nowrap
    def aliases(self) -> dict[str, str]:
        """timm's names of the layers (its model mobilenetv2_100)."""
        return ALIASES


def timm_names() -> dict[str, str]:
    """timm's name of every layer -> torchvision's."""
    names = {
        "conv_stem": "features.0.0",
        "bn1": "features.0.1",
        "conv_head": "features.18.0",
        "bn2": "features.18.1",
        "classifier": "classifier.1",
    }
    first = {"conv_dw": "0.0", "bn1": "0.1", "conv_pw": "1", "bn2": "2"}
    other = {
        "conv_pw": "0.0",
        "bn1": "0.1",
        "conv_dw": "1.0",
        "bn2": "1.1",
        "conv_pwl": "2",
        "bn3": "3",
    }
    places = [(s, b) for s, stage in enumerate(STAGES) for b in range(stage[2])]
    for index, (stage, block) in enumerate(places, 1):
        for theirs, ours in (first if index == 1 else other).items():
            names[f"blocks.{stage}.{block}.{theirs}"] = f"features.{index}.conv.{ours}"
    return names


ALIASES = timm_names()


def variant(padding: str | None):
    """MobileNetV2 with this padding: stem "imagenet" or "small"."""

    def create(
        num_classes: int, stem: Literal["imagenet", "small"] = "imagenet"
    ) -> MobileNetV2:
        return MobileNetV2(num_classes, stem=stem, padding=padding)

    return create


MODELS = {"mobilenetv2": variant(None), "tf_mobilenetv2": variant("SAME")}

#: The authors' groups and ratios.
PAPER = {
    model: {f"features.{block}": 0.3 for block in (6, 9, 10, 12, 13)}
    for model in MODELS
}

#: What the published weights were trained on: 2 · rgb − 1 in TensorFlow.
PREPROCESSING = {"tf_mobilenetv2": {"mean": (0.5,) * 3, "std": (0.5,) * 3}}
WEIGHT_DECAY = dict.fromkeys(MODELS, 4e-5)
TIMM = {"mobilenetv2": ("mobilenetv2_100",)}
