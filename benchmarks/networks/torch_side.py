"""What is PyTorch's of peers.py: the same networks, Torch-Pruning's supports, and the
authors' block routine, written from what it computes. Needs torch and torch-pruning.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
import torch_pruning
from torch import nn
from torch.nn import functional as F

from ispasp_jax.models import mobilenetv2, resnet

_importance = torch_pruning.importance

#: Torch-Pruning's importances by name.
IMPORTANCES: Mapping[str, Callable] = {
    "L1": lambda: _importance.GroupMagnitudeImportance(p=1, group_reduction="first"),
    "L2": lambda: _importance.GroupMagnitudeImportance(p=2, group_reduction="first"),
    "FPGM": lambda: _importance.FPGMImportance(),
    "BN scale": lambda: _importance.BNScaleImportance(),
    "LAMP": lambda: _importance.LAMPImportance(),
    "group norm": lambda: _importance.GroupMagnitudeImportance(p=2),
    "Taylor": lambda: _importance.GroupTaylorImportance(),
}


class Padded(nn.Conv2d):
    """A 3x3 convolution of stride 2 with TensorFlow's SAME padding."""

    def forward(self, x):
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Block(nn.Module):
    """A CIFAR ResNet's: its shortcut is every second pixel, and zeros."""

    def __init__(self, channels: int, features: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, features, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.stride, self.extra = stride, (features - channels) // 2

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """He et al., section 4.2."""

    def __init__(self, like: resnet.ResNet):
        super().__init__()
        self.conv1 = nn.Conv2d(3, like.base, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(like.base)
        self.stages, channels = [], like.base
        for stage, depth in enumerate(like.depths):
            features, blocks = like.base * 2**stage, []
            for index in range(depth):
                stride = 2 if stage and not index else 1
                blocks.append(Block(channels, features, stride))
                channels = features
            name = f"layer{stage + 1}"
            self.add_module(name, nn.Sequential(*blocks))
            self.stages.append(name)
        self.linear = nn.Linear(channels, like.num_classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.linear(x.mean((2, 3)))


def _norm(channels, features, kernel=1, stride=1, groups=1) -> nn.Sequential:
    """Convolution, batch norm, ReLU6."""
    kind = Padded if stride > 1 else nn.Conv2d
    padding = 1 if kernel > 1 and stride == 1 else 0
    conv = kind(channels, features, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(features), nn.ReLU6())


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


def twin(network, arrays: Mapping[str, np.ndarray]) -> nn.Module:
    """The same network in PyTorch, in evaluation."""
    kind = CifarResNet if isinstance(network, resnet.ResNet) else MobileNetV2
    model = kind(network)
    own = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    model.load_state_dict(own, strict=False)
    missing = {*model.state_dict()} - {*own}
    assert all(name.endswith("num_batches_tracked") for name in missing), missing
    return model.eval()


def images(batch) -> torch.Tensor:
    """Images as PyTorch has them."""
    return torch.from_numpy(np.moveaxis(np.array(batch), -1, 1).copy())


def logits(model: nn.Module, batch) -> np.ndarray:
    """What the network says of a batch."""
    with torch.no_grad():
        return model(images(batch)).numpy()


def supports(
    model: nn.Module,
    importance: str,
    everywhere: bool,
    roots: Mapping[str, str],
    labelled: Iterable[tuple[np.ndarray, np.ndarray]],
    shape: Sequence[int],
) -> Callable[[float], dict[str, np.ndarray]]:
    """Torch-Pruning's supports, of a ratio of channels that go.

    Args:
      model: the dense network.
      importance: of IMPORTANCES.
      everywhere: whether all groups' channels compete, or a share of each goes.
      roots: of every group that may be cut, the layer that makes it.
      labelled: images and classes, where gradients are asked for.
      shape: of an image.
    """
    layers = dict(model.named_modules())
    names = {layers[layer]: group for group, layer in roots.items()}
    kinds = (nn.Conv2d, nn.Linear)
    others = [m for m in layers.values() if isinstance(m, kinds) and m not in names]
    if importance == "Taylor":
        model.zero_grad()
        for batch, classes in labelled:
            target = torch.from_numpy(np.array(classes)).long()
            F.cross_entropy(model(images(batch)), target, reduction="sum").backward()
    pruner = torch_pruning.pruner.BasePruner(
        model,
        torch.zeros(1, shape[-1], *shape[:-1]),
        IMPORTANCES[importance](),
        global_pruning=everywhere,
        pruning_ratio=0.5,
        ignored_layers=[m for m in others if not _is_depthwise(m)],
    )
    return functools.partial(_kept, pruner, names)


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups > 1


def _kept(pruner, names: Mapping[nn.Module, str], ratio: float):
    pruner.reset()
    pruner.per_step_pruning_ratio = [0, ratio]
    result = {g: np.arange(m.out_channels) for m, g in names.items()}
    for group in pruner.step(interactive=True):
        found = [names[d.target.module] for d, _ in group if d.target.module in names]
        (name,) = {*found}
        (gone,) = {tuple(sorted(i)) for d, i in group if d.target.module in names}
        result[name] = np.setdiff1d(result[name], gone)
    return result


#: Arrays of a batch norm, as `authors` takes them.
NORM = ("running_mean", "running_var", "weight", "bias")
#: What the authors' routine takes for the pruned block's batch norm.
NORMS = ("evaluation, without its constant", "evaluation", "fresh, training")


def authors(
    hidden: np.ndarray,
    kernel: np.ndarray,
    norm: Sequence[np.ndarray],
    size: int,
    how: str,
    stride: int = 1,
    steps: int = 20,
) -> np.ndarray:
    """The authors' block routine on all images: gradients of ½‖V‖² through the dense
    consumer, twice the size of them, joined with the support; the most active stay.

    Args:
      hidden: (n, c, h, w).
      kernel: (o, c, kh, kw).
      norm: NORM of the batch norm behind it.
      size: channels that stay.
      how: of NORMS.
      stride: of the consumer.
      steps: T.
    """
    h, k = torch.from_numpy(hidden), torch.from_numpy(kernel)
    mean, var, scale, shift = (torch.from_numpy(np.array(a)) for a in norm)

    def dense(h):
        u = F.conv2d(h, k, stride=stride, padding=k.shape[-1] // 2)
        u = F.batch_norm(u, mean, var, scale, shift, eps=1e-5)
        return u - constant if how == NORMS[0] else u

    def pruned(h):
        if how != NORMS[2]:
            return dense(h)
        u = F.conv2d(h, k, stride=stride, padding=k.shape[-1] // 2)
        return F.batch_norm(u, None, None, scale, shift, training=True)

    constant = (shift - mean * scale / (var + 1e-5).sqrt())[:, None, None]
    active = h.sum((0, 2, 3))
    support = torch.zeros(h.shape[1], dtype=torch.bool)
    rest = torch.zeros(())
    for _ in range(steps):
        x = h.clone().requires_grad_()
        (dense(x) - rest).square().sum().mul(0.5).backward()
        importance = x.grad.sum((0, 2, 3))
        wanted = torch.zeros_like(support)
        wanted[importance.topk(min(2 * size, len(wanted))).indices] = True
        among = torch.where(wanted | support, active, -torch.inf)
        new = torch.zeros_like(support)
        new[among.topk(size).indices] = True
        if (new == support).all():
            break
        support = new
        with torch.no_grad():
            rest = pruned(h * support[:, None, None])
    return support.numpy()
