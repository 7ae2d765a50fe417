"""The walk once more, naive and in float64: for every group the whole network as pruned
so far runs on all examples, and Algorithm 1 in its full form decides, example after
example. Nothing of ispasp_jax is used: who reads a group is written down by hand.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from numpy_algorithm import MARGIN, algorithm_1


class Read(NamedTuple):
    """A place where a group is read.

    Attributes:
      layer: the path of the Linen layer that reads it.
      norm: that of the batch norm behind the layer; None without.
      eps: of that norm.
      low: where the group's channels begin, where others are read beside them.
    """

    layer: str
    norm: str | None = None
    eps: float = 1e-5
    low: int | None = None


class Linear:
    """A consumer as numpy_algorithm takes it: an example, flattened, times a matrix."""

    def __init__(self, matrix):
        self.matrix = matrix

    def forward(self, h):
        return h.ravel() @ self.matrix

    def pullback(self, h, v):
        return (self.matrix @ v).reshape(h.shape)


class View(NamedTuple):
    """What a consumer reads of a group, (n, positions, d), and the matrix that it
    multiplies an example with, (positions · d, out)."""

    hidden: np.ndarray
    matrix: np.ndarray


def matrix_of(linear, shape: tuple[int, ...]) -> np.ndarray:
    """An affine function of an example of this shape, as a matrix; its shift is left
    out."""
    size = int(np.prod(shape))
    basis = np.eye(size).reshape(size, *shape)
    made = np.asarray(linear(basis)) - np.asarray(linear(0 * basis))
    return made.reshape(size, -1)


def stacked(views: Sequence[View]) -> View:
    """Several consumers as one: what each reads is divided by the mean over examples of
    the size of what it gives, and so is what it gives."""
    if len(views) == 1:
        return views[0]
    hidden = []
    for view in views:
        made = view.hidden.reshape(len(view.hidden), -1) @ view.matrix
        hidden.append(view.hidden / np.linalg.norm(made, axis=1).mean())
    return View(
        np.concatenate(hidden, 1), scipy.linalg.block_diag(*(v.matrix for v in views))
    )


def select(views: Sequence[View], size: int, T: int = 20) -> np.ndarray:
    """The channels that Algorithm 1 keeps of a group that these read."""
    view = stacked(views)
    answer = algorithm_1(view.hidden, Linear(view.matrix), size, T)
    assert answer.margin > MARGIN, "a tie: draw other images"
    return np.flatnonzero(answer.support)


def at(tree: Mapping, path: str):
    """The branch of nested dicts at a path."""
    for key in path.split("/"):
        tree = tree[key]
    return tree


def view_of(model, variables, images, read: Read, width: int) -> View:
    """What a layer of a Linen model reads and does, in float64."""
    seen = {}

    def catch(call, arguments, options, context):
        if "/".join(context.module.path) == read.layer:
            seen[context.module.clone(parent=None)] = arguments[0]
        return call(*arguments, **options)

    with jax.enable_x64(True):
        exact = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), variables)
        with nn.intercept_methods(catch):
            model.apply(exact, jnp.asarray(images, jnp.float64))
        ((layer, hidden),) = seen.items()
        own = {"params": at(exact["params"], read.layer)}
        gain = 1.0
        if read.norm:
            norm, stats = (at(exact[c], read.norm) for c in ("params", "batch_stats"))
            gain = norm.get("scale", 1) / jnp.sqrt(stats["var"] + read.eps)
        matrix = matrix_of(
            lambda h: layer.apply(own, jnp.asarray(h)) * gain, hidden.shape[1:]
        )
        hidden = np.asarray(hidden)
    if read.low is not None:
        own = slice(read.low, read.low + width)
        matrix = matrix.reshape(-1, hidden.shape[-1], matrix.shape[-1])[:, own]
        matrix, hidden = matrix.reshape(-1, matrix.shape[-1]), hidden[..., own]
    return View(hidden.reshape(len(hidden), -1, width), matrix)


def silenced(variables, groups, kept):
    """The variables with zeros in the kernel rows that would read what is cut."""
    reads = {
        f"params/{read.layer}/kernel": (groups[name][0], channels)
        for name, channels in kept.items()
        for read in groups[name][1:]
    }

    def visit(path, leaf):
        name = "/".join(key.key for key in path)
        if name not in reads:
            return leaf
        width, channels = reads[name]
        stays = np.isin(np.arange(width), channels)
        rows = leaf.reshape(*leaf.shape[:-2], -1, width, leaf.shape[-1])
        return (rows * stays[:, None]).reshape(leaf.shape)

    return jax.tree_util.tree_map_with_path(visit, variables)


def walk(model, variables, images, groups, sizes, T=20, tune=None):
    """What stays of every group of a Linen model that loses channels.

    Args:
      groups: by name the width and the places where it is read, in order.
      sizes: channels to keep; groups that are not named keep all.
      tune: of (variables at full width), after each group.

    Returns:
      The channels kept by group, and the variables at full width.
    """
    kept = {}
    for name, (width, *reads) in groups.items():
        if sizes.get(name, width) >= width:
            continue
        views = [view_of(model, variables, images, read, width) for read in reads]
        kept[name] = select(views, sizes[name], T)
        variables = tune(variables) if tune else variables
        variables = silenced(variables, groups, kept)
    return kept, variables
