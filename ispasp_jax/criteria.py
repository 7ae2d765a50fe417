"""The other ways to select, one small function each, and the table of them all."""

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ispasp_jax.cosamp import cosamp
from ispasp_jax.ispasp import ispasp
from ispasp_jax.obs import obs
from ispasp_jax.problem import Criterion, by_score


def random() -> Criterion:
    """Keeps channels drawn uniformly: the floor that a method has to leave behind."""

    def select(problem, size):
        (d,) = {array.shape[-1] for array in problem.producer.values()}
        return by_score(jax.random.uniform(problem.key, (d,)), size)

    return Criterion(select, needs=frozenset({"key", "producer"}))


def l1() -> Criterion:
    """The L1 norm of the filter that makes the channel (Li et al., arXiv 1608.08710).

    The filter is the group's first kernel: of several layers in a row (expansion and
    depthwise convolution) the one that mixes channels.
    """

    def select(problem, size):
        kernel = next(a for p, a in problem.producer.items() if p.endswith("kernel"))
        return by_score(jnp.abs(kernel).reshape(-1, kernel.shape[-1]).sum(0), size)

    return Criterion(select, needs=frozenset({"producer"}))


#: Every criterion by the name that `--method` takes.
CRITERIA: dict[str, Callable[..., Criterion]] = {
    "ispasp": ispasp,
    "cosamp": cosamp,
    "obs": obs,
    "random": random,
    "l1": l1,
}


def create(name: str, **options) -> Criterion:
    """The criterion of that name, with those of the options that its factory names.

    Raises:
      ValueError: no criterion has that name.
    """
    if name not in CRITERIA:
        raise ValueError(
            f"unknown method {name!r}; expected one of {', '.join(CRITERIA)}."
        )
    factory = CRITERIA[name]
    known = inspect.signature(factory).parameters
    return factory(**{k: v for k, v in options.items() if k in known})
