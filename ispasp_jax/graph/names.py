"""Names of groups: from the modules that make their channels, or from a user who names
them by some of their axes.
"""

import collections
import fnmatch
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ispasp_jax.errors import InputError
from ispasp_jax.graph.atoms import Atom
from ispasp_jax.graph.groups import Axis, Group, Whole

#: A group's name -> paths of variables, or globs over them, and which axis carries the
#: channels (several: all of them). Paths may leave a collection such as "params" out.
Names = Mapping[str, Mapping[str, int | Sequence[int]]]


class _Place(NamedTuple):
    path: str
    axis: int

    def __str__(self) -> str:
        return f"{self.path}[{self.axis}]"


def rename(
    groups: Iterable[Group],
    whole: Iterable[Whole],
    ranks: Mapping[str, int],
    names: Names,
    roots: Sequence[str] = (),
) -> list[Group]:
    """The groups, with the names that a user gives.

    Args:
      groups: as the equations make them.
      whole: what is left alone, and why.
      ranks: how many dimensions each variable has, by path.
      names: axes by name; as many as tell the group from others. All other axes that
        carry its channels are cut with them.
      roots: first keys of paths that may be left out.

    Raises:
      InputError: the axes are not all of one group, what they carry cannot be cut, or
        they are no axes at all; what the equations say is told.
    """
    groups = [*groups]
    chosen: dict[str, str] = {}
    for name, axes in names.items():
        if not axes:
            raise InputError(
                f"group {name!r} names no axes; give {{path or glob: axis}} of at "
                "least one variable that carries its channels."
            )
        places = [place for pair in axes.items() for place in _places(
            name, *pair, ranks, roots)]  # fmt: skip
        own = _only(name, places, groups, [*whole])
        if own in chosen:
            raise InputError(
                f"groups {chosen[own]!r} and {name!r} are one: cutting a channel of "
                "the first cuts it in the second; give one name."
            )
        chosen[own] = name
    kept = {group.name for group in groups} - {*chosen}
    if taken := sorted(kept & {*chosen.values()}):
        raise InputError(
            f"group {taken[0]!r} has the name of another group of the model; give "
            "another name."
        )
    return [group._replace(name=chosen.get(group.name, group.name)) for group in groups]


def _places(
    name: str,
    pattern: str,
    axes: int | Sequence[int],
    ranks: Mapping[str, int],
    roots: Sequence[str],
) -> Iterator[_Place]:
    """The axes that a pattern names; a glob passes over arrays without dimensions."""

    def below(path):
        first, _, rest = path.partition("/")
        return rest if first in roots and rest else path

    matched = [p for p in ranks if pattern in (p, below(p))] or [
        p
        for p in ranks
        if ranks[p] and any(fnmatch.fnmatchcase(q, pattern) for q in (p, below(p)))
    ]
    if not matched:
        raise InputError(
            f"group {name!r}: no variable matches {pattern!r}; the model has "
            f"{', '.join([*ranks][:20])}{', …' if len(ranks) > 20 else ''}."
        )
    for path in matched:
        for axis in (axes,) if isinstance(axes, int) else axes:
            if not -ranks[path] <= axis < ranks[path]:
                raise InputError(
                    f"group {name!r}: {path} has {ranks[path]} dimensions, and so no "
                    f"axis {axis}."
                )
            yield _Place(path, axis % ranks[path])


def _only(
    name: str, places: list[_Place], groups: list[Group], whole: list[Whole]
) -> str:
    """The one group that all of the places carry."""
    carried = {
        place: [g.name for g in groups if _has(g.axes, place)] for place in places
    }
    for place, result in carried.items():
        if not result:
            reasons = [one.reason for one in whole if _has(one.axes, place)]
            why = reasons[0] if reasons else "it carries no channels"
            raise InputError(
                f"group {name!r}: {place} stays as it is ({why}); leave it out, or "
                "change the model there."
            )
    common = [n for n in carried[places[0]] if all(n in f for f in carried.values())]
    if len(common) == 1:
        return common[0]
    if not common:
        a, b = _apart(carried)
        raise InputError(
            f"group {name!r}: {a} carries the channels of "
            f"{' and '.join(map(repr, carried[a]))}, {b} those of "
            f"{' and '.join(map(repr, carried[b]))}; name axes of one group."
        )
    alone = {n: _alone(n, groups) for n in common}
    told = ", ".join(f"{place} for {n!r}" for n, place in alone.items() if place)
    raise InputError(
        f"group {name!r}: all that it names carries the channels of "
        f"{' and '.join(map(repr, common))}; name an axis of one alone, too"
        f"{f' ({told})' if told else ''}."
    )


def _has(axes: Iterable[Axis], place: _Place) -> bool:
    return any((axis.path, axis.axis) == place for axis in axes)


def _apart(carried: Mapping[_Place, list[str]]) -> tuple[_Place, _Place]:
    """Two places without a common group, or as near to it as there are."""
    places = [*carried]
    for a in places:
        for b in places:
            if not {*carried[a]} & {*carried[b]}:
                return a, b
    return places[0], places[-1]


def _alone(name: str, groups: list[Group]) -> _Place | None:
    """An axis that carries this group and no other."""
    own = next(group for group in groups if group.name == name)
    for axis in own.axes:
        place = _Place(axis.path, axis.axis)
        if sum(_has(group.axes, place) for group in groups) == 1:
            return place
    return None


def from_modules(
    groups: list[Group], made: Mapping[Atom, Sequence[str]], roots: Sequence[str]
) -> list[Group]:
    """Names from modules: the one that makes the channels and reads them, if it holds
    no other such group; else the outermost that makes no others, or the layer itself.
    """
    layers = [_layer(group, made, roots) for group in groups]
    homes = [
        common([layer, *(module(path, roots) for path in group.consumers)])
        for layer, group in zip(layers, groups, strict=True)
    ]
    streams = [group.kind == "stream" for group in groups]
    own = [h for h, stream in zip(homes, streams, strict=True) if h and not stream]
    names = []
    for layer, home, stream in zip(layers, homes, streams, strict=True):
        if not stream and own.count(home) == 1:
            names.append(".".join(home))
            continue
        others = [
            path
            for path, other in zip(layers, streams, strict=True)
            if other == stream and path != layer
        ]
        taken = [] if stream else own
        names.append(("stream." if stream else "") + _shortest(layer, others, taken))
    count = collections.Counter(names)
    seen: collections.Counter = collections.Counter()
    result = []
    for name, group in zip(names, groups, strict=True):
        seen[name] += 1
        number = f".{seen[name]}" if count[name] > 1 else ""
        result.append(group._replace(name=name + number))
    return result


def _layer(
    group: Group, made: Mapping[Atom, Sequence[str]], roots: Sequence[str]
) -> tuple[str, ...]:
    """The module that makes the channels last before they are read; of a stream, the
    first."""
    makers = [path for path in made.get(group.atom, ()) if path]
    first = group.kind == "stream"
    path = (makers[0] if first else makers[-1]) if makers else group.axes[0].path
    return module(path, roots)


def module(path: str, roots: Sequence[str]) -> tuple[str, ...]:
    """The keys of the module that holds a variable."""
    keys = path.split("/")
    if keys[-1] == "value":  # NNX keeps every array in a variable of that name
        keys = keys[:-1]
    if len(keys) > 1 and keys[0] in roots:
        keys = keys[1:]
    named = [key for key in keys[:-1] or keys if key != "~"]  # Haiku's methods
    return tuple(named)


def common(modules: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The module that holds all of these, two at least; a list of them is none."""
    together = itertools.takewhile(
        lambda keys: len(set(keys)) == 1, zip(*modules, strict=False)
    )
    common = tuple(keys[0] for keys in together)
    inside = [module[len(common)] for module in modules if len(module) > len(common)]
    listed = any(key.isdigit() for key in inside)
    return common if len(inside) == len(modules) and not listed else ()


def _shortest(
    layer: tuple[str, ...],
    others: Sequence[tuple[str, ...]],
    taken: Sequence[tuple[str, ...]],
) -> str:
    for length in range(1, len(layer) + 1):
        start = layer[:length]
        if length < len(layer) and layer[length].isdigit():
            continue  # a list of modules is none
        if start not in taken and not any(o[:length] == start for o in others):
            return ".".join(start)
    return ".".join(layer)
