"""One rule a primitive: shapes, cuts and copies, reductions, tables."""

import numpy as np

from ispasp_jax.export.emission import Batch, Emission, Step, Tensor, emits, refused


@emits("transpose")
def _transpose(out: Emission, step: Step) -> Tensor:
    tensor, moved = out.get(step.eqn.inputs[0]), step.params["permutation"]
    order = tuple(moved.index(axis) for axis in tensor.order)
    thin = frozenset(moved.index(axis) for axis in tensor.thin)
    return Tensor(tensor.name, step.shape, order, thin, tensor.array)


@emits("reshape")
def _reshape(out: Emission, step: Step) -> Tensor:
    if step.params.get("dimensions") is not None:
        raise refused(step, "it reorders dimensions")
    return out.reshape(step.eqn.inputs[0], step.shape)


@emits("squeeze")
def _squeeze(out: Emission, step: Step) -> Tensor:
    tensor, gone = out.get(step.eqn.inputs[0]), step.params["dimensions"]
    places = [tensor.stored(axis) for axis in gone]
    name = out.node("Squeeze", out.name(tensor), out.ints(*sorted(places)))
    left = [axis for axis in range(tensor.rank) if axis not in gone]
    order = tuple(left.index(axis) for axis in tensor.order if axis not in gone)
    thin = frozenset(left.index(axis) for axis in tensor.thin if axis not in gone)
    return Tensor(name, step.shape, order, thin)


@emits("expand_dims")
def _expand_dims(out: Emission, step: Step) -> Tensor:
    return out.reshape(step.eqn.inputs[0], step.shape)


@emits("broadcast_in_dim")
def _broadcast(out: Emission, step: Step) -> Tensor:
    """New axes of size 1; those along which it repeats stay thin."""
    shape, places = step.shape, step.params["broadcast_dimensions"]
    tensor = out.laid(step.eqn.inputs[0], range(len(places)))
    thin = {axis for axis in range(len(shape)) if axis not in places}
    thin |= {places[axis] for axis in tensor.thin}
    thin |= {
        place
        for axis, place in enumerate(places)
        if tensor.shape[axis] == 1 and shape[place] != 1
    }
    thin = frozenset(axis for axis in thin if shape[axis] != 1)
    new = [axis for axis in range(len(shape)) if axis not in places]
    order = tuple(range(len(shape)))
    if tensor.array is not None:
        array = np.expand_dims(tensor.array, new)
        return Tensor(None, shape, order, thin, array)
    name = out.name(tensor)
    if new:
        name = out.node("Unsqueeze", name, out.ints(*new))
    return Tensor(name, shape, order, thin)


@emits("tile")
def _tile(out: Emission, step: Step) -> Tensor:
    """Axes of size 1 stay thin."""
    tensor, times = out.get(step.eqn.inputs[0]), step.both("reps")
    one = {a for a in range(tensor.rank) if tensor.shape[a] == 1 or a in tensor.thin}
    reps = [1 if axis in one else times[axis] for axis in tensor.order]
    thin = frozenset(axis for axis in one if step.shape[axis] != 1)
    if all(rep == 1 for rep in reps):
        return Tensor(tensor.name, step.shape, tensor.order, thin, tensor.array)
    return out.made(
        "Tile",
        out.name(tensor),
        out.shape(reps),
        shape=step.shape,
        order=tensor.order,
        thin=thin,
    )


@emits("concatenate")
def _concatenate(out: Emission, step: Step) -> Tensor:
    axis = step.params["dimension"]
    tensors = [out.get(value) for value in step.eqn.inputs]
    lying = max(tensors, key=lambda t: (t.array is None, -len(t.thin)))
    names = [out.name(out.laid(out.whole(t), lying.order)) for t in tensors]
    return out.made(
        "Concat",
        *names,
        shape=step.shape,
        order=lying.order,
        axis=lying.order.index(axis),
    )


@emits("split")
def _split(out: Emission, step: Step) -> list[Tensor]:
    axis, tensor = step.params["axis"], out.get(step.eqn.inputs[0])
    tensor, made, start = out.whole(tensor, [axis]), [], 0
    for size in step.params["sizes"]:
        limits = ([start], [start + size], [tensor.stored(axis)])
        name = out.node("Slice", out.name(tensor), *(out.ints(*x) for x in limits))
        shape = (*tensor.shape[:axis], size, *tensor.shape[axis + 1 :])
        made.append(Tensor(name, shape, tensor.order, tensor.thin))
        start += size
    return made


@emits("slice")
def _slice(out: Emission, step: Step) -> Tensor:
    tensor = out.get(step.eqn.inputs[0])
    starts, limits = step.both("start_indices"), step.both("limit_indices")
    strides = step.params["strides"] or (1,) * tensor.rank
    cut = [
        axis
        for axis in range(tensor.rank)
        if (starts[axis], limits[axis], strides[axis]) != (0, tensor.shape[axis], 1)
    ]
    tensor = out.whole(tensor, cut)
    ends = [
        limits[a] if isinstance(limits[a], int) else np.iinfo(np.int64).max for a in cut
    ]
    sound = all(isinstance(starts[a], int) for a in cut) and all(
        isinstance(limits[a], int) or limits[a] == tensor.shape[a] for a in cut
    )
    if not sound:
        raise refused(step, "where it cuts depends on the batch's size")
    rows = [[starts[a] for a in cut], ends, [tensor.stored(a) for a in cut]]
    rows.append([strides[a] for a in cut])
    name = out.node("Slice", out.name(tensor), *(out.ints(*row) for row in rows))
    return Tensor(name, step.shape, tensor.order, tensor.thin)


@emits("rev")
def _rev(out: Emission, step: Step) -> Tensor:
    tensor, turned = out.whole(step.eqn.inputs[0]), step.params["dimensions"]
    least = np.iinfo(np.int64).min
    rows = [[-1] * len(turned), [least] * len(turned)]
    rows += [[tensor.stored(axis) for axis in turned], [-1] * len(turned)]
    name = out.node("Slice", out.name(tensor), *(out.ints(*row) for row in rows))
    return Tensor(name, step.shape, tensor.order)


@emits("pad")
def _pad(out: Emission, step: Step) -> Tensor:
    x, value = step.eqn.inputs
    config = step.params["padding_config"]
    if any(inner for _, _, inner in config):
        raise refused(step, "it pads between elements")
    tensor = out.whole(x)
    low, high = ([config[axis][i] for axis in tensor.order] for i in (0, 1))
    name = out.node("Pad", out.name(tensor), out.ints(*low, *high), out.as_it_is(value))
    return Tensor(name, step.shape, tensor.order)


# Reductions.

REDUCTIONS = {
    "reduce_sum": "ReduceSum",
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
    "reduce_prod": "ReduceProd",
}


@emits(*REDUCTIONS)
def _reduce(out: Emission, step: Step) -> Tensor:
    gone = step.params["axes"]
    tensor = out.whole(step.eqn.inputs[0], gone)
    axes = out.ints(*sorted(tensor.stored(axis) for axis in gone))
    name = out.node(REDUCTIONS[step.eqn.name], out.name(tensor), axes, keepdims=0)
    left = [axis for axis in range(tensor.rank) if axis not in gone]
    order = tuple(left.index(axis) for axis in tensor.order if axis not in gone)
    thin = frozenset(left.index(axis) for axis in tensor.thin)
    return Tensor(name, step.shape, order, thin)


@emits("argmax", "argmin")
def _argmax(out: Emission, step: Step) -> Tensor:
    (axis,) = step.params["axes"]
    operator = {"argmax": "ArgMax", "argmin": "ArgMin"}[step.eqn.name]
    x = out.as_it_is(step.eqn.inputs[0])
    result = out.node(operator, x, axis=axis, keepdims=0)
    return out.made("Cast", result, shape=step.shape, to=step.dtype)


@emits("cumsum")
def _cumsum(out: Emission, step: Step) -> Tensor:
    x, axis = out.as_it_is(step.eqn.inputs[0]), out.ints(step.params["axis"])
    turned = int(step.params["reverse"])
    return out.made("CumSum", x, axis, shape=step.shape, reverse=turned)


@emits("iota")
def _iota(out: Emission, step: Step) -> Tensor:
    """Counts along one axis, and repeats along the others."""
    axis, shape = step.params["dimension"], step.shape
    size = shape[axis]
    if isinstance(size, Batch):
        raise refused(step, "it counts the examples of a batch")
    one = [size if place == axis else 1 for place in range(len(shape))]
    array = np.arange(size, dtype=step.dtype).reshape(one)
    thin = {place for place, size in enumerate(shape) if place != axis and size != 1}
    return Tensor(None, shape, tuple(range(len(shape))), frozenset(thin), array)


@emits("gather")
def _gather(out: Emission, step: Step) -> Tensor:
    """Rows of a table: an embedding, or whole slices along one axis."""
    table, indices = step.eqn.inputs
    numbers, cut = step.params["dimension_numbers"], step.params["slice_sizes"]
    rank = len(table.shape)
    (axis, *more) = numbers.start_index_map
    rest = [place for place in range(rank) if place != axis]
    wanted = tuple(range(len(indices.shape) - 1))
    at = numbers.offset_dims
    whole = all(cut[place] == table.shape[place] for place in rest) and cut[axis] == 1
    places = tuple(place for place in range(len(step.shape)) if place not in at)
    if (
        more
        or numbers.collapsed_slice_dims != (axis,)
        or numbers.operand_batching_dims
        or not whole
        or places != tuple(range(axis, axis + len(wanted)))
    ):
        raise refused(step, "it gathers something else than rows along one axis")
    which = out.straight(indices)
    which = out.reshape(which, which.shape[:-1])
    return out.made(
        "Gather", out.as_it_is(table), out.name(which), shape=step.shape, axis=axis
    )
