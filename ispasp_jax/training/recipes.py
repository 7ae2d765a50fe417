"""How to train: a recipe, its optimizer, and its losses."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import optax
from jaxtyping import Array, Float, Int


class Recipe(NamedTuple):
    """How to train.

    Attributes:
      epochs: passes over the training split.
      learning_rate: at its highest; cosine to zero over all steps.
      warmup_epochs: linear from zero before the cosine.
      momentum: Nesterov's.
      weight_decay: on kernels, not on biases and batch-norm parameters.
      label_smoothing: taken from the true class and spread over all.
      distill: share of the teacher in the loss, 0 to 1; with 1 labels never enter.
      temperature: what both networks' logits are divided by for the teacher's share.
      ema: decay of the variables' moving average, at most (1 + step) / (10 + step);
        None keeps none.
      optimizer: "sgd", or "adamw", whose gradients are clipped at a norm of 1.
    """

    epochs: int
    learning_rate: float = 0.01
    warmup_epochs: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    distill: float = 0.0
    temperature: float = 4.0
    ema: float | None = None
    optimizer: Literal["sgd", "adamw"] = "sgd"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained network whose logits are learned from, in evaluation mode.

    Attributes:
      network: a model of any framework, as `trace` takes it.
      variables: its variables.
    """

    network: Any = dataclasses.field(metadata={"static": True})
    variables: Any


def optimizer(recipe: Recipe, steps_per_epoch: int) -> optax.GradientTransformation:
    """The recipe as an optax transformation.

    Args:
      recipe: how to train.
      steps_per_epoch: batches of an epoch.

    Returns:
      The transformation; its schedule counts steps.
    """
    steps = max(1, recipe.epochs * steps_per_epoch)
    warmup = min(round(recipe.warmup_epochs * steps_per_epoch), steps - 1)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0 if warmup else recipe.learning_rate, recipe.learning_rate, warmup, steps
    )

    def kernels(params):
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    if recipe.optimizer == "adamw":
        decay = recipe.weight_decay
        return optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(schedule, weight_decay=decay, mask=kernels),
        )
    return optax.chain(
        optax.add_decayed_weights(recipe.weight_decay, mask=kernels),
        optax.sgd(schedule, recipe.momentum, nesterov=True),
    )


def cross_entropy(
    logits: Float[Array, "n classes"], label: Int[Array, " n"], smoothing: float = 0.0
) -> Float[Array, " n"]:
    """Cross-entropy of each example, in nats.

    Args:
      logits: of each example.
      label: its class.
      smoothing: taken from the true class and spread over all.

    Returns:
      One number an example.
    """
    target = jax.nn.one_hot(label, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(target, smoothing))


def distillation(
    logits: Float[Array, "n classes"],
    teacher: Float[Array, "n classes"],
    temperature: float,
) -> Float[Array, " n"]:
    """T² · KL(teacher ‖ student) of each example, both softened by the temperature T
    (Hinton et al., arXiv 1503.02531); T² keeps the gradient's size.

    Args:
      logits: the student's.
      teacher: the teacher's logits of the same examples.
      temperature: T.

    Returns:
      One number an example, in nats times T².
    """
    soft, target = (jax.nn.log_softmax(z / temperature) for z in (logits, teacher))
    divergence = optax.losses.kl_divergence_with_log_targets(soft, target)
    return temperature**2 * divergence
