"""What a jaxpr says of channels: which axes of which arrays carry the same ones, what
reads them, and how any function of the same variables runs when they are fewer.

    traced = trace(model, variables, x)         groups, by name; print(traced)
    small = traced.take(plan, variables)        the arrays that are left
    narrow(function, traced, plan)(small, x)    any function of them

Knows nothing of selection, of the walk or of any model.
"""

from ispasp_jax.graph.branches import Branch
from ispasp_jax.graph.check import check
from ispasp_jax.graph.cut import Cut, Plan
from ispasp_jax.graph.groups import Axis, Group, Whole, scope
from ispasp_jax.graph.narrowing import narrow
from ispasp_jax.graph.pieces import Piece, pieces
from ispasp_jax.graph.rules import RULES, rule
from ispasp_jax.graph.traced import Traced, trace
from ispasp_jax.graph.trees import key_path

__all__ = [
    "RULES",
    "Axis",
    "Branch",
    "Cut",
    "Group",
    "Piece",
    "Plan",
    "Traced",
    "Whole",
    "check",
    "key_path",
    "narrow",
    "pieces",
    "rule",
    "scope",
    "trace",
]
