"""The whole front at once: sizes from the cheapest that the groups can go down to up to
the dense network, each with the least predicted damage at its cost.

Curves know nothing of a budget, so all budgets are solved from the same ones.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ispasp_jax.budget.cost import BySize
from ispasp_jax.budget.solve import candidates, feasible, solve
from ispasp_jax.budget.targets import Asked, Target
from ispasp_jax.errors import InputError
from ispasp_jax.walk.curves import Curves


class Point(NamedTuple):
    """Sizes that no other of the front beats in cost and in damage.

    Attributes:
      sizes: channels of every group; none where its branch goes.
      costs: by kind.
      damage: predicted: ‖V‖² over the variance of what it is added up to, of all groups
        together.
    """

    sizes: dict[str, int]
    costs: dict[str, float]
    damage: float


def front(
    curves: Curves,
    costs: Mapping[str, BySize],
    widths: Mapping[str, int],
    asked: Asked = Asked(),  # noqa: B008  a NamedTuple
    kind: str = "macs",
    count: int = 40,
) -> list[Point]:
    """Solves budgets of every size from the curves, evenly spaced in the cost.

    Args:
      curves: of the network.
      costs: by kind.
      widths: of the network's groups.
      asked: tolerance, least channels, multiples, and what may go; its targets are met
        by every point.
      kind: the cost along the front.
      count: how many budgets are solved; fewer points come back, since some are alike.

    Returns:
      The points that no other beats, the cheapest first.

    Raises:
      InputError: the costs lack the kind, or a target is out of reach.
    """
    if kind not in costs:
        raise InputError(
            f"the front's cost {kind!r} is none of {', '.join(costs)}; give one of "
            "them, or its costs by size."
        )
    allowed = candidates(curves, widths, asked)
    least, full = feasible(costs, allowed, asked.targets)[kind]
    found: list[Point] = []
    for limit in np.linspace(least, full, count):
        target = Target(kind, float(limit) * (1 + 1e-9), False)
        one = asked._replace(targets=(*asked.targets, target))
        found.append(_point(solve(curves, costs, widths, one), curves, costs))
    return _undominated(found, kind)


def _point(sizes: dict[str, int], curves: Curves, costs) -> Point:
    damage = sum(float(c.damage[sizes[n]]) for n, c in curves.items() if n in sizes)
    return Point(sizes, {kind: c.total(sizes) for kind, c in costs.items()}, damage)


def _undominated(points: Sequence[Point], kind: str) -> list[Point]:
    """Those whose damage is below that of all that cost no more."""
    result: list[Point] = []
    for point in sorted(points, key=lambda p: (p.costs[kind], p.damage)):
        if not result or point.damage < result[-1].damage:
            result.append(point)
    return result


def spread(points: Sequence[Point], count: int) -> list[Point]:
    """So many of the points, evenly spaced along the front, its ends among them."""
    places = np.linspace(0, len(points) - 1, min(count, len(points)))
    return [points[place] for place in dict.fromkeys(np.rint(places).astype(int))]


def knee(points: Sequence[Point], kind: str = "macs") -> int:
    """The place of the point farthest below the line between the front's ends, cost and
    damage both as shares of what they go through: a cheaper one loses much more, and a
    dearer one little less.

    Args:
      points: of a front, the cheapest first.
      kind: of cost.

    Raises:
      InputError: there are none.
    """
    if not points:
        raise InputError("a front without points has no knee; expected one at least.")
    shares = []
    for column in ([p.costs[kind] for p in points], [p.damage for p in points]):
        x = np.asarray(column, np.float64)
        shares.append((x - x.min()) / max(float(np.ptp(x)), 1e-30))
    return int(np.argmin(shares[0] + shares[1]))
