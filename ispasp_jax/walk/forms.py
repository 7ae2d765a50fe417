"""The form of a contraction: which dimensions of what it reads, of its kernel and of
what it gives are examples, positions, channels.
"""

import functools
from typing import NamedTuple

from ispasp_jax.graph.atoms import Atom, leaves, parts, root
from ispasp_jax.graph.program import Equation, Value
from ispasp_jax.walk.flat import Flat


class Unsuited(Exception):
    """A contraction is no consumer in this form; the message says why, as a clause."""


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


@functools.lru_cache(1024)
def form(flat: Flat, eqn: Equation, side: int) -> Form:
    """A contraction's form.

    Args:
      flat: the program.
      eqn: the contraction.
      side: which of its operands is live.

    Raises:
      Unsuited: it has none: groups of features, or examples that mix.
    """
    if eqn.name == "dot_general":
        return _of_dot(flat, eqn, side)
    p, numbers = eqn.params, eqn.params["dimension_numbers"]
    if p["feature_group_count"] > 1 or p["batch_group_count"] > 1:
        raise Unsuited("it is a convolution in groups")
    if side == 1:
        raise Unsuited("its kernel is the activations")
    hidden, kernel = eqn.inputs
    lhs, rhs, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    return Form(
        (lhs[0], *lhs[2:], lhs[1]),
        (lhs[1],),
        (*rhs[2:], rhs[1], rhs[0]),
        tuple(kernel.shape[d] for d in rhs[2:]),
        (out[0], *out[2:], out[1]),
        1,
        _inner(flat, hidden, lhs[0]),
    )


def _of_dot(flat: Flat, eqn: Equation, side: int) -> Form:
    contracted, batch = eqn.params["dimension_numbers"]
    if batch[0]:
        raise Unsuited("its kernel differs from place to place")
    hidden, kernel = eqn.inputs[side], eqn.inputs[1 - side]
    own, theirs = contracted[side], contracted[1 - side]
    free = [d for d in range(len(hidden.shape)) if d not in own]
    examples = [d for d in free if _batch(flat) in leaves(hidden.dims[d])]
    if len(examples) != 1:
        raise Unsuited("examples cannot be told apart in what it reads")
    first = examples[0]
    ordered = (first, *(d for d in free if d != first))
    made = [d for d in range(len(kernel.shape)) if d not in theirs]
    start = 0 if side == 0 else len(made)
    places = {d: start + k for k, d in enumerate(free)}
    end = len(free) if side == 0 else 0
    features = tuple(range(end, end + len(made)))
    return Form(
        (*ordered, *own),
        tuple(own),
        (*theirs, *made),
        (),
        (*(places[d] for d in ordered), *features),
        len(made),
        _inner(flat, hidden, first),
    )


def _batch(flat: Flat) -> Atom:
    """Where the examples lie in the images."""
    return root(flat.inputs[0].dims[0])


def _inner(flat: Flat, hidden: Value, dim: int) -> int:
    """How many rows of a dimension belong to one example."""
    atom, batch = root(hidden.dims[dim]), _batch(flat)
    first = next((part for part in parts(atom) if part.size != 1), atom)
    whole = atom is batch or (atom.kind != "sum" and first is batch)
    if not whole and atom.size == batch.size == 1:
        return 1
    if not whole:
        raise Unsuited("examples cannot be told apart in what it reads")
    return atom.size // batch.size
