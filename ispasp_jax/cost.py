"""What a network costs: multiply-adds and parameters by counting, latency by timing."""

import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from ispasp_jax.groups import Tree, leaves
from ispasp_jax.models.network import Network, Variables


def multiply_adds(function: Callable, *arguments) -> int:
    """Multiply-adds of the convolutions and dot products that a function traces to.

    Padding taps count, as in published figures; of a conditional, the branch with the
    most; a loop's body once for each turn. Nothing is compiled or computed.

    Args:
      function: a JAX function.
      *arguments: arrays or jax.ShapeDtypeStruct.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def macs(network: Network, variables: Tree, input_shape: tuple[int, ...]) -> int:
    """Multiply-adds of one image, counted on plain convolutions.

    Args:
      network: any network.
      variables: its variables, or their shapes.
      input_shape: (height, width, channels) of the image.
    """
    image = jax.ShapeDtypeStruct((1, *input_shape), "float32")
    return multiply_adds(network.apply, variables, image)


def parameters(variables: Tree) -> int:
    """How many parameters, batch statistics not among them."""
    return sum(math.prod(leaf.shape) for _, leaf in leaves(variables["params"]))


def seconds(function: Callable, *arguments, repeats: int = 5) -> float:
    """Median seconds of a call after one that warms up, results waited for."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def latencies(
    models: Sequence[tuple[Network, Variables]],
    input_shape: tuple[int, ...],
    batch_size: int = 1,
    repeats: int = 9,
) -> list[float]:
    """Median milliseconds of a forward pass of each network on the present device.

    The networks take turns, so that what else the machine does slows all of them alike.

    Args:
      models: networks and their variables.
      input_shape: (height, width, channels) of an image.
      batch_size: images a pass.
      repeats: how many passes are timed, after one that compiles.
    """
    images = jax.device_put(np.zeros((batch_size, *input_shape), np.float32))
    passes = [
        functools.partial(jax.jit(network.apply), jax.device_put(variables), images)
        for network, variables in models
    ]
    times = [
        [seconds(forward, repeats=1) for forward in passes] for _ in range(repeats)
    ]
    return [1e3 * statistics.median(column) for column in zip(*times, strict=True)]


def _count(jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation) -> int:
    name = equation.primitive.name
    if name == "conv_general_dilated":
        out, kernel = equation.outvars[0].aval, equation.invars[1].aval
        features = equation.params["dimension_numbers"].rhs_spec[0]
        return out.size * kernel.size // kernel.shape[features]
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval
        return equation.outvars[0].aval.size * math.prod(
            left.shape[axis] for axis in contracted
        )
    inner = [
        _count(getattr(value, "jaxpr", value))
        for parameter in equation.params.values()
        for value in (parameter if isinstance(parameter, tuple) else (parameter,))
        if hasattr(getattr(value, "jaxpr", value), "eqns")
    ]
    if name == "cond":
        return max(inner)
    return sum(inner) * equation.params.get("length", 1)
