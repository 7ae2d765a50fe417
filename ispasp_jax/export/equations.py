"""A function's equations, those marked that depend on its inputs."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr
from jax.interpreters import partial_eval

from ispasp_jax.graph.program import Program, program
from ispasp_jax.walk.flat import unrolled


def equations(
    function: Callable[..., Any], variables: Any, inputs: Sequence[Any]
) -> Program:
    """The equations that its outputs need, scans opened, in an order that does not
    depend on the size of the batch.

    Args:
      function: of (variables, *inputs).
      variables: arrays or shapes.
      inputs: shapes and dtypes.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables)
    closed = jax.make_jaxpr(function)(shapes, *inputs)
    used = [True] * len(closed.jaxpr.outvars)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, used, instantiate=True)
    whole = program(ClosedJaxpr(jaxpr, closed.consts))
    live = set(whole.inputs[len(jax.tree.leaves(variables)) :])
    for eqn in whole.equations:
        if live & {*eqn.inputs}:
            live |= {*eqn.outputs}
    for value in live:
        value.live = True
    return unrolled(whole)


def sized(inputs: Sequence[Any], batch: int) -> list[jax.ShapeDtypeStruct]:
    """Shapes of inputs for a batch of this size."""
    return [jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in inputs]
