"""One rule a primitive: convolutions, products of matrices, pooling."""

import math
from collections.abc import Sequence

import numpy as np

from ispasp_jax.export.emission import (
    Batch,
    Emission,
    Size,
    Step,
    Tensor,
    emits,
    refused,
)


@emits("conv_general_dilated")
def _convolution(out: Emission, step: Step) -> Tensor:
    x, kernel = step.eqn.inputs
    params, numbers = step.params, step.params["dimension_numbers"]
    if params["batch_group_count"] != 1:
        raise refused(step, "it groups the batch")
    images = out.name(out.laid(out.whole(x), numbers.lhs_spec))
    filters = out.laid(out.whole(kernel), numbers.rhs_spec)
    low, high = zip(*params["padding"], strict=True) if params["padding"] else ((), ())
    options = {
        "strides": list(params["window_strides"]),
        "dilations": list(params["rhs_dilation"]),
        "group": params["feature_group_count"],
    }
    if any(gap != 1 for gap in params["lhs_dilation"]):
        return _transposed(out, step, images, filters, low, high)
    if min((*low, *high), default=0) < 0:
        raise refused(step, "its padding is negative")
    return out.made(
        "Conv",
        images,
        out.name(filters),
        shape=step.shape,
        order=numbers.out_spec,
        pads=[*low, *high],
        **options,
    )


def _transposed(out: Emission, step: Step, images, filters: Tensor, low, high):
    """A convolution of images that were spread out: its filters are turned."""
    params, numbers = step.params, step.params["dimension_numbers"]
    stride, group = params["lhs_dilation"], params["feature_group_count"]
    if filters.array is None or any(s != 1 for s in params["window_strides"]):
        raise refused(step, "it spreads the images and steps, or has no fixed kernel")
    spread = [
        (size - 1) * gap
        for size, gap in zip(
            filters.array.shape[2:], params["rhs_dilation"], strict=True
        )
    ]
    before = [s - p for s, p in zip(spread, low, strict=True)]
    after = [s - p for s, p in zip(spread, high, strict=True)]
    more = [max(-p, 0) for p in after]
    if min(before) < 0 or any(m >= s for m, s in zip(more, stride, strict=True) if m):
        raise refused(step, "it pads more than its kernel reaches")
    array = np.flip(filters.array, tuple(range(2, filters.array.ndim)))
    outs, ins = array.shape[:2]
    array = array.reshape(group, outs // group, ins, *array.shape[2:])
    array = array.swapaxes(1, 2).reshape(group * ins, outs // group, *array.shape[3:])
    return out.made(
        "ConvTranspose",
        images,
        out.initializer(array),
        shape=step.shape,
        order=numbers.out_spec,
        strides=list(stride),
        dilations=list(params["rhs_dilation"]),
        group=group,
        pads=[*before, *(max(p, 0) for p in after)],
        output_padding=more,
    )


@emits("dot_general")
def _product(out: Emission, step: Step) -> Tensor:
    """Batch, rows and sum against batch, sum and columns; several of one kind are laid
    side by side."""
    x, y = step.eqn.inputs
    (sum_x, sum_y), (batch_x, batch_y) = step.params["dimension_numbers"]
    left, right = out.get(x), out.get(y)
    free_x = [a for a in range(left.rank) if a not in (*sum_x, *batch_x)]
    free_y = [a for a in range(right.rank) if a not in (*sum_y, *batch_y)]
    lhs = out.laid(out.whole(left), [*batch_x, *free_x, *sum_x])
    rhs = out.laid(out.whole(right), [*batch_y, *sum_y, *free_y])
    batch = [left.shape[axis] for axis in batch_x]
    rows, columns = ([t.shape[a] for a in free] for t, free in
                     ((left, free_x), (right, free_y)))  # fmt: skip
    inner = [left.shape[axis] for axis in sum_x]
    # rows need not be one where the other side has no batch: MatMul repeats it
    together = rows if not batch else [_size(rows)]
    if not batch and not rows:
        together = [1]
    a = _shaped(out, lhs, [*batch, *together, _size(inner)])
    b = _shaped(out, rhs, [*batch, _size(inner), _size(columns)])
    made = (*batch, *together, _size(columns))
    product = out.made("MatMul", out.name(a), out.name(b), shape=made)
    return _shaped(out, product, [*batch, *rows, *columns])


def _size(dims: Sequence[Size]) -> Size:
    """Several dimensions as one."""
    grown = [size for size in dims if isinstance(size, Batch)]
    times = math.prod(size for size in dims if isinstance(size, int))
    if not grown:
        return times
    (one,) = grown
    return Batch(one.times * times, one.plus * times)


def _shaped(out: Emission, tensor: Tensor, shape: Sequence[Size]) -> Tensor:
    """A tensor as it is stored, in another shape."""
    shape = tuple(shape)
    stored = tuple(tensor.shape[axis] for axis in tensor.order)
    order = tuple(range(len(stored)))
    plain = Tensor(tensor.name, stored, order, frozenset(), tensor.array)
    if tensor.array is not None:  # keeps its name
        plain = out.laid(tensor, tensor.order)
        plain = Tensor(None, stored, order, frozenset(), plain.array)
    return plain if stored == shape else out.reshape(plain, shape)


def _windowed(out: Emission, step: Step) -> tuple[str, tuple[int, ...], dict]:
    """What is pooled, laid as NCHW, how, and the window's attributes."""
    params, (x, *_) = step.params, step.eqn.inputs
    window, strides = params["window_dimensions"], params["window_strides"]
    padding, gaps = params["padding"], params["window_dilation"]
    if any(gap != 1 for gap in params["base_dilation"]):
        raise refused(step, "it spreads what it pools")
    moved = [
        axis
        for axis in range(len(window))
        if (window[axis], strides[axis], tuple(padding[axis])) != (1, 1, (0, 0))
    ]
    still = [axis for axis in range(len(window)) if axis not in moved]
    while len(still) > 2:
        moved.insert(0, still.pop(1))
    if len(still) < 2 or not moved:
        raise refused(step, "it pools over examples or channels")
    tensor = out.whole(x)
    kept = [axis for axis in tensor.order if axis in still]
    order = (*kept, *sorted(moved))
    low, high = ([padding[axis][i] for axis in sorted(moved)] for i in (0, 1))
    return (
        out.name(out.laid(tensor, order)),
        order,
        {
            "kernel_shape": [window[axis] for axis in sorted(moved)],
            "strides": [strides[axis] for axis in sorted(moved)],
            "dilations": [gaps[axis] for axis in sorted(moved)],
            "pads": [*low, *high],
        },
    )


@emits("reduce_window_max")
def _max_pool(out: Emission, step: Step) -> Tensor:
    name, order, window = _windowed(out, step)
    return out.made("MaxPool", name, shape=step.shape, order=order, **window)


@emits("reduce_window_min")
def _min_pool(out: Emission, step: Step) -> Tensor:
    name, order, window = _windowed(out, step)
    pooled = out.node("MaxPool", out.node("Neg", name), **window)
    return out.made("Neg", pooled, shape=step.shape, order=order)


@emits("reduce_window_sum")
def _sum_pool(out: Emission, step: Step) -> Tensor:
    name, order, window = _windowed(out, step)
    if any(gap != 1 for gap in window.pop("dilations")):
        raise refused(step, "it sums a window with gaps")
    mean = out.node("AveragePool", name, count_include_pad=1, **window)
    count = np.asarray(math.prod(window["kernel_shape"]), step.dtype)
    count_name = out.initializer(count)
    return out.made("Mul", mean, count_name, shape=step.shape, order=order)
