"""How many channels every group keeps: by ratios, or what a budget asks."""

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from ispasp_jax import budget, graph, models
from ispasp_jax.budget import rounding
from ispasp_jax.cli.config import Limits, Preset, Pruning, Ratios
from ispasp_jax.cli.records import Images
from ispasp_jax.errors import InputError
from ispasp_jax.graph import branches
from ispasp_jax.weights.folders import Model

T = TypeVar("T")


def scope(pruning: Pruning, model: Model) -> dict[str, int]:
    """The width of every group of the model that --scope and --ignore let be cut.

    Raises:
      InputError: a glob of --ignore matches no group.
    """
    try:
        return _widths(model, pruning.scope, pruning.ignore)
    except InputError as error:
        raise InputError(f"--{error}") from error


def _widths(model: Model, scope: str, ignore: Iterable[str]) -> dict[str, int]:
    groups = model.traced.groups
    names, own = [group.name for group in groups], []
    if scope == "inner":  # what the architecture leaves whole, if it is there
        own = models.IGNORE.get(model.name, ())
        own = [glob for glob in own if fnmatch.filter(names, glob)]
    result = graph.scope(groups, scope, (*own, *ignore))
    why = model.unselectable
    return {group.name: group.width for group in result if group.name not in why}


def survey(how: Callable[..., T], pruning: Pruning, model: Model, images: Images) -> T:
    """What a pass over the dense network finds of the groups that may be cut.

    Args:
      how: walk.measure_curves, walk.redundancy.
      pruning: says which groups, and how much memory.
      model: the dense network.
      images: for calibration.

    Raises:
      InputError: NaN or infinity in weights, images or activations.
    """
    try:
        return how(
            model.traced,
            model.variables,
            images.batches,
            [model.traced[name] for name in scope(pruning, model)],
            mesh=images.mesh,
            memory=pruning.calibration_memory,
            real=images.real,
        )
    except FloatingPointError as error:
        raise InputError(str(error)) from error


def unshrunk(keep: float, model: Model) -> dict[str, int]:
    """The channels that are not shrunk in training, of every group that prune.py cuts:
    as many as --keep leaves.
    """
    groups, traced = _widths(model, "inner", ()), model.traced
    groups = {name: width for name, width in groups.items() if not traced[name].layers}
    return budget.sizes(groups, keep)


def by_ratio(cut: Ratios | Preset, pruning: Pruning, model: Model) -> dict[str, int]:
    """The channels that ratios leave in every group that may be cut.

    Raises:
      InputError: of `budget.sizes`; or the preset has no ratios for this model.
    """
    groups = scope(pruning, model)
    ratios = dict(cut.keep) if isinstance(cut, Ratios) else _preset(model.name)
    sizes = budget.sizes(groups, ratios)
    return _rounded(sizes, groups, pruning)


def by_rank(ranks: Mapping[str, int], pruning: Pruning, model: Model) -> dict[str, int]:
    """As many channels of every group that may be cut as its rank, rounded up; a group
    of unknown rank keeps all.
    """
    groups = scope(pruning, model)
    sizes = {name: ranks.get(name, width) for name, width in groups.items()}
    return _rounded(sizes, groups, pruning)


def budget_of(limits: Limits, pruning: Pruning, model: Model) -> budget.Asked:
    """What --target, --tolerance and --depth ask for.

    Raises:
      InputError: a target is none.
    """
    targets = tuple(map(budget.target, limits.target))
    multiple = _multiple(pruning)
    lone = branches.alone(model.traced.branches.values()) if limits.depth else ()
    return budget.Asked(
        targets, limits.tolerance, pruning.min_channels, multiple, frozenset(lone)
    )


def _preset(model: str) -> budget.Keep:
    if model not in models.PAPER:
        raise InputError(
            f"--preset paper has no ratios for {model!r}; it has them for "
            f"{', '.join(models.PAPER)}, for another model give --keep."
        )
    return models.PAPER[model]


def _rounded(
    sizes: Mapping[str, int], groups: Mapping[str, int], pruning: Pruning
) -> dict[str, int]:
    """Up to --min-channels and a multiple of --round-to, or as they are."""
    multiple = _multiple(pruning) or 1
    return budget.rounded(sizes, groups, pruning.min_channels, multiple)


def _multiple(pruning: Pruning) -> int | None:
    """--round-to as a number; None where it is not given."""
    if pruning.round_to != "auto":
        return pruning.round_to
    return rounding.measured()
