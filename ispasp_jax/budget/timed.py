"""Sizes whose measured latency is what was asked for.

Groups' times do not add up to the network's. So widths are solved for by a model of the
latency, the network itself is timed with them, and what is asked of the model follows:
less where the network is too slow, more where it is faster than it needs to be.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from ispasp_jax.budget.cost import BySize
from ispasp_jax.budget.solve import candidates, feasible, solve
from ispasp_jax.budget.targets import Asked, Target
from ispasp_jax.errors import InputError
from ispasp_jax.numerals import numeral
from ispasp_jax.walk.curves import Curves

#: A network this much faster than asked for, as a share of that, is left as it is.
CLOSE = 0.05

#: Networks that are timed before the best of them is taken, or the target given up.
_ROUNDS = 8


class Timed(NamedTuple):
    """A network as it was timed.

    Attributes:
      sizes: of its groups.
      pruned: its milliseconds.
      dense: of the dense network beside it, pass by pass in turns.
      limit: milliseconds that were asked for.
    """

    sizes: dict[str, int]
    pruned: float
    dense: float
    limit: float

    @property
    def is_met(self) -> bool:
        """Whether it is as fast as was asked."""
        return self.pruned <= self.limit

    @property
    def is_close(self) -> bool:
        """Whether it is not much faster."""
        return self.pruned >= (1 - CLOSE) * self.limit


#: Called by `within`: milliseconds of the network with these sizes, and of the dense
#: one, timed in turns.
Milliseconds = Callable[[Mapping[str, int]], Sequence[float]]


def within(
    curves: Curves,
    costs: Mapping[str, BySize],
    widths: Mapping[str, int],
    asked: Asked,
    milliseconds: Milliseconds,
    tell: Callable[[Timed], None] = lambda timed: None,
) -> Timed:
    """The slowest network that was found to be fast enough, within CLOSE of the target
    where other targets and what widths are multiples of leave one.

    Args:
      curves: of the network.
      costs: by kind; the latency's is the model of it.
      widths: of the network's groups.
      asked: the budget, a latency among its targets.
      milliseconds: times a network.
      tell: hears of every network that was timed.

    Raises:
      InputError: none was fast enough, or the model knows none.
    """
    wanted = min(
        (t for t in asked.targets if t.kind == "latency"),
        key=lambda t: t.limit(costs["latency"].full),
    )
    others = tuple(t for t in asked.targets if t.kind != "latency")

    def sizes_at(share: float) -> dict[str, int]:
        """Those that the model takes for so fast, as a share of the dense network."""
        more = () if share == 1 else (Target("latency", share, True),)
        if not (others or more):
            return dict(widths)
        return solve(curves, costs, widths, asked._replace(targets=(*others, *more)))

    known: dict[tuple[int, ...], Timed] = {}
    found: dict[float, Timed] = {}
    least, full = feasible(costs, candidates(curves, widths, asked))["latency"]
    share = 1.0
    for _ in range(_ROUNDS):
        sizes = sizes_at(share)
        key = tuple(sizes.values())
        if key not in known:
            pruned, dense = map(float, milliseconds(sizes))
            known[key] = Timed(sizes, pruned, dense, wanted.limit(dense))
            tell(known[key])
        found[share] = timed = known[key]
        if timed.is_met and (share == 1 or timed.is_close):
            break
        ratios = {each: one.pruned / one.limit for each, one in found.items()}
        share = max(_next(ratios), least / full * (1 + 1e-9))
        if share in found:
            break
    met = [timed for timed in known.values() if timed.is_met]
    if not met:
        raise InputError(_refusal(known.values(), wanted))
    return max(met, key=lambda timed: timed.pruned / timed.limit)


def _next(found: Mapping[float, float]) -> float:
    """The share to ask the model for, in the middle of what is close, on the line
    through the two that are nearest to it.

    Args:
      found: latencies by the share that gave them, as shares of the target.
    """
    aim = 1 - CLOSE / 2
    fast = [share for share, ratio in found.items() if ratio <= 1]
    slow = sorted(share for share, ratio in found.items() if ratio > 1)
    if fast:
        low, high = max(fast), slow[0]
        step = (aim - found[low]) / (found[high] - found[low])
        return low + min(max(step, 0.15), 0.85) * (high - low)
    first = slow[0]
    if len(slow) == 1:
        return aim * first / found[first]
    slope = (found[slow[1]] - found[first]) / (slow[1] - first)
    further = (found[first] - aim) / slope if slope > 0 else math.inf
    return max(first - further, first / 3)


def _refusal(known: Collection[Timed], wanted: Target) -> str:
    fastest = min(known, key=lambda timed: timed.pruned / timed.dense)
    share = math.ceil(100 * fastest.pruned / fastest.dense)
    return (
        f"the target latency asks for {numeral(wanted.limit(fastest.dense))} ms: of "
        f"{len(known)} networks that were timed the fastest takes "
        f"{numeral(fastest.pruned)} ms of {numeral(fastest.dense)} on this device; ask "
        f"for about latency={share}% or more."
    )
