"""`check`: does a model give the same on cut arrays as on masked ones?"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ispasp_jax.graph.cut import Cut, Plan
from ispasp_jax.graph.groups import Group
from ispasp_jax.graph.narrowing import narrow
from ispasp_jax.graph.traced import Traced, trace


def check(
    model: Any,
    variables: Any,
    *inputs: Any,
    plan: Plan | None = None,
    tolerance: float = 1e-4,
) -> float:
    """Cuts a model and compares it with itself, masked.

    Args:
      model: as `trace` takes it, or what it gave.
      variables: arrays; None for a module that carries its own.
      *inputs: a small batch.
      plan: what to keep; half of every group, drawn at random, if None.
      tolerance: largest difference allowed, relative to the largest output.

    Returns:
      The largest difference, relative to the largest output.

    Raises:
      AssertionError: they differ by more; the worst group is named.
    """
    traced = model if isinstance(model, Traced) else trace(model, variables, *inputs)
    if variables is None:
        raise ValueError("check needs the arrays; nnx.state(model) has them.")
    plan = random_plan(traced) if plan is None else plan
    apart = difference(traced, variables, plan, *inputs)
    if apart <= tolerance:
        return apart
    alone = {n: difference(traced, variables, {n: plan[n]}, *inputs) for n in plan}
    worst = max(alone, key=lambda name: alone[name])
    raise AssertionError(
        f"cut and masked outputs differ by {apart:.1e} of the largest, most of all by "
        f"group {worst!r} ({alone[worst]:.1e}); ignore it, or say by a rule what its "
        "equations do."
    )


def difference(traced: Traced, variables: Any, plan: Plan, *inputs: Any) -> float:
    """How far cut and masked outputs are apart, relative to the largest."""
    with jax.default_matmul_precision("highest"):
        small = jax.jit(narrow(traced.function, traced, plan))
        cut = small(traced.take(plan, variables), *inputs)
        masked = jax.jit(traced.function)(traced.mask(plan, variables), *inputs)
    pairs = [*zip(jax.tree.leaves(cut), jax.tree.leaves(masked), strict=True)]
    apart = np.max([jnp.abs(a - b).max() for a, b in pairs])  # NaN stays NaN
    size = np.max([jnp.abs(b).max() for _, b in pairs])
    return float(apart / size) if size else float(apart)


def random_plan(traced: Traced, keep: float = 0.5, seed: int = 0) -> dict[str, Cut]:
    """A part of every group, drawn at random."""
    draw = np.random.default_rng(seed)

    def rows(group: Group) -> np.ndarray:
        count = max(1, int(keep * group.width))
        kept = [
            np.sort(draw.permutation(group.width)[:count])
            for _ in range(group.layers or 1)
        ]
        return np.stack(kept) if group.layers else kept[0]

    return {group.name: Cut(group.width, rows(group)) for group in traced.groups}
