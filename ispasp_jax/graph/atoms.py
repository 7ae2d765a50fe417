"""Dimensions made of atoms: what is joined with what, and how a dimension splits.

Every dimension of every value in a program is an Atom. Equations join atoms
(union-find), and an atom may be refined into

    a product   of factors in row-major order: a flatten h·w·c, d_model into heads times
                head width, group norm's groups
    a sum       of pieces one after the other: concatenate, split, slice, pad

What is never refined is a leaf. Joining two refined atoms aligns them, refining leaves
on the way; what cannot be aligned is frozen, and says why. A mask over a dimension
follows from masks of its leaves: the product's is their outer "and", the sum's their
concatenation.
"""

import functools
import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

#: An int, or a symbolic dimension of jax.export.
Size = Any

#: Why rows, columns, kernel taps and scanned layers stay.
POSITIONS = "a position, not a channel"


class Reason(NamedTuple):
    """Why an atom cannot be cut.

    Attributes:
      text: in words, the equation and its source line named.
      shape: the array's shape forbids it, so that no program with this equation can be
        narrowed there; if not, only masking and cutting would differ.
    """

    text: str
    shape: bool


#: What an atom's parts make of it; None for a leaf.
Kind = Literal["product", "sum"] | None


class Atom:
    """A dimension, or a part of one. Identity matters, so compare `root(a) is root(b)`.

    Attributes:
      size: how many places it has.
      kind: None for a leaf, else what its parts make of it.
      parts: factors or pieces.
      reason: of a leaf that cannot be cut.
    """

    __slots__ = ("size", "kind", "parts", "reason", "_parent")

    def __init__(
        self,
        size: Size,
        kind: Kind = None,
        parts: Sequence["Atom"] = (),
    ):
        self.size = int(size) if isinstance(size, numbers.Integral) else size
        self.kind: Kind = kind
        self.parts = tuple(parts)
        self.reason: Reason | None = None
        self._parent: Atom | None = None


def root(atom: Atom) -> Atom:
    """The atom that stands for all that were joined with this one."""
    top = atom
    while top._parent is not None:
        top = top._parent
    while (parent := atom._parent) is not None:
        atom._parent, atom = top, parent
    return top


def parts(atom: Atom) -> list[Atom]:
    """Its parts as roots, parts of the same kind opened; itself if it is a leaf."""
    top = root(atom)
    if top.kind is None:
        return [top]
    opened = []
    for part in map(root, top.parts):
        opened += parts(part) if part.kind == top.kind else [part]
    return opened


def leaves(atom: Atom) -> list[Atom]:
    """The leaves that it is made of, in order; one may occur twice."""
    top = root(atom)
    if top.kind is None:
        return [top]
    return [leaf for part in top.parts for leaf in leaves(part)]


def product(factors: Iterable[Atom]) -> Atom:
    """The atom of a flattened shape; factors of size one say nothing."""
    return _made("product", [a for a in factors if not _is(a.size, 1)], 1)


def total(pieces: Iterable[Atom]) -> Atom:
    """The atom of pieces one after the other; empty ones say nothing."""
    return _made("sum", [a for a in pieces if not _is(a.size, 0)], 0)


def _made(kind, members, neutral) -> Atom:
    if len(members) == 1:
        return members[0]
    sizes = [a.size for a in members]
    return Atom(math.prod(sizes) if neutral else sum(sizes), kind, members)


def freeze(atom: Atom, text: str, shape: bool = False) -> None:
    """Forbids to cut any leaf of the atom; the first reason, and the graver, stays."""
    for leaf in leaves(atom):
        if leaf.reason is None or (shape and not leaf.reason.shape):
            leaf.reason = Reason(text, shape)


def is_position(atom: Atom) -> bool:
    """Whether it has to stay because it counts places, not channels."""
    reasons = [leaf.reason for leaf in leaves(atom)]
    return all(reason and reason.text == POSITIONS for reason in reasons)


def join(a: Atom, b: Atom, where: str) -> None:
    """Makes two atoms of one size the same, as the equation named by `where` says."""
    a, b = root(a), root(b)
    if a is b:
        return
    if a.kind is not None and b.kind is None:
        a, b = b, a
    if a.kind is None:
        a._parent = b
        if a.reason:
            freeze(b, *a.reason)
        return
    if _aligned(a, b, where):
        # The one made of pieces stays: pieces of products can be cut further.
        a, b = (a, b) if b.kind == "sum" else (b, a)
        a._parent = b
        return
    for atom in (a, b):
        freeze(atom, f"{where} splits it in two ways", shape=True)


def _aligned(a: Atom, b: Atom, where: str) -> bool:
    if a.kind == b.kind == "product":
        return _aligned_factors(parts(a), parts(b), where)
    if not all(isinstance(leaf.size, int) for leaf in (*leaves(a), *leaves(b))):
        return False
    sizes = _common_pieces(a, b)
    for atom in (a, b):
        if cut(atom, sizes) is None:
            return False
    for x, y in zip(parts(a), parts(b), strict=True):
        join(x, y, where)
    return True


def _common_pieces(a: Atom, b: Atom) -> list[int]:
    """Sizes of the pieces between all places at which either is cut."""
    places = {0}
    for atom in (a, b):
        end = 0
        for piece in parts(atom) if atom.kind == "sum" else [atom]:
            end += piece.size
            places.add(end)
    ordered = sorted(places)
    return [high - low for low, high in zip(ordered, ordered[1:], strict=False)]


def cut(atom: Atom, sizes: Sequence[int]) -> list[Atom] | None:
    """Refines an atom into pieces of these sizes; None where they do not fit."""
    atom = root(atom)
    if len(sizes) == 1:
        return [atom]
    if atom.kind == "sum":
        return _cut_pieces(atom, sizes)
    if atom.kind == "product":
        first, *rest = parts(atom)
        inner = math.prod(a.size for a in rest)
        if any(size % inner for size in sizes):
            return None
        outer = cut(first, [size // inner for size in sizes])
        if outer is None:
            return None
        pieces = [product([piece, *rest]) for piece in outer]
    else:
        pieces = [Atom(size) for size in sizes]
        _inherit(atom, pieces)
    atom.kind, atom.parts = "sum", tuple(pieces)
    return pieces


def _cut_pieces(atom: Atom, sizes: Sequence[int]) -> list[Atom] | None:
    """The same of an atom that has pieces; each new size ends within one of them."""
    cut_pieces: list[Atom] = []
    wanted = list(sizes)
    for piece in parts(atom):
        own: list[int] = []
        while sum(own) < piece.size:
            if not wanted or sum(own) + wanted[0] > piece.size:
                return None
            own.append(wanted.pop(0))
        cuts = cut(piece, own)
        if cuts is None:
            return None
        cut_pieces += cuts
    return cut_pieces


def _aligned_factors(a: list[Atom], b: list[Atom], where: str) -> bool:
    a, b = list(a), list(b)
    while a and b:
        x, y = root(a.pop(0)), root(b.pop(0))
        if _is(x.size, y.size):
            join(x, y, where)
            continue
        if not (isinstance(x.size, int) and isinstance(y.size, int)):
            return False
        (x, a), (y, b) = sorted(((x, a), (y, b)), key=lambda pair: -pair[0].size)
        # x is the larger: its first factor is y, what is left goes on.
        if x.size % y.size or x.kind is not None:
            return False
        rest = Atom(x.size // y.size)
        x.kind, x.parts = "product", (y, rest)
        if x.reason:
            freeze(x, *x.reason)
        a.insert(0, rest)
    return not a and not b


def _inherit(atom: Atom, pieces: Sequence[Atom]) -> None:
    if atom.reason:
        for piece in pieces:
            piece.reason = atom.reason


def _is(a: Size, b: Size) -> bool:
    return a is b or bool(a == b)


def labels(atom: Atom, leaf: Atom) -> Int[np.ndarray, " size"]:
    """Which of a leaf's places every place of a dimension is; -1 for none."""
    atom = root(atom)
    if atom is leaf:
        return np.arange(atom.size)
    if atom.kind is None:
        return np.full(atom.size, -1)
    result = [labels(part, leaf) for part in atom.parts]
    if atom.kind == "sum":
        return np.concatenate(result)
    return functools.reduce(
        lambda a, b: np.maximum(a[:, None], b[None, :]).ravel(), result
    )
