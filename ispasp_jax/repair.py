"""Repair after a cut, without labels or training.

`least_squares` refits every consumer to what the dense network gives at the same place:

    minimise ‖P W + b − T‖² + λ ‖W − W₀‖²

    P   patches of the kept hidden channels, in the network as pruned so far
    T   for a block's last consumer: dense u + dense skip − pruned skip, before the
        activation, so that errors of earlier blocks are corrected instead of carried;
        for one inside a block, the dense network's u
    W₀  the kernel as cut, batch norm folded in; the ridge pulls towards it
    λ   chosen by two-fold hold-out over the calibration images

and stores the fit so that training can go on: the kernel unscaled, batch norm's moments
those of the refitted convolution, its scale and shift such that evaluation gives P W +
b. What scales and shifts is found by evaluating the consumer (consumers.py); one that
is not a kernel on patches, scaled and shifted, is not reached.

Never judge a repair by the images that it was fitted to: they flatter it (a loss of 1.0
there was 4 on others). Measure on images that the walk has not seen.

`recalibrate` measures batch norm's moments again on the network as pruned so far: the
alternative, and what serves where least squares does not reach.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Float, Int

from ispasp_jax import consumers, devices
from ispasp_jax.consumers import Consumer, Place, Probe, Unreached, branch, put
from ispasp_jax.models.network import Variables
from ispasp_jax.moments import Folds, Moments, rows
from ispasp_jax.problem import LeastSquares
from ispasp_jax.streams import Activations, Stream

#: Ridges that compete, as parts of the mean diagonal of the patches' covariance.
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
#: Above this size one ridge is used: the hold-out's solutions would cost minutes.
LARGEST_HELD_OUT, FIXED_RIDGE = 1500, 1e-3
#: Hold-out errors that differ by less, of the target's variance, are equal: the larger
#: ridge wins, whatever rounding says.
TIE = 1e-6
#: What rounding can do to activations and to their sums in single precision: no ridge
#: is smaller.
ROUNDING = 8 * float(np.finfo(np.float32).eps)


COLLECTIONS = ("params", "batch_stats")


class Reach(NamedTuple):
    """How least squares reaches a consumer.

    Attributes:
      probe: tries the consumer.
      consumer: as it is.
      knob: the array that moves its output alone, as (collection, path, name); None
        where it has none.
      norm: the path of a norm with running moments and a scale; None without.
    """

    probe: Probe
    consumer: Consumer
    knob: Place | None
    norm: str | None

    def of(self, folds: Folds) -> Folds:
        """The moments that count: about the present shift where none can be fitted."""
        if self.knob:
            return folds
        first, second = (fold.about(self.consumer.shift) for fold in folds)
        return first, second


def reach(i: int, stream: Stream, hidden: Activations) -> Reach:
    """How least squares reaches the i-th consumer; found by evaluating it.

    Raises:
      Unreached: it does not; the message says why.
    """
    probe = consumers.probe(i, stream, hidden)
    consumer = consumers.evaluate(probe, stream.own)
    norm, knobs = None, []
    for path in reversed(stream.module.groups[i].consumer):
        arrays, moments = (branch(stream.own.get(c, {}), path) for c in COLLECTIONS)
        has_moments = {"mean", "var"} <= set(moments)
        norm = path if has_moments and "scale" in arrays else norm
        knobs += [("params", path, "bias")] if "bias" in arrays else []
        knobs += [("batch_stats", path, "mean")] if has_moments else []
    knobs.sort(key=lambda knob: knob[2] == "mean")  # what is trained comes first
    turns = (k for k in knobs if consumers.gain(probe, stream.own, k).any())
    return Reach(probe, consumer, next(turns, None), norm)


def least_squares(
    reach: Reach, own: Variables, folds: Folds, kept: Int[np.ndarray, " k"]
) -> Variables:
    """The block's variables with a consumer refitted; what it makes of channels that
    are not kept is zero.

    Args:
      reach: the consumer, before the fit.
      own: the block's variables.
      folds: moments of the kept channels' patches and of the target.
      kept: the channels, of the consumer's hidden ones.

    Raises:
      Unreached: the consumer's arrays cannot hold the fit.
    """
    start = reach.consumer.matrix
    index = rows(kept, reach.probe.hidden.shape[-1], len(start))
    fitted = fit(reach.of(folds), start[index])
    whole = folds[0] + folds[1]
    full = np.zeros_like(start)
    full[index] = fitted
    var = np.maximum(np.einsum("po,po->o", fitted, whole.xx @ fitted), 0) / whole.count
    return _store(reach, own, full, whole.y, whole.x @ fitted, var)


def regression(reach: Reach, folds: Folds) -> LeastSquares:
    """What a criterion is told of a consumer's least squares, an example's share."""
    first, second = reach.of(folds)
    whole = first + second
    arrays = whole.xx / whole.count, whole.xy / whole.count, reach.consumer.matrix
    return LeastSquares(*(jnp.asarray(a, jnp.float32) for a in arrays))


def fit(folds: Folds, start: Float[np.ndarray, "p o"]) -> Float[np.ndarray, "p o"]:
    """The ridge solution around `start`, its ridge chosen by hold-out between folds."""
    whole = folds[0] + folds[1]
    held_out = len(start) <= LARGEST_HELD_OUT and min(f.count for f in folds) > 1
    ridge = _held_out_ridge(folds, start) if held_out else FIXED_RIDGE
    return start + _solve(whole, ridge, whole.xy - whole.xx @ start)


def _held_out_ridge(folds, start) -> float:
    errors = np.zeros(len(RIDGES))
    for a, b in (folds, folds[::-1]):
        error = a.xy - a.xx @ start
        # ‖y − xW‖² over the other fold's centred rows, up to a constant.
        for index, ridge in enumerate(RIDGES):
            W = start + _solve(a, ridge, error)
            errors[index] += (W * (b.xx @ W - 2 * b.xy)).sum()
    tie = TIE * float(folds[0].yy + folds[1].yy)
    return max(np.asarray(RIDGES)[errors <= errors.min() + tie])


def _solve(moments: Moments, ridge: float, right: Float[np.ndarray, "p o"]):
    """(xx + λ · 1)⁻¹ right with λ the ridge, in parts of the mean diagonal, and at
    least what rounding can have done; more where that does not suffice.
    """
    λ = max(
        ridge * np.trace(moments.xx) / len(right),
        ROUNDING * np.linalg.norm(moments.xx),
        # Channels that are constant: what their values' last bits make of them.
        moments.count * np.square(ROUNDING * moments.x).mean(),
    )
    if not λ > 0:  # every channel is zero: nothing says anything about them
        return np.zeros_like(right)
    while True:
        A = moments.xx.copy()
        A[np.diag_indices_from(A)] += λ
        try:
            factors = scipy.linalg.cho_factor(A, overwrite_a=True, check_finite=False)
            return scipy.linalg.cho_solve(factors, right, check_finite=False)
        except np.linalg.LinAlgError:
            λ *= 10


def _store(reach, own, matrix, output, mean, var) -> Variables:
    """The block's variables with a consumer that multiplies with the matrix and gives
    `output` on average, where the patches times the matrix give (mean, var).

    Where a norm has running moments and a scale, they become those of the new kernel,
    unscaled, so that training can go on.
    """
    probe, norm = reach.probe, reach.norm
    if norm:
        neutral = [
            ("batch_stats", norm, "mean", mean),
            ("batch_stats", norm, "var", var),
        ]
        neutral += [("params", norm, "scale", 1.0)]
        if "bias" in branch(own["params"], probe.path):
            neutral += [("params", probe.path, "bias", 0.0)]
        for collection, path, name, value in neutral:
            own = put(own, (collection, path, name), value)
    scale = consumers.evaluate(probe, own).scale
    alive = scale != 0
    scale = np.where(alive, scale, 1)
    if norm:
        own = put(own, ("params", norm, "scale"), 1 / scale)
    kernel = ("params", probe.path, "kernel")
    own = put(own, kernel, matrix if norm else matrix / scale)
    shift = reach.consumer.shift
    if reach.knob:
        shift = output - mean
        at_zero = put(own, reach.knob, 0.0)
        gain = consumers.gain(probe, own, reach.knob)
        needed = (shift - consumers.shift(probe, at_zero)) / np.where(gain, gain, 1)
        own = put(own, reach.knob, needed)
    found = consumers.evaluate(probe, own)
    expected = matrix * alive
    apart = max(
        np.abs(found.matrix - expected).max(), np.abs(found.shift - shift).max()
    )
    if not apart <= 1e-3 * max(np.abs(expected).max(), np.abs(shift).max()):
        raise Unreached("its arrays cannot hold the fit (its scale or shift is shared)")
    return own


def recalibrate(stream: Stream) -> Variables:
    """The part's variables with batch norm's moments those of these activations."""
    module, own = stream.module, stream.own
    if not own.get("batch_stats"):
        return own
    # With a momentum of m a step leaves m · old + (1 − m) · batch; from two different
    # olds follow both, so that no module has to say what its momentum is.
    zero, one = (
        {**own, "batch_stats": jax.tree.map(lambda a, v=v: jnp.full_like(a, v), s)}
        for s, v in ((own["batch_stats"], 0.0), (own["batch_stats"], 1.0))
    )
    found, counts = [], []
    for batch, weight in zip(stream.x, stream.weight, strict=True):
        x = devices.rows(batch, weight)
        found.append((_train_moments(module, zero, x), _train_moments(module, one, x)))
        counts.append(len(x))
    weights = np.asarray(counts) / sum(counts)

    per_batch = [jax.tree.map(lambda a, b: a / (1 - (b - a)), *pair) for pair in found]
    return {**own, "batch_stats": _total(per_batch, weights)}


@functools.partial(jax.jit, static_argnums=0)
def _train_moments(module, own, x):
    _, moved = module.apply(own, x, train=True, mutable=["batch_stats"])
    return moved["batch_stats"]


def _total(per_batch: list[dict], weights) -> dict:
    """Moments of all batches together: variances within, and between the means."""
    first = per_batch[0]
    if "mean" in first and "var" in first:
        means = jnp.stack([stats["mean"] for stats in per_batch])
        variances = jnp.stack([stats["var"] for stats in per_batch])
        w = jnp.asarray(weights, means.dtype)[:, None]
        mean = (w * means).sum(0)
        between = (w * jnp.square(means - mean)).sum(0)
        return {**first, "mean": mean, "var": (w * variances).sum(0) + between}
    return {key: _total([stats[key] for stats in per_batch], weights) for key in first}
