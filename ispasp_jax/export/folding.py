"""Batch norms folded into what is before them, for inference.

    ((x * K) - mean) * scale + bias   =   x * (K scale) + (bias - mean scale)

Whatever is affine behind a convolution or a product with weights, place by place and
alike at all positions, becomes part of its kernel and one vector that is added.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ispasp_jax import graph
from ispasp_jax.export.equations import equations
from ispasp_jax.graph.program import Equation, Value
from ispasp_jax.graph.runnable import Runnable
from ispasp_jax.walk import sites
from ispasp_jax.walk.flat import Flat, arrays, flatten
from ispasp_jax.walk.pieces import compiled, evaluate, piece
from ispasp_jax.walk.sites import Site


class Fold(NamedTuple):
    """A contraction with what is behind it.

    Attributes:
      place: of the contraction among the equations.
      end: of the last equation that it takes the place of.
      operand: which of the contraction's the kernel is.
      name: of its kernel.
      features: the axes of its output that the kernel makes.
      kernel: as it is read, the gain in it.
      shift: what is added, of the features alone.
    """

    place: int
    end: int
    operand: int
    name: str
    features: tuple[int, ...]
    kernel: Array
    shift: Array


def fold(
    function: Callable[..., Any], variables: Any, inputs: Sequence[Any]
) -> Runnable:
    """The function with fewer equations.

    Args:
      function: the network in evaluation, of (variables, *inputs).
      variables: arrays.
      inputs: shapes and dtypes, a batch of them each.

    Returns:
      A function of (its arrays, *inputs), for any size of the batch that the function
      takes; the arrays by the key paths of the variables, with `/shift` behind a
      kernel's for what is added; and the inputs.
    """
    flat = flatten(graph.trace(function, variables, *inputs))
    folds = {one.place: one for one in _folds(flat, arrays(flat, variables))}
    needed = _needed(flat, folds)
    leaves = dict(zip(flat.variables, jax.tree.leaves(variables), strict=True))
    read = {v for p in needed - {*folds} for v in _read(flat.equations[p])}
    read |= {*flat.outputs}
    kept = {name: leaves[name] for name, v in flat.variables.items() if v in read}
    for one in folds.values():
        kept |= {one.name: one.kernel, f"{one.name}/shift": one.shift}
    shapes = jax.tree.map(_shape, variables)

    def folded(given: Mapping[str, Any], *images: Any) -> Any:
        whole = equations(function, shapes, [*map(_shape, images)])
        tree = jax.tree.structure(jax.eval_shape(function, shapes, *images))
        env: dict[Value, Any] = {
            value: given[name]
            for name, value in zip(leaves, whole.inputs, strict=False)
            if name in given
        }
        env |= dict(zip(whole.inputs[len(leaves) :], images, strict=True))
        for place in sorted(needed):
            eqn = whole.equations[place]
            if place not in folds:
                evaluate([eqn], [], env)
                continue
            one = folds[place]
            own = {**env, eqn.inputs[one.operand]: given[one.name]}
            (made,) = evaluate([eqn], eqn.outputs, own)
            shift = given[f"{one.name}/shift"]
            others = [d for d in range(made.ndim) if d not in one.features]
            result = made + jnp.expand_dims(shift, others)
            env[whole.equations[one.end].outputs[0]] = result
        return jax.tree.unflatten(tree, evaluate([], whole.outputs, env))

    return Runnable(folded, kept, tuple(inputs))


def _folds(flat: Flat, weights: Mapping[Value, Array]) -> Iterator[Fold]:
    """What is folded, in order."""
    names = set()
    for place, eqn in enumerate(flat.equations):
        features = _features(eqn)
        if features is None:
            continue
        site = sites.site(flat, place)
        found = _affine(site, weights, features[0])
        if found is None:
            continue
        end, gain, shift = found
        own, wanted = features
        step = piece(flat, [site.kernel])
        (kernel,) = step.run([], [_held(v, weights) for v in step.weights])
        others = [d for d in range(kernel.ndim) if d not in wanted]
        kernel = kernel * jnp.expand_dims(gain, others)
        name = site.kernel.origin or "kernel"
        if name in names or _shared(flat, site):
            name = f"{name}/{place}"
        names.add(name)
        yield Fold(place, end, 1 - site.side, name, own, kernel, shift)


def _shared(flat: Flat, site: Site) -> bool:
    """Whether others read the variable that the kernel is made of."""
    value = flat.variables.get(site.kernel.origin or "")
    return value is None or len(flat.readers.get(value, [])) != 1


def _features(eqn: Equation) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Axes of the output that the kernel makes, and which of the kernel's they are, in
    one order; None where it is no product of activations with weights.
    """
    if eqn.name not in ("conv_general_dilated", "dot_general"):
        return None
    live = [value.live for value in eqn.inputs]
    if live.count(True) != 1:
        return None
    if eqn.name == "conv_general_dilated":
        numbers = eqn.params["dimension_numbers"]
        if not live[0] or eqn.params["batch_group_count"] != 1:
            return None
        return (numbers.out_spec[1],), (numbers.rhs_spec[0],)
    contracted, batch = eqn.params["dimension_numbers"]
    if batch[0]:
        return None
    side = live.index(False)
    free = [d for d in range(len(eqn.inputs[side].shape)) if d not in contracted[side]]
    first = 0 if side == 0 else len(eqn.outputs[0].shape) - len(free)
    return tuple(range(first, first + len(free))), tuple(free)


def _affine(
    site: Site, weights: Mapping[Value, Array], features: Sequence[int]
) -> tuple[int, Float[Array, "*o"], Float[Array, "*o"]] | None:
    """The place of the last equation that can be folded, gain and shift of every
    feature; None where nothing is gained.
    """
    start, chain = site.equation.outputs[0], []
    for eqn in site.chain:
        (out,) = eqn.outputs
        if not sites.is_placewise(eqn, _before(eqn)) or out.aval != start.aval:
            break
        chain.append(eqn)
    while chain:
        end = chain[-1].outputs[0]
        gain, shift = (
            _alike(array, features) for array in _ends(site.flat, start, end, weights)
        )
        if gain is not None and shift is not None:
            if len(chain) == 1 and bool((gain == 1).all()):
                return None  # a bias is one equation already
            return site.flat.made[end], gain, shift
        chain.pop()
    return None


def _ends(
    flat: Flat, start: Value, end: Value, weights: Mapping[Value, Array]
) -> tuple[Array, Array]:
    """How a value moves with another that it is affine in, and what it is at zero."""
    step = piece(flat, [end], [start])

    def ends(known):
        zeros = jnp.zeros(start.shape, start.aval.dtype)
        run = jax.jvp(lambda array: step.run([array], known)[0], (zeros,), (zeros + 1,))
        return run[::-1]

    run = compiled(("affine", step.text), lambda: ends)
    return run([_held(value, weights) for value in step.weights])


def _before(eqn: Equation) -> Value:
    return next(value for value in eqn.inputs if value.live)


def _alike(array: Array, features: Sequence[int]) -> Array | None:
    """What every feature has, if it has the same everywhere."""
    others = [d for d in range(array.ndim) if d not in features]
    moved = np.moveaxis(np.asarray(array), others, range(len(others)))
    rows = moved.reshape(math.prod(moved.shape[: len(others)]), -1)
    if not (rows == rows[0]).all():
        return None
    return jnp.asarray(rows[0].reshape(moved.shape[len(others) :]))


def _needed(flat: Flat, folds: Mapping[int, Fold]) -> set[int]:
    """Places of the equations that are computed, folded ones by their contraction's."""
    made = dict(flat.made)
    for one in folds.values():
        made[flat.equations[one.end].outputs[0]] = one.place
    ahead, needed = [*flat.outputs], set()
    while ahead:
        place = made.get(ahead.pop())
        if place is None or place in needed:
            continue
        needed.add(place)
        eqn = flat.equations[place]
        kernel = eqn.inputs[folds[place].operand] if place in folds else None
        ahead += [value for value in _read(eqn) if value is not kernel]
    return needed


def _read(eqn: Equation) -> tuple[Value, ...]:
    return (eqn.choice or eqn).inputs


def _held(value: Value, weights: Mapping[Value, Array]) -> Any:
    return weights[value] if value in weights else value.constant


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jax.dtypes.result_type(leaf))
