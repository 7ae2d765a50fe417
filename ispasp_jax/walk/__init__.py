"""The walk: calibration images go through a network's equations once; before every
consumer of a group its channels are selected, cut, and what reads them is refitted.

    flat       the equations in one list; what is alive between two of them
    pieces     some of them as a jitted function
    forms      a contraction's dimensions: examples, positions, channels
    sites      where channels are consumed, and the skip behind
    layouts    H, K and U in one layout
    consumers  what is behind the contraction, found by evaluating it
    roles      what its variables are; norms: of those that stand alone
    fits       where a refitted consumer goes
    streams    the images' live values, batch by batch
    steps      where the walk stops, and what it does there
    reads, shared, selecting, moments, gates: what a criterion is told, and asked
    repair     what is done about a cut; least_squares
    decisions, cuts, drift, results, resume: what has been decided, and did
    engine     the walk
    curves     what every group would lose at every size
    layers     which branches go whole, by SGLP
    redundancy the singular values of every group's channels
"""

from ispasp_jax.walk.curves import Curve, measure_curves
from ispasp_jax.walk.engine import walk
from ispasp_jax.walk.layers import similar_branches
from ispasp_jax.walk.memory import estimate
from ispasp_jax.walk.options import Options, Tune
from ispasp_jax.walk.probe import probe
from ispasp_jax.walk.redundancy import Redundancy, rank, redundancy
from ispasp_jax.walk.results import GroupResult, Walked
from ispasp_jax.walk.resume import Done, Store
from ispasp_jax.walk.steps import unselectable

__all__ = [
    "Curve",
    "Done",
    "GroupResult",
    "Options",
    "Redundancy",
    "Store",
    "Tune",
    "Walked",
    "estimate",
    "measure_curves",
    "probe",
    "rank",
    "redundancy",
    "similar_branches",
    "unselectable",
    "walk",
]
