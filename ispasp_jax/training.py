"""Training and evaluation: pure steps, and the loops around them.

The recipe is the paper's: SGD with Nesterov momentum, cosine, label smoothing, weight
decay on kernels alone.
"""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ispasp_jax import devices
from ispasp_jax.data import Batch
from ispasp_jax.models.network import Network, Variables


class Recipe(NamedTuple):
    """How to train.

    Attributes:
      epochs: passes over the training split.
      learning_rate: at its highest; cosine to zero over all steps.
      warmup_epochs: linear from zero before the cosine.
      momentum: Nesterov's.
      weight_decay: on kernels, not on biases and batch-norm parameters.
      label_smoothing: taken from the true class and spread over all.
    """

    epochs: int
    learning_rate: float = 0.01
    warmup_epochs: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1


class TrainState(NamedTuple):
    """All that a training run carries from step to step."""

    step: Int[Array, ""]
    variables: Variables
    optimizer_state: optax.OptState


def optimizer(recipe: Recipe, steps_per_epoch: int) -> optax.GradientTransformation:
    """The recipe as an optax transformation."""
    steps = max(1, recipe.epochs * steps_per_epoch)
    warmup = min(round(recipe.warmup_epochs * steps_per_epoch), steps - 1)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0 if warmup else recipe.learning_rate, recipe.learning_rate, warmup, steps
    )

    def kernels(params):
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    return optax.chain(
        optax.add_decayed_weights(recipe.weight_decay, mask=kernels),
        optax.sgd(schedule, recipe.momentum, nesterov=True),
    )


def cross_entropy(
    logits: Float[Array, "n classes"], label: Int[Array, " n"], smoothing: float = 0.0
) -> Float[Array, " n"]:
    """Cross-entropy of each example, in nats."""
    target = jax.nn.one_hot(label, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(target, smoothing))


def start(
    transformation: optax.GradientTransformation, variables: Variables
) -> TrainState:
    """The state before the first step."""
    return TrainState(
        jnp.zeros((), jnp.int32), variables, transformation.init(variables["params"])
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 5), donate_argnums=3)
def train_step(
    network: Network,
    transformation: optax.GradientTransformation,
    label_smoothing: float,
    state: TrainState,
    batch: Batch,
    size: int | None = None,
) -> tuple[TrainState, Float[Array, ""]]:
    """One step; returns the new state and the loss. The old state is given up.

    `size` is how many of the batch's rows there are without those that devices.place
    added: batch norm would count them, whatever they weigh.
    """
    batch = jax.tree.map(lambda rows: rows[:size], batch)
    variables = dict(state.variables)
    params = variables.pop("params")

    def loss(params):
        logits, moved = network.apply(
            {"params": params, **variables},
            batch.image,
            train=True,
            mutable=list(variables),
        )
        losses = cross_entropy(logits, batch.label, label_smoothing)
        return (losses * batch.weight).sum() / batch.weight.sum(), moved

    (value, moved), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    updates, optimizer_state = transformation.update(
        gradient, state.optimizer_state, params
    )
    params = optax.apply_updates(params, updates)
    new = TrainState(state.step + 1, {"params": params, **moved}, optimizer_state)
    return new, value


@functools.partial(jax.jit, static_argnums=0)
def evaluation_step(
    network: Network, variables: Variables, batch: Batch
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Correct predictions, summed loss and examples of a batch."""
    logits = network.apply(variables, batch.image)
    correct = (logits.argmax(-1) == batch.label) * batch.weight
    losses = cross_entropy(logits, batch.label) * batch.weight
    return correct.sum(), losses.sum(), batch.weight.sum()


class Score(NamedTuple):
    """top1 in 0..1, mean loss in nats."""

    top1: float
    loss: float


def evaluate(
    network: Network,
    variables: Variables,
    batches: Iterable[Batch],
    mesh: jax.sharding.Mesh | None = None,
) -> Score:
    """Top-1 accuracy and loss, over the devices of a mesh (devices.py) if one is given;
    padding weighs nothing.
    """
    variables = devices.replicate(mesh, variables)
    placed = (devices.place(mesh, batch) for batch in batches)
    sums = [evaluation_step(network, variables, batch) for batch in placed]
    correct, loss, count = map(sum, zip(*jax.device_get(sums), strict=True))
    return Score(float(correct / count), float(loss / count))


#: Called after each epoch with the epoch's number and the state: saves, reports.
AfterEpoch = Callable[[int, TrainState, float], None]


def fit(
    network: Network,
    variables: Variables,
    epoch_batches: Callable[[int], Iterable[Batch]],
    steps_per_epoch: int,
    recipe: Recipe,
    *,
    resume: TrainState | None = None,
    after_epoch: AfterEpoch | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Variables:
    """Trains a network.

    Args:
      network: the network.
      variables: its variables; the caller's copy stays valid.
      epoch_batches: gives the batches of an epoch by its number, the same every time.
      steps_per_epoch: how many those are.
      recipe: how to train.
      resume: a state to go on from, at an epoch's end.
      after_epoch: sees (epoch, state, mean loss).
      mesh: of devices.py; every batch is spread over its devices.

    Raises:
      FloatingPointError: the loss became NaN or infinite.
    """
    transformation = optimizer(recipe, steps_per_epoch)
    state = resume or start(transformation, jax.tree.map(jnp.array, variables))
    state = devices.replicate(mesh, state)
    for epoch in range(int(state.step) // max(1, steps_per_epoch), recipe.epochs):
        losses = []
        for batch in epoch_batches(epoch):
            state, loss = train_step(
                network,
                transformation,
                recipe.label_smoothing,
                state,
                devices.place(mesh, batch),
                len(batch.weight),
            )
            losses.append(loss)
        mean = float(jnp.stack(losses).mean())
        if not jnp.isfinite(mean):
            raise FloatingPointError(
                f"the training loss became {mean} in epoch {epoch + 1}; lower "
                "--learning-rate."
            )
        if after_epoch is not None:
            after_epoch(epoch, state, mean)
    return state.variables
