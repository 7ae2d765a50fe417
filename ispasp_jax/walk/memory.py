"""How much memory a walk will take, before it takes any."""

import math

from ispasp_jax.graph import Traced
from ispasp_jax.walk import flat, layouts, sites

#: Square matrices of second moments at a time: two folds, their sum, what is solved.
_MATRICES = 5


def estimate(
    traced: Traced, count: int, *, least_squares: bool = True, limit: int | None = None
) -> int:
    """Bytes that a walk (or, without least squares, curves or a criterion without
    moments) will hold at most, about: what is alive of all images between two
    equations, and second moments.

    Args:
      traced: the model.
      count: how many images.
      least_squares: as a repair, or for a criterion that needs them: the dense network
        is carried beside, and second moments are summed.
      limit: `memory` of the walk: what activations may take, on one device.
    """
    program = flat.flatten(traced)
    batch = program.inputs[0].shape[0]
    result = [
        site
        for site in sites.suited(program)
        if any(next(sites.of_leaf([site], g.atom), None) for g in traced.groups)
    ]
    alive = max((program.size(site.place) for site in result), default=0)
    activations = math.ceil(alive / batch) * count * (2 if least_squares else 1)
    if limit is not None:
        activations = min(activations, limit)
    rows = [math.prod(layouts.as_kernel_shape(site)[:-1]) for site in result]
    moments = 8 * _MATRICES * max(rows, default=0) ** 2
    return activations + (moments if least_squares else 0)
