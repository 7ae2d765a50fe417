"""Which branches go, by SGLP (selection/sglp.py): how alike their sums are, and how
much the loss depends on their parameters, from one pass over labelled images.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ispasp_jax.errors import InputError
from ispasp_jax.graph import Traced
from ispasp_jax.selection import sglp
from ispasp_jax.walk import flat, gates, inputs, streams
from ispasp_jax.walk.batches import Images
from ispasp_jax.walk.pieces import piece
from ispasp_jax.walk.streams import Stream


def similar_branches(
    traced: Traced,
    variables: Any,
    images: Images,
    labels: gates.Labels,
    count: int,
    segments: int | None = None,
) -> list[str]:
    """The branches that SGLP removes; `traced.without(*names)` is the plan.

    The similarity is the CKA of the branches' sums, every HSIC averaged over batches,
    so that no Gram matrix is larger than a batch's.

    Args:
      traced: the model.
      variables: its variables.
      images: calibration batches, preprocessed, of several examples each.
      labels: the images' classes, in batches as long as theirs.
      count: how many branches go.
      segments: parts that the network is taken for, each of which keeps a branch; half
        as many as branches stay if None.

    Returns:
      Names of the branches that go, in order.

    Raises:
      FloatingPointError: NaN or infinity in weights, images or activations.
      InputError: the model has too few branches, or images or labels are none.
    """
    names = [*traced.branches]
    if not 0 <= count < len(names):
        raise InputError(
            f"{count} branches cannot go, one stays at least; the model has "
            f"{', '.join(names) or 'none: no x + f(x) that holds a group'}."
        )
    inputs.check_variables(variables)
    traced, batches = inputs.opened(traced, images, None)
    program = flat.flatten(traced)
    weights = flat.arrays(program, jax.device_put(variables))
    here = streams.start(program, weights, batches)
    S = _similarity(here, traced)
    importance = _importance(here, traced, gates.aligned(labels, here, None))
    k = max(1, (len(names) - count) // 2) if segments is None else segments
    places = sglp.choose(jnp.asarray(S), importance.tolist(), count, k)
    return [names[place] for place in places]


def _similarity(here: Stream, traced: Traced) -> Float[np.ndarray, "l l"]:
    joins = [branch.join for branch in traced.branches.values()]
    step = piece(here.flat, joins, here.live)
    here, total = here.named("the branches' sums"), np.zeros((len(joins), len(joins)))
    for k, weight in enumerate(here.weight):
        made, sound = here.run(step, k)
        here.check(made, sound)
        real = int(weight.sum())  # padding comes last
        grams = jnp.stack([sglp.gram(array[:real]) for array in made])
        total += np.asarray(_products(grams), np.float64) if real > 1 else 0
    own = np.sqrt(np.diag(total))
    return total / np.maximum(np.outer(own, own), np.finfo(np.float64).tiny)


@jax.jit
def _products(grams: Float[Array, "l n n"]) -> Float[Array, "l l"]:
    """HSIC of every two layers."""
    return jax.vmap(lambda K: jax.vmap(lambda L: sglp.hsic(K, L))(grams))(grams)


def _importance(here: Stream, traced: Traced, labels) -> Float[np.ndarray, " l"]:
    """GradNorm: of the mean cross-entropy's gradient by each branch's parameters."""
    step = piece(here.flat, [here.flat.outputs[0]], here.live)
    places = {value: place for place, value in enumerate(step.weights)}
    values = here.flat.variables
    known = {p: places[values[p]] for p in traced.parameters if values[p] in places}
    arrays = streams.weights_of(step, here.weights)

    @jax.jit
    def gradient(params, given, arrays, label, weight):
        def loss(params):
            every = [params.get(place, array) for place, array in enumerate(arrays)]
            logits = step.run(given, every)[0].astype(jnp.float32)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
            return (losses * weight).sum()

        return jax.grad(loss)(params)

    params = {place: arrays[place] for place in known.values()}
    total = jax.tree.map(jnp.zeros_like, params)
    for k, weight in enumerate(here.weight):
        given = [here.live[value][k] for value in step.given]
        one = gradient(params, given, arrays, labels[k], weight)
        total = jax.tree.map(jnp.add, total, one)
    count = sum(float(weight.sum()) for weight in here.weight)
    squares = {p: float(jnp.square(total[place]).sum()) for p, place in known.items()}
    norms = [
        np.sqrt(sum(squares.get(path, 0.0) for path in branch.paths)) / count
        for branch in traced.branches.values()
    ]
    return np.asarray(norms)
