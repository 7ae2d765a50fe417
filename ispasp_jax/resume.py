"""Going on with a walk that was stopped: what is kept of every part that it has left,
and how activations are carried through such a part again.

Nothing is selected or fitted a second time. The activations go through the same jitted
functions, with the same arrays and masks, as when the part was cut, so that on one
device and with one version of jax the rest of the walk is the same bit for bit.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from ispasp_jax.models.network import Block, Part, Variables, cuttable
from ispasp_jax.selecting import GroupResult
from ispasp_jax.streams import Stream, width


class Done(NamedTuple):
    """A part that the walk has left.

    Attributes:
      groups: what became of its groups.
      own: its variables as the walk left it: repaired, at full width.
      whole: its output was computed by `Stream.through`, not pair by pair.
      seconds: of the walk so far, and of the repair.
      tuned: the network's variables after `tune`. None where nothing was tuned; a store
        may also give None where a later part was.
    """

    groups: tuple[GroupResult, ...]
    own: Variables
    whole: bool
    seconds: tuple[float, float]
    tuned: Variables | None = None


class Store(NamedTuple):
    """Where a walk keeps what it has done; the walk calls both.

    Attributes:
      read: what was kept of the part of this index; None if nothing was. The parts that
        are there come before all others.
      write: keeps a part; when it returns, the part is kept.
    """

    read: Callable[[int], Done | None]
    write: Callable[[int, Done], None]


def replay(
    part: Part, here: Stream, there: Stream | None, done: Done
) -> tuple[Stream, Stream | None]:
    """Both streams at the output of a part that was cut before.

    Args:
      part: the part, at full width.
      here: the network as pruned so far, at the part's input.
      there: the dense network, if the walk carries it.
      done: what was kept of the part.
    """
    here = here._replace(own=jax.device_put(done.own))
    kept = {g: r.cut.kept for g, r in zip(cuttable(part), done.groups, strict=True)}
    pairs = part.module.groups if isinstance(part.module, Block) else ()
    for i, group in enumerate(pairs):
        there = there and there.pass_pair(i)
        if not done.whole:
            hidden = here.hidden(i)
            channels = np.arange(width(hidden))
            here = here.advance(i, hidden, np.isin(channels, kept.get(group, channels)))
    if done.whole or not pairs:
        here = here.through()
    return here, there and there.leave()
