"""The walk: calibration images go through a network's equations once; before every
consumer of a group its channels are selected, cut, and what reads them is refitted.

    flat       the equations in one list; what is alive between two of them
    pieces     some of them as a jitted function
    sites      where channels are consumed: H, K, U, and the skip
    consumers  what is behind the contraction, found by evaluating it
    streams    the images' live values, batch by batch
    steps      where the walk stops, and what it does there
    reads, selecting, moments, repair, norms, gates, curves
    engine     the walk
"""

from ispasp_jax.walk.curves import Curve, measure_curves
from ispasp_jax.walk.engine import Tune, Walked, walk
from ispasp_jax.walk.memory import estimate
from ispasp_jax.walk.probe import probe
from ispasp_jax.walk.resume import Done, Store
from ispasp_jax.walk.selecting import GroupResult
from ispasp_jax.walk.steps import unselectable

__all__ = [
    "Curve",
    "Done",
    "GroupResult",
    "Store",
    "Tune",
    "Walked",
    "estimate",
    "measure_curves",
    "probe",
    "unselectable",
    "walk",
]
