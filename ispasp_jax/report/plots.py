"""Pictures of a run; needs the [plots] extra (matplotlib)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ispasp_jax.report.compare import Best, Run
from ispasp_jax.walk.curves import Curves


def curves(found: Curves, sizes: Mapping[str, int], path: Path) -> None:
    """Every group's predicted residual against the channels kept, the sizes chosen
    marked, and how much of each group they keep.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.95, len(found)))
    for colour, (name, curve) in zip(colours, found.items(), strict=True):
        d = len(curve.order)
        share = np.arange(d + 1) / d
        left.plot(share, curve.relative, color=colour, linewidth=1)
        left.plot(sizes[name] / d, curve.relative[sizes[name]], "o", color=colour, ms=4)
    left.set(
        xlabel="channels kept, of all",
        ylabel="predicted residual ‖V‖/‖U‖",
        title="residual of every group; dots: chosen",
        ylim=(0, 1.02),
    )
    places = np.arange(len(found))
    kept = [sizes[name] / len(curve.order) for name, curve in found.items()]
    right.bar(places, kept, color=colours)
    step = max(1, len(found) // 20)
    right.set_xticks(places[::step], list(found)[::step], rotation=90, fontsize=7)
    right.set(ylabel="channels kept, of all", title="width by block", ylim=(0, 1.02))
    figure.savefig(path, dpi=120)


def comparison(runs: Sequence[Run], marks: Sequence[Best], path: Path) -> None:
    """Top-1 of every run against its multiply-adds and its latency, as an SVG file;
    Pareto points are filled.

    Args:
      runs: what to compare.
      marks: of compare.best.
      path: the file, whatever its name ends in.
    """
    # The same runs make the same file: no date, and no names drawn at random.
    with matplotlib.rc_context({"svg.hashsalt": "ispasp_jax"}):
        figure = Figure(figsize=(10, 4.5), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(runs)))
        for one, mark, colour in zip(runs, marks, colours, strict=True):
            costs = ((left, one.pruned.macs / 1e6), (right, one.pruned.latency_ms))
            for (axes, cost), filled in zip(costs, mark, strict=True):
                face = colour if filled else "none"
                axes.scatter(cost, 100 * one.top1, edgecolors=[colour], color=[face])
                axes.annotate(
                    one.name,
                    (cost, 100 * one.top1),
                    xytext=(4, 4),
                    textcoords="offset points",
                    fontsize=7,
                    parse_math=False,
                )
        left.set(xlabel="million multiply-adds", ylabel="top-1, %")
        right.set(xlabel="latency, ms")
        figure.suptitle("filled: Pareto points")
        figure.savefig(path, format="svg", metadata={"Date": None})


def front(
    solved: Sequence[Mapping[str, float]],
    points: Sequence[Mapping[str, float]],
    knee: int,
    path: Path,
) -> None:
    """Predicted loss of every budget, and top-1 of those really cut, against the
    multiply-adds; the knee marked.

    Args:
      solved: every budget, from the curves.
      points: those that were cut, repaired and measured.
      knee: place of the knee among the points.
      path: the file.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, key, rows in (
        (left, "predicted_loss", solved),
        (right, "top1", points),
    ):
        axes.plot([r["macs"] for r in rows], [r[key] for r in rows], "-", linewidth=1)
        axes.plot([r["macs"] for r in points], [r[key] for r in points], "o", ms=4)
        axes.plot(points[knee]["macs"], points[knee][key], "s", ms=9, fillstyle="none")
        axes.set(xlabel="multiply-adds", ylabel=key.replace("_", " "))
    left.set(title="every budget, from the curves; dots: really cut")
    right.set(title="cut, repaired, measured; square: the knee")
    figure.savefig(path, dpi=120)
