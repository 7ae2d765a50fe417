"""A run as one HTML file that needs nothing else: what was asked, what was cut, what it
cost. Drawn from report.json, and from the curves where a budget measured them.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import numpy as np

from ispasp_jax.budget import KINDS
from ispasp_jax.numerals import numeral
from ispasp_jax.walk.curves import Curves


class Point(NamedTuple):
    """A place in a picture whose sides are 1."""

    x: float
    y: float


class Line(NamedTuple):
    """A group's curve in a picture whose sides are 1.

    Attributes:
      name: of the group.
      shade: its place among all, 0..1.
      points: residual against the share of channels kept.
      chosen: the point that was taken.
      label: of that point, in words.
    """

    name: str
    shade: float
    points: Sequence[Point]
    chosen: Point
    label: str


class Part(NamedTuple):
    """What begins alike in the network.

    Attributes:
      name: what it begins with.
      width: channels of its groups in the dense network.
      kept: of these.
      dense: its multiply-adds in the dense network.
      pruned: in the pruned one.
    """

    name: str
    width: int
    kept: int
    dense: int
    pruned: int


def html(report: Mapping[str, Any], curves: Curves | None = None) -> str:
    """The page.

    Args:
      report: what report.json holds.
      curves: residuals by group and size, where a budget measured them.
    """
    groups = report["groups"]
    template = _templates().get_template("page.html")
    return template.render(
        report=report,
        groups=groups,
        parts=_parts(report),
        widest=max((group["width"] for group in groups), default=1),
        drift=_drift(groups),
        lines=_lines(curves or {}, groups),
        costs=_costs(report),
        kinds=KINDS,
    )


@functools.cache
def _templates() -> jinja2.Environment:
    loader = jinja2.PackageLoader("ispasp_jax.report", "templates")
    templates = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined
    )
    templates.filters["numeral"] = lambda value: (
        "–" if value is None else numeral(value)
    )
    templates.filters["percent"] = lambda share: f"{100 * share:.1f} %"
    return templates


def _parts(report: Mapping[str, Any]) -> list[Part]:
    dense, pruned = (report[one].get("macs_by_part", {}) for one in ("dense", "pruned"))
    channels = dict.fromkeys(dense, (0, 0))
    for group in report["groups"]:
        name = re.split(r"[./]", group["name"])[0]
        width, kept = channels.get(name, (0, 0))
        channels[name] = width + group["width"], kept + group["kept"]
    return [
        Part(name, width, kept, dense.get(name, 0), pruned.get(name, 0))
        for name, (width, kept) in channels.items()
    ]


def _drift(groups: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Groups whose residual was measured, in the network's order."""
    return [g for g in groups if g.get("relative_residual") is not None]


def _lines(curves: Curves, groups: Sequence[Mapping[str, Any]]) -> list[Line]:
    kept = {group["name"]: group["kept"] for group in groups}
    lines = []
    for place, (name, curve) in enumerate(curves.items()):
        d = len(curve.order)
        share = np.arange(d + 1) / d
        residual = np.clip(np.asarray(curve.relative, float), 0, 1)
        size = kept.get(name, d)
        lines.append(
            Line(
                name,
                place / max(1, len(curves) - 1),
                [Point(*map(float, p)) for p in zip(share, residual, strict=True)],
                Point(size / d, float(residual[size])),
                f"{name}: {size} of {d}, residual {numeral(float(residual[size]))}",
            )
        )
    return lines


def _costs(report: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """What there is less of: its name, dense, and pruned."""
    dense, pruned = report["dense"], report["pruned"]
    rows = [("multiply-adds", "macs"), ("parameters", "params")]
    if "latency_ms" in dense:
        images = dense["batch_size"]
        rows.append((f"ms for {images} images, {report['device']}", "latency_ms"))
    return [(label, dense[key], pruned[key]) for label, key in rows]
