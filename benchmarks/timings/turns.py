"""Calls timed in turns, ratios of their times, and the bytes that they hold."""

import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from ispasp_jax.walk.clocks import Clocks


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
