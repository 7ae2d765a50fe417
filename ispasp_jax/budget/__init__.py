"""Budgets: from what a user asks to a number of channels for every group.

cost     multiply-adds and parameters, as polynomials of the groups' sizes
latency  the same for milliseconds, measured on the present device
ratios   keep ratios to sizes
targets  what a budget asks
solve    targets to sizes that differ by group, by the curves of the walk
front    all targets at once
"""

from ispasp_jax.budget.front import Point, front, knee, spread
from ispasp_jax.budget.ratios import Keep, rounded, sizes, widths_of
from ispasp_jax.budget.solve import candidates, feasible, solve
from ispasp_jax.budget.targets import KINDS, Asked, Budget, Target, regular, target

__all__ = [
    "KINDS",
    "Asked",
    "Budget",
    "Keep",
    "Point",
    "Target",
    "candidates",
    "feasible",
    "front",
    "knee",
    "regular",
    "rounded",
    "sizes",
    "solve",
    "spread",
    "target",
    "widths_of",
]
