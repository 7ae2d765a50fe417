"""Seconds by what they were spent on, compilation apart."""

import collections
import contextlib
import time
from collections.abc import Iterator

import jax

#: What jax says that it has spent on programs: tracing, lowering, compiling.
_EVENTS = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)
_compiled = 0.0


def _listen(event: str, duration_secs: float, **_: str | int) -> None:
    global _compiled
    if event in _EVENTS:
        _compiled += duration_secs


jax.monitoring.register_event_duration_secs_listener(_listen)


class Clocks:
    """Adds up seconds by name; of nested ones, each second counts once.

    Attributes:
      seconds: by name, compilation apart: as "compilation of NAME".
    """

    def __init__(self, start: dict[str, float] | None = None):
        self.seconds = collections.defaultdict(float, start or {})
        self._running: list[str] = []
        self._since = time.perf_counter()
        self._before = _compiled

    @contextlib.contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Counts what happens inside under a name."""
        self._charge()
        self._running.append(name)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def _charge(self) -> None:
        now, compiled = time.perf_counter(), _compiled
        if self._running:
            spent = compiled - self._before
            self.seconds[self._running[-1]] += now - self._since - spent
            self.seconds[f"compilation of {self._running[-1]}"] += spent
        self._since, self._before = now, compiled

    def so_far(self) -> dict[str, float]:
        """Seconds by name up to now."""
        self._charge()
        return dict(self.seconds)
