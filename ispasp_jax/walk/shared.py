"""Groups that several consumers read: gathered in a pass of their own, from the dense
network, before anything is cut.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from ispasp_jax.graph import Group
from ispasp_jax.walk.measurement import measure
from ispasp_jax.walk.reads import Read, Task, gather
from ispasp_jax.walk.sites import Site
from ispasp_jax.walk.streams import Stream


def reads(
    shared: Iterable[tuple[Group, Sequence[Site]]], here: Stream, task: Task
) -> dict[tuple[Site, str], Read]:
    """What is known of shared groups at every consumer, by consumer and group.

    Args:
      shared: groups with all their consumers.
      here: the dense network, at its input.
      task: what is asked of every group.
    """
    by_site: dict[Site, list[Group]] = {}
    for group, consumers in shared:
        for site in consumers:
            by_site.setdefault(site, []).append(group)
    result = {}
    for site in sorted(by_site, key=lambda site: site.place):
        here = here.named(site.name).hidden(site.place)
        known = None
        if "least_squares" in task.needs:
            after = here.to(site.end, [site.target])
            known = measure(site, here, after, np.arange(site.width))
        for group in by_site[site]:
            one = gather(site, group, here, task, known, stacked=True)
            result[site, group.name] = one
    return result
