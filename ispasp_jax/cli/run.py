"""One run of prune.py, stage after stage; what is finished is kept in its workspace."""

import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ispasp_jax import data, devices, report, training, weights
from ispasp_jax.budget import cost, latency
from ispasp_jax.cli import (
    budgets,
    content,
    curve_files,
    dense,
    doubts,
    plan_files,
    train,
    walk_store,
    widths,
)
from ispasp_jax.cli.sizes import choose
from ispasp_jax.cli.workspace import Workspace, replacing, written
from ispasp_jax.data import Source
from ispasp_jax.errors import InputError
from ispasp_jax.graph import plans
from ispasp_jax.graph.groups import SCOPES
from ispasp_jax.graph.plans import Plan
from ispasp_jax.report import say
from ispasp_jax.selection.criterion import Criterion
from ispasp_jax.walk import Options, Tune, walk
from ispasp_jax.weights import folders
from ispasp_jax.weights.folders import Model

#: What a finished run leaves in its folder.
OUTPUTS = (
    *("model", plan_files.PLAN, "report.json", plan_files.FROM_DENSE),
    *(curve_files.CURVES, budgets.PLOT, "torchvision.safetensors"),
)
#: What a run keeps for itself until it is done.
_WALK, _PRUNED = "walk", "pruned"


class Run:
    """A run's flags, data, plan if one is given, and working folder, and the report as
    far as it is known.
    """

    def __init__(
        self, args: Namespace, source: Source, out: Path, given: Plan | None = None
    ):
        self.args, self.source, self.out, self.given = args, source, out, given
        aside = ("resume", "out", "dry_run", "devices", "distributed")
        aside += ("calibration_memory", "compilation_cache")
        settings = {k: v for k, v in vars(args).items() if k not in aside}
        if given is not None:  # what the file says, not where it lies
            settings["plan"] = plans.to_json(given, args.model)
        if args.curves is not None:
            settings["curves"] = curve_files.fingerprint_of(args.curves)
        self.work = Workspace(out, settings, args.resume)
        self.began, self._finetuned = time.perf_counter(), None
        self.report: dict[str, Any] = {
            "model": args.model,
            "method": args.method,
            "data": args.data,
            "seed": args.seed,
            "versions": report.versions(),
            "device": report.device(args.devices),
            "stages": [],
            "seconds": {},
            "notes": [],
        }
        if given is not None:
            self.report["plan"] = str(args.plan)

    def note(self, text: str | None) -> None:
        """Says something once, if anything, on stderr and in the report."""
        if text and text not in self.report["notes"]:
            say(text)
            self.report["notes"].append(text)

    def _stage(self, name: str, model: Model, seconds: float) -> None:
        score = dense.evaluate(self.args, self.source, model)
        say(f"{name}: top-1 {100 * score.top1:.2f} %")
        stages = [s for s in self.report["stages"] if s["stage"] != name]
        stages.append({"stage": name, **score._asdict(), "seconds": seconds})
        self.report["stages"] = stages

    def dense_network(self) -> Model:
        """The network to prune: from --weights, kept from before, or trained now."""
        args = self.args
        start = time.perf_counter()
        if args.weights:
            model = dense.load_weights(args, self.source)
            say(f"dense network: {args.weights}")
            given = self.source.preprocessing
            self.note(doubts.of_images(given, model.preprocessing))
        else:
            own = train.dense_network(args, self.source)
            here = Namespace(**{**vars(args), "weights": str(own)})
            model = dense.load_weights(here, self.source)
        if self.given is not None:
            plan_files.sizes(args, self.given, model)
        elif widths.has_budget(args):
            budgets.check(args, model)
            curve_files.given(args, model)
        used = None if trains(args) else self._chosen()
        self.work.begin(
            {
                "weights": folders.fingerprint(model.variables),
                "training images": content.of_training(self.source, used),
                "test images": content.of_split(self.source.test),
            }
        )
        self._pruned = self._pruned_before() if self.work.resumed else None
        if not self.report["stages"]:
            self._stage("dense", model, time.perf_counter() - start)
            top1, classes = self.report["stages"][0]["top1"], self.source.num_classes
            self.note(doubts.of_dense(top1, classes, len(self.source.test)))
        return model

    def _pruned_before(self) -> Model | None:
        """The pruned network that a stopped run has left, with its report, if all is
        there that the walk would leave.
        """
        names = ["report.json", plan_files.PLAN]
        names += [curve_files.CURVES] if widths.has_budget(self.args) else []
        if not (self.work.folder / _PRUNED).exists():
            return None
        try:
            contents = [self.work.read(name) for name in names]
            pruned = folders.load(self.work.folder / _PRUNED, self.args.model)
        except InputError as error:
            say(f"{error.args[0].partition(';')[0]}: going on from the walk")
            return None
        if any(content is None for content in contents):
            return None
        self.report = contents[0]
        return pruned

    def prune(self, model: Model, criterion: Criterion | None) -> Model:
        """Walks the network; the result is also saved, for --resume."""
        if self._pruned is not None:
            say("pruned network: from the stopped run")
            return self._pruned
        folder = self.work.path(_PRUNED)
        args = self.args
        mesh = devices.mesh(args.devices)
        needs = criterion.needs if criterion else ()
        squares = args.repair == "lsq" or "least_squares" in needs
        on_each = -(-len(self._chosen()) // mesh.size)
        self.note(doubts.of_memory(args, model, on_each, squares))
        batches, labels = self._calibration(model)
        self.report["seconds"]["dense_forward"] = _forward_seconds(model, batches, mesh)
        sizes = {} if self.given is not None else choose(self, model, batches, mesh)
        store, done = walk_store.open_store(self.work.path(_WALK), self.work.resumed)
        if done:
            self.note(
                f"{done} of the network's parts are from a stopped run; seconds of "
                "selection and repair are of both runs"
            )
        try:
            result = walk(
                model.traced,
                model.variables,
                batches,
                sizes,
                criterion,
                labels=labels,
                plan=self.given,
                options=Options(
                    key=jax.random.key(args.seed),
                    repair=args.repair,
                    tune=self._tune(model) if args.block_finetune_epochs else None,
                    progress=lambda steps: report.track(steps, "pruning", len(steps)),
                    mesh=mesh,
                    store=store,
                    memory=args.calibration_memory,
                ),
            )
        except FloatingPointError as error:
            raise InputError(str(error)) from error
        for name, why in model.unselectable.items():
            if model.traced[name].kind in SCOPES[args.scope]:
                self.note(f"{name} stays whole: {why}")
        for name, why in result.unrepaired.items():
            self.note(f"{name} is not repaired by least squares: {why}")
        images = batches[0][:8].astype(np.float32)
        plans.verify(result.plan, model.traced, model.variables, images)
        for name in ("selection", "repair"):
            self.took(name, result.seconds)
        spent = self.report["seconds"]
        selection, repair = spent["selection"], spent["repair"]
        both = spent["compilation"]["selection"], spent["compilation"]["repair"]
        spent["compilation_in_both"] = sum(both)
        self.report["groups"] = report.groups(result.groups)
        pruned = model.cut(result.plan, result.variables)
        self.note(plan_files.write(self.work, args.weights, model, result.plan))
        with replacing(folder) as new:
            pruned = written(new, pruned)
            if args.block_finetune_epochs:  # what was cut was trained in the same walk
                self._stage("pruned", pruned, selection)
            else:
                as_cut = plans.apply(result.plan, model.traced, model.variables)
                self._stage("pruned", pruned.replace(pruned.network, as_cut), selection)
                if args.repair != "none":
                    self._stage("repaired", pruned, repair)
            self.work.write("report.json", self.report)
        return pruned

    def took(self, name: str, spent: Mapping[str, float]) -> None:
        """Puts what Clocks say of something into the report: all its seconds, what of
        it was compilation, and the rest in dense passes over the calibration images."""
        seconds, compiling = (
            self.report["seconds"],
            spent.get(f"compilation of {name}", 0),
        )
        own = spent.get(name, 0.0)
        seconds[name] = own + compiling
        seconds.setdefault("compilation", {})[name] = compiling
        passes = own / seconds["dense_forward"]
        seconds.setdefault("dense_passes", {})[name] = passes

    def _chosen(self) -> np.ndarray:
        """Which training images are for calibration."""
        wanted = self.args.calibration_images
        return data.calibration_indices(self.source.train, wanted, self.args.seed)

    def _calibration(self, model: Model) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Batches of images, and of their labels for criteria that need them."""
        args, split, chosen = self.args, self.source.train, self._chosen()
        if len(chosen) < args.calibration_images:
            self.note(
                f"calibration: all {len(chosen)} training images, fewer than the "
                f"{args.calibration_images} asked for"
            )
        size = min(dense.batch_size(args, self.source), len(chosen))
        prep = model.preprocessing
        found = data.batches(split, prep, size, indices=chosen)
        total = -(-len(chosen) // size)
        images, labels = [], []
        for batch in report.track(found, "calibration images", total):
            images.append(dense.activations(args, batch.image[batch.weight > 0]))
            labels.append(batch.label[batch.weight > 0])
        return images, labels

    def _tune(self, model: Model) -> Tune:
        args = self.args
        self.note(
            f"{args.block_finetune_epochs} epochs of fine-tuning after each block, "
            "activations at the boundary computed again"
        )
        recipe = self._recipe(args.block_finetune_epochs)
        teacher = self._teacher(model)

        def tune(plan, variables):
            so_far = model.cut(plan, variables)
            label = "fine-tuning the block"
            tuned = dense.train(
                args, self.source, so_far, recipe, label, teacher=teacher
            )
            return tuned.variables

        return tune

    def _recipe(self, epochs: int) -> training.Recipe:
        args = self.args
        return dense.recipe(
            args,
            self.source,
            epochs,
            0.01,
            distill=args.distill,
            temperature=args.distill_temperature,
        )

    def _teacher(self, model: Model) -> training.Teacher | None:
        if not self.args.distill:
            return None
        return training.Teacher(model.network, model.variables)

    def finetune(self, pruned: Model, model: Model) -> Model:
        """Fine-tunes the pruned network, epoch by epoch; the dense one may teach it."""
        epochs = finetune_epochs(self.args)
        if not epochs:
            return pruned
        start, recipe = time.perf_counter(), self._recipe(epochs)
        self.report["finetuning"] = recipe._asdict()
        teacher, label = self._teacher(model), "fine-tuning"
        tuned = dense.train(
            self.args, self.source, pruned, recipe, label, self.work, teacher
        )
        self._finetuned = time.perf_counter() - start
        return tuned

    def finish(self, model: Model, final: Model) -> list[str]:
        """Saves the model, measures it as loaded from disk, and puts all in place; the
        names of what is there then.
        """
        with replacing(self.work.path("model")) as new:
            loaded = written(new, final)
        if self.args.torch and devices.is_first():
            weights.save_safetensors(
                self.work.folder / "torchvision.safetensors",
                loaded.variables,
                {
                    "model": loaded.name,
                    "num_classes": loaded.num_classes,
                    "widths": loaded.dense_widths,
                    "options": dict(loaded.options),
                    **data.to_json(loaded.preprocessing),
                },
            )
        if self._finetuned is not None:
            self._stage("finetuned", loaded, self._finetuned)
            before, after = (s["top1"] for s in self.report["stages"][-2:])
            self.note(doubts.of_tuning(before, after, len(self.source.test)))
        size = self.args.latency_batch_size
        both = {"dense": model, "pruned": loaded}
        times = latency.latencies(
            [(m.traced.function, m.variables) for m in both.values()],
            model.input_shape,
            size,
        )
        for (name, each), milliseconds in zip(both.items(), times, strict=True):
            self.report[name] = {
                "params": cost.parameters(each.traced),
                "macs": cost.macs(each.traced),
                "latency_ms": milliseconds,
                "batch_size": size,
            }
        self.note(budgets.timed_again(self.report))
        self.note(doubts.of_latency(self.report))
        self.report["seconds"]["total"] = time.perf_counter() - self.began
        self.work.write("report.json", self.report)
        made = {
            curve_files.CURVES: widths.has_budget(self.args),
            "torchvision.safetensors": self.args.torch,
        }
        names = [*OUTPUTS[:3], *(name for name, is_made in made.items() if is_made)]
        optional = [name for name in OUTPUTS if name not in (*names, *made)]
        return self.work.deliver(names, self.out, optional)


def trains(args: Namespace) -> bool:
    """Whether a run trains anything, and so sees all training images."""
    return bool(finetune_epochs(args) or args.block_finetune_epochs)


def finetune_epochs(args: Namespace) -> int:
    """--finetune-epochs, or its default."""
    if args.finetune_epochs is not None:
        return args.finetune_epochs
    digits = args.data == "digits" and not args.weights
    return dense.DIGITS_FINETUNE_EPOCHS if digits else 0


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
