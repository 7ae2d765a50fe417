"""Least squares after a cut, without labels or training:

    minimise ‖P W + b − T‖² + λ ‖W − W₀‖²

    P   patches of the kept hidden channels, in the network as pruned so far
    T   for a block's last consumer: dense u + dense skip − pruned skip, before the
        activation, so that errors of earlier blocks are corrected instead of carried;
        for one inside a block, the dense network's u
    W₀  the kernel as cut, batch norm folded in; the ridge pulls towards it
    λ   chosen by two-fold hold-out over the calibration images

The fit is stored so that training can go on (fits.py): the kernel unscaled, batch
norm's moments those of the refitted convolution, its scale and shift such that
evaluation gives P W + b.

Never judge a repair by the images that it was fitted to: they flatter it (a loss of 1.0
there was 4 on others). Measure on images that the walk has not seen.
"""

import numpy as np
import scipy.linalg
from jaxtyping import Float, Int

from ispasp_jax.walk import fits
from ispasp_jax.walk.fits import Reach
from ispasp_jax.walk.moments import Folds, Moments, rows
from ispasp_jax.walk.streams import Weights

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


def about(reach: Reach, folds: Folds) -> Folds:
    """The moments that count: about the present shift where none can be fitted."""
    if reach.knob:
        return folds
    first, second = (fold.about(reach.shift) for fold in folds)
    return first, second


def refit(
    reach: Reach, weights: Weights, folds: Folds, kept: Int[np.ndarray, " k"]
) -> Weights:
    """The weights with a consumer refitted; what it makes of places that are not kept
    is zero.

    Args:
      reach: the consumer, before the fit.
      weights: the network's.
      folds: moments of the kept places' patches and of the target.
      kept: the places, of the consumer's D.

    Raises:
      Unreached: the consumer's arrays cannot hold the fit.
    """
    start = reach.matrix
    index = rows(kept, reach.site.width, len(start))
    fitted = fit(about(reach, folds), start[index])
    whole = folds[0] + folds[1]
    full = np.zeros_like(start)
    full[index] = fitted
    var = np.maximum(np.einsum("po,po->o", fitted, whole.xx @ fitted), 0) / whole.count
    mean = whole.x @ fitted
    return fits.store(reach.site, weights, full, whole.y, mean, var)


def fit(folds: Folds, start: Float[np.ndarray, "p o"]) -> Float[np.ndarray, "p o"]:
    """The ridge solution around `start`, its ridge chosen by hold-out between folds."""
    whole = folds[0] + folds[1]
    held_out = len(start) <= LARGEST_HELD_OUT and min(f.count for f in folds) > 1
    ridge = _held_out_ridge(folds, start) if held_out else FIXED_RIDGE
    return start + _solve(whole, ridge, whole.xy - whole.xx @ start)


def _held_out_ridge(folds: Folds, start: Float[np.ndarray, "p o"]) -> float:
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
