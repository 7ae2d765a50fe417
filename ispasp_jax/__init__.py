"""Structured pruning of trained networks by i-SpaSP, in pure JAX.

Everything here loads when it is first used, so that importing the package, or asking a
command for --help, costs nothing.
"""

import importlib
import sys
import types
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "prune": "pruning",
    "Pruned": "pruning",
    "algorithm_1": "ispasp",
    "ispasp": "ispasp",
    "Criterion": "problem",
    "Problem": "problem",
    "Selection": "problem",
    "batch_sum": "problem",
    "Budget": "targets",
    "Group": "groups",
    "take": "groups",
    "mask": "groups",
    "take_optimizer": "optimizers",
    "trace": "graph",
    "narrow": "graph",
    "check": "pruning",
    "load": "checkpoints",
    "save": "checkpoints",
    "Model": "checkpoints",
    "InputError": "errors",
}

_MODULES = (
    *("budget", "criteria", "data", "devices", "graph", "models", "plan"),
    *("training", "walk", "weights"),
)

__all__ = ["__version__", *_WHERE, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)


class _Package(types.ModuleType):
    """The package, in which a public name is one object for good: importing the module
    `ispasp_jax.ispasp` does not put itself in the place of the function.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _WHERE and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted(__all__)
