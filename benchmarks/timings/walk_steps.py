"""Where the time of selecting goes: the walk's steps, each waited for.

    python benchmarks/walk_steps.py [--small] [--out FILE]

Keep 0.4 in every group, without repair, on images that are on the device. "Equations"
are the network's own, batch by batch; "gather" sums what a criterion asks for; "select"
asks it and measures the residual that the report needs, of 32 images at most. The steps
are taken one by one, as the walk takes them, and each is waited for, which costs a
little; "walk" is the walk by itself, timed before. Weights and images are random. About
three minutes on two CPU cores; --small, half a minute, takes small networks.
"""

import time
from collections.abc import Iterable
from typing import Any

import jax

from benchmarks.benchmark import Benchmark, Lines, table
from benchmarks.timings import turns
from benchmarks.timings.cases import KEEP, Case, Ready, T, passes, ready
from ispasp_jax import graph, report
from ispasp_jax.selection.algorithm_1 import ispasp
from ispasp_jax.selection.criterion import Criterion
from ispasp_jax.walk import flat, reads, selecting, sites, steps, streams
from ispasp_jax.walk.clocks import Clocks
from ispasp_jax.walk.cuts import Cuts

STEPS = ("equations", "gather", "select")
RESIDUAL_IMAGES = 32


FULL = [Case(m, 224, 320) for m in ("resnet34", "resnet50", "mobilenetv2")]
SMALL = [Case("resnet20", 32, 128)]


def by_hand(made: Ready, criterion: Criterion) -> tuple[graph.Plan, dict[str, float]]:
    """The walk put together from its steps, each waited for: what is kept, and the
    seconds of every step.
    """
    traced, sizes, clocks = made.traced, made.sizes, Clocks()
    program = flat.flatten(traced)
    task = reads.Task(sizes, criterion, jax.random.key(0), RESIDUAL_IMAGES)
    weights = flat.arrays(program, made.variables)
    stream = streams.start(program, weights, made.batches)
    cuts = Cuts(program, jax.tree.structure(made.variables))
    narrower = [g for g in traced.groups if sizes.get(g.name, g.width) < g.width]
    for site, groups in steps.readers(sites.suited(program), narrower).own.items():
        with clocks.on("equations"):
            stream = stream.hidden(site.place)
            jax.block_until_ready(stream.live[site.hidden])
        for group in groups:
            layer = steps.layer_of(group, site)
            with clocks.on("gather"):
                read = reads.gather(site, group, stream, task, None)
                jax.block_until_ready(read.total)
            with clocks.on("select"):
                weights = stream.weights
                result = selecting.select(group, layer, [read], weights, task, {})
            weights = cuts.write(group, layer, result, weights)
            stream = stream._replace(weights=weights)
    spent = clocks.so_far()
    return cuts.plan(), {name: spent[name] for name in STEPS}


def measure(cases: Iterable[Case]) -> dict[str, Any]:
    """Dense pass, walk, and the walk's steps of every case."""
    rows, criterion = [], ispasp(T)
    for case in cases:
        report.say(f"steps: {case.model}, {case.images} images")
        made = ready(case)
        calls = passes(made, criterion)
        timed = turns.turns({name: calls[name] for name in ("dense", "walk")}, 2)
        start = time.perf_counter()
        _, spent = by_hand(made, criterion)
        whole = time.perf_counter() - start
        rows.append(
            {
                **case._asdict(),
                "dense": min(timed["dense"]["all"]),
                "walk": min(timed["walk"]["all"]),
                "steps": spent,
                "waited_for": whole,
            }
        )
    return {"keep": KEEP, "rows": rows}


def columns(result: dict[str, Any]) -> Lines:
    """Seconds of each step."""
    names = [*result["rows"][0]["steps"]]
    shown = {
        "network": lambda r: f"{r['model']}, {r['size']}",
        "images": lambda r: str(r["images"]),
        **{name: lambda r, name=name: f"{r[name]:.2f}" for name in ("dense", "walk")},
        **{name: lambda r, name=name: f"{r['steps'][name]:.2f}" for name in names},
        "rest": lambda r: f"{r['waited_for'] - sum(r['steps'].values()):.2f}",
    }
    return table(result["rows"], shown)


BENCHMARK = Benchmark(
    file="walk_steps.json",
    full=FULL,
    small=SMALL,
    measure=measure,
    tables={"walk_steps": columns},
)
