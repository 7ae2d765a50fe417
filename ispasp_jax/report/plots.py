"""Pictures of a run; needs the [plots] extra (matplotlib)."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

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
