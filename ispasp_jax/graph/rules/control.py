"""Equations with programs inside: calls, branches and loops."""

from collections.abc import Sequence

from ispasp_jax.graph.atoms import POSITIONS, Atom, freeze, join
from ispasp_jax.graph.program import Equation, Value
from ispasp_jax.graph.rules.rule import apply, rule, same


def _inside(eqn: Equation, body: int, given: Sequence[Value], out: Sequence[Value]):
    """Applies a body's rules, joined with what it is given and what it gives."""
    inner = eqn.bodies[body]
    for a, b in zip(given, inner.inputs, strict=True):
        b.live, b.origin, b.maker = a.live, a.origin, a.maker
        same(eqn, a, b)
    apply(inner.equations)
    for a, b in zip(inner.outputs, out, strict=True):
        same(eqn, a, b)
        b.live |= a.live


@rule("cond")
def cond(eqn: Equation) -> None:
    for body in range(len(eqn.bodies)):
        _inside(eqn, body, eqn.inputs[1:], eqn.outputs)


@rule("remat", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call")
def call(eqn: Equation) -> None:
    _inside(eqn, 0, eqn.inputs, eqn.outputs)


@rule("while")
def while_(eqn: Equation) -> None:
    c, b = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    carry = eqn.inputs[c + b :]
    for a, out in zip(carry, eqn.outputs, strict=True):
        same(eqn, a, out)
    _inside(eqn, 0, (*eqn.inputs[:c], *carry), eqn.bodies[0].outputs)
    _inside(eqn, 1, eqn.inputs[c:], eqn.outputs)


@rule("scan")
def scan(eqn: Equation) -> None:
    """Constants, carry, and slices of what is scanned over. A leaf that lives in the
    slices alone is a channel of every layer by itself (facts.py)."""
    inner = eqn.bodies[0]
    consts, carried = eqn.params["num_consts"], eqn.params["num_carry"]
    fed = consts + carried
    layers = Atom(eqn.params["length"])
    freeze(layers, POSITIONS, shape=True)
    for place, (a, b) in enumerate(zip(eqn.inputs, inner.inputs, strict=True)):
        b.live, b.origin, b.maker = a.live, a.origin, b
        dims = a.dims
        if place >= fed:
            join(dims[0], layers, eqn.where)
            dims = dims[1:]
        for x, y in zip(dims, b.dims, strict=True):
            join(x, y, eqn.where)
    for value in inner.inputs[consts:fed]:
        value.live, value.origin = True, None
    apply(inner.equations)
    for place, (a, out) in enumerate(zip(inner.outputs, eqn.outputs, strict=True)):
        dims = out.dims
        if place < carried:
            same(eqn, a, inner.inputs[consts + place])
        else:
            join(dims[0], layers, eqn.where)
            dims = dims[1:]
        for x, y in zip(a.dims, dims, strict=True):
            join(x, y, eqn.where)
        out.live |= a.live
    eqn.memo = layers
