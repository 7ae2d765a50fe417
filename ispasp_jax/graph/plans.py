"""A plan: which channels of which groups stay. It is what pruning decides, apart from
any weights, and can be saved, applied and verified.
"""

from typing import Any

import numpy as np

from ispasp_jax import graph
from ispasp_jax.errors import InputError
from ispasp_jax.graph import Cut, Plan, Traced, trees
from ispasp_jax.graph import cut as cuts


def apply(plan: Plan, traced: Traced, variables: Any) -> Any:
    """The variables with every group of the plan cut.

    Args:
      plan: what stays.
      traced: the model before the cut.
      variables: its variables, or any tree that holds trees like them.

    Returns:
      The same with smaller arrays.

    Raises:
      InputError: the plan is for another model, or for other widths.
    """
    return traced.take(plan, variables)


def mask(plan: Plan, traced: Traced, variables: Any) -> Any:
    """The variables at full width, with zeros where the plan cuts.

    Args:
      plan: what stays.
      traced: the model before the cut.
      variables: its variables, or any tree that holds trees like them.

    Returns:
      The same with arrays of the same shapes.

    Raises:
      InputError: the plan is for another model, or for other widths.
    """
    return traced.mask(plan, variables)


def check(plan: Plan, traced: Traced) -> None:
    """Checks that a plan fits a model.

    Args:
      plan: what stays.
      traced: the model before the cut.

    Raises:
      InputError: the plan is for another model, or for other widths.
    """
    traced.masks(plan)


def verify(
    plan: Plan, traced: Traced, variables: Any, *inputs: Any, tolerance: float = 1e-3
) -> float:
    """Checks a plan on a few examples: cut and masked models give the same outputs.

    Args:
      plan: the plan.
      traced: the model before the cut.
      variables: its variables.
      *inputs: a small batch.
      tolerance: largest difference allowed, relative to the largest output.

    Returns:
      The largest difference, relative to the largest output.

    Raises:
      AssertionError: they differ by more.
    """
    return graph.check(traced, variables, *inputs, plan=plan, tolerance=tolerance)


def compose(first: Plan, second: Plan) -> Plan:
    """The one plan that does what `first` and then `second` do.

    Args:
      first: in coordinates of the original network.
      second: in coordinates of what `first` leaves.

    Returns:
      A plan in coordinates of the original network.

    Raises:
      InputError: `second` expects other widths than `first` leaves.
    """
    for plan in (first, second):
        for name, cut in plan.items():
            cuts.indices(name, cut)
    return {**first, **{n: _after(n, first.get(n), cut) for n, cut in second.items()}}


def _after(name: str, before: Cut | None, cut: Cut) -> Cut:
    """What is left of a group after both cuts, in coordinates of the first."""
    if before is None:
        return cut
    if before.size != cut.width:
        raise InputError(
            f"the second plan expects {cut.width} channels in group {name!r}, the "
            f"first leaves {before.size}; compose plans in the order in which they "
            "were applied."
        )
    old, new = np.asarray(before.kept), np.asarray(cut.kept)
    if old.shape[:-1] != new.shape[:-1]:
        raise InputError(
            f"the second plan has indices of {_rows(new)} in group {name!r}, the first "
            f"of {_rows(old)}; compose plans of one model."
        )
    return Cut(before.width, np.take_along_axis(old, new, -1))


def _rows(kept: np.ndarray) -> str:
    return f"{len(kept)} layers" if kept.ndim > 1 else "no layers"


def to_json(plan: Plan, model: str) -> dict:
    """The plan as plan.json has it.

    Args:
      plan: what stays.
      model: the model's name.

    Returns:
      What json.dumps takes.
    """
    return {
        "format": 1,
        "model": model,
        "groups": [
            {"name": name, "width": cut.width, "kept": np.asarray(cut.kept).tolist()}
            for name, cut in plan.items()
        ],
    }


def from_json(data: Any) -> tuple[str, Plan]:
    """The model's name and the plan, from what plan.json holds.

    Args:
      data: what json.loads gave.

    Returns:
      The model's name, and the plan.

    Raises:
      InputError: it is not a plan of format 1.
    """
    expected = "format 1, the model's name, and groups with name, width and kept"
    match data:
        case {"format": 1, "model": str(model), "groups": [*found]}:
            plan = dict(map(_entry, found))
        case _:
            raise InputError(
                f"not a plan of format 1: expected {expected}; got {trees.shown(data)}."
            )
    if len(plan) != len(found):
        raise InputError("not a plan of format 1: a group is named twice.")
    return model, plan


def _entry(group: Any) -> tuple[str, Cut]:
    """A group of plan.json; a number that an array would round is no index."""
    match group:
        case {"name": str(name), "width": int(width), "kept": [*kept]}:
            rows = kept if kept and isinstance(kept[0], list) else [kept]
            if type(width) is int and _are_indices(rows):
                if not all(abs(k) < 2**31 for row in ([width], *rows) for k in row):
                    raise InputError(
                        f"not a plan of format 1: group {name!r} has numbers that are "
                        "no widths or indices."
                    )
                cut = Cut(width, np.asarray(kept, np.int64))
                try:
                    cuts.indices(name, cut)
                except InputError as error:
                    raise InputError(f"not a plan of format 1: {error}") from error
                return name, cut
    raise InputError(
        "not a plan of format 1: expected groups with a name, a width and the indices "
        "kept (of scanned layers a list of them each, all of one length); got "
        f"{trees.shown(group)}."
    )


def _are_indices(rows: list) -> bool:
    """Whether rows of plan.json are whole numbers, and equally many in each."""
    return (
        all(isinstance(row, list) for row in rows)
        and all(type(number) is int for row in rows for number in row)
        and len({len(row) for row in rows}) == 1
    )
