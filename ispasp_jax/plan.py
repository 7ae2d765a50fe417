"""A plan: which channels of which groups stay. It is what pruning decides, apart from
any weights, and can be saved, applied and verified.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ispasp_jax import groups as rewriter
from ispasp_jax import trees
from ispasp_jax.errors import InputError
from ispasp_jax.graph.cut import Cut, Plan
from ispasp_jax.groups import Tree, leaves
from ispasp_jax.models.network import Network, Variables, shapes


def apply(
    plan: Plan, network: Network, variables: Variables
) -> tuple[Network, Variables]:
    """The network and its variables with every group of the plan cut.

    Raises:
      InputError: the plan is for another architecture, or for other widths.
    """
    check(plan, network)
    for name, cut in plan.items():
        variables = rewriter.take(variables, network.groups()[name], cut.kept)
    return network.narrowed({n: len(c.kept) for n, c in plan.items()}), variables


def mask(plan: Plan, network: Network, tree: Tree) -> Tree:
    """The variables at full width, with zeros where the plan cuts."""
    check(plan, network)
    for name, cut in plan.items():
        tree = rewriter.mask(tree, network.groups()[name], cut.kept)
    return tree


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
    both = dict(first)
    for plan in (first, second):
        for name, cut in plan.items():
            _check_cut(name, cut)
    for name, cut in second.items():
        before = first.get(name)
        if before is None:
            both[name] = cut
            continue
        if len(before.kept) != cut.width:
            raise InputError(
                f"the second plan expects {cut.width} channels in group {name!r}, the "
                f"first leaves {len(before.kept)}; compose plans in the order in which "
                "they were applied."
            )
        both[name] = Cut(before.width, np.asarray(before.kept)[np.asarray(cut.kept)])
    return both


def verify(
    plan: Plan, network: Network, variables: Variables, images, tolerance=1e-3
) -> float:
    """Checks a plan on a few images: cut and masked networks give the same logits.

    Args:
      plan: the plan.
      network: the network before the cut.
      variables: its variables.
      images: a small batch, preprocessed.
      tolerance: largest difference allowed, relative to the largest logit.

    Returns:
      The largest difference, relative to the largest logit.

    Raises:
      AssertionError: they differ by more: a group does not name all its arrays.
    """
    narrow, cut = apply(plan, network, variables)
    expected = {p: a.shape for p, a in leaves(shapes(narrow, images.shape[1:]))}
    wrong = [p for p, a in leaves(cut) if a.shape != expected.get(p)]
    if wrong:
        raise AssertionError(
            f"{', '.join(wrong)} kept shapes that the narrower network does not have: "
            "some group does not name all the arrays that carry its channels."
        )
    with jax.default_matmul_precision("highest"):
        masked = jax.jit(network.apply)(mask(plan, network, variables), images)
        taken = jax.jit(narrow.apply)(cut, images)
    scale = jnp.maximum(jnp.abs(masked).max(), jnp.finfo(masked.dtype).tiny)
    difference = float(jnp.abs(masked - taken).max() / scale)
    if not difference <= tolerance:
        raise AssertionError(
            f"the cut network's logits differ from the masked network's by "
            f"{difference:.1e} of the largest: some group does not name all the arrays "
            "that carry its channels."
        )
    return difference


def check(plan: Plan, network: Network) -> None:
    """Raises InputError where the plan does not fit the network."""
    widths = network.group_widths()
    for name, cut in plan.items():
        if name not in widths:
            raise InputError(
                f"the plan cuts group {name!r}, which this network does not have; it "
                f"has {', '.join(widths)}."
            )
        _check_cut(name, cut)
        if cut.width != widths[name]:
            raise InputError(
                f"the plan expects {cut.width} channels in group {name!r}, this "
                f"network has {widths[name]}; apply it to the network it was made for."
            )


def to_json(plan: Plan, model: str) -> dict:
    """The plan as plan.json has it."""
    return {
        "format": 1,
        "model": model,
        "groups": [
            {"name": name, "width": cut.width, "kept": [int(k) for k in cut.kept]}
            for name, cut in plan.items()
        ],
    }


def from_json(data: Any) -> tuple[str, Plan]:
    """The model's name and the plan, from what plan.json holds.

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
            if all(type(number) is int for number in (width, *kept)):
                if not all(abs(number) < 2**31 for number in (width, *kept)):
                    raise InputError(
                        f"not a plan of format 1: group {name!r} has numbers that are "
                        "no widths or indices."
                    )
                cut = Cut(width, np.asarray(kept, np.int64))
                try:
                    _check_cut(name, cut)
                except InputError as error:
                    raise InputError(f"not a plan of format 1: {error}") from error
                return name, cut
    raise InputError(
        "not a plan of format 1: expected groups with a name, a width and the indices "
        f"kept; got {trees.shown(group)}."
    )


def _check_cut(name: str, cut: Cut) -> None:
    """Raises InputError where it is no Cut, or its indices are not ascending in range.

    Indices alone: the length of `kept` is the width that the cut leaves.
    """
    kept = cut.kept if isinstance(cut, Cut) else None
    if kept is None or isinstance(kept, jax.Array | np.ndarray) and kept.dtype == bool:
        raise InputError(
            f"the plan's group {name!r} must be a Cut(width, kept) with the indices of "
            f"what is kept; got {trees.shown(cut)}."
        )
    trees.indices(kept, cut.width, f"group {name!r} of the plan")
