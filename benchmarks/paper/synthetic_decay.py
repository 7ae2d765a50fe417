"""The paper's synthetic experiment: two-layer networks whose hidden representation is
p-compressible, pruned by i-SpaSP to every size.

    python benchmarks/synthetic_decay.py [--small]

H has ten examples, its rows are exponential draws scaled so that the i-th largest entry
of μ(H), the sum over examples, is R · i^(−1/p), with R = 1; the neurons are shuffled.
W1 is square with entries N(0, 1/d_hid). The paper does not say how it normalises; this
scale was chosen to start and end where the paper's curves do. One seed draws the same
numbers for every p. All of it is in float64: the tail at p = 0.3 is sixteen orders
below the head.

Theory: the best s-term tail of such a signal is ‖tail‖² ~ R² s^(1 − 2/p), and so is the
square of what CoSaMP's bounds (‖tail‖ and ‖tail‖₁/√s) allow, which the paper's theorem
follows: polynomial, of a degree without bound as p → 0. At finite width the tail ends
at i = d_hid and is no power law; its slope, fitted over the same sizes, stands between
theory and measurement in the table. The dashed line of the plot keeps the s largest of
μ(H), which is what i-SpaSP approximates below s = d_hid/2 and what it is above. A few
seconds on two CPU cores; writes JSON and a plot.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.benchmark import Benchmark, Lines, panels, table
from ispasp_jax import algorithm_1, batch_sum, report
from ispasp_jax.selection.problem import largest

FACTORS, WIDTHS, EXAMPLES, SEEDS = (0.3, 0.5, 0.7, 0.9), (100, 200), 10, 10


class Curves(NamedTuple):
    """‖V‖² for s = 1 … d of every p (rows of the outer axis) and seed.

    Attributes:
      ispasp: of i-SpaSP's supports.
      largest: of the s largest of μ(H).
      iterations: most iterations of Algorithm 1 until the support repeated.
    """

    ispasp: np.ndarray
    largest: np.ndarray
    iterations: int


def network(d: int, p: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """H of shape (examples, d), p-compressible, and W1 of shape (d, d)."""
    rng = np.random.default_rng([seed, d])
    H = rng.exponential(size=(EXAMPLES, d))
    mu = np.arange(1.0, d + 1) ** (-1 / p)
    W1 = rng.normal(scale=d**-0.5, size=(d, d))
    return H / H.sum(0) * rng.permutation(mu), W1


def to_every_size(H: jax.Array, W1: jax.Array):
    """‖V‖² of i-SpaSP and of the s largest, for s = 1 … d, and the iterations."""
    summed, sizes = batch_sum(H), jnp.arange(1, H.shape[-1] + 1)

    def residual(support):
        return jnp.square((H * ~support) @ W1).sum()

    def one(s):
        selection = algorithm_1(summed, lambda h: h @ W1, s)
        top = largest(summed[0], s)
        return residual(selection.support), residual(top), selection.iterations

    return jax.vmap(one)(sizes)


def curves(d: int, factors=FACTORS, seeds: int = SEEDS) -> Curves:
    """All networks of one width at once."""
    drawn = [[network(d, p, seed) for seed in range(seeds)] for p in factors]
    H, W1 = (np.array([[n[i] for n in row] for row in drawn]) for i in (0, 1))
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        answers = jax.jit(jax.vmap(jax.vmap(to_every_size)))(H, W1)
        ispasp, top, iterations = jax.device_get(answers)
    assert ispasp.dtype == np.float64
    return Curves(ispasp, top, int(iterations.max()))


def slope(curve: np.ndarray, first: int, last: int) -> float:
    """Exponent of a power law through curve[s − 1], s = first … last, least squares in
    the logarithms.
    """
    s = np.arange(first, last + 1)
    return float(np.polyfit(np.log(s), np.log(curve[first - 1 : last]), 1)[0])


def tail(d: int, p: float) -> np.ndarray:
    """Σ i^(−2/p) over i > s, for s = 0 … d − 1."""
    return np.cumsum(np.arange(float(d), 0, -1) ** (-2 / p))[::-1]


def measure(seeds: int = SEEDS, widths=WIDTHS, factors=FACTORS) -> dict:
    """Everything that plot and table show."""
    result = {
        "dtype": "float64",
        "examples": EXAMPLES,
        "seeds": seeds,
        "R": 1,
        "rows": [],
    }
    for d in widths:
        found = curves(d, factors, seeds)
        first, last = max(2, d // 20), d // 2
        for p, ispasp, top in zip(factors, found.ispasp, found.largest, strict=True):
            exponents = [slope(curve, first, last) for curve in ispasp]
            result["rows"].append(
                {
                    "d_hid": d,
                    "p": p,
                    "fit_from": first,
                    "fit_to": last,
                    "theory": 1 - 2 / p,
                    "finite_tail": slope(tail(d, p)[1:], first, last),
                    "measured": float(np.mean(exponents)),
                    "measured_std": float(np.std(exponents)),
                    "largest": float(np.mean([slope(c, first, last) for c in top])),
                    "sizes_equal_to_largest": float((ispasp == top).mean()),
                    "most_above_largest": float(np.nanmax(_ratio(ispasp, top))),
                    "median": _digits(np.median(ispasp, 0)),
                    "low": _digits(ispasp.min(0)),
                    "high": _digits(ispasp.max(0)),
                    "median_largest": _digits(np.median(top, 0)),
                }
            )
        medians = np.median(found.ispasp, 1)[:, :-1]
        result[f"crossings_{d}"] = {
            "of_medians": int((np.diff(medians, axis=0) <= 0).sum()),
            "of_single_networks": int(
                (np.diff(found.ispasp[..., :-1], axis=0) <= 0).sum()
            ),
        }
        result[f"most_iterations_{d}"] = found.iterations
    return result


def _digits(values):
    return [float(f"{value:.5g}") for value in values]


def _ratio(ispasp, top):
    return np.where(top > 0, ispasp / np.where(top > 0, top, 1), np.nan)


def columns(result: dict) -> Lines:
    """Exponents of ‖V‖² in s, and where the curves begin and end."""
    shown = {
        "d_hid": lambda r: str(r["d_hid"]),
        "p": lambda r: str(r["p"]),
        "theory 1-2/p": lambda r: f"{r['theory']:.2f}",
        "finite tail": lambda r: f"{r['finite_tail']:.2f}",
        "i-SpaSP": lambda r: f"{r['measured']:.2f} ± {r['measured_std']:.2f}",
        "s largest": lambda r: f"{r['largest']:.2f}",
        "fitted over s": lambda r: f"{r['fit_from']}–{r['fit_to']}",
        "‖V‖² at s = 1": lambda r: f"{r['median'][0]:.0e}",
        "at d - 1": lambda r: f"{r['median'][-2]:.0e}",
    }
    return table(result["rows"], shown)


def plot(result: dict):
    """A panel for each width."""
    widths = sorted({row["d_hid"] for row in result["rows"]})
    figure, (across,) = panels((9.5, 4.4), 1, len(widths), sharey=True)
    for d, panel in zip(widths, across, strict=True):
        s = np.arange(1, d)
        for i, row in enumerate(r for r in result["rows"] if r["d_hid"] == d):
            color = f"C{i}"
            label = f"p = {row['p']}: {row['measured']:.2f} ({row['theory']:.2f})"
            panel.plot(s, row["median"][:-1], color=color, label=label)
            band = row["low"][:-1], row["high"][:-1]
            panel.fill_between(s, *band, color=color, alpha=0.2, lw=0)
            panel.plot(s, row["median_largest"][:-1], "k--", lw=0.7)
        panel.plot([], [], "k--", lw=0.7, label="s largest of μ(H)")
        panel.set(title=f"$d_{{hid}}$ = {d}", xlabel="neurons kept, s", yscale="log")
        panel.grid(alpha=0.3)
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18)}
        title = "exponent of s, fitted (theory)"
        panel.legend(**below, ncols=2, fontsize=8, title=title, title_fontsize=8)
    across[0].set(ylabel=r"$\|V\|_F^2$")
    return figure


def text(result: dict) -> str:
    """Exponents, and where the curves of neighbouring p cross."""
    lines = [report.table(columns(result))]
    for d in WIDTHS:
        crossings = result[f"crossings_{d}"]
        networks = (len(FACTORS) - 1) * (d - 1) * result["seeds"]
        lines.append(
            f"d_hid = {d}: medians of neighbouring p cross at "
            f"{crossings['of_medians']} of {networks // result['seeds']} sizes, single "
            f"networks at {crossings['of_single_networks']} of {networks}"
        )
    return "\n".join(lines)


BENCHMARK = Benchmark(
    file="synthetic_decay.json",
    full=SEEDS,
    small=3,
    measure=measure,
    tables={"synthetic_decay": columns},
    pictures={"synthetic_decay.png": plot},
    text=text,
)
