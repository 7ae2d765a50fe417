"""From what a user asks to a number of channels for every group."""

import fnmatch
import math
from collections.abc import Mapping

from ispasp_jax.errors import InputError
from ispasp_jax.models.network import Network

#: A ratio for all groups, or ratios by glob over group names; the last that matches
#: wins.
Keep = float | int | Mapping[str, float | int]


def sizes(network: Network, keep: Keep) -> dict[str, int]:
    """Channels to keep in every group: max(1, floor(keep · width + 1e-6)).

    Args:
      network: the network to prune.
      keep: ratios in (0, 1]. Groups that no glob matches keep all their channels.

    Raises:
      InputError: a ratio outside (0, 1], or a glob that matches no group.
    """
    widths = network.group_widths()
    ratios = dict.fromkeys(widths, 1.0)
    for glob, ratio in (keep if isinstance(keep, Mapping) else {"*": keep}).items():
        if not 0 < ratio <= 1:
            raise InputError(
                f"keep {ratio:g} is not a ratio: expected the fraction of channels "
                "that stay, above 0 and at most 1."
            )
        matched = fnmatch.filter(widths, glob)
        if not matched:
            raise InputError(
                f"--keep {glob!r} matches no group; the groups are {', '.join(widths)}."
            )
        ratios |= dict.fromkeys(matched, ratio)
    return {
        name: max(1, math.floor(ratios[name] * width + 1e-6))
        for name, width in widths.items()
    }
