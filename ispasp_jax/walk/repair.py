"""What is done about a cut, without labels or training.

    none   nothing
    bn     batch norms' moments are measured again on the network as pruned so far
    lsq    what reads a group is refitted by least squares to what the dense network
           gives at the same place (least_squares.py); where a consumer cannot be
           reached, norms behind it are measured again

A repair is a small object that says where the walk has to stop for it and what it
refits there.
"""

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp

from ispasp_jax import devices
from ispasp_jax.errors import InputError
from ispasp_jax.graph import Group
from ispasp_jax.graph.atoms import Atom
from ispasp_jax.walk import fits, least_squares, norms, sites
from ispasp_jax.walk.flat import Flat
from ispasp_jax.walk.measurement import Measurement
from ispasp_jax.walk.norms import Norm
from ispasp_jax.walk.sites import Site
from ispasp_jax.walk.streams import Stream, Weights

Name = Literal["none", "bn", "lsq"]


class Here(NamedTuple):
    """What the walk knows where it has stopped.

    Attributes:
      pruned: the network as pruned so far.
      measure: moments of the places that are left of what the consumer reads, against
        the dense network.
    """

    pruned: Stream
    measure: Callable[[], Measurement]


#: Called by the walk after the cut at a stop: the weights that serve better. Raises
#: fits.Unreached where there are none.
Refit = Callable[[Here], Weights]


@runtime_checkable
class Repair(Protocol):
    """How a network gets over its cuts.

    Attributes:
      fits: whether it compares with the dense network, which is then carried beside.
    """

    fits: bool

    def stops(
        self,
        program: Flat,
        groups: Sequence[Group],
        every: Sequence[Site],
        cut: Collection[Atom],
    ) -> Iterable[Site | Norm]:
        """Where the walk has to stop for it, once something before was cut.

        Args:
          program: the model's.
          groups: all of its groups.
          every: all consumers whose form selection can ask.
          cut: the groups that are cut.
        """
        ...

    def refit(self, where: Site | Norm, missed: bool) -> Refit | None:
        """What it does at a stop; None for nothing.

        Args:
          where: a consumer or a norm.
          missed: whether the last consumer that was to be refitted was not reached.
        """
        ...


class _Nothing:
    fits = False

    def stops(self, program, groups, every, cut) -> Iterable[Site | Norm]:
        return ()

    def refit(self, where: Site | Norm, missed: bool) -> Refit | None:
        return None


class _Moments:
    fits = False

    def stops(self, program, groups, every, cut) -> Iterable[Site | Norm]:
        return norms.candidates(program)

    def refit(self, where: Site | Norm, missed: bool) -> Refit | None:
        if not isinstance(where, Norm) or not where.is_running:
            return None
        return lambda here: norms.recalibrate(where, here.pruned)


class _LeastSquares:
    fits = True

    def stops(self, program, groups, every, cut) -> Iterable[Site | Norm]:
        yield from _refitted(program, groups, every, cut)
        yield from norms.candidates(program)

    def refit(self, where: Site | Norm, missed: bool) -> Refit | None:
        if isinstance(where, Norm):
            return _Moments().refit(where, missed) if missed else None
        return functools.partial(_fit, where)


def _fit(site: Site, here: Here) -> Weights:
    """The weights with a consumer refitted, as the first process has them."""
    weights = here.pruned.weights
    reach = fits.reach(site, weights)
    folds, kept = here.measure()
    fitted = least_squares.refit(reach, weights, folds, kept)
    changed = [v for v, array in fitted.items() if array is not weights.get(v)]
    arrays = devices.agree([fitted[value] for value in changed])
    return {**fitted, **dict(zip(changed, map(jnp.asarray, arrays), strict=True))}


def _refitted(
    program: Flat,
    groups: Sequence[Group],
    every: Sequence[Site],
    cut: Collection[Atom],
) -> Iterator[Site]:
    """Consumers that least squares refits once something before them was cut: all but
    those that read a stream which is not cut, since what is added to that has been
    refitted before."""
    last = {*_last(program, every)}
    for site in every:
        read = [g for g in groups if next(sites.of_leaf([site], g.atom), None)]
        own = any(g.atom in cut or g.kind != "stream" for g in read)
        if own or site in last:
            yield site


def _last(program: Flat, found: Sequence[Site]) -> Iterator[Site]:
    """The consumers behind which no other comes."""
    by_place = {site.place: site for site in found}
    ahead, seen = [*program.outputs], set()
    while ahead:
        place = program.made.get(ahead.pop())
        if place is None or place in seen:
            continue
        seen.add(place)
        if place in by_place:
            yield by_place[place]
        else:
            ahead += program.equations[place].inputs


REPAIRS: dict[Name, Repair] = {
    "none": _Nothing(),
    "bn": _Moments(),
    "lsq": _LeastSquares(),
}


def of(name: Name) -> Repair:
    """The repair of that name.

    Raises:
      InputError: there is none.
    """
    if name not in REPAIRS:
        raise InputError(f"repair {name!r} is none of 'none', 'bn' and 'lsq'.")
    return REPAIRS[name]
