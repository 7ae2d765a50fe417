"""`prune`: any model made smaller, in one call."""

import os
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
from jaxtyping import Array

from ispasp_jax import budget, graph
from ispasp_jax.budget import Budget, cost, latency
from ispasp_jax.errors import InputError
from ispasp_jax.graph import (
    Group,
    Plan,
    Traced,
    adapters,
    branches,
    modules,
    narrow,
)
from ispasp_jax.graph.trees import leaves
from ispasp_jax.selection import criteria
from ispasp_jax.selection.criterion import Criterion, Factory
from ispasp_jax.walk import gates, places, probe, unselectable
from ispasp_jax.walk import inputs as inputs_
from ispasp_jax.walk import repair as repairs
from ispasp_jax.walk.batches import Images
from ispasp_jax.walk.clocks import Clocks
from ispasp_jax.walk.curves import Curves, measure_curves
from ispasp_jax.walk.engine import walk
from ispasp_jax.walk.options import Options, Tune
from ispasp_jax.walk.redundancy import redundancy
from ispasp_jax.walk.results import GroupResult, Walked
from ispasp_jax.walk.resume import Store


class Pruned(NamedTuple):
    """A model that is really smaller, and how it came about.

    Attributes:
      apply: of (variables, *inputs): the model in evaluation, on what is left of its
        variables; composes with jit, grad, vmap and jax.export.
      variables: those that are left, of the type that was given (an NNX module's
        state).
      groups: what became of every group.
      plan: the groups that lost channels.
      seconds: what it took: curves or ranks, selection, repair, and compilation of
        each.
      traced: the dense model's groups; `narrow` and `take` go by it.
      module: the framework's own module at the narrower widths: a Linen module for
        `apply` with the variables, an NNX or Equinox module that carries them; None
        where there is none.
      unfit: why there is no module, where there was one; `apply` serves.
      left: groups in the scope that stay whole, since nothing can be asked of what
        reads them, and why.
    """

    apply: Callable[..., Any]
    variables: Any
    groups: tuple[GroupResult, ...]
    plan: Plan
    seconds: Mapping[str, float]
    traced: Traced
    module: Any | None = None
    unfit: str | None = None
    left: Mapping[str, str] = MappingProxyType({})

    def save(self, folder: str | os.PathLike) -> None:
        """Saves what is left as a model folder that `ispasp_jax.load` reads: arrays,
        and the function as a StableHLO program for any batch and platform, so that it
        runs without the model's code; and the plan beside.

        Raises:
          InputError: the folder holds other files, or the function cannot be written
            for a batch of any size.
        """
        from ispasp_jax.weights import folders, stablehlo

        program = stablehlo.stored(self.apply, self.variables, *self.traced.inputs)
        arrays = dict(leaves(self.variables))
        model = folders.Model("function", program, arrays, None)
        folders.save(folder, model, self.plan)

    @property
    def unrepaired(self) -> dict[str, str]:
        """The groups whose consumers least squares was asked for and did not reach, and
        why; batch norm's moments were measured again there.
        """
        return {g.name: g.unrepaired for g in self.groups if g.unrepaired}


# Long, and of many parameters: every option is an explicit keyword with its line of
# help, since this is what users read.
def prune(
    model: Any,
    variables: Any = None,
    images: Images | None = None,
    keep: budget.Keep | Budget | Literal["auto"] = 0.4,
    *,
    criterion: Criterion | Factory | str | None = None,
    repair: repairs.Name = "lsq",
    scope: Literal["inner", "all"] = "inner",
    ignore: str | Iterable[str] = (),
    plan: Plan | None = None,
    labels: gates.Labels | None = None,
    real: places.Real | None = None,
    key: Array | None = None,
    tune: Tune | None = None,
    carry_dense: bool = False,
    residual_images: int = 32,
    progress: Callable[[Iterable], Iterable] = iter,
    mesh: jax.sharding.Mesh | None = None,
    store: Store | None = None,
    memory: int | None = None,
) -> Pruned:
    """Prunes a trained model, without labels or training.

    Args:
      model: a Linen module, a Haiku transform, or a function of (variables, *inputs),
        with its variables; an NNX or Equinox module carries its own.
      variables: the model's, from training; None for a module that carries its own.
      images: calibration batches as the model takes them, of training data: arrays, or
        tuples of them for a model of several inputs.
      keep: the fraction of each group's channels that stays, fractions by glob over
        group names (`trace` prints them), or a `Budget` of what the model may cost:
        groups then lose as much as hurts least (see `walk.curves`); "auto": as many
        channels of each group as its rank (see `redundancy`).
      criterion: how to select, or its name (see `criteria`); i-SpaSP with T = 20 if
        None.
      repair: "lsq" refits what reads a group by least squares, "bn" measures batch
        norms' moments again, "none".
      scope: "inner", the paper's: hidden channels that one layer makes and one reads;
        "all": residual streams, heads and concatenated channels, too.
      ignore: globs over names of groups that stay whole.
      plan: which channels to keep, where that is known: nothing is selected then.
      labels: the images' classes, batch by batch, for a criterion that needs them.
      real: of images, or texts, (n, t, ...) which of the t places are real, a batch of
        truth values (n, t) each; the others are padding and weigh nothing. The model
        has to see to it that no real place looks at one.
      key: for criteria that draw at random; jax.random.key(0) if None.
      tune: trains the model after each group.
      carry_dense: walk the dense model beside, to report how far outputs drift; the
        least squares do so anyway.
      residual_images: how many images the relative residual is measured on, 0 for none.
      progress: wraps the iterable of steps, to show how far the walk is.
      mesh: devices to spread the images over (`devices.mesh`).
      store: where steps are kept, to go on after a stop (`walk.Store`).
      memory: bytes of the images' activations that each device may keep; the result is
        the same.

    Returns:
      The smaller model, its variables, and what became of every group.

    Never judge the result by these images: the repair is fitted to them, and flatters
    itself there.

    Raises:
      InputError: the arguments are not what is written above, in one sentence.
      FloatingPointError: NaN or infinity in weights, images or activations.
    """
    function, variables = adapters.function(model, variables)
    if images is None:
        raise InputError(
            "prune needs images: batches of training data as the model takes them, "
            "prune(model, variables, [batch, ...])."
        )
    batches = [*inputs_.checked_images(images)]
    real = None if real is None else [*real]
    if not batches:
        raise InputError("no calibration images: expected at least one batch.")
    traced = inputs_.traced_at(function, variables, batches[0])
    clocks = Clocks()
    groups = graph.scope(traced.groups, scope, ignore)
    why = unselectable(traced)
    left = {group.name: why[group.name] for group in groups if group.name in why}
    groups = tuple(group for group in groups if group.name not in left)
    if plan is not None:
        sizes = {}
    elif isinstance(keep, str):
        if keep != "auto":
            raise InputError(f'keep {keep!r} is neither a ratio, a Budget nor "auto".')
        with clocks.on("ranks"):
            found = redundancy(
                traced, variables, batches, groups, mesh=mesh, memory=memory, real=real
            )
        sizes = {name: one.rank() for name, one in found.items()}
    elif isinstance(keep, Budget):
        with clocks.on("curves"):
            repaired = repairs.of(repair).fits
            curves = measure_curves(
                traced, variables, batches, groups, repaired=repaired, mesh=mesh,
                memory=memory, real=real,
            )  # fmt: skip
        sizes = _solved(traced, groups, keep, curves)
    else:
        sizes = budget.sizes(groups, keep)
    result = walk(
        traced,
        variables,
        batches,
        sizes,
        criteria.of(criterion),
        labels=labels,
        real=real,
        plan=plan,
        options=Options(
            key=key,
            repair=repair,
            tune=tune,
            carry_dense=carry_dense,
            residual_images=residual_images,
            progress=progress,
            mesh=mesh,
            store=store,
            memory=memory,
        ),
    )
    apply = narrow(function, traced, result.plan)
    module, unfit = _module(model, traced, result)
    return Pruned(
        apply,
        result.variables,
        result.groups,
        result.plan,
        {**clocks.so_far(), **result.seconds},
        traced,
        module,
        unfit,
        left,
    )


def _solved(
    traced: Traced, groups: Iterable[Group], asked: Budget, curves: Curves
) -> dict[str, int]:
    """The sizes that meet a budget with the least predicted damage."""
    costs = {
        "macs": cost.macs_by_size(traced),
        "params": cost.parameters_by_size(traced),
    }
    if asked.latency_ms is not None:
        batch = traced.program.inputs[len(traced.dims)].shape[0]
        costs["latency"] = latency.latency_by_size(traced, batch, groups)
    wanted, lone = asked.asked, branches.alone(traced.branches.values())
    if asked.depth:
        wanted = wanted._replace(removable=frozenset(lone))
    return budget.solve(curves, costs, budget.widths_of(groups), wanted)


def _module(model: Any, traced: Traced, result: Walked) -> tuple[Any, str | None]:
    """The framework's module at the narrower widths, or why there is none."""
    try:
        return modules.narrower(model, traced, result.plan, result.variables), None
    except modules.Unfit as why:
        return None, str(why)


def cut(model: Any, plan: Plan, *inputs: Any, variables: Any = None) -> Any:
    """A framework's own module at the widths that a plan leaves, nothing selected and
    nothing refitted: what pruned weights are read into that the framework has saved.

        model = ispasp_jax.cut(make(), plan, images)
        model = equinox.tree_deserialise_leaves("pruned.eqx", model)

    Args:
      model: a Linen, NNX or Equinox module at its dense widths.
      plan: what stays: of `Pruned.plan`, or of a plan.json.
      *inputs: a small batch, or shapes.
      variables: a Linen module's.

    Returns:
      A Linen module, for `apply` with the cut variables; an NNX or Equinox module that
      carries its own arrays, cut.

    Raises:
      InputError: the plan is for another model, or the module's code does not run at
        other widths than its own.
    """
    function, variables = adapters.function(model, variables)
    traced = inputs_.traced_at(function, variables, inputs)
    try:
        return modules.narrower(model, traced, plan, traced.take(plan, variables))
    except modules.Unfit as why:
        raise InputError(f"no module at these widths: {why}") from why


def check(
    model: Any,
    variables: Any,
    *inputs: Any,
    plan: Plan | None = None,
    tolerance: float = 1e-4,
) -> float:
    """Tries a model on a small batch: whether cut and masked outputs are the same, and
    whether consumers do what selection and repair take them for.

    Args:
      model: as `trace` takes it, or what it gave.
      variables: arrays; None for a module that carries its own.
      *inputs: a small batch.
      plan: what to keep; half of every group, drawn at random, if None.
      tolerance: largest difference allowed, relative to the largest output.

    Returns:
      The largest difference, relative to the largest output.

    Raises:
      AssertionError: they differ by more; the worst group or consumer is named.
    """
    if not isinstance(model, Traced):
        model, variables = adapters.function(model, variables)
    traced = inputs_.traced_at(model, variables, inputs)
    apart = graph.check(traced, variables, *inputs, plan=plan, tolerance=tolerance)
    result = probe(traced, variables, *inputs)
    worst = max(result, key=lambda name: result[name], default=None)
    if worst and not result[worst] <= max(tolerance, 1e-3):
        raise AssertionError(
            f"what reads {worst} is {result[worst]:.1e} of its largest output from its "
            "kernel times the patches, scaled and shifted; please report the model."
        )
    return max(apart, *result.values()) if result else apart
