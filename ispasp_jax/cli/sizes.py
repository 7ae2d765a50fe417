"""How many channels of each group a run keeps: by ratios, or what meets a budget, from
curves that are kept beside the result.
"""

from pathlib import Path

from ispasp_jax import budget, devices
from ispasp_jax.cli import budgets, curve_files, fronts, plan_files, widths
from ispasp_jax.cli.config import Limits, PlanFile, PruneConfig, Ranks, Ratios
from ispasp_jax.cli.curve_files import CurveFile
from ispasp_jax.cli.records import Dense, Images, Sizes, Task, noted
from ispasp_jax.cli.workspace import Workspace
from ispasp_jax.errors import InputError
from ispasp_jax.graph.plans import Plan
from ispasp_jax.report import say
from ispasp_jax.selection.criterion import Criterion
from ispasp_jax.walk import redundancy, similar_branches
from ispasp_jax.walk.clocks import Clocks
from ispasp_jax.walk.redundancy import TOLERANCE
from ispasp_jax.weights.folders import Model

_SIZES = "sizes.json"


def check(config: PruneConfig, choice: Criterion | Plan, model: Model) -> None:
    """Raises InputError where the model cannot be cut as asked, as far as that can be
    known before anything is measured.
    """
    pruning = config.pruning
    match pruning.cut:
        case PlanFile() as file:
            assert not isinstance(choice, Criterion)
            plan_files.sizes(file, choice, pruning, model)
        case Limits() as limits:
            budgets.check(limits, pruning, model)
            if limits.curves is not None:
                curve_files.read(limits.curves, pruning, model)
        case Ranks():
            widths.scope(pruning, model)
        case ratios:
            widths.by_ratio(ratios, pruning, model)


def choose(task: Task, dense: Dense, images: Images, work: Workspace) -> Sizes:
    """The sizes; those of a budget and their curves are kept at once, for --resume.

    Raises:
      InputError: the budget cannot be met.
    """
    match task.config.pruning.cut:
        case PlanFile():
            return Sizes({})
        case Limits() as limits:
            return _within(limits, task, dense.model, images, work)
        case Ranks():
            return _by_rank(task, dense.model, images)
        case ratios:
            pruning = task.config.pruning
            if pruning.by_branch and isinstance(ratios, Ratios):
                return _branches(ratios, dense.model, images)
            return Sizes(widths.by_ratio(ratios, pruning, dense.model))


def _by_rank(task: Task, model: Model, images: Images) -> Sizes:
    """As many channels as the groups' ranks in the dense network."""
    clocks, pruning = Clocks(), task.config.pruning
    with clocks.on("ranks"):
        found = widths.survey(redundancy, pruning, model, images)
    ranks = {name: one.rank() for name, one in found.items()}
    notes = noted(
        f"rank: channels that, recombined, miss at most {TOLERANCE:.0%} of the norm of "
        "all the group's, about their mean, on the calibration images"
    )
    sizes = widths.by_rank(ranks, pruning, model)
    return Sizes(sizes, None, clocks.so_far(), notes, ranks)


def _branches(ratios: Ratios, model: Model, images: Images) -> Sizes:
    """The groups of the branches that go."""
    traced, ((_, keep),) = model.traced, ratios.keep
    count = len(traced.branches) - budget.sizes({"": len(traced.branches)}, keep)[""]
    gone = similar_branches(
        traced, model.variables, images.batches, images.labels, max(count, 0)
    )
    say(f"branches that go: {', '.join(gone) or 'none'}")
    return Sizes(dict.fromkeys(traced.without(*gone), 0))


def _within(
    limits: Limits, task: Task, model: Model, images: Images, work: Workspace
) -> Sizes:
    """The sizes within a budget."""
    clocks, config = Clocks(), task.config
    with clocks.on("curves"):
        held, origin, notes = _known(limits, task, model, images, work)
        if held is None:
            held = budgets.measure(config, model, images)
            work.write(curve_files.CURVES, curve_files.to_json(held))
    left_out = set(widths.scope(config.pruning, model)) - set(held.curves)
    if left_out:
        notes += noted(
            f"{', '.join(sorted(left_out))}: not cut, since least squares does not "
            "reach the consumer and there is no curve"
        )
    # Latencies are never the same twice, so a stopped walk goes on with its sizes.
    kept = work.read(_SIZES) if work.resumed else None
    if kept is None and limits.pareto:
        limits = fronts.chosen(limits, task, model, images, held, work)
    if kept is None:
        sizes, record, held = budgets.solve(limits, config, model, held)
        kept = {"sizes": sizes, "budget": {"curves": origin, **record}}
        work.write(curve_files.CURVES, curve_files.to_json(held))
        work.write(_SIZES, kept)
    if devices.is_first():
        path = work.folder / budgets.PLOT
        known = budgets.in_scope(config.pruning, model, held.curves)
        if not budgets.draw(known, kept["sizes"], path):
            notes += noted("no curves.png: install the [plots] extra (matplotlib)")
    return Sizes(kept["sizes"], kept["budget"], clocks.so_far(), notes)


def _known(
    limits: Limits, task: Task, model: Model, images: Images, work: Workspace
) -> tuple[CurveFile | None, str, tuple[str, ...]]:
    """Curves of these weights and images that are there, if any are; whether this run
    measured them or is to; and notes.
    """
    wanted = curve_files.identity(task.config, model, images.batches)
    before, notes = "kept from an earlier run", ()
    if limits.curves is not None:
        held = curve_files.read(limits.curves, task.config.pruning, model)
        if held.identity.get("weights") != wanted["weights"]:
            notes = noted(
                f"{limits.curves} does not say that it was measured on these weights: "
                "leave --curves out unless you know that it fits"
            )
        return held, before, notes
    held = _kept(task.out, task.config, model, wanted)
    if held is not None:
        return held, before, notes
    if work.resumed:
        held = _kept(work.folder, task.config, model, wanted)
    return held, "measured", notes


def _kept(
    folder: Path, config: PruneConfig, model: Model, wanted: dict
) -> CurveFile | None:
    """The curves in a folder if they are of the same weights and images, and of all
    groups that may be cut."""
    try:
        held = curve_files.beside(folder, config.pruning, model)
    except InputError as error:
        say(f"{str(error).partition(';')[0]}: measuring the curves again")
        return None
    return held if held and curve_files.answers(held.identity, wanted) else None
