"""Selecting the channels of one group: gather what the criterion needs at the places
where the group is read, ask it, and measure what the cut will lose.

A group that one consumer reads is Algorithm 1's own case. One that several read (a
residual stream) asks for the residuals of all of them, stacked: H is what each reads,
one after the other, divided by the mean ‖U‖ of that consumer over the images, and the
consumer gives all their outputs. Where a channel is a block of what a consumer reads (a
head, a flattened map), its places are positions.
"""

import functools
import itertools
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ispasp_jax import devices
from ispasp_jax.errors import InputError
from ispasp_jax.graph import Cut, Group, atoms
from ispasp_jax.selection.problem import Problem, Selection, Unsuited, checked
from ispasp_jax.walk import layouts, sites
from ispasp_jax.walk.flat import Flat
from ispasp_jax.walk.pieces import compiled
from ispasp_jax.walk.reads import Read, Task, regression_of
from ispasp_jax.walk.results import GroupResult
from ispasp_jax.walk.streams import Weights


def select(
    group: Group,
    layer: int | None,
    reads: Sequence[Read],
    weights: Weights,
    task: Task,
    labelled: Mapping[str, Array],
) -> GroupResult:
    """Selects the channels of a group that stay.

    Args:
      group: the group.
      layer: of a scan, where each has channels of its own.
      reads: all places where it is read.
      weights: the network as it is before this cut.
      task: what is asked of every group.
      labelled: gradient and curvature, for criteria that need labels.

    Raises:
      FloatingPointError: NaN or infinity in the activations or their importance.
      InputError: the criterion cannot be asked of this group.
    """
    name, iterations = group.name, 0
    if task.plan is not None:
        kept = np.asarray(task.plan[name].kept)
        kept = kept if layer is None else kept[layer]
        support = np.isin(np.arange(group.width), kept)
    else:
        selection = _answer(group, layer, reads, weights, task, labelled)
        support, iterations = np.asarray(selection.support), int(selection.iterations)
    residual = _relative_residual(reads, support)
    cut = Cut(len(support), np.flatnonzero(support))
    return GroupResult(name, cut, residual, iterations, None)


def _answer(group, layer, reads, weights, task, labelled) -> Selection:
    needs, name = task.needs, group.name
    flat = reads[0].site.flat
    problem = Problem(**labelled)
    arrays = {}
    if "hidden" in needs:
        arrays = {
            "totals": [read.total for read in reads],
            "kernels": [read.kernel for read in reads],
            "scales": [read.scale for read in reads],
            "indices": [read.places for read in reads],
            "sizes": [np.float32(read.size) for read in reads],
        }
    if "producer" in needs:
        problem = problem._replace(producer=producer(flat, group, weights, layer))
    if "key" in needs:
        seed = zlib.crc32(name.encode()) + (layer or 0)
        problem = problem._replace(key=jax.random.fold_in(task.key, seed))
    if "least_squares" in needs:
        result = tuple(regression_of(group, read, weights) for read in reads)
        problem = problem._replace(least_squares=result if result[1:] else result[0])
    size = jnp.int32(task.sizes[name])  # traced: sizes may differ from block to block
    texts = tuple(sites.text(read.site) for read in reads) if arrays else ()
    plain = tuple(_is_plain(read) for read in reads)
    key = "select", task.criterion, texts, plain, len(reads)
    run = compiled(
        key,
        lambda: functools.partial(
            _select, task.criterion, [read.site for read in reads], plain
        ),
    )
    try:
        selection = run(size, problem, arrays)
    except Unsuited as error:
        raise InputError(f"group {name!r}: {error}") from error
    return checked(devices.agree(jax.device_get(selection)), name)


def _select(criterion, found, plain, size, problem, arrays) -> Selection:
    if arrays:
        views = []
        for place, total in enumerate(arrays["totals"]):
            h = total if plain[place] else _channels(total, arrays["indices"][place])
            views.append(h if len(found) == 1 else _flat(h, arrays["sizes"][place]))
        hidden = views[0] if len(found) == 1 else jnp.concatenate(views, 1)
        problem = problem._replace(hidden=hidden)
        if "consumer" in criterion.needs:
            consumer = functools.partial(_consume, found, plain, arrays)
            problem = problem._replace(consumer=consumer)
    return criterion(problem, size)


def _consume(found, plain, arrays, hidden):
    """All consumers' outputs, shifts left out, one after the other."""
    outputs, low = [], 0
    for place, site in enumerate(found):
        total, h = arrays["totals"][place], hidden
        if len(found) > 1:
            count = total.size // hidden.shape[-1] if plain[place] else None
            count = count or total[0, ..., 0].size * arrays["indices"][place].shape[1]
            h = hidden[:, low : low + count] * arrays["sizes"][place]
            low += count
        if plain[place]:
            h = h.reshape(-1, *total.shape[1:])
        else:
            h = _places(h, total.shape, arrays["indices"][place])
        u = layouts.linear(site, h, arrays["kernels"][place]) * arrays["scales"][place]
        if len(found) == 1:
            return u
        outputs.append(u.reshape(len(u), -1) / arrays["sizes"][place])
    return jnp.concatenate(outputs, 1)


def _is_plain(read: Read) -> bool:
    """Whether the group's channels are all that the consumer reads, in order."""
    return np.array_equal(read.places[:, 0], np.arange(read.site.width))


def _channels(h: Array, index: Array) -> Float[Array, "1 *positions m d"]:
    """The group's channels, their blocks as positions."""
    return jnp.moveaxis(h[..., index], -1, -2)


def _flat(h: Array, size: Array) -> Float[Array, "1 positions d"]:
    return h.reshape(len(h), -1, h.shape[-1]) / size


def _places(h: Array, shape: tuple[int, ...], index: Array) -> Array:
    """`_channels` the other way; places that are not the group's are zero."""
    d, m = index.shape
    h = jnp.moveaxis(h.reshape(-1, *shape[1:-1], m, d), -2, -1)
    h = h.reshape(*h.shape[:-2], d * m)
    return jnp.zeros((len(h), *shape[1:]), h.dtype).at[..., index.ravel()].set(h)


def producer(
    flat: Flat, group: Group, weights: Weights, layer: int | None
) -> OrderedDict[str, Array]:
    """The arrays that make the group's channels, channels on the last axis: kernels
    first, in the order in which they are applied. By path, below what all have in
    common, so that blocks of equal shape ask alike."""
    own = [axis for axis in group.axes if axis.path not in group.consumers]
    own.sort(key=lambda axis: _rank(axis.path, group.makers))
    common = _common([axis.path for axis in own])
    result: OrderedDict[str, Array] = OrderedDict()
    for path, axis, size in own:
        variable, name = flat.variables[path], _below(path, common)
        if name in result or size % group.width:
            continue
        array = jnp.moveaxis(weights[variable], axis, -1)
        labels = atoms.labels(variable.dims[axis], group.atom)
        array = array[..., sites.by_channel(labels, group.width)]
        if layer is not None and array.ndim > 2:
            array = array[layer]
        array = jnp.moveaxis(array, -1, -2)
        result[name] = array[..., 0, :] if array.shape[-2] == 1 else array
    return result


def _common(paths: Sequence[str]) -> int:
    """How many modules all paths have in common, below their collection."""
    modules = [path.split("/")[1:-1] for path in paths]
    columns = zip(*modules, strict=False)
    together = itertools.takewhile(lambda keys: len({*keys}) == 1, columns)
    return sum(1 for _ in together)


def _below(path: str, common: int) -> str:
    collection, *keys = path.split("/")
    return "/".join(keys[common:] if keys else [collection])


def _rank(path: str, makers: Sequence[str]) -> int:
    return makers.index(path) if path in makers else len(makers)


def _relative_residual(reads: Sequence[Read], support) -> float | None:
    pairs = []
    for read in reads:
        if read.squares is None:
            return None
        pairs.append(np.asarray(read.squares(support)) / read.size**2)
    lost, whole = np.sum(pairs, axis=0)
    return float(np.sqrt(lost / whole)) if whole > 0 else 0.0
