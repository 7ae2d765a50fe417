"""The network of --weights, checked against the flags and the data."""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ispasp_jax import models, weights
from ispasp_jax.cli.config import Data, Network, Weights
from ispasp_jax.cli.opening import architecture, preprocessing
from ispasp_jax.data import Source
from ispasp_jax.errors import InputError
from ispasp_jax.graph import modules
from ispasp_jax.report import say
from ispasp_jax.weights import descriptions, folders
from ispasp_jax.weights.folders import Model
from ispasp_jax.weights.tensors import printable


def load(start: Weights, network: Network, options: Data, source: Source) -> Model:
    """The model of trained weights, checked against the flags and the data.

    Args:
      start: the weights.
      network: what they have to be of.
      options: inputs and classes that the flags ask for.
      source: the data.

    Raises:
      InputError: they cannot be read, or are of another network or other classes.
    """
    folder = folders.folder_of(start.weights)
    if folder is not None:
        model = _from_folder(start, network, options, folder)
    else:
        model = _from_file(start, network, options, source)
    if start.new_head and model.num_classes != source.num_classes:
        arrays = weights.to_torchvision(model.variables)
        other = with_classes(model, source.num_classes)
        model = _filled(start, other, arrays, model.dense_widths)
    knows = model.num_classes
    if knows < source.num_classes or options.num_classes not in (None, knows):
        wanted = (
            "--num-classes asks for" if options.num_classes else f"{options.data} has"
        )
        raise InputError(
            f"--weights {start.weights} knows {knows} classes, {wanted} "
            f"{source.num_classes}; give weights or data that fit, or --new-head to "
            "start a fresh classifier."
        )
    if knows > source.num_classes:
        say(
            f"--weights {start.weights} knows {knows} classes, and {options.data} the "
            f"first {source.num_classes} of them, if its labels are the weights' own"
        )
    return model


def _from_folder(
    start: Weights, network: Network, options: Data, folder: Path
) -> Model:
    """A saved model, with the preprocessing that the flags ask for."""
    if start.ema_weights:
        raise InputError(
            f"--ema-weights is for checkpoints that hold the weights and their moving "
            f"average; {start.weights} holds one network, so leave it out."
        )
    _check_name(start.weights, network.model, folders.architecture_of(folder))
    model = folders.load(folder, network.model)
    stem = network.stem
    if stem and stem != model.options.get("stem"):
        raise InputError(
            f"--stem {stem} is not the stem that {start.weights} was trained with "
            f"({model.options.get('stem', 'this model has no choice')}); leave it out."
        )
    prep = preprocessing(options, model.images)
    new = dataclasses.replace(model, preprocessing=prep)
    if not _takes(new, model):
        raise InputError(
            f"{start.weights} cannot take {new.input_shape} inputs, its arrays are for "
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


def _from_file(
    start: Weights, network: Network, options: Data, source: Source
) -> Model:
    arrays, metadata = weights.read(start.weights, ema=start.ema_weights)
    if "taken" in metadata:
        say(f"--weights {start.weights}: taken from it: {metadata['taken']}")
    base: Any = source.preprocessing
    base = base._replace(**models.PREPROCESSING.get(network.model, {}))
    known = {k: metadata[k] for k in base._fields if k in metadata}
    _check_name(start.weights, network.model, metadata.get("model", network.model))
    _check_hub(start.weights, network.model, metadata)
    stem = network.stem or metadata.get("options", {}).get("stem")
    prep = preprocessing(options, base._replace(**known))
    network = dataclasses.replace(network, stem=stem)
    model = architecture(network, source.num_classes, prep, _options(network, arrays))
    knows = weights.classes(arrays, model.network, model.input_shape)
    if not start.new_head and knows > source.num_classes:
        model = with_classes(model, knows)
    return _filled(start, model, arrays, metadata.get("widths", {}))


def _options(network: Network, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The options of the architecture that arrays tell of."""
    of = models.KNOWN.get(network.model)
    return of({name: array.shape for name, array in arrays.items()}) if of else {}


def with_classes(model: Model, num_classes: int) -> Model:
    """The architecture for so many classes; Linen's without arrays."""
    made = models.create(model.name, num_classes, **model.options)
    return folders.of(model.name, made, model.images, model.options)


def _filled(
    start: Weights, model: Model, arrays: dict[str, np.ndarray], widths: dict[str, int]
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
            raise InputError(f"--weights {start.weights}: {error}.") from error
        expected = model.dense.take(plan, model.dense.variables)
    if not isinstance(model.network, nn.Module):
        like = model.variables if expected is None else expected
        variables = weights.to_tree(arrays, like, start.weights)
        return model.resize(variables)
    variables = weights.to_variables(
        arrays,
        model.network,
        model.input_shape,
        expected=expected,
        new_head=start.new_head,
        source=start.weights,
    )
    return (
        model.resize(variables) if widths else model.replace(model.network, variables)
    )


def _check_name(source: str, model: str, name: str) -> None:
    """Raises InputError where weights are of another architecture than --model."""
    if name == model:
        return
    shown = printable(name)
    unless = "" if name in models.MODELS else ", if you trust its code, which then runs"
    raise InputError(
        f"--weights {source} holds a {shown}, not a {model}; give --model "
        f"{shown}{unless}, or other weights."
    )


def _check_hub(source: str, model: str, metadata: dict[str, Any]) -> None:
    """Says what a config of the Hub's has that is not ours.

    Raises:
      InputError: another architecture.
    """
    theirs, same = metadata.get("architecture"), models.TIMM.get(model, ())
    if model in models.MODELS and theirs not in (None, model, *same):
        fitting = [ours for ours, names in models.TIMM.items() if theirs in names]
        raise InputError(
            f"--weights {source} holds a {printable(theirs)} by its config.json, "
            f"not a {model}; give "
            + (f"--model {fitting[0]} or " if fitting else "")
            + "other weights."
        )
    filter = metadata.get("interpolation", "bilinear")
    if filter != "bilinear":
        say(
            f"--weights {source} was trained on images resized by "
            f"{printable(filter)} interpolation; here all are resized by bilinear, so "
            "top-1 may be some tenths of a point lower"
        )
