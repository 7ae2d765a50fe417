"""How many channels of each group a run keeps: fractions by the flags, or what meets a
budget, from curves that are kept beside the result.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ispasp_jax import devices
from ispasp_jax.cli import budgets, curve_files, widths
from ispasp_jax.errors import InputError
from ispasp_jax.report import say
from ispasp_jax.walk.clocks import Clocks
from ispasp_jax.weights.folders import Model

if TYPE_CHECKING:
    from ispasp_jax.cli.run import Run

_SIZES = "sizes.json"


def choose(
    run: "Run", model: Model, batches: list[np.ndarray], mesh: jax.sharding.Mesh
) -> dict[str, int]:
    """The sizes, by group; a budget's also go to the run's report and folder.

    Args:
      run: whose flags ask for them.
      model: the network to prune.
      batches: calibration images, preprocessed.
      mesh: devices to spread them over.

    Raises:
      InputError: the budget cannot be met.
    """
    if not widths.has_budget(run.args):
        return widths.kept(run.args, model)
    held, found = _curves(run, model, batches, mesh)
    left_out = set(widths.scoped(run.args, model)) - set(held["curves"])
    if left_out:
        run.note(
            f"{', '.join(sorted(left_out))}: not cut, since least squares does not "
            "reach the consumer and there is no curve"
        )
    # Latencies are never the same twice, so a stopped walk goes on with its sizes.
    kept = run.work.read(_SIZES) if run.work.resumed else None
    if kept is None:
        sizes, record = budgets.solve(run.args, model, held)
        kept = {"sizes": sizes, "budget": {"curves": found, **record}}
        run.work.write(curve_files.CURVES, curve_files.to_json(held))
        run.work.write(_SIZES, kept)
    run.report["budget"] = kept["budget"]
    if devices.is_first():
        path = run.work.folder / budgets.PLOT
        found = budgets.scoped(run.args, model, held)
        if not budgets.draw(found, kept["sizes"], path):
            run.note("no curves.png: install the [plots] extra (matplotlib)")
    return kept["sizes"]


def _curves(run, model, batches, mesh) -> tuple[dict[str, Any], str]:
    """Curves known or measured, and which; those measured are kept at once."""
    clocks = Clocks()
    with clocks.on("curves"):
        held, found = _known(run, model, batches)
        if held is None:
            held = budgets.measure(run.args, model, batches, mesh)
            run.work.write(curve_files.CURVES, curve_files.to_json(held))
    run.took("curves", clocks.so_far())
    return held, found


def _known(run, model, batches) -> tuple[dict[str, Any] | None, str]:
    """Curves of these weights and images that are there, if any are, and whether this
    run measured them or is to."""
    identity = curve_files.identity(run.args, model, batches)
    held, found = curve_files.given(run.args, model), "kept from an earlier run"
    if held is None:
        held = _kept(run, run.out, model, identity)
    elif held["identity"].get("weights") != identity["weights"]:
        run.note(
            f"{run.args.curves} does not say that it was measured on these weights: "
            "leave --curves out unless you know that it fits"
        )
    if held is None:
        found = "measured"
        if run.work.resumed:
            held = _kept(run, run.work.folder, model, identity)
    return held, found


def _kept(
    run, folder: Path, model: Model, identity: dict[str, Any]
) -> dict[str, Any] | None:
    """The curves in a folder if they are of the same weights and images, and of all
    groups that may be cut."""
    try:
        held = curve_files.beside(run.args, folder, model)
    except InputError as error:
        say(f"{str(error).partition(';')[0]}: measuring the curves again")
        return None
    return held if held and curve_files.answers(held["identity"], identity) else None
