"""What makes a support good to repair: half of every block's channels of ResNet56, by
different scores, and what is lost of the consumer's output as cut and repaired.

    ISPASP_DATA=DIR python benchmarks/supports.py [--small]

On 1,000 training images of CIFAR-10, every block on the dense network's activations, so
that blocks can be compared. A minute on two CPU cores; --small takes
ResNet20 and 250 images.
"""

import functools

import jax
import numpy as np

from benchmarks.benchmark import Benchmark, table
from benchmarks.paper import cifar
from ispasp_jax.selection import obs
from ispasp_jax.walk import fits, least_squares, measurement
from ispasp_jax.walk.moments import rows as rows_of
from ispasp_jax.walk.reads import regression


def measure(case: tuple[str, int]) -> list[dict]:
    """Mean over blocks of ‖V‖/‖U‖ by score."""
    lost = {}
    for _, site, here, behind in cifar.consumers(*case):
        for score, residuals in block(site, here, behind).items():
            lost.setdefault(score, []).append(residuals)
    means = {score: np.mean(pairs, 0) for score, pairs in lost.items()}
    return [
        {"score": score, "as_cut": float(a), "repaired": float(b)}
        for score, (a, b) in means.items()
    ]


def block(site, here, behind) -> dict[str, tuple[float, float]]:
    """Relative residuals, as cut and repaired, of half the channels by every score."""
    d = site.width
    folds = measurement.measure(site, here, behind, np.arange(d)).folds
    reach = fits.reach(site, here.weights)
    first, second = least_squares.about(reach, folds)
    whole = first + second
    A, W = whole.xx / whole.count, reach.matrix
    ridge = A + obs.RIDGE * np.trace(A) / len(A) * np.eye(len(A))
    H = np.concatenate([np.asarray(h) for h in here.live[site.hidden]])

    def residual(kernel):
        E = W - kernel
        return np.sqrt((E * (A @ E)).sum() / (whole.yy / whole.count))

    def both(kept):
        index = rows_of(np.sort(kept), d, len(W))
        as_cut, repaired = np.zeros_like(W), np.zeros_like(W)
        as_cut[index] = W[index]
        repaired[index] = np.linalg.solve(ridge[np.ix_(index, index)], ridge[index] @ W)
        return residual(as_cut), residual(repaired)

    def own(c):
        index = rows_of(np.array([c]), d, len(W))
        return (W[index] * (A[np.ix_(index, index)] @ W[index])).sum()

    path = jax.jit(obs.elimination, static_argnums=1)
    order = np.asarray(path((regression(whole, W, d, np.arange(d)[:, None]),), d).order)
    scores = {
        "μ(H), as i-SpaSP at one half": H.mean((0, 1, 2)),
        "standard deviation of H": H.std((0, 1, 2)),
        "variance of what the consumer makes of it": np.array([*map(own, range(d))]),
        "backward elimination (obs)": np.argsort(order),
        "random": np.random.default_rng(0).random(d),
    }
    return {name: both(np.argsort(-score)[: d // 2]) for name, score in scores.items()}


COLUMNS = {
    "half of the channels, by": lambda row: row["score"],
    "‖V‖/‖U‖ as cut": lambda row: f"{row['as_cut']:.3f}",
    "repaired": lambda row: f"{row['repaired']:.3f}",
}

BENCHMARK = Benchmark(
    file="supports.jsonl",
    full=("resnet56", 1000),
    small=("resnet20", 250),
    measure=measure,
    tables={"supports": functools.partial(table, columns=COLUMNS)},
)
