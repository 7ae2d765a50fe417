"""Training: recipes, steps, epochs, and the states that a stopped run goes on from."""

from ispasp_jax.training.loop import (
    AfterEpoch,
    Score,
    TrainState,
    cut_state,
    evaluate,
    evaluation_step,
    fit,
    start,
    train_step,
)
from ispasp_jax.training.recipes import (
    Recipe,
    Teacher,
    cross_entropy,
    distillation,
    optimizer,
)
from ispasp_jax.training.shrinking import ShrinkState, shrink
from ispasp_jax.training.states import States

__all__ = [
    "AfterEpoch",
    "Recipe",
    "Score",
    "ShrinkState",
    "States",
    "Teacher",
    "TrainState",
    "cross_entropy",
    "cut_state",
    "distillation",
    "evaluate",
    "evaluation_step",
    "fit",
    "optimizer",
    "shrink",
    "start",
    "train_step",
]
