"""Budgets as the command meets them: curves (see curve_files.py), the feasible range,
widths, and what was reached.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ispasp_jax import budget, devices, report
from ispasp_jax.budget import KINDS, cost, latency, timed
from ispasp_jax.budget.cost import BySize
from ispasp_jax.cli import curve_files, widths
from ispasp_jax.cli.config import Limits, PruneConfig, Pruning
from ispasp_jax.cli.curve_files import CurveFile
from ispasp_jax.cli.records import Images
from ispasp_jax.errors import InputError
from ispasp_jax.graph import narrow
from ispasp_jax.graph.widths import first
from ispasp_jax.numerals import numeral
from ispasp_jax.report import say
from ispasp_jax.walk.curves import Curves, measure_curves
from ispasp_jax.weights.folders import Model

#: What a run calls the curves' picture.
PLOT = "curves.png"


class Widths(NamedTuple):
    """What meets a budget.

    Attributes:
      sizes: channels of every group that may be cut.
      record: what was asked and reached, for report.json.
      curves: those that it was solved from, with the latencies that were timed.
    """

    sizes: dict[str, int]
    record: dict[str, Any]
    curves: CurveFile


def check(limits: Limits, pruning: Pruning, model: Model) -> None:
    """Raises InputError where no curves could meet the targets."""
    asked = widths.budget_of(limits, pruning, model)._replace(tolerance=None)
    allowed = budget.candidates(None, widths.scope(pruning, model), asked)
    budget.feasible(_counted(model), allowed, asked.targets)


def _counted(model: Model) -> dict[str, BySize]:
    """Costs that need no timing."""
    return {
        "macs": cost.macs_by_size(model.traced),
        "params": cost.parameters_by_size(model.traced),
    }


def in_scope(pruning: Pruning, model: Model, known: Curves) -> Curves:
    """The curves of the groups that --scope and --ignore let be cut."""
    return {n: known[n] for n in widths.scope(pruning, model) if n in known}


def dry_run(limits: Limits, config: PruneConfig, model: Model, out: Path) -> Widths:
    """`solve` from curves that are there.

    Raises:
      InputError: there are none.
    """
    if limits.curves is not None:
        held = curve_files.read(limits.curves, config.pruning, model)
    else:
        held = curve_files.beside(out, config.pruning, model)
    if held is None:
        raise InputError(
            "--target and --tolerance need curves, and a dry run measures none; give "
            "--curves FILE or the --out of an earlier run, or leave --dry-run out."
        )
    return solve(limits, config, model, held)


def measure(
    config: PruneConfig,
    model: Model,
    images: Images,
) -> CurveFile:
    """Measures the curves."""
    pruning = config.pruning
    curves = functools.partial(
        measure_curves,
        repaired=pruning.fits,
        progress=functools.partial(report.track, label="curves"),
    )
    result = widths.survey(curves, pruning, model, images)
    return CurveFile(curve_files.identity(config, model, images.batches), result)


def solve(limits: Limits, config: PruneConfig, model: Model, held: CurveFile) -> Widths:
    """The sizes that meet the budget, from curves; prints the feasible range first.

    Raises:
      InputError: the budget cannot be met, with the nearest that can.
    """
    pruning = config.pruning
    asked = widths.budget_of(limits, pruning, model)
    channels = widths.scope(pruning, model)
    costs, result = _counted(model), in_scope(pruning, model, held.curves)
    is_timed = any(target.kind == "latency" for target in asked.targets)
    size = config.output.latency_batch_size
    if is_timed:
        costs["latency"], held = _latency(model, channels, size, held)
    allowed = budget.candidates(result, channels, asked)
    ranges = budget.feasible(costs, allowed)
    say(_range_table(ranges))
    budget.feasible(costs, allowed, asked.targets)
    measured: dict[str, float] = {}
    if is_timed:
        times = _times(model, size)
        found = timed.within(result, costs, channels, asked, times, _say_times)
        sizes, measured["latency"] = found.sizes, found.pruned
        ranges["latency"] = (ranges["latency"][0], found.dense)
    else:
        sizes = budget.solve(result, costs, channels, asked)
    reached = {kind: c.total(sizes) for kind, c in costs.items()} | measured
    at = {name: (curve, sizes[name]) for name, curve in result.items()}
    record = {
        "asked": list(limits.target),
        "limits": {t.kind: t.limit(ranges[t.kind][1]) for t in asked.targets},
        "tolerance": asked.tolerance,
        "min_channels": asked.min_channels,
        "round_to": asked.round_to,
        "feasible": {kind: list(pair) for kind, pair in ranges.items()},
        "reached": reached,
        "repaired": pruning.fits,
        "predicted_residuals": {n: float(c.relative[k]) for n, (c, k) in at.items()},
        "predicted_damage": sum(float(c.damage[k]) for c, k in at.values()),
        "removed": [name for name, size in sizes.items() if not size],
    }
    return Widths(sizes, record, held)


def timed_again(
    record: Mapping[str, Any], dense: float, pruned: float
) -> tuple[dict[str, Any], str | None]:
    """A budget's record with the latencies of the finished network in the place of
    those that chose its widths, so that a report knows one, and by which share they
    miss the target ("latency_missed": below 0 it is faster than asked); and a sentence
    where it is slower, or faster by more than budget.timed takes for met although
    nothing else was asked.

    Args:
      record: of `solve`.
      dense: milliseconds.
      pruned: milliseconds.
    """
    if "latency" not in record["reached"]:
        return dict(record), None
    chosen = record["reached"]["latency"]
    least, _ = record["feasible"]["latency"]
    wanted = [t for t in map(budget.target, record["asked"]) if t.kind == "latency"]
    limit = min(t.limit(dense) for t in wanted)
    result = {
        **record,
        "limits": {**record["limits"], "latency": limit},
        "feasible": {**record["feasible"], "latency": [least, dense]},
        "reached": {**record["reached"], "latency": pruned},
        "latency_when_chosen": chosen,
        "latency_missed": pruned / limit - 1,
    }
    apart = f"{abs(pruned / limit - 1):.0%}"
    if pruned > limit:
        return result, (
            f"latency: {numeral(pruned)} ms at the end, {apart} more than the "
            f"{numeral(limit)} asked for, and {numeral(chosen)} when the widths were "
            "chosen: this device's timings vary by as much; ask for less, or leave it "
            "alone while it is timed"
        )
    alone = len(record["asked"]) == len(wanted)
    if alone and record["tolerance"] is None and pruned < (1 - timed.CLOSE) * limit:
        return result, (
            f"latency: {numeral(pruned)} ms at the end, {apart} less than the "
            f"{numeral(limit)} asked for: no widths between were found; smaller "
            "multiples (--round-to) give more of them"
        )
    return result, None


def draw(held: Curves, sizes: Mapping[str, int], path: Path) -> bool:
    """Draws the curves, where matplotlib is there."""
    try:
        from ispasp_jax.report import plots
    except ImportError:
        return False
    plots.curves(held, sizes, path)
    return True


def _range_table(ranges: Mapping[str, tuple[float, float]]) -> str:
    rows = [
        [KINDS[kind], least, full, f"{least / full:.1%}"]
        for kind, (least, full) in ranges.items()
    ]
    return report.table([["feasible", "least", "dense", "least/dense"], *rows])


def _latency(
    model: Model, channels: Mapping[str, int], batch_size: int, held: CurveFile
) -> tuple[BySize, CurveFile]:
    """Milliseconds by size on the present device, and the curves with them."""
    here = {"device": report.device(), "batch_size": batch_size}
    if kept := curve_files.latency(held, {**here, "widths": channels}):
        return kept, held
    say("timing every group on this device")
    groups = [model.traced[name] for name in channels]
    result = latency.latency_by_size(model.traced, batch_size, groups)
    return result, held._replace(latency=curve_files.latency_to_json(result, here))


def _times(model: Model, batch_size: int) -> timed.Milliseconds:
    """What times the model with any sizes, and the dense one in turns with it."""

    def milliseconds(sizes: Mapping[str, int]) -> list[float]:
        traced, pairs = model.traced, []
        plan = first(traced, sizes)
        for kept in (plan, {}):
            shapes = traced.take(kept, traced.variables)
            function = traced.function
            function = narrow(function, traced, kept) if kept else function
            pairs.append((function, jax.tree.map(latency.filled, shapes)))
        found = latency.latencies(pairs, model.input_shape, batch_size)
        return [*devices.agree(found)]

    return milliseconds


def _say_times(one: timed.Timed) -> None:
    say(
        f"latency: {numeral(one.pruned)} ms of {numeral(one.dense)} dense, asked for "
        f"{numeral(one.limit)}"
    )
