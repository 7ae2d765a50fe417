"""A jaxpr as a flat list of equations between values with identity.

A jaxpr object may be called many times, so its variables say nothing of who called it:
every call is inlined with fresh values. What has to stay whole (a scan, a branch that
the platform decides) keeps its body as a program of its own.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax._src import source_info_util
from jax.extend.core import ClosedJaxpr, Literal

from ispasp_jax.graph.atoms import Atom

#: An array on the devices or on the host.
AnyArray = jax.Array | np.ndarray

#: Calls that are nothing but their jaxpr, by the parameter that holds it.
CALLS: Mapping[str, str] = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}
#: Calls that a derivative treats in a way of their own.
DERIVATIVES = ("remat", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call")


class Value:
    """An array on its way through a program.

    Attributes:
      aval: its shape and dtype.
      dims: the atom of every dimension.
      constant: the array, where it is known: a literal, or closed over.
      live: it depends on the inputs, not on the variables alone.
      origin: the variable that it is made of, where it is made of weights alone.
      maker: what made it, where the equations since only changed it.
    """

    __slots__ = ("aval", "dims", "constant", "live", "origin", "maker")

    def __init__(self, aval, constant: Any = None):
        self.aval = aval
        self.dims = [Atom(size) for size in getattr(aval, "shape", ())]
        self.constant = constant
        self.live = False
        self.origin: str | None = None
        self.maker: Any = self

    @property
    def shape(self) -> tuple:
        return self.aval.shape


@dataclasses.dataclass(eq=False)
class Equation:
    """One step of a program.

    Attributes:
      primitive: what is done.
      params: its parameters, as traced.
      inputs: what it reads.
      outputs: what it gives.
      where: primitive and source line, for people.
      bodies: programs inside.
      memo: what its rule found and narrowing asks for.
      choice: where the platform decides what is computed, the equation that leaves it
        to the platform; this one is then the default's.
    """

    primitive: Any
    params: dict[str, Any]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    where: str
    bodies: tuple["Program", ...] = ()
    memo: Any = None
    choice: "Equation | None" = None

    @property
    def name(self) -> str:
        return self.primitive.name


class Program(NamedTuple):
    """Equations in order.

    Attributes:
      inputs: values that are given.
      constants: values that were closed over.
      equations: every later one may read what an earlier one gives.
      outputs: values that come back.
    """

    inputs: tuple[Value, ...]
    constants: tuple[Value, ...]
    equations: tuple[Equation, ...]
    outputs: tuple[Value, ...]


def program(closed: ClosedJaxpr, derivatives: bool = False) -> Program:
    """The jaxpr as a program.

    Args:
      closed: what jax.make_jaxpr gives.
      derivatives: keep calls with a derivative of their own (custom_jvp, remat) and
        all branches whole; if not they are inlined, and where the platform decides the
        branch, the default one.
    """
    inputs = tuple(Value(v.aval) for v in closed.jaxpr.invars)
    constants: list[Value] = []
    equations: list[Equation] = []
    outputs = _inline(closed, inputs, constants, equations, derivatives)
    return Program(inputs, tuple(constants), tuple(equations), tuple(outputs))


def _inline(
    closed, inputs, constants, equations, derivatives, caller=""
) -> list[Value]:
    jaxpr, consts = closed.jaxpr, closed.consts
    env: dict[Any, Value] = {}

    def read(atom) -> Value:
        if isinstance(atom, Literal):
            return Value(atom.aval, atom.val)
        return env[atom]

    for variable, array in zip(jaxpr.constvars, consts, strict=True):
        env[variable] = Value(variable.aval, array)
        constants.append(env[variable])
    env.update(zip(jaxpr.invars, inputs, strict=True))
    for eqn in jaxpr.eqns:
        given = [read(atom) for atom in eqn.invars]
        inner = _called(eqn, derivatives)
        if inner is not None:
            here, before = _source(eqn) or caller, len(equations)
            passed = given[1:] if eqn.primitive.name == "cond" else given
            made = _inline(inner, passed, constants, equations, derivatives, here)
            one = equations[-1] if len(equations) == before + 1 else None
            if eqn.primitive.name == "cond" and one and [*one.outputs] == made:
                one.choice = _equation(eqn, given, made, "")
        else:
            made = [Value(v.aval) for v in eqn.outvars]
            where = f"{eqn.primitive.name} ({_source(eqn) or caller})"
            bodies = tuple(program(body, derivatives) for body in _bodies(eqn))
            equations.append(_equation(eqn, given, made, where, bodies))
        env.update(zip(eqn.outvars, made, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _equation(eqn, given, made, where: str, bodies=()) -> Equation:
    params = dict(eqn.params)
    return Equation(eqn.primitive, params, tuple(given), tuple(made), where, bodies)


def _called(eqn, derivatives):
    """The jaxpr that an equation merely calls; of branches by platform, the default."""
    name = eqn.primitive.name
    if name == "cond" and not derivatives:
        if eqn.params.get("branches_platforms"):
            return eqn.params["branches"][-1]
    if name in CALLS and not (derivatives and name in DERIVATIVES):
        return _closed(eqn.params[CALLS[name]])
    return None


def _bodies(eqn) -> Iterator[ClosedJaxpr]:
    name = eqn.primitive.name
    if name == "cond":
        yield from eqn.params["branches"]
    elif name == "scan":
        yield eqn.params["jaxpr"]
    elif name == "while":
        yield eqn.params["cond_jaxpr"]
        yield eqn.params["body_jaxpr"]
    elif name in CALLS:
        yield _closed(eqn.params[CALLS[name]])


def _closed(jaxpr) -> ClosedJaxpr:
    if isinstance(jaxpr, ClosedJaxpr):
        return jaxpr
    return ClosedJaxpr(jaxpr, ())


def _source(eqn) -> str:
    """Source line, behind the module where the framework names it; empty if unknown."""
    line = source_info_util.summarize(eqn.source_info).partition(" (")[0]
    module = str(eqn.source_info.name_stack)
    line = line.rpartition("site-packages/")[-1]
    return f"{module}, {line}" if module and line else line


def equations(whole: Program) -> Iterator[Equation]:
    """All equations, those of bodies behind the one that holds them."""
    for eqn in whole.equations:
        yield eqn
        for body in eqn.bodies:
            yield from equations(body)


def values(whole: Program) -> Iterator[Value]:
    """All values of a program, those of its bodies left out."""
    yield from (*whole.inputs, *whole.constants)
    for eqn in whole.equations:
        yield from eqn.outputs
