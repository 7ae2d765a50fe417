"""One walk through the network, from input to output: for every group gather what the
criterion needs, select, cut, and carry the activations through the block as cut.

The walk holds the calibration images' activations at the present block's input and the
present group's, nothing else of the network's inside, and runs every layer once,
whatever the criterion iterates. A block of a shape that was met before costs no
tracing: modules are static arguments, equal modules hash equal, and the cut itself is
made when the walk leaves the block.
"""

import time
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ispasp_jax import budget, devices, gates, inputs, streams
from ispasp_jax import groups as rewriter
from ispasp_jax.consumers import Unreached
from ispasp_jax.errors import InputError
from ispasp_jax.ispasp import ispasp
from ispasp_jax.models.network import (
    Block,
    Network,
    Variables,
    cuttable,
    graft,
    group_names,
    subtree,
)
from ispasp_jax.moments import measure
from ispasp_jax.plan import Plan
from ispasp_jax.problem import LABELLED, Criterion
from ispasp_jax.repair import least_squares, reach, recalibrate, regression
from ispasp_jax.resume import Done, Store, replay
from ispasp_jax.selecting import Asked, GroupResult, select, uncut
from ispasp_jax.streams import Images, Stream, across

#: Called by the walk after each block that was cut, with the network so far: trains it
#: and returns the new variables.
Tune = Callable[[Network, Variables], Variables]


class Pruned(NamedTuple):
    """The walk's result: a network that is really smaller, and how it came about.

    Attributes:
      network: the narrower network.
      variables: its variables.
      groups: what became of every group.
      seconds: of the walk without repair and `tune`; of a walk that was stopped, all
        its runs up to their last part together.
      repair_seconds: of the repair.
    """

    network: Network
    variables: Variables
    groups: tuple[GroupResult, ...]
    seconds: float
    repair_seconds: float

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


def prune(
    network: Network,
    variables: Variables,
    images: Images,
    keep: budget.Keep = 0.4,
    **options,
) -> Pruned:
    """Prunes a trained network by i-SpaSP, without labels or training.

    Args:
      network: a shipped model or your own `Network`.
      variables: its Linen variables.
      images: calibration batches, preprocessed, (n, height, width, channels) each.
      keep: the fraction of each group's channels that stays, or fractions by glob.
      **options: of `walk`.

    Never judge the result by these images: the repair is fitted to them, and flatters
    itself there. `memory.estimate` says how much memory the walk will take.
    """
    return walk(
        network,
        variables,
        images,
        budget.sizes(network.group_widths(), keep),
        **options,
    )


def walk(
    network: Network,
    variables: Variables,
    images: Images,
    sizes: dict[str, int],
    criterion: Criterion | None = None,
    *,
    labels: gates.Labels | None = None,
    plan: Plan | None = None,
    key: Array | None = None,
    repair: Literal["none", "bn", "lsq"] = "none",
    tune: Tune | None = None,
    carry_dense: bool = False,
    residual_images: int = 32,
    progress: Callable[[Iterable], Iterable] = iter,
    mesh: jax.sharding.Mesh | None = None,
    store: Store | None = None,
    memory: int | None = None,
) -> Pruned:
    """Prunes group after group, each on the network as pruned so far.

    Args:
      network: the network to prune.
      variables: its variables.
      images: calibration batches, preprocessed. A short one is padded, its padding
        weighs nothing.
      sizes: channels to keep for each group; those not named keep all.
      criterion: how to select; i-SpaSP with T = 20 if None.
      labels: the images' classes, in batches as long as theirs; only read for a
        criterion whose `labels` is true.
      plan: which channels to keep, where that is known: nothing is selected then, and
        sizes and criterion are not asked.
      key: for criteria that draw at random; jax.random.key(0) if None.
      repair: after a cut, refit consumers by least squares ("lsq") or measure batch
        norm's moments again ("bn"); see repair.py.
      tune: trains the network after each block. The walk then computes the activations
        at the boundary again from the images.
      carry_dense: walk the dense network beside, to report how far outputs drift; the
        least squares do so anyway.
      residual_images: how many images the relative residual is measured on, 0 for none.
      progress: wraps the iterable of parts, to show how far the walk is.
      mesh: of devices.py; every batch is spread over its devices. None: the batches
        stay where they are.
      store: of resume.py; every part is kept there when the walk leaves it, and those
        that are there are not selected, repaired and tuned again.
      memory: bytes of the images' activations that each device may keep; see
        streams.py. Results are the same. None: all of one block's. A consumer that is
        not affine is selected on all of its hidden activations at once, whatever this
        says.

    Raises:
      FloatingPointError: NaN or infinity in weights, images, activations, moments or
        importance.
      InputError: sizes, images or labels are not what is written above, the plan does
        not fit the network, or the criterion one of its groups.
    """
    began = time.perf_counter()
    if repair not in ("none", "bn", "lsq"):
        raise InputError(f"repair {repair!r} is none of 'none', 'bn' and 'lsq'.")
    key = jax.random.key(0) if key is None else key
    if plan is not None:
        sizes = {name: len(cut.kept) for name, cut in plan.items()}
    sizes = inputs.checked_sizes(network, sizes)
    inputs.check_variables(network, variables)
    asked = Asked(sizes, criterion or ispasp(), key, residual_images, plan)
    clocks = {"repair": _Clock(), "tune": _Clock()}
    needs_dense = "least_squares" in asked.needs or repair == "lsq" or carry_dense
    memory = streams.share(memory, mesh, 2 if needs_dense else 1)
    images = inputs.checked_images(images, network, variables)
    pruned = streams.start(images, mesh, memory)
    targets = None
    if asked.needs & LABELLED:
        classes = inputs.output(network, variables, pruned.x[0]).shape[-1]
        targets = gates.aligned(labels, classes, pruned, mesh)
    dense = pruned if needs_dense else None
    entry = pruned if tune else None
    original, results, before = variables, [], (0.0, 0.0)

    def seconds():
        walked = time.perf_counter() - began - sum(c.seconds for c in clocks.values())
        return before[0] + walked, before[1] + clocks["repair"].seconds

    for index, part in enumerate(progress(network.chain())):
        pruned = pruned.enter(part.module, subtree(variables, part), part.name)
        own = subtree(original, part)
        dense = dense and dense.enter(part.module, own, part.name)
        done = store and store.read(index)
        if done:
            pruned, dense = replay(part, pruned, dense, done)
            found, before = done.groups, done.seconds
        else:
            rest = targets and gates.rest(network, variables, index, targets)
            differs = any(map(_lost, results))
            pruned, dense, found, whole = _prune_part(
                part, pruned, dense, asked, rest, repair, differs, clocks
            )
        own = full = pruned.own
        for group, result in zip(cuttable(part), found, strict=True):
            own = rewriter.take(jax.device_get(own), group, result.cut.kept)
        network = network.narrowed({g.name: len(g.cut.kept) for g in found})
        variables = graft(variables, part, own)
        tuned = done and done.tuned
        if not done and tune is not None and any(map(_lost, found)):
            with clocks["tune"]:
                tuned = tune(network, jax.device_put(variables))
        if tuned is not None:
            variables, pruned = tuned, entry
            for link in network.chain()[: index + 1]:
                own = subtree(variables, link)
                pruned = pruned.enter(link.module, own, link.name).through()
        if not done:
            drift = _drift(pruned, dense) if dense and found else None
            found = tuple(group._replace(drift=drift) for group in found)
            if store:
                store.write(index, Done(found, full, whole, seconds(), tuned))
        results += found
    variables = jax.block_until_ready(jax.device_put(variables))
    return Pruned(network, variables, tuple(results), *seconds())


def _prune_part(part, here, there, asked, rest, repair, differs, clocks):
    """Cuts and repairs a part, pair after pair; `rest`: the network behind it, where
    labels are needed; `differs`: something before was cut.

    Gives both streams at the part's output, what was found, and whether the output was
    computed at once. Arrays keep their width; what was cut is zero behind the
    consumers.
    """
    names = dict(zip(cuttable(part), group_names(part), strict=True))
    pairs = part.module.groups if isinstance(part.module, Block) else ()
    found, missed = [], not pairs

    def recalibrated():
        return differs and (repair == "bn" or (repair == "lsq" and missed))

    for i, group in enumerate(pairs):
        hidden = here.hidden(i)
        if there:
            with clocks["repair"]:
                there = there.pass_pair(i)
        width = streams.width(hidden)
        folds, kept = None, np.arange(width)
        if group in names:
            result = uncut(names[group], width)
            if asked.sizes.get(names[group], width) < width:
                problem = None
                if "least_squares" in asked.needs:
                    reached = _reached(names[group], i, here, hidden)
                    folds = measure(i, here, hidden, there, kept)
                    problem = regression(reached, folds)
                result = select(names[group], i, here, hidden, asked, problem, rest)
            found.append(result)
            kept, differs = result.cut.kept, differs or _lost(result)
        if repair == "lsq" and differs:
            with clocks["repair"]:
                try:
                    here = _repaired(i, here, hidden, there, folds, kept)
                except Unreached as why:
                    missed = True
                    if group in names:
                        found[-1] = found[-1]._replace(unrepaired=str(why))
        if i < len(pairs) - 1 or not recalibrated():
            here = here.advance(i, hidden, np.isin(np.arange(width), kept))
        del hidden  # before the next ones are made
    whole = recalibrated()
    if whole:
        with clocks["repair"]:
            own = here.own
            for group, result in zip(cuttable(part), found, strict=True):
                own = rewriter.mask(own, group, result.cut.kept)
            here = here._replace(own=own)
            here = here._replace(own=recalibrate(here)).through()
    elif not pairs:
        here = here.through()
    return here, there and there.leave(), found, whole


def _repaired(i, here, hidden, there, folds, kept):
    """The pruned stream, its i-th consumer refitted.

    Raises:
      Unreached: least squares does not reach it.
    """
    reached = reach(i, here, hidden)
    width = streams.width(hidden)
    if folds:
        folds = folds[0].of(kept, width), folds[1].of(kept, width)
    else:
        folds = measure(i, here, hidden, there, kept)
    own = devices.agree(least_squares(reached, here.own, folds, kept))
    return here._replace(own=jax.device_put(own))


def _reached(name, i, here, hidden):
    """How least squares reaches a group's consumer, for criteria that need it.

    Raises:
      InputError: it does not.
    """
    try:
        return reach(i, here, hidden)
    except Unreached as why:
        raise InputError(
            f"group {name!r}: no least squares can be asked of its consumer, {why}; "
            "choose another criterion."
        ) from why


def _lost(result: GroupResult) -> bool:
    return len(result.cut.kept) < result.cut.width


class _Clock:
    """Adds up the seconds spent inside `with`."""

    seconds = 0.0

    def __enter__(self):
        self._start = time.perf_counter()

    def __exit__(self, *_):
        self.seconds += time.perf_counter() - self._start


def _drift(pruned: Stream, dense: Stream) -> float:
    triples = zip(pruned.x, dense.x, pruned.weight, strict=True)
    squares = [_square_distance(*triple) for triple in triples]
    apart, size = np.sum(jax.device_get(squares), axis=0)
    return float(np.sqrt(apart / size)) if size > 0 else 0.0


@jax.jit
def _square_distance(x, y, weight):
    weight = across(weight, x)
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return (jnp.square(x - y) * weight).sum(), (jnp.square(y) * weight).sum()
