"""Budgets as the command meets them: curves measured or kept from before (see
curve_files.py), the feasible range, widths, what was reached.
"""

import math
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ispasp_jax import budget, devices, report
from ispasp_jax.budget import KINDS, Asked, cost, latency
from ispasp_jax.budget.cost import BySize
from ispasp_jax.cli import curve_files, widths
from ispasp_jax.errors import InputError
from ispasp_jax.graph import narrow
from ispasp_jax.graph.widths import first
from ispasp_jax.numerals import numeral
from ispasp_jax.report import say
from ispasp_jax.walk.curves import Curves, measure_curves
from ispasp_jax.weights.folders import Model

#: What a run calls the curves' picture.
PLOT = "curves.png"

#: Solutions whose latency is measured before a target is given up.
_ROUNDS = 6


def check(args: Namespace, model: Model) -> None:
    """Raises InputError where no curves could meet the targets of the flags."""
    asked = widths.budget(args)._replace(tolerance=None)
    allowed = budget.candidates(None, widths.scoped(args, model), asked)
    budget.feasible(_counted(model), allowed, asked.targets)


def _counted(model: Model) -> dict[str, BySize]:
    """Costs that need no timing."""
    return {
        "macs": cost.macs_by_size(model.traced),
        "params": cost.parameters_by_size(model.traced),
    }


def scoped(args: Namespace, model: Model, held: Mapping[str, Any]) -> Curves:
    """The curves of the groups that --scope and --ignore let be cut."""
    known = held["curves"]
    return {n: known[n] for n in widths.scoped(args, model) if n in known}


def dry_run(args: Namespace, model: Model, out: Path):
    """`solve` from curves that are there.

    Raises:
      InputError: there are none.
    """
    held = curve_files.given(args, model) or curve_files.beside(args, out, model)
    if held is None:
        raise InputError(
            "--target and --tolerance need curves, and a dry run measures none; give "
            "--curves FILE or the --out of an earlier run, or leave --dry-run out."
        )
    return solve(args, model, held)


def measure(
    args: Namespace, model: Model, batches: list[np.ndarray], mesh: jax.sharding.Mesh
) -> dict[str, Any]:
    """Measures the curves: what curves.json is to hold, with "curves" as Curves."""
    try:
        found = measure_curves(
            model.traced,
            model.variables,
            batches,
            [model.traced[name] for name in widths.scoped(args, model)],
            repaired=args.repair == "lsq",
            mesh=mesh,
            memory=args.calibration_memory,
            progress=lambda parts: report.track(parts, "curves", len(parts)),
        )
    except FloatingPointError as error:
        raise InputError(str(error)) from error
    identity = curve_files.identity(args, model, batches)
    return {"format": 1, "identity": identity, "curves": found}


def solve(
    args: Namespace, model: Model, held: dict[str, Any]
) -> tuple[dict[str, int], dict[str, Any]]:
    """The sizes that meet the budget of the flags, and a record of asked and reached.

    Prints the feasible range first. `held` gains the latencies that were timed.

    Raises:
      InputError: the budget cannot be met, with the nearest that can.
    """
    asked = widths.budget(args)
    costs, found = _counted(model), scoped(args, model, held)
    wants_latency = any(target.kind == "latency" for target in asked.targets)
    if wants_latency:
        costs["latency"] = _latency(args, model, held)
    channels = widths.scoped(args, model)
    allowed = budget.candidates(found, channels, asked)
    ranges = budget.feasible(costs, allowed)
    say(_range_table(ranges))
    budget.feasible(costs, allowed, asked.targets)
    if wants_latency:
        sizes, milliseconds = _timed(args, model, found, costs, asked)
    else:
        sizes = budget.solve(found, costs, channels, asked)
    reached = {kind: c.total(sizes) for kind, c in costs.items()}
    if wants_latency:
        reached["latency"], full = milliseconds
        ranges["latency"] = (ranges["latency"][0], full)
    return sizes, {
        "asked": widths.targets(args),
        "limits": {t.kind: t.limit(ranges[t.kind][1]) for t in asked.targets},
        "tolerance": asked.tolerance,
        "min_channels": asked.min_channels,
        "round_to": asked.round_to,
        "feasible": {kind: list(pair) for kind, pair in ranges.items()},
        "reached": reached,
        "repaired": args.repair == "lsq",
        "predicted_residuals": {
            name: float(c.relative[sizes[name]]) for name, c in found.items()
        },
        "predicted_damage": sum(
            float(c.damage[sizes[name]]) for name, c in found.items()
        ),
    }


def timed_again(report: dict[str, Any]) -> str | None:
    """Puts the latencies of the finished network in the place of those that chose its
    widths, so that a report knows one; a sentence where they miss the target.

    Args:
      report: with "budget", if there is one, "dense" and "pruned".
    """
    record = report.get("budget", {})
    if "latency" not in record.get("reached", ()):
        return None
    full, narrow = (report[name]["latency_ms"] for name in ("dense", "pruned"))
    chosen = record["reached"]["latency"]
    record["latency_when_chosen"] = chosen
    record["reached"]["latency"] = narrow
    record["feasible"]["latency"][1] = full
    wanted = [t for t in map(budget.target, record["asked"]) if t.kind == "latency"]
    limit = record["limits"]["latency"] = min(t.limit(full) for t in wanted)
    if narrow <= limit:
        return None
    return (
        f"latency: {numeral(narrow)} ms at the end, more than the {numeral(limit)} "
        f"asked for, and {numeral(chosen)} when the widths were chosen: this device's "
        "timings vary by as much; ask for less, or leave it alone while it is timed"
    )


def draw(held: Curves, sizes: Mapping[str, int], path: Path) -> bool:
    """Draws the curves, where matplotlib is there."""
    try:
        from ispasp_jax.report import plots
    except ImportError:
        return False
    plots.curves(held, sizes, path)
    return True


def _range_table(ranges) -> str:
    rows = [
        [KINDS[kind], least, full, f"{least / full:.1%}"]
        for kind, (least, full) in ranges.items()
    ]
    return report.table([["feasible", "least", "dense", "least/dense"], *rows])


def _latency(args, model, held) -> BySize:
    """Milliseconds by size on the present device, kept in `held`."""
    channels = widths.scoped(args, model)
    here = {"device": report.device(), "batch_size": args.latency_batch_size}
    if kept := curve_files.latency(held, {**here, "widths": channels}):
        return kept
    say("timing every group on this device")
    groups = [model.traced[name] for name in channels]
    found = latency.latency_by_size(model.traced, args.latency_batch_size, groups)
    held["latency"] = curve_files.latency_to_json(found, here)
    return found


def _timed(args, model, held: Curves, costs, asked: Asked):
    """Sizes whose measured latency is within the target; its milliseconds, and dense.

    The blocks' times do not add up to the network's, so the model's limit is tightened
    until the network itself, timed in turns with the dense one, is fast enough.
    """
    wanted = min(
        (t for t in asked.targets if t.kind == "latency"),
        key=lambda t: t.limit(costs["latency"].full),
    )
    others = tuple(t for t in asked.targets if t.kind != "latency")
    channels, share = widths.scoped(args, model), None
    for _ in range(_ROUNDS):
        targets = others
        if share is not None:
            targets = (*others, budget.Target("latency", share, True))
        sizes = channels
        if targets:
            asked = asked._replace(targets=targets)
            sizes = budget.solve(held, costs, channels, asked)
        narrow, full = devices.agree(_milliseconds(args, model, sizes))
        limit = wanted.limit(full)
        say(
            f"latency: {numeral(narrow)} ms of {numeral(full)} dense, asked for "
            f"{numeral(limit)}"
        )
        if narrow <= limit:
            return sizes, (float(narrow), float(full))
        if share is None:
            share = limit / full
        else:
            share *= 0.97 * limit / narrow
    raise InputError(
        f"--target latency={numeral(limit)}ms: after {_ROUNDS - 1} tries the network "
        f"still takes {numeral(narrow)} ms of {numeral(full)} on this device; ask for "
        f"about "
        f"{math.ceil(100 * narrow / full)}% or more."
    )


def _milliseconds(args, model, sizes):
    """Of the network with these sizes, and of the dense one, timed in turns."""
    traced, pairs = model.traced, []
    plan = first(traced, sizes)
    for kept in (plan, {}):
        shapes = traced.take(kept, traced.variables)
        function = narrow(traced.function, traced, kept) if kept else traced.function
        pairs.append((function, jax.tree.map(latency.filled, shapes)))
    return latency.latencies(pairs, model.input_shape, args.latency_batch_size)
