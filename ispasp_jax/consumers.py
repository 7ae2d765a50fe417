"""What a consumer does, found by evaluating it: neither epsilon nor the names of its
layers are assumed.

    u = (P K) · scale + shift

    P   patches of the hidden channels, of `Block.patches`
    K   the kernel below the first path of the group's `consumer`, as a matrix

With a kernel of zeros the consumer gives the shift, with a random one the scale, and
with its own it has to give what the two foretell, up to rounding. Whatever does not (a
norm that looks at its input, a stride or a pooling that the patches do not have, an
activation) is not affine in this form, and least squares does not reach it.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ispasp_jax import moments
from ispasp_jax.models.network import Block, Variables
from ispasp_jax.streams import Activations, Stream, positions, width

#: Where an array is: collection, path of its module, name.
Place = tuple[str, str, str]

#: Largest difference that counts as rounding, of the largest value.
TOLERANCE = 1e-4


class Unreached(Exception):
    """Least squares cannot refit this consumer; the message says why, as a clause."""


class Consumer(NamedTuple):
    """An affine consumer.

    Attributes:
      kernel: K.
      scale: of every output; 0 where nothing comes through.
      shift: of every output.
    """

    kernel: Float[np.ndarray, "p o"]
    scale: Float[np.ndarray, " o"]
    shift: Float[np.ndarray, " o"]

    @property
    def matrix(self) -> Float[np.ndarray, "p o"]:
        """What the patches are multiplied with, all in all."""
        return self.kernel * self.scale


class Probe(NamedTuple):
    """A pair, and hidden activations to try its consumer on."""

    module: Block
    i: int
    hidden: Float[Array, "n *positions d"]

    @property
    def path(self) -> str:
        """Of the layer that has the kernel."""
        return self.module.groups[self.i].consumer[0]


def probe(i: int, stream: Stream, hidden: Activations) -> Probe:
    """The i-th pair of the stream's block, to be tried on activations of its shape."""
    shape = (*positions(hidden), width(hidden))
    drawn = np.random.default_rng(0).normal(size=(2, *shape))
    drawn[1] *= 30  # what is bent far from zero is bent, too
    return Probe(stream.module, i, jnp.asarray(drawn, jnp.float32))


def evaluate(probe: Probe, own: Variables) -> Consumer:
    """The consumer with these variables of the block.

    Raises:
      Unreached: it is no matrix on patches and a shift.
    """
    kernel = branch(own["params"], probe.path).get("kernel")
    if kernel is None:
        raise Unreached(f"{probe.path!r}, its first layer, has no array 'kernel'")
    drawn = np.random.default_rng(1).normal(size=kernel.shape)
    drawn = jnp.asarray(drawn, kernel.dtype)
    outputs = [
        _consumer(probe.module, probe.i, _with(probe, own, values), probe.hidden)
        for values in (jnp.zeros_like(kernel), drawn, kernel)
    ]
    tolerance = _tolerance(outputs[0])
    step = moments.step(outputs[0].shape[1:-1])
    P = _flat(_patches(probe.module, probe.i, step, own, probe.hidden))
    zero, random, found = (_flat(u, step) for u in outputs)
    rows = math.prod(kernel.shape[:-1])
    if P.shape != (*zero.shape[:2], rows) or kernel.shape[-1] != zero.shape[-1]:
        raise Unreached(
            f"{P.shape[1]} patches of {P.shape[2]} numbers do not give its "
            f"{zero.shape[1]} outputs of {zero.shape[2]} by a kernel of shape "
            f"{tuple(kernel.shape)} (a stride, a pooling or groups that Block.patches "
            "does not have)"
        )
    shift = zero[0, 0]
    if not _same(zero, shift, tolerance):
        raise Unreached("with a kernel of zeros its output still depends on its input")
    drawn, matrix = (_matrix(a) for a in (drawn, kernel))
    plain = P @ drawn
    size = np.square(plain).sum((0, 1))
    scale = ((random - shift) * plain).sum((0, 1)) / np.where(size > 0, size, 1)
    for u, expected in ((random, plain), (found, P @ matrix)):
        if not _same(u, expected * scale + shift, tolerance, np.abs(shift).max()):
            raise Unreached(
                "its output is not its kernel times the patches, scaled and shifted (a "
                "norm over its input, an activation, or a padding, stride or pooling "
                "that Block.patches does not have)"
            )
    return Consumer(matrix, scale, shift)


def is_affine(probe: Probe, own: Variables) -> bool:
    """Whether the consumer is affine in its input and treats every example alike, so
    that a sum over examples says all.
    """
    a, b = probe.hidden
    nothing = jnp.zeros_like(a)
    U, V, W = (
        _consumer(probe.module, probe.i, own, jnp.stack(pair))
        for pair in ((a, b), (a + b, nothing), (nothing, a))
    )
    if len(U) != 2:
        return False
    tolerance = _tolerance(U)
    U, V, W = (np.asarray(u, np.float64).reshape(2, 1, -1) for u in (U, V, W))
    zero = V[1:]
    offset = np.abs(zero).max()
    alike = np.concatenate([W[1:], W[:1]]), np.concatenate([U[:1], zero])
    pairs = (alike, (U[:1] + U[1:], V[:1] + zero))
    return all(_same(*pair, tolerance, offset) for pair in pairs)


def shift(probe: Probe, own: Variables) -> Float[np.ndarray, " o"]:
    """What an affine consumer adds, with these variables."""
    kernel = branch(own["params"], probe.path)["kernel"]
    silent = _with(probe, own, jnp.zeros_like(kernel))
    return _flat(_consumer(probe.module, probe.i, silent, probe.hidden))[0, 0]


def gain(probe: Probe, own: Variables, place: Place) -> Float[np.ndarray, " o"]:
    """How much the shift moves with an array's values; 0 for one of another shape."""
    at_one, at_zero = (shift(probe, put(own, place, value)) for value in (1.0, 0.0))
    collection, path, name = place
    fits = branch(own[collection], path)[name].shape == at_one.shape
    return (at_one - at_zero) * fits


def _tolerance(u: Float[Array, "..."]) -> float:
    return max(TOLERANCE, 8 * float(jnp.finfo(u.dtype).eps))


def _same(u, expected, tolerance: float, offset: float = 0.0) -> bool:
    """Whether they are equal up to rounding, example by example: of what varies, and
    of an offset that all of them have.
    """
    apart, size = (np.abs(a).max((1, 2)) for a in (u - expected, u))
    size = np.maximum(size - offset, 0)
    return bool((apart <= tolerance * (size + offset / 30)).all())


def branch(tree, path: str) -> dict:
    """What hangs at a "/"-joined path; {} where nothing does."""
    for key in path.split("/"):
        tree = tree.get(key, {}) if hasattr(tree, "get") else {}
    return tree


def put(own: Variables, place: Place, value) -> Variables:
    """The variables with another value for an array: as many numbers as it has, or one
    for all of it.
    """

    def into(tree, path):
        key, *rest = path
        if rest:
            return {**tree, key: into(tree[key], rest)}
        like, new = tree[key], jnp.asarray(value, tree[key].dtype)
        new = jnp.broadcast_to(new, like.shape) if new.ndim == 0 else new
        return {**tree, key: new.reshape(like.shape)}

    collection, path, name = place
    return {**own, collection: into(own[collection], [*path.split("/"), name])}


def _with(probe: Probe, own: Variables, kernel: Float[Array, "..."]) -> Variables:
    return put(own, ("params", probe.path, "kernel"), kernel)


def _matrix(kernel: Float[Array, "*taps i o"]) -> Float[np.ndarray, "p o"]:
    return np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])


def _flat(u: Float[Array, "n *positions o"], step: int = 1) -> np.ndarray:
    """(examples, positions, channels) in float64, every `step`-th row and column."""
    u = u[:, ::step, ::step] if step > 1 else u
    return np.asarray(u, np.float64).reshape(len(u), -1, u.shape[-1])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _consumer(block, i, own, h):
    with jax.default_matmul_precision("highest"):
        return block.apply(own, h, i, method="consumer")


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _patches(block, i, step, own, h):
    return block.apply(own, h, i, step, method="patches")
