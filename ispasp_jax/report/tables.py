"""A report for machines, and its tables for people."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from ispasp_jax.numerals import numeral


def groups(
    results: Iterable[Any], ranks: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """What a walk's GroupResults say, for JSON, and the groups' ranks where they are
    known."""
    ranks = ranks or {}
    return [
        {
            "name": group.name,
            "width": group.cut.width,
            "kept": len(group.cut.kept),
            "relative_residual": group.relative_residual,
            "iterations": group.iterations,
            **({"rank": ranks[group.name]} if group.name in ranks else {}),
        }
        for group in results
    ]


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    import platform
    from importlib import metadata

    from ispasp_jax import __version__

    names = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "ispasp_jax": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in names},
    }


def device(count: int | Literal["all"] | None = None) -> str:
    """The devices in use, `count` of every process, in words."""
    import os

    import jax

    from ispasp_jax import devices

    first, count = jax.devices()[0], devices.mesh(count).size
    if first.platform == "cpu":
        allowed = getattr(os, "sched_getaffinity", None)  # not on every system
        cores = len(allowed(0)) if allowed else os.cpu_count()
        return "1 CPU core" if cores == 1 else f"{cores} CPU cores"
    return f"{count} × {first.device_kind}" if count > 1 else first.device_kind


def table(rows: Sequence[Sequence[Any]]) -> str:
    """Rows in columns, the first row the heads, all columns but the first to the right.

    Numbers are shown as `numeral` has them.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in cells
    ]
    rule = "-" * (sum(widths) + 2 * len(widths) - 2)
    return "\n".join([lines[0], rule, *lines[1:]])


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else numeral(value)


#: The residual of a group that is shown: its key, the head of its column, what it is. A
#: budget's predictions stand in the place of what was lost as cut, as it bounds those.
_AS_CUT = (
    "relative_residual",
    "residual as cut",
    "residual as cut: what the cut takes from the output of the layer behind, as a\n"
    "share of its norm, before any repair",
)
_PREDICTED = (
    "predicted_residual",
    "predicted residual",
    "predicted residual: what is missing from the output of the layer behind, as a\n"
    "share of its deviation from its mean, {}, with the channels that\n"
    "obs keeps; from the curves. --tolerance bounds it",
)


def plan_table(
    groups: Sequence[Mapping[str, Any]], budget: Mapping[str, Any] | None = None
) -> str:
    """The groups of a report or a dry run, and what their residuals are.

    Args:
      groups: of the report.
      budget: of the report, if it has one.
    """
    key, head, legend = _AS_CUT if budget is None else _PREDICTED
    if budget is not None:
        result = budget["predicted_residuals"]
        groups = [{**group, key: result.get(group["name"])} for group in groups]
        legend = legend.format(
            "after least squares" if budget["repaired"] else "as cut"
        )
    columns = {"name": "group", "width": "width", "rank": "rank", "kept": "kept"}
    columns[key] = head
    columns["iterations"] = "iterations"
    shown = [key for key in columns if any(key in group for group in groups)]
    rows = [[columns[key] for key in shown]]
    rows += [[group.get(key) for key in shown] for group in groups]
    return f"{table(rows)}\n\n{legend}" if key in shown else table(rows)


def cost_table(dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> str:
    """Dense against pruned: multiply-adds, parameters and, where timed, latency."""
    rows = [("multiply-adds", "macs"), ("parameters", "params")]
    if "latency_ms" in dense:
        rows.append((f"ms for {dense['batch_size']} images", "latency_ms"))
    return table(
        [
            ["", "dense", "pruned", "pruned/dense"],
            *(
                [label, dense[key], pruned[key], f"{pruned[key] / dense[key]:.1%}"]
                for label, key in rows
            ),
        ]
    )


def stage_table(stages: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy after each stage."""
    rows = [
        [s["stage"], f"{100 * s['top1']:.2f}", s["loss"], s["seconds"]] for s in stages
    ]
    return table([["stage", "top-1 %", "loss", "seconds"], *rows])


def budget_table(record: Mapping[str, Any]) -> str:
    """What a budget asked and what its widths reach."""
    from ispasp_jax.budget import KINDS

    rows: list[list[Any]] = [["budget", "asked", "reached", "of dense"]]
    for kind, value in record["reached"].items():
        full = record["feasible"][kind][1]
        asked = record["limits"].get(kind)
        rows.append([KINDS[kind], asked, value, f"{value / full:.1%}"])
    largest = max(record["predicted_residuals"].values(), default=0.0)
    rows.append(["largest predicted residual", record["tolerance"], largest, None])
    return table(rows)


def plan_summary(plan: Mapping[str, Any]) -> str:
    """What a dry run found, for people.

    Args:
      plan: as report.events has it.
    """
    size = " × ".join(map(str, plan["input"]))
    head = f"{plan['model']} on {plan['data']}: input {size}, "
    tables = [] if plan["budget"] is None else [budget_table(plan["budget"])]
    return "\n\n".join(
        [
            f"{head}{plan['num_classes']} classes",
            plan_table(plan["groups"], plan["budget"]),
            *tables,
            cost_table(plan["dense"], plan["pruned"]),
        ]
    )


def summary(report: Mapping[str, Any]) -> str:
    """A whole report.json, for people."""
    spent = {k: v for k, v in report["seconds"].items() if not isinstance(v, Mapping)}
    seconds = ", ".join(f"{k} {numeral(v)}" for k, v in spent.items())
    passes = ", ".join(
        f"{name} {numeral(count)}"
        for name, count in report["seconds"].get("dense_passes", {}).items()
    )
    lines = [f"seconds: {seconds}"]
    if passes:
        lines.append(f"in dense passes, compilation apart: {passes}")
    return "\n\n".join(
        [
            f"{report['model']} on {report['data']}, {report['method']}, seed "
            f"{report['seed']}, {report['device']}",
            plan_table(report["groups"], report.get("budget")),
            *([budget_table(report["budget"])] if "budget" in report else []),
            cost_table(report["dense"], report["pruned"]),
            stage_table(report["stages"]),
            "\n".join([*lines, *report["notes"]]),
        ]
    )
