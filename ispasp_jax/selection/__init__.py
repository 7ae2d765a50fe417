"""Selection: which channels of a group stay. Imports jax and jaxtyping alone, so that
any JAX program can call it under jit, vmap and shardings.

    problem      what is known of a group, and what an answer is
    criterion    a way to select, made of a function
    algorithm_1  the paper (ispasp)
    cosamp, obs, greedy, scores
                 the other ways, by what they compute
    criteria     all of them by name; a new one is a new file
"""

from ispasp_jax.selection.algorithm_1 import algorithm_1, ispasp
from ispasp_jax.selection.criterion import Criterion, criterion
from ispasp_jax.selection.problem import (
    LeastSquares,
    Problem,
    Selection,
    Unsuited,
    batch_sum,
    by_score,
    channels,
)

__all__ = [
    "Criterion",
    "LeastSquares",
    "Problem",
    "Selection",
    "Unsuited",
    "algorithm_1",
    "batch_sum",
    "by_score",
    "channels",
    "criterion",
    "ispasp",
]
