"""What the timing benchmarks share: calls in turns, random networks, a file of JSON."""

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import rows

from ispasp_jax import devices, models, report
from ispasp_jax.walk.clocks import Clocks

SEED = 0


def arguments(doc: str, name: str, argv: Sequence[str] | None = None):
    """--small and --out; a small run leaves the full one's file alone."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="under a minute")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=f"where the JSON goes; default: benchmarks/results/{name}.json, and "
        "nowhere with --small",
    )
    args = parser.parse_args(argv)
    if args.out is None and not args.small:
        args.out = rows.RESULTS / f"{name}.json"
    return args


def main(
    file: str,
    doc: str,
    measure: Callable[[Any], dict[str, Any]],
    settings: tuple[Any, Any],
    table: Callable[[dict[str, Any]], str | list[list[Any]]],
) -> None:
    """A timing benchmark's command: measures, writes, prints.

    Args:
      file: its __file__.
      doc: its docstring.
      measure: settings -> what it found.
      settings: of a full run, and of a small one.
      table: of the result, or its lines.
    """
    devices.keep_freed_memory()  # as the commands do
    name = Path(file).stem
    args = arguments(doc, name)
    result = {**header(name, args.small), **measure(settings[args.small])}
    write(args.out, result)
    found = table(result)
    print(found if isinstance(found, str) else report.table(found))


def header(name: str, small: bool = False) -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "command": f"python benchmarks/{name}.py" + " --small" * small,
        "device": report.device(),
        "backend": jax.default_backend(),
        "versions": report.versions(),
        "seed": SEED,
        "data": "random images, random weights",
    }


def write(file: Path | None, result: Mapping[str, Any]) -> None:
    """The result as JSON, whole or not at all."""
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.write_text(json.dumps(result, indent=1) + "\n")
    new.replace(file)


def seconds(function: Callable[[], Any]) -> float:
    """Seconds of a call, its results waited for."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def turns(
    functions: Mapping[str, Callable[[], Any]],
    repeats: int,
    warm_up: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Times functions that take turns, after a call of each that compiles, so that what
    else the machine does slows all of them alike.

    Args:
      functions: what to time, by name.
      repeats: how many turns.
      warm_up: what compiles the same in less time; the functions themselves if None.

    Returns by name: seconds (median), min, max, all of them; the first call's, and how
    much of that was tracing and compiling.
    """
    result = {}
    for name, function in (warm_up or functions).items():
        clocks = Clocks()
        with clocks.on("call"):
            first = seconds(function)
        compiling = clocks.so_far()["compilation of call"]
        result[name] = {"first_call_s": first, "compile_s": compiling}
    times = [[seconds(call) for call in functions.values()] for _ in range(repeats)]
    for name, column in zip(functions, zip(*times, strict=True), strict=True):
        result[name] |= {
            "seconds": statistics.median(column),
            "min": min(column),
            "max": max(column),
            "all": list(column),
        }
    return result


def ratio(timed: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, float]:
    """Median, least and largest ratio of two functions' times, turn by turn."""
    ratios = [a / b for a, b in zip(timed["all"], base["all"], strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def spread(median: float, low: float, high: float, form: str = ".2f") -> str:
    """A median with its range, for a table."""
    return f"{median:{form}} ({low:{form}}–{high:{form}})"


def peaks(functions: Mapping[str, Callable[[], Any]]) -> dict[str, int] | None:
    """The most bytes held in each call, one after the other, beyond what was held
    "before"; None where the backend does not count. Peaks only grow: a function that
    needs less than one before it shows that one's.
    """
    before = _peak()
    if before is None:
        return None
    result = {"before": before}
    for name, function in functions.items():
        jax.block_until_ready(function())
        result[name] = _peak() - before
    return result


def _peak() -> int | None:
    stats = jax.devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    if jax.default_backend() != "cpu" or sys.platform != "linux":
        return None
    # Not getrusage's: a process starts with its parent's there.
    (peak,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(peak)


def random_variables(network: nn.Module, shape: tuple[int, ...]) -> dict:
    """Variables whose activations neither vanish nor explode, and whose channels differ
    as those of a trained network do, so that no two scores tie.
    """
    rng = np.random.default_rng(SEED)

    def draw(path, leaf):
        kind = path[-1].key
        if kind == "kernel":
            deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            array = rng.standard_normal(leaf.shape, np.float32) * deviation
        elif kind in ("scale", "var"):
            array = rng.uniform(0.5, 1.0, leaf.shape)
        else:
            array = 0.2 * rng.standard_normal(leaf.shape)
        return jax.device_put(np.asarray(array, np.float32))

    return jax.tree_util.tree_map_with_path(draw, models.shapes(network, shape))


def random_batches(
    images: int, batch_size: int, shape: tuple[int, ...]
) -> list[jax.Array]:
    """Standard normal images on the device; the batch size divides their number."""
    keys = jax.random.split(jax.random.key(SEED), images // batch_size)
    return [jax.random.normal(key, (batch_size, *shape)) for key in keys]
