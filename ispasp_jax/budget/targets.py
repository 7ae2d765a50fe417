"""What a budget asks, as users and flags write it."""

import dataclasses
import math
import numbers
from typing import Any, NamedTuple

from ispasp_jax.budget import rounding
from ispasp_jax.errors import InputError

#: Targets, and what a number without a percent sign counts.
KINDS = {"macs": "multiply-adds", "params": "parameters", "latency": "ms"}

#: What widths are multiples of where nothing is said, and the group is not narrow: on a
#: CPU such networks are much faster than those of any widths (benchmarks/README.md).
_REGULAR = 8


def regular(width: int) -> int:
    """What the channels of a group of this width are a multiple of where nothing is
    said: 8, or the largest power of two in a quarter of the width.

    With 8 alone a group of 16 keeps a half at least, and wider ones have to give what
    it does not, far more than is best.
    """
    quarter = max(width // 4, 1)
    return min(_REGULAR, 1 << (quarter.bit_length() - 1))


class Target(NamedTuple):
    """A cost that is not to be exceeded.

    Attributes:
      kind: of KINDS.
      value: a share of the dense network's, or in the kind's unit.
      relative: which.
    """

    kind: str
    value: float
    relative: bool

    def limit(self, full: float) -> float:
        """The target in the kind's unit, for a network that costs `full`."""
        return self.value * full if self.relative else self.value


class Asked(NamedTuple):
    """What a budget asks.

    Attributes:
      targets: all of them are met.
      tolerance: the largest ‖V‖/‖U‖ of any group; without targets, groups are cut as
        far as it allows.
      min_channels: fewer never stay (a group that has fewer keeps all).
      round_to: widths are multiples of this, or the dense one; None: of `regular`.
      removable: groups that may keep none, the only ones of a branch that goes then.
    """

    targets: tuple[Target, ...] = ()
    tolerance: float | int | None = None
    min_channels: int = 1
    round_to: int | None = 1
    removable: frozenset[str] = frozenset()

    def multiple(self, width: int) -> int:
        """What the channels of a group of this width are a multiple of."""
        return regular(width) if self.round_to is None else self.round_to


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a pruned model may cost; groups become narrower so that the least is lost.

    Attributes:
      macs: multiply-adds: a share of the dense model's ("47%"), or how many ("25M", or
        a number).
      params: parameters, in the same way.
      latency_ms: milliseconds of a batch on the present device, or a share ("60%").
      tolerance: the largest predicted residual of any group, from 0 to 1; without a
        target, groups are cut as far as it allows.
      round_to: widths are multiples of this, or the dense one; "auto": what suits the
        present device; None: 8, of groups narrower than 32 less (a quarter of their
        width at most).
      min_channels: a group never has fewer.
      depth: whether branches may go whole (`print(trace(...))` names them): those whose
        channels are one group.

    Raises:
      InputError: nothing is asked for, or a value is none of these.
    """

    macs: str | float | int | None = None
    params: str | float | int | None = None
    latency_ms: str | float | int | None = None
    tolerance: float | int | None = None
    round_to: int | str | None = None
    min_channels: int = 1
    depth: bool = False

    def __post_init__(self):
        if not self._targets() and self.tolerance is None:
            raise InputError(
                "a budget without macs, params, latency_ms or tolerance asks for "
                "nothing; give one of them."
            )
        if self.tolerance is not None and not _is_number(self.tolerance, 0, 1):
            raise InputError(
                f"the budget's tolerance is {self.tolerance!r}; expected a number from "
                "0 to 1."
            )
        for name in ("round_to", "min_channels"):
            value = getattr(self, name)
            whole = isinstance(value, numbers.Integral) and _is_number(value, 1)
            if not (whole or (name == "round_to" and value in ("auto", None))):
                also = ' or "auto"' if name == "round_to" else ""
                raise InputError(
                    f"the budget's {name} is {value!r}; expected a whole number above "
                    f"0{also}."
                )

    @property
    def asked(self) -> Asked:
        """The same as `solve` takes it; "auto" measures the present device."""
        round_to = rounding.measured() if self.round_to == "auto" else self.round_to
        whole = None if round_to is None else int(round_to)
        return Asked(self._targets(), self.tolerance, self.min_channels, whole)

    def _targets(self) -> tuple[Target, ...]:
        given = {"macs": self.macs, "params": self.params, "latency": self.latency_ms}
        return tuple(
            _target(kind, value) for kind, value in given.items() if value is not None
        )


def _target(kind: str, value: str | float) -> Target:
    """A target from an argument of `Budget`."""
    if isinstance(value, str):
        try:
            return target(f"{kind}={value}")
        except InputError:
            pass
    elif _is_number(value, 0, math.inf) and 0 < value < math.inf:
        return Target(kind, float(value), False)
    name, example = {"latency": ("latency_ms", "8.0")}.get(kind, (kind, '"25M"'))
    raise InputError(
        f"the budget's {name} is {value!r}; expected a share of the dense model's up "
        f'to 100%, such as "47%", or a number such as {example}.'
    )


def _is_number(value: Any, low: float, high: float = math.inf) -> bool:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    number: Any = value  # numbers.Real does not say that it is ordered
    return low <= number <= high


def target(text: str) -> Target:
    """Reads macs=60%, params=1.2M, latency=8ms.

    Raises:
      InputError: it is something else.
    """
    kind, _, amount = text.partition("=")
    units = {"%": 0.01, "K": 1e3, "k": 1e3, "M": 1e6, "G": 1e9, "": 1.0}
    if kind == "latency":
        units = {"%": 0.01, "us": 1e-3, "ms": 1.0, "s": 1e3}
    unit = next((u for u in units if u and amount.endswith(u)), "")
    try:
        value = float(amount.removesuffix(unit)) * units[unit]
        if kind not in KINDS or not 0 < value < math.inf:
            raise ValueError
        if unit == "%" and value > 1:
            raise ValueError
    except (KeyError, ValueError):
        raise InputError(
            f"{text!r} is no target; expected macs=, params= or latency= "
            "and a share up to 100%, or a number such as 25M (latency: 8ms)."
        ) from None
    return Target(kind, value, unit == "%")
