"""Models of every framework are evaluated, trained, cut and kept alike."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ispasp_jax import graph, models, training
from ispasp_jax.cli import train
from ispasp_jax.data import Batch, Preprocessing
from ispasp_jax.graph import adapters
from ispasp_jax.graph.adapters import learner
from ispasp_jax.graph.check import random_plan
from ispasp_jax.training import Recipe
from ispasp_jax.weights import folders

PREP = Preprocessing(8, None, (0.0,), (1.0,))


class Linen(nn.Module):
    """In training unless told otherwise, as flax's own examples are."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train: bool = True):
        x = nn.Conv(6, (3, 3), strides=2)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


class Deterministic(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, deterministic):
        x = nn.relu(nn.Conv(6, (3, 3), strides=2)(x))
        x = nn.Dropout(0.5, deterministic=deterministic)(x)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


class Nnx(nnx.Module):
    def __init__(self, num_classes):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(1, 6, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.Linear(6, num_classes, rngs=rngs)

    def __call__(self, x):
        x = self.dropout(nnx.relu(self.norm(self.conv(x))))
        return self.dense(x.mean((1, 2)))


class Tree(eqx.Module):
    conv: eqx.nn.Conv2d
    dropout: eqx.nn.Dropout
    dense: eqx.nn.Linear

    def __init__(self, num_classes):
        a, b = jax.random.split(jax.random.key(0))
        self.conv = eqx.nn.Conv2d(1, 6, 3, stride=2, key=a)
        self.dropout = eqx.nn.Dropout(0.5)
        self.dense = eqx.nn.Linear(6, num_classes, key=b)

    def __call__(self, x, key=None):
        x = self.dropout(jax.nn.relu(self.conv(jnp.moveaxis(x, -1, 0))), key=key)
        return self.dense(x.mean((1, 2)))


def haiku(num_classes):
    def forward(x, is_training):
        x = hk.Conv2D(6, 3, stride=2)(x)
        x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(x, is_training))
        x = hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x
        return hk.Linear(num_classes)(x.mean((1, 2)))

    net = hk.transform_with_state(forward)
    return net, net.init(jax.random.key(0), jnp.ones((1, *PREP.shape)), True)


def function(num_classes):
    kernel = 0.3 * jax.random.normal(jax.random.key(0), (64, 6))
    head = 0.3 * jax.random.normal(jax.random.key(1), (6, num_classes))

    def apply(variables, x):
        h = jax.nn.relu(x.reshape(x.shape[0], -1) @ variables["a"])
        return h @ variables["b"] + variables["steps"] * 0.0

    return apply, {"a": kernel, "b": head, "steps": jnp.zeros((), jnp.int32)}


FRAMEWORKS = {
    "linen": Linen,
    "deterministic": Deterministic,
    "nnx": Nnx,
    "equinox": Tree,
    "haiku": haiku,
    "function": function,
}


def made(kind):
    name = f"{__name__}:{FRAMEWORKS[kind].__name__}"
    model = folders.of(name, models.create(name, 3), PREP, {})
    if isinstance(model.network, nn.Module):
        x = jnp.ones((1, *PREP.shape))
        variables = adapters.initialise(model.network, jax.random.key(0), x)
        model = model.replace(model.network, variables)
    return model


def batches(count=3, size=12):
    """The class is the brightest third of the image."""
    draw = np.random.default_rng(0)
    found = []
    for _ in range(count):
        label = draw.integers(0, 3, size)
        image = draw.normal(size=(size, *PREP.shape)).astype(np.float32)
        image += 2 * label[:, None, None, None]
        found.append(Batch(image, label.astype(np.int32), np.ones(size, np.float32)))
    return found


def arrays(tree):
    return {
        graph.key_path(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    }


def fitted(model, epochs=6):
    recipe, losses = Recipe(epochs, 0.1, ema=0.5), []
    data = batches()
    variables = training.fit(
        model.network,
        model.variables,
        lambda epoch: data,
        len(data),
        recipe,
        after_epoch=lambda epoch, state, loss: losses.append(loss),
    )
    return model.replace(model.network, variables), losses


@pytest.mark.parametrize("kind", FRAMEWORKS)
def test_a_model_of_any_framework_learns(kind, tmp_path):
    model = made(kind)
    x = jnp.asarray(batches()[0].image)
    functions = learner(model.network)
    np.testing.assert_array_equal(model(x), model(x))
    logits, moved = functions.train(model.variables, jax.random.key(1), x)
    if kind != "function":  # dropout and statistics of the batch
        assert np.abs(logits - model(x)).max() > 1e-3
    assert jax.tree.structure(moved) == jax.tree.structure(model.variables)

    after, losses = fitted(model)
    assert losses[-1] < losses[0]
    before, now = arrays(model.variables), arrays(after.variables)
    moved = {path for path in now if not np.array_equal(now[path], before[path])}
    frozen = {path for path in now if path.endswith(("steps", "count", "counter"))}
    assert moved >= now.keys() - frozen - {"batch_norm"}, now.keys() - moved
    assert not any(path.endswith("steps") for path in moved)
    again = model.variables  # the caller's copy is valid still
    assert all(np.array_equal(a, before[p]) for p, a in arrays(again).items())

    folders.save(tmp_path / "model", after)
    found = folders.load(tmp_path / "model", model.name)
    np.testing.assert_allclose(found(x), after(x), rtol=1e-5, atol=1e-6)
    score = training.evaluate(found.network, found.variables, batches())
    assert 0 <= score.top1 <= 1 and np.isfinite(score.loss)


@pytest.mark.parametrize("kind", FRAMEWORKS)
def test_training_goes_on_across_a_cut(kind, tmp_path):
    model, data = made(kind), batches()
    recipe = Recipe(4, 0.05)
    transformation = training.optimizer(recipe, len(data))
    state = training.start(model.network, recipe, transformation, model.variables)
    state, _ = training.train_step(
        model.network, transformation, recipe, state, data[0]
    )
    plan = random_plan(model.traced)
    (cut,) = plan.values()
    masked = model.traced.mask(plan, state.variables)
    expected = model.replace(model.network, masked)(data[0].image)
    network, small = training.cut_state(plan, model.network, model.traced, state)
    cut_model = model.resize(small.variables)
    for found in (model.replace(network, small.variables), cut_model):
        np.testing.assert_allclose(found(data[0].image), expected, rtol=1e-4, atol=1e-5)
    assert set(cut_model.dense_widths.values()) == {len(cut.kept)}
    small, loss = training.train_step(network, transformation, recipe, small, data[1])
    assert np.isfinite(loss) and int(small.step) == 2
    after = model.replace(network, small.variables)
    folders.save(tmp_path / "model", after)
    loaded = folders.load(tmp_path / "model", model.name)
    np.testing.assert_allclose(
        loaded(data[0].image), after(data[0].image), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kind", ["nnx", "haiku"])
def test_the_command_trains_any_model(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = f"{__name__}:{FRAMEWORKS[kind].__name__}"
    flags = [f"--model={name}", "--epochs=1", "--out=a"]
    assert train.main(flags) == 0, capsys.readouterr().err
    found = folders.load("a", name)
    assert found.num_classes == 10
    again = [f"--model={name}", "--weights=a", "--epochs=1", "--out=b"]
    assert train.main(again) == 0, capsys.readouterr().err
    file = ["--weights=b/model.safetensors", "--epochs=1", "--out=c"]
    assert train.main([flags[0], *file]) == 0, capsys.readouterr().err
