"""One run of prune.py, stage after stage. What is finished is kept in a hidden folder
beside the result, so that a run that was stopped can go on; at the end the folder is
renamed to the result's place.
"""

import json
import shutil
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ispasp_jax import checkpoints, cost, data, pruning, report, weights
from ispasp_jax import plan as plans
from ispasp_jax.checkpoints import Model
from ispasp_jax.commands import dense, train
from ispasp_jax.data import Source
from ispasp_jax.errors import InputError
from ispasp_jax.problem import Criterion
from ispasp_jax.report import say

#: Files of the working folder that are not part of the result.
_DENSE, _PRUNED, _STATES, _FLAGS = "dense", "pruned", "states", "flags.json"


class Run:
    """A run's flags, data and working folder, and the report as far as it is known."""

    def __init__(self, args: Namespace, source: Source, out: Path):
        self.args, self.source, self.out = args, source, out
        self.work = out.absolute().with_name(f".{out.name}.partial")
        self.began = time.perf_counter()
        self.report: dict[str, Any] = {
            "model": args.model,
            "method": args.method,
            "data": args.data,
            "seed": args.seed,
            "versions": report.versions(),
            "device": report.device(),
            "stages": [],
            "seconds": {},
            "notes": [],
        }
        flags = {k: str(v) for k, v in vars(args).items() if k not in ("resume", "out")}
        self.resumed = args.resume and self._resume(flags)
        if not self.resumed:
            shutil.rmtree(self.work, ignore_errors=True)
        self._flags = flags

    def _resume(self, flags: dict[str, str]) -> bool:
        """Takes up a stopped run with the same flags; False where there is none."""
        if not (self.work / _FLAGS).exists():
            say("--resume: nothing to go on from, starting anew")
            return False
        before = json.loads((self.work / _FLAGS).read_text())
        if before != flags:
            changed = sorted(k for k in flags if before.get(k) != flags[k])
            raise InputError(
                f"--resume: the stopped run had other flags ({', '.join(changed)}); "
                "give the same ones, or leave --resume out to start anew."
            )
        if (self.work / "report.json").exists():
            self.report = json.loads((self.work / "report.json").read_text())
        return True

    def _keep(self, name: str, content: dict[str, Any]) -> None:
        """Writes a JSON file in the working folder, whole or not at all."""
        self.work.mkdir(parents=True, exist_ok=True)
        new = self.work / f"{name}.new"
        new.write_text(json.dumps(content, indent=1) + "\n")
        new.replace(self.work / name)

    def _stage(self, name: str, model: Model, seconds: float) -> None:
        score = dense.evaluate(self.args, self.source, model)
        say(f"{name}: top-1 {100 * score.top1:.2f} %")
        self.report["stages"].append(
            {"stage": name, **score._asdict(), "seconds": seconds}
        )

    def dense_network(self) -> Model:
        """The network to prune: from --weights, kept from before, or trained now."""
        args = self.args
        start = time.perf_counter()
        if args.weights:
            model = dense.load_weights(args, self.source)
            say(f"dense network: {args.weights}")
        else:
            folder = Path("runs") / dense.run_name(args, "dense")
            if (folder / checkpoints.CONFIG).exists():
                say(f"dense network: {folder}, kept from an earlier run")
            else:
                say(f"no --weights: training {args.model} on {args.data} first")
                self._train(folder)
            here = Namespace(**{**vars(args), "weights": str(folder)})
            model = dense.load_weights(here, self.source)
        self._keep(_FLAGS, self._flags)
        if not self.report["stages"]:
            self._stage("dense", model, time.perf_counter() - start)
        return model

    def _train(self, folder: Path) -> None:
        flags = ["--model", self.args.model, "--data", self.args.data]
        defaults = vars(train.parser().parse_args(flags))
        shared = {k: v for k, v in vars(self.args).items() if k in defaults}
        own = {k: defaults[k] for k in ("learning_rate", "epochs", "out")}
        args = Namespace(**{**defaults, **shared, **own, "resume": True})
        train.train(args, self.source, train.start(args, self.source), folder)

    def prune(self, model: Model, criterion: Criterion, sizes: dict[str, int]) -> Model:
        """Walks the network; the result is also saved, for --resume."""
        folder = self.work / _PRUNED
        if self.resumed and folder.exists():
            say("pruned network: from the stopped run")
            return checkpoints.load(folder)
        args, batches = self.args, self._calibration(model)
        self.report["seconds"]["dense_forward"] = _forward_seconds(model, batches)
        with report.compile_seconds() as compiling:
            try:
                result = pruning.walk(
                    model.network,
                    model.variables,
                    batches,
                    sizes,
                    criterion,
                    key=jax.random.key(args.seed),
                    tune=self._tune(model) if args.block_finetune_epochs else None,
                    progress=lambda parts: report.track(parts, "pruning", len(parts)),
                )
            except FloatingPointError as error:
                raise InputError(str(error)) from error
        if not args.block_finetune_epochs:  # training changes the weights as well
            images = batches[0][:8]
            plans.verify(result.plan, model.network, model.variables, images)
        self.report["seconds"]["selection"] = result.seconds
        self.report["seconds"]["compilation_in_selection"] = sum(compiling)
        self.report["groups"] = [
            {
                "name": group.name,
                "width": group.cut.width,
                "kept": len(group.cut.kept),
                "relative_residual": group.relative_residual,
                "iterations": group.iterations,
            }
            for group in result.groups
        ]
        pruned = model.replace(result.network, result.variables)
        self._keep("plan.json", plans.to_json(result.plan, args.model))
        with checkpoints.replacing(folder) as new:
            checkpoints.write(new, pruned)
            self._stage("pruned", checkpoints.load(new), result.seconds)
            self._keep("report.json", self.report)
        return pruned

    def _calibration(self, model: Model) -> list[np.ndarray]:
        args, split = self.args, self.source.train
        chosen = data.calibration_indices(split, args.calibration_images, args.seed)
        if len(chosen) < args.calibration_images:
            note = (
                f"calibration: all {len(chosen)} training images, fewer than the "
                f"{args.calibration_images} asked for"
            )
            say(note)
            self.report["notes"].append(note)
        size = min(dense.batch_size(args, self.source), len(chosen))
        prep = model.preprocessing
        found = data.batches(split, prep, size, indices=chosen)
        total = -(-len(chosen) // size)
        return [
            batch.image[batch.weight > 0]
            for batch in report.track(found, "calibration images", total)
        ]

    def _tune(self, model: Model) -> pruning.Tune:
        args = self.args
        note = (
            f"{args.block_finetune_epochs} epochs of fine-tuning after each block, "
            "activations at the boundary computed again"
        )
        self.report["notes"].append(note)
        recipe = dense.recipe(args, self.source, args.block_finetune_epochs, 0.01)

        def tune(network, variables):
            so_far = model.replace(network, variables)
            label = "fine-tuning the block"
            return dense.train(args, self.source, so_far, recipe, label).variables

        return tune

    def finetune(self, model: Model) -> Model:
        """Fine-tunes the pruned network, epoch by epoch."""
        epochs = self.args.finetune_epochs
        if epochs is None:
            digits = self.args.data == "digits" and not self.args.weights
            epochs = dense.DIGITS_FINETUNE_EPOCHS if digits else 0
        if not epochs:
            return model
        start = time.perf_counter()
        recipe = dense.recipe(self.args, self.source, epochs, 0.01)
        states = self.work / _STATES
        tuned = dense.train(
            self.args,
            self.source,
            model,
            recipe,
            "fine-tuning",
            states,
            self.resumed,
        )
        self._finetuned = time.perf_counter() - start
        return tuned

    def finish(self, model: Model, final: Model) -> dict[str, Any]:
        """Saves the model, measures it as loaded from disk, and puts all in place."""
        folder = self.work / "model"
        checkpoints.save(folder, final)
        loaded = checkpoints.load(folder)
        if self.args.torch:
            weights.save_safetensors(
                self.work / "torchvision.safetensors",
                loaded.network,
                loaded.variables,
                loaded.name,
            )
        if hasattr(self, "_finetuned"):
            self._stage("finetuned", loaded, self._finetuned)
        for name, each in (("dense", model), ("pruned", loaded)):
            self.report[name] = self._costs(each)
        if self.report["pruned"]["latency_ms"] > self.report["dense"]["latency_ms"]:
            self.report["notes"].append(
                "the pruned network is slower than the dense one on this device: keep "
                "more regular widths, or prune more"
            )
        self.report["seconds"]["total"] = time.perf_counter() - self.began
        self._keep("report.json", self.report)
        for name in (_PRUNED, _STATES, _FLAGS):
            path = self.work / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        checkpoints.move(self.work, self.out.absolute())
        return self.report

    def _costs(self, model: Model) -> dict[str, Any]:
        arguments = model.network, model.variables, model.input_shape
        size = self.args.latency_batch_size
        return {
            "params": cost.parameters(model.variables),
            "macs": cost.macs(*arguments),
            "latency_ms": cost.latency(*arguments, batch_size=size),
            "batch_size": size,
        }


def _forward_seconds(model: Model, batches: list[np.ndarray]) -> float:
    """Seconds of one dense forward pass over all batches, compilation apart."""
    apply = jax.jit(model.network.apply)
    for shape in {batch.shape for batch in batches}:
        apply(model.variables, np.zeros(shape, np.float32))

    def forward():
        return [apply(model.variables, batch) for batch in batches]

    return cost.seconds(forward, repeats=1)
