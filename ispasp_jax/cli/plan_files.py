"""plan.json as the commands read and write it.

A run writes plan.json, in coordinates of the network that it pruned. If that network
was itself left by a run of prune.py, it also writes plan_from_dense.json: all cuts so
far as one plan, in coordinates of the network at the architecture's own widths.
"""

from pathlib import Path

from ispasp_jax.cli import json_files, widths
from ispasp_jax.cli.config import PlanFile, Pruning, Scratch, Weights
from ispasp_jax.cli.workspace import Workspace
from ispasp_jax.errors import InputError
from ispasp_jax.graph import plans
from ispasp_jax.graph.plans import Plan
from ispasp_jax.weights import folders
from ispasp_jax.weights.folders import CONFIG, Model

#: What a run calls its plans.
PLAN, FROM_DENSE = "plan.json", "plan_from_dense.json"


def read(file: PlanFile, model: str) -> Plan:
    """The plan of --plan, for the model of --model.

    Raises:
      InputError: the file cannot be read, is no plan, or is for another model.
    """
    return _read(file.plan, model, "--plan ")


def sizes(file: PlanFile, plan: Plan, pruning: Pruning, model: Model) -> dict[str, int]:
    """Channels that the plan of --plan keeps in every group that it cuts, or that the
    flags would let be cut.

    Raises:
      InputError: it does not fit the model.
    """
    try:
        plans.check(plan, model.traced)
    except InputError as error:
        raise InputError(f"--plan {file.plan}: {error}") from error
    kept = {name: cut.size for name, cut in plan.items()}
    result = {**widths.scope(pruning, model), **kept}
    return {name: result[name] for name in model.widths if name in result}


def write(
    work: Workspace, start: Weights | Scratch, model: Model, plan: Plan
) -> str | None:
    """Writes a run's plans.

    Args:
      work: where to.
      start: where the network comes from.
      model: the network that was pruned.
      plan: what was cut.

    Returns:
      Why plan_from_dense.json could not be written, if so.
    """
    work.write(PLAN, plans.to_json(plan, model.name))
    try:
        before = None
        if isinstance(start, Weights):
            before = _before(start.weights, model)
    except InputError as error:
        return f"{FROM_DENSE} is left out: {error}"
    if before is not None:
        whole = plans.compose(before, plan)
        work.write(FROM_DENSE, plans.to_json(whole, model.name))
    return None


def _before(weights: str, model: Model) -> Plan | None:
    """The plan that led from the architecture's own widths to these weights; None if
    they are not in a folder that prune.py left.
    """
    folder = folders.folder_of(weights) or Path(weights)
    folder = folder.parent if folder.name == "model" else folder
    result = [folder / n for n in (FROM_DENSE, PLAN) if (folder / n).is_file()]
    if not result or not (folder / "model" / CONFIG).is_file():
        return None
    plan = _read(result[0], model.name)
    plans.check(plan, model.dense)
    dense = {group.name: group.width for group in model.dense.groups}
    left = dense | {name: cut.size for name, cut in plan.items()}
    if left != model.dense_widths:
        raise InputError(
            f"{result[0]} does not lead from a dense {model.name} to the network "
            "beside it."
        )
    return plan


def _read(path: Path, model: str, what: str = "") -> Plan:
    expected = "the plan.json of a run of prune.py"
    try:
        name, plan = json_files.read(path, expected, plans.from_json)
    except InputError as error:
        raise InputError(f"{what}{error}") from error
    if name != model:
        raise InputError(
            f"{what}{path} is a plan for {name}, not for {model}; give a plan for that "
            "model, or another --model."
        )
    return plan
