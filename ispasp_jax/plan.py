"""A plan: which channels of which groups stay. It is what pruning decides, apart from
any weights, and can be saved, applied and verified.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ispasp_jax import groups as rewriter
from ispasp_jax.errors import InputError
from ispasp_jax.groups import Tree, leaves
from ispasp_jax.models.network import Network, Variables, shapes


class Cut(NamedTuple):
    """What stays of one group.

    Attributes:
      width: channels before the cut.
      kept: indices of those that stay, ascending.
    """

    width: int
    kept: np.ndarray


#: Group name -> Cut, in coordinates of the network that the plan is applied to.
Plan = Mapping[str, Cut]


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
    for name, cut in second.items():
        before = first.get(name, Cut(cut.width, np.arange(cut.width)))
        if len(before.kept) != cut.width:
            raise InputError(
                f"the second plan expects {cut.width} channels in group {name!r}, the "
                f"first leaves {len(before.kept)}; compose plans in the order in which "
                "they were applied."
            )
        both[name] = Cut(before.width, before.kept[cut.kept])
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
    for name, (width, kept) in plan.items():
        if name not in widths:
            raise InputError(
                f"the plan cuts group {name!r}, which this network does not have; it "
                f"has {', '.join(widths)}."
            )
        if width != widths[name]:
            raise InputError(
                f"the plan expects {width} channels in group {name!r}, this network "
                f"has {widths[name]}; apply it to the network it was made for."
            )
        ascending = len(kept) and bool(np.all(np.diff(kept) > 0))
        if not ascending or kept[0] < 0 or kept[-1] >= width:
            raise InputError(
                f"the plan's indices for group {name!r} must be ascending and in "
                f"[0, {width}); got {list(kept)}."
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
    try:
        if data["format"] != 1:
            raise KeyError("format")
        plan = {group["name"]: _cut(group) for group in data["groups"]}
        if len(plan) != len(data["groups"]):
            raise ValueError("a group named twice")
        if not all(isinstance(name, str) for name in (data["model"], *plan)):
            raise TypeError("a name")
        return data["model"], plan
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            "not a plan of format 1: expected format, model and groups with name, "
            f"width and kept; {error} is missing or wrong."
        ) from error


def _cut(group: Mapping[str, Any]) -> Cut:
    """A group of plan.json; a number that an array would round is no index."""
    width, kept = group["width"], group["kept"]
    if not all(type(number) is int for number in (width, *kept)):
        raise ValueError(f"a width or an index of group {group['name']!r}")
    return Cut(width, np.asarray(kept, np.int64))
