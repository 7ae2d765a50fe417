"""How a walk goes."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
from jaxtyping import Array

from ispasp_jax.graph import Plan
from ispasp_jax.walk import repair as repairs
from ispasp_jax.walk.resume import Store

#: Called by the walk after each group that was cut, with the plan so far and the
#: variables that it leaves: trains them and returns the new ones.
Tune = Callable[[Plan, Any], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Options:
    """How a walk goes.

    Attributes:
      key: for criteria that draw at random; jax.random.key(0) if None.
      repair: after a cut, refit consumers by least squares ("lsq") or measure batch
        norm's moments again ("bn"); see repair.py.
      tune: trains the network after each group. The walk then computes the activations
        up to there again from the images.
      carry_dense: walk the dense network beside, to report how far outputs drift; the
        least squares do so anyway.
      residual_images: how many images the relative residual is measured on, 0 for none.
      progress: wraps the iterable of steps, to show how far the walk is.
      mesh: of devices.py; every batch is spread over its devices. None: the batches
        stay where they are.
      store: of resume.py; every step is kept there when it is done, and those that are
        there are not done again.
      memory: bytes of the images' activations that each device may keep; see
        streams.py. Results are the same. None: all that are alive at once.
    """

    key: Array | None = None
    repair: repairs.Name = "none"
    tune: Tune | None = None
    carry_dense: bool = False
    residual_images: int = 32
    progress: Callable[[Iterable], Iterable] = iter
    mesh: jax.sharding.Mesh | None = None
    store: Store | None = None
    memory: int | None = None
