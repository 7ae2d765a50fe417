"""Training and evaluating a model on the data, as both commands do."""

import time
from typing import Any

import jax
import optax

from ispasp_jax import data, devices, models, training
from ispasp_jax.cli import widths
from ispasp_jax.cli.config import Config
from ispasp_jax.cli.opening import activations, batch_size
from ispasp_jax.cli.states import Keeper
from ispasp_jax.cli.workspace import Workspace
from ispasp_jax.data import Source
from ispasp_jax.errors import InputError
from ispasp_jax.report import stage, tell, track
from ispasp_jax.weights.folders import Model

#: Learning rate of SGD from nothing, for batches of 256.
FROM_NOTHING = 0.08
#: Training that a kill may cost, beyond the epoch that it interrupts.
SECONDS_BETWEEN_STATES = 20


def train(
    config: Config,
    source: Source,
    model: Model,
    recipe: training.Recipe,
    label: str,
    work: Workspace | None = None,
    teacher: training.Teacher | None = None,
    shrink: float | None = None,
) -> Model:
    """Trains a model on the data's training split, keeping its state in `work`, and
    shrinks all but a fraction of its channels if told to.
    """
    size = batch_size(config.data, source)
    steps = len(source.train) // size
    keeper = Keeper(work, label) if work else None
    transformation = training.optimizer(recipe, steps)
    if shrink is not None:
        sizes = widths.unshrunk(shrink, model)
        half = recipe.epochs * steps // 2
        transformation = optax.chain(
            transformation, training.shrink(model.traced, sizes, half)
        )
    state = None
    if keeper and keeper.work.resumed:
        start = training.start(model.network, recipe, transformation, model.variables)
        state = keeper.latest(start, steps)

    def epoch_batches(epoch):
        images = data.batches(
            source.train,
            model.images,
            size,
            recipe=source.recipe,
            seed=config.run.seed,
            epoch=epoch,
        )
        for batch in images:
            yield batch._replace(image=activations(config.run, batch.image))
            step()

    saved = time.perf_counter()

    def after_epoch(epoch, state, loss):
        nonlocal saved
        epochs = {"epoch": epoch + 1, "epochs": recipe.epochs}
        tell("epoch", stage=label, **epochs, loss=loss)
        due = time.perf_counter() - saved > SECONDS_BETWEEN_STATES
        if keeper and devices.agree(due):
            keeper.save(epoch, state)
            saved = time.perf_counter()

    done = 0 if state is None else int(state.step)
    try:
        with stage(label, recipe.epochs * steps, done) as step:
            variables = training.fit(
                model.network,
                model.variables,
                epoch_batches,
                steps,
                recipe,
                transformation=transformation,
                teacher=teacher,
                resume=state,
                after_epoch=after_epoch,
                mesh=devices.mesh(config.run.devices),
            )
    except FloatingPointError as error:
        raise InputError(str(error)) from error
    return model.replace(model.network, jax.device_put(jax.device_get(variables)))


def recipe(
    config: Config, source: Source, epochs: int, rate_at_256: float, **more: Any
) -> training.Recipe:
    """The training recipe of the flags for this model.

    Args:
      config: its optimisation, or the defaults for its architecture.
      source: the data.
      epochs: how many.
      rate_at_256: the default learning rate for batches of 256; others in proportion.
      **more: of training.Recipe.
    """
    how = config.optimisation
    rate, decay = how.learning_rate, how.weight_decay
    adamw = models.ADAMW.get(config.network.model)
    if adamw is not None:
        more["optimizer"] = "adamw"
        rate_at_256 *= adamw / FROM_NOTHING
    return training.Recipe(
        epochs,
        rate_at_256 * batch_size(config.data, source) / 256 if rate is None else rate,
        weight_decay=models.WEIGHT_DECAY.get(config.network.model, 5e-4)
        if decay is None
        else decay,
        label_smoothing=how.label_smoothing,
        ema=how.ema,
        **more,
    )


def evaluate(config: Config, source: Source, model: Model) -> training.Score:
    """Top-1 and loss on the test split."""
    size = config.data.batch_size or 256
    batches = data.batches(source.test, model.images, size)
    total = -(-len(source.test) // size)
    return training.evaluate(
        model.network,
        model.variables,
        track(batches, "test images", total),
        devices.mesh(config.run.devices),
    )
