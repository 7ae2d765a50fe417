"""What a walk is given, checked before anything is computed with it: weights, sizes,
calibration images and their labels.
"""

import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np

from ispasp_jax import streams
from ispasp_jax.errors import InputError
from ispasp_jax.groups import leaves
from ispasp_jax.models.network import Network, Variables, subtree

_LAYOUT = "(examples, height, width, channels)"


def check_variables(network: Network, variables: Variables) -> None:
    """Raises FloatingPointError where a weight or statistic is NaN or infinite, and
    InputError where the variables are no Linen variables.
    """
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise InputError(
            f"variables are {_kind(variables)}; expected what network.init returns, a "
            "dict with 'params' (and 'batch_stats')."
        )
    for path, leaf in leaves(variables):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            continue
        if not np.isfinite(np.asarray(leaf, np.float32)).all():
            part, name = _part(network, path), path.partition("/")[2]
            raise FloatingPointError(
                f"part {part!r}: its array {name!r} holds NaN or infinity, so nothing "
                "can be selected or repaired; check the weights."
            )


def checked_sizes(network: Network, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes as Python ints.

    Raises:
      InputError: of a group that the network does not have, or not in [1, its width].
    """
    widths, found = network.group_widths(), {}
    for name, size in sizes.items():
        if name not in widths:
            raise InputError(
                f"sizes name group {name!r}, which this network does not have; it has "
                f"{', '.join(widths)}."
            )
        try:
            found[name] = operator.index(size)
        except TypeError:
            found[name] = 0
        if not 1 <= found[name] <= widths[name] or isinstance(size, bool):
            raise InputError(
                f"sizes ask for {size!r} channels of group {name!r}; expected a whole "
                f"number from 1 to its width, {widths[name]} (budget.sizes turns "
                "ratios into such numbers)."
            )
    return found


def checked_images(
    images: Any, network: Network, variables: Variables
) -> Iterator[jax.Array | np.ndarray]:
    """The batches of images, each checked when it is read.

    Raises:
      FloatingPointError: one holds NaN or infinity.
      InputError: they are no batches of preprocessed images that the network takes.
    """
    first = None
    for place, batch in enumerate(_batches(images, "images")):
        shape = tuple(batch.shape)
        if not jnp.issubdtype(batch.dtype, jnp.floating):
            raise InputError(
                f"batch {place} of the images holds {batch.dtype}; expected them as "
                "the network was trained on them, in floating point: for uint8 images "
                "(images / 255 - mean) / std."
            )
        if first is None:
            _check_fit(network, variables, batch)
            first = shape
        if shape[1:] != first[1:]:
            raise InputError(
                f"batch {place} has images of shape {shape[1:]}, batch 0 of "
                f"{first[1:]}; expected one shape in all batches."
            )
        if not bool(jnp.isfinite(batch).all()):
            raise FloatingPointError(
                f"batch {place} of the calibration images holds NaN or infinity; check "
                "the images and their mean and std."
            )
        yield batch


def checked_labels(labels: Any, classes: int) -> Iterator[jax.Array | np.ndarray]:
    """The batches of labels, each checked when it is read.

    Raises:
      InputError: they are no batches of classes.
    """
    for place, batch in enumerate(_batches(labels, "labels")):
        whole = jnp.issubdtype(batch.dtype, jnp.integer) and batch.ndim == 1
        if not whole or batch.min() < 0 or batch.max() >= classes:
            raise InputError(
                f"batch {place} of the labels has shape {tuple(batch.shape)} and dtype "
                f"{batch.dtype}, values from {batch.min()} to {batch.max()}; expected "
                f"one whole number from 0 to {classes - 1} for each image."
            )
        yield batch


def output(network: Network, variables: Variables, image: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the logits; parts of equal shape are traced once."""
    x = jax.ShapeDtypeStruct(image.shape, image.dtype)
    for part in network.chain():
        x = streams.behind(part.module, subtree(variables, part), x)
    return x


def _batches(given: Any, what: str) -> Iterator[Any]:
    if _is_array(given):
        raise InputError(
            f"{what} are one array of shape {tuple(given.shape)}; expected batches of "
            f"them: write [{what}]."
        )
    if not isinstance(given, Iterable) or isinstance(given, str | bytes | Mapping):
        raise InputError(
            f"{what} are {_kind(given)}; expected batches of them, a list of arrays."
        )
    for place, batch in enumerate(given):
        if not _is_array(batch):
            raise InputError(
                f"batch {place} of the {what} is {_kind(batch)}; expected an array."
            )
        if not batch.ndim or not batch.size:
            raise InputError(
                f"batch {place} of the {what} is empty (shape {tuple(batch.shape)}); "
                "leave it out."
            )
        yield batch


def _check_fit(network: Network, variables: Variables, batch: Any) -> None:
    """Raises InputError where the network does not take such a batch."""
    shape = tuple(batch.shape)
    hint = ""
    if len(shape) == 4 and shape[1] in (1, 3, 4) and shape[-1] not in (1, 3, 4):
        hint = "; channels come last: images.transpose(0, 2, 3, 1)"
    elif len(shape) < 4:
        hint = "; one image alone is a batch of one: image[None]"
    try:
        out = output(network, variables, batch)
    except (flax.errors.FlaxError, TypeError, ValueError, AssertionError) as error:
        why = str(error).partition("\n")[0].rstrip(".")[:200]
        raise InputError(
            f"the network does not take images of shape {shape} ({why}); expected "
            f"{_LAYOUT} as in its training{hint}."
        ) from error
    if not out.shape or out.shape[0] != shape[0]:
        raise InputError(
            f"the network makes {out.shape} of images of shape {shape}; expected "
            f"{_LAYOUT} and a row of logits for every image{hint}."
        )


def _is_array(given: Any) -> bool:
    return isinstance(given, jax.Array | np.ndarray)


def _kind(given: Any) -> str:
    return "None" if given is None else f"of type {type(given).__name__}"


def _part(network: Network, path: str) -> str:
    """The name of the part whose array this is."""
    key = path.split("/")[1] if "/" in path else path
    for part in network.parts():
        if key in part.keys or key == part.name:
            return part.name
    return key
