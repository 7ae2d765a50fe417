"""Targets to a number of channels for every group, by the groups' curves."""

import math
from collections.abc import Mapping

import numpy as np

from ispasp_jax.budget.cost import BySize
from ispasp_jax.budget.targets import KINDS, Asked, Target
from ispasp_jax.errors import InputError
from ispasp_jax.numerals import numeral
from ispasp_jax.walk.curves import Curve, Curves


def candidates(
    curves: Curves | None, widths: Mapping[str, int], asked: Asked
) -> dict[str, np.ndarray]:
    """The sizes that every group may take, ascending; groups without a curve keep all,
    unless no curves are given at all.

    Raises:
      InputError: the curves are of other widths.
    """
    result = {}
    for name, width in widths.items():
        curve = None if curves is None else curves.get(name)
        if curve is None and curves is not None:
            result[name] = np.array([width])
            continue
        if curve is not None and len(curve.order) != width:
            raise InputError(
                f"the curve of group {name!r} is for {len(curve.order)} channels, this "
                f"network has {width}; measure the curves again."
            )
        s = np.arange(1, width + 1)
        allowed = (s >= asked.min_channels) & (s % asked.multiple(width) == 0)
        if curve is not None and asked.tolerance is not None:
            allowed &= curve.relative[1:] <= asked.tolerance
        allowed[-1] = True
        result[name] = s[allowed]
        if name in asked.removable and _may_go(curve, asked.tolerance):
            result[name] = np.append(0, result[name])
    return result


def _may_go(curve: Curve | None, tolerance: float | None) -> bool:
    return curve is None or tolerance is None or curve.relative[0] <= tolerance


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
    result = {kind: (cost.total(smallest), cost.full) for kind, cost in costs.items()}
    for wanted in targets:
        if wanted.kind not in result:
            continue
        least, full = result[wanted.kind]
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
    return result


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
    result = [_meet(cost, limit, allowed, damages) for cost, limit in limits]
    least = {name: min(sizes[name] for sizes in result) for name in widths}
    return _fill(limits, allowed, damages, least)


def _meet(cost, limit, allowed, damages):
    dense = {name: int(s[-1]) for name, s in allowed.items()}
    if cost.total(dense) <= limit:
        return dense

    def cheapest(price, start):
        chosen = start
        for _ in range(4):  # groups of one part make each other's channels cheaper
            marginal, now = cost.marginal(chosen), chosen
            chosen = {
                name: int(s[np.argmin(damages[name] + price * own)])
                for name, s in allowed.items()
                for own in [marginal[name] * s - (s == 0) * cost.saved(name, now)]
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
