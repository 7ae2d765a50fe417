"""Which widths are fast on the present device: measured once for its kind, and kept."""

import json
import os
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ispasp_jax import files
from ispasp_jax.budget.latency import seconds

#: Multiples to choose among.
MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 128)
#: Widths that somebody might want; each is rounded up to every multiple.
WANTED = (34, 43, 57, 61, 75, 86, 99, 117)
#: A smaller multiple is taken where the best is no faster than by this share.
SLACK = 0.02
#: Rounds in which all widths take turns.
ROUNDS = 7


def measured(cache: Path | None = None) -> int:
    """The multiple that widths are best rounded up to on the present device.

    The smallest whose widths are, on average over those that somebody might want, as
    fast as with any other: a device that computes 57 channels as 64 wants 64.

    Args:
      cache: where it is kept by kind of device; None: ispasp_jax/rounding.json in the
        user's cache folder (XDG_CACHE_HOME).
    """
    path = cache or _place()
    kind = f"{jax.devices()[0].device_kind}, jax {jax.__version__}"
    known = _read(path)
    if kind not in known:
        tried = {_up(width, multiple) for width in WANTED for multiple in MULTIPLES}
        known = {**known, kind: best(times(tried))}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_text(path, json.dumps(known, indent=1))
        except OSError:
            pass  # measured again the next time
    return known[kind]


def best(milliseconds: Mapping[int, float]) -> int:
    """The multiple for these times by width."""
    means = {
        multiple: statistics.mean(milliseconds[_up(w, multiple)] for w in WANTED)
        for multiple in MULTIPLES
    }
    limit = (1 + SLACK) * min(means.values())
    return next(multiple for multiple, mean in means.items() if mean <= limit)


def times(widths: Iterable[int]) -> dict[int, float]:
    """Milliseconds of a 3x3 convolution from and to so many channels; the widths take
    turns, and the least of each counts."""
    result: dict[int, float] = {}
    calls = {width: _convolution(width) for width in sorted(widths)}
    for _ in range(ROUNDS):
        for width, (function, arrays) in calls.items():
            now = 1e3 * seconds(function, *arrays, repeats=1)
            result[width] = min(now, result.get(width, np.inf))
    return result


def _convolution(width: int):
    numbers = ("NHWC", "HWIO", "NHWC")
    function = jax.jit(
        lambda x, w: jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=numbers
        )
    )
    return function, (jnp.ones((8, 14, 14, width)), jnp.ones((3, 3, width, width)))


def _up(width: int, multiple: int) -> int:
    return -(-width // multiple) * multiple


def _place() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "ispasp_jax" / "rounding.json"


def _read(path: Path) -> dict[str, int]:
    """What is known; a file that is none is as if it were not there."""
    try:
        result = json.loads(path.read_text())
        return {str(k): v for k, v in result.items() if v in MULTIPLES}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
