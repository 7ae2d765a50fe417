"""A site's arrays in one layout, whatever the model's:

    H   what the contraction reads, (n, *positions, D)
    K   its kernel, (*taps, D, o)
    U   what it gives, (n, *positions, o)

D is the contracted dimensions one after the other, in the kernel's order.
"""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ispasp_jax.graph.program import AnyArray
from ispasp_jax.walk.sites import RESHAPING, Site

#: Positions of a feature map that moments are taken from, about: neighbours see nearly
#: the same patch.
POSITIONS = 64


def as_hidden(site: Site, x: Array) -> Float[Array, "n *positions D"]:
    """What the contraction reads, contracted places last."""
    own = site.form
    x = jnp.transpose(x, own.hidden)
    rest = x.shape[1 : x.ndim - len(own.contracted)]
    inner = (own.inner,) if own.inner > 1 else ()
    return x.reshape(x.shape[0] // own.inner, *inner, *rest, -1)


def in_place(site: Site, factor: Float[Array, "n D"]) -> Array:
    """A factor of every example and place of H, in a shape that multiplies what the
    contraction reads."""
    own = site.form
    factor = jnp.repeat(factor, own.inner, 0)
    sides = [site.hidden.shape[d] for d in own.contracted]
    others = len(site.hidden.shape) - len(sides) - 1
    factor = factor.reshape(len(factor), *[1] * others, *sides)
    return jnp.transpose(factor, _inverse(own.hidden))


def _inverse(order: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes one."""
    return tuple(np.argsort(order).tolist())


def as_kernel(site: Site, kernel: Array) -> Float[Array, "*taps D o"]:
    """The kernel, taps first."""
    own = site.form
    kernel = jnp.transpose(kernel, own.kernel)
    return kernel.reshape(*own.taps, site.width, -1)


def as_kernel_shape(site: Site) -> tuple[int, ...]:
    """(*taps, D, o)."""
    own = site.form
    features = site.kernel.aval.size // (math.prod(own.taps) * site.width)
    return (*own.taps, site.width, features)


def from_kernel(site: Site, matrix: Float[Array, "p o"]) -> Array:
    """The contraction's operand with these numbers: `as_kernel` the other way."""
    own = site.form
    shape = tuple(site.kernel.shape[d] for d in own.kernel)
    return jnp.transpose(matrix.reshape(shape), _inverse(own.kernel))


def as_out(site: Site, u: Array) -> Float[Array, "n *positions o"]:
    """U, or what has its shape: as the contraction gave it, features last."""
    own = site.form
    for eqn in reversed(site.chain):
        if eqn.name == "transpose":
            u = jnp.transpose(u, _inverse(eqn.params["permutation"]))
        elif eqn.name in RESHAPING:
            before = next(value for value in eqn.inputs if value.live)
            u = u.reshape(before.shape)
    u = jnp.transpose(u, own.out)
    rest = u.shape[1 : u.ndim - own.features]
    inner = (own.inner,) if own.inner > 1 else ()
    return u.reshape(u.shape[0] // own.inner, *inner, *rest, -1)


def linear(
    site: Site, h: Float[Array, "m *positions D"], kernel: Float[Array, "*taps D o"]
) -> Float[Array, "m *outputs o"]:
    """H K for any number of examples."""
    own = site.form
    if not own.taps:
        return jnp.matmul(h, kernel)
    p = site.equation.params
    count = len(own.taps)
    x = h.reshape(-1, *h.shape[-count - 1 :])
    out = _outputs(site, x.shape[1:-1])
    if min(out) < min(own.taps):  # XLA's CPU backend takes ages for these
        return jnp.matmul(patches(site, h), kernel.reshape(-1, kernel.shape[-1]))
    letters = "".join("DHW"[-count:]) if count <= 3 else ""
    u = jax.lax.conv_general_dilated(
        x,
        kernel,
        p["window_strides"],
        p["padding"],
        lhs_dilation=p["lhs_dilation"],
        rhs_dilation=p["rhs_dilation"],
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
    )
    return u.reshape(*h.shape[: -count - 1], *u.shape[1:])


def _outputs(site: Site, space: Sequence[int]) -> list[int]:
    """Sides of the map that a convolution gives."""
    p, taps = site.equation.params, site.form.taps
    sides = zip(
        space, taps, p["window_strides"], p["padding"], p["lhs_dilation"],
        p["rhs_dilation"], strict=True,
    )  # fmt: skip
    return [
        ((size - 1) * grown + 1 + sum(pad) - (tap - 1) * apart - 1) // stride + 1
        for size, tap, stride, pad, grown, apart in sides
    ]


def every(positions: Sequence[int]) -> int:
    """Moments are taken from every so many places of each of the positions."""
    wide = [size for size in positions if size > 1]
    if not wide:
        return 1
    return max(1, int((math.prod(wide) / POSITIONS) ** (1 / len(wide)) + 1e-9))


def thinned(u: Float[Array, "n *positions o"], step: int) -> Array:
    """Every `step`-th place of each of the positions."""
    if step == 1:
        return u
    return u[(slice(None), *(slice(None, None, step) for _ in u.shape[1:-1]))]


def patches(
    site: Site,
    h: Float[Array, "m *positions D"],
    step: int = 1,
    places: Int[AnyArray, " k"] | None = None,
) -> Float[Array, "m *outputs p"]:
    """What the kernel, as a matrix with rows tap · D + place, is multiplied with, at
    every `step`-th place of the output; rows tap · k + i of some places alone."""
    own = site.form

    def chosen(x):
        return x if places is None else x[..., places]

    if not own.taps:
        return chosen(thinned(h, step))
    p, count = site.equation.params, len(own.taps)
    x = h.reshape(-1, *h.shape[-count - 1 :])
    sides = _outputs(site, x.shape[1:-1])
    pads = [
        (low, high, grown - 1)
        for (low, high), grown in zip(p["padding"], p["lhs_dilation"], strict=True)
    ]
    padded = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    result = []
    for tap in itertools.product(*map(range, own.taps)):
        window = [slice(None)]
        for place, apart, stride, side in zip(
            tap, p["rhs_dilation"], p["window_strides"], sides, strict=True
        ):
            start, stride = place * apart, stride * step
            stop = start + stride * (-(-side // step) - 1) + 1
            window.append(slice(start, stop, stride))
        result.append(chosen(padded[tuple(window)]))
    made = jnp.concatenate(result, -1)
    made = made.reshape(*h.shape[: -count - 1], *made.shape[1:])
    inner = h.ndim - count - 2  # positions that the window does not slide over
    return made[(slice(None), *[slice(None, None, step)] * inner)]
