"""What a walk over very many images costs on very many devices, on paper, and the paper
checked against the programs that a walk on eight devices runs.

    python benchmarks/scale.py [--small]

The formulas of docs/scale.md for ResNet50 and ViT-L, of which shapes alone are needed.
Then small networks, and ResNet50 on small images, are walked on eight devices of one
CPU, one of them on 256, in processes of their own: every collective operation in the
compiled programs, times its calls, against the formulas, byte for byte. About five
minutes on two CPU cores; --small, one, checks a perceptron and a block.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from benchmarks.benchmark import Benchmark, Lines, table
from benchmarks.timings import cases, collectives
from benchmarks.timings.stops import stops
from ispasp_jax import budget, devices, graph, models, report
from ispasp_jax.budget import cost
from ispasp_jax.models.mlp import MLP
from ispasp_jax.models.mobilenetv2 import MobileNetV2
from ispasp_jax.models.resnet import ResNet
from ispasp_jax.models.vit import ViT
from ispasp_jax.walk import Options, flat, sites, walk

IMAGES, PER_DEVICE, DEVICES = 1_281_167, 32, (8, 256)
REPAIRS = ("none", "lsq")
#: What the table has: the network, pixels.
LARGE = {
    "resnet50": (lambda: models.create("resnet50", 1000), 224),
    "vit_large_patch16_224": (lambda: ViT(1000, 16, 1024, 16, 24), 224),
}
#: What is walked, each on two batches.
SMALL = {
    "perceptron": (lambda: MLP(10, hidden=(24, 18, 12)), 8),
    "basic blocks": (lambda: ResNet(10, depths=(2, 1), base=16, stem="small"), 8),
    "bottlenecks": (
        lambda: ResNet(10, depths=(1, 1), base=16, stem="small", bottleneck=True),
        8,
    ),
    "inverted blocks": (
        lambda: MobileNetV2(
            10, stages=((1, 8, 1, 1), (4, 16, 2, 2)), channels=(16, 32)
        ),
        16,
    ),
    "transformer": (lambda: ViT(10, 4, 32, 2, 2), 16),
    "resnet50": (lambda: models.create("resnet50", 1000), 64),
}


class Read(NamedTuple):
    """What a walk's devices said between them, in bytes.

    Attributes:
      expected: by the formulas, by kind of program.
      found: in the programs' reductions.
      other: in anything else.
      reductions: how many, all kinds together.
    """

    expected: dict[str, int]
    found: dict[str, int]
    other: dict[str, int]
    reductions: int


def check(name: str, how: str, share: int = 4) -> Read:
    """Walks a small network on all devices, two batches of so many images on each, and
    reads its programs."""
    make, pixels = SMALL[name]
    network, shape = make(), (pixels, pixels, 3)
    variables = cases.random_variables(network, shape)
    count, batch = 2, share * jax.device_count()
    batches = cases.random_batches(count * batch, batch, shape)
    traced = graph.trace(network, variables, batches[0])
    sizes = _sizes(traced)
    options = Options(repair=how, mesh=devices.mesh(), residual_images=batch)
    with collectives.recorded() as record:
        walk(traced, variables, batches, sizes, options=options)
    total = record.total()
    own = stops(traced, sizes, how)
    expected = {
        "sum": count * sum(s.summed for s in own),
        "squares": 8 * sum(s.groups for s in own),
        "moments": sum(-(-count // s.together(share)) * s.moments for s in own),
    }
    found = {
        kind: total[kind]["bytes"]["all-reduce"] if kind in total else 0
        for kind in (*expected, "forward")
    }
    other = {
        f"{kind}: {operation}": nbytes
        for kind, each in total.items()
        for operation, nbytes in each["bytes"].items()
        if operation != "all-reduce" or kind not in found
    }
    reductions = sum(sum(each["operations"].values()) for each in total.values())
    return Read(expected, found, other, reductions)


def _sizes(traced: graph.Traced) -> dict[str, int]:
    """0.4 of every inner group; of the transformers' heads, values stay whole."""
    values = [g.name for g in traced.groups if g.name.endswith(".value.2")]
    inner = graph.scope(traced.groups, "inner", values)
    return budget.sizes(inner, cases.KEEP)


def on_paper(name: str, how: str) -> dict[str, Any]:
    """What an image, a batch and a device cost, of a large network."""
    make, pixels = LARGE[name]
    network, shape = make(), (pixels, pixels, 3)
    shapes = models.shapes(network, shape)
    traced = graph.trace(network, shapes, models.inputs(shape, 1))
    sizes = _sizes(traced)
    own = stops(traced, sizes, how)
    program = flat.flatten(traced)
    streams = 2 if how == "lsq" else 1
    alive = max(program.size(site.place) for site in sites.suited(program))
    largest = max((s.rows for s in own), default=0)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    return {
        "network": name,
        "repair": how,
        "stops": len(own),
        "groups": sum(s.groups for s in own),
        "refits": [(s.moments, s.together(PER_DEVICE)) for s in own if s.rows],
        "macs": cost.macs(traced),
        "moments_macs": sum(s.positions * s.rows * (s.rows + s.outputs) for s in own),
        "sum_bytes": sum(s.summed for s in own),
        "image_bytes": 4 * math.prod(shape),
        "alive_bytes": streams * alive,
        "weight_bytes": 4 * streams * parameters,
        "largest_rows": largest,
    }


def measure(names: Sequence[str]) -> dict[str, Any]:
    """The formulas of large networks, and the check."""
    rows = [on_paper(name, how) for name in LARGE for how in REPAIRS]
    found = _apart(8, names) + _apart(256, names[:1])
    return {"images": IMAGES, "rows": rows, "checked": found}


def _apart(count: int, names: Sequence[str]) -> list[dict[str, Any]]:
    """`check` of all, in a process that has so many devices."""
    report.say(f"walks on {count} devices")
    flags = f"--xla_force_host_platform_device_count={count}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    environment["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "false"
    command = [sys.executable, "-m", __spec__.name, json.dumps(names)]
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=cases.ROOT,
        env=environment,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _here(names: Sequence[str]) -> list[dict[str, Any]]:
    """`check` of all, in this process."""
    rows = []
    for name in names:
        for how in REPAIRS:
            report.say(f"{name}, {how}")
            what = {"network": name, "repair": how, "devices": jax.device_count()}
            rows.append({**what, **check(name, how)._asdict()})
    return rows


def _of_devices(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A line for each network, repair and number of devices."""
    return [
        {**row, **_run(row, result["images"], count)}
        for row in result["rows"]
        for count in DEVICES
    ]


def _run(row: dict[str, Any], images: int, count: int) -> dict[str, Any]:
    """What all images cost on so many devices."""
    batches = -(-images // (PER_DEVICE * count))
    p, groups = row["largest_rows"], row["groups"]
    sums = [(nbytes, -(-batches // several)) for nbytes, several in row["refits"]]
    moments = sum(nbytes * times for nbytes, times in sums)
    return {
        "devices": count,
        "batches": batches,
        "reductions": (batches + 1) * groups + 3 * sum(times for _, times in sums),
        "reduced": batches * row["sum_bytes"] + moments,
        "to_host": moments,
        "images_in": images * row["image_bytes"] / count,
        "activations": -(-images // count) * row["alive_bytes"],
        "device_moments": 2 * 4 * p * p,
        "host_moments": 8 * 5 * p * p,
    }


def _bytes(count: float) -> str:
    """For people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB" if count < 999.5 else f"{count / 1000:.3g} PB"


def columns(result: dict[str, Any]) -> Lines:
    """docs/scale.md's table."""
    whats = {"none": "selection", "lsq": "with repair"}
    shown = {
        "network": lambda r: f"{r['network']}, {whats[r['repair']]}",
        "devices": lambda r: r["devices"],
        "batches B": lambda r: f"{r['batches']:,}",
        "reductions": lambda r: f"{r['reductions']:,}",
        "summed": lambda r: _bytes(r["reduced"]),
        "moments to the host": lambda r: _bytes(r["to_host"]),
        "images in": lambda r: _bytes(r["images_in"]),
        "activations": lambda r: _bytes(r["activations"]),
        "weights": lambda r: _bytes(r["weight_bytes"]),
        "moments": lambda r: _bytes(r["device_moments"]),
        "of the host": lambda r: _bytes(r["host_moments"]),
        "moments' multiply-adds": lambda r: f"{r['moments_macs'] / r['macs']:.0%}",
    }
    return table(_of_devices(result), shown)


def checked(result: dict[str, Any]) -> Lines:
    """Formula and programs, byte for byte."""

    def pair(row, kind):
        expected, found = row["expected"][kind], row["found"][kind]
        return f"{expected:,}" + ("" if found == expected else f" ≠ {found:,}")

    shown = {
        "network": lambda r: f"{r['network']}, {r['repair']}",
        "devices": lambda r: r["devices"],
        "sums of H": lambda r: pair(r, "sum"),
        "residuals": lambda r: pair(r, "squares"),
        "moments": lambda r: pair(r, "moments"),
        "looks for NaN": lambda r: f"{r['found']['forward']:,}",
        "anything else": lambda r: f"{sum(r['other'].values()):,}",
        "reductions": lambda r: f"{r['reductions']:,}",
    }
    return table(result["checked"], shown)


BENCHMARK = Benchmark(
    file="scale.json",
    full=[*SMALL],
    small=["perceptron", "basic blocks"],
    measure=measure,
    tables={"scale": columns, "collectives": checked},
)

if __name__ == "__main__":  # a process of `_apart`
    print(json.dumps(_here(json.loads(sys.argv[1]))))
