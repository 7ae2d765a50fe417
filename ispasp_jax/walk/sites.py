"""Where channels are consumed: every contraction of activations with weights, the
affine equations behind it, and where it is added to a skip.

    U = chain(H K)          H  what the contraction reads
    z = U + skip            K  its kernel
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from ispasp_jax.graph import atoms
from ispasp_jax.graph.atoms import Atom, leaves, product
from ispasp_jax.graph.program import Equation, Value
from ispasp_jax.graph.rules import Contraction
from ispasp_jax.walk.flat import Flat
from ispasp_jax.walk.forms import Form, Unsuited, form
from ispasp_jax.walk.pieces import piece

#: Equations of a chain: place by place and affine, or the same numbers in another
#: shape.
_PLACEWISE = frozenset(
    "add add_any sub mul div neg copy convert_element_type reduce_precision".split()
)

RESHAPING = frozenset("reshape transpose squeeze broadcast_in_dim".split())


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
        return product(self.hidden.dims[d] for d in self.form.contracted)

    @property
    def width(self) -> int:
        """D."""
        return math.prod(self.hidden.shape[d] for d in self.form.contracted)

    @property
    def form(self) -> Form:
        """Which of its dimensions are what.

        Raises:
          Unsuited: it has none that selection can ask.
        """
        return form(self.flat, self.equation, self.side)


def sites(flat: Flat) -> list[Site]:
    """Every contraction of activations with weights, in order."""
    return [
        site(flat, place)
        for place, eqn in enumerate(flat.equations)
        if isinstance(eqn.memo, Contraction)
        and eqn.memo.left
        and eqn.inputs[0].live != eqn.inputs[1].live
    ]


def suited(flat: Flat) -> list[Site]:
    """Those whose form selection can ask."""
    return [site for site in sites(flat) if is_suited(site)]


def site(flat: Flat, place: int) -> Site:
    """The contraction at a place, whatever its form."""
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
    if eqn.name in RESHAPING:
        return out.aval.size == value.aval.size
    return is_placewise(eqn, value)


def is_placewise(eqn: Equation, value: Value) -> bool:
    """Whether an equation is affine in a value, place by place."""
    if eqn.name == "div" and eqn.inputs[0] is not value:
        return False
    out = eqn.outputs[0]
    floats = jnp.issubdtype(out.aval.dtype, jnp.floating)
    return eqn.name in _PLACEWISE and floats and out.shape == value.shape


def is_suited(site: Site) -> bool:
    """Whether a site has the form that selection needs."""
    return not why(site)


def why(site: Site) -> str:
    """Why it has not; "" where it has."""
    try:
        _ = site.form
    except Unsuited as error:
        return str(error)
    return ""


@functools.lru_cache(1024)
def text(site: Site) -> str:
    """The same for sites whose consumers compute the same, in the same layout."""
    return f"{piece(site.flat, [site.out], [site.hidden]).text} {site.form}"


def index(site: Site, leaf: Atom) -> Int[np.ndarray, "d m"]:
    """The m places of H, of D, that belong to each of a group's d channels.

    Raises:
      Unsuited: some channels have more than others.
    """
    result = atoms.labels(site.contracted, leaf)
    if len({*np.bincount(result[result >= 0], minlength=leaf.size)}) != 1:
        raise Unsuited("it reads some channels more often than others")
    return by_channel(result, leaf.size)


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
