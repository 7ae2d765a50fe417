"""What a walk gives, and what it says of every group."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ispasp_jax.graph import Cut, Plan

#: A group's name, and the layer of a scan where each has channels of its own.
Key = tuple[str, int | None]


class GroupResult(NamedTuple):
    """What became of a group.

    Attributes:
      name: the group's name.
      cut: its width before, and the channels kept.
      relative_residual: ‖V‖/‖U‖ with U = consumer(H) − consumer(0), on the first
        `residual_images` images; None where no channel was cut or none was asked for.
      iterations: of the criterion, until the support repeated.
      drift: ‖z − z_dense‖/‖z_dense‖ behind the consumer, skip included, against the
        dense network's; None unless the dense stream was carried.
      unrepaired: why least squares was asked for and did not reach the consumer; None
        where it did, or was not asked. Batch norm's moments are measured again then.
    """

    name: str
    cut: Cut
    relative_residual: float | None
    iterations: int
    drift: float | None
    unrepaired: str | None = None

    @property
    def is_narrower(self) -> bool:
        """Whether channels go."""
        return self.cut.size < self.cut.width


def uncut(name: str, width: int) -> GroupResult:
    """What becomes of a group that keeps all its channels."""
    return GroupResult(name, Cut(width, np.arange(width)), None, 0, None)


def removed(name: str, width: int) -> GroupResult:
    """What becomes of a group whose branch goes: all that it gave is lost."""
    return GroupResult(name, Cut(width, np.zeros(0, int)), 1.0, 0, None)


def together(results: Sequence[GroupResult], kept: Cut | None) -> GroupResult:
    """The results of a group's layers as one.

    Args:
      results: of every layer.
      kept: what stays of all layers; None where nothing went.
    """
    first = results[0]
    if len(results) == 1:
        return first if kept is None else first._replace(cut=kept)
    return first._replace(
        cut=kept or first.cut,
        relative_residual=_mean(r.relative_residual for r in results),
        drift=_mean(r.drift for r in results),
        iterations=max(r.iterations for r in results),
        unrepaired=next((r.unrepaired for r in results if r.unrepaired), None),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    """The root of the mean square of those that are known."""
    known = [value for value in values if value is not None]
    return float(np.sqrt(np.mean(np.square(known)))) if known else None


class Walked(NamedTuple):
    """The walk's result: variables that are really smaller, and how they came about.

    Attributes:
      variables: those that are left.
      groups: what became of every group that was asked for.
      seconds: by what they were spent on: selection, repair, tune, and of each, apart,
        "compilation of" it.
    """

    variables: Any
    groups: tuple[GroupResult, ...]
    seconds: Mapping[str, float]

    @property
    def plan(self) -> Plan:
        """The groups that lost channels."""
        return {group.name: group.cut for group in self.groups if group.is_narrower}

    @property
    def unrepaired(self) -> dict[str, str]:
        """The groups whose consumers least squares was asked for and did not reach, and
        why; batch norm's moments were measured again there.
        """
        return {g.name: g.unrepaired for g in self.groups if g.unrepaired}
