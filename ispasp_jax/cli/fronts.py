"""--pareto: the whole front from the curves, some of its points really cut, repaired
and measured, and the one with which the run goes on.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from ispasp_jax import budget, devices, report
from ispasp_jax.budget import Point, cost, latency
from ispasp_jax.cli import budgets, learning, widths
from ispasp_jax.cli.config import Limits
from ispasp_jax.cli.curve_files import CurveFile
from ispasp_jax.cli.records import Images, Task
from ispasp_jax.cli.workspace import Workspace
from ispasp_jax.errors import InputError
from ispasp_jax.report import say
from ispasp_jax.selection.criterion import Criterion
from ispasp_jax.walk import Options, walk
from ispasp_jax.weights.folders import Model

#: What a run calls the front, and its picture.
FRONT, PICTURE = "front.json", "front.png"

#: Points that are really cut.
_MEASURED = 10


def chosen(
    limits: Limits,
    task: Task,
    model: Model,
    images: Images,
    held: CurveFile,
    work: Workspace,
) -> Limits:
    """The limits that lead to the point of --pick; the front is kept in the workspace.

    Raises:
      InputError: the front has no point of that number.
    """
    kept = work.read(FRONT) if work.resumed else None
    if kept is None:
        kept = _measured(limits, task, model, images, held)
        work.write(FRONT, kept)
    if devices.is_first():
        _draw(kept, work)
    say(_table(kept))
    place = _place(limits.pick, kept)
    say(f"going on with point {place + 1}" + " (the knee)" * (limits.pick == "knee"))
    # The budget of a point is its own cost: solving it again gives its sizes.
    target = f"macs={kept['points'][place]['macs']!r}"
    return dataclasses.replace(limits, target=(*limits.target, target))


def _measured(
    limits: Limits, task: Task, model: Model, images: Images, held: CurveFile
) -> dict[str, Any]:
    """What front.json holds."""
    config = task.config
    pruning = config.pruning
    every = budget.front(
        budgets.in_scope(pruning, model, held.curves),
        {
            "macs": cost.macs_by_size(model.traced),
            "params": cost.parameters_by_size(model.traced),
        },
        widths.scope(pruning, model),
        widths.budget_of(limits, pruning, model),
    )
    points = budget.spread(every, _MEASURED)
    rows = report.track(points, "front", len(points))
    return {
        "format": 1,
        "device": report.device(config.run.devices),
        "batch_size": config.output.latency_batch_size,
        "solved": [{**point.costs, "predicted_loss": point.damage} for point in every],
        "points": [_row(task, model, images, point) for point in rows],
        "knee": budget.knee(points),
    }


def _row(task: Task, model: Model, images: Images, point: Point) -> dict[str, Any]:
    """A point, cut, repaired and measured."""
    assert isinstance(task.choice, Criterion), "a plan has no front"
    config = task.config
    options = Options(
        key=jax.random.key(config.run.seed),
        repair=config.pruning.repair,
        residual_images=0,
        mesh=images.mesh,
        memory=config.pruning.calibration_memory,
    )
    walked = walk(
        model.traced,
        model.variables,
        images.batches,
        point.sizes,
        task.choice,
        labels=images.labels,
        options=options,
    )
    small = model.cut(walked.plan, walked.variables)
    score = learning.evaluate(config, task.source, small)
    times = latency.latencies(
        [(one.traced.function, one.variables) for one in (model, small)],
        model.input_shape,
        config.output.latency_batch_size,
    )
    before, after = devices.agree(times)
    return {
        **point.costs,
        "predicted_loss": point.damage,
        "latency_ms": float(after),
        "dense_latency_ms": float(before),
        "top1": score.top1,
        "loss": score.loss,
        "sizes": point.sizes,
        "removed": [name for name, size in point.sizes.items() if not size],
    }


def _place(pick: str, kept: dict[str, Any]) -> int:
    if pick == "knee":
        return kept["knee"]
    place = int(pick) - 1
    if not 0 <= place < len(kept["points"]):
        raise InputError(
            f"--pick {pick}: the front has points 1 to {len(kept['points'])}."
        )
    return place


def _table(kept: dict[str, Any]) -> str:
    size = kept["batch_size"]
    head = ["point", "multiply-adds", "parameters", f"ms for {size}", "of dense"]
    rows: list[Sequence[Any]] = [[*head, "predicted loss", "top-1 %", "removed"]]
    for place, row in enumerate(kept["points"]):
        share = row["latency_ms"] / row["dense_latency_ms"]
        rows.append(
            [
                f"{place + 1}" + " knee" * (place == kept["knee"]),
                int(row["macs"]),
                int(row["params"]),
                row["latency_ms"],
                f"{share:.0%}",
                row["predicted_loss"],
                f"{100 * row['top1']:.2f}",
                str(len(row["removed"])),
            ]
        )
    return report.table(rows)


def _draw(kept: dict[str, Any], work: Workspace) -> None:
    """Draws the front, where matplotlib is there."""
    try:
        from ispasp_jax.report import plots
    except ImportError:
        say(f"no {PICTURE}: install the [plots] extra (matplotlib)")
        return
    plots.front(kept["solved"], kept["points"], kept["knee"], work.folder / PICTURE)
