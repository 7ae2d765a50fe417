"""What devices tell each other in a walk, read from the programs that it compiles.

Every program that a walk runs on batches is compiled again for the arguments that it
was called with, and its text is searched for XLA's collective operations. On a CPU the
products of second moments are the host's; here they are the devices', as elsewhere.
What is left out is summed outside of these programs: examples' weights, a scalar each.
"""

import collections
import contextlib
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from ispasp_jax.walk import moments, pieces

_BYTES = {"f64": 8, "s64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2}
_NAMES = "all-reduce all-gather all-to-all collective-permute reduce-scatter"
_OPERATION = re.compile(
    rf"= (?P<shape>\S+|\(.*?\)) (?P<name>{'|'.join(_NAMES.split())})(?:-start)?\("
)
_ARRAY = re.compile(r"(?P<dtype>\w+)\[(?P<sides>[\d,]*)\]")


class Collective(NamedTuple):
    """A collective operation.

    Attributes:
      name: as XLA has it.
      nbytes: of what it gives each device.
    """

    name: str
    nbytes: int


def of(text: str) -> list[Collective]:
    """The collective operations of a compiled program's text."""
    return [
        Collective(found["name"], _nbytes(found["shape"]))
        for found in _OPERATION.finditer(text)
    ]


def _nbytes(shape: str) -> int:
    """Bytes of an array or a tuple, as XLA writes its shape."""
    return sum(
        math.prod(map(int, filter(None, found["sides"].split(","))))
        * _BYTES.get(found["dtype"], 1)
        for found in _ARRAY.finditer(shape)
    )


class Record:
    """What was run, and what that says between devices.

    Attributes:
      calls: how often each program was run, by kind and number.
      programs: the collectives of each.
    """

    def __init__(self):
        self.calls: collections.Counter[tuple[str, int]] = collections.Counter()
        self.programs: list[list[Collective]] = []
        self._known: dict[Any, int] = {}

    def watched(self, kind: str, run: Callable) -> Callable:
        """The jitted function, its calls noted."""

        def noted(*arguments):
            leaves, tree = jax.tree.flatten(arguments)
            kinds = tuple(
                (jax.typeof(leaf).str_short(), getattr(leaf, "sharding", None))
                for leaf in leaves
            )
            key = run, tree, kinds
            if key not in self._known:
                self._known[key] = len(self.programs)
                self.programs.append(of(run.lower(*arguments).compile().as_text()))
            self.calls[kind, self._known[key]] += 1
            return run(*arguments)

        return noted

    def total(self) -> dict[str, dict[str, collections.Counter]]:
        """Operations and bytes of every collective, by kind of program."""
        result = {}
        for (kind, number), count in self.calls.items():
            own = result.setdefault(
                kind,
                {"operations": collections.Counter(), "bytes": collections.Counter()},
            )
            for one in self.programs[number]:
                own["operations"][one.name] += count
                own["bytes"][one.name] += count * one.nbytes
        return result


class _Watched(dict):
    """Jitted functions by key, watched as they are put in."""

    def __init__(self, record: Record):
        super().__init__()
        self._record = record

    def __setitem__(self, key, run):
        super().__setitem__(key, self._record.watched(key[0], run))


@contextlib.contextmanager
def recorded() -> Iterator[Record]:
    """The record of all that walks run inside, as on a device that is no CPU."""
    record = Record()
    before = pieces._COMPILED, moments._on_devices, moments._on_host
    pieces._COMPILED = _Watched(record)
    moments._on_devices = record.watched("moments", moments._on_devices)
    moments._on_host = lambda patches: False
    try:
        yield record
    finally:
        pieces._COMPILED, moments._on_devices, moments._on_host = before
