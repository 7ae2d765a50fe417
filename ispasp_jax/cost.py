"""What a network costs: multiply-adds and parameters by counting, latency by timing."""

import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ispasp_jax.groups import Tree, leaves
from ispasp_jax.models.network import Network, Variables, group_names, shapes


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


class BySize(NamedTuple):
    """A cost as a function of the groups' sizes, exact where it is a sum of products of
    at most two of them, as multiply-adds and parameters are.

    Attributes:
      widths: the groups' widths, by name.
      full: the cost at these widths.
      slope: what a channel of each group costs there.
      product: what a channel more of one group adds to the cost of another's.
    """

    widths: dict[str, int]
    full: float
    slope: Float[np.ndarray, " g"]
    product: Float[np.ndarray, "g g"]

    def total(self, sizes: Mapping[str, int]) -> float:
        """The cost at these sizes."""
        less = self._less(sizes)
        return float(self.full + self.slope @ less + less @ self.product @ less / 2)

    def marginal(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """What a channel of each group costs at these sizes."""
        costs = self.slope + self.product @ self._less(sizes)
        return dict(zip(self.widths, costs.tolist(), strict=True))

    def _less(self, sizes):
        return np.array([sizes.get(n, w) - w for n, w in self.widths.items()], float)


def by_size(
    network: Network,
    input_shape: tuple[int, ...],
    measure: Callable[[nn.Module, dict, jax.ShapeDtypeStruct], float],
    step: Callable[[int], int] = lambda width: 1,
) -> BySize:
    """A cost by the groups' sizes, from the parts at their widths and a step below.

    Args:
      network: the network; parts that are equal are measured once.
      input_shape: (height, width, channels) of one image.
      measure: (module, shapes of its variables, shape of its input) -> cost.
      step: channels less, by width, for the finite differences.
    """
    x = jax.ShapeDtypeStruct((1, *input_shape), "float32")
    widths = network.group_widths()
    places = {name: g for g, name in enumerate(widths)}
    full, slope = 0.0, np.zeros(len(widths))
    product = np.zeros((len(widths), len(widths)))
    known: dict = {}

    def at(module, less):
        narrow = [w - less.get(i, 0) for i, w in enumerate(module.widths)]
        module = module.clone(widths=tuple(narrow)) if less else module
        return _known(known, module, x, measure)

    for part in network.chain():
        names = group_names(part)
        here = _known(known, part.module, x, measure)
        full += here
        steps = [step(w) if w > 1 else 0 for w in part.module.widths] if names else []
        single = {}
        for i, h in enumerate(steps):
            if h:
                single[i] = at(part.module, {i: h})
                slope[places[names[i]]] = (here - single[i]) / h
        for i, j in itertools.combinations(single, 2):
            both = at(part.module, {i: steps[i], j: steps[j]})
            mixed = (here - single[i] - single[j] + both) / (steps[i] * steps[j])
            g, h = places[names[i]], places[names[j]]
            product[g, h] = product[h, g] = mixed
        own = jax.eval_shape(part.module.init, jax.random.key(0), x)
        x = jax.eval_shape(part.module.apply, own, x)
    return BySize(widths, full, slope, product)


def _known(known, module, x, measure):
    if (module, x.shape) not in known:
        own = jax.eval_shape(module.init, jax.random.key(0), x)
        known[module, x.shape] = measure(module, own, x)
    return known[module, x.shape]


def macs_by_size(network: Network, input_shape: tuple[int, ...]) -> BySize:
    """Multiply-adds of one image by the groups' sizes."""

    def measure(module, own, x):
        return multiply_adds(module.apply, own, x)

    return by_size(network, input_shape, measure)


def parameters_by_size(network: Network, input_shape: tuple[int, ...]) -> BySize:
    """Parameters by the groups' sizes."""
    return by_size(network, input_shape, lambda module, own, x: parameters(own))


def latency_by_size(
    network: Network, input_shape: tuple[int, ...], batch_size: int
) -> BySize:
    """Milliseconds of a forward pass on the present device by the groups' sizes: every
    part timed at its widths and with a half of each group, linear between, and all of
    it brought to what the whole network takes.
    """

    def measure(module, own, x):
        own = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, leaf.dtype), own)
        images = jnp.ones((batch_size, *x.shape[1:]), x.dtype)
        forward = functools.partial(jax.jit(module.apply), own, images)
        # What else the machine does makes a pass slower, never faster.
        return 1e3 * min(seconds(forward, repeats=3) for _ in range(4))

    found = by_size(network, input_shape, measure, step=lambda width: width // 2)
    # Fewer channels that take longer are noise, or do not pay; none take some time.
    slope = np.maximum(found.slope, 0)
    all_of_it = slope @ np.array(list(found.widths.values()))
    slope *= min(1.0, found.full / max(all_of_it, 1e-30))
    x = jax.ShapeDtypeStruct((1, *input_shape), "float32")
    whole = measure(network, shapes(network, input_shape), x)
    return found._replace(
        full=whole,
        slope=slope * whole / found.full,
        product=np.zeros_like(found.product),
    )


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
