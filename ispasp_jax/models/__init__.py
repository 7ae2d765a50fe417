"""The registry: an architecture is a file with a table MODELS, found by name.

A name `package.module:function` is a user's own: function(num_classes=..., **options)
returns a `Network`.
"""

import importlib
import inspect
import numbers
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

from ispasp_jax.errors import InputError
from ispasp_jax.models import mlp, mobilenetv2, resnet
from ispasp_jax.models.network import Block, Head, Network, Part, shapes

ARCHITECTURES = (mlp, resnet, mobilenetv2)


def _gathered(table: str) -> dict[str, Any]:
    """What the architectures' tables of that name say, by model."""
    return {
        model: entry
        for module in ARCHITECTURES
        for model, entry in getattr(module, table, {}).items()
    }


#: Makers, the paper's ratios, and where a model differs from the common defaults.
MODELS: dict[str, Callable[..., Network]] = _gathered("MODELS")
PAPER: dict[str, dict[str, float]] = _gathered("PAPER")
PREPROCESSING: dict[str, dict[str, Any]] = _gathered("PREPROCESSING")
WEIGHT_DECAY: dict[str, float] = _gathered("WEIGHT_DECAY")
#: timm's names of the networks that are ours in every number.
TIMM: dict[str, tuple[str, ...]] = _gathered("TIMM")


def factory(name: str) -> Callable[..., Network]:
    """The function that makes the named architecture.

    Raises:
      InputError: no architecture, or no importable function, has that name.
    """
    if name in MODELS:
        return MODELS[name]
    module, _, function = name.partition(":")
    if not function:
        raise InputError(
            f"unknown model {name!r}; expected one of {', '.join(MODELS)}, or "
            "package.module:function for your own."
        )
    try:
        found = getattr(importlib.import_module(module), function)
        inspect.signature(found)
    except Exception as error:  # whatever the user's module raises
        raise InputError(
            f"model {name!r} cannot be imported ({type(error).__name__}: {error}); "
            "expected package.module:function with the module on PYTHONPATH."
        ) from error
    return found


def options(name: str) -> tuple[str, ...]:
    """The options beyond num_classes that the architecture's function names."""
    known = inspect.signature(factory(name)).parameters
    return tuple(option for option in known if option != "num_classes")


def create(name: str, num_classes: int, **given) -> Network:
    """The named architecture, dense.

    Args:
      name: a key of MODELS, or package.module:function.
      num_classes: length of the logits.
      **given: options, such as stem="small"; those it does not name must be None.

    Raises:
      InputError: unknown name, or an option or value that it does not know.
    """
    make = factory(name)
    wanted = {key: value for key, value in given.items() if value is not None}
    unknown = set(wanted) - set(options(name))
    if unknown:
        shown = sorted(key if key.isprintable() else ascii(key) for key in unknown)
        raise InputError(
            f"model {name!r} has no option {', '.join(shown)}; it takes "
            f"{', '.join(options(name)) or 'none'}."
        )
    wanted = {key: _fitted(make, name, key, value) for key, value in wanted.items()}
    try:
        network = make(num_classes=num_classes, **wanted)
    except InputError:
        raise
    except Exception as error:  # whatever the user's function raises
        raise InputError(
            f"model {name!r} cannot be made with num_classes={num_classes} "
            f"({type(error).__name__}: {error}); expected a function of num_classes."
        ) from error
    if not isinstance(network, Network):
        raise InputError(
            f"model {name!r} returned {type(network).__name__}; expected an "
            "ispasp_jax.models.Network."
        )
    return network


def _fitted(make: Callable, name: str, option: str, value: Any) -> Any:
    """The option's value, as the function's annotation wants it.

    Raises:
      InputError: it is of another kind, as far as an annotation says.
    """
    kind = inspect.signature(make).parameters[option].annotation
    if isinstance(value, list) and get_origin(kind) is tuple:
        value = tuple(value)
    if not _fits(value, kind):
        raise InputError(
            f"model {name!r} cannot be made with {option}={value!r:.100}; expected "
            f"{_described(kind)}."
        )
    return value


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotation's kind; what is not simple passes."""
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if get_origin(kind) is tuple and inner[1:] == (Ellipsis,):
        return isinstance(value, tuple) and all(_fits(v, inner[0]) for v in value)
    if kind is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    return isinstance(value, kind) if kind in (str, bool) else True


def _described(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if kind is int:
        return "a whole number"
    if kind == tuple[int, ...]:
        return "whole numbers"
    return getattr(kind, "__name__", str(kind))


__all__ = [
    "ARCHITECTURES",
    "MODELS",
    "PAPER",
    "PREPROCESSING",
    "TIMM",
    "WEIGHT_DECAY",
    "Block",
    "Head",
    "Network",
    "Part",
    "create",
    "factory",
    "options",
    "shapes",
]
