"""Which places of the inputs are real: the others are padding, such as a short text has
behind it, and weigh nothing in sums and moments, wherever the places are still there.

The model itself has to see to it that real places do not look at padding.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ispasp_jax.errors import InputError
from ispasp_jax.graph.atoms import parts, root
from ispasp_jax.graph.program import Value
from ispasp_jax.walk.batches import Activations, Lazy, padded
from ispasp_jax.walk.sites import Site
from ispasp_jax.walk.streams import Stream

#: Truth values, an array of (n, t) for each batch of inputs (n, t, ...).
Real = Iterable[Any]


def start(entry: Stream, real: Real | None, mesh: jax.sharding.Mesh | None) -> Stream:
    """The stream at the input, with what is padding there.

    Args:
      entry: without.
      real: batches as long as the inputs'; None: all places are real.
      mesh: that the stream is spread over.

    Raises:
      InputError: they are not as many and as long as the inputs' batches.
    """
    if real is None:
        return entry
    batches, weight = padded(real, mesh)
    first = entry.flat.inputs[0]
    given = [batch[0].shape for batch in batches]
    wanted = [first.shape[:2]] * len(entry.weight)
    counts = [[int(w.sum()) for w in ws] for ws in (weight, entry.weight)]
    if given != wanted or counts[0] != counts[1] or len(first.shape) < 2:
        raise InputError(
            f"real has batches of shapes {given[:3]}, {sum(counts[0])} examples, and "
            f"the inputs {wanted[:3]}, {sum(counts[1])} examples; expected a truth "
            "value for each place along the inputs' second dimension."
        )
    places = [
        jnp.asarray(batch[0], jnp.float32) * w[:, None]
        for batch, w in zip(batches, entry.weight, strict=True)
    ]
    if not all(float(p.sum()) for p in places):
        raise InputError(
            "a batch of real is all padding; leave it out, inputs and all."
        )
    return entry._replace(real=places)


def weight(stream: Stream, value: Value, k: int) -> Array:
    """What counts of a value in batch k, in a shape that multiplies it: examples, and
    their places where the value has them."""
    shape = value.shape
    found = None if stream.real is None else _axes(stream, value)
    if stream.real is None or found is None:
        own = stream.weight[k]
        return across(own, shape) if shape[:1] == own.shape else jnp.ones((), "float32")
    real, (first, second) = stream.real[k], found
    sides = [1] * len(shape)
    for axis, size in ((first, len(real)), (second, real.shape[1])):
        sides[axis] *= size
    return (real.T if second < first else real).reshape(sides)


def across(own: Float[Array, " n"], shape: Sequence[int]) -> Array:
    """The examples' weights in a shape that multiplies an array of that one."""
    return own.reshape([-1] + [1] * (len(shape) - 1))


def hidden(stream: Stream, site: Site) -> Activations:
    """What a consumer reads, zeros where it is padding."""
    value, batches = site.hidden, stream.live[site.hidden]
    if stream.real is None or _axes(stream, value) is None:
        return batches

    def made(k: int) -> Array:
        h = batches[k]
        return h * weight(stream, value, k).astype(h.dtype)

    return Lazy(made, len(stream.real))


def rows(stream: Stream, site: Site, k: int) -> Array:
    """What counts of a consumer's patches in batch k, (n, ...): where there is padding,
    in the layout of what it reads, a single channel of it."""
    value = site.hidden
    if site.form.taps or stream.real is None or _axes(stream, value) is None:
        return stream.weight[k]
    sides = [1 if d in site.form.contracted else n for d, n in enumerate(value.shape)]
    return jnp.broadcast_to(weight(stream, value, k), sides)


def _axes(stream: Stream, value: Value) -> tuple[int, int] | None:
    """The axes that carry examples and the input's places; None without the latter."""
    batch, token = (root(atom) for atom in stream.flat.inputs[0].dims[:2])
    result = {}
    for axis, atom in enumerate(value.dims):
        for part in parts(atom) if root(atom).kind == "product" else [root(atom)]:
            for name, one in (("batch", batch), ("token", token)):
                if part is one:
                    result.setdefault(name, axis)
    if set(result) != {"batch", "token"}:
        return None
    first, second = result["batch"], result["token"]
    sizes = {}
    for axis, one in ((first, batch), (second, token)):
        sizes[axis] = sizes.get(axis, 1) * one.size
    whole = all(value.shape[axis] == size for axis, size in sizes.items())
    in_order = first != second or parts(value.dims[first])[0] is batch
    return (first, second) if whole and in_order else None
