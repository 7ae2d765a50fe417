"""What a person should know of a result before believing in it: a sentence where there
is something to say, else None.
"""

import math
from collections.abc import Mapping
from typing import Any


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


def of_tuning(before: float, after: float, images: int) -> str | None:
    """Of fine-tuning that lost more than a standard error of top-1."""
    if before - after <= _error(before, images):
        return None
    return (
        f"fine-tuning lowered top-1 from {100 * before:.2f} to {100 * after:.2f} %: "
        "give it more images or a lower --learning-rate, or leave it out "
        "(--finetune-epochs 0)"
    )


def of_latency(report: Mapping[str, Any]) -> str | None:
    """Of a pruned network that is slower."""
    if report["pruned"]["latency_ms"] <= report["dense"]["latency_ms"]:
        return None
    return (
        "the pruned network is slower than the dense one on this device: keep more "
        "regular widths (--round-to), or prune more"
    )


def _error(share: float, images: int) -> float:
    """The standard error of a share."""
    return math.sqrt(share * (1 - share) / images)
