"""ResNets as torchvision builds and names them (18, 34, 50, 101), the same with SAME
padding as in flax/examples/imagenet (flax_resnet18, ...), and the CIFAR ResNets of He
et al., section 4.2 (20, 32, 44, 56, 110), whose shortcuts have no parameters.

Every hidden channel is a group: one a basic block (conv1 -> conv2), two a bottleneck
(conv1 -> conv2 and conv2 -> conv3), the first and last block of a stage included.
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ispasp_jax.groups import Group
from ispasp_jax.models import layers
from ispasp_jax.models.layers import BatchNorm, Conv
from ispasp_jax.models.network import Block, Head, Network, Part


class Projection(nn.Module):
    """The shortcut of torchvision's ResNets: a strided 1x1 convolution, batch norm."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool = False):
        x = Conv(self.features, 1, self.stride, name="0")(x)
        return BatchNorm(name="1")(x, train)


class PadChannels(nn.Module):
    """The shortcut of the CIFAR ResNets: every second pixel, zeros for new channels."""

    features: int
    stride: int

    def __call__(self, x: Float[Array, "n h w c"], train: bool = False):
        extra = (self.features - x.shape[-1]) // 2
        x = x[:, :: self.stride, :: self.stride]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra, extra)))


class Residual(Block):
    """What basic block and bottleneck share: an output that is relu(u + shortcut(x)).

    Attributes:
      features: channels of the output.
      stride: of its 3x3 convolution; the first one in a basic block.
      shortcut: "identity", "project" or "pad".
      padding: None (torch's) or "SAME" for the 3x3 convolutions.
    """

    features: int = 64
    stride: int = 1
    shortcut: str = "identity"
    padding: str | None = None

    def make_shortcut(self):
        kinds = {"project": Projection, "pad": PadChannels}
        if self.shortcut in kinds:
            self.downsample = kinds[self.shortcut](self.features, self.stride)

    def skip(self, x, train=False):
        return x if self.shortcut == "identity" else self.downsample(x, train)

    def finish(self, z):
        return nn.relu(z)


class BasicBlock(Residual):
    groups = (
        Group(
            "",
            axes=(("conv1/*", -1), ("bn1/*", -1), ("conv2/kernel", -2)),
            consumer=("conv2", "bn2"),
        ),
    )

    def setup(self):
        self.conv1 = Conv(self.widths[0], 3, self.stride, padding=self.padding)
        self.bn1 = BatchNorm()
        self.conv2 = Conv(self.features, 3, padding=self.padding)
        self.bn2 = BatchNorm()
        self.make_shortcut()

    def hidden(self, x, i, train=False):
        return nn.relu(self.bn1(self.conv1(x), train))

    def consumer(self, h, i, train=False):
        return self.bn2(self.conv2(h), train)

    def patches(self, h, i, step=1):
        return layers.patches(h, 3, 1, self.padding, step)


class Bottleneck(Residual):
    groups = (
        Group(
            "conv1",
            axes=(("conv1/*", -1), ("bn1/*", -1), ("conv2/kernel", -2)),
            consumer=("conv2", "bn2"),
        ),
        Group(
            "conv2",
            axes=(("conv2/*", -1), ("bn2/*", -1), ("conv3/kernel", -2)),
            consumer=("conv3", "bn3"),
        ),
    )

    def setup(self):
        self.conv1 = Conv(self.widths[0], 1)
        self.bn1 = BatchNorm()
        self.conv2 = Conv(self.widths[1], 3, self.stride, padding=self.padding)
        self.bn2 = BatchNorm()
        self.conv3 = Conv(self.features, 1)
        self.bn3 = BatchNorm()
        self.make_shortcut()

    def hidden(self, x, i, train=False):
        return nn.relu(self.bn1(self.conv1(x), train) if i == 0 else x)

    def consumer(self, h, i, train=False):
        if i == 0:
            return self.bn2(self.conv2(h), train)
        return self.bn3(self.conv3(h), train)

    def patches(self, h, i, step=1):
        if i == 0:
            return layers.patches(h, 3, self.stride, self.padding, step)
        return super().patches(h, i, step)


class Stem(nn.Module):
    """Convolution, batch norm, ReLU; for ImageNet 7x7 at stride 2 and a max-pool.

    Flax's ResNets pad the 7x7 convolution as torch does, by 3; `padding` is the pool's.
    """

    features: int
    imagenet: bool
    padding: str | None = None

    def setup(self):
        size, stride = (7, 2) if self.imagenet else (3, 1)
        self.conv1 = Conv(self.features, size, stride)
        self.bn1 = BatchNorm()

    def __call__(self, x: Float[Array, "n h w c"], train: bool = False):
        x = nn.relu(self.bn1(self.conv1(x), train))
        if self.imagenet:
            x = nn.max_pool(x, (3, 3), (2, 2), self.padding or [(1, 1), (1, 1)])
        return x


class ResNet(Network):
    """A ResNet.

    Attributes:
      depths: blocks in each stage.
      bottleneck: three convolutions a block, output four times as wide.
      base: channels of the first stage; each stage doubles them.
      stem: "imagenet" (7x7, stride 2, max-pool) or "small" (3x3, stride 1).
      shortcut: where shapes change, "project" or "pad".
      dense: name of the last layer.
      padding: None (torch's) or "SAME" for the 3x3 convolutions and the max-pool.
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)
    bottleneck: bool = False
    base: int = 64
    stem: str = "imagenet"
    shortcut: str = "project"
    dense: str = "fc"
    padding: str | None = None

    @nn.nowrap
    def parts(self):
        stem = Stem(self.base, self.stem == "imagenet", self.padding, parent=None)
        parts = [Part("stem", stem, keys=("conv1", "bn1"))]
        channels = self.base
        for stage, depth in enumerate(self.depths):
            width = self.base * 2**stage
            features = 4 * width if self.bottleneck else width
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                changes = stride > 1 or features != channels
                block = Bottleneck if self.bottleneck else BasicBlock
                module = block(
                    widths=(width,) * len(block.groups),
                    features=features,
                    stride=stride,
                    shortcut=self.shortcut if changes else "identity",
                    padding=self.padding,
                    parent=None,
                )
                parts.append(Part(f"layer{stage + 1}.{index}", module))
                channels = features
        head = Head(num_classes=self.num_classes, name_of_dense=self.dense, parent=None)
        return (*parts, Part("head", head, keys=(self.dense,)))

    @nn.nowrap
    def aliases(self) -> dict[str, str]:
        """Other names of the layers: of the last one, and Flax's where padded so."""
        names = {"fc": self.dense, "linear": self.dense}
        if self.padding != "SAME":
            return names
        names |= {"conv_init": "conv1", "bn_init": "bn1", "Dense_0": self.dense}
        kind = "BottleneckResNetBlock" if self.bottleneck else "ResNetBlock"
        for index, part in enumerate(self.parts()[1:-1]):
            theirs, ours = f"{kind}_{index}", part.name
            names[f"{theirs}.conv_proj"] = f"{ours}.downsample.0"
            names[f"{theirs}.norm_proj"] = f"{ours}.downsample.1"
            for layer in range(3 if self.bottleneck else 2):
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
