"""The networks in PyTorch, as wide as the arrays they are given. Needs torch."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.timings.cases import example
from ispasp_jax.models import mobilenetv2, resnet


class Padded(nn.Conv2d):
    """A convolution of stride 2 with TensorFlow's SAME padding, of even images."""

    def forward(self, x):
        extra = self.kernel_size[0] - 2
        low, high = extra // 2, extra - extra // 2
        return super().forward(F.pad(x, (low, high, low, high)))


def _convolution(channels, features, kernel=1, stride=1, groups=1) -> nn.Conv2d:
    """With padding as torch has it."""
    padding = kernel // 2
    return nn.Conv2d(
        channels, features, kernel, stride, padding, groups=groups, bias=False
    )


class Block(nn.Module):
    """A ResNet's; the shortcut that pads is every second pixel, and zeros."""

    def __init__(self, channels, width, features, stride, bottleneck, pads):
        super().__init__()
        kernels = [(1, 1), (3, stride), (1, 1)] if bottleneck else [(3, stride), (3, 1)]
        sizes = [channels, *[width] * (len(kernels) - 1), features]
        for place, (kernel, step) in enumerate(kernels):
            layer = _convolution(sizes[place], sizes[place + 1], kernel, step)
            setattr(self, f"conv{place + 1}", layer)
            setattr(self, f"bn{place + 1}", nn.BatchNorm2d(sizes[place + 1]))
        self.layers, self.stride = len(kernels), stride
        self.changes = stride > 1 or features != channels
        self.extra = (features - channels) // 2 if pads else 0
        if self.changes and not pads:
            layer = _convolution(channels, features, 1, stride)
            self.downsample = nn.Sequential(layer, nn.BatchNorm2d(features))

    def forward(self, x):
        y = x
        for place in range(1, self.layers + 1):
            y = getattr(self, f"bn{place}")(getattr(self, f"conv{place}")(y))
            y = F.relu(y) if place < self.layers else y
        if self.changes and self.extra:
            step, extra = self.stride, self.extra
            x = F.pad(x[:, :, ::step, ::step], (0, 0, 0, 0, extra, extra))
        elif self.changes:
            x = self.downsample(x)
        return F.relu(y + x)


class ResNet(nn.Module):
    """torchvision's, and those of He et al., section 4.2."""

    def __init__(self, like: resnet.ResNet):
        super().__init__()
        self.large, self.dense, channels = (
            like.stem == "imagenet",
            like.dense,
            like.base,
        )
        self.conv1 = _convolution(3, channels, *((7, 2) if self.large else (3, 1)))
        self.bn1 = nn.BatchNorm2d(channels)
        self.stages = [f"layer{stage + 1}" for stage in range(len(like.depths))]
        for stage, depth in enumerate(like.depths):
            width, blocks = like.base * 2**stage, []
            features = 4 * width if like.bottleneck else width
            for index in range(depth):
                stride = 2 if stage and not index else 1
                pads = like.shortcut == "pad"
                blocks.append(
                    Block(channels, width, features, stride, like.bottleneck, pads)
                )
                channels = features
            self.add_module(self.stages[stage], nn.Sequential(*blocks))
        self.add_module(like.dense, nn.Linear(channels, like.num_classes))

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        if self.large:
            x = F.max_pool2d(x, 3, 2, 1)
        for name in self.stages:
            x = getattr(self, name)(x)
        return getattr(self, self.dense)(x.mean((2, 3)))


def _norm(channels, features, kernel=1, stride=1, groups=1) -> nn.Sequential:
    """Convolution, batch norm, ReLU6."""
    conv = _same(channels, features, kernel, stride, groups)
    return nn.Sequential(conv, nn.BatchNorm2d(features), nn.ReLU6())


def _same(channels, features, kernel=1, stride=1, groups=1) -> nn.Conv2d:
    """With TensorFlow's padding."""
    if stride == 1:
        return _convolution(channels, features, kernel, 1, groups)
    return Padded(channels, features, kernel, stride, groups=groups, bias=False)


class Inverted(nn.Module):
    """MobileNetV2's block."""

    def __init__(self, channels, features, expansion, stride, residual):
        super().__init__()
        wide, layers = expansion * channels, []
        if expansion > 1:
            layers.append(_norm(channels, wide))
        layers.append(_norm(wide, wide, 3, stride, wide))
        layers.append(nn.Conv2d(wide, features, 1, bias=False))
        layers.append(nn.BatchNorm2d(features))
        self.conv, self.residual = nn.Sequential(*layers), residual

    def forward(self, x):
        y = self.conv(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """MobileNetV2 with TensorFlow's padding."""

    def __init__(self, like: mobilenetv2.MobileNetV2):
        super().__init__()
        channels, last = like.channels
        layers: list[nn.Module] = [_norm(3, channels, 3, 2)]
        for expansion, features, depth, stride in like.stages:
            for index in range(depth):
                step = stride if index == 0 else 1
                layers.append(Inverted(channels, features, expansion, step, index > 0))
                channels = features
        layers.append(_norm(channels, last))
        self.features = nn.Sequential(*layers)
        last_layer = nn.Linear(last, like.num_classes)
        self.classifier = nn.Sequential(nn.Identity(), last_layer)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class ConvNorm(nn.Module):
    """EfficientNet-Lite's convolution and batch norm."""

    def __init__(self, channels, features, kernel=1, stride=1, groups=1):
        super().__init__()
        self.conv = _same(channels, features, kernel, stride, groups)
        self.bn = nn.BatchNorm2d(features, eps=1e-3)

    def forward(self, x):
        return self.bn(self.conv(x))


class MBConv(nn.Module):
    """EfficientNet-Lite's block."""

    def __init__(self, channels, features, kernel, stride, expansion):
        super().__init__()
        wide = channels * expansion
        self.residual = stride == 1 and channels == features
        if expansion > 1:
            self.expand = ConvNorm(channels, wide)
        self.depthwise = ConvNorm(wide, wide, kernel, stride, wide)
        self.project = ConvNorm(wide, features)

    def forward(self, x):
        y = F.relu6(self.expand(x)) if hasattr(self, "expand") else x
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class EfficientNetLite(nn.Module):
    """That of examples/."""

    def __init__(self, like: Any):
        super().__init__()
        self.stem, channels, self.blocks = ConvNorm(3, like.stem, 3, 2), like.stem, 0
        for count, kernel, stride, expansion, features in like.stages:
            for place in range(count):
                step = stride if place == 0 else 1
                block = MBConv(channels, features, kernel, step, expansion)
                self.add_module(f"blocks_{self.blocks}", block)
                channels, self.blocks = features, self.blocks + 1
        self.head = ConvNorm(channels, like.head)
        self.fc = nn.Linear(like.head, like.classes)

    def forward(self, x):
        x = F.relu6(self.stem(x))
        for place in range(self.blocks):
            x = getattr(self, f"blocks_{place}")(x)
        return self.fc(F.relu6(self.head(x)).mean((2, 3)))


def twin(network: Any, arrays: Mapping[str, np.ndarray]) -> nn.Module:
    """The same network in PyTorch, in evaluation.

    Args:
      network: the dense one.
      arrays: as to_torchvision gives them, of the dense or of a narrower one.

    Raises:
      ValueError: the arrays are not the network's.
    """
    model = _kind(network)(network)
    layers, rest = dict(model.named_modules()), {*arrays}
    names = [*model.state_dict()]
    for name in names:
        if name.endswith("num_batches_tracked"):
            continue
        if name not in rest:
            raise ValueError(f"no array is {name}, of {sorted(rest)[:9]}, …")
        rest.remove(name)
        module, _, leaf = name.rpartition(".")
        layer, array = layers[module], torch.from_numpy(np.array(arrays[name]))
        held = getattr(layer, leaf)
        is_parameter = isinstance(held, nn.Parameter)
        setattr(layer, leaf, nn.Parameter(array) if is_parameter else array)
        if isinstance(layer, nn.Conv2d):
            _resize(layer)
    if rest:
        raise ValueError(f"the network has no place for {sorted(rest)}")
    return model.eval()


def _kind(network: Any) -> Callable[[Any], nn.Module]:
    kinds = {resnet.ResNet: ResNet, mobilenetv2.MobileNetV2: MobileNetV2}
    kinds[example("efficientnet_lite0").EfficientNetLite] = EfficientNetLite
    return kinds[type(network)]


def _resize(layer: nn.Conv2d) -> None:
    """Widths as the kernel has them; Torch-Pruning reads them."""
    features, channels = layer.weight.shape[:2]
    layer.groups = features if layer.groups > 1 else 1
    layer.out_channels, layer.in_channels = features, channels * layer.groups


def images(batch) -> torch.Tensor:
    """Images as PyTorch has them."""
    return torch.from_numpy(np.moveaxis(np.array(batch), -1, 1).copy())


def logits(model: nn.Module, batch) -> np.ndarray:
    """What the network says of a batch."""
    with torch.inference_mode():
        return model(images(batch)).numpy()
