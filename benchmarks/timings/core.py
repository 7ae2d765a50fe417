"""What Algorithm 1 costs by itself: `algorithm_1`, jitted, on the batch sum of H and on
all of H, and for every size at once.

    python benchmarks/core.py [--small] [--out FILE]

Consumers: a dense layer d -> d on 1,024 examples, and a 3x3 convolution
d -> min(d, 512) on 16 examples of 14x14, for d = 64 to 4,096 and three keep ratios, at
most 20 iterations. Taking the batch sum is inside what is timed. "Every size" is one
vmap over s = 1 ... d on the batch sum. What would need more than 1e10 multiply-adds for
a call of the consumer is left out. Activations (uniform, non-negative) and weights
(normal) are random. About four minutes on two CPU cores; --small, half a minute, stops
at d = 128.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.benchmark import SEED, Benchmark, Lines, table
from benchmarks.timings import turns
from ispasp_jax import algorithm_1, batch_sum, report
from ispasp_jax.budget import cost

T = 20
#: Multiply-adds of one call of the consumer; a selection makes tens of them.
LIMIT = 1e10
#: What is timed for every row.
KINDS = ("batch_sum", "full", "every_size")


class Settings(NamedTuple):
    """What a run measures."""

    widths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)
    keeps: tuple[float, ...] = (0.1, 0.25, 0.5)
    examples: tuple[tuple[str, int], ...] = (("dense", 1024), ("conv 3x3", 16))
    side: int = 14
    repeats: int = 3


FULL = Settings()
SMALL = Settings(widths=(64, 128), side=7)


def dense(kernel, h):
    return h @ kernel


def convolution(kernel, h):
    return jax.lax.conv_general_dilated(
        h, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def problem(consumer: str, d: int, n: int, side: int):
    """The consumer as a function of kernel and H, its kernel, and H."""
    keys = jax.random.split(jax.random.key(SEED))
    if consumer == "dense":
        function, shape, positions = dense, (d, d), ()
    else:
        function, shape, positions = convolution, (3, 3, d, min(d, 512)), (side, side)
    kernel = jax.random.normal(keys[0], shape) / np.sqrt(np.prod(shape[:-1]))
    return function, kernel, jax.random.uniform(keys[1], (n, *positions, d))


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def select(function, kernel, H, s, summed):
    """One selection."""
    H = batch_sum(H) if summed else H
    return algorithm_1(H, functools.partial(function, kernel), s, T)


@functools.partial(jax.jit, static_argnums=0)
def select_every_size(function, kernel, H):
    """A selection for every size at once."""
    H, sizes = batch_sum(H), jnp.arange(1, H.shape[-1] + 1)

    def one(s):
        return algorithm_1(H, functools.partial(function, kernel), s, T).support

    return jax.vmap(one)(sizes)


def measure(settings: Settings) -> dict[str, Any]:
    """Every consumer, width and keep ratio."""
    rows = []
    for consumer, n in settings.examples:
        for d in settings.widths:
            report.say(f"{consumer}, d = {d}")
            rows += measure_width(consumer, d, n, settings)
    return {"num_iters": T, "limit_multiply_adds": LIMIT, "rows": rows}


def measure_width(consumer: str, d: int, n: int, settings: Settings) -> list[dict]:
    """The rows of one consumer and width; `every_size` is None but for the first."""
    function, kernel, H = problem(consumer, d, n, settings.side)
    macs = cost.multiply_adds(function, kernel, H[:1])
    rows = []
    for keep in settings.keeps:
        s = max(1, int(keep * d))
        calls = {
            name: functools.partial(select, function, kernel, H, s, summed)
            for name, summed, times in (("batch_sum", True, 1), ("full", False, n))
            if times * macs <= LIMIT
        }
        if not rows and d * macs <= LIMIT:
            calls["every_size"] = functools.partial(
                select_every_size, function, kernel, H
            )
        timed = turns.turns(calls, settings.repeats)
        answers = {name: call() for name, call in calls.items()}
        supports = {
            name: np.asarray(found[s - 1] if name == "every_size" else found.support)
            for name, found in answers.items()
        }
        dropped = ~supports["batch_sum"]
        most = max(int((support & dropped).sum()) for support in supports.values())
        rows.append(
            {
                "consumer": consumer,
                "d": d,
                "examples": n,
                "keep": keep,
                "size": s,
                "consumer_multiply_adds": macs,
                "iterations": int(answers["batch_sum"].iterations),
                "channels_different": most,
                **{name: timed.get(name) for name in KINDS},
            }
        )
    return rows


def columns(result: dict[str, Any], keep: float | None = None) -> Lines:
    """Milliseconds; of one keep ratio where one is given."""

    def ms(name, row):
        timed = row[name]
        if timed is None:
            return None
        times = (1e3 * timed[k] for k in ("seconds", "min", "max"))
        return turns.spread(*times, form=".1f")

    def over(row):
        full = row["full"]
        return full and f"{turns.ratio(full, row['batch_sum'])['ratio']:.1f}"

    rows = [row for row in result["rows"] if keep in (None, row["keep"])]
    shown = {
        "consumer": lambda r: r["consumer"],
        "d": lambda r: r["d"],
        "keep": lambda r: f"{r['keep']:g}",
        "iterations": lambda r: r["iterations"],
        "batch sum ms": functools.partial(ms, "batch_sum"),
        "all of H ms": functools.partial(ms, "full"),
        "ratio": over,
        "every size ms": functools.partial(ms, "every_size"),
        "compile s": lambda r: f"{r['batch_sum']['compile_s']:.1f}",
        "differ": lambda r: r["channels_different"],
    }
    return table(rows, shown)


BENCHMARK = Benchmark(
    file="core.json",
    full=FULL,
    small=SMALL,
    measure=measure,
    tables={"core": functools.partial(columns, keep=0.1)},
    text=lambda result: report.table(columns(result)),
)
