"""What both commands begin with: devices, data, and the architecture for it."""

import functools
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ispasp_jax import data, devices, models
from ispasp_jax.cli import process
from ispasp_jax.cli.config import Config, Data, Network, Run
from ispasp_jax.data import Inputs, Preprocessing, Source, Text, tokens
from ispasp_jax.errors import InputError
from ispasp_jax.graph import adapters
from ispasp_jax.report import say
from ispasp_jax.weights import folders
from ispasp_jax.weights.folders import Model


def start_devices(run: Run) -> None:
    """Joins other hosts where --distributed says so, checks --devices, keeps freed
    memory, and compiled programs where --compilation-cache says so.

    Raises:
      InputError: of devices.py.
      OSError: the cache cannot be a folder.
    """
    devices.keep_freed_memory()
    if run.compilation_cache:
        run.compilation_cache.mkdir(parents=True, exist_ok=True)
        folder = str(run.compilation_cache.resolve())
        jax.config.update("jax_compilation_cache_dir", folder)
        # Many small programs are most of the time that a run compiles.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if run.distributed:
        devices.initialise()
        process.answer_termination()  # jax has taken the signal for itself
    devices.mesh(run.devices)


def open_source(options: Data) -> Source:
    """The data, with as many classes as --num-classes says.

    Raises:
      InputError: there is none, or it has more classes.
    """
    source = data.open_source(options.data)
    for text in source.notes:
        say(f"{options.data}: {text}")
    result = source.num_classes
    if options.num_classes and options.num_classes < result:
        raise InputError(
            f"--num-classes {options.num_classes} is less than {options.data} has, "
            f"whose last class is {result - 1}; give at least {result}."
        )
    return source._replace(num_classes=options.num_classes or result)


def preprocessing(options: Data, base: Inputs) -> Inputs:
    """The weights' (or the data's) preprocessing, with what the flags say instead."""
    if isinstance(base, Text):
        pixels = (options.image_size, options.resize, options.mean, options.std)
        if any(flag is not None for flag in pixels):
            raise InputError(
                f"--image-size, --resize, --mean and --std are for images, and "
                f"{options.data} holds texts; leave them out."
            )
        return base._replace(length=options.max_tokens or base.length)
    if options.max_tokens is not None:
        raise InputError(
            f"--max-tokens is for texts, and {options.data} holds images; leave it out."
        )
    resize = {None: base.resize, "none": None}.get(options.resize, options.resize)
    new = Preprocessing(
        options.image_size or base.image_size,
        resize,
        options.mean or base.mean,
        options.std or base.std,
    )
    if len(new.mean) != len(new.std) or len(new.mean) not in (1, 3):
        raise InputError(
            f"--mean has {len(new.mean)} numbers and --std {len(new.std)}; expected "
            "one a channel, 1 or 3, in both."
        )
    if options.image_size and options.resize is None and base.resize is not None:
        scale = base.resize / base.image_size
        new = new._replace(resize=round(scale * new.image_size))
    return data.checked(new)


def architecture(
    network: Network,
    num_classes: int,
    prep: Inputs,
    known: Mapping[str, Any] = MappingProxyType({}),
) -> Model:
    """The model that the flags name, dense; Linen's without arrays.

    Args:
      network: of the flags.
      num_classes: length of the logits.
      prep: how images, or texts, become inputs.
      known: options that weights tell of.

    Raises:
      InputError: it is not for such data.
    """
    reads_text = "vocabulary" in models.options(network.model)
    if network.model in models.MODELS and reads_text != isinstance(prep, Text):
        kinds = ("texts", "images") if reads_text else ("images", "texts")
        raise InputError(
            f"--model {network.model} is for {kinds[0]}, and the data are {kinds[1]}; "
            "give another model, or other --data."
        )
    options = {} if network.stem is None else {"stem": network.stem}
    if isinstance(prep, Text):
        options |= {**tokens.special(prep), **known} if reads_text else {}
    else:
        options |= known
        if network.stem is None and "stem" in models.options(network.model):
            options["stem"] = "small" if prep.image_size < 64 else "imagenet"
    made = models.create(network.model, num_classes, **options)
    return folders.of(network.model, made, prep, options)


def initialised(model: Model, seed: int) -> Model:
    """The model with fresh variables; other models than Linen's have drawn theirs."""
    if not isinstance(model.network, nn.Module):
        return model
    first = models.inputs(model.input_shape)
    image = jnp.zeros(first.shape, first.dtype)
    init = jax.jit(functools.partial(adapters.initialise, model.network))
    variables = init(jax.random.key(seed), image)
    return model.replace(model.network, variables)


def batch_size(options: Data, source: Source) -> int:
    """--batch-size, or its default for the data."""
    return options.batch_size or (64 if len(source.train) < 10_000 else 256)


def check_batch(options: Data, source: Source) -> None:
    """Raises InputError where there are fewer images to train on than one batch has."""
    size = batch_size(options, source)
    if len(source.train) < size:
        raise InputError(
            f"{options.data} has {len(source.train)} training images, fewer than a "
            f"batch of {size}; give a smaller --batch-size."
        )


def activations(run: Run, images: np.ndarray) -> np.ndarray:
    """The images in the dtype of --precision, which all activations then have; tokens
    stay whole numbers."""
    half = run.precision == "bf16" and images.dtype == np.float32
    return images.astype(jnp.bfloat16) if half else images


def place(config: Config, method: str) -> Path:
    """Where a result goes without --out: runs/MODEL-DATA-METHOD, with what else sets
    two dense networks apart.
    """
    network, options = config.network, config.data
    kind, _, where = options.data.partition(":")
    extra = [f"{options.image_size}px"] if options.image_size else []
    extra += [f"{options.num_classes}classes"] if options.num_classes else []
    extra += [network.stem] if network.stem else []
    extra += [f"seed{config.run.seed}"] if config.run.seed else []
    other = [data.located(options.data), options.mean, options.std, options.resize]
    other += [options.max_tokens] if options.max_tokens else []
    if other != [options.data, None, None, None]:
        extra.append(f"{zlib.crc32(repr(other).encode()):08x}")
    name = "-".join(filter(None, (kind, Path(where).stem)))
    parts = [network.model, name, *extra, method]
    return Path("runs") / re.sub(r"[^\w.+-]+", "_", "-".join(parts))
