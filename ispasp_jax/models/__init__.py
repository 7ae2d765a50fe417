"""The registry: an architecture is a file with a table MODELS, found by name.

A name `package.module:function` is a user's own: function(num_classes=..., **options)
returns a Linen, NNX or Equinox module, or a pair: a Haiku transform or a function of
(variables, inputs), and its variables.
"""

import functools
import importlib
import inspect
import numbers
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

import flax.linen as nn
import jax

from ispasp_jax.errors import InputError
from ispasp_jax.graph import adapters
from ispasp_jax.models import bert, mlp, mobilenetv2, resnet, vit

ARCHITECTURES = (mlp, resnet, mobilenetv2, vit, bert)


def _gathered(table: str) -> dict[Any, Any]:
    """What the architectures' tables of that name say, by model (or its class)."""
    return {
        model: entry
        for module in ARCHITECTURES
        for model, entry in getattr(module, table, {}).items()
    }


#: Makers, the paper's ratios, and where a model differs from the common defaults.
MODELS: dict[str, Callable[..., nn.Module]] = _gathered("MODELS")
PAPER: dict[str, dict[str, float]] = _gathered("PAPER")
PREPROCESSING: dict[str, dict[str, Any]] = _gathered("PREPROCESSING")
WEIGHT_DECAY: dict[str, float] = _gathered("WEIGHT_DECAY")
#: Globs over groups that stay whole unless they are asked for.
IGNORE: dict[str, tuple[str, ...]] = _gathered("IGNORE")
#: By class, what gives other names of the layers.
ALIASES: dict[type, Callable[[Any], dict[str, str]]] = _gathered("ALIASES")
#: By class, how names of arrays begin that its files hold and it does not need.
BESIDE: dict[type, tuple[str, ...]] = _gathered("BESIDE")
#: What gives the options that arrays tell of, by their names and shapes.
KNOWN: dict[str, Callable[[Any], dict[str, Any]]] = _gathered("KNOWN")
#: Learning rate at batches of 256, of the networks that AdamW trains.
ADAMW: dict[str, float] = _gathered("ADAMW")
#: timm's names of the networks that are ours in every number.
TIMM: dict[str, tuple[str, ...]] = _gathered("TIMM")


def factory(name: str) -> Callable[..., Any]:
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
        result = getattr(importlib.import_module(module), function)
        inspect.signature(result)
    except Exception as error:  # whatever the user's module raises
        raise InputError(
            f"model {name!r} cannot be imported ({type(error).__name__}: {error}); "
            "expected package.module:function with the module on PYTHONPATH."
        ) from error
    return result


def options(name: str) -> tuple[str, ...]:
    """The options beyond num_classes that the architecture's function names."""
    known = inspect.signature(factory(name)).parameters
    return tuple(option for option in known if option != "num_classes")


def create(name: str, num_classes: int, **given) -> Any:
    """The named architecture, dense: a Linen module, or what a user's function returns.

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
    if not _is_model(network):
        raise InputError(
            f"model {name!r} returned {type(network).__name__}; expected a Linen, NNX "
            "or Equinox module, or a pair (Haiku transform or function of (variables, "
            "inputs), its variables)."
        )
    return network


def _is_model(made: Any) -> bool:
    """Whether it is a module, a pytree that is called, or a pair that begins so."""
    if isinstance(made, tuple) and len(made) == 2:
        return callable(getattr(made[0], "apply", made[0])) and made[1] is not None
    return callable(made) and not inspect.isroutine(made) and not inspect.isclass(made)


def aliases(network: Any) -> dict[str, str]:
    """Other names of a shipped network's layers (timm's, Flax's, earlier ones): theirs
    -> ours, both joined with dots."""
    result = [names for kind, names in ALIASES.items() if isinstance(network, kind)]
    return result[0](network) if result else {}


def beside(network: Any) -> tuple[str, ...]:
    """How names of arrays begin that its files may hold and it does not need."""
    result = [names for kind, names in BESIDE.items() if isinstance(network, kind)]
    return result[0] if result else ()


def inputs(input_shape: tuple[int, ...], count: int = 1) -> jax.ShapeDtypeStruct:
    """A batch of so many inputs.

    Args:
      input_shape: (height, width, channels) of an image, or (tokens,) of a text, which
        are whole numbers.
      count: how many.
    """
    kind = "int32" if len(input_shape) == 1 else "float32"
    return jax.ShapeDtypeStruct((count, *input_shape), kind)


def shapes(network: nn.Module, input_shape: tuple[int, ...]) -> dict[str, Any]:
    """The network's variables as jax.ShapeDtypeStruct, without computing anything.

    Args:
      network: a Linen module.
      input_shape: of one input, as `inputs` takes it.
    """
    init = functools.partial(adapters.initialise, network)
    return jax.eval_shape(init, jax.random.key(0), inputs(input_shape))


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
    "ADAMW",
    "ALIASES",
    "ARCHITECTURES",
    "BESIDE",
    "IGNORE",
    "KNOWN",
    "MODELS",
    "PAPER",
    "PREPROCESSING",
    "TIMM",
    "WEIGHT_DECAY",
    "aliases",
    "beside",
    "create",
    "factory",
    "inputs",
    "options",
    "shapes",
]
