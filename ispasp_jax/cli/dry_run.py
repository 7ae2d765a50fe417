"""What prune.py prints for --dry-run: groups, widths, kept channels and costs, from
shapes alone.
"""

from typing import Any

from ispasp_jax import data, report
from ispasp_jax.budget import cost
from ispasp_jax.cli import budgets, opening, plan_files, tasks, widths
from ispasp_jax.cli.config import Data, Limits, PlanFile, PruneConfig, Ranks
from ispasp_jax.data import Inputs, Preprocessing
from ispasp_jax.errors import InputError
from ispasp_jax.selection.criterion import Criterion
from ispasp_jax.weights.folders import Model


def dry_run(config: PruneConfig) -> None:
    """Finds the plan, and tells it."""
    result = tasks.choice(config.pruning, config.network.model)
    num_classes, prep = _describe(config.data)
    prep = opening.preprocessing(config.data, prep)
    model = opening.architecture(config.network, num_classes, prep)
    record = None
    match config.pruning.cut:
        case PlanFile() as file:
            assert not isinstance(result, Criterion)
            sizes = plan_files.sizes(file, result, config.pruning, model)
        case Limits() as limits:
            solved = budgets.dry_run(limits, config, model, tasks.place(config))
            sizes, record = solved.sizes, solved.record
        case Ranks():
            raise InputError("--keep auto asks images, and --dry-run reads none.")
        case ratios:
            sizes = widths.by_ratio(ratios, config.pruning, model)
    wide = model.widths
    report.tell(
        "plan",
        model=config.network.model,
        data=config.data.data,
        input=list(model.input_shape),
        num_classes=num_classes,
        groups=[{"name": n, "width": wide[n], "kept": k} for n, k in sizes.items()],
        budget=record,
        dense=_costs(model, {}),
        pruned=_costs(model, sizes),
    )


def _describe(options: Data) -> tuple[int, Inputs]:
    """Classes and preprocessing, by the data's own words or by the flags alone."""
    try:
        num_classes, prep = data.describe(options.data)
    except InputError:
        if not (options.num_classes and options.image_size):
            raise
        half = (0.5,) * 3
        return options.num_classes, Preprocessing(options.image_size, None, half, half)
    return options.num_classes or num_classes, prep


def _costs(model: Model, sizes: dict[str, int]) -> dict[str, Any]:
    """At these sizes; the dense network's where there are none."""
    return {
        "macs": int(cost.macs_by_size(model.traced).total(sizes)),
        "params": int(cost.parameters_by_size(model.traced).total(sizes)),
    }
