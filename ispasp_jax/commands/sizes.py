"""How many channels of each group a run keeps: fractions by the flags, or what meets a
budget, from curves that are kept beside the result.
"""

import time
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ispasp_jax import devices
from ispasp_jax.checkpoints import Model
from ispasp_jax.commands import budgets, widths

if TYPE_CHECKING:
    from ispasp_jax.commands.run import Run

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
        return widths.kept(run.args, model.network)
    held, found = _curves(run, model, batches, mesh)
    left_out = set(model.network.group_widths()) - set(held["curves"])
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
        run.work.write(budgets.CURVES, budgets.to_json(held))
        run.work.write(_SIZES, kept)
    run.report["budget"] = kept["budget"]
    if devices.is_first():
        path = run.work.folder / budgets.PLOT
        if not budgets.draw(held["curves"], kept["sizes"], path):
            run.note("no curves.png: install the [plots] extra (matplotlib)")
    return kept["sizes"]


def _curves(run, model, batches, mesh) -> tuple[dict[str, Any], str]:
    """Curves known or measured, and which; those measured are kept at once."""
    start = time.perf_counter()
    held = budgets.known(run.args, model, run.out)
    found = "measured" if held is None else "kept from an earlier run"
    if held is None and run.work.resumed:
        held = budgets.known(run.args, model, run.work.folder)
    if held is None:
        held = budgets.measure(run.args, model, batches, mesh)
        run.work.write(budgets.CURVES, budgets.to_json(held))
    run.report["seconds"]["curves"] = time.perf_counter() - start
    return held, found
