"""A model as something to run: its function in evaluation, its arrays, its inputs."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from ispasp_jax.errors import InputError
from ispasp_jax.graph import adapters


class Runnable(NamedTuple):
    """What is needed to run a model.

    Attributes:
      function: of (variables, *inputs).
      variables: arrays.
      inputs: examples or shapes, a batch of them each.
    """

    function: Callable[..., Any]
    variables: Any
    inputs: tuple[Any, ...]


def runnable(
    model: Any, variables: Any = None, inputs: Sequence[Any] | None = None
) -> Runnable:
    """A model as something to run.

    Args:
      model: what `load`, `prune` or `fold` gave, which knows its variables and inputs;
        or a model as `trace` takes it.
      variables: of a model that does not carry its own.
      inputs: examples or shapes.

    Raises:
      InputError: inputs or variables are missing, or the model is none.
    """
    if isinstance(model, Runnable) and variables is None and inputs is None:
        return model
    traced = getattr(model, "traced", None)
    if traced is not None and variables is None:
        function = getattr(model, "apply", None) or traced.function
        known = traced.inputs if inputs is None else inputs
        return Runnable(function, model.variables, tuple(known))
    function, variables = adapters.function(model, variables)
    if not inputs:
        raise InputError(
            "the inputs are not known: give examples or shapes of them, "
            "inputs=[jax.ShapeDtypeStruct((1, 32, 32, 3), 'float32')] for example."
        )
    return Runnable(function, jax.tree.map(jax.numpy.asarray, variables), tuple(inputs))
