"""The stages of a run of prune.py around the walk (cuts.py): each takes what it needs
and returns a record.
"""

import time
from typing import Any

from ispasp_jax import data, devices, weights
from ispasp_jax.budget import cost, latency
from ispasp_jax.cli import budgets, content, dense, doubts, learning, loading, sizes
from ispasp_jax.cli.config import Limits, Weights
from ispasp_jax.cli.records import (
    Dense,
    Final,
    Pruned,
    Score,
    Stage,
    Task,
    Tuned,
    noted,
)
from ispasp_jax.cli.reports import CURVES, OUTPUTS, REPORT, TORCH
from ispasp_jax.cli.workspace import Workspace, replacing, written
from ispasp_jax.report import say
from ispasp_jax.weights import folders
from ispasp_jax.weights.folders import Model


def dense_network(task: Task, work: Workspace) -> Dense:
    """The network to prune: from --weights, kept from before, or trained now. From here
    on the workspace is this run's.
    """
    config, source, start = task.config, task.source, time.perf_counter()
    origin, notes = config.network.start, ()
    if isinstance(origin, Weights):
        model = loading.load(origin, config.network, config.data, source)
        say(f"dense network: {origin.weights}")
        notes = noted(doubts.of_images(source.preprocessing, model.preprocessing))
    else:
        own = Weights(str(dense.network(config, source)))
        model = loading.load(own, config.network, config.data, source)
    sizes.check(config, task.choice, model)
    used = None if config.tuning.trains else task.chosen
    work.begin(
        {
            "weights": folders.fingerprint(model.variables),
            "training images": content.of_training(source, used),
            "test images": content.of_split(source.test),
        }
    )
    return Dense(model, time.perf_counter() - start, notes)


def score_dense(task: Task, dense: Dense) -> Score:
    """What the network to prune scores."""
    stage = score(task, "dense", dense.model, dense.seconds)
    classes, count = task.source.num_classes, len(task.source.test)
    return Score(stage, noted(doubts.of_dense(stage.top1, classes, count)))


def score(task: Task, name: str, model: Model, seconds: float) -> Stage:
    """What a network scores on the test split, after a stage of so many seconds."""
    found = learning.evaluate(task.config, task.source, model)
    say(f"{name}: top-1 {100 * found.top1:.2f} %")
    return Stage(name, found.top1, found.loss, seconds)


def measure(
    task: Task, dense: Dense, pruned: Pruned, tuned: Tuned, work: Workspace
) -> Final:
    """Saves the network, and measures it as loaded from disk."""
    with replacing(work.path("model")) as new:
        loaded = written(new, tuned.model)
    if task.config.output.torch and devices.is_first():
        _write_torch(loaded, work)
    stages, notes = pruned.stages, ()
    if tuned.recipe is not None:
        last = score(task, "finetuned", loaded, tuned.seconds)
        before, count = stages[-1].top1, len(task.source.test)
        notes = noted(doubts.of_tuning(before, last.top1, count))
        stages = (*stages, last)
    costs = _costs(dense.model, loaded, task.config.output.latency_batch_size)
    times = [each["latency_ms"] for each in costs]
    record, missed = pruned.budget, None
    if record is not None:
        record, missed = budgets.timed_again(record, *times)
    notes += noted(missed, doubts.of_latency(*times))
    return Final(stages, *costs, record, notes)


def deliver(task: Task, found: dict, work: Workspace) -> list[str]:
    """Writes the report, and puts all in place; the names of what is there then."""
    work.write(REPORT, found)
    made = {
        CURVES: isinstance(task.config.pruning.cut, Limits),
        TORCH: task.config.output.torch,
    }
    names = [*OUTPUTS[:3], *(name for name, is_made in made.items() if is_made)]
    optional = [name for name in OUTPUTS if name not in (*names, *made)]
    return work.deliver(names, task.out, optional)


def _write_torch(model: Model, work: Workspace) -> None:
    """Writes the weights for PyTorch, with what a file has to say of its network."""
    about = {
        "model": model.name,
        "num_classes": model.num_classes,
        "widths": model.dense_widths,
        "options": dict(model.options),
        **data.to_json(model.preprocessing),
    }
    weights.save_safetensors(work.folder / TORCH, model.variables, about)


def _costs(dense: Model, pruned: Model, batch_size: int) -> list[dict[str, Any]]:
    """What both networks cost; they are timed in turns."""
    both = (dense, pruned)
    times = latency.latencies(
        [(model.traced.function, model.variables) for model in both],
        dense.input_shape,
        batch_size,
    )
    return [
        {
            "params": cost.parameters(model.traced),
            "macs": cost.macs(model.traced),
            "latency_ms": milliseconds,
            "batch_size": batch_size,
        }
        for model, milliseconds in zip(both, times, strict=True)
    ]
