"""Inputs to compare a file with the network on."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ispasp_jax.errors import InputError

#: Sizes of the batch: neither is the one that was traced.
BATCHES = (1, 3)


def largest_difference(
    function: Callable[..., Any],
    variables: Any,
    file: Callable[..., Sequence[Any]],
    inputs: Sequence[Any],
    batches: Sequence[int] = BATCHES,
) -> float:
    """The largest difference of what a file gives to what the network does, as a share
    of the largest output; infinite where shapes differ or numbers are none.

    Args:
      function: the network, of (variables, *inputs).
      variables: its arrays.
      file: runs the file on inputs, and gives its outputs.
      inputs: examples, or shapes: noise is drawn for these.
      batches: sizes of the batch to try.
    """
    draw, largest = np.random.default_rng(0), 0.0
    for batch in batches:
        given = [_example(draw, x, batch) for x in inputs]
        with jax.default_matmul_precision("highest"):
            expected = jax.tree.leaves(function(variables, *given))
        for ours, theirs in zip(expected, file(*given), strict=True):
            ours = np.asarray(ours, np.float64)
            theirs = np.asarray(theirs, np.float64)
            if ours.shape != theirs.shape:
                return np.inf
            scale = max(np.abs(ours).max(initial=0), 1e-30)
            error = np.abs(ours - theirs).max(initial=0) / scale
            largest = np.fmax(largest, np.inf if np.isnan(error) else error)
    return float(largest)


def check(
    function: Callable[..., Any],
    variables: Any,
    file: Callable[..., Sequence[Any]],
    inputs: Sequence[Any],
    tolerance: float,
    name: str,
    batches: Sequence[int] = BATCHES,
) -> float:
    """`largest_difference`, where it may be accepted.

    Raises:
      InputError: it is above the tolerance.
    """
    largest = largest_difference(function, variables, file, inputs, batches)
    if not largest <= tolerance:
        raise InputError(
            f"the {name} gives other outputs than the network in JAX: they differ by "
            f"{largest:.2g} of the largest output, and {tolerance:g} is allowed; "
            "nothing was written."
        )
    return largest


def example(like: Any, batch: int, seed: int = 0) -> np.ndarray:
    """An input of so many examples: those that were given, or noise."""
    return _example(np.random.default_rng(seed), like, batch)


def _example(draw, like, batch: int) -> np.ndarray:
    """The rows that were given, or noise; of integers, indices that exist."""
    if hasattr(like, "__array__"):
        return np.asarray(like)[np.resize(np.arange(len(like)), batch)]
    shape, dtype = (batch, *like.shape[1:]), np.dtype(like.dtype)
    if dtype.kind in "iu":
        return draw.integers(0, 2, shape).astype(dtype)
    return draw.normal(size=shape).astype(dtype)
