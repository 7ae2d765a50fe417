"""From a network to where it runs: each file is checked by running it against the
network in JAX before it is put in its place.

    stablehlo  a program of jax.export, any batch and platform
    onnx       its equations as ONNX operators, one rule a primitive
    push       a result of prune.py on the Hugging Face Hub, with a card
"""

import os
from collections.abc import Sequence
from typing import Any

from ispasp_jax.export import onnx_file, programs
from ispasp_jax.export.emission import EMITTERS, emits
from ispasp_jax.export.onnx_file import Written
from ispasp_jax.export.programs import Program
from ispasp_jax.export.publishing import push
from ispasp_jax.graph.runnable import runnable
from ispasp_jax.weights.stablehlo import PLATFORMS

__all__ = ["EMITTERS", "Program", "Written", "emits", "onnx", "push", "stablehlo"]


def onnx(
    model: Any,
    path: str | os.PathLike,
    variables: Any = None,
    inputs: Sequence[Any] | None = None,
    *,
    tolerance: float = 1e-5,
) -> Written:
    """Writes a network as an ONNX file, for any size of the batch.

    Args:
      model: what `load` or `prune` gave; or any model that `trace` takes.
      path: of the file.
      variables: of a model that does not carry its own.
      inputs: examples or shapes, a batch of them each; of what `load` or `prune` gave
        they are known.
      tolerance: the largest difference to the network in JAX that is accepted, as a
        share of its largest output.

    Returns:
      The path, the number of operators, and the largest difference that was found.

    Raises:
      InputError: inputs are missing, an equation cannot be written, the extra [onnx] is
        not installed, or the file does not compute what the network does.
    """
    return onnx_file.write(*runnable(model, variables, inputs), path, tolerance)


def stablehlo(
    model: Any,
    path: str | os.PathLike,
    variables: Any = None,
    inputs: Sequence[Any] | None = None,
    *,
    inside: bool = True,
    platforms: Sequence[str] = PLATFORMS,
    batch: int | None = None,
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
      tolerance: as `onnx` takes it.

    Returns:
      The paths, the platforms, and the largest difference that was found.

    Raises:
      InputError: inputs are missing, the program cannot be written for such a batch,
        or does not compute what the network does.
    """
    return programs.write(
        *runnable(model, variables, inputs),
        path,
        inside=inside,
        platforms=platforms,
        batch=batch,
        tolerance=tolerance,
    )
