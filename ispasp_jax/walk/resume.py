"""Going on with a walk that was stopped: what is kept of every step that it has done.

Nothing is selected or fitted a second time. The activations go through the same jitted
pieces, with the same arrays, as when the step was done, so that on one device and with
one version of jax the rest of the walk is the same bit for bit.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from ispasp_jax.walk.results import GroupResult


class Done(NamedTuple):
    """A step that the walk has done.

    Attributes:
      results: what became of the groups that were selected in it.
      changed: the variables that are others after it, by key path, at full width.
      drifts: of groups before, by name and layer, as far as they are known.
      missed: whether least squares did not reach a consumer since it last did.
      seconds: of the walk so far, by what they were spent on.
      tuned: the variables that `tune` gave, by key path. None where nothing was tuned;
        a store may also give None where a later step was.
    """

    results: tuple[GroupResult, ...]
    changed: Mapping[str, np.ndarray]
    drifts: tuple[tuple[str, int | None, float], ...]
    missed: bool
    seconds: Mapping[str, float]
    tuned: Mapping[str, np.ndarray] | None = None


class Store(NamedTuple):
    """Where a walk keeps what it has done; the walk calls both.

    Attributes:
      read: what was kept of the step of this index; None if nothing was. The steps that
        are there come before all others.
      write: keeps a step; when it returns, the step is kept.
    """

    read: Callable[[int], Done | None]
    write: Callable[[int, Done], None]
