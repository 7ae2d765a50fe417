"""Training and evaluation: pure steps, and the loops around them.

The recipe is the paper's: SGD with Nesterov momentum, cosine, label smoothing, weight
decay on kernels alone. A teacher and an average of the weights can be added to it.

Images in bfloat16 make the shipped networks' activations bfloat16; variables, optimizer
state, averages and losses are float32 whatever the images are.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ispasp_jax import devices
from ispasp_jax.data import Batch
from ispasp_jax.graph import Plan, Traced, modules
from ispasp_jax.graph.adapters import Learner, learner
from ispasp_jax.training.recipes import (
    Recipe,
    Teacher,
    cross_entropy,
    distillation,
    optimizer,
)


class TrainState(NamedTuple):
    """All that a training run carries from step to step.

    Attributes:
      step: steps done.
      variables: the network's.
      optimizer_state: of the recipe's transformation.
      ema: the variables' moving average, batch statistics too; None without one.
    """

    step: Int[Array, ""]
    variables: Any
    optimizer_state: optax.OptState
    ema: Any = None

    @property
    def trained(self) -> Any:
        """What to evaluate and save: the average where there is one."""
        return self.variables if self.ema is None else self.ema


def start(
    network: Any,
    recipe: Recipe,
    transformation: optax.GradientTransformation,
    variables: Any,
) -> TrainState:
    """The state before the first step; the average, if any, begins at the variables.

    Args:
      network: a model of any framework, as `trace` takes it.
      recipe: how to train.
      transformation: of `optimizer`.
      variables: the network's.

    Returns:
      The state at step 0.
    """
    params, _ = learner(network).split(variables)
    return TrainState(
        jnp.zeros((), jnp.int32),
        variables,
        transformation.init(params),
        None if recipe.ema is None else jax.tree.map(jnp.array, variables),
    )


def cut_state(
    plan: Plan, network: Any, traced: Traced, state: TrainState
) -> tuple[Any, TrainState]:
    """The network and its training state with every group of the plan cut: weights,
    optimizer's moments and average alike, so that training goes on across the cut, at
    the step and the learning rate where it was. Arrays that nothing cuts are shared
    with the old state, which is therefore given up with the next `train_step`.

    Args:
      plan: what stays, in coordinates of the network.
      network: the Linen network that is being trained.
      traced: its groups.
      state: the state of the network.

    Returns:
      The network at the narrower widths, and its state.

    Raises:
      InputError: the plan is for another architecture, or for other widths; or the
        optimizer keeps arrays that are not shaped as the variables are.
    """
    small = traced.take(plan, state)
    return modules.applicable(network, traced, plan, small.variables), small


def train_step(
    network: Any,
    transformation: optax.GradientTransformation,
    recipe: Recipe,
    state: TrainState,
    batch: Batch,
    teacher: Teacher | None = None,
    size: int | None = None,
) -> tuple[TrainState, Float[Array, ""]]:
    """One step; the old state is given up.

    Args:
      network: a model of any framework, as `trace` takes it.
      transformation: of `optimizer`; static, as network and recipe are.
      recipe: how to train.
      state: before the step; its arrays are given up.
      batch: images, labels and weights.
      teacher: whom to learn from, where the recipe's `distill` is above 0.
      size: how many of the batch's rows there are without those that devices.place
        added, which batch norm would count whatever they weigh; None: all of them.

    Returns:
      The state after the step, and the mean loss of the batch, in nats.
    """
    return _train_step(
        learner(network), transformation, recipe, state, batch, teacher, size
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 6), donate_argnums=3)
def _train_step(
    model: Learner, transformation, recipe, state, batch, teacher, size
) -> tuple[TrainState, Float[Array, ""]]:
    batch = jax.tree.map(lambda rows: rows[:size], batch)
    params, rest = model.split(state.variables)
    key = jax.random.fold_in(jax.random.key(0), state.step)  # of dropout
    share = recipe.distill
    taught = None
    if share:
        taught = learner(teacher.network).evaluate(teacher.variables, batch.image)
        taught = taught.astype(jnp.float32)

    def loss(params):
        logits, moved = model.train(model.join(params, rest), key, batch.image)
        logits = logits.astype(jnp.float32)
        losses = jnp.zeros(len(logits), logits.dtype)
        if share < 1:
            labelled = cross_entropy(logits, batch.label, recipe.label_smoothing)
            losses += (1 - share) * labelled
        if taught is not None:
            losses += share * distillation(logits, taught, recipe.temperature)
        _, moved = model.split(moved)
        return (losses * batch.weight).sum() / batch.weight.sum(), moved

    (value, moved), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    updates, optimizer_state = transformation.update(
        gradient, state.optimizer_state, params
    )
    new = model.join(optax.apply_updates(params, updates), moved)
    ema = state.ema
    if ema is not None:
        # Grows to its value, so that short runs forget where they began.
        decay = jnp.minimum(recipe.ema, (1 + state.step) / (10 + state.step))
        ema = _averaged(decay, ema, new)
    return TrainState(state.step + 1, new, optimizer_state, ema), value


def _averaged(decay: Array, old: Any, now: Any) -> Any:
    """Of numbers; counts and keys are as they are now."""

    def numbers(leaf):
        return leaf if jnp.issubdtype(leaf.dtype, jnp.inexact) else None

    def chosen(average, leaf):
        return leaf if average is None else average.astype(leaf.dtype)

    averages = optax.incremental_update(
        jax.tree.map(numbers, now), jax.tree.map(numbers, old), 1 - decay
    )
    return jax.tree.map(chosen, averages, now, is_leaf=lambda leaf: leaf is None)


def evaluation_step(
    network: Any, variables: Any, batch: Batch
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Correct predictions, summed loss and examples of a batch.

    Args:
      network: a model of any framework, as `trace` takes it.
      variables: its variables.
      batch: images, labels and weights.

    Returns:
      Three sums over the batch, each example by its weight; the loss in nats.
    """
    return _evaluation_step(learner(network), variables, batch)


@functools.partial(jax.jit, static_argnums=0)
def _evaluation_step(model: Learner, variables, batch):
    logits = model.evaluate(variables, batch.image).astype(jnp.float32)
    correct = (logits.argmax(-1) == batch.label) * batch.weight
    losses = cross_entropy(logits, batch.label) * batch.weight
    return correct.sum(), losses.sum(), batch.weight.sum()


class Score(NamedTuple):
    """How good a network is.

    Attributes:
      top1: share of the examples whose class has the largest logit, 0 to 1.
      loss: mean cross-entropy, in nats.
    """

    top1: float
    loss: float


def evaluate(
    network: Any,
    variables: Any,
    batches: Iterable[Batch],
    mesh: jax.sharding.Mesh | None = None,
) -> Score:
    """Top-1 accuracy and loss, over the devices of a mesh (devices.py) if one is given;
    padding weighs nothing.

    Args:
      network: a model of any framework, as `trace` takes it.
      variables: its variables.
      batches: of the split to judge by.
      mesh: of devices.py; None stays on one device.

    Returns:
      Top-1 and mean loss over all examples.
    """
    variables = devices.replicate(mesh, variables)
    placed = (devices.place(mesh, batch) for batch in batches)
    sums = [evaluation_step(network, variables, batch) for batch in placed]
    correct, loss, count = map(sum, zip(*jax.device_get(sums), strict=True))
    return Score(float(correct / count), float(loss / count))


#: Called after each epoch with the epoch's number and the state: saves, reports.
AfterEpoch = Callable[[int, TrainState, float], None]


# Ten parameters: what learns, of what and how, and what may look on; all but five have
# a default.
def fit(
    network: Any,
    variables: Any,
    epoch_batches: Callable[[int], Iterable[Batch]],
    steps_per_epoch: int,
    recipe: Recipe,
    *,
    transformation: optax.GradientTransformation | None = None,
    teacher: Teacher | None = None,
    resume: TrainState | None = None,
    after_epoch: AfterEpoch | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Any:
    """Trains a network.

    Args:
      network: a model of any framework, as `trace` takes it.
      variables: its variables; the caller's copy stays valid.
      epoch_batches: gives the batches of an epoch by its number, the same every time.
      steps_per_epoch: how many those are.
      recipe: how to train.
      transformation: of gradients into steps, optax's; `optimizer(recipe, ...)` if
        None.
      teacher: whom to learn from, where the recipe's `distill` is above 0.
      resume: a state to go on from, at an epoch's end.
      after_epoch: sees (epoch, state, mean loss).
      mesh: of devices.py; every batch is spread over its devices.

    Returns:
      The trained variables; with an average, the averaged ones.

    Raises:
      FloatingPointError: the loss became NaN or infinite.
      ValueError: the recipe has a share for a teacher, and there is none.
    """
    if recipe.distill and teacher is None:
        raise ValueError(f"distill is {recipe.distill}, but no teacher is given.")
    transformation = transformation or optimizer(recipe, steps_per_epoch)
    state = resume or start(
        network, recipe, transformation, jax.tree.map(jnp.array, variables)
    )
    state, teacher = devices.replicate(mesh, (state, teacher))
    for epoch in range(int(state.step) // max(1, steps_per_epoch), recipe.epochs):
        losses = []
        for batch in epoch_batches(epoch):
            size, batch = len(batch.weight), devices.place(mesh, batch)
            state, loss = train_step(
                network, transformation, recipe, state, batch, teacher, size
            )
            losses.append(loss)
        mean = float(jnp.stack(losses).mean())
        if not jnp.isfinite(mean):
            raise FloatingPointError(
                f"the training loss became {mean} in epoch {epoch + 1}; lower the "
                "learning rate."
            )
        if after_epoch is not None:
            after_epoch(epoch, state, mean)
    return state.trained
