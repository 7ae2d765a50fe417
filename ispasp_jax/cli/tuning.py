"""Fine-tuning of what was pruned, as the flags want it; the dense network may teach."""

import time
from typing import Any

from ispasp_jax import training
from ispasp_jax.cli import learning
from ispasp_jax.cli.records import Dense, Pruned, Task, Tuned
from ispasp_jax.cli.workspace import Workspace
from ispasp_jax.graph.plans import Plan
from ispasp_jax.walk import Tune
from ispasp_jax.weights.folders import Model

#: Learning rate at its highest, for batches of 256.
_RATE = 0.01


def finetune(task: Task, dense: Dense, pruned: Pruned, work: Workspace) -> Tuned:
    """Fine-tunes the pruned network, epoch by epoch; the dense one may teach it."""
    epochs = task.config.tuning.finetune_epochs
    if not epochs:
        return Tuned(pruned.model)
    start, recipe = time.perf_counter(), _recipe(task, epochs)
    teacher = _teacher(task, dense.model)
    tuned = learning.train(
        task.config, task.source, pruned.model, recipe, "fine-tuning", work, teacher
    )
    return Tuned(tuned, time.perf_counter() - start, recipe)


def between_blocks(task: Task, model: Model) -> Tune:
    """What the walk calls after each block: fine-tuning of the network so far."""
    recipe = _recipe(task, task.config.tuning.block_finetune_epochs)
    teacher = _teacher(task, model)

    def tune(plan: Plan, variables: Any) -> Any:
        tuned = learning.train(
            task.config,
            task.source,
            model.cut(plan, variables),
            recipe,
            f"fine-tuning, groups cut: {len(plan)}",
            teacher=teacher,
        )
        return tuned.variables

    return tune


def _recipe(task: Task, epochs: int) -> training.Recipe:
    tuning = task.config.tuning
    return learning.recipe(
        task.config,
        task.source,
        epochs,
        _RATE,
        distill=tuning.distill,
        temperature=tuning.distill_temperature,
    )


def _teacher(task: Task, model: Model) -> training.Teacher | None:
    if not task.config.tuning.distill:
        return None
    return training.Teacher(model.network, model.variables)
