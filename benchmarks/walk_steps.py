"""Where the time of selecting goes: the walk's steps, each waited for.

    python benchmarks/walk_steps.py [--small] [--out FILE]

Keep 0.4 in every group, without repair, on images that are on the device. "Equations"
are the network's own, batch by batch; "gather" sums what a criterion asks for; "select"
asks it and measures the residual that the report needs, of 32 images at most.
Waiting after every step costs a little, so the steps together are more than the walk by
itself, which is timed before. Two calls compile first. Weights and
images are random. About three minutes on two CPU cores; --small, half a minute, takes
small networks.
"""

import collections
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import selection_cost
import timing
from selection_cost import Case

from ispasp_jax import report
from ispasp_jax.selection.algorithm_1 import ispasp
from ispasp_jax.walk import engine, streams

#: Column -> the functions that it times.
STEPS = {
    "equations": (streams.Stream, "run"),
    "gather": (engine, "gather"),
    "select": (engine, "select"),
}


class Settings(NamedTuple):
    """What a run measures."""

    cases: tuple[Case, ...]


FULL = Settings(
    tuple(Case(m, 224, 320) for m in ("resnet34", "resnet50", "mobilenetv2"))
)
SMALL = Settings((Case("resnet20", 32, 128),))


@contextlib.contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Adds up the seconds of every step, its results waited for."""
    spent: dict[str, float] = collections.defaultdict(float)

    def timed(name: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            start = time.perf_counter()
            found = jax.block_until_ready(function(*args, **kwargs))
            spent[name] += time.perf_counter() - start
            return found

        return call

    with contextlib.ExitStack() as stack:
        for name, (place, attribute) in STEPS.items():
            function = timed(name, getattr(place, attribute))
            stack.enter_context(mock.patch.object(place, attribute, function))
        yield spent


def measure(settings: Settings) -> dict[str, Any]:
    """Dense pass, walk, and the walk's steps of every case."""
    rows, criterion = [], ispasp(selection_cost.T)
    for case in settings.cases:
        report.say(f"steps: {case.model}, {case.images} images")
        calls = selection_cost.passes(selection_cost.ready(case), criterion)
        timed = timing.turns({name: calls[name] for name in ("dense", "walk")}, 2)
        with watched() as spent:
            whole = timing.seconds(calls["walk"])
        rows.append(
            {
                **case._asdict(),
                "dense": min(timed["dense"]["all"]),
                "walk": min(timed["walk"]["all"]),
                "steps": {name: spent.get(name, 0.0) for name in STEPS},
                "waited_for": whole,
            }
        )
    return {"keep": selection_cost.KEEP, "rows": rows}


def columns(result: dict[str, Any]) -> list[list[str]]:
    """Seconds of each step."""
    steps = result["rows"][0]["steps"]
    lines = [["network", "images", "dense", "walk", *steps, "rest"]]
    for row in result["rows"]:
        seconds = [*row["steps"].values()]
        seconds.append(row["waited_for"] - sum(seconds))
        lines.append(
            [
                f"{row['model']}, {row['pixels']}",
                str(row["images"]),
                *(f"{s:.2f}" for s in (row["dense"], row["walk"], *seconds)),
            ]
        )
    return lines


def main() -> None:
    """Measures, writes, prints."""
    timing.main(__file__, __doc__, measure, (FULL, SMALL), columns)


if __name__ == "__main__":
    main()
