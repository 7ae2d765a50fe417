"""What a run tells of itself, to whoever listens: a terminal, if nobody else does."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any

from ispasp_jax.report.events import Event, Kind, Listener
from ispasp_jax.report.listeners import words

_listeners: Sequence[Listener] = (words(),)

#: Stages that have begun and not ended, the outermost first.
_open: list[str] = []


@contextlib.contextmanager
def audience(*listeners: Listener) -> Iterator[None]:
    """Inside it, these listen and nobody else.

    Args:
      *listeners: report.listeners makes some; none: nothing is told.
    """
    global _listeners
    before, _listeners = _listeners, listeners
    try:
        yield
    finally:
        _listeners = before


def tell(kind: Kind, **values: Any) -> None:
    """Tells what happened; of several processes the first does.

    Args:
      kind: of report.events.
      **values: what that has there.
    """
    from ispasp_jax import devices

    if devices.is_first():
        for listener in _listeners:
            listener(Event(kind, values))


def say(text: str) -> None:
    """A line for the person who waits."""
    tell("note", text=text)


@contextlib.contextmanager
def stage(
    label: str, total: int | None = None, done: int = 0
) -> Iterator[Callable[[], None]]:
    """A part of a run that takes a while.

    Args:
      label: what is done in it.
      total: how many steps it has, if that is known.
      done: steps that are behind it when it begins.

    Yields:
      What to call after every step.
    """
    start, before = time.perf_counter(), done
    values: dict[str, Any] = {"stage": label, "depth": len(_open)}
    _open.append(label)

    def step() -> None:
        nonlocal done
        done += 1
        spent = time.perf_counter() - start
        left = None if total is None else spent / (done - before) * (total - done)
        tell("step", **values, done=done, total=total, seconds=spent, left=left)

    tell("begin", **values, done=done, total=total)
    try:
        yield step
    finally:
        _open.remove(label)
        spent = time.perf_counter() - start
        tell("end", **values, done=done, total=total, seconds=spent, left=None)


def track(items: Iterable, label: str, total: int | None = None) -> Iterator:
    """The items themselves, as the steps of a stage.

    Args:
      items: what is gone through.
      label: what is done with them.
      total: how many they are, where they do not say so themselves.
    """
    with stage(label, len(items) if isinstance(items, Sized) else total) as step:
        for item in items:
            yield item
            step()
