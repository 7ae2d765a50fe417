"""The dense network: trained in a run of its own, which can be stopped, and kept."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from ispasp_jax import data, report, training
from ispasp_jax.cli import (
    content,
    doubts,
    flags,
    learning,
    loading,
    locks,
    opening,
    workspace,
)
from ispasp_jax.cli.config import PruneConfig, TrainConfig, Weights
from ispasp_jax.data import Source
from ispasp_jax.errors import InputError
from ispasp_jax.numerals import numeral
from ispasp_jax.report import say
from ispasp_jax.weights import folders
from ispasp_jax.weights.folders import Model

#: What a training run adds to a model folder.
TRAINING = "training.json"


def start(config: TrainConfig, source: Source) -> Model:
    """The model to train: fresh, or from --weights."""
    opening.check_batch(config.data, source)
    origin = config.network.start
    if isinstance(origin, Weights):
        model = loading.load(origin, config.network, config.data, source)
        if doubt := doubts.of_images(source.preprocessing, model.images):
            say(doubt)
        return model
    return opening.initialised(_architecture(config, source), config.run.seed)


def train(config: TrainConfig, source: Source, model: Model, out: Path) -> None:
    """Trains, evaluates and saves in `out`, by way of a folder beside it."""
    name, images = config.network.model, config.data.data
    locks.check(out)
    check_out(out, name)
    recipe = learning.recipe(
        config,
        source,
        config.epochs,
        learning.FROM_NOTHING,
        warmup_epochs=config.epochs / 10,
    )
    same = _identity(config, source, model)
    settings, given = _settings(config, source, recipe, same)
    began = time.perf_counter()
    with locks.locked(out):
        if there := check_out(out, name):
            say(f"{out} holds {there}: replaced when training is done")
        with workspace.Workspace(out, settings, config.run.resume) as work:
            work.begin(given)
            label = f"training {name}"
            model = learning.train(
                config, source, model, recipe, label, work, shrink=config.shrink
            )
            seconds = time.perf_counter() - began
            with workspace.replacing(out, work.folder) as new:
                model = workspace.written(new, model)
                score = learning.evaluate(config, source, model)
                record = {
                    "identity": same,
                    "sum": folders.fingerprint(model.variables),
                    "recipe": recipe._asdict(),
                    "shrink": config.shrink,
                    "batch_size": settings["batch_size"],
                    "precision": config.run.precision,
                    "top1": score.top1,
                    "loss": score.loss,
                    "seconds": seconds,
                    "versions": report.versions(),
                    "device": report.device(config.run.devices),
                }
                if new is not None:
                    (new / TRAINING).write_text(json.dumps(record, indent=1) + "\n")
            work.remove()
    say(
        f"{name} on {images}: top-1 {100 * score.top1:.2f} % on the test split after "
        f"{config.epochs} epochs in {numeral(seconds)} s, saved in {out}: "
        f"{', '.join(folders.FILES)}, {TRAINING}"
    )


def network(config: PruneConfig, source: Source) -> Path:
    """The folder of the dense network that prune.py starts from without --weights: kept
    from an earlier run, or trained now.

    Raises:
      InputError: the folder holds another network.
    """
    name, images = config.network.model, config.data.data
    folder = opening.place(config, "dense")
    wanted = TrainConfig(
        config.network,
        config.data,
        dataclasses.replace(config.optimisation, learning_rate=None),
        config.run,
        flags.default_epochs(images),
    )
    if not (folder / TRAINING).exists():
        say(f"no --weights: training {name} on {images} first")
        train(wanted, source, start(wanted, source), folder)
        return folder
    same = _identity(wanted, source, _architecture(wanted, source))
    if _record(folder) != _expected(folder, name, same):
        raise InputError(
            f"{folder} was trained on other data or with other settings, or its "
            "files have changed since; delete it, or name the weights to prune "
            "with --weights."
        )
    say(f"dense network: {folder}, kept from an earlier run")
    return folder


def check_out(out: Path, model: str) -> str | None:
    """What an earlier training of the model has left in --out, in words; None if
    nothing.

    Raises:
      InputError: --out holds anything else.
    """
    if not out.exists():
        return None
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else [out.name]
    foreign = sorted(set(names) - {*folders.FILES, TRAINING})
    if foreign or (names and TRAINING not in names):
        raise InputError(
            f"--out {out} holds other files ({', '.join((foreign or names)[:3])}); "
            "give a new folder, or one of an earlier training run."
        )
    if not names:
        return None
    try:
        there = json.loads((out / folders.CONFIG).read_text())["model"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            f"--out {out} is no finished training (its {folders.CONFIG} cannot be "
            "read); give a new folder or delete it."
        ) from None
    if there != model:
        raise InputError(
            f"--out {out} holds a {there}, not a {model}; give another folder."
        )
    return f"an earlier training of {model}"


def _architecture(config: TrainConfig, source: Source) -> Model:
    prep = opening.preprocessing(config.data, source.preprocessing)
    return opening.architecture(config.network, source.num_classes, prep)


def _identity(config: TrainConfig, source: Source, model: Model) -> dict[str, Any]:
    """What makes two training runs the same one, whatever their recipes: fingerprints
    of images and weights, wherever they lie.
    """
    result = {
        "model": config.network.model,
        "images": content.of_training(source),
        "seed": config.run.seed,
        "options": dict(model.options),
        "preprocessing": data.to_json(model.images),
    }
    if isinstance(config.network.start, Weights):
        result["weights_given"] = folders.fingerprint(model.variables)
    return json.loads(json.dumps(result))


def _settings(
    config: TrainConfig,
    source: Source,
    recipe: training.Recipe,
    identity: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, str]]:
    """What a stopped training has to agree with: settings, and the fingerprints of what
    it was given."""
    origin = config.network.start
    result = {
        **identity,
        "data": config.data.data,
        "weights": origin.weights if isinstance(origin, Weights) else None,
        **recipe._asdict(),
        "shrink": config.shrink,
        "batch_size": opening.batch_size(config.data, source),
        "precision": config.run.precision,
    }
    names = {"images": "training images", "weights_given": "weights"}
    given = {names[key]: result.pop(key) for key in names if key in result}
    return result, given


def _expected(folder: Path, name: str, identity: dict[str, Any]) -> dict[str, Any]:
    """What training.json has to say of a folder whose network is to be used."""
    model = folders.load(folder, name)
    return {"identity": identity, "sum": folders.fingerprint(model.variables)}


def _record(folder: Path) -> dict[str, Any]:
    """What training.json says; nothing where it cannot be read."""
    try:
        record = json.loads((folder / TRAINING).read_text())
        return {key: record[key] for key in ("identity", "sum")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
