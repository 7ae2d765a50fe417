"""A network as a StableHLO program, checked by running it."""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ispasp_jax import files
from ispasp_jax.export import examples
from ispasp_jax.graph.trees import leaves
from ispasp_jax.weights import tensors
from ispasp_jax.weights.stablehlo import PLATFORMS, read, stored


class Program(NamedTuple):
    """A StableHLO file.

    Attributes:
      path: where it lies.
      arrays: the safetensors file beside it, unless the weights are inside.
      platforms: where it runs.
      largest_difference: of its outputs to the network's, on random inputs, as a share
        of the largest output.
    """

    path: Path
    arrays: Path | None
    platforms: tuple[str, ...]
    largest_difference: float


def write(
    function: Callable[..., Any],
    variables: Any,
    inputs: Sequence[Any],
    path: str | os.PathLike,
    *,
    inside: bool = True,
    platforms: Sequence[str] = PLATFORMS,
    batch: int | None = None,
    tolerance: float = 1e-5,
) -> Program:
    """Writes a function of (variables, *inputs) as a program, and runs what it wrote.

    Args:
      function: the network, pure.
      variables: arrays.
      inputs: shapes and dtypes; the first axis of each is the batch.
      path: of the file; one that is there is replaced, or stays as it is.
      inside: the weights are constants of the program, which is then a function of the
        inputs; if not, they are arguments by key path, and lie in a safetensors file
        beside it.
      platforms: where it is to run, by jax's names.
      batch: examples a pass; None: any.
      tolerance: the largest difference to the network that is accepted, as a share of
        its largest output.

    Raises:
      InputError: it cannot be written, or does not compute what the network does.
    """
    path = Path(path)
    traced = functools.partial(stored, platforms=platforms, batch=batch)
    if inside:
        held = jax.tree.map(jax.numpy.asarray, variables)
        made = traced(lambda _, *x: function(held, *x), {}, *inputs)
    else:
        made = traced(function, variables, *inputs)
    known = dict(leaves(variables))
    arrays = {name: np.asarray(known[name]) for name in made.variables}
    beside = None if inside else path.with_suffix(".safetensors")
    with files.new_file(path) as new:
        made.write(new)
        again = read(new)
        largest = examples.check(
            jax.jit(function),
            variables,
            lambda *x: jax.tree.leaves(again.apply(arrays, *x)),
            inputs,
            tolerance,
            "program",
            examples.BATCHES if batch is None else (batch,),
        )
        if beside is not None:
            tensors.write_whole(beside, arrays, {})
    return Program(path, beside, tuple(platforms), largest)
