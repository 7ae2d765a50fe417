"""The stages of a run of prune.py around the walk (cuts.py): each takes what it needs
and returns a record.
"""

import time
from typing import Any

from ispasp_jax import data, devices, files, weights
from ispasp_jax.budget import cost, latency
from ispasp_jax.cli import (
    budgets,
    content,
    curve_files,
    dense,
    doubts,
    exports,
    learning,
    loading,
    sizes,
)
from ispasp_jax.cli.config import Limits, Weights
from ispasp_jax.cli.records import (
    Baseline,
    Dense,
    Final,
    Pruned,
    Stage,
    Task,
    Tuned,
    noted,
)
from ispasp_jax.cli.reports import CURVES, FRONT, OUTPUTS, PAGE, REPORT, TORCH
from ispasp_jax.cli.workspace import Workspace, replacing, written
from ispasp_jax.report import page, say, tell
from ispasp_jax.weights import folders
from ispasp_jax.weights.folders import Model

#: A network whose latency falls behind its multiply-adds by as much, in shares of the
#: dense one's, has its groups timed one by one.
_DISAPPOINTING = 0.15


def dense_network(task: Task, work: Workspace) -> Dense:
    """The network to prune: from --weights, kept from before, or trained now. From here
    on the workspace is this run's.
    """
    config, source, start = task.config, task.source, time.perf_counter()
    origin, notes = config.network.start, ()
    if isinstance(origin, Weights):
        model = loading.load(origin, config.network, config.data, source)
        say(f"dense network: {origin.weights}")
        notes = noted(doubts.of_images(source.preprocessing, model.images))
    else:
        own = Weights(str(dense.network(config, source)))
        model = loading.load(own, config.network, config.data, source)
    sizes.check(config, task.choice, model)
    used = None if config.tuning.trains else task.calibration
    work.begin(
        {
            "weights": folders.fingerprint(model.variables),
            "training images": content.of_training(source, used),
            "test images": content.of_split(source.test),
        }
    )
    return Dense(model, time.perf_counter() - start, notes)


def score_dense(task: Task, dense: Dense) -> Baseline:
    """What the network to prune scores."""
    stage = score(task, "dense", dense.model, dense.seconds)
    classes, count = task.source.num_classes, len(task.source.test)
    return Baseline(stage, noted(doubts.of_dense(stage.top1, classes, count)))


def score(task: Task, name: str, model: Model, seconds: float) -> Stage:
    """What a network scores on the test split, after a stage of so many seconds."""
    result = learning.evaluate(task.config, task.source, model)
    stage = Stage(name, result.top1, result.loss, seconds)
    tell("score", **stage._asdict())
    return stage


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
        count = len(task.source.test)
        notes = noted(doubts.of_tuning(stages[-1].top1, last.top1, count))
        stages = (*stages, last)
    costs = _costs(dense.model, loaded, task.config.output.latency_batch_size)
    before, after = (each["latency_ms"] for each in costs)
    record, missed = pruned.budget, None
    if record is not None:
        record, missed = budgets.timed_again(record, before, after)
    notes += noted(missed, doubts.of_latency(before, after))
    if after / before > costs[1]["macs"] / costs[0]["macs"] + _DISAPPOINTING:
        notes += noted(*_unpaid(task, dense.model, pruned))
    made = []
    output = task.config.output
    if output.formats and devices.is_first():
        size = output.latency_batch_size
        made = exports.write(output.formats, dense.model, loaded, work.folder, size)
    return Final(
        stages,
        dense=costs[0],
        pruned=costs[1],
        budget=record,
        notes=notes,
        exports=tuple(made),
    )


def _unpaid(task: Task, dense: Model, pruned: Pruned) -> list[str]:
    """What the groups say whose cut does not make the network faster."""
    size = task.config.output.latency_batch_size
    sizes = {group["name"]: group["kept"] for group in pruned.groups}
    return [
        doubts.of_group(group) for group in latency.unpaid(dense.traced, sizes, size)
    ]


def deliver(task: Task, found: dict, work: Workspace) -> list[str]:
    """Writes the report, and puts all in place; the names of what is there then."""
    work.write(REPORT, found)
    output, cut = task.config.output, task.config.pruning.cut
    measured, whole = isinstance(cut, Limits), isinstance(cut, Limits) and cut.pareto
    if devices.is_first():
        curves = curve_files.from_json(work.read(CURVES)).curves if measured else None
        files.write_text(work.folder / PAGE, page.html(found, curves))
    made = {
        CURVES: measured,
        FRONT: whole,
        TORCH: output.torch,
        **{file: name in output.formats for name, file in exports.NAMES.items()},
    }
    names = [*OUTPUTS[:4], *(name for name, is_made in made.items() if is_made)]
    optional = [name for name in OUTPUTS if name not in (*names, *made)]
    return work.deliver(names, task.out, optional)


def _write_torch(model: Model, work: Workspace) -> None:
    """Writes the weights for PyTorch, with what a file has to say of its network."""
    about = {
        "model": model.name,
        "num_classes": model.num_classes,
        "widths": model.dense_widths,
        "options": dict(model.options),
        **data.to_json(model.images),
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
            "macs_by_part": cost.macs_by_part(model.traced),
            "latency_ms": milliseconds,
            "batch_size": batch_size,
        }
        for model, milliseconds in zip(both, times, strict=True)
    ]
