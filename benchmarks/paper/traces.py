"""How the residual falls with i-SpaSP's iterations, and how far its support is from the
channels of the largest activation sum, μ(H), alone: all blocks of ResNet56 at several
keep ratios, each on the dense network's activations.

    ISPASP_DATA=DIR python benchmarks/traces.py [--small]

On 250 training images of CIFAR-10; a minute on two CPU cores; --small takes
ResNet20 and 50 images.
"""

import functools

import jax.numpy as jnp
import numpy as np

from benchmarks.benchmark import Benchmark, Lines, panels, table
from benchmarks.paper import cifar
from ispasp_jax import algorithm_1
from ispasp_jax.selection.algorithm_1 import μ
from ispasp_jax.walk import consumers, layouts, sites
from ispasp_jax.walk.pieces import compiled

T = 20
DRAWN = ("layer1.4", "layer2.4", "layer3.4")
KEEPS = (0.1, 0.2, 0.3, 0.4, 0.5)


def measure(case: tuple[str, int]) -> list[dict]:
    """A row for each block and keep ratio."""
    results = []
    for name, site, here, _ in cifar.consumers(*case):
        batches = here.live[site.hidden]
        H = jnp.concatenate([layouts.as_hidden(site, h) for h in batches])
        results += [{"block": name, **row} for row in block(site, here.weights, H)]
    return results


def select(site, kernel, scale, H, s):
    """i-SpaSP on H whole, so that the residual is of every image and position, not of
    their sum; and ½‖U‖².
    """

    def consumer(h):
        return layouts.linear(site, h, kernel) * scale

    U = consumer(H)
    return algorithm_1(H, consumer, s, T), 0.5 * jnp.square(U).sum()


def block(site, weights, H) -> list[dict]:
    """A row for each keep ratio: the residual after every iteration, as a share of the
    whole's, and how many channels are not among the s largest of μ(H).
    """
    # Blocks that read alike share a program.
    run = compiled(("trace", sites.text(site)), lambda: functools.partial(select, site))
    d, by_sum = H.shape[-1], np.argsort(-np.asarray(μ(H)), kind="stable")
    kernel = consumers.kernel(site, weights)
    scale, _ = consumers.chain(site).ends(weights)
    lines = []
    for keep in KEEPS:
        s = max(1, round(keep * d))
        found, whole = run(kernel, scale, H, s)
        relative = np.sqrt(np.asarray(found.residuals / whole, np.float64))
        different = np.setdiff1d(np.flatnonzero(found.support), by_sum[:s])
        lines.append(
            {
                "keep": keep,
                "d": d,
                "s": s,
                "iterations": int(found.iterations),
                "not_of_largest_sum": len(different),
                "relative_residuals": [1.0, *relative.tolist()],
            }
        )
    return lines


def columns(results: list[dict]) -> Lines:
    """Columns by keep ratio, over all blocks."""
    by_keep = [[row for row in results if row["keep"] == keep] for keep in KEEPS]

    def share(rows):
        return sum(r["not_of_largest_sum"] for r in rows) / sum(r["s"] for r in rows)

    def rising(rows):
        traces = [row["relative_residuals"] for row in rows]
        return sum(trace[-1] > 1.0001 * trace[1] for trace in traces)

    shown = {
        "keep ratio": lambda rows: f"{rows[0]['keep']:g}",
        "iterations, mean": lambda rows: (
            f"{np.mean([row['iterations'] for row in rows]):.1f}"
        ),
        "most": lambda rows: str(max(row["iterations"] for row in rows)),
        "channels not of the largest sum": lambda rows: f"{share(rows):.0%}",
        "first residual below the last": lambda r: f"{rising(r)} of {len(r)}",
    }
    return table(by_keep, shown)


def plot(results: list[dict]):
    """A panel for each block."""
    figure, (across,) = panels((9.5, 3.2), 1, len(DRAWN), sharey=True)
    for block, panel in zip(DRAWN, across, strict=True):
        here = [r for r in results if r["block"] == block and r["keep"] < 0.5]
        for i, own in enumerate(here):
            trace, color = own["relative_residuals"], f"C{i}"
            panel.plot(range(len(trace)), trace, "o-", ms=3, lw=1.2, color=color)
            panel.plot(own["iterations"], trace[own["iterations"]], "s", color=color)
            panel.plot([], [], color=color, label=f"{own['s']} of {own['d']}")
        panel.set(title=block, xlabel="iterations", xlim=(-0.3, 8.3))
        panel.grid(alpha=0.3)
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2)}
        panel.legend(**below, ncols=4, fontsize=7, handlelength=1, title="kept")
    across[0].set(ylabel="relative residual ‖V‖/‖U‖")
    return figure


BENCHMARK = Benchmark(
    file="traces.jsonl",
    full=("resnet56", 250),
    small=("resnet20", 50),
    measure=measure,
    tables={"traces": columns},
    pictures={"traces.png": plot},
)
