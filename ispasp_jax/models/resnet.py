"""ResNets as torchvision builds and names them (18, 34, 50, 101), the same with SAME
padding as in flax/examples/imagenet (flax_resnet18, ...), and the CIFAR ResNets of He
et al., section 4.2 (20, 32, 44, 56, 110), whose shortcuts have no parameters.
"""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ispasp_jax.models.layers import BatchNorm, Conv, Dense


class Projection(nn.Module):
    """The shortcut of torchvision's ResNets: a strided 1x1 convolution, batch norm."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool = False):
        x = Conv(self.features, 1, self.stride, name="0")(x)
        return BatchNorm(name="1")(x, train)


def pad_channels(
    x: Float[Array, "n h w c"], features: int, stride: int
) -> Float[Array, "n hh ww d"]:
    """The shortcut of the CIFAR ResNets: every second pixel, zeros for new channels."""
    extra = (features - x.shape[-1]) // 2
    x = x[:, ::stride, ::stride]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra, extra)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Attributes:
      width: channels inside.
      features: channels of the output.
      stride: of its first 3x3 convolution.
      shortcut: "identity", "project" or "pad".
      padding: None (torch's) or "SAME" for the 3x3 convolutions.
    """

    width: int
    features: int
    stride: int = 1
    shortcut: str = "identity"
    padding: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool = False):
        y = Conv(self.width, 3, self.stride, padding=self.padding, name="conv1")(x)
        y = nn.relu(BatchNorm(name="bn1")(y, train))
        y = Conv(self.features, 3, padding=self.padding, name="conv2")(y)
        y = BatchNorm(name="bn2")(y, train)
        return nn.relu(y + shortcut(self, x, train))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; attributes as BasicBlock's."""

    width: int
    features: int
    stride: int = 1
    shortcut: str = "identity"
    padding: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool = False):
        y = nn.relu(BatchNorm(name="bn1")(Conv(self.width, name="conv1")(x), train))
        y = Conv(self.width, 3, self.stride, padding=self.padding, name="conv2")(y)
        y = nn.relu(BatchNorm(name="bn2")(y, train))
        y = BatchNorm(name="bn3")(Conv(self.features, name="conv3")(y), train)
        return nn.relu(y + shortcut(self, x, train))


def shortcut(
    block: BasicBlock | Bottleneck, x: Float[Array, "n h w c"], train: bool
) -> Float[Array, "n hh ww d"]:
    """What the block adds to its convolutions' output."""
    if block.shortcut == "project":
        return Projection(block.features, block.stride, name="downsample")(x, train)
    if block.shortcut == "pad":
        return pad_channels(x, block.features, block.stride)
    return x


class ResNet(nn.Module):
    """A ResNet.

    Attributes:
      num_classes: length of the logits.
      depths: blocks in each stage.
      bottleneck: three convolutions a block, output four times as wide.
      base: channels of the first stage; each stage doubles them.
      stem: "imagenet" (7x7, stride 2, max-pool) or "small" (3x3, stride 1).
      shortcut: where shapes change, "project" or "pad".
      dense: name of the last layer.
      padding: None (torch's) or "SAME" for the 3x3 convolutions and the max-pool;
        Flax's ResNets pad the 7x7 convolution as torch does, by 3.
    """

    num_classes: int = 1000
    depths: tuple[int, ...] = (3, 4, 6, 3)
    bottleneck: bool = False
    base: int = 64
    stem: str = "imagenet"
    shortcut: str = "project"
    dense: str = "fc"
    padding: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool = False):
        imagenet = self.stem == "imagenet"
        x = Conv(self.base, *((7, 2) if imagenet else (3, 1)), name="conv1")(x)
        x = nn.relu(BatchNorm(name="bn1")(x, train))
        if imagenet:
            padding: Any = self.padding or [(1, 1), (1, 1)]
            x = nn.max_pool(x, (3, 3), (2, 2), padding)
        block, channels = Bottleneck if self.bottleneck else BasicBlock, self.base
        for stage, depth in enumerate(self.depths):
            width = self.base * 2**stage
            features = 4 * width if self.bottleneck else width
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                changes = stride > 1 or features != channels
                x = block(
                    width,
                    features,
                    stride,
                    self.shortcut if changes else "identity",
                    self.padding,
                    name=f"layer{stage + 1}.{index}",
                )(x, train)
                channels = features
        return Dense(self.num_classes, name=self.dense)(x.mean((1, 2)))


def other_names(network: ResNet) -> dict[str, str]:
    """Other names of the layers: of the last one, and Flax's where padded so."""
    names = {"fc": network.dense, "linear": network.dense}
    if network.padding != "SAME":
        return names
    names |= {"conv_init": "conv1", "bn_init": "bn1", "Dense_0": network.dense}
    kind = "BottleneckResNetBlock" if network.bottleneck else "ResNetBlock"
    blocks = [
        f"layer{stage}.{index}"
        for stage, depth in enumerate(network.depths, 1)
        for index in range(depth)
    ]
    for index, ours in enumerate(blocks):
        theirs = f"{kind}_{index}"
        names[f"{theirs}.conv_proj"] = f"{ours}.downsample.0"
        names[f"{theirs}.norm_proj"] = f"{ours}.downsample.1"
        for layer in range(3 if network.bottleneck else 2):
            names[f"{theirs}.Conv_{layer}"] = f"{ours}.conv{layer + 1}"
            names[f"{theirs}.BatchNorm_{layer}"] = f"{ours}.bn{layer + 1}"
    return names


def imagenet(
    depths: tuple[int, ...], bottleneck: bool = False, padding: str | None = None
):
    """The ResNet of these depths, torchvision's or Flax's (padding "SAME"): stem
    "imagenet" or "small"."""

    def create(
        num_classes: int, stem: Literal["imagenet", "small"] = "imagenet"
    ) -> ResNet:
        return ResNet(
            num_classes,
            depths=depths,
            bottleneck=bottleneck,
            stem=stem,
            padding=padding,
        )

    return create


def cifar(depth: int):
    """The CIFAR ResNet with 6n + 2 layers."""

    def create(num_classes: int) -> ResNet:
        return ResNet(
            num_classes,
            depths=((depth - 2) // 6,) * 3,
            base=16,
            stem="small",
            shortcut="pad",
            dense="linear",
        )

    return create


#: depths, and whether blocks are bottlenecks.
IMAGENET = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}
MODELS = (
    {f"resnet{depth}": imagenet(*kind) for depth, kind in IMAGENET.items()}
    | {f"resnet{depth}": cifar(depth) for depth in (20, 32, 44, 56, 110)}
    | {f"flax_resnet{depth}": imagenet(*k, "SAME") for depth, k in IMAGENET.items()}
)

#: The authors' groups and ratios (section 5 and their scripts).
PAPER = {
    "resnet34": {
        name: 0.4
        for stage, blocks in ((1, (1,)), (2, (1, 2)), (3, (1, 2, 3, 4)))
        for name in (f"layer{stage}.{block}" for block in blocks)
    }
}

TIMM = {f"resnet{d}": (f"resnet{d}", f"tv_resnet{d}") for d in IMAGENET}
ALIASES = {ResNet: other_names}
