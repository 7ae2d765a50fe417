"""Where a walk halts and what is summed over devices there, without walking: the
formulas of docs/scale.md, of a traced network's shapes.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from ispasp_jax import graph
from ispasp_jax.walk import flat, layouts, measurement, moments, repair, sites, steps
from ispasp_jax.walk.sites import Site


class Stop(NamedTuple):
    """A consumer where the walk halts.

    Attributes:
      groups: how many are selected there.
      hidden: numbers of H of an image, m · D.
      rows: of the patches that are refitted, p; 0 where nothing is.
      outputs: o.
      positions: of an image that moments are taken from.
    """

    groups: int
    hidden: int
    rows: int
    outputs: int
    positions: int

    @property
    def summed(self) -> int:
        """Bytes that are summed over devices for a batch, to select."""
        return 4 * self.groups * self.hidden

    def together(self, share: int) -> int:
        """How many batches' second moments are summed in one go, where each device has
        so many images of a batch."""
        return moments.together(share * self.positions * (self.rows + self.outputs))

    @property
    def moments(self) -> int:
        """Bytes that are summed over devices in one go, to refit: of each fold the
        count, the means, the products and the target's square."""
        p, o = self.rows, self.outputs
        return 2 * 4 * (p * p + p * o + p + o + 2) if p else 0


def stops(
    traced: graph.Traced, sizes: Mapping[str, int], how: repair.Name
) -> list[Stop]:
    """The consumers where a walk halts, in order, and what it asks there."""
    program = flat.flatten(traced)
    every = sites.suited(program)
    narrower = [g for g in traced.groups if sizes.get(g.name, g.width) < g.width]
    found = steps.readers(every, narrower)
    assert not found.shared and not found.blind, "inner channels only"
    cut = {group.atom for group in narrower}
    fix = repair.of(how)
    result, batch = [], program.inputs[0].shape[0]
    for step in steps.steps(program, traced.groups, every, found, cut, fix):
        site = step.where
        if not isinstance(site, Site) or not (step.groups or result):
            continue
        taps = math.prod(layouts.as_kernel_shape(site)[:-2])
        k = _left(site, narrower, sizes)
        rows = taps * measurement._bucket(k, site.width) if fix.fits else 0
        made = jax.eval_shape(functools.partial(layouts.as_out, site), site.out.aval)
        *sides, o = made.shape[1:]
        apart = layouts.every(sides)
        places = math.prod(-(-side // apart) for side in sides)
        hidden = site.hidden.aval.size // batch
        result.append(Stop(len(step.groups), hidden, rows, o, places))
    return result


def _left(site: Site, groups: Sequence[graph.Group], sizes: Mapping[str, int]) -> int:
    """Places of D that are left where these groups are cut."""
    k = site.width
    for group in groups:
        own = int((graph.atoms.labels(site.contracted, group.atom) >= 0).sum())
        if own == site.width:
            k = k * sizes[group.name] // group.width
        else:
            k += own * sizes[group.name] // group.width - own
    return k
