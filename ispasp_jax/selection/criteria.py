"""Every criterion by name: those that the files of this package define."""

import importlib
import pkgutil
from typing import Any

from ispasp_jax import selection
from ispasp_jax.errors import InputError
from ispasp_jax.selection.criterion import Criterion, Factory


def _found() -> dict[str, Factory]:
    """The paper's first, the others as they are spelt."""
    result = {}
    for file in pkgutil.iter_modules(selection.__path__):
        if file.name == __name__.rpartition(".")[2]:
            continue
        module = importlib.import_module(f"{selection.__name__}.{file.name}")
        result |= {k: v for k, v in vars(module).items() if isinstance(v, Factory)}
    return dict(sorted(result.items(), key=lambda item: (item[0] != "ispasp", item[0])))


#: Every criterion by name.
CRITERIA = _found()


def __getattr__(name: str) -> Any:
    if name in CRITERIA:
        return CRITERIA[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *CRITERIA])


def factory(name: str) -> Factory:
    """What makes the criterion of that name.

    Raises:
      InputError: no criterion has that name.
    """
    if name not in CRITERIA:
        raise InputError(
            f"unknown method {name!r}; expected one of {', '.join(CRITERIA)}."
        )
    return CRITERIA[name]


def create(name: str, **options: Any) -> Criterion:
    """The criterion of that name, with these options.

    Raises:
      InputError: no criterion has that name, or it has no such option.
    """
    make = factory(name)
    if unknown := [option for option in options if option not in make.defaults]:
        raise InputError(
            f"{name} has no option {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(make.defaults) or 'none'}."
        )
    return make(**options)


def of(criterion: "Criterion | Factory | str | None") -> Criterion:
    """The criterion that is meant: itself, its factory with the defaults, or the one of
    that name; i-SpaSP where none is given.

    Raises:
      InputError: it is none of these.
    """
    match criterion:
        case None:
            return create("ispasp")
        case str():
            return create(criterion)
        case Factory():
            return criterion()
        case Criterion():
            return criterion
    raise InputError(
        f"expected a criterion, such as criteria.obs(), or its name; got {criterion!r}."
    )
