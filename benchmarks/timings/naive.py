"""The baseline of selection_cost.py: i-SpaSP as the authors' code runs it.

For every group it runs the network's prefix again on all images, and in each of the T
iterations it takes the full gradient over all images, batch by batch. Nothing is summed
before the loop, no pass is shared between groups. Memory holds the group's hidden
activations of all images.
"""

from typing import NamedTuple

import jax
import numpy as np

from ispasp_jax.graph import Cut, Plan, Traced
from ispasp_jax.walk import consumers, flat, layouts, sites
from ispasp_jax.walk.pieces import compiled, piece
from ispasp_jax.walk.streams import weights_of


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
    traced: Traced,
    variables: dict,
    batches: list[jax.Array],
    sizes: dict[str, int],
    num_iters: int = 20,
    stop: bool = False,
) -> Answer:
    """Prunes group after group; channels that go are zeros.

    Args:
      traced: the network, on a batch of these.
      variables: its variables.
      batches: calibration images.
      sizes: channels to keep, by group, each read by one consumer.
      num_iters: T.
      stop: end a group's loop when its support repeats, which the authors do not.
    """
    answer, program = Answer({}, {}, {}), flat.flatten(traced)
    for site in sites.sites(program):
        for name in sizes:
            group = traced[name]
            if sizes[name] == group.width or not [*sites.of_leaf([site], group.atom)]:
                continue
            weights = flat.arrays(program, variables)
            hidden = [_prefix(site, weights, x) for x in batches]
            support, margin, iterations = _select(
                site, group, weights, hidden, sizes[name], num_iters, stop
            )
            kept = np.flatnonzero(support)
            answer.kept[name] = kept
            answer.margins[name] = margin
            answer.iterations[name] = iterations
            variables = traced.mask({name: Cut(group.width, kept)}, variables)
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


def _select(site, group, weights, hidden, s, num_iters, stop):
    index = sites.index(site, group.atom)  # the places of each channel
    kernel = consumers.kernel(site, weights)
    scale, _ = consumers.chain(site).ends(weights)
    importance = _importance(site)
    mu = sum(np.asarray(_mu(h), np.float64) for h in hidden)[index].sum(1)
    support, margin, iterations = np.zeros(len(mu), bool), np.inf, 0
    while iterations < num_iters:
        iterations += 1
        left = np.ones(site.width, np.float32)
        left[index[~support]] = 0
        found = [importance(h, left, kernel, scale) for h in hidden]
        scores = sum(np.asarray(y, np.float64) for y in found)[index].sum(1)
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


def _prefix(site, weights, x):
    """H of a batch: the network up to the consumer, run again."""
    step = piece(site.flat, [site.hidden], site.flat.inputs)

    def make():
        return lambda given, own: layouts.as_hidden(site, step.run(given, own)[0])

    run = compiled(("prefix", step.text), make)
    return run([x], weights_of(step, weights))


@jax.jit
def _mu(h):
    return h.sum(tuple(range(h.ndim - 1)))


def _importance(site):
    """μ(Y) of a batch: the gradient of ½‖W(H) − W(H ∘ S)‖² through the dense W(H)."""

    def make():
        def importance(h, left, kernel, scale):
            def consumer(h):
                return layouts.linear(site, h, kernel) * scale

            with jax.default_matmul_precision("highest"):
                V, back = jax.vjp(consumer, h)
                V -= consumer(h * left)
                (Y,) = back(V)
            return _mu(Y)

        return importance

    return compiled(("importance", sites.text(site)), make)
