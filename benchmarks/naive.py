"""The baseline of selection_cost.py: i-SpaSP as the authors' code runs it.

For every group it runs the network's prefix again on all images, and in each of the T
iterations it takes the full gradient over all images, batch by batch. Nothing is summed
before the loop, no pass is shared between groups. Memory holds the group's hidden
activations of all images.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ispasp_jax import groups
from ispasp_jax.models.network import Network, group_names, subtree
from ispasp_jax.plan import Plan


class Answer(NamedTuple):
    """What the loop found.

    Attributes:
      kept: channels kept by group.
      margins: by group, the smallest gap at any cut, relative to the largest score.
      iterations: by group.
    """

    kept: dict[str, np.ndarray]
    margins: dict[str, float]
    iterations: dict[str, int]


def walk(
    network: Network,
    variables: dict,
    batches: list[jax.Array],
    sizes: dict[str, int],
    num_iters: int = 20,
    stop: bool = False,
) -> Answer:
    """Prunes group after group.

    Args:
      network: the network.
      variables: its variables.
      batches: calibration images.
      sizes: channels to keep, by group.
      num_iters: T.
      stop: end a group's loop when its support repeats, which the authors do not.
    """
    answer = Answer({}, {}, {})
    for index, part in enumerate(network.parts()):
        for i, name in enumerate(group_names(part)):
            if sizes[name] == network.group_widths()[name]:
                continue
            chain = network.chain()[: index + 1]
            hidden = [_prefix(chain, variables, i, x) for x in batches]
            own = subtree(variables, chain[-1])
            support, margin, iterations = _select(
                chain[-1].module, i, own, hidden, sizes[name], num_iters, stop
            )
            kept = np.flatnonzero(support)
            answer.kept[name] = kept
            answer.margins[name] = margin
            answer.iterations[name] = iterations
            variables = groups.take(variables, network.groups()[name], kept)
            network = network.narrowed({name: len(kept)})
    return answer


def differences(plan: Plan, answer: Answer) -> list[dict]:
    """Groups where the walk and this loop keep different channels, and the loop's
    margin there. After the first of them, the networks differ, too.
    """
    return [
        {
            "group": name,
            "channels": len(np.setdiff1d(kept, plan[name].kept)),
            "margin": answer.margins[name],
        }
        for name, kept in answer.kept.items()
        if not np.array_equal(kept, plan[name].kept)
    ]


def _select(block, i, own, hidden, s, num_iters, stop):
    mu = sum(np.asarray(_mu(h), np.float64) for h in hidden)
    support, margin, iterations = np.zeros(len(mu), bool), np.inf, 0
    while iterations < num_iters:
        iterations += 1
        scores = sum(
            np.asarray(_importance(block, i, own, h, jnp.asarray(support)), np.float64)
            for h in hidden
        )
        candidates, gap = _largest(scores, 2 * s)
        margin = min(margin, gap)
        new, gap = _largest(np.where(candidates | support, mu, -np.inf), s)
        margin = min(margin, gap)
        repeated, support = (new == support).all(), new
        if stop and repeated:
            break
    return support, float(margin), iterations


def _largest(scores, r):
    """The r largest, and the gap to the next, relative to the largest of all."""
    order = np.argsort(-scores, kind="stable")
    support = np.isin(np.arange(len(scores)), order[:r])
    members = scores[np.isfinite(scores)]
    if r >= len(members):
        return support, np.inf
    gap = scores[order[r - 1]] - scores[order[r]]
    return support, gap / np.abs(members).max()


def _prefix(chain, variables, i, x):
    *before, last = chain
    for part in before:
        x = _apply(part.module, subtree(variables, part), x)
    return _reach(last.module, i, subtree(variables, last), x)


@functools.partial(jax.jit, static_argnums=0)
def _apply(module, own, x):
    return module.apply(own, x)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _reach(block, i, own, x):
    return block.apply(own, x, i, method="reach")


@jax.jit
def _mu(h):
    return h.sum(tuple(range(h.ndim - 1)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _importance(block, i, own, h, support):
    """μ(Y) of a batch: the gradient of ½‖W(H) − W(H ∘ S)‖² through the dense W(H)."""

    def consumer(h):
        return block.apply(own, h, i, method="consumer")

    with jax.default_matmul_precision("highest"):
        V, back = jax.vjp(consumer, h)
        V -= consumer(h * support.astype(h.dtype))
        (Y,) = back(V)
    return _mu(Y)
