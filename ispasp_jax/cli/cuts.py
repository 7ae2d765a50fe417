"""From the dense network to the network as cut and repaired: calibration images, and
the walk. What is finished is kept in the workspace.
"""

import functools

import jax
import numpy as np

from ispasp_jax import data, devices, report
from ispasp_jax.budget import latency
from ispasp_jax.cli import (
    curve_files,
    doubts,
    opening,
    plan_files,
    stages,
    tuning,
    walk_store,
)
from ispasp_jax.cli.config import Limits
from ispasp_jax.cli.records import (
    Baseline,
    Dense,
    Images,
    Pruned,
    Sizes,
    Stage,
    Task,
    noted,
)
from ispasp_jax.cli.workspace import Workspace, replacing, written
from ispasp_jax.errors import InputError
from ispasp_jax.graph import plans
from ispasp_jax.graph.groups import SCOPES
from ispasp_jax.report import say
from ispasp_jax.selection.criterion import Criterion
from ispasp_jax.walk import Options, Walked, walk
from ispasp_jax.weights import folders
from ispasp_jax.weights.folders import Model

#: What a run keeps for itself until it is done: the steps of the walk, and what is left
#: of the network, with its record.
_WALK, _PRUNED, _RECORD = "walk", "pruned", "pruned.json"


def pruned_before(task: Task, work: Workspace) -> Pruned | None:
    """The pruned network that a stopped run has left, if all is there that `cut` would
    leave.
    """
    if not work.resumed or not (work.folder / _PRUNED).exists():
        return None
    names = [_RECORD, plan_files.PLAN]
    if isinstance(task.config.pruning.cut, Limits):
        names.append(curve_files.CURVES)
    try:
        record, *others = map(work.read, names)
        model = folders.load(work.folder / _PRUNED, task.config.network.model)
    except InputError as error:
        say(f"{error.args[0].partition(';')[0]}: going on from the walk")
        return None
    if record is None or None in others:
        return None
    say("pruned network: from the stopped run")
    return Pruned.from_json(model, record)


def calibrate(task: Task, dense: Dense) -> Images:
    """The calibration images, and what a pass over them takes."""
    config, pruning = task.config, task.config.pruning
    mesh, chosen = devices.mesh(config.run.devices), task.calibration
    needs = task.choice.needs if isinstance(task.choice, Criterion) else ()
    notes = noted(
        doubts.of_memory(
            dense.model,
            -(-len(chosen) // mesh.size),
            pruning.calibration_memory,
            half=config.run.precision == "bf16",
            least_squares=pruning.fits or "least_squares" in needs,
        )
    )
    if len(chosen) < pruning.calibration_images:
        notes += noted(
            f"calibration: all {len(chosen)} training images, fewer than the "
            f"{pruning.calibration_images} asked for"
        )
    size = min(opening.batch_size(config.data, task.source), len(chosen))
    prep = dense.model.images
    result = data.batches(task.source.train, prep, size, indices=chosen)
    images, labels, real = [], [], []
    for batch in report.track(result, "calibration images", -(-len(chosen) // size)):
        whole = batch.weight > 0
        images.append(opening.activations(config.run, batch.image[whole]))
        labels.append(batch.label[whole])
        if isinstance(prep, data.Text):
            real.append(data.tokens.real(prep, batch.image[whole]))
    forward = _forward_seconds(dense.model, images, mesh)
    return Images(images, labels, mesh, forward, notes, real or None)


def cut(
    task: Task,
    dense: Dense,
    baseline: Baseline,
    images: Images,
    channels: Sizes,
    work: Workspace,
) -> Pruned:
    """Selects, cuts and repairs group after group; the result is also saved, for
    --resume.
    """
    config, model, folder = task.config, dense.model, work.path(_PRUNED)
    walked, notes = _walk(task, model, images, channels, work)
    few = images.batches[0][:8]
    few = few if few.dtype == np.int32 else few.astype(np.float32)
    plans.verify(walked.plan, model.traced, model.variables, few)
    left_out = plan_files.write(work, config.network.start, model, walked.plan)
    notes = (*baseline.notes, *images.notes, *channels.notes, *notes, *noted(left_out))
    with replacing(folder) as new:
        pruned = written(new, model.cut(walked.plan, walked.variables))
        record = Pruned(
            model=pruned,
            stages=(baseline.stage, *_scores(task, model, walked, pruned)),
            forward=images.forward,
            seconds={**channels.seconds, **walked.seconds},
            groups=report.groups(walked.groups, channels.ranks),
            budget=channels.budget,
            notes=notes,
        )
        work.write(_RECORD, record.to_json())
    return record


def _walk(
    task: Task, model: Model, images: Images, channels: Sizes, work: Workspace
) -> tuple[Walked, tuple[str, ...]]:
    """The walk, and what a person should know of it."""
    config, notes, tune = task.config, (), None
    pruning, epochs = config.pruning, config.tuning.block_finetune_epochs
    criterion = task.choice if isinstance(task.choice, Criterion) else None
    store, done = walk_store.open_store(work.path(_WALK), work.resumed)
    if done:
        notes += noted(
            f"{done} of the network's parts are from a stopped run; seconds of "
            "selection and repair are of both runs"
        )
    if epochs:
        notes += noted(
            f"{epochs} epochs of fine-tuning after each block, activations at the "
            "boundary computed again"
        )
        tune = tuning.between_blocks(task, model)
    try:
        walked = walk(
            model.traced,
            model.variables,
            images.batches,
            channels.sizes,
            criterion,
            labels=images.labels,
            real=images.real,
            plan=None if isinstance(task.choice, Criterion) else task.choice,
            options=Options(
                key=jax.random.key(config.run.seed),
                repair=pruning.repair,
                tune=tune,
                progress=functools.partial(report.track, label="pruning"),
                mesh=images.mesh,
                store=store,
                memory=pruning.calibration_memory,
            ),
        )
    except FloatingPointError as error:
        raise InputError(str(error)) from error
    whole = [
        f"{name} stays whole: {why}"
        for name, why in model.unselectable.items()
        if model.traced[name].kind in SCOPES[pruning.scope]
    ]
    unrepaired = [
        f"{name} is not repaired by least squares: {why}"
        for name, why in walked.unrepaired.items()
    ]
    return walked, (*notes, *noted(*whole, *unrepaired))


def _scores(task: Task, model: Model, walked: Walked, pruned: Model) -> list[Stage]:
    """Of the network as cut, and as repaired where that is another."""
    selection, repair = (
        walked.seconds.get(name, 0.0) + walked.seconds.get(f"compilation of {name}", 0)
        for name in ("selection", "repair")
    )
    if task.config.tuning.block_finetune_epochs:  # it was trained in the same walk
        return [stages.score(task, "pruned", pruned, selection)]
    arrays = plans.apply(walked.plan, model.traced, model.variables)
    as_cut = pruned.replace(pruned.network, arrays)
    scores = [stages.score(task, "pruned", as_cut, selection)]
    if task.config.pruning.repair != "none":
        scores.append(stages.score(task, "repaired", pruned, repair))
    return scores


def _forward_seconds(
    model: Model, batches: list[np.ndarray], mesh: jax.sharding.Mesh
) -> float:
    """Seconds of one dense forward pass over all batches, compilation apart."""
    apply = jax.jit(model.traced.function)
    variables = devices.replicate(mesh, model.variables)

    def forward(batch):
        placed = devices.place(mesh, batch)
        return latency.seconds(lambda: apply(variables, placed), repeats=1)

    return sum(map(forward, batches))  # one after the other: they may not fit at once
