"""A criterion: a function of what it asks of a group, and its options.

    @criterion
    def mine(hidden, size, *, power: int = 2):
        return by_score((hidden**power).sum((0, 1, 2)), size)

    mine(), mine(3), mine(power=3)

The parameters in front of the star say what the walk gathers: fields of a Problem, and
`size`. Those behind it are the options, with their defaults.
"""

import dataclasses
import functools
import inspect
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from ispasp_jax.errors import InputError
from ispasp_jax.selection.problem import (
    LABELLED,
    Problem,
    Selection,
    Size,
    channels,
    check_hidden,
    check_size,
)

#: A count, or a number of 0 or more.
Option = int | float


@dataclasses.dataclass(frozen=True)
class Criterion:
    """A way to select. Two are equal where function and options are, so that jit, which
    takes one for static, compiles once.

    Attributes:
      function: (fields of a Problem by name, size, **options) -> Selection; pure,
        traceable by jit and vmap.
      options: by name.

    Raises:
      InputError: the function asks for what is no field of a Problem; when it is
        called: a field that it needs is missing, or the size is not one of the
        problem's.
    """

    function: Callable[..., Selection]
    options: tuple[tuple[str, Option], ...] = ()

    def __post_init__(self):
        if not callable(self.function):
            raise InputError(
                "a criterion is a function of fields of a problem and size; got "
                f"{self.function!r}."
            )
        if "size" not in _parameters(self.function):
            raise InputError(
                "a criterion's function has to take size, the number of channels to "
                "keep."
            )
        if unknown := self.needs - {*Problem._fields}:
            raise InputError(
                f"a criterion cannot ask for {', '.join(map(repr, sorted(unknown)))}; "
                f"a problem has {', '.join(Problem._fields)} (options stand behind a "
                "star)."
            )

    @functools.cached_property
    def needs(self) -> frozenset[str]:
        """Names of Problem fields. The walk gathers these and no others."""
        return frozenset(_parameters(self.function)) - {"size"}

    @property
    def labels(self) -> bool:
        """Whether the images have to come with labels."""
        return bool(self.needs & LABELLED)

    def __call__(self, problem: Problem, size: Size) -> Selection:
        given = {name: getattr(problem, name) for name in sorted(self.needs)}
        missing = [name for name, value in given.items() if value is None]
        if missing:
            raise InputError(
                f"this criterion needs {', '.join(given)}; the problem has no "
                f"{', '.join(missing)}."
            )
        if problem.hidden is not None and "hidden" in given:
            check_hidden(problem.hidden)
            check_size(size, problem.hidden.shape[-1])
        elif problem.producer is not None and "producer" in given:
            check_size(size, channels(problem.producer))
        elif problem.gradient is not None and "gradient" in given:
            check_size(size, problem.gradient.shape[-1])
        return self.function(**given, size=size, **dict(self.options))

    def __str__(self) -> str:
        name = getattr(self.function, "__name__", repr(self.function))
        return f"{name}({', '.join(f'{key}={value}' for key, value in self.options)})"


class Factory:
    """What `criterion` makes of a function: called with options, it gives a Criterion.

    Attributes:
      name: the function's.
      defaults: of its options.
    """

    def __init__(self, function: Callable[..., Selection]):
        functools.update_wrapper(self, function)
        self.name: str = function.__name__
        options = [
            parameter.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        ]
        self.defaults: Mapping[str, Option] = {p.name: p.default for p in options}
        self.__signature__ = inspect.Signature(options)
        self._function = function
        self()  # what it cannot ask for is said where it is written

    def __call__(self, *args: Any, **options: Any) -> Criterion:
        """The criterion with these options, each a number of its default's kind.

        Raises:
          InputError: an option is none.
        """
        bound = self.__signature__.bind(*args, **options)
        bound.apply_defaults()
        given = (
            (name, _option(name, value, type(self.defaults[name])))
            for name, value in bound.arguments.items()
        )
        return Criterion(self._function, tuple(given))

    def __repr__(self) -> str:
        return f"<criterion {self.name}{self.__signature__}>"


def criterion(function: Callable[..., Selection]) -> Factory:
    """Makes a function a criterion's factory; a decorator.

    Args:
      function: of fields of a Problem, by name, and `size`, the number of channels to
        keep; behind a star its options, numbers with defaults. Pure, traceable by jit
        and vmap.

    Returns:
      Called with options, a Criterion.

    Raises:
      InputError: the function asks for what is no field of a Problem, or not for size.
    """
    return Factory(function)


def _parameters(function: Callable[..., Any]) -> list[str]:
    """What a criterion's function takes of a problem, and `size`."""
    return [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]


def _option(name: str, value: Any, kind: type) -> Option:
    if kind is int:
        return check_count(name, value)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise InputError(f"{name} must be a finite number of 0 or more; got {value!r}.")
    return number


def check_count(name: str, value: Any) -> int:
    """The value as an int.

    Raises:
      InputError: it is not an integer of 1 or more.
    """
    try:
        count = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = 0
    if count < 1:
        raise InputError(f"{name} must be an integer of 1 or more; got {value!r}.")
    return count
