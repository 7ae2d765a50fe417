"""One walk through a network's equations, from input to output: before every consumer
of a group gather what the criterion needs, select, cut, refit, and go on with what is
left.

    traced -> sites -> steps;  for every step: advance, select, cut, refit, keep

The walk holds what is alive between two equations, of the calibration images, and
nothing else of the network's inside; every equation runs once, whatever the criterion
iterates. Groups that several consumers read are selected before it, from the dense
network, in a pass of their own.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from ispasp_jax import devices
from ispasp_jax.errors import InputError
from ispasp_jax.graph import Cut, Group, Plan, Traced, cut, key_path
from ispasp_jax.graph.atoms import Atom
from ispasp_jax.graph.program import Value
from ispasp_jax.selection.algorithm_1 import ispasp
from ispasp_jax.selection.criterion import Criterion
from ispasp_jax.selection.problem import LABELLED
from ispasp_jax.walk import (
    consumers,
    flat,
    gates,
    inputs,
    norms,
    repair,
    sites,
    streams,
)
from ispasp_jax.walk.clocks import Clocks
from ispasp_jax.walk.consumers import Unreached
from ispasp_jax.walk.moments import measure, rows
from ispasp_jax.walk.reads import Asked, Read, gather
from ispasp_jax.walk.resume import Done, Store
from ispasp_jax.walk.selecting import GroupResult, select, uncut
from ispasp_jax.walk.sites import Site
from ispasp_jax.walk.steps import Step, layer_of, readers, refuse_blind, steps
from ispasp_jax.walk.streams import Images, Stream, Weights, across

#: Called by the walk after each group that was cut, with the plan so far and the
#: variables that it leaves: trains them and returns the new ones.
Tune = Callable[[Plan, Any], Any]

Repair = Literal["none", "bn", "lsq"]


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
        return {group.name: group.cut for group in self.groups if _lost(group)}

    @property
    def unrepaired(self) -> dict[str, str]:
        """The groups whose consumers least squares was asked for and did not reach, and
        why; batch norm's moments were measured again there.
        """
        return {g.name: g.unrepaired for g in self.groups if g.unrepaired}


def walk(
    traced: Traced,
    variables: Any,
    images: Images,
    sizes: Mapping[str, int],
    criterion: Criterion | None = None,
    *,
    labels: gates.Labels | None = None,
    plan: Plan | None = None,
    key: Array | None = None,
    repair: Repair = "none",
    tune: Tune | None = None,
    carry_dense: bool = False,
    residual_images: int = 32,
    progress: Callable[[Iterable], Iterable] = iter,
    mesh: jax.sharding.Mesh | None = None,
    store: Store | None = None,
    memory: int | None = None,
) -> Walked:
    """Prunes group after group, each on the network as pruned so far.

    Args:
      traced: the model; it is traced again where the images' batches are others.
      variables: its variables.
      images: calibration batches, preprocessed: arrays, or tuples of them for a model
        of several inputs. A short one is padded, its padding weighs nothing.
      sizes: channels to keep for each group; those not named keep all.
      criterion: how to select; i-SpaSP with T = 20 if None.
      labels: the images' classes, in batches as long as theirs; only read for a
        criterion whose `labels` is true.
      plan: which channels to keep, where that is known: nothing is selected then, and
        sizes and criterion are not asked.
      key: for criteria that draw at random; jax.random.key(0) if None.
      repair: after a cut, refit consumers by least squares ("lsq") or measure batch
        norm's moments again ("bn"); see repair.py.
      tune: trains the network after each group. The walk then computes the activations
        up to there again from the images.
      carry_dense: walk the dense network beside, to report how far outputs drift; the
        least squares do so anyway.
      residual_images: how many images the relative residual is measured on, 0 for none.
      progress: wraps the iterable of steps, to show how far the walk is.
      mesh: of devices.py; every batch is spread over its devices. None: the batches
        stay where they are.
      store: of resume.py; every step is kept there when it is done, and those that are
        there are not done again.
      memory: bytes of the images' activations that each device may keep; see
        streams.py. Results are the same. None: all that are alive at once.

    Raises:
      FloatingPointError: NaN or infinity in weights, images, activations, moments or
        importance.
      InputError: sizes, images or labels are not what is written above, the plan does
        not fit the model, or a group cannot be selected.
    """
    if repair not in ("none", "bn", "lsq"):
        raise InputError(f"repair {repair!r} is none of 'none', 'bn' and 'lsq'.")
    clocks = Clocks()
    with clocks.on("selection"):
        key = jax.random.key(0) if key is None else key
        traced, batches = inputs.opened(traced, images, mesh)
        if plan is not None:
            traced.masks(plan)
            plan = {n: Cut(w, np.asarray(kept)) for n, (w, kept) in plan.items()}
            sizes = {name: one.kept.shape[-1] for name, one in plan.items()}
        widths = {group.name: group.width for group in traced.groups}
        sizes = inputs.checked_sizes(widths, sizes)
        inputs.check_variables(variables)
        asked = Asked(sizes, criterion or ispasp(), key, residual_images, plan)
        whole = _Walk(traced, variables, asked, repair, carry_dense, clocks)
        whole.start(batches, labels, mesh, memory)
        whole.select_shared(store)
        if not tune:
            whole.entry = None  # of no use any more
        for step in progress(whole.steps):
            whole.do(step, store, tune)
        whole.finish()
        return whole.result(clocks)


class _Walk:
    """The walk's state: two streams, the weights and what has been decided."""

    def __init__(self, traced, variables, asked, repair, carry_dense, clocks):
        self.traced, self.asked, self.repair = traced, asked, repair
        self.clocks = clocks
        self.tree = jax.tree.structure(variables)
        self.flat = flat.flatten(traced)
        self.sites = sites.suited(self.flat)
        self.original = flat.arrays(self.flat, jax.device_put(variables))
        self.needs_dense = (
            "least_squares" in asked.needs or repair == "lsq" or carry_dense
        )
        self.masks: dict[Atom, Bool[np.ndarray, "*layers width"]] = {}
        self.found: dict[tuple[str, int | None], GroupResult] = {}
        self.differs = self.missed = False
        self.drifts: list[tuple[tuple[str, int | None], Value, list]] = []
        self.visited: list[int] = []
        self.count = 0  # of what has been kept
        sizes, groups = asked.sizes, traced.groups
        narrower = [g for g in groups if sizes.get(g.name, g.width) < g.width]
        found = readers(self.sites, narrower)
        if asked.plan is None:
            refuse_blind(found)
        self.shared, self.blind = found.shared, found.blind
        self.steps = steps(self.flat, groups, self.sites, found, repair)

    def start(self, images, labels, mesh, memory) -> None:
        memory = streams.share(memory, mesh, 2 if self.needs_dense else 1)
        self.entry = streams.start(self.flat, self.original, images, mesh, memory)
        self.pruned, self.dense = self.entry, None
        self.labels = None
        if self.asked.needs & LABELLED:
            self.labels = gates.aligned(labels, self.entry, mesh)

    def select_shared(self, store: Store | None) -> None:
        """Selects the groups that several consumers read, from the dense network."""
        done = store and self.shared and store.read(self.count)
        if done:
            self._replay(None, done)
        elif self.shared:
            before, reads = self.pruned.weights, self._gathered()
            for group, found in self.shared:
                own = [reads[site, group.name] for site in found]
                labelled = self._labelled(group, found, self.entry)
                asked, weights = self.asked, self.original
                self._cut(
                    group, None, select(group, None, own, weights, asked, labelled)
                )
            self._keep(store, before, [(g.name, None) for g, _ in self.shared])
        self.count += bool(self.shared)
        for group in self.blind:
            one = self.asked.plan[group.name]
            self._cut(group, None, GroupResult(group.name, one, None, 0, None))
        if self.differs and self.needs_dense:
            self.dense = self.entry

    def _gathered(self) -> dict[tuple[Site, str], Read]:
        """What every consumer of a shared group reads, in one pass."""
        by_site: dict[Site, list[Group]] = {}
        for group, found in self.shared:
            for site in found:
                by_site.setdefault(site, []).append(group)
        here, reads = self.entry, {}
        ordered = sorted(by_site, key=lambda site: site.place)
        for site in ordered:
            here = here.named(site.name).hidden(site.place)
            folds, places = None, np.arange(site.width)
            if "least_squares" in self.asked.needs:
                after = here.to(site.end, [site.target])
                folds = measure(site, here, after, places)
            for group in by_site[site]:
                reads[site, group.name] = gather(
                    site, group, here, self.asked, folds, places, stacked=True
                )
        return reads

    def _labelled(self, group, found, stream) -> dict:
        needs = self.asked.needs & LABELLED
        if not needs:
            return {}
        both = gates.derivatives(
            found, group, stream, self.labels, "curvature" in needs
        )
        return {name: both[name] for name in needs}

    def do(self, step: Step, store: Store | None, tune) -> None:
        """One step of the walk."""
        if not self._concerns(step):
            return
        before, done = self.pruned.weights, store and store.read(self.count)
        keys = [(group.name, layer_of(group, step.site)) for group in step.groups]
        self._advance(step.place, step.name)
        if step.site:
            self._pass_dense(step.site)
        if done:
            self._replay(step, done)
        else:
            self._decide(step)
        if self.dense:
            target = step.site.target if step.groups else None
            self.drifts += [(key, target, self.dense.live[target]) for key in keys]
        tuned = done.tuned if done else None
        if not done and tune and any(map(self._is_cut, step.groups)):
            with self.clocks.on("tune"):
                tuned = _by_path(tune(self._plan(), self._narrow()))
        if tuned is not None:
            self._again(tuned)
        if not done:
            self._keep(store, before, keys, tuned)
        self.count += 1

    def _concerns(self, step: Step) -> bool:
        """Whether there is anything to do."""
        if step.norm:
            asked = self.differs and (self.repair == "bn" or self.missed)
            return asked and step.norm.is_running
        return bool(step.groups) or (self.repair == "lsq" and self.differs)

    def _decide(self, step: Step) -> None:
        """Selects and repairs."""
        if step.norm:
            with self.clocks.on("repair"):
                weights = norms.recalibrate(step.norm, self.pruned)
            self.pruned = self.pruned._replace(weights=weights)
            return
        known = self._select(step) if step.groups else None
        if self.repair == "lsq" and self.differs:
            with self.clocks.on("repair"):
                self._refit(step, known)

    def _is_cut(self, group: Group) -> bool:
        """Whether a group has been cut, in all its layers."""
        mask = self.masks.get(group.atom)
        if mask is None or mask.all():
            return False
        return len({*mask.reshape(-1, group.width).sum(1)}) == 1

    def _advance(self, place: int, name: str) -> None:
        """Carries the pruned network on, and says how far it has drifted."""
        watch, sums, seen = {}, [], {}
        for key, target, dense in self.drifts:
            made = self.flat.made[target]
            if not self.pruned.place <= made < place:
                continue
            if target not in watch:
                seen[target] = []
                watch[target] = _watcher(dense, self.pruned.weight, seen[target])
            sums.append((key, target, seen[target]))
        self.pruned = self.pruned.named(name).hidden(place, watch)
        self.visited.append(place)
        for key, target, found in sums:
            self.found[key] = self.found[key]._replace(drift=_relative(found))
            self.drifts = [d for d in self.drifts if d[:2] != (key, target)]

    def _pass_dense(self, site: Site) -> None:
        """Carries the dense network past a consumer, where anything asks for it."""
        if not self.needs_dense:
            return
        with self.clocks.on("repair" if self.repair == "lsq" else "selection"):
            self.dense = self.dense or self.pruned._replace(weights=self.original)
            if self.dense.place < site.end:
                ahead = [
                    step.site.target
                    for step in self.steps
                    if step.site
                    and step.site.place >= site.place
                    and self.flat.made[step.site.target] < site.end
                ]
                self.dense = self.dense.named(site.name).to(site.end, ahead)

    def _select(self, step: Step):
        """Selects the groups of a consumer, one after the other; the moments, if any
        were taken."""
        site, places, known = step.site, self._places(step.site), None
        if "least_squares" in self.asked.needs:
            known = measure(site, self.pruned, self.dense, places), places
        for group in step.groups:
            labelled = self._labelled(group, [site], self.pruned)
            left = self._places(site)
            folds = known and _of(*known, left)
            read = gather(site, group, self.pruned, self.asked, folds, left)
            weights, layer = self.pruned.weights, layer_of(group, site)
            result = select(group, layer, [read], weights, self.asked, labelled)
            self._cut(group, layer, result)
        return known

    def _cut(self, group: Group, layer: int | None, result: GroupResult) -> None:
        """Writes zeros where channels go."""
        self.found[group.name, layer] = result
        self.differs |= _lost(result)
        kept = np.isin(np.arange(group.width), result.cut.kept)
        mask = kept
        if layer is not None:
            rows = np.ones((group.layers, group.width), bool)
            mask = self.masks.get(group.atom, rows).copy()
            mask[layer] = kept
        self.masks[group.atom] = mask
        weights = dict(self.pruned.weights)
        for axis in group.axes:
            variable = self.flat.variables[axis.path]
            weights[variable] = cut.masked(
                weights[variable], variable.dims, {group.atom: mask}
            )
        self.pruned = self.pruned._replace(weights=weights)

    def _places(self, site: Site) -> np.ndarray:
        """The places of what a consumer reads that are left."""
        mask = cut.of(site.contracted, self.masks)
        if mask is None:
            return np.arange(site.width)
        return np.flatnonzero(mask if mask.ndim == 1 else mask[site.layer])

    def _refit(self, step: Step, known) -> None:
        """Refits a consumer by least squares, where it is reached; moments of more
        places may be known."""
        site = step.site
        kept = self._places(site)
        try:
            reach = consumers.reach(site, self.pruned.weights)
            if known is None:
                folds = measure(site, self.pruned, self.dense, kept)
            else:
                folds = _of(*known, kept)
            fitted = repair.least_squares(reach, self.pruned.weights, folds, kept)
            self.pruned = self.pruned._replace(weights=_agreed(fitted, self.pruned))
            self.missed = False
        except Unreached as why:
            self.missed = True
            for group in step.groups:
                key = group.name, layer_of(group, site)
                self.found[key] = self.found[key]._replace(unrepaired=str(why))

    def _again(self, tuned: Mapping[str, Array]) -> None:
        """Goes on from other variables, the activations computed again."""
        weights = {
            value: jnp.asarray(cut.widened(tuned[path], value.dims, self.masks))
            for path, value in self.flat.variables.items()
        }
        self.pruned = self.entry._replace(weights=weights)
        for place in self.visited:
            self.pruned = self.pruned.hidden(place)

    def _keep(self, store, before, keys, tuned=None) -> None:
        if not store:
            return
        names = {value: path for path, value in self.flat.variables.items()}
        changed = {
            names[value]: np.asarray(array)
            for value, array in self.pruned.weights.items()
            if array is not before.get(value)
        }
        results = tuple(self.found[key] for key in keys)
        drifts = tuple(
            (*key, result.drift)
            for key, result in self.found.items()
            if result.drift is not None
        )
        seconds = self.clocks.so_far()
        done = Done(results, changed, drifts, self.missed, seconds, tuned)
        store.write(self.count, done)

    def _replay(self, step: Step | None, done: Done) -> None:
        """Takes over a step that was done before."""
        groups = {group.name: group for group in self.traced.groups}
        for result in done.results:
            group = groups[result.name]
            self._cut(group, layer_of(group, step.site) if step else None, result)
        changed = {
            self.flat.variables[path]: jnp.asarray(array)
            for path, array in done.changed.items()
        }
        weights = {**self.pruned.weights, **changed}
        self.pruned = self.pruned._replace(weights=weights)
        for name, layer, drift in done.drifts:
            self.found[name, layer] = self.found[name, layer]._replace(drift=drift)
        self.missed = done.missed
        self.clocks.seconds.clear()
        self.clocks.seconds.update(done.seconds)

    def finish(self) -> None:
        """Goes on until the last drift is known."""
        if self.drifts:
            place = 1 + max(self.flat.made[target] for _, target, _ in self.drifts)
            if place > self.pruned.place:
                self._advance(place, "the end")

    def _plan(self) -> Plan:
        """The groups that have lost channels so far."""
        plan = {}
        for group in filter(self._is_cut, self.traced.groups):
            mask = self.masks[group.atom]
            kept = np.nonzero(mask)[-1].reshape(*mask.shape[:-1], -1)
            plan[group.name] = Cut(group.width, kept)
        return plan

    def _narrow(self) -> Any:
        """The variables that are left so far."""
        weights = self.pruned.weights
        arrays = [weights[value] for value in self.flat.variables.values()]
        whole = jax.tree.unflatten(self.tree, arrays)
        return self.traced.take(self._plan(), whole)

    def result(self, clocks: Clocks) -> Walked:
        variables = jax.block_until_ready(jax.device_put(self._narrow()))
        plan, results = self._plan(), []
        for group in self.traced.groups:
            own = [r for (name, _), r in self.found.items() if name == group.name]
            if own:
                results.append(_together(own, plan.get(group.name)))
            elif group.name in self.asked.sizes:
                results.append(uncut(group.name, group.width))
        return Walked(variables, tuple(results), clocks.so_far())


def _by_path(tree: Any) -> dict[str, Array]:
    return {
        key_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _lost(result: GroupResult) -> bool:
    return result.cut.kept.shape[-1] < result.cut.width


def _together(results: Sequence[GroupResult], kept: Cut | None) -> GroupResult:
    """The results of a group's layers as one."""
    first = results[0]
    if len(results) == 1:
        return first if kept is None else first._replace(cut=kept)

    def mean(values):
        known = [value for value in values if value is not None]
        return float(np.sqrt(np.mean(np.square(known)))) if known else None

    return first._replace(
        cut=kept or first.cut,
        relative_residual=mean(r.relative_residual for r in results),
        drift=mean(r.drift for r in results),
        iterations=max(r.iterations for r in results),
        unrepaired=next((r.unrepaired for r in results if r.unrepaired), None),
    )


def _agreed(weights: Weights, stream: Stream) -> Weights:
    """The weights, those that changed as the first process has them."""
    changed = [v for v, a in weights.items() if a is not stream.weights.get(v)]
    arrays = devices.agree([weights[value] for value in changed])
    return {**weights, **dict(zip(changed, map(jnp.asarray, arrays), strict=True))}


def _of(folds, places, kept):
    """Moments of some places, of those of more."""
    if len(kept) == len(places):
        return folds
    own = rows(np.searchsorted(places, kept), len(places), len(folds[0].x))
    return folds[0].of(own), folds[1].of(own)


def _watcher(dense, weights, found: list):
    def seen(k: int, array: Array) -> None:
        found.append(_distance(array, dense[k], weights[k]))

    return seen


def _relative(found: list) -> float:
    apart, size = np.sum(jax.device_get(found), axis=0)
    return float(np.sqrt(apart / size)) if size > 0 else 0.0


@jax.jit
def _distance(x, y, weight):
    weight = across(weight, x) if len(weight) == len(x) else 1.0
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return (jnp.square(x - y) * weight).sum(), (jnp.square(y) * weight).sum()
