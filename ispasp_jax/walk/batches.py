"""Calibration batches, on the devices or on the host: of one size each, padded with
examples that weigh nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ispasp_jax import devices
from ispasp_jax.errors import InputError

#: Calibration batches, preprocessed: an array each, or a tuple where the model takes
#: several.
Images = Iterable[Any]


class Lazy:
    """Batches that are made each time they are read, and take no device memory."""

    def __init__(self, make: Callable[[int], Array], count: int):
        self._make, self._count = make, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, k: int) -> Array:
        return self._make(range(self._count)[k])

    def __iter__(self) -> Iterator[Array]:
        return map(self._make, range(self._count))


#: A batch each: what is there, or what is made when it is read.
Activations = list[Array] | Lazy


def kept(batches: Activations) -> Activations:
    """The same, for longer than a stream that spends its own."""
    return batches if isinstance(batches, Lazy) else [*batches]


def is_finite(array: Array) -> bool:
    """Whether all its numbers are, if it has such that may be none."""
    return not jnp.issubdtype(array.dtype, jnp.inexact) or bool(
        jnp.isfinite(array).all()
    )


def padded(
    images: Images,
    mesh: jax.sharding.Mesh | None = None,
    hold: Callable[[Array], Any] = lambda array: array,
) -> tuple[list[tuple[Any, ...]], list[Float[Array, " n"]]]:
    """Batches all of the first one's size, as `examples` has it: a longer one is split,
    a short one padded with examples that weigh nothing. With a mesh (of devices.py)
    each is spread over its devices; `hold` says what is kept of each array.

    Raises:
      InputError: no batches.
    """
    result, weight, size = [], [], None
    for batch in images:
        arrays = batch if isinstance(batch, tuple) else (batch,)
        size = size or examples(batch, mesh)
        for low in range(0, len(arrays[0]), size):
            rows = [jnp.asarray(array[low : low + size]) for array in arrays]
            short = size - len(rows[0])
            real = (jnp.arange(size) < len(rows[0])).astype(jnp.float32)
            if short:  # copies of an example: a network may not be finite on zeros
                rows = [
                    jnp.pad(x, [(0, short)] + [(0, 0)] * (x.ndim - 1), "edge")
                    for x in rows
                ]
            rows, real = devices.place(mesh, (rows, real))
            weight.append(real)
            result.append(tuple(map(hold, rows)))
    if not result:
        raise InputError("no calibration images: expected at least one batch.")
    return result, weight


def examples(batch: Any, mesh: jax.sharding.Mesh | None = None) -> int:
    """How many examples batches have whose first one this is: as many for each of the
    mesh's devices, and an even number, since moments' folds are every second example
    and devices would have to exchange them."""
    count = len(batch[0] if isinstance(batch, tuple) else batch)
    if mesh is None or mesh.size == 1:
        return count
    return -(-count // (2 * mesh.size)) * 2 * mesh.size


def share(memory: int | None, mesh: jax.sharding.Mesh | None, count: int) -> int | None:
    """What each of `count` streams may keep, of so many bytes on every device."""
    if memory is None:
        return None
    return memory * (1 if mesh is None else mesh.size) // count


def lazily(batches: Sequence[Callable[[], Array]]) -> Lazy:
    """Batches that lie on the host."""
    return Lazy(lambda k: batches[k](), len(batches))


def to_host(array: Array) -> Callable[[], Array]:
    """An array whose every device's rows lie on the host until it is read."""
    shape, sharding = array.shape, array.sharding
    rows = [
        (shard.device, np.asarray(shard.data)) for shard in array.addressable_shards
    ]

    def back() -> Array:
        parts = [jax.device_put(data, device) for device, data in rows]
        return jax.make_array_from_single_device_arrays(shape, sharding, parts)

    return back
