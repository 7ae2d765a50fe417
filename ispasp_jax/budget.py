"""From what a user asks to a number of channels for every group: ratios (`sizes`), or
a `Budget`, met by widths that differ by block (`solve`).
"""

import dataclasses
import fnmatch
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ispasp_jax.cost import BySize
from ispasp_jax.curves import Curves
from ispasp_jax.errors import InputError
from ispasp_jax.graph import Group
from ispasp_jax.numerals import numeral

#: A ratio for all groups, or ratios by glob over group names; the last that matches
#: wins.
Keep = float | int | Mapping[str, float | int]

#: Groups that may be cut (`graph.scope` has them), or their widths by name.
Groups = Mapping[str, int] | Mapping[str, Group] | Iterable[Group]

#: Targets, and what a number without a percent sign counts.
KINDS = {"macs": "multiply-adds", "params": "parameters", "latency": "ms"}

#: What `--round-to auto` means on a backend: the width of a vector register or tile. On
#: a CPU, ResNet56 with 8, 16 and 32 channels is faster than with 6, 12 and 25, and
#: ResNet34 with 64, 128 and 256 as fast as with 51, 102 and 204
#: (benchmarks/latency.py).
ROUND_TO = {"cpu": 8, "gpu": 8, "tpu": 128}

#: What a budget's widths are multiples of where nothing is said: on a CPU such networks
#: are much faster than those of any widths, and as accurate (benchmarks/README.md).
DEFAULT_ROUND_TO = 8


def sizes(groups: Groups, keep: Keep) -> dict[str, int]:
    """Channels to keep in every group: max(1, floor(keep · width + 1e-6)).

    Args:
      groups: those that may be cut; no other is in the result.
      keep: ratios in (0, 1]. Groups that no glob matches keep all their channels.

    Raises:
      InputError: a ratio outside (0, 1], or a glob that matches no group.
    """
    widths = widths_of(groups)
    ratios = dict.fromkeys(widths, 1.0)
    for glob, ratio in (keep if isinstance(keep, Mapping) else {"*": keep}).items():
        if not 0 < ratio <= 1:
            raise InputError(
                f"keep {ratio:g} is not a ratio: expected the fraction of channels "
                "that stay, above 0 and at most 1."
            )
        matched = fnmatch.filter(widths, glob)
        if not matched:
            raise InputError(
                f"keep {glob!r} matches no group that may be cut; those are "
                f"{', '.join(widths) or 'none'}."
            )
        ratios |= dict.fromkeys(matched, ratio)
    return {
        name: max(1, math.floor(ratios[name] * width + 1e-6))
        for name, width in widths.items()
    }


def rounded(
    sizes: Mapping[str, int], groups: Groups, min_channels: int, round_to: int
) -> dict[str, int]:
    """Sizes at least min_channels and up to a multiple of round_to; the width at most.

    A group that keeps all its channels still does.
    """
    widths = widths_of(groups)
    return {
        name: min(-(-max(size, min_channels) // round_to) * round_to, widths[name])
        for name, size in sizes.items()
    }


def widths_of(groups: Groups) -> dict[str, int]:
    """Widths by name."""
    if isinstance(groups, Mapping):
        return {name: getattr(of, "width", of) for name, of in groups.items()}
    return {group.name: group.width for group in groups}


class Target(NamedTuple):
    """A cost that is not to be exceeded.

    Attributes:
      kind: of KINDS.
      value: a share of the dense network's, or in the kind's unit.
      relative: which.
    """

    kind: str
    value: float
    relative: bool

    def limit(self, full: float) -> float:
        """The target in the kind's unit, for a network that costs `full`."""
        return self.value * full if self.relative else self.value


class Asked(NamedTuple):
    """What a budget asks.

    Attributes:
      targets: all of them are met.
      tolerance: the largest ‖V‖/‖U‖ of any group; without targets, groups are cut as
        far as it allows.
      min_channels: fewer never stay (a group that has fewer keeps all).
      round_to: widths are multiples of this, or the dense one.
    """

    targets: tuple[Target, ...] = ()
    tolerance: float | None = None
    min_channels: int = 1
    round_to: int = 1


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a pruned model may cost; groups become narrower so that the least is lost.

    Attributes:
      macs: multiply-adds: a share of the dense model's ("47%"), or how many ("25M", or
        a number).
      params: parameters, in the same way.
      latency_ms: milliseconds of a batch on the present device, or a share ("60%").
      tolerance: the largest predicted residual of any group, from 0 to 1; without a
        target, groups are cut as far as it allows.
      round_to: widths are multiples of this, or the dense one; "auto": what suits the
        present device.
      min_channels: a group never has fewer.

    Raises:
      InputError: nothing is asked for, or a value is none of these.
    """

    macs: str | float | None = None
    params: str | float | None = None
    latency_ms: str | float | None = None
    tolerance: float | None = None
    round_to: int | str = DEFAULT_ROUND_TO
    min_channels: int = 1

    def __post_init__(self):
        if not self._targets() and self.tolerance is None:
            raise InputError(
                "a budget without macs, params, latency_ms or tolerance asks for "
                "nothing; give one of them."
            )
        if self.tolerance is not None and not _is_number(self.tolerance, 0, 1):
            raise InputError(
                f"the budget's tolerance is {self.tolerance!r}; expected a number from "
                "0 to 1."
            )
        for name in ("round_to", "min_channels"):
            value = getattr(self, name)
            whole = isinstance(value, numbers.Integral) and _is_number(value, 1)
            if not (whole or (name == "round_to" and value == "auto")):
                also = ' or "auto"' if name == "round_to" else ""
                raise InputError(
                    f"the budget's {name} is {value!r}; expected a whole number above "
                    f"0{also}."
                )

    @property
    def asked(self) -> Asked:
        """The same as `solve` takes it; "auto" asks which device is present."""
        round_to = self.round_to
        if round_to == "auto":
            round_to = ROUND_TO.get(jax.default_backend(), DEFAULT_ROUND_TO)
        return Asked(self._targets(), self.tolerance, self.min_channels, int(round_to))

    def _targets(self) -> tuple[Target, ...]:
        given = {"macs": self.macs, "params": self.params, "latency": self.latency_ms}
        return tuple(
            _target(kind, value) for kind, value in given.items() if value is not None
        )


def _target(kind: str, value: str | float) -> Target:
    """A target from an argument of `Budget`."""
    if isinstance(value, str):
        try:
            return target(f"{kind}={value}")
        except InputError:
            pass
    elif _is_number(value, 0, math.inf) and 0 < value < math.inf:
        return Target(kind, float(value), False)
    name, example = {"latency": ("latency_ms", "8.0")}.get(kind, (kind, '"25M"'))
    raise InputError(
        f"the budget's {name} is {value!r}; expected a share of the dense model's up "
        f'to 100%, such as "47%", or a number such as {example}.'
    )


def _is_number(value: Any, low: float, high: float = math.inf) -> bool:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and low <= value <= high


def target(text: str) -> Target:
    """Reads macs=60%, params=1.2M, latency=8ms.

    Raises:
      InputError: it is something else.
    """
    kind, _, amount = text.partition("=")
    units = {"%": 0.01, "K": 1e3, "k": 1e3, "M": 1e6, "G": 1e9, "": 1.0}
    if kind == "latency":
        units = {"%": 0.01, "us": 1e-3, "ms": 1.0, "s": 1e3}
    unit = next((u for u in units if u and amount.endswith(u)), "")
    try:
        value = float(amount.removesuffix(unit)) * units[unit]
        if kind not in KINDS or not 0 < value < math.inf:
            raise ValueError
        if unit == "%" and value > 1:
            raise ValueError
    except (KeyError, ValueError):
        raise InputError(
            f"{text!r} is no target; expected macs=, params= or latency= "
            "and a share up to 100%, or a number such as 25M (latency: 8ms)."
        ) from None
    return Target(kind, value, unit == "%")


def candidates(
    curves: Curves | None, widths: Mapping[str, int], asked: Asked
) -> dict[str, np.ndarray]:
    """The sizes that every group may take, ascending; groups without a curve keep all,
    unless no curves are given at all.

    Raises:
      InputError: the curves are of other widths.
    """
    found = {}
    for name, width in widths.items():
        curve = None if curves is None else curves.get(name)
        if curve is None and curves is not None:
            found[name] = np.array([width])
            continue
        if curve is not None and len(curve.order) != width:
            raise InputError(
                f"the curve of group {name!r} is for {len(curve.order)} channels, this "
                f"network has {width}; measure the curves again."
            )
        s = np.arange(1, width + 1)
        allowed = (s >= asked.min_channels) & (s % asked.round_to == 0)
        if curve is not None and asked.tolerance is not None:
            allowed &= curve.relative[1:] <= asked.tolerance
        allowed[-1] = True
        found[name] = s[allowed]
    return found


def feasible(
    costs: Mapping[str, BySize],
    allowed: Mapping[str, np.ndarray],
    targets: tuple[Target, ...] = (),
) -> dict[str, tuple[float, float]]:
    """The least that every cost can be, and the dense network's, by kind.

    Raises:
      InputError: a target is out of reach, with the nearest that is not.
    """
    smallest = {name: int(s[0]) for name, s in allowed.items()}
    found = {kind: (cost.total(smallest), cost.full) for kind, cost in costs.items()}
    for wanted in targets:
        if wanted.kind not in found:
            continue
        least, full = found[wanted.kind]
        limit = wanted.limit(full)
        if limit < least:
            raise InputError(
                f"the target {wanted.kind} asks for {numeral(limit)} of "
                f"{numeral(full)} {KINDS[wanted.kind]}, and the groups can go down to "
                f"{numeral(least)} "
                f"({100 * least / full:.1f}%); ask for {wanted.kind}="
                f"{math.ceil(1000 * least / full) / 10:g}% or more, or loosen "
                "the tolerance, the least channels or what they are rounded to."
            )
    return found


def solve(
    curves: Curves,
    costs: Mapping[str, BySize],
    widths: Mapping[str, int],
    asked: Asked,
) -> dict[str, int]:
    """Sizes that meet every target with the least predicted damage.

    The damage of all groups together plus λ times the cost is least group by group; λ
    is found by bisection for every target, a group takes the least that one of them
    gives it, and what is left of the budget goes where it helps most.

    Args:
      curves: of the network.
      costs: by kind, at least of the targets.
      widths: of the network's groups.
      asked: the budget.

    Raises:
      InputError: a target is out of reach, with the nearest that is not.
    """
    allowed = candidates(curves, widths, asked)
    if not asked.targets:
        return {name: int(s[0]) for name, s in allowed.items()}
    feasible(costs, allowed, asked.targets)
    damages = {
        name: curves[name].damage[s] if name in curves else np.zeros(len(s))
        for name, s in allowed.items()
    }
    limits = [(costs[t.kind], t.limit(costs[t.kind].full)) for t in asked.targets]
    found = [_meet(cost, limit, allowed, damages) for cost, limit in limits]
    least = {name: min(sizes[name] for sizes in found) for name in widths}
    return _fill(limits, allowed, damages, least)


def _meet(cost, limit, allowed, damages):
    dense = {name: int(s[-1]) for name, s in allowed.items()}
    if cost.total(dense) <= limit:
        return dense

    def cheapest(price, start):
        chosen = start
        for _ in range(4):  # groups of one part make each other's channels cheaper
            marginal = cost.marginal(chosen)
            chosen = {
                name: int(s[np.argmin(damages[name] + price * marginal[name] * s)])
                for name, s in allowed.items()
            }
        return chosen

    low, high = 1e-30, 1e30  # prices: too low, and high enough
    best = {name: int(s[0]) for name, s in allowed.items()}
    for _ in range(200):
        price = math.sqrt(low * high)
        sizes = cheapest(price, dense)
        if cost.total(sizes) <= limit:
            high, best = price, sizes
        else:
            low = price
    return best


def _fill(limits, allowed, damages, sizes):
    """Spends what is left of the budget, step by step where it pays most."""
    sizes = dict(sizes)
    while True:
        now, gains = [cost.total(sizes) for cost, _ in limits], {}
        for name, s in allowed.items():
            place = int(np.searchsorted(s, sizes[name]))
            if place + 1 == len(s):
                continue
            more = {**sizes, name: int(s[place + 1])}
            after = [cost.total(more) for cost, _ in limits]
            if all(a <= limit for a, (_, limit) in zip(after, limits, strict=True)):
                gain = damages[name][place] - damages[name][place + 1]
                price = max(
                    (a - b) / limit
                    for a, b, (_, limit) in zip(after, now, limits, strict=True)
                )
                gains[name] = gain / max(price, 1e-30), more
        if not gains:
            return sizes
        sizes = max(gains.values(), key=lambda pair: pair[0])[1]
