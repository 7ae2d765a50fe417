"""`narrow`: any function of the same variables, evaluated on narrower arrays.

The function is traced as it is, at full width, with whatever else it is given; its
equations are joined with the atoms of the variables, and evaluated one by one with the
sizes that the plan leaves. So it composes with jit, grad, vmap, shardings and
jax.export, and needs nothing of the user's module. Under jit it is traced once; without
it, at every call.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr
from jax.interpreters import ad

from ispasp_jax.errors import InputError
from ispasp_jax.graph import cut, rules
from ispasp_jax.graph.atoms import Atom, leaves, parts, root
from ispasp_jax.graph.cut import Masks, Plan
from ispasp_jax.graph.program import CALLS, Equation, Program, Value, program
from ispasp_jax.graph.rules import RULES
from ispasp_jax.graph.traced import Traced
from ispasp_jax.graph.trees import key_path
from ispasp_jax.graph.zeros import without


# Sixty-two lines: the function that it returns, and what that closes over.
def narrow(
    function: Callable[..., Any], traced: Traced, plan: Plan
) -> Callable[..., Any]:
    """The function on variables that the plan has cut.

    Args:
      function: of (variables, *others), pure; variables as the model's. Arrays among
        the others, and among what it gives, that lie under a variable's path (an
        optimizer's moments) are cut as the variable is.
      traced: the model's groups.
      plan: what stays.

    Returns:
      A function of (cut variables, *others). It composes with jit, grad, vmap and
      jax.export; under jit it is traced once for each shape.

    Raises:
      InputError: when called, if the function does something with cut channels that
        cannot be done with fewer.
    """
    masks = {atom: mask for atom, mask in traced.masks(plan).items() if mask.any()}
    gone = {path for branch in traced.gone(plan) for path in branch.paths}

    def owners_of(tree) -> list[str | None]:
        """The variables that leaves lie under the path of."""
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return [traced.owner(key_path(path)) for path, _ in leaves]

    def dims_of(owners) -> list[Sequence[Atom] | None]:
        return [traced.dims[owner] if owner else None for owner in owners]

    def at_full_width(leaf, owner):
        dims = traced.dims[owner] if owner else ()
        narrow = tuple(0 if owner in gone else cut.size(a, masks) for a in dims)
        if narrow and np.shape(leaf) == narrow:
            full = tuple(atom.size for atom in dims)
            return jax.ShapeDtypeStruct(full, jax.dtypes.result_type(leaf))
        return leaf

    @functools.wraps(function)
    def narrower(variables, *others):
        rest, tree = jax.tree.flatten(others)
        owners = owners_of(others)
        full = [at_full_width(*pair) for pair in zip(rest, owners, strict=True)]
        known = [
            None if leaf is given else owner
            for leaf, given, owner in zip(full, rest, owners, strict=True)
        ]
        closed, shape = jax.make_jaxpr(function, return_shape=True)(
            traced.variables, *jax.tree.unflatten(tree, full)
        )
        given, made = [*traced.dims, *known], owners_of(shape)
        zero = [owner in gone for owner in given]
        run = evaluator(closed, dims_of(given), masks, dims_of(made), zero)
        arrays = run(*jax.tree.leaves(variables), *rest)
        arrays = [
            cut.emptied(array, traced.dims[owner]) if owner in gone else array
            for array, owner in zip(arrays, made, strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(shape), arrays)

    return narrower


def evaluator(
    closed: ClosedJaxpr,
    dims: Sequence[Sequence[Atom] | None],
    masks: Masks,
    expected: Sequence[Sequence[Atom] | None] = (),
    zero: Sequence[bool] = (),
) -> Callable[..., list[Any]]:
    """The jaxpr as a function of narrower arrays.

    Args:
      closed: a jaxpr at full width.
      dims: the atoms of every input's dimensions, None where none are cut.
      masks: what stays of their leaves.
      expected: the atoms of the outputs' dimensions, where those that no equation
        ties to an input (a gradient that is zero) are to be cut, too.
      zero: of every input, whether it is gone: it is not read, and counts as zeros.

    Raises:
      InputError: it does something with a cut dimension that cannot be done narrower.
    """
    whole, own = _joined(closed, dims, masks, expected)
    if any(zero):
        pairs = zip(whole.inputs, zero, strict=True)
        whole = without(whole, [value for value, gone in pairs if gone])
    return functools.partial(evaluate, whole, own)


def attached(whole: Program, dims: Sequence[Sequence[Atom] | None]) -> dict[Atom, Atom]:
    """Joins a program's inputs with copies of these atoms and applies its rules; the
    copies, by atom."""
    copies: dict[Atom, Atom] = {}
    for value, atoms in zip(whole.inputs, dims, strict=True):
        if atoms is not None:
            value.dims = [_copied(atom, copies) for atom in atoms]
    rules.apply(whole.equations)
    return copies


def _joined(closed, dims, masks: Masks, expected=()) -> tuple[Program, Masks]:
    """The jaxpr as a program, and what stays of its own leaves."""
    whole = program(closed, derivatives=True)
    copies = attached(whole, dims)
    result: dict[Atom, np.ndarray] = {}
    for leaf, copy in copies.items():
        if leaf in masks:
            spread(copy, masks[leaf], result)
    for value, atoms in zip(whole.outputs, expected, strict=False):
        for free, atom in zip(value.dims, atoms or (), strict=False):
            mask = cut.of(atom, masks)
            if mask is not None and free.size == atom.size and not _tied(free, result):
                spread(free, mask, result)
    for leaf in result:
        if leaf.reason is not None and leaf.reason.shape:
            raise InputError(
                f"a dimension of {leaf.size} cannot be evaluated narrower: "
                f"{leaf.reason.text}; leave its group whole."
            )
    return whole, result


def _tied(atom: Atom, found: Masks) -> bool:
    return any(leaf in found or leaf.reason for leaf in leaves(atom))


def _copied(atom: Atom, seen: dict[Atom, Atom]) -> Atom:
    """A copy of the atom for another program; the same leaf is copied once."""
    atom = root(atom)
    if atom not in seen:
        members = [_copied(part, seen) for part in parts(atom)] if atom.kind else ()
        seen[atom] = Atom(atom.size, atom.kind, members)
    return seen[atom]


def spread(atom: Atom, mask: np.ndarray, found: dict[Atom, np.ndarray]) -> None:
    """Writes the mask of an atom as masks of its leaves.

    Raises:
      InputError: it is no mask of them, or they have another already.
    """
    atom = root(atom)
    if atom.kind is None:
        before = found.setdefault(atom, mask)
        if before.shape != mask.shape or (before != mask).any():
            raise InputError(
                f"the function makes two groups of {atom.size} channels one, and the "
                "plan keeps others of each; keep the same of both."
            )
        return
    members = parts(atom)
    if atom.kind == "sum":
        places = np.cumsum([part.size for part in members])[:-1]
        for part, piece in zip(members, np.split(mask, places, -1), strict=True):
            spread(part, piece, found)
        return
    grid = mask.reshape(*mask.shape[:-1], *(part.size for part in members))
    rows = mask.ndim - 1
    for axis, part in enumerate(members):
        others = tuple(rows + a for a in range(len(members)) if a != axis)
        spread(part, np.any(grid, others), found)
    made = cut.of(atom, found)
    if made is not None and (made != mask).any():
        raise InputError(
            f"the function splits {atom.size} channels into "
            f"{' x '.join(str(part.size) for part in members)}, and the plan keeps "
            "other channels of each; keep the same of all."
        )


def evaluate(whole: Program, masks: Masks, *arrays) -> list[Any]:
    """Goes through a program's equations with narrower arrays."""
    env: dict[Value, Any] = dict(zip(whole.inputs, arrays, strict=True))

    def read(value: Value):
        if value not in env:  # a literal, or closed over
            env[value] = cut.taken(value.constant, value.dims, masks)
        return env[value]

    for eqn in whole.equations:
        made = _step(eqn, masks, [read(value) for value in eqn.inputs])
        env.update(zip(eqn.outputs, made, strict=True))
    return [read(value) for value in whole.outputs]


def _step(eqn: Equation, masks: Masks, arrays: list) -> Sequence[Any]:
    touched = [a for v in (*eqn.inputs, *eqn.outputs) for a in v.dims]
    inside = any(_cuts(body, masks) for body in eqn.bodies)
    if inside or any(cut.of(atom, masks) is not None for atom in touched):
        if eqn.bodies:
            return _call(eqn, masks, arrays)
        rule = RULES.get(eqn.name)
        if rule and rule.narrow:
            size = functools.partial(cut.size, masks=masks)
            return _bind(eqn, arrays, **rule.narrow(eqn, size))
    return _bind(eqn, arrays)


def _cuts(body: Program, masks: Masks) -> bool:
    if not masks:
        return False
    read = (
        *body.inputs,
        *body.constants,
        *(v for e in body.equations for v in e.outputs),
    )
    return any(leaf in masks for v in read for a in v.dims for leaf in leaves(a))


def _bind(eqn: Equation, arrays, **changed) -> Sequence[Any]:
    params = eqn.primitive.get_bind_params({**eqn.params, **changed})
    made = eqn.primitive.bind(*arrays, **params)
    return made if eqn.primitive.multiple_results else [made]


def _call(eqn: Equation, masks: Masks, arrays: list) -> Sequence[Any]:
    """A call with its bodies narrower."""
    if eqn.name == "custom_jvp_call":
        return _custom_jvp(eqn, masks)(*arrays)
    if eqn.name == "custom_vjp_call":
        return _custom_vjp(eqn, masks)(*arrays)
    bodies = [jaxpr_of(body, masks) for body in eqn.bodies]
    if eqn.name == "cond":
        return _bind(eqn, arrays, branches=tuple(bodies))
    if eqn.name == "scan":
        return _bind(eqn, arrays, jaxpr=bodies[0])
    if eqn.name == "while":
        return _bind(eqn, arrays, cond_jaxpr=bodies[0], body_jaxpr=bodies[1])
    (name,) = (CALLS[eqn.name],)
    inner = bodies[0] if isinstance(eqn.params[name], ClosedJaxpr) else bodies[0].jaxpr
    return _bind(eqn, [*bodies[0].consts, *arrays], **{name: inner})


def jaxpr_of(body: Program, masks: Masks) -> ClosedJaxpr:
    """A program as a jaxpr of what stays."""
    shapes = [
        value.aval.update(shape=tuple(cut.size(a, masks) for a in value.dims))
        for value in body.inputs
    ]
    function = functools.partial(evaluate, body, masks)
    return jax.make_jaxpr(function)(*shapes)


def _custom_jvp(eqn: Equation, masks: Masks):
    """The call with its own derivative, both narrower."""
    consts = eqn.params["num_consts"]
    dims = [value.dims for value in eqn.inputs[consts:]]
    function = jax.custom_jvp(
        lambda *arrays: tuple(evaluate(eqn.bodies[0], masks, *arrays))
    )
    zeros = [False] * len(dims)

    @function.defjvp
    def jvp(primals, tangents):
        jaxpr, closed_over, zero = eqn.params["jvp_jaxpr_fun"].call_wrapped(*zeros)
        inner = evaluator(ClosedJaxpr(jaxpr, closed_over), [*dims, *dims], masks)
        made = inner(*primals[consts:], *tangents[consts:])
        out, moved = made[: len(zero)], iter(made[len(zero) :])
        return tuple(out), tuple(
            jax.numpy.zeros_like(a) if is_zero else next(moved)
            for a, is_zero in zip(out, zero, strict=True)
        )

    return function


def _custom_vjp(eqn: Equation, masks: Masks):
    dims = [value.dims for value in eqn.inputs]
    function = jax.custom_vjp(
        lambda *arrays: tuple(evaluate(eqn.bodies[0], masks, *arrays))
    )

    thunk = eqn.params["fwd_jaxpr_thunk"]
    jaxpr, closed_over = thunk.call_wrapped(*[True] * len(dims))
    whole, inside = _joined(ClosedJaxpr(jaxpr, closed_over), dims, masks)
    count = len(whole.outputs) - len(eqn.outputs)

    def forward(*arrays):
        made = evaluate(whole, inside, *arrays)
        return tuple(made[count:]), tuple(made[:count])

    def at_full_width(*arrays):
        moved = eqn.params["bwd"].call_wrapped(*arrays)
        return [ad.instantiate_zeros(one) for one in moved]

    def backward(kept, cotangents):
        back = jax.make_jaxpr(at_full_width)(*(v.aval for v in whole.outputs))
        given = [value.dims for value in whole.outputs]
        return tuple(evaluator(back, given, inside)(*kept, *cotangents))

    function.defvjp(forward, backward)
    return function
