"""One small rule a primitive: which dimensions carry the same channel, and how its
parameters read when dimensions are narrower.

A rule joins, refines and freezes the atoms of an equation's dimensions. Where the
equation's parameters hold shapes, the rule's `narrow` gives them anew. A user adds a
primitive by one function:

    @rule("my_primitive", narrow=lambda eqn, size: {"shape": shape(eqn.outputs[0],
    size)})
    def my_primitive(eqn):
        same(eqn, eqn.inputs[0], eqn.outputs[0])

An equation without a rule freezes what it touches. Ours lie by family in the files of
this package.
"""

from ispasp_jax.graph.rules import (  # noqa: F401  each fills RULES
    contractions,
    control,
    elementwise,
    indexing,
    parts,
    reductions,
    shapes,
)
from ispasp_jax.graph.rules.affine import is_affine
from ispasp_jax.graph.rules.contractions import Contraction
from ispasp_jax.graph.rules.rule import (
    RULES,
    Rule,
    Sizes,
    apply,
    fixed,
    matched,
    rule,
    same,
    shape,
    unknown,
)

__all__ = [
    "RULES",
    "Contraction",
    "Rule",
    "Sizes",
    "apply",
    "fixed",
    "is_affine",
    "matched",
    "rule",
    "same",
    "shape",
    "unknown",
]
