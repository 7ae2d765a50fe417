"""Where channels are consumed: every contraction of activations with weights, the
affine equations behind it, and where it is added to a skip.

    U = chain(H K)          H  what the contraction reads, (n, *positions, D)
    z = U + skip            K  its kernel, (*taps, D, o)

H, K and U are brought into these shapes whatever the layout of the model; D is the
contracted dimensions one after the other, in the kernel's order.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ispasp_jax.graph.atoms import Atom, leaves, parts, product, root
from ispasp_jax.graph.program import Equation, Value
from ispasp_jax.graph.rules import Contraction
from ispasp_jax.walk.flat import Flat
from ispasp_jax.walk.pieces import piece

#: Equations of a chain: place by place and affine, or the same numbers in another
#: shape.
_PLACEWISE = frozenset(
    "add add_any sub mul div neg copy convert_element_type reduce_precision".split()
)
_RESHAPING = frozenset("reshape transpose squeeze broadcast_in_dim".split())

#: Positions of a feature map that moments are taken from, about: neighbours see nearly
#: the same patch.
POSITIONS = 64


class Unsuited(Exception):
    """A contraction is no consumer in this form; the message says why, as a clause."""


class Site(NamedTuple):
    """A contraction with weights.

    Attributes:
      flat: the program.
      place: of the contraction in it.
      side: which operand is live.
      chain: affine equations behind it, up to the next sum or activation.
      join: what a skip is added in; None without.
      skip: the other operand of that sum.
      layer: of a scan; None outside.
    """

    flat: Flat
    place: int
    side: int
    chain: tuple[Equation, ...]
    join: Value | None
    skip: Value | None
    layer: int | None

    @property
    def equation(self) -> Equation:
        return self.flat.equations[self.place]

    @property
    def hidden(self) -> Value:
        """The activations that it reads."""
        return self.equation.inputs[self.side]

    @property
    def kernel(self) -> Value:
        return self.equation.inputs[1 - self.side]

    @property
    def out(self) -> Value:
        """U."""
        return (self.chain[-1] if self.chain else self.equation).outputs[0]

    @property
    def target(self) -> Value:
        """What the dense network gives here: z, or U without a skip."""
        return self.out if self.join is None else self.join

    @property
    def end(self) -> int:
        """The place behind the target."""
        return self.flat.made[self.target] + 1

    @property
    def name(self) -> str:
        """The layer, for people."""
        path = self.kernel.origin or self.equation.where
        layer = "" if self.layer is None else f", layer {self.layer}"
        return f"{path}{layer}"

    @property
    def contracted(self) -> Atom:
        """The D places that are summed over."""
        own = form(self)
        return product(self.hidden.dims[d] for d in own.contracted)

    @property
    def width(self) -> int:
        """D."""
        own = form(self)
        return math.prod(self.hidden.shape[d] for d in own.contracted)


class Form(NamedTuple):
    """How a contraction's operands become (n, *positions, D), (*taps, D, o) and (n,
    *positions, o).

    Attributes:
      hidden: order of the live operand's dimensions, examples first, contracted last.
      contracted: those that are contracted.
      kernel: order of the kernel's dimensions.
      taps: sides of a convolution's window; () for a dot product.
      out: order of the output's dimensions.
      features: how many of them, at the end, are the kernel's.
      inner: how many rows of the first dimension belong to an example.
    """

    hidden: tuple[int, ...]
    contracted: tuple[int, ...]
    kernel: tuple[int, ...]
    taps: tuple[int, ...]
    out: tuple[int, ...]
    features: int
    inner: int


def sites(flat: Flat) -> list[Site]:
    """Every contraction of activations with weights, in order."""
    return [
        _site(flat, place)
        for place, eqn in enumerate(flat.equations)
        if isinstance(eqn.memo, Contraction)
        and eqn.memo.left
        and eqn.inputs[0].live != eqn.inputs[1].live
    ]


def suited(flat: Flat) -> list[Site]:
    """Those whose form selection can ask."""
    return [site for site in sites(flat) if is_suited(site)]


def _site(flat: Flat, place: int) -> Site:
    eqn = flat.equations[place]
    side = 0 if eqn.inputs[0].live else 1
    value, chain, join, skip = eqn.outputs[0], [], None, None
    while True:
        readers = flat.readers.get(value, [])
        if len(readers) != 1 or value in flat.outputs:
            break
        after = flat.equations[readers[0]]
        others = [other for other in after.inputs if other is not value]
        if any(other.live for other in others):
            added = after.name in ("add", "add_any") and len(others) == 1
            if added and others[0].shape == value.shape:
                join, skip = after.outputs[0], others[0]
            break
        if not _continues(after, value):
            break
        chain.append(after)
        value = after.outputs[0]
    layer = flat.layers.get(eqn)
    return Site(flat, place, side, tuple(chain), join, skip, layer)


def _continues(eqn: Equation, value: Value) -> bool:
    """Whether a chain goes on through an equation."""
    out = eqn.outputs[0]
    if not jnp.issubdtype(out.aval.dtype, jnp.floating):
        return False
    if eqn.name in _RESHAPING:
        return out.aval.size == value.aval.size
    return is_placewise(eqn, value)


def is_placewise(eqn: Equation, value: Value) -> bool:
    """Whether an equation is affine in a value, place by place."""
    if eqn.name == "div" and eqn.inputs[0] is not value:
        return False
    out = eqn.outputs[0]
    floats = jnp.issubdtype(out.aval.dtype, jnp.floating)
    return eqn.name in _PLACEWISE and floats and out.shape == value.shape


@functools.lru_cache(1024)
def form(site: Site) -> Form:
    """The contraction's form.

    Raises:
      Unsuited: it has none: groups of features, or examples that mix.
    """
    eqn = site.equation
    if eqn.name == "dot_general":
        return _of_dot(site, eqn)
    p, numbers = eqn.params, eqn.params["dimension_numbers"]
    if p["feature_group_count"] > 1 or p["batch_group_count"] > 1:
        raise Unsuited("it is a convolution in groups")
    if site.side == 1:
        raise Unsuited("its kernel is the activations")
    lhs, rhs, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    window = tuple(site.kernel.shape[d] for d in rhs[2:])
    return Form(
        (lhs[0], *lhs[2:], lhs[1]),
        (lhs[1],),
        (*rhs[2:], rhs[1], rhs[0]),
        window,
        (out[0], *out[2:], out[1]),
        1,
        _inner(site, lhs[0]),
    )


def _of_dot(site: Site, eqn: Equation) -> Form:
    contracted, batch = eqn.params["dimension_numbers"]
    if batch[0]:
        raise Unsuited("its kernel differs from place to place")
    own, theirs = contracted[site.side], contracted[1 - site.side]
    free = [d for d in range(len(site.hidden.shape)) if d not in own]
    examples = [d for d in free if _has_examples(site, site.hidden.dims[d])]
    if len(examples) != 1:
        raise Unsuited("examples cannot be told apart in what it reads")
    first = examples[0]
    ordered = (first, *(d for d in free if d != first))
    made = [d for d in range(len(site.kernel.shape)) if d not in theirs]
    start = 0 if site.side == 0 else len(made)
    places = {d: start + k for k, d in enumerate(free)}
    end = len(free) if site.side == 0 else 0
    features = tuple(range(end, end + len(made)))
    return Form(
        (*ordered, *own),
        tuple(own),
        (*theirs, *made),
        (),
        (*(places[d] for d in ordered), *features),
        len(made),
        _inner(site, first),
    )


def _has_examples(site: Site, atom: Atom) -> bool:
    batch = root(site.flat.inputs[0].dims[0])
    return any(part is batch for part in leaves(atom))


def _inner(site: Site, dim: int) -> int:
    """How many rows of a dimension belong to one example."""
    atom = root(site.hidden.dims[dim])
    batch = root(site.flat.inputs[0].dims[0])
    first = next((part for part in parts(atom) if part.size != 1), atom)
    whole = atom is batch or (atom.kind != "sum" and first is batch)
    if not whole and atom.size == batch.size == 1:
        return 1
    if not whole:
        raise Unsuited("examples cannot be told apart in what it reads")
    return atom.size // batch.size


def is_suited(site: Site) -> bool:
    """Whether a site has the form that selection needs."""
    return not why(site)


def why(site: Site) -> str:
    """Why it has not; "" where it has."""
    try:
        form(site)
    except Unsuited as error:
        return str(error)
    return ""


def as_hidden(site: Site, x: Array) -> Float[Array, "n *positions D"]:
    """What the contraction reads, contracted places last."""
    own = form(site)
    x = jnp.transpose(x, own.hidden)
    rest = x.shape[1 : x.ndim - len(own.contracted)]
    inner = (own.inner,) if own.inner > 1 else ()
    return x.reshape(x.shape[0] // own.inner, *inner, *rest, -1)


def in_place(site: Site, factor: Float[Array, "n D"]) -> Array:
    """A factor of every example and place of H, in a shape that multiplies what the
    contraction reads."""
    own = form(site)
    factor = jnp.repeat(factor, own.inner, 0)
    sides = [site.hidden.shape[d] for d in own.contracted]
    others = len(site.hidden.shape) - len(sides) - 1
    factor = factor.reshape(len(factor), *[1] * others, *sides)
    return jnp.transpose(factor, np.argsort(own.hidden))


def as_kernel(site: Site, kernel: Array) -> Float[Array, "*taps D o"]:
    """The kernel, taps first."""
    own = form(site)
    kernel = jnp.transpose(kernel, own.kernel)
    return kernel.reshape(*own.taps, site.width, -1)


def as_kernel_shape(site: Site) -> tuple[int, ...]:
    """(*taps, D, o)."""
    own = form(site)
    features = site.kernel.aval.size // (math.prod(own.taps) * site.width)
    return (*own.taps, site.width, features)


def from_kernel(site: Site, matrix: Float[Array, "p o"]) -> Array:
    """The contraction's operand with these numbers: `as_kernel` the other way."""
    own = form(site)
    shape = tuple(site.kernel.shape[d] for d in own.kernel)
    return jnp.transpose(matrix.reshape(shape), np.argsort(own.kernel))


def as_out(site: Site, u: Array) -> Float[Array, "n *positions o"]:
    """U, or what has its shape: as the contraction gave it, features last."""
    own = form(site)
    for eqn in reversed(site.chain):
        if eqn.name == "transpose":
            u = jnp.transpose(u, np.argsort(eqn.params["permutation"]))
        elif eqn.name in _RESHAPING:
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
    own = form(site)
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
    p, taps = site.equation.params, form(site).taps
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
    places: Int[Array, " k"] | None = None,
) -> Float[Array, "m *outputs p"]:
    """What the kernel, as a matrix with rows tap · D + place, is multiplied with, at
    every `step`-th place of the output; rows tap · k + i of some places alone."""
    own = form(site)

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
    found = []
    for tap in itertools.product(*map(range, own.taps)):
        window = [slice(None)]
        for place, apart, stride, side in zip(
            tap, p["rhs_dilation"], p["window_strides"], sides, strict=True
        ):
            start, stride = place * apart, stride * step
            stop = start + stride * (-(-side // step) - 1) + 1
            window.append(slice(start, stop, stride))
        found.append(chosen(padded[tuple(window)]))
    made = jnp.concatenate(found, -1)
    made = made.reshape(*h.shape[: -count - 1], *made.shape[1:])
    inner = h.ndim - count - 2  # positions that the window does not slide over
    return made[(slice(None), *[slice(None, None, step)] * inner)]


@functools.lru_cache(1024)
def text(site: Site) -> str:
    """The same for sites whose consumers compute the same, in the same layout."""
    return f"{piece(site.flat, [site.out], [site.hidden]).text} {form(site)}"


def labels(atom: Atom, leaf: Atom) -> Int[np.ndarray, " size"]:
    """Which of a leaf's places every place of a dimension is; -1 for none."""
    atom = root(atom)
    if atom is leaf:
        return np.arange(atom.size)
    if atom.kind is None:
        return np.full(atom.size, -1)
    found = [labels(part, leaf) for part in atom.parts]
    if atom.kind == "sum":
        return np.concatenate(found)
    return functools.reduce(
        lambda a, b: np.maximum(a[:, None], b[None, :]).ravel(), found
    )


def index(site: Site, leaf: Atom) -> Int[np.ndarray, "d m"]:
    """The m places of H, of D, that belong to each of a group's d channels.

    Raises:
      Unsuited: some channels have more than others.
    """
    found = labels(site.contracted, leaf)
    if len({*np.bincount(found[found >= 0], minlength=leaf.size)}) != 1:
        raise Unsuited("it reads some channels more often than others")
    return by_channel(found, leaf.size)


def by_channel(
    found: Int[np.ndarray, " size"], width: int
) -> Int[np.ndarray, "width m"]:
    """The places that `labels` gives to each of so many channels."""
    ordered = np.argsort(found, kind="stable")
    return ordered[(found < 0).sum() :].reshape(width, -1)


def of_leaf(found: Sequence[Site], leaf: Atom) -> Iterator[Site]:
    """The sites that read a group's channels."""
    for site in found:
        memo = site.equation.memo
        atoms = memo.left if site.side == 0 else memo.right
        if any(part is leaf for atom in atoms for part in leaves(atom)):
            yield site
