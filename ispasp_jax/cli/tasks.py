"""What a run of prune.py is before it writes anything: asked, opened and checked."""

import json
from pathlib import Path
from typing import Any

from ispasp_jax.cli import curve_files, locks, opening, plan_files, sizes
from ispasp_jax.cli.config import (
    Limits,
    PlanFile,
    Preset,
    PruneConfig,
    Pruning,
    Ratios,
    Scratch,
    Weights,
    settings,
)
from ispasp_jax.cli.records import Task
from ispasp_jax.cli.reports import OUTPUTS
from ispasp_jax.cli.workspace import Workspace
from ispasp_jax.errors import InputError
from ispasp_jax.graph import plans
from ispasp_jax.graph.plans import Plan
from ispasp_jax.selection import criteria
from ispasp_jax.selection.criterion import Criterion


def choice(pruning: Pruning, model: str) -> Criterion | Plan:
    """What says which channels stay: the plan of --plan, or what --method names.

    Raises:
      InputError: the plan cannot be read, or no criterion has that name.
    """
    if isinstance(pruning.cut, PlanFile):
        return plan_files.read(pruning.cut, model)
    if pruning.by_branch:  # no channels are selected
        return criteria.create("ispasp")
    known = criteria.factory(pruning.method)
    options = {"num_iters": pruning.num_iters}
    return known(**{name: options[name] for name in options if name in known.defaults})


def open_task(config: PruneConfig) -> Task:
    """The task, as far as it can be checked without weights.

    Raises:
      InputError: it cannot be done.
    """
    opening.start_devices(config.run)
    result = choice(config.pruning, config.network.model)
    out = place(config)
    locks.check(out)
    check_out(out, config.network.model)
    _check_weights(config, out)
    source = opening.open_source(config.data)
    if config.tuning.trains:
        opening.check_batch(config.data, source)
    prep = opening.preprocessing(config.data, source.preprocessing)
    own = opening.architecture(config.network, source.num_classes, prep)
    by_ratio = isinstance(config.pruning.cut, Ratios | Preset)
    # Weights may be narrower than the architecture, and a plan or a budget theirs.
    if by_ratio or isinstance(config.network.start, Scratch):
        sizes.check(config, result, own)
    return Task(config, source, out, result)


def workspace(task: Task) -> Workspace:
    """The folder where the task keeps what it has finished.

    Raises:
      InputError: of Workspace.
    """
    result: dict[str, Any] = settings(task.config)
    if not isinstance(task.choice, Criterion):  # what the file says, not where it lies
        result["plan"] = plans.to_json(task.choice, task.config.network.model)
    cut = task.config.pruning.cut
    if isinstance(cut, Limits) and cut.curves is not None:
        result["curves"] = curve_files.fingerprint_of(cut.curves)
    return Workspace(task.out, result, task.config.run.resume)


def place(config: PruneConfig) -> Path:
    """The folder of the result."""
    return config.run.out or opening.place(config, config.pruning.method)


def check_out(out: Path, model: str) -> str | None:
    """What an earlier run of the model has left in --out, in words; None if nothing.

    Raises:
      InputError: --out holds anything else.
    """
    if not out.exists():
        return None
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    foreign = [name for name in names if name not in OUTPUTS]
    if not out.is_dir() or foreign:
        raise InputError(
            f"--out {out} holds other files ({', '.join(foreign[:3]) or 'a file'}); "
            "give a new folder, or one of an earlier run."
        )
    if not names:
        return None
    try:
        there = json.loads((out / "report.json").read_text())
        name, params = there["model"], int(there["pruned"]["params"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise InputError(
            f"--out {out} is no finished run (its report.json cannot be read); give a "
            "new folder or delete it."
        ) from None
    if name != model:
        raise InputError(
            f"--out {out} holds a run of {name}, not of {model}; give another folder."
        )
    return (
        f"a run of {there.get('method')} on {there.get('data')}, seed "
        f"{there.get('seed')}, {params:,} parameters"
    )


def _check_weights(config: PruneConfig, out: Path) -> None:
    """Raises InputError where the result would replace the weights."""
    start = config.network.start
    if not isinstance(start, Weights):
        return
    given = Path(start.weights).resolve()
    if out.resolve() in (given, *given.parents):
        raise InputError(
            f"--out {out} is where --weights comes from and would be replaced; give "
            "another folder."
        )
