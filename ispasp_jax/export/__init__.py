"""From a network to where it runs: each file is checked by running it against the
network in JAX before it is put in its place.

    stablehlo  a program of jax.export, any batch and platform
    onnx       its equations as ONNX operators, one rule a primitive
    push       a result of prune.py on the Hugging Face Hub, with a card
"""

import os
from collections.abc import Sequence
from typing import Any

import jax

from ispasp_jax.export import examples, folding, onnx_file, programs
from ispasp_jax.export.emission import EMITTERS, emits
from ispasp_jax.export.onnx_file import Written
from ispasp_jax.export.programs import Program
from ispasp_jax.export.publishing import push
from ispasp_jax.graph.runnable import Runnable, runnable
from ispasp_jax.weights.stablehlo import PLATFORMS

__all__ = [
    "EMITTERS",
    "Program",
    "Runnable",
    "Written",
    "emits",
    "fold",
    "onnx",
    "push",
    "stablehlo",
]


def fold(
    model: Any,
    variables: Any = None,
    inputs: Sequence[Any] | None = None,
    *,
    tolerance: float = 1e-5,
) -> Runnable:
    """Folds what is affine behind a convolution or a product with weights, batch norms
    above all, into its kernel and one vector that is added: the same outputs from fewer
    equations, for inference alone.

    Args:
      model: what `load` or `prune` gave; or any model that `trace` takes.
      variables: of a model that does not carry its own.
      inputs: examples or shapes, as `onnx` takes them.
      tolerance: as `onnx` takes it.

    Returns:
      A function of (its variables, *inputs), its variables by key path, and the inputs:
      for jit, or again for `onnx`, `stablehlo` and `latency`.

    Raises:
      InputError: inputs are missing, or the function gives other outputs.
    """
    given = runnable(model, variables, inputs)
    result = folding.fold(*given)
    compiled = jax.jit(result.function)
    examples.check(
        jax.jit(given.function),
        given.variables,
        lambda *x: jax.tree.leaves(compiled(result.variables, *x)),
        given.inputs,
        tolerance,
        "folded network",
    )
    return result


_folded = fold  # where an argument has that name


def onnx(
    model: Any,
    path: str | os.PathLike,
    variables: Any = None,
    inputs: Sequence[Any] | None = None,
    *,
    fold: bool = False,
    tolerance: float = 1e-5,
) -> Written:
    """Writes a network as an ONNX file, for any size of the batch.

    Args:
      model: what `load` or `prune` gave; or any model that `trace` takes.
      path: of the file.
      variables: of a model that does not carry its own.
      inputs: examples or shapes, a batch of them each; of what `load` or `prune` gave
        they are known.
      fold: write what `fold` makes of it.
      tolerance: the largest difference to the network in JAX that is accepted, as a
        share of its largest output.

    Returns:
      The path, the number of operators, and the largest difference that was found.

    Raises:
      InputError: inputs are missing, an equation cannot be written, the extra [onnx] is
        not installed, or the file does not compute what the network does.
    """
    wanted = _folded if fold else runnable
    return onnx_file.write(*wanted(model, variables, inputs), path, tolerance)


# Nine parameters, all but two with a default: each is an option of the file.
def stablehlo(
    model: Any,
    path: str | os.PathLike,
    variables: Any = None,
    inputs: Sequence[Any] | None = None,
    *,
    inside: bool = True,
    platforms: Sequence[str] = PLATFORMS,
    batch: int | None = None,
    fold: bool = False,
    tolerance: float = 1e-5,
) -> Program:
    """Writes a network as a StableHLO program (jax.export), for any size of the batch
    unless one is given.

    Args:
      model: what `load` or `prune` gave; or any model that `trace` takes.
      path: of the file.
      variables: of a model that does not carry its own.
      inputs: examples or shapes, as `onnx` takes them.
      inside: the weights are constants of the program; if not, they lie in a
        safetensors file beside it, and are arguments by key path.
      platforms: where it is to run, by jax's names.
      batch: examples a pass, for compilers that want every shape known; None: any.
      fold: as `onnx` takes it.
      tolerance: as `onnx` takes it.

    Returns:
      The paths, the platforms, and the largest difference that was found.

    Raises:
      InputError: inputs are missing, the program cannot be written for such a batch,
        or does not compute what the network does.
    """
    wanted = _folded if fold else runnable
    return programs.write(
        *wanted(model, variables, inputs),
        path,
        inside=inside,
        platforms=platforms,
        batch=batch,
        tolerance=tolerance,
    )
