"""Sizes whose measured latency is what was asked for.

Groups' times do not add up to the network's. So widths are solved for by a model of the
latency, the network itself is timed with them, and what is asked of the model follows:
less where the network is too slow, more where it is faster than it needs to be.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ispasp_jax.budget.cost import BySize
from ispasp_jax.budget.solve import solve
from ispasp_jax.budget.targets import Asked, Target
from ispasp_jax.errors import InputError
from ispasp_jax.numerals import numeral
from ispasp_jax.walk.curves import Curves

#: A network this much faster than asked for, as a share of that, is left as it is.
CLOSE = 0.05

#: Networks that are timed before the best of them is taken, or the target given up;
#: and how far inside the target the next one is looked for.
_ROUNDS, _INSIDE = 8, 0.03


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

    def sizes_at(share: float | None) -> dict[str, int]:
        more = () if share is None else (Target("latency", share, True),)
        if not (others or more):
            return dict(widths)
        return solve(curves, costs, widths, asked._replace(targets=(*others, *more)))

    known: dict[tuple[int, ...], Timed] = {}
    best: Timed | None = None
    share, fast, slow = None, 0.0, 1.0  # shares known to be fast enough, and too slow
    for _ in range(_ROUNDS):
        sizes = sizes_at(share)
        key = tuple(sizes.values())
        if key not in known:
            pruned, dense = map(float, milliseconds(sizes))
            known[key] = Timed(sizes, pruned, dense, wanted.limit(dense))
            tell(known[key])
        timed = known[key]
        if timed.is_met:
            best = timed if best is None or timed.pruned > best.pruned else best
            if share is None or timed.pruned >= (1 - CLOSE) * timed.limit:
                break
            fast = max(fast, share)
        elif share is not None:
            slow = min(slow, share)
        share = _next(share, timed, fast, slow)
    if best is None:
        raise InputError(_refusal(known, wanted))
    return best


def _next(share: float | None, timed: Timed, fast: float, slow: float) -> float:
    """The share of the dense network's latency to ask the model for: in proportion to
    what the last one gave, between those that are known."""
    if share is None:
        return min(timed.limit / timed.dense, 1.0)
    result = (1 - _INSIDE) * share * timed.limit / timed.pruned
    return result if fast < result < slow else (fast + slow) / 2


def _refusal(known: Mapping[tuple[int, ...], Timed], wanted: Target) -> str:
    fastest = min(known.values(), key=lambda timed: timed.pruned / timed.dense)
    share = math.ceil(100 * fastest.pruned / fastest.dense)
    return (
        f"the target latency asks for {numeral(wanted.limit(fastest.dense))} ms: of "
        f"{len(known)} networks that were timed the fastest takes "
        f"{numeral(fastest.pruned)} ms of {numeral(fastest.dense)} on this device; ask "
        f"for about latency={share}% or more."
    )
