"""What selecting costs: the walk against one dense forward pass over the same images,
and against the loop of the authors' kind (naive.py).

    python benchmarks/selection_cost.py [--small] [--out FILE]

Four tables, each of functions that take turns on images that are on the device already,
at keep 0.4 in every group, without repair:

  walk         dense pass, walk, walk without its residual report: 320 to 1280
               images of 224 pixels, texts of 128 tokens; of transformers the neurons
               are cut
  images       the same for ResNet34 and 64, 256 images
  iterations   the walk with T = 1, 5, 20, 50
  naive        T full gradients over all images and the prefix again for every group,
               for all T iterations and stopping at the fixed point; supports compared.
               Measured on few images; the time for 1280 is extrapolated linearly, and
               labelled so.

Compile time is that of a first call on two batches, apart from the medians; what one
row has compiled, the next one finds. Memory is the peak beyond what was held before
(weights, images), for at most 256 images: of a CPU the resident set, what compiling
needs included. Weights and images are random. About 40 minutes on two CPU cores;
--small, half a minute, takes small networks.
"""

import functools
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from benchmarks.benchmark import Benchmark, Lines, table, tables
from benchmarks.timings import naive, turns
from benchmarks.timings.cases import KEEP, Case, T, passes, peak_memory, ready
from ispasp_jax import report
from ispasp_jax.selection.algorithm_1 import ispasp

#: Memory is measured with no more: it grows with them, one block's activations each.
MEMORY_IMAGES = 256


class Settings(NamedTuple):
    """What a run measures."""

    walk: tuple[Case, ...]
    images: tuple[Case, ...]
    iterations: Case
    sweep: tuple[int, ...]
    naive: Case
    extrapolated_to: int = 1280
    repeats: int = 3
    memory: bool = False


FULL = Settings(
    walk=(
        Case("resnet34", 224, 1280),
        Case("resnet50", 224, 640),
        Case("mobilenetv2", 224, 1280),
        Case("efficientnet_lite0", 224, 1280),
        Case("vit_tiny_patch16_224", 224, 320),
        Case("bert_mini", 128, 1280),
    ),
    images=tuple(Case("resnet34", 224, n) for n in (64, 256)),
    iterations=Case("resnet34", 224, 64),
    sweep=(1, 5, 20, 50),
    naive=Case("resnet34", 224, 64),
    memory=True,
)
SMALL = Settings(
    walk=(Case("resnet20", 32, 128),),
    images=(Case("resnet20", 32, 256),),
    iterations=Case("resnet20", 32, 64),
    sweep=(1, 20),
    naive=Case("resnet20", 32, 64),
)


def walk_rows(cases: Iterable[Case], repeats: int, memory: bool) -> list[dict]:
    """Dense pass and walk of each case."""
    rows = []
    for case in cases:
        report.say(f"walk: {case.model}, {case.images} images")
        some = case._replace(images=min(case.images, MEMORY_IMAGES))
        used = peak_memory(some) if memory else None
        criterion = ispasp(T)
        few = case._replace(images=min(case.images, 2 * case.batch))
        timed = turns.turns(
            passes(ready(case), criterion), repeats, passes(ready(few), criterion)
        )
        ratios = {
            name: turns.ratio(timed[name], timed["dense"])
            for name in ("walk", "walk_without_residual")
        }
        rows.append(
            {**case._asdict(), **timed, "over_dense": ratios, "peak_bytes": used}
        )
    return rows


def iteration_rows(case: Case, sweep: Iterable[int], repeats: int) -> dict:
    """The walk for several T."""
    report.say(f"iterations: {case.model}, {case.images} images")
    made, criteria = ready(case), {t: ispasp(t) for t in sweep}
    most = {}

    def run(t):
        pruned = made.walk(criteria[t])
        most[t] = max(group.iterations for group in pruned.groups)
        return pruned.variables

    timed = turns.turns(
        {"dense": made.dense, **{t: functools.partial(run, t) for t in sweep}}, repeats
    )
    return {
        **case._asdict(),
        "dense": timed["dense"],
        "rows": [
            {
                "num_iters": t,
                "most_iterations": most[t],
                **timed[t],
                "over_dense": turns.ratio(timed[t], timed["dense"]),
            }
            for t in sweep
        ],
    }


def naive_rows(case: Case, extrapolated_to: int, repeats: int) -> dict:
    """Dense pass and walk in turns, then both forms of the loop once each; everything
    has been compiled before.
    """
    report.say(f"naive: {case.model}, {case.images} images")
    criterion, made = ispasp(T), ready(case)
    calls = passes(made, criterion)
    one = ready(case._replace(images=case.batch))
    one.naive(stop=True)  # compiles for a batch's shapes: the same for more images
    found = {"walk": made.walk(criterion)}
    timed = turns.turns({name: calls[name] for name in ("dense", "walk")}, repeats)
    seconds = {name: timed[name]["seconds"] for name in timed}
    for name, stop in (("naive_to_fixed_point", True), ("naive", False)):
        start = time.perf_counter()
        found[name] = made.naive(stop=stop)
        seconds[name] = time.perf_counter() - start
    plan, scale = found["walk"].plan, extrapolated_to / case.images
    return {
        **case._asdict(),
        "num_iters": T,
        "measured_seconds": seconds,
        "extrapolated": {
            "to_images": extrapolated_to,
            "how": "measured seconds times the ratio of images",
            "seconds": {
                name: scale * taken
                for name, taken in seconds.items()
                if name.startswith("naive")
            },
        },
        "groups": len(plan),
        "most_iterations_to_fixed_point": max(
            found["naive_to_fixed_point"].iterations.values()
        ),
        "smallest_margin": min(found["naive"].margins.values()),
        "different_supports": {
            name: naive.differences(plan, found[name])
            for name in ("naive", "naive_to_fixed_point")
        },
    }


def measure(settings: Settings) -> dict[str, Any]:
    """Everything."""
    return {
        "keep": KEEP,
        "repeats": settings.repeats,
        "walk": walk_rows(settings.walk, settings.repeats, settings.memory),
        "images": walk_rows(settings.images, min(settings.repeats, 2), False),
        "iterations": iteration_rows(
            settings.iterations, settings.sweep, settings.repeats
        ),
        "naive": naive_rows(settings.naive, settings.extrapolated_to, settings.repeats),
    }


def walk_table(result: dict[str, Any]) -> Lines:
    """Columns of the walk's cost, for several networks and numbers of images."""

    def over(row, name):
        return turns.spread(*row["over_dense"][name].values())

    def peak(row, name):
        used = row["peak_bytes"]
        return f"{used[name] / 1e6:.0f}" if used else None

    columns = {
        "network": lambda r: f"{r['model']}, {r['size']}",
        "images": lambda r: str(r["images"]),
        "dense s": lambda r: f"{r['dense']['seconds']:.2f}",
        "walk s": lambda r: f"{r['walk']['seconds']:.2f}",
        "walk/dense (range)": lambda r: over(r, "walk"),
        "without residual": lambda r: over(r, "walk_without_residual"),
        "compile s dense": lambda r: f"{r['dense']['compile_s']:.1f}",
        "walk": lambda r: f"{r['walk']['compile_s']:.1f}",
        f"peak MB dense, at most {MEMORY_IMAGES} images": lambda r: peak(r, "dense"),
        "walk ": lambda r: peak(r, "walk"),
    }
    return table([*result["walk"], *result["images"]], columns)


def iteration_table(result: dict[str, Any]) -> Lines:
    """Columns of the walk's cost by T."""
    columns = {
        "T": lambda r: str(r["num_iters"]),
        "most iterations": lambda r: str(r["most_iterations"]),
        "walk s": lambda r: f"{r['seconds']:.2f}",
        "walk/dense (range)": lambda r: turns.spread(*r["over_dense"].values()),
    }
    return table(result["iterations"]["rows"], columns)


def naive_table(result: dict[str, Any]) -> Lines:
    """Columns of the walk against the naive loop."""
    loop = result["naive"]
    seconds, far = loop["measured_seconds"], loop["extrapolated"]
    more = {name: f"{found:.0f}" for name, found in far["seconds"].items()}
    columns = {
        f"{loop['model']}, {loop['images']} images": lambda n: n.replace("_", " "),
        "measured s": lambda n: f"{seconds[n]:.2f}",
        "times the walk": lambda n: f"{seconds[n] / seconds['walk']:.1f}",
        f"extrapolated to {far['to_images']} images, s": more.get,
    }
    return table(seconds, columns)


def text(result: dict[str, Any]) -> str:
    """Tables, and whether the supports agree, for people."""
    loop, lines = result["naive"], [tables(BENCHMARK.tables, result), ""]
    for name, found in loop["different_supports"].items():
        same, groups = loop["groups"] - len(found), loop["groups"]
        lines.append(
            f"supports of walk and {name.replace('_', ' ')}: equal in {same} of "
            f"{groups} groups"
        )
        lines += [
            f"  {d['group']}: {d['channels']} differ, margin {d['margin']:.1e}"
            for d in found
        ]
    margin = loop["smallest_margin"]
    lines.append(f"smallest margin at a cut: {margin:.1e} of the largest score")
    return "\n".join(lines)


BENCHMARK = Benchmark(
    file="selection_cost.json",
    full=FULL,
    small=SMALL,
    measure=measure,
    tables={
        "selection_cost": walk_table,
        "iterations": iteration_table,
        "naive": naive_table,
    },
    text=text,
)
