"""Structured pruning of trained networks by i-SpaSP, in pure JAX.

Everything here loads when it is first used, so that importing the package, or asking a
command for --help, costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same table, for type checkers
    from ispasp_jax import budget as budget
    from ispasp_jax import data as data
    from ispasp_jax import devices as devices
    from ispasp_jax import export as export
    from ispasp_jax import graph as graph
    from ispasp_jax import models as models
    from ispasp_jax import selection as selection
    from ispasp_jax import training as training
    from ispasp_jax import walk as walk
    from ispasp_jax import weights as weights
    from ispasp_jax.budget import Budget as Budget
    from ispasp_jax.budget.latency import latency as latency
    from ispasp_jax.errors import InputError as InputError
    from ispasp_jax.graph import narrow as narrow
    from ispasp_jax.graph import plans as _plans
    from ispasp_jax.graph import trace as trace
    from ispasp_jax.graph.by_hand import Group as Group
    from ispasp_jax.graph.by_hand import mask as mask
    from ispasp_jax.graph.by_hand import take as take
    from ispasp_jax.graph.optimizers import take_optimizer as take_optimizer
    from ispasp_jax.pruning import Pruned as Pruned
    from ispasp_jax.pruning import check as check
    from ispasp_jax.pruning import cut as cut
    from ispasp_jax.pruning import prune as prune
    from ispasp_jax.selection import Criterion as Criterion
    from ispasp_jax.selection import Problem as Problem
    from ispasp_jax.selection import Selection as Selection
    from ispasp_jax.selection import algorithm_1 as algorithm_1
    from ispasp_jax.selection import batch_sum as batch_sum
    from ispasp_jax.selection import criteria as criteria
    from ispasp_jax.selection import criterion as criterion
    from ispasp_jax.selection import ispasp as ispasp
    from ispasp_jax.walk import redundancy as redundancy
    from ispasp_jax.weights import Model as Model
    from ispasp_jax.weights import load as load
    from ispasp_jax.weights import save as save

    plan = _plans

__version__ = "0.2.0"

#: Where every public name lies; of a module, the module.
_WHERE = {
    "prune": "pruning:prune",
    "Pruned": "pruning:Pruned",
    "check": "pruning:check",
    "cut": "pruning:cut",
    "algorithm_1": "selection:algorithm_1",
    "ispasp": "selection:ispasp",
    "criterion": "selection:criterion",
    "Criterion": "selection:Criterion",
    "Problem": "selection:Problem",
    "Selection": "selection:Selection",
    "batch_sum": "selection:batch_sum",
    "Budget": "budget:Budget",
    "latency": "budget.latency:latency",
    "trace": "graph:trace",
    "narrow": "graph:narrow",
    "Group": "graph.by_hand:Group",
    "take": "graph.by_hand:take",
    "mask": "graph.by_hand:mask",
    "take_optimizer": "graph.optimizers:take_optimizer",
    "redundancy": "walk:redundancy",
    "load": "weights:load",
    "save": "weights:save",
    "Model": "weights:Model",
    "InputError": "errors:InputError",
    **{name: name for name in ("budget", "data", "devices", "export", "graph")},
    **{name: name for name in ("models", "selection", "training", "walk", "weights")},
    "criteria": "selection.criteria",
    "plan": "graph.plans",
}

# Type checkers read the names above.
__all__ = ["__version__", *_WHERE]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, thing = _WHERE[name].partition(":")
    result = importlib.import_module(f"{__name__}.{module}")
    return getattr(result, thing) if thing else result


def __dir__() -> list[str]:
    return sorted(__all__)
