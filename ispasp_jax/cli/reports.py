"""report.json, put together from the records of a run's stages."""

from typing import Any

from ispasp_jax import report
from ispasp_jax.cli import exports
from ispasp_jax.cli.budgets import PLOT
from ispasp_jax.cli.config import PlanFile
from ispasp_jax.cli.curve_files import CURVES
from ispasp_jax.cli.fronts import FRONT, PICTURE
from ispasp_jax.cli.plan_files import FROM_DENSE, PLAN
from ispasp_jax.cli.records import Dense, Final, Pruned, Task, Tuned

#: What a finished run leaves in its folder.
REPORT, PAGE, TORCH = "report.json", "report.html", "torchvision.safetensors"
OUTPUTS = (
    *("model", PLAN, REPORT, PAGE, FROM_DENSE),
    *(CURVES, PLOT, FRONT, PICTURE, TORCH, *exports.NAMES.values()),
)


def assemble(
    task: Task, dense: Dense, pruned: Pruned, tuned: Tuned, final: Final, total: float
) -> dict[str, Any]:
    """What report.json holds.

    Args:
      task: what was asked.
      dense: the first stage's record.
      pruned: the walk's.
      tuned: fine-tuning's.
      final: the last stage's.
      total: seconds of the run.
    """
    config = task.config
    result: dict[str, Any] = {
        "model": config.network.model,
        "method": config.pruning.method,
        "data": config.data.data,
        "seed": config.run.seed,
        "versions": report.versions(),
        "device": report.device(config.run.devices),
        "stages": [stage._asdict() for stage in final.stages],
        "seconds": {**_seconds(pruned), "total": total},
        "notes": [*dict.fromkeys((*dense.notes, *pruned.notes, *final.notes))],
    }
    if isinstance(config.pruning.cut, PlanFile):
        result["plan"] = str(config.pruning.cut.plan)
    if final.budget is not None:
        result["budget"] = dict(final.budget)
    result["groups"] = pruned.groups
    if tuned.recipe is not None:
        result["finetuning"] = tuned.recipe._asdict()
    if final.exports:
        result["exports"] = list(final.exports)
    costs = {"dense": final.dense, "pruned": final.pruned}
    return {**result, **costs, "command": config.output.command}


def _seconds(pruned: Pruned) -> dict[str, Any]:
    """Of curves or ranks, selection and repair: all seconds, what of them was
    compilation, and the rest in dense passes over the calibration images.
    """
    spent = pruned.seconds
    before = [name for name in ("curves", "ranks") if name in spent]
    names = [*before, "selection", "repair"]
    own = {name: spent.get(name, 0.0) for name in names}
    compiling = {name: spent.get(f"compilation of {name}", 0) for name in names}
    return {
        "dense_forward": pruned.forward,
        **{name: own[name] + compiling[name] for name in names},
        "compilation": compiling,
        "dense_passes": {name: own[name] / pruned.forward for name in names},
        "compilation_in_both": compiling["selection"] + compiling["repair"],
    }
