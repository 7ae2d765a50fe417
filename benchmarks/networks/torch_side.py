"""What is PyTorch's of peers.py: Torch-Pruning's supports, and the authors' block
routine, written from what it computes. Needs torch and torch-pruning.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
import torch_pruning
from torch import nn
from torch.nn import functional as F

from benchmarks.networks import torch_networks as networks

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
            answers = model(networks.images(batch))
            F.cross_entropy(answers, target, reduction="sum").backward()
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
