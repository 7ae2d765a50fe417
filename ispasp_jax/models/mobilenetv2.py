"""MobileNetV2 (Sandler et al. 2018) with torchvision's names, and tf_mobilenetv2: the
same network with TensorFlow's SAME padding, which puts the odd pixel at the bottom
right.
"""

import itertools
from typing import Literal

import flax.linen as nn
from jaxtyping import Array, Float

from ispasp_jax.models.layers import BatchNorm, Conv, Dense

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


class InvertedResidual(nn.Module):
    """Expansion, depthwise 3x3, projection; a skip where shapes allow.

    Attributes:
      features: channels of the output.
      expansion: how many times the input's channels there are inside; with 1 the
        depthwise convolution runs on the input itself.
      stride: of the depthwise convolution.
      residual: whether the input is added to the output.
      padding: None (torch's) or "SAME".
    """

    features: int
    expansion: int = 6
    stride: int = 1
    residual: bool = False
    padding: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool = False):
        layers = (f"conv.{number}" for number in itertools.count())
        wide, y = self.expansion * x.shape[-1], x
        if self.expansion > 1:
            y = ConvNorm(wide, name=next(layers))(y, train)
        depthwise = ConvNorm(
            wide, 3, self.stride, True, self.padding, name=next(layers)
        )
        y = depthwise(y, train)
        y = Conv(self.features, name=next(layers))(y)
        y = BatchNorm(name=next(layers))(y, train)
        return y + x if self.residual else y


class MobileNetV2(nn.Module):
    """MobileNetV2, width 1.0.

    Attributes:
      num_classes: length of the logits.
      stem: "imagenet", or "small": the first two strides are 1, for small images.
      padding: None (torch's) or "SAME" (TensorFlow's) for the 3x3 convolutions.
      stages: expansion, channels, blocks, stride of the first.
      channels: made by the stem, and by the last layer.
    """

    num_classes: int = 1000
    stem: str = "imagenet"
    padding: str | None = None
    stages: tuple[tuple[int, int, int, int], ...] = STAGES
    channels: tuple[int, int] = (32, 1280)

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool = False):
        small, (first, last) = self.stem == "small", self.channels
        names = (f"features.{number}" for number in itertools.count())
        stem = ConvNorm(
            first, 3, 1 if small else 2, padding=self.padding, name=next(names)
        )
        x = stem(x, train)
        for stage, (expansion, features, depth, stride) in enumerate(self.stages):
            for index in range(depth):
                block = InvertedResidual(
                    features,
                    expansion,
                    stride if index == 0 and not (small and stage == 1) else 1,
                    index > 0,
                    self.padding,
                    name=next(names),
                )
                x = block(x, train)
        x = ConvNorm(last, name=next(names))(x, train)
        return Dense(self.num_classes, name="classifier.1")(x.mean((1, 2)))


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
ALIASES = {MobileNetV2: lambda network: timm_names()}

#: The last layer's 1280 channels, which the classifier reads.
IGNORE = dict.fromkeys(MODELS, ("features.18*",))
