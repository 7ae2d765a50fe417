"""What a walk is given, checked before anything is computed with it: weights, sizes,
calibration images and their labels.
"""

import itertools
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np

from ispasp_jax.errors import InputError
from ispasp_jax.graph import Branch, Traced, adapters, key_path, trace
from ispasp_jax.walk.batches import examples

#: Linen's errors where variables are not there, and where it learns.
_MISSING = (
    *("ScopeCollectionNotFound", "ScopeVariableNotFoundError"),
    *("ScopeParamNotFoundError", "ApplyScopeInvalidVariablesStructureError"),
)
_LEARNING = ("ModifyScopeVariableError", "InvalidRngError")

_LAYOUT = "(examples, height, width, channels)"


def check_variables(variables: Any) -> None:
    """Raises FloatingPointError where a weight or statistic is NaN or infinite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            continue
        if not np.isfinite(np.asarray(leaf, np.float32)).all():
            raise FloatingPointError(
                f"the variable {key_path(path)!r} holds NaN or infinity, so nothing "
                "can be selected or repaired; check the weights."
            )


def checked_sizes(
    widths: Mapping[str, int],
    sizes: Mapping[str, SupportsIndex],
    branches: Iterable[Branch] = (),
) -> dict[str, int]:
    """The sizes as Python ints.

    Args:
      widths: of the model's groups.
      sizes: how many channels of them stay.
      branches: of the model; their groups may keep none.

    Raises:
      InputError: of a group that the model does not have, or not in [1, its width].
    """
    held = {name for branch in branches for name in branch.groups}
    result = {}
    for name, size in sizes.items():
        if name not in widths:
            raise InputError(
                f"sizes name group {name!r}, which this model does not have; it has "
                f"{', '.join(widths) or 'none'}."
            )
        try:
            result[name] = operator.index(size)
        except TypeError:
            result[name] = -1
        least = 0 if name in held else 1
        if not least <= result[name] <= widths[name] or isinstance(size, bool):
            raise InputError(
                f"sizes ask for {size!r} channels of group {name!r}; expected a whole "
                f"number from {least} to its width, {widths[name]} (budget.sizes turns "
                "ratios into such numbers)."
            )
    return result


def checked_images(images: Any) -> Iterator[Any]:
    """The batches, each checked when it is read: an array, or a tuple of arrays.

    Raises:
      FloatingPointError: one holds NaN or infinity.
      InputError: they are no batches of inputs of one shape.
    """
    first = None
    for place, batch in enumerate(_batches(images, "images")):
        arrays = batch if isinstance(batch, tuple) else (batch,)
        shapes = [(tuple(a.shape[1:]), a.dtype) for a in arrays]
        first = first or shapes
        if shapes != first:
            raise InputError(
                f"batch {place} has inputs of shape and dtype {_shown(shapes)}, batch "
                f"0 of {_shown(first)}; expected the same in all batches."
            )
        for array in arrays:
            floats = jnp.issubdtype(array.dtype, jnp.floating)
            if floats and not bool(jnp.isfinite(array).all()):
                raise FloatingPointError(
                    f"batch {place} of the calibration images holds NaN or infinity; "
                    "check the images and their mean and std."
                )
        yield batch


def _shown(shapes) -> str:
    return ", ".join(f"{shape} {dtype}" for shape, dtype in shapes)


def opened(
    traced: Traced, images: Any, mesh: jax.sharding.Mesh | None
) -> tuple[Traced, Iterator[Any]]:
    """The model traced on what the images' batches will be, and the batches.

    Raises:
      InputError: there are none, or the model does not take the first.
    """
    batches = checked_images(images)
    first = next(batches, None)
    if first is None:
        raise InputError("no calibration images: expected at least one batch.")
    traced = traced_at(traced, None, first, examples(first, mesh))
    return traced, itertools.chain([first], batches)


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
        arrays: Any = batch if isinstance(batch, tuple) and batch else (batch,)
        for array in arrays:
            if not _is_array(array):
                raise InputError(
                    f"batch {place} of the {what} is {_kind(array)}; expected an array."
                )
            if not array.ndim or not array.size:
                raise InputError(
                    f"batch {place} of the {what} is empty (shape "
                    f"{tuple(array.shape)}); leave it out."
                )
        yield batch


def traced_at(
    model: Any, variables: Any, batch: Any, examples: int | None = None
) -> Traced:
    """The model traced on inputs of a batch's shapes.

    Args:
      model: as `trace` takes it, or what it gave.
      variables: its variables; None for a module that carries its own.
      batch: an array, or a tuple of them.
      examples: how many there are to be in a batch; None for as many as in this one.

    Raises:
      InputError: the model does not take such a batch.
    """
    arrays = batch if isinstance(batch, tuple) else (batch,)
    shapes = [
        jax.ShapeDtypeStruct((examples or len(a), *a.shape[1:]), a.dtype)
        for a in arrays
    ]
    if isinstance(model, Traced):
        if [(s.shape, s.dtype) for s in shapes] == [
            *map(_like, model.program.inputs[len(model.dims) :])
        ]:
            return model
        model, variables = model.function, model.variables
    function, variables = adapters.function(model, variables)
    _check_batch(arrays)
    try:
        return trace(function, variables, *shapes)
    except InputError:
        raise
    except Exception as error:  # of many kinds: the model's own code
        if said := _of_linen(error):
            raise InputError(said) from error
        why = _first(str(error))
        raise InputError(
            f"the model does not take inputs of shape "
            f"{', '.join(str(s.shape) for s in shapes)} ({why}); expected batches as "
            f"in its training, of images {_LAYOUT}{_hint(shapes[0].shape)}."
        ) from error


def _of_linen(error: Exception) -> str | None:
    """What Linen's errors mean that are not about the inputs."""
    kind, text = type(error).__name__, str(error)
    if kind in _MISSING:
        return (
            f"the variables are not all that the model reads ({_first(text)}); give "
            'what model.init returns, trained, all collections of it: {"params": ..., '
            '"batch_stats": ...} where it has batch norm.'
        )
    if kind in _LEARNING:
        return (
            f"the model is in training mode ({_first(text)}); give it in evaluation: a "
            "module made with train=False (use_running_average=True, deterministic="
            "True), or a function of (variables, x) that calls it so."
        )
    return None


def _first(text: str) -> str:
    """The first sentence of somebody else's message."""
    return text.strip().partition("\n")[0].split(" (https:")[0].rstrip(". ")[:200]


def _like(value) -> tuple[tuple[int, ...], Any]:
    return value.shape, value.aval.dtype


def _check_batch(arrays: tuple[Any, ...]) -> None:
    """Raises InputError for images that are not preprocessed."""
    for array in arrays:
        if array.dtype == np.uint8:
            raise InputError(
                "the images hold uint8; expected them as the model was trained on "
                "them, in floating point: (images / 255 - mean) / std."
            )


def _hint(shape: tuple[int, ...]) -> str:
    if len(shape) == 4 and shape[1] in (1, 3, 4) and shape[-1] not in (1, 3, 4):
        return "; channels come last: images.transpose(0, 2, 3, 1)"
    if len(shape) < 4:
        return "; one image alone is a batch of one: image[None]"
    return ""


def _is_array(given: Any) -> bool:
    return isinstance(given, jax.Array | np.ndarray)


def _kind(given: Any) -> str:
    return "None" if given is None else f"of type {type(given).__name__}"
