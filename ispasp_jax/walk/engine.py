"""One walk through a network's equations, from input to output: before every consumer
of a group gather what the criterion needs, select, cut, refit, and go on with what is
left.

    traced -> sites -> steps;  for every step: advance, select, cut, refit, keep

The walk holds what is alive between two equations, of the calibration images, and
nothing else of the network's inside; every equation runs once, whatever the criterion
iterates. Groups that several consumers read are selected before it, from the dense
network, in a pass of their own.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, SupportsIndex

import jax
import numpy as np
from jaxtyping import Array

from ispasp_jax.graph import Cut, Group, Plan, Traced, trees
from ispasp_jax.graph.program import Value
from ispasp_jax.selection.algorithm_1 import ispasp
from ispasp_jax.selection.criterion import Criterion
from ispasp_jax.selection.problem import LABELLED
from ispasp_jax.walk import (
    flat,
    gates,
    inputs,
    places,
    repair,
    shared,
    sites,
    streams,
)
from ispasp_jax.walk.batches import Images, share
from ispasp_jax.walk.clocks import Clocks
from ispasp_jax.walk.decisions import Decisions
from ispasp_jax.walk.drift import Drifts
from ispasp_jax.walk.fits import Unreached
from ispasp_jax.walk.measurement import Measurement, measure
from ispasp_jax.walk.options import Options
from ispasp_jax.walk.reads import Task, gather
from ispasp_jax.walk.repair import Here, Refit
from ispasp_jax.walk.results import GroupResult, Walked, removed
from ispasp_jax.walk.selecting import select
from ispasp_jax.walk.sites import Site
from ispasp_jax.walk.steps import (
    Step,
    layer_of,
    readers,
    refuse_blind,
    remaining,
    steps,
)
from ispasp_jax.walk.streams import Stream, Weights

_PLAIN = Options()


# Nine parameters: the model, its images and what goes with them, and what is wanted of
# it; how the walk goes is one record.
def walk(
    traced: Traced,
    variables: Any,
    images: Images,
    sizes: Mapping[str, SupportsIndex],
    criterion: Criterion | None = None,
    *,
    labels: gates.Labels | None = None,
    real: places.Real | None = None,
    plan: Plan | None = None,
    options: Options = _PLAIN,
) -> Walked:
    """Prunes group after group, each on the network as pruned so far.

    Args:
      traced: the model; it is traced again where the images' batches are others.
      variables: its variables.
      images: calibration batches, preprocessed: arrays, or tuples of them for a model
        of several inputs. A short one is padded, its padding weighs nothing.
      sizes: channels to keep for each group; those not named keep all. None of all
        groups of a branch: it goes.
      criterion: how to select; i-SpaSP with T = 20 if None.
      labels: the images' classes, in batches as long as theirs; only read for a
        criterion whose `labels` is true.
      real: which places of the images, or texts, are no padding; see places.py.
      plan: which channels to keep, where that is known: nothing is selected then, and
        sizes and criterion are not asked.
      options: how the walk goes.

    Returns:
      The variables that are left, and what became of every group.

    Raises:
      FloatingPointError: NaN or infinity in weights, images, activations, moments or
        importance.
      InputError: sizes, images or labels are not what is written above, the plan does
        not fit the model, or a group cannot be selected.
    """
    repair.of(options.repair)  # refused before anything is computed
    clocks = Clocks()
    with clocks.on("selection"):
        key = jax.random.key(0) if options.key is None else options.key
        traced, batches = inputs.opened(traced, images, options.mesh)
        if plan is not None:
            traced.masks(plan)
            plan = {n: Cut(w, np.asarray(kept)) for n, (w, kept) in plan.items()}
            sizes = {name: one.size for name, one in plan.items()}
        widths = {group.name: group.width for group in traced.groups}
        channels = inputs.checked_sizes(widths, sizes, traced.branches.values())
        inputs.check_variables(variables)
        task = Task(channels, criterion or ispasp(), key, options.residual_images, plan)
        whole = _Walk(traced, variables, task, options, clocks)
        whole.start(batches, labels, real)
        for step in options.progress(whole.steps):
            whole.do(step)
        return whole.result()


class _Walk:
    """The walk's state: two streams, the weights and what has been decided."""

    def __init__(
        self,
        traced: Traced,
        variables: Any,
        task: Task,
        options: Options,
        clocks: Clocks,
    ):
        self.traced, self.task, self.options = traced, task, options
        self.repair, self.clocks = repair.of(options.repair), clocks
        self.flat = flat.flatten(traced)
        self.original = flat.arrays(self.flat, jax.device_put(variables))
        self.needs_dense = (
            "least_squares" in task.needs or self.repair.fits or options.carry_dense
        )
        structure = jax.tree.structure(variables)
        self.decisions = Decisions(traced, self.flat, structure, clocks, options.store)
        self.cuts, self.drifts = self.decisions.cuts, Drifts(self.flat)
        self.visited: list[int] = []
        every, sizes = sites.suited(self.flat), task.sizes
        narrower = [g for g in traced.groups if sizes.get(g.name, g.width) < g.width]
        self.removed = [group for group in narrower if not sizes[group.name]]
        every = remaining(every, traced, self.removed)
        reading = readers(every, [g for g in narrower if g not in self.removed])
        if task.plan is None:
            refuse_blind(reading)
        self.shared, self.blind = reading.shared, reading.blind
        cut = {group.atom for group in (*reading.groups, *self.removed)}
        self.steps = steps(self.flat, traced.groups, every, reading, cut, self.repair)

    def start(
        self, batches: Images, labels: gates.Labels | None, real: places.Real | None
    ) -> None:
        """Takes the images, and selects what is selected before all steps."""
        mesh = self.options.mesh
        memory = share(self.options.memory, mesh, 2 if self.needs_dense else 1)
        entry = streams.start(self.flat, self.original, batches, mesh, memory)
        entry = places.start(entry, real, mesh)
        self.pruned = entry.own()
        #: Apart from the pruned one as soon as they differ, where anything asks for it.
        self.dense: Stream | None = None
        self.labels = []
        if self.task.needs & LABELLED:
            self.labels = gates.aligned(labels, entry, mesh)
        self._select_shared(entry)
        if self.cuts.any and self.needs_dense:
            self.dense = entry.own()
        #: Where the images are computed from again after tuning; else of no use.
        self.entry = entry if self.options.tune else None

    def _select_shared(self, entry: Stream) -> None:
        """Selects the groups that several consumers read, from the dense network."""
        before, decisions = entry.weights, self.decisions
        if self.shared and (done := decisions.done()):
            self._write(decisions.replay(done, {}, before))
        elif self.shared:
            reads = shared.reads(self.shared, entry, self.task)
            for group, places in self.shared:
                own = [reads[site, group.name] for site in places]
                labelled = self._labelled(group, places, entry)
                one = select(group, None, own, self.original, self.task, labelled)
                self._cut(group, None, one)
            keys = [(group.name, None) for group, _ in self.shared]
            decisions.keep(before, self.pruned.weights, keys)
        decisions.count += bool(self.shared)
        for group in self.removed:
            self._cut(group, None, removed(group.name, group.width))
        for group in self.blind:
            known = (self.task.plan or {})[group.name]
            self._cut(group, None, GroupResult(group.name, known, None, 0, None))

    def _labelled(
        self, group: Group, found: Sequence[Site], stream: Stream
    ) -> dict[str, Array]:
        needs = self.task.needs & LABELLED
        if not needs:
            return {}
        both = gates.derivatives(
            found, group, stream, self.labels, "curvature" in needs
        )
        return {name: both[name] for name in needs}

    def do(self, step: Step) -> None:
        """One step of the walk."""
        if not (step.groups or self.cuts.any):
            return
        where, decisions = step.where, self.decisions
        refit = self.repair.refit(where, decisions.missed)
        if not (step.groups or refit):
            return
        before, done = self.pruned.weights, decisions.done()
        self._advance(step.place, step.name)
        if isinstance(where, Site):
            self._pass_dense(where)
        if done:
            layers = {group.name: layer_of(group, where) for group in step.groups}
            self._write(decisions.replay(done, layers, self.pruned.weights))
        else:
            self._decide(step, refit)
        if isinstance(where, Site) and step.groups and self.dense:
            self.drifts.expect(where.target, self.dense.live[where.target], step.keys)
        tuned = done.tuned if done else self._tuned(step)
        if tuned is not None:
            self._again(tuned)
        if not done:
            decisions.keep(before, self.pruned.weights, step.keys, tuned)
        decisions.count += 1

    def _decide(self, step: Step, refit: Refit | None) -> None:
        """Selects and repairs."""
        where, known = step.where, None
        if isinstance(where, Site):
            known = self._select(where, step.groups)
        if not (refit and self.cuts.any):
            return

        def measured() -> Measurement:
            assert isinstance(where, Site)
            left = self.cuts.left(where)
            return known.of(left) if known else self._measured(where, left)

        with self.clocks.on("repair"):
            try:
                weights = refit(Here(self.pruned, measured))
            except Unreached as why:
                self.decisions.missed = True
                for key in step.keys:
                    self.decisions.amend(key, unrepaired=str(why))
                return
        self._write(weights)
        if isinstance(where, Site):
            self.decisions.missed = False

    def _advance(self, place: int, name: str) -> None:
        """Carries the pruned network on, and says how far it has drifted."""
        self.pruned, known = self.drifts.advance(self.pruned.named(name), place)
        self.visited.append(place)
        for key, drift in known.items():
            self.decisions.amend(key, drift=drift)

    def _pass_dense(self, site: Site) -> None:
        """Carries the dense network past a consumer, where anything asks for it."""
        if not self.needs_dense:
            return
        with self.clocks.on("repair" if self.repair.fits else "selection"):
            if self.dense is None:
                self.dense = self.pruned._replace(weights=self.original).own()
            if self.dense.place < site.end:
                ahead = [*self._targets(site.place, site.end)]
                self.dense = self.dense.named(site.name).to(site.end, ahead)

    def _targets(self, start: int, end: int) -> Iterator[Value]:
        """What consumers between two places are to give."""
        for step in self.steps:
            if isinstance(step.where, Site) and step.place >= start:
                if self.flat.made[step.where.target] < end:
                    yield step.where.target

    def _measured(self, site: Site, places: np.ndarray) -> Measurement:
        assert self.dense is not None, "carried for all that measure"
        return measure(site, self.pruned, self.dense, places)

    def _select(self, site: Site, groups: Sequence[Group]) -> Measurement | None:
        """Selects the groups of a consumer, one after the other; the moments, if any
        were taken."""
        known = None
        if groups and "least_squares" in self.task.needs:
            known = self._measured(site, self.cuts.left(site))
        for group in groups:
            labelled = self._labelled(group, [site], self.pruned)
            own = known and known.of(self.cuts.left(site))
            read = gather(site, group, self.pruned, self.task, own)
            weights, layer = self.pruned.weights, layer_of(group, site)
            result = select(group, layer, [read], weights, self.task, labelled)
            self._cut(group, layer, result)
        return known

    def _cut(self, group: Group, layer: int | None, result: GroupResult) -> None:
        """Writes zeros where channels go."""
        weights = self.pruned.weights
        self._write(self.decisions.cut(group, layer, result, weights))

    def _write(self, weights: Weights) -> None:
        self.pruned = self.pruned._replace(weights=weights)

    def _tuned(self, step: Step) -> dict[str, Array] | None:
        """The variables as they are trained after a step, by path."""
        tune = self.options.tune
        if tune is None or not any(map(self.cuts.is_done, step.groups)):
            return None
        with self.clocks.on("tune"):
            left = self.cuts.narrow(self.pruned.weights)
            return dict(trees.leaves(tune(self.cuts.plan(), left)))

    def _again(self, tuned: Mapping[str, Any]) -> None:
        """Goes on from other variables, the activations computed again."""
        assert self.entry is not None, "kept where there is `tune`"
        self.pruned = self.entry._replace(weights=self.cuts.widen(tuned)).own()
        for place in self.visited:
            self.pruned = self.pruned.hidden(place)

    def result(self) -> Walked:
        """What has become of it, once the last drift is known."""
        if self.drifts.end > self.pruned.place:
            self._advance(self.drifts.end, "the end")
        narrow = self.cuts.narrow(self.pruned.weights)
        variables = jax.block_until_ready(jax.device_put(narrow))
        results = self.decisions.results(self.task.sizes)
        return Walked(variables, results, self.clocks.so_far())
