"""What both commands begin with: the data, and a dense network for it."""

import dataclasses
import functools
import json
import re
import time
import zlib
from argparse import Namespace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ispasp_jax import data, devices, models, training, weights
from ispasp_jax.cli import content, flags
from ispasp_jax.cli.states import Keeper
from ispasp_jax.cli.workspace import Workspace
from ispasp_jax.data import Preprocessing, Source
from ispasp_jax.errors import InputError
from ispasp_jax.graph import adapters, modules
from ispasp_jax.numerals import numeral
from ispasp_jax.report import say, track
from ispasp_jax.weights import descriptions, folders
from ispasp_jax.weights.folders import Model
from ispasp_jax.weights.tensors import printable

#: Training that a kill may cost, beyond the epoch that it interrupts.
SECONDS_BETWEEN_STATES = 20

#: Epochs of training from nothing, and of fine-tuning, on the embedded digits.
DIGITS_EPOCHS, DIGITS_FINETUNE_EPOCHS = 10, 4


def start_devices(args: Namespace) -> None:
    """Joins other hosts where --distributed says so, checks --devices, keeps freed
    memory, and compiled programs where --compilation-cache says so.

    Raises:
      InputError: of devices.py.
      OSError: the cache cannot be a folder.
    """
    devices.keep_freed_memory()
    if args.compilation_cache:
        args.compilation_cache.mkdir(parents=True, exist_ok=True)
        folder = str(args.compilation_cache.resolve())
        jax.config.update("jax_compilation_cache_dir", folder)
        # Many small programs are most of the time that a run compiles.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if args.distributed:
        devices.initialise()
        flags.answer_termination()  # jax has taken the signal for itself
    devices.mesh(args.devices)


def preprocessing(args: Namespace, base: Preprocessing) -> Preprocessing:
    """The weights' (or the data's) preprocessing, with what the flags say instead."""
    resize = {None: base.resize, "none": None}.get(args.resize, args.resize)
    new = Preprocessing(
        args.image_size or base.image_size,
        resize,
        args.mean or base.mean,
        args.std or base.std,
    )
    if len(new.mean) != len(new.std) or len(new.mean) not in (1, 3):
        raise InputError(
            f"--mean has {len(new.mean)} numbers and --std {len(new.std)}; expected "
            "one a channel, 1 or 3, in both."
        )
    if resize is not None and args.image_size and args.resize is None:
        scale = base.resize / base.image_size
        new = new._replace(resize=round(scale * new.image_size))
    return data.checked(new)


def architecture(args: Namespace, num_classes: int, prep: Preprocessing) -> Model:
    """The model that the flags name, dense; Linen's without arrays."""
    options = {"stem": args.stem}
    if args.stem is None and "stem" in models.options(args.model):
        options["stem"] = "small" if prep.image_size < 64 else "imagenet"
    options = {key: value for key, value in options.items() if value is not None}
    made = models.create(args.model, num_classes, **options)
    return folders.of(args.model, made, prep, options)


def initialised(model: Model, seed: int) -> Model:
    """The model with fresh variables; other models than Linen's have drawn theirs."""
    if not isinstance(model.network, nn.Module):
        return model
    image = jnp.zeros((1, *model.input_shape))
    init = jax.jit(functools.partial(adapters.initialise, model.network))
    variables = init(jax.random.key(seed), image)
    return model.replace(model.network, variables)


def open_source(args: Namespace) -> Source:
    """The data, with as many classes as --num-classes says.

    Raises:
      InputError: there is none, or it has more classes.
    """
    source = data.open_source(args.data)
    for text in source.notes:
        say(f"{args.data}: {text}")
    found = source.num_classes
    if args.num_classes and args.num_classes < found:
        raise InputError(
            f"--num-classes {args.num_classes} is less than {args.data} has, whose "
            f"last class is {found - 1}; give at least {found}."
        )
    return source._replace(num_classes=args.num_classes or found)


def batch_size(args: Namespace, source: Source) -> int:
    """--batch-size, or its default for the data."""
    return args.batch_size or (64 if len(source.train) < 10_000 else 256)


def check_batch(args: Namespace, source: Source) -> None:
    """Raises InputError where there are fewer images to train on than one batch has."""
    size = batch_size(args, source)
    if len(source.train) < size:
        raise InputError(
            f"{args.data} has {len(source.train)} training images, fewer than a batch "
            f"of {size}; give a smaller --batch-size."
        )


def activations(args: Namespace, images: np.ndarray) -> np.ndarray:
    """The images in the dtype of --precision, which all activations then have."""
    return images.astype(jnp.bfloat16) if args.precision == "bf16" else images


def run_name(args: Namespace, method: str) -> str:
    """MODEL-DATA-METHOD, with what else sets two dense networks apart."""
    kind, _, where = args.data.partition(":")
    extra = [f"{args.image_size}px"] if args.image_size else []
    extra += [f"{args.num_classes}classes"] if args.num_classes else []
    extra += [args.stem] if args.stem else []
    extra += [f"seed{args.seed}"] if args.seed else []
    other = [data.located(args.data), args.mean, args.std, args.resize]
    if other != [args.data, None, None, None]:
        extra.append(f"{zlib.crc32(repr(other).encode()):08x}")
    name = "-".join(filter(None, (kind, Path(where).stem)))
    parts = [args.model, name, *extra, method]
    return re.sub(r"[^\w.+-]+", "_", "-".join(parts))


def identity(args: Namespace, source: Source, model: Model) -> dict[str, Any]:
    """What makes two training runs the same one, whatever their recipes: fingerprints
    of images and weights, wherever they lie.
    """
    found = {
        "model": args.model,
        "images": content.of_training(source),
        "seed": args.seed,
        "options": dict(model.options),
        "preprocessing": data.to_json(model.preprocessing),
    }
    if args.weights:
        found["weights_given"] = folders.fingerprint(model.variables)
    return json.loads(json.dumps(found))


def load_weights(args: Namespace, source: Source) -> Model:
    """The model that --weights names, checked against the flags and the data."""
    folder = folders.folder_of(args.weights)
    if folder is not None:
        model = _from_folder(args, folder)
    else:
        model = _from_file(args, source)
    if args.new_head and model.num_classes != source.num_classes:
        arrays = weights.to_torchvision(model.variables)
        other = with_classes(model, source.num_classes)
        model = _filled(args, other, arrays, model.dense_widths)
    knows = model.num_classes
    if knows < source.num_classes or args.num_classes not in (None, knows):
        wanted = "--num-classes asks for" if args.num_classes else f"{args.data} has"
        raise InputError(
            f"--weights {args.weights} knows {knows} classes, {wanted} "
            f"{source.num_classes}; give weights or data that fit, or --new-head to "
            "start a fresh classifier."
        )
    if knows > source.num_classes:
        say(
            f"--weights {args.weights} knows {knows} classes, and {args.data} the "
            f"first {source.num_classes} of them, if its labels are the weights' own"
        )
    return model


def train(
    args: Namespace,
    source: Source,
    model: Model,
    recipe: training.Recipe,
    label: str,
    work: Workspace | None = None,
    teacher: training.Teacher | None = None,
) -> Model:
    """Trains a model on the data's training split, keeping its state in `work`."""
    size = batch_size(args, source)
    steps = len(source.train) // size
    keeper = Keeper(work, label) if work else None
    transformation = training.optimizer(recipe, steps)
    state = None
    if keeper and work.resumed:
        start = training.start(model.network, recipe, transformation, model.variables)
        state = keeper.latest(start, steps)

    def epoch_batches(epoch):
        images = data.batches(
            source.train,
            model.preprocessing,
            size,
            recipe=source.recipe,
            seed=args.seed,
            epoch=epoch,
        )
        found = (b._replace(image=activations(args, b.image)) for b in images)
        return track(found, f"{label}, epoch {epoch + 1}/{recipe.epochs}", steps)

    saved = time.perf_counter()

    def after_epoch(epoch, state, loss):
        nonlocal saved
        say(f"{label}: epoch {epoch + 1}/{recipe.epochs}, loss {numeral(loss)}")
        due = time.perf_counter() - saved > SECONDS_BETWEEN_STATES
        if keeper and devices.agree(due):
            keeper.save(epoch, state)
            saved = time.perf_counter()

    try:
        variables = training.fit(
            model.network,
            model.variables,
            epoch_batches,
            steps,
            recipe,
            teacher=teacher,
            resume=state,
            after_epoch=after_epoch,
            mesh=devices.mesh(args.devices),
        )
    except FloatingPointError as error:
        raise InputError(str(error)) from error
    return model.replace(model.network, jax.device_put(jax.device_get(variables)))


def recipe(
    args: Namespace, source: Source, epochs: int, rate_at_256: float, **more: Any
) -> training.Recipe:
    """The training recipe of the flags for this model.

    Args:
      args: --learning-rate, --weight-decay, --label-smoothing and --ema, or their
        defaults.
      source: the data.
      epochs: how many.
      rate_at_256: the default learning rate for batches of 256; others in proportion.
      **more: of training.Recipe.
    """
    rate, decay = args.learning_rate, args.weight_decay
    return training.Recipe(
        epochs,
        rate_at_256 * batch_size(args, source) / 256 if rate is None else rate,
        weight_decay=models.WEIGHT_DECAY.get(args.model, 5e-4)
        if decay is None
        else decay,
        label_smoothing=args.label_smoothing,
        ema=args.ema,
        **more,
    )


def evaluate(args: Namespace, source: Source, model: Model) -> training.Score:
    """Top-1 and loss on the test split."""
    size = args.batch_size or 256
    batches = data.batches(source.test, model.preprocessing, size)
    total = -(-len(source.test) // size)
    return training.evaluate(
        model.network,
        model.variables,
        track(batches, "test images", total),
        devices.mesh(args.devices),
    )


def _from_folder(args: Namespace, folder: Path) -> Model:
    """A saved model, with the preprocessing that the flags ask for."""
    if args.ema_weights:
        raise InputError(
            f"--ema-weights is for checkpoints that hold the weights and their moving "
            f"average; {args.weights} holds one network, so leave it out."
        )
    _check_name(args, folders.architecture_of(folder))
    model = folders.load(folder, args.model)
    if args.stem and args.stem != model.options.get("stem"):
        raise InputError(
            f"--stem {args.stem} is not the stem that {args.weights} was trained with "
            f"({model.options.get('stem', 'this model has no choice')}); leave it out."
        )
    prep = preprocessing(args, model.preprocessing)
    new = dataclasses.replace(model, preprocessing=prep)
    if not _takes(new, model):
        raise InputError(
            f"{args.weights} cannot take {new.input_shape} inputs, its arrays are for "
            f"{model.input_shape}; leave --image-size and --mean out."
        )
    return new


def _takes(new: Model, model: Model) -> bool:
    """Whether a model with other preprocessing has the arrays of a saved one."""
    whole = modules.whole(model.network)
    if not isinstance(whole, nn.Module):
        return new.input_shape == model.input_shape
    shapes = [models.shapes(whole, m.input_shape) for m in (model, new)]
    return jax.tree.map(jnp.shape, shapes[0]) == jax.tree.map(jnp.shape, shapes[1])


def _from_file(args: Namespace, source: Source) -> Model:
    arrays, metadata = weights.read(args.weights, ema=args.ema_weights)
    if "taken" in metadata:
        say(f"--weights {args.weights}: taken from it: {metadata['taken']}")
    base = source.preprocessing._replace(**models.PREPROCESSING.get(args.model, {}))
    known = {k: metadata[k] for k in Preprocessing._fields if k in metadata}
    _check_name(args, metadata.get("model", args.model))
    _check_hub(args, metadata)
    stem = args.stem or metadata.get("options", {}).get("stem")
    prep = preprocessing(args, base._replace(**known))
    here = Namespace(**{**vars(args), "stem": stem})
    model = architecture(here, source.num_classes, prep)
    knows = weights.classes(arrays, model.network, model.input_shape)
    if not args.new_head and knows > source.num_classes:
        model = with_classes(model, knows)
    return _filled(args, model, arrays, metadata.get("widths", {}))


def with_classes(model: Model, num_classes: int) -> Model:
    """The architecture for so many classes; Linen's without arrays."""
    made = models.create(model.name, num_classes, **model.options)
    return folders.of(model.name, made, model.preprocessing, model.options)


def _filled(
    args: Namespace, model: Model, arrays: dict[str, np.ndarray], widths: dict[str, int]
) -> Model:
    """An architecture with the arrays of --weights, which may be narrower.

    Raises:
      InputError: the arrays are not the model's.
    """
    expected = None
    if widths:
        try:
            plan = descriptions.plan(model.dense, widths)
        except InputError as error:
            raise InputError(f"--weights {args.weights}: {error}.") from error
        expected = model.dense.take(plan, model.dense.variables)
    if not isinstance(model.network, nn.Module):
        like = model.variables if expected is None else expected
        variables = weights.to_tree(arrays, like, args.weights)
        return model.resize(variables)
    variables = weights.to_variables(
        arrays,
        model.network,
        model.input_shape,
        expected=expected,
        new_head=args.new_head,
        source=args.weights,
    )
    return (
        model.resize(variables) if widths else model.replace(model.network, variables)
    )


def _check_name(args: Namespace, name: str) -> None:
    """Raises InputError where weights are of another architecture than --model."""
    if name == args.model:
        return
    shown = printable(name)
    unless = "" if name in models.MODELS else ", if you trust its code, which then runs"
    raise InputError(
        f"--weights {args.weights} holds a {shown}, not a {args.model}; give --model "
        f"{shown}{unless}, or other weights."
    )


def _check_hub(args: Namespace, metadata: dict[str, Any]) -> None:
    """Says what a config of the Hub's has that is not ours.

    Raises:
      InputError: another architecture.
    """
    theirs, same = metadata.get("architecture"), models.TIMM.get(args.model, ())
    if args.model in models.MODELS and theirs not in (None, args.model, *same):
        fitting = [ours for ours, names in models.TIMM.items() if theirs in names]
        raise InputError(
            f"--weights {args.weights} holds a {printable(theirs)} by its config.json, "
            f"not a {args.model}; give "
            + (f"--model {fitting[0]} or " if fitting else "")
            + "other weights."
        )
    filter = metadata.get("interpolation", "bilinear")
    if filter != "bilinear":
        say(
            f"--weights {args.weights} was trained on images resized by "
            f"{printable(filter)} interpolation; here all are resized by bilinear, so "
            "top-1 may be some tenths of a point lower"
        )
