"""Ratios to a number of channels for every group."""

import fnmatch
import math
from collections.abc import Iterable, Mapping

from ispasp_jax.errors import InputError
from ispasp_jax.graph import Group

#: A ratio for all groups, or ratios by glob over group names; the last that matches
#: wins.
Keep = float | int | Mapping[str, float | int]

#: Groups that may be cut (`graph.scope` has them), or their widths by name.
Groups = Mapping[str, int] | Mapping[str, Group] | Iterable[Group]


def sizes(groups: Groups, keep: Keep) -> dict[str, int]:
    """Channels to keep in every group: max(1, floor(keep · width + 1e-6)).

    Args:
      groups: those that may be cut; no other is in the result.
      keep: ratios in (0, 1]. Groups that no glob matches keep all their channels.

    Raises:
      InputError: a ratio outside (0, 1], or a glob that matches no group.
    """
    widths = widths_of(groups)
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
                f"keep {glob!r} matches no group that may be cut; those are "
                f"{', '.join(widths) or 'none'}."
            )
        ratios |= dict.fromkeys(matched, ratio)
    return {
        name: max(1, math.floor(ratios[name] * width + 1e-6))
        for name, width in widths.items()
    }


def rounded(
    sizes: Mapping[str, int], groups: Groups, min_channels: int, round_to: int
) -> dict[str, int]:
    """Sizes at least min_channels and up to a multiple of round_to; the width at most.

    A group that keeps all its channels still does.
    """
    widths = widths_of(groups)
    return {
        name: min(-(-max(size, min_channels) // round_to) * round_to, widths[name])
        for name, size in sizes.items()
    }


def widths_of(groups: Groups) -> dict[str, int]:
    """Widths by name."""
    if isinstance(groups, Mapping):
        return {
            str(name): of.width if isinstance(of, Group) else of
            for name, of in groups.items()
        }
    return {group.name: group.width for group in groups}
