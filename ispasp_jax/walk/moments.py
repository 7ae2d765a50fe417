"""Count, means and centred second moments of patches and of what should be made of
them, summed over batches, on the host or on the devices.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.linalg import blas

#: A matrix plus a · x yᵀ, in place; scipy's stubs do not name what Fortran gives.
_dger: Callable[..., Any] = getattr(blas, "dger")  # noqa: B009

#: Numbers of patches (and targets) that are summed in one go: on the host, and on
#: every device.
_AT_ONCE, _AT_ONCE_ON_DEVICES = 2**23, 2**25


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Count, means and centred second moments of patches and targets; they add up."""

    count: float
    x: Float[np.ndarray, " p"]
    y: Float[np.ndarray, " o"]
    xx: Float[np.ndarray, "p p"]
    xy: Float[np.ndarray, "p o"]
    yy: float

    def __add__(self, other: "Moments") -> "Moments":
        """Of both sets together."""
        own = dataclasses.replace(self, xx=self.xx.copy(), xy=self.xy.copy())
        return own.add(other)

    def add(self, other: "Moments") -> "Moments":
        """Of both sets together, without cancellation (Chan et al. 1983), in the memory
        of this one, which is of no use afterwards: the products are large.
        """
        count = self.count + other.count
        dx, dy = other.x - self.x, other.y - self.y
        share = other.count / max(count, 1)
        for products, more, d in ((self.xx, other.xx, dx), (self.xy, other.xy, dy)):
            products += more
            # products += weight · dx dᵀ; BLAS has columns where numpy has rows.
            _dger(self.count * share, d, dx, a=products.T, overwrite_a=True)
        return dataclasses.replace(
            self,
            count=count,
            x=self.x + share * dx,
            y=self.y + share * dy,
            yy=self.yy + other.yy + self.count * share * dy @ dy,
        )

    def about(self, shift: Float[np.ndarray, " o"]) -> "Moments":
        """Second moments about zero of the patches and about `shift` of the targets."""
        y = self.y - shift
        return Moments(
            self.count,
            np.zeros_like(self.x),
            np.zeros_like(y),
            self.xx + self.count * np.outer(self.x, self.x),
            self.xy + self.count * np.outer(self.x, y),
            float(self.yy + self.count * y @ y),
        )

    def of(self, rows: Int[np.ndarray, " k"]) -> "Moments":
        """Of some rows of the patches alone."""
        if np.array_equal(rows, np.arange(len(self.x))):
            return self  # they are large
        return dataclasses.replace(
            self, x=self.x[rows], xx=self.xx[np.ix_(rows, rows)], xy=self.xy[rows]
        )


#: Over every second image, and over the others.
Folds = tuple[Moments, Moments]


def rows(places: Int[np.ndarray, " k"], d: int, p: int) -> Int[np.ndarray, " q"]:
    """Rows of a kernel with p = taps · d rows that belong to some of the d places."""
    return (np.arange(p // d)[:, None] * d + places).ravel()


class Sums:
    """Moments of every second image, and of the others, batch by batch.

    On a CPU the products are BLAS's, which knows that a square of a matrix is
    symmetric, in single precision of numbers about a mean; elsewhere the devices', of
    several batches at a time, so that devices and host speak seldom.
    """

    def __init__(self):
        self._sums = _Sum(), _Sum()
        self._first = 0  # which fold begins what is waiting
        self._waiting: list[tuple[Array, Array, Array]] = []

    def add(
        self, first: int, patches: Array, target: Array, weight: Array, real: Array
    ) -> None:
        """Takes a batch whose first example is of the fold `first`; of it what is real,
        which is of (n, *positions), or as the weight is."""
        if _on_host(patches):
            self._add_rows(first, patches, target, weight, real)
            return
        if first != self._first:
            self._flush()
        self._first = first
        self._waiting.append((patches, target, real))
        numbers = (patches.size + target.size) // _count(patches)
        if len(self._waiting) == together(numbers):
            self._flush()

    def done(self) -> Folds:
        """Of all batches."""
        self._flush()
        first, second = self._sums
        return first.done(), second.done()

    def _flush(self) -> None:
        if not self._waiting:
            return
        halves = jax.device_get(_on_devices(*zip(*self._waiting, strict=True)))
        self._waiting = []
        for place, half in enumerate(halves):
            count, x, y, xx, xy, yy = (np.array(m, np.float64) for m in half)
            result = Moments(np.float64(count), x, y, xx, xy, float(yy))
            self._sums[(place + self._first) % 2].put(result)

    def _add_rows(self, first: int, patches, target, weight, real) -> None:
        count = int(np.asarray(weight).sum())  # padding comes last
        x, y, counts = (np.asarray(a)[:count] for a in (patches, target, real))
        for place in (0, 1):
            own, wanted = (a[place::2].reshape(-1, a.shape[-1]) for a in (x, y))
            if counts.ndim > 1:
                those = counts[place::2].ravel() > 0
                own, wanted = own[those], wanted[those]
            self._sums[(place + first) % 2].add(own, wanted)


def together(size: int) -> int:
    """How many batches are summed in one go on devices, each of so many numbers of
    patches and targets on every device."""
    return max(1, _AT_ONCE_ON_DEVICES // max(size, 1))


def _count(array: Array) -> int:
    return len(array.sharding.device_set)


def _on_host(patches: Array) -> bool:
    """Whether the products are taken on the host."""
    return jax.default_backend() == "cpu" and patches.is_fully_addressable


class _Sum:
    """Moments of rows that come little by little."""

    def __init__(self):
        self._rows: list[tuple[np.ndarray, np.ndarray]] = []
        self._size = 0
        self._found: Moments | None = None

    def add(self, x: Float[np.ndarray, "n p"], y: Float[np.ndarray, "n o"]) -> None:
        """Takes rows; their products are taken when there are many."""
        if not len(x):
            x, y = x[:0], y[:0]
        self._rows.append((x, y))
        self._size += x.size
        if self._size >= _AT_ONCE:
            self._flush()

    def put(self, moments: Moments) -> None:
        """Takes moments."""
        self._found = moments if self._found is None else self._found.add(moments)

    def done(self) -> Moments:
        """Of all rows."""
        if self._rows:
            self._flush()
        assert self._found is not None, "of one batch at least"
        return self._found

    def _flush(self) -> None:
        x, y = (np.concatenate(column) for column in zip(*self._rows, strict=True))
        self._rows, self._size = [], 0
        count = np.float64(len(x))
        mean_x, mean_y = (_centre(a) for a in (x, y))
        products = (x.T @ x, x.T @ y, np.vdot(y, y))
        xx, xy, yy = (np.asarray(m, np.float64) for m in products)
        self.put(Moments(count, mean_x, mean_y, xx, xy, float(yy)))


def _centre(x: Float[np.ndarray, "n p"]) -> Float[np.ndarray, " p"]:
    """Takes the mean from the rows, in place, and gives it."""
    if not len(x):
        return np.zeros(x.shape[1])
    ones = np.full(len(x), 1 / len(x), np.float32)
    mean = ones @ x
    x -= mean
    return mean.astype(np.float64) + ones @ x  # what single precision left of it


@jax.jit
def _on_devices(patches, target, real):
    """Of both folds count, means and products, of batches of one shape."""

    def half(first):
        # Beside, not behind each other: rows stay on the device where they lie.
        w, x, y = (jnp.stack(a, 1)[first::2] for a in (real, patches, target))
        w = w.reshape(w.shape + (1,) * (x.ndim - 1 - w.ndim))
        w = jnp.broadcast_to(w, x.shape[:-1]).reshape(-1, 1)
        x, y = (a.reshape(-1, a.shape[-1]) for a in (x, y))
        count = w.sum()
        mean_x, mean_y = ((a * w).sum(0) / jnp.maximum(count, 1) for a in (x, y))
        x, y = (x - mean_x) * w, (y - mean_y) * w
        return count, mean_x, mean_y, x.T @ x, x.T @ y, (y * y).sum()

    with jax.default_matmul_precision("highest"):
        return half(0), half(1)
