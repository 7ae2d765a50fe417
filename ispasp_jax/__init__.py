"""Structured pruning of trained networks by i-SpaSP, in pure JAX.

Everything here loads when it is first used, so that importing the package, or asking a
command for --help, costs nothing.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

#: Where every public name lies; of a module, the module.
_WHERE = {
    "prune": "pruning:prune",
    "Pruned": "pruning:Pruned",
    "check": "pruning:check",
    "algorithm_1": "selection:algorithm_1",
    "ispasp": "selection:ispasp",
    "criterion": "selection:criterion",
    "Criterion": "selection:Criterion",
    "Problem": "selection:Problem",
    "Selection": "selection:Selection",
    "batch_sum": "selection:batch_sum",
    "Budget": "budget:Budget",
    "trace": "graph:trace",
    "narrow": "graph:narrow",
    "Group": "graph.by_hand:Group",
    "take": "graph.by_hand:take",
    "mask": "graph.by_hand:mask",
    "take_optimizer": "graph.optimizers:take_optimizer",
    "load": "weights:load",
    "save": "weights:save",
    "Model": "weights:Model",
    "InputError": "errors:InputError",
    **{name: name for name in ("budget", "data", "devices", "graph", "models")},
    **{name: name for name in ("selection", "training", "walk", "weights")},
    "criteria": "selection.criteria",
    "plan": "graph.plans",
}

__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, thing = _WHERE[name].partition(":")
    found = importlib.import_module(f"{__name__}.{module}")
    return getattr(found, thing) if thing else found


def __dir__() -> list[str]:
    return sorted(__all__)
