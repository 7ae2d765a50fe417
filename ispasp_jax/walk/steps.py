"""Where a walk stops, and what it does there, said before it begins: which consumers
read which groups, what is selected where, and what is refitted.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from ispasp_jax.errors import InputError
from ispasp_jax.graph import Group, Traced, widths
from ispasp_jax.graph.atoms import Atom
from ispasp_jax.walk import sites
from ispasp_jax.walk.flat import Flat, flatten
from ispasp_jax.walk.norms import Norm
from ispasp_jax.walk.repair import Repair
from ispasp_jax.walk.results import Key
from ispasp_jax.walk.sites import Site


class Step(NamedTuple):
    """A place where the walk stops.

    Attributes:
      where: a consumer, or a norm whose moments may be measured again.
      groups: those that the consumer alone reads, whose channels are selected there.
    """

    where: Site | Norm
    groups: tuple[Group, ...] = ()

    @property
    def place(self) -> int:
        """Of the program."""
        return self.where.place

    @property
    def name(self) -> str:
        """Whose place it is, for errors."""
        return self.where.name

    @property
    def keys(self) -> list[Key]:
        """What is decided there."""
        return [(group.name, layer_of(group, self.where)) for group in self.groups]


class Readers(NamedTuple):
    """What reads the groups that are cut.

    Attributes:
      own: groups by the one consumer that reads them (of scanned layers, one in each).
      shared: groups with all the consumers that read them.
      blind: groups that nothing reads so that it could be asked; a plan may cut them.
    """

    own: Mapping[Site, tuple[Group, ...]]
    shared: tuple[tuple[Group, tuple[Site, ...]], ...]
    blind: tuple[Group, ...]

    @property
    def groups(self) -> list[Group]:
        """All of them."""
        own = [group for groups in self.own.values() for group in groups]
        return [*own, *(group for group, _ in self.shared), *self.blind]


def readers(found: Sequence[Site], groups: Iterable[Group]) -> Readers:
    """Which consumers read which groups.

    Args:
      found: consumers, those whose form selection can ask.
      groups: those that are cut.
    """
    own: dict[Site, tuple[Group, ...]] = {}
    shared, blind = [], []
    for group in groups:
        reading = tuple(sites.of_leaf(found, group.atom))
        layers = [layer_of(group, site) for site in reading]
        every = range(group.layers) if group.layers else [None]
        if group.kind == "product":
            blind.append(group)
        elif sorted(layers, key=str) == sorted(every, key=str):
            for site in reading:
                own[site] = (*own.get(site, ()), group)
        elif reading and not group.layers:
            shared.append((group, reading))
        else:
            blind.append(group)
    return Readers(own, tuple(shared), tuple(blind))


def remaining(
    found: Iterable[Site], traced: Traced, removed: Iterable[Group]
) -> list[Site]:
    """The consumers outside of the branches that go with these groups.

    Raises:
      InputError: a group alone goes, of a branch of several.
    """
    sizes = {group.name: 0 for group in removed}
    gone = traced.gone(widths.first(traced, sizes))
    weights = {path for branch in gone for path in branch.paths}
    return [site for site in found if site.kernel.origin not in weights]


def unselectable(traced: Traced) -> dict[str, str]:
    """The groups that no criterion can be asked of, and why."""
    program = flatten(traced)
    every = sites.sites(program)
    blind = readers(sites.suited(program), traced.groups).blind
    reasons = {}
    for group in blind:
        said = {
            f"{site.name}: {sites.why(site)}"
            for site in sites.of_leaf(every, group.atom)
            if not sites.is_suited(site)
        }
        reasons[group.name] = "; ".join(sorted(said)) or (
            "two activations are multiplied along it"
            if group.kind == "product"
            else "what reads it is inside of a loop, or differs between layers"
        )
    return reasons


def refuse_blind(found: Readers) -> None:
    """Raises InputError where nothing can be asked of a group."""
    for group in found.blind:
        raise InputError(
            f"group {group.name!r} ({group.kind}) cannot be selected: no consumer that "
            "could be asked reads it (see walk.unselectable); ignore it, or say in a "
            "plan what stays."
        )


def steps(
    program: Flat,
    groups: Sequence[Group],
    every: Sequence[Site],
    found: Readers,
    cut: Collection[Atom],
    repair: Repair,
) -> list[Step]:
    """The walk's stops, in order.

    Args:
      program: the model's.
      groups: all of its groups.
      every: all consumers whose form selection can ask.
      found: what reads the groups that are cut.
      cut: all groups that are cut, those of branches that go included.
      repair: what is done about the cuts.
    """
    stops = [*repair.stops(program, groups, every, cut)]
    repaired = {*stops}
    steps = [
        Step(site, found.own.get(site, ()))
        for site in every
        if site in found.own or site in repaired
    ]
    steps += [Step(norm) for norm in stops if isinstance(norm, Norm)]
    return sorted(steps, key=lambda step: step.place)


def layer_of(group: Group, where: Site | Norm) -> int | None:
    """Of a group that has channels of its own in every layer, the site's."""
    return where.layer if group.layers and isinstance(where, Site) else None
