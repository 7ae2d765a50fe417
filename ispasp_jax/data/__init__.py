"""Data: sources of labelled images and texts, exact preprocessing, batches. Needs no
JAX.
"""

from ispasp_jax.data import tokens
from ispasp_jax.data.batches import Batch, batches, calibration_indices
from ispasp_jax.data.preprocessing import (
    RECIPES,
    Inputs,
    Preprocessing,
    augment,
    checked,
    evaluate,
    from_json,
    to_json,
)
from ispasp_jax.data.sources import describe, located, open_source
from ispasp_jax.data.splits import Source, Split
from ispasp_jax.data.tokens import Text

__all__ = [
    "RECIPES",
    "Batch",
    "Inputs",
    "Preprocessing",
    "Source",
    "Split",
    "Text",
    "augment",
    "batches",
    "calibration_indices",
    "checked",
    "describe",
    "evaluate",
    "from_json",
    "located",
    "open_source",
    "to_json",
    "tokens",
]
