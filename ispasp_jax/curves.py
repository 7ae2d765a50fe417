"""Width → residual curves: what every group loses at every size, from one pass over
the dense network.

In every block the channels are taken away one by one, the cheapest first
(obs.elimination), on second moments of the calibration images; supports are nested. The
curves know nothing of a budget, so any number of budgets can be solved from them
(budget.py).
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from ispasp_jax import inputs, obs, streams
from ispasp_jax.consumers import Unreached
from ispasp_jax.errors import InputError
from ispasp_jax.models.network import Block, Network, Variables, cuttable, group_names
from ispasp_jax.models.network import subtree as own_variables
from ispasp_jax.moments import measure
from ispasp_jax.repair import Reach, reach, regression
from ispasp_jax.streams import Activations, Images, Stream, across


class Curve(NamedTuple):
    """What a group loses with s = 0 … d channels left.

    Attributes:
      relative: ‖V‖/‖U‖, of the consumer's output about its mean.
      damage: ‖V‖² over the variance of the block's output, skip included: what makes
        groups comparable, since a later block sees the error against that.
      order: the channels in the order in which they go; the last s are the support.
    """

    relative: Float[np.ndarray, " d+1"]
    damage: Float[np.ndarray, " d+1"]
    order: Int[np.ndarray, " d"]


Curves = dict[str, Curve]


def measure_curves(
    network: Network,
    variables: Variables,
    images: Images,
    *,
    repaired: bool = True,
    mesh: Mesh | None = None,
    memory: int | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Curves:
    """The curve of every group whose consumer least squares reaches.

    Args:
      network: the dense network.
      variables: its variables.
      images: calibration batches, preprocessed.
      repaired: what is lost after the least-squares repair; if not, as cut.
      mesh: devices to spread the images over.
      memory: bytes of the images' activations that each device may keep; see
        streams.py. None: all of one block's.
      progress: wraps the iterable of parts.

    Raises:
      FloatingPointError: NaN or infinity in weights, images or activations.
      InputError: the images are no batches that the network takes.
    """
    inputs.check_variables(network, variables)
    images = inputs.checked_images(images, network, variables)
    stream, found = streams.start(images, mesh, streams.share(memory, mesh, 1)), {}
    for part in progress(network.chain()):
        stream = stream.enter(part.module, own_variables(variables, part), part.name)
        if not isinstance(part.module, Block):
            stream = stream.leave()
            continue
        names = dict(zip(cuttable(part), group_names(part), strict=True))
        losses, variance = {}, 1.0
        for i, group in enumerate(part.module.groups):
            hidden = stream.hidden(i)
            behind = stream.consume(i, hidden)
            reached = _reached(i, stream, hidden) if group in names else None
            if reached:
                width = streams.width(hidden)
                folds = measure(i, stream, hidden, behind, np.arange(width))
                whole = folds[0] + folds[1]
                variance = float(whole.yy / whole.count)
                problem = regression(reached, folds)
                path = jax.device_get(_path(problem, width, repaired))
                _check(names[group], path)
                losses[names[group]] = path, variance
            stream = behind
            del hidden  # before the next ones are made
        stream = stream.leave()
        # An error inside the block counts as much as the same share of its branch.
        share = variance / _variance(stream)
        for name, (path, own) in losses.items():
            relative = path.losses.astype(np.float64) / max(own, 1e-30)
            found[name] = Curve(np.sqrt(relative), relative * share, path.order)
    return found


def _reached(i: int, stream: Stream, hidden: Activations) -> Reach | None:
    try:
        return reach(i, stream, hidden)
    except Unreached:
        return None


@functools.partial(jax.jit, static_argnums=(1, 2))
def _path(problem, d, repaired):
    if repaired:
        return obs.elimination(problem, d)
    return obs.elimination_as_cut(problem, d)


def _check(name: str, path: obs.Path) -> None:
    if not np.isfinite(path.losses).all():
        raise FloatingPointError(
            f"group {name!r}: the residuals of its sizes hold NaN or infinity; check "
            "the weights and the calibration images."
        )


def _variance(stream: Stream) -> float:
    """Of the activations, all channels together."""
    sums = [_sums(x, w) for x, w in zip(stream.x, stream.weight, strict=True)]
    count, total, squares = (sum(s) for s in zip(*jax.device_get(sums), strict=True))
    return max(float((squares - total**2 / count).sum() / count), 1e-30)


@jax.jit
def _sums(x, weight):
    w = across(weight, x)
    axes = tuple(range(x.ndim - 1))
    positions = x[0, ..., 0].size
    x = x.astype(jnp.float32)
    return weight.sum() * positions, (x * w).sum(axes), (jnp.square(x) * w).sum(axes)


def to_json(curves: Curves) -> list[dict[str, Any]]:
    """The curves as curves.json has them."""
    return [
        {"name": name, **{key: a.tolist() for key, a in curve._asdict().items()}}
        for name, curve in curves.items()
    ]


def from_json(groups: Any) -> Curves:
    """The curves from what curves.json holds.

    Raises:
      InputError: it does not hold curves.
    """
    try:
        found = {group["name"]: _curve(group) for group in groups}
        if len(found) != len(groups):
            raise ValueError("a group named twice")
        if not all(isinstance(name, str) for name in found):
            raise TypeError("a group's name")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            "not curves: expected name, relative, damage and order for every group; "
            f"{error} is missing or wrong."
        ) from error
    return found


def _curve(group: Mapping[str, Any]) -> Curve:
    """A group of curves.json."""
    name, order = group["name"], group["order"]
    d = len(order)
    if not d or not all(type(index) is int for index in order):
        raise ValueError(f"the order of group {name!r}")
    if sorted(order) != list(range(d)):
        raise ValueError(
            f"the order of group {name!r}, no permutation of 0 to {d - 1},"
        )
    losses = {}
    for key in ("relative", "damage"):
        numbers = group[key]
        if len(numbers) != d + 1 or not all(type(x) in (int, float) for x in numbers):
            raise ValueError(f"{key} of group {name!r} (expected {d + 1} numbers)")
        losses[key] = np.asarray(numbers, np.float64)
        if not (np.isfinite(losses[key]).all() and (losses[key] >= 0).all()):
            raise ValueError(f"{key} of group {name!r} (negative or not finite)")
    return Curve(**losses, order=np.asarray(order, np.int64))
