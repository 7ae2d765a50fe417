"""What a person should know of a result before believing in it: a sentence where there
is something to say, else None.
"""

import math

from ispasp_jax.budget.latency import Unpaid
from ispasp_jax.data import Inputs, Text
from ispasp_jax.numerals import numeral
from ispasp_jax.walk import memory
from ispasp_jax.weights.folders import Model

#: What a walk may take without a word.
_GIGABYTES_TO_MENTION = 1


def of_dense(top1: float, classes: int, images: int) -> str | None:
    """Of a network that has learned nothing.

    Args:
      top1: its own.
      classes: of the data.
      images: that top-1 was measured on.
    """
    chance = 1 / classes
    if classes < 2 or top1 > chance + 2 * _error(chance, images):
        return None
    return (
        f"the dense network's top-1 of {100 * top1:.2f} % is no better than chance "
        f"({classes} classes), so what pruning keeps of it means nothing: check "
        "weights, data and preprocessing, or train it longer"
    )


def of_images(own: Inputs, wanted: Inputs) -> str | None:
    """Of images that are not what the weights were trained on.

    Args:
      own: what the data would be given by itself; without a resize its images are of
        that size.
      wanted: what the weights are given.
    """
    if isinstance(own, Text) or isinstance(wanted, Text):
        return None
    if own.resize is not None or own.shape == wanted.shape:
        return None
    done = []
    if wanted.resize is not None:
        done.append(f"resized to {wanted.resize} and cropped to {wanted.image_size}")
    elif wanted.image_size != own.image_size:
        less = wanted.image_size < own.image_size
        done.append("cropped at the centre" if less else "enlarged")
    if wanted.channels != own.channels:
        done.append(
            "made grey" if wanted.channels == 1 else "made three equal channels"
        )
    shapes = (" × ".join(map(str, each.shape)) for each in (own, wanted))
    return "the images are {} and the weights are for {}: they are {}".format(
        *shapes, " and ".join(done)
    )


def of_memory(
    model: Model, images: int, limit: int | None, *, half: bool, least_squares: bool
) -> str | None:
    """Of a walk that takes much memory.

    Args:
      model: to be pruned.
      images: calibration images on each device.
      limit: bytes of their activations there; None: no limit.
      half: whether activations are of 16 bits.
      least_squares: whether second moments are summed.
    """
    estimate = memory.estimate(
        model.traced,
        images,
        least_squares=least_squares,
        limit=limit,
    )
    gigabytes = estimate / 2**30 / (2 if half else 1)
    if gigabytes < _GIGABYTES_TO_MENTION:
        return None
    return (
        f"memory: the walk takes about {numeral(gigabytes)} GiB on a device, most of "
        f"it activations of {numeral(images)} calibration images; --calibration-memory "
        "GIB bounds them"
    )


def of_tuning(before: float, after: float, images: int) -> str | None:
    """Of fine-tuning that lost more than a standard error of top-1."""
    if before - after <= _error(before, images):
        return None
    return (
        f"fine-tuning lowered top-1 from {100 * before:.2f} to {100 * after:.2f} %: "
        "give it more images or a lower --learning-rate, or leave it out "
        "(--finetune-epochs 0)"
    )


def of_latency(dense: float, pruned: float) -> str | None:
    """Of a pruned network that is slower, in milliseconds."""
    if pruned <= dense:
        return None
    return (
        "the pruned network is slower than the dense one on this device: keep more "
        "regular widths (--round-to), or prune more"
    )


def of_group(group: Unpaid) -> str:
    """Of a group that is not faster for its cut."""
    before, after = group.milliseconds
    said = (
        f"{group.name}: {group.kept} of {group.width} channels do not pay on this "
        f"device, {numeral(after)} ms where all take {numeral(before)}"
    )
    return f"{said}; {group.better} do" if group.better else said


def _error(share: float, images: int) -> float:
    """The standard error of a share."""
    return math.sqrt(share * (1 - share) / images)
