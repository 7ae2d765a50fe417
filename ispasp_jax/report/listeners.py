"""Who listens to a run: a terminal, a log, a program, TensorBoard.

Each factory gives a listener of its own memory. What people read while they wait is on
stderr, results are on stdout.
"""

import contextlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from ispasp_jax.errors import InputError
from ispasp_jax.numerals import numeral
from ispasp_jax.report.events import Event, Listener
from ispasp_jax.report.tables import plan_summary, summary

#: Seconds between two words of one stage, in a log and to a program.
_LOG_EVERY, _PROGRAM_EVERY = 10.0, 1.0


def words() -> Listener:
    """Bars on a terminal, else plain lines."""
    plain, drawn = lines(), bars()

    def hear(event: Event) -> None:
        (drawn if sys.stderr.isatty() else plain)(event)

    return hear


def bars() -> Listener:
    """A line a stage with a bar and the time left, on stderr. It stays when the stage
    is done; that of a stage inside another goes.
    """
    from tqdm import tqdm

    shown: dict[str, tqdm] = {}

    def hear(event: Event) -> None:
        kind, values = event
        match kind:
            case "begin":
                inner = values["depth"] > 0
                shown[values["stage"]] = tqdm(
                    desc=values["stage"],
                    initial=values["done"],
                    total=values["total"],
                    leave=not inner,
                    dynamic_ncols=True,
                    file=sys.stderr,
                )
            case "step":
                bar = shown[values["stage"]]
                bar.update(values["done"] - bar.n)
            case "epoch" if values["stage"] in shown:
                loss = numeral(values["loss"])
                shown[values["stage"]].set_postfix_str(f"loss {loss}")
            case "end":
                shown.pop(values["stage"]).close()
            case _ if text := _sentence(event):
                tqdm.write(text, file=sys.stderr)

    return hear


def lines() -> Listener:
    """Plain lines on stderr; of a stage that takes long, one now and then."""
    due = _Due(_LOG_EVERY)

    def hear(event: Event) -> None:
        kind, values = event
        text = _sentence(event)
        if kind in ("begin", "step", "end"):
            told = due.told(values["stage"])
            text = _progress(event) if due(event) and (kind == "step" or told) else None
        if text is not None:
            print(text, file=sys.stderr, flush=True)

    return hear


def tables() -> Listener:
    """Results for people, on stdout."""

    def hear(event: Event) -> None:
        if event.kind == "report":
            print(summary(event.values), flush=True)
        elif event.kind == "plan":
            print(plan_summary(event.values), flush=True)

    return hear


def json_lines() -> Listener:
    """All as JSON on stdout, an object a line with its kind as "event"; of the steps of
    a stage at most one a second.
    """
    due = _Due(_PROGRAM_EVERY)

    def hear(event: Event) -> None:
        if due(event):
            print(json.dumps({"event": event.kind, **event.values}), flush=True)

    return hear


@contextlib.contextmanager
def scalars(folder: Path) -> Iterator[Listener]:
    """Losses, scores and costs as TensorBoard shows them.

    Args:
      folder: where TensorBoard is pointed to; written with the first number.

    Raises:
      InputError: the extra [tensorboard] is not installed.
    """
    if importlib.util.find_spec("tensorboardX") is None:
        raise InputError(
            "writing for TensorBoard needs the package tensorboardX; run pip install "
            "'ispasp_jax[tensorboard]'."
        )
    from tensorboardX import (
        SummaryWriter,  # pyright: ignore[reportMissingImports]  # an extra
    )

    opened = []

    def hear(event: Event) -> None:
        found = _numbers(event)
        if found and not opened:
            opened.append(SummaryWriter(str(folder)))
        for name, (step, value) in found.items():
            opened[0].add_scalar(name, value, step)
        if found:
            opened[0].flush()

    try:
        yield hear
    finally:
        for writer in opened:
            writer.close()


class _Due:
    """Whether an event is to be told: of a stage's steps, one in so many seconds."""

    def __init__(self, every: float):
        self._every = every
        self._last: dict[str, float] = {}

    def told(self, stage: str) -> bool:
        """Whether a step of it was."""
        return self._last.get(stage, 0.0) > 0

    def __call__(self, event: Event) -> bool:
        kind, values = event
        if kind == "begin":
            self._last[values["stage"]] = 0.0
        elif kind == "end":
            self._last.pop(values["stage"], None)
        elif kind == "step":
            if values["seconds"] - self._last[values["stage"]] < self._every:
                return False
            self._last[values["stage"]] = values["seconds"]
        return True


def _progress(event: Event) -> str:
    """How far a stage is."""
    values = event.values
    of = "" if values["total"] is None else f"/{values['total']}"
    left = values["left"]
    rest = f", {numeral(left)} s left" if left and event.kind == "step" else ""
    indent = "  " * (1 + values["depth"])
    done = f"{values['done']}{of}, {numeral(values['seconds'])} s"
    return f"{indent}{values['stage']}: {done}{rest}"


def _sentence(event: Event) -> str | None:
    """What is said of an event that is told at once."""
    kind, values = event
    match kind:
        case "note":
            return values["text"]
        case "epoch":
            where = f"epoch {values['epoch']}/{values['epochs']}"
            return f"{values['stage']}: {where}, loss {numeral(values['loss'])}"
        case "score":
            return f"{values['stage']}: top-1 {100 * values['top1']:.2f} %"
    return None


def _numbers(event: Event) -> dict[str, tuple[int, float]]:
    """What TensorBoard is shown of an event: (step, value) by name."""
    kind, values = event
    match kind:
        case "epoch":
            return {f"loss/{values['stage']}": (values["epoch"], values["loss"])}
        case "score":
            stage = values["stage"]
            return {
                f"top1/{stage}": (0, values["top1"]),
                f"test loss/{stage}": (0, values["loss"]),
            }
        case "report":
            return {
                f"{cost}/{network}": (0, values[network][cost])
                for cost in ("macs", "params", "latency_ms")
                for network in ("dense", "pruned")
                if cost in values[network]
            }
    return {}
