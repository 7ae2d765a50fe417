"""Shrinking while training against a loop in numpy, and what is left to cut then."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import NETWORKS, images_of, variables_of

import ispasp_jax
from ispasp_jax import training
from ispasp_jax.cli import prune, train
from ispasp_jax.data import Batch
from ispasp_jax.errors import InputError
from ispasp_jax.training.shrinking import weakest

POSITIONS, WIDTH, STAY, STEPS, RATE = 3, 8, 3, 4, 0.25


def function(variables, x):
    """Channels that lie side by side at every position where they are read."""
    h = jax.nn.relu(x @ variables["a"] + variables["shift"])
    return h.reshape(len(x), -1) @ variables["b"] + variables["bias"]


def drawn(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {
        "a": (5, WIDTH),
        "shift": (WIDTH,),
        "b": (POSITIONS * WIDTH, 4),
        "bias": (4,),
    }
    arrays = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    x = jnp.asarray(rng.normal(size=(6, POSITIONS, 5)), jnp.float32)
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), arrays), x


def shrunk(traced, transformation=None, **more):
    last = training.shrink(traced, {"a": STAY}, STEPS, **{"rate": RATE, **more})
    return optax.chain(transformation or optax.sgd(0.1), last)


def naive(variables, gradients, learning_rate=0.1):
    """Channel by channel, in float64."""
    now = {name: np.asarray(a, np.float64) for name, a in variables.items()}
    for k, gradient in enumerate(gradients, 1):
        now = {n: a - learning_rate * np.asarray(gradient[n]) for n, a in now.items()}
        own = {
            "a": lambda c: (slice(None), c),
            "shift": lambda c: (c,),
            "b": lambda c: ([p * WIDTH + c for p in range(POSITIONS)],),
        }
        m = np.zeros(WIDTH)
        for name, of in own.items():
            squares = [(now[name][of(c)] ** 2).sum() for c in range(WIDTH)]
            m += squares / np.mean(squares)
        count = int((WIDTH - STAY) * min(1, k / STEPS))
        for c in np.argsort(m)[:count]:
            for name, of in own.items():
                now[name][of(c)] *= 1 - RATE
    return now


@pytest.mark.parametrize("jit", [True, False])
def test_steps_are_those_of_a_loop_over_channels(jit):
    variables, x = drawn()
    traced = ispasp_jax.trace(function, variables, x)
    assert traced["a"].width == WIDTH
    transformation = shrunk(traced)
    gradients = [drawn(seed)[0] for seed in range(1, 8)]
    update = jax.jit(transformation.update) if jit else transformation.update
    now, state = variables, transformation.init(variables)
    for gradient in gradients:
        updates, state = update(gradient, state, now)
        now = optax.apply_updates(now, updates)
    for name, expected in naive(variables, gradients).items():
        np.testing.assert_allclose(now[name], expected, rtol=1e-4, atol=1e-5)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


def test_what_is_left_of_shrunk_channels_is_next_to_nothing():
    """In a network with batch norms and skips, as an optimizer sees it; the others are
    not touched."""
    network = NETWORKS["basic"]
    variables, x = variables_of(network), jnp.asarray(images_of(4))
    traced = ispasp_jax.trace(network, variables, x)
    groups = [group for group in traced.groups if group.kind == "inner"]
    sizes = {group.name: group.width // 3 for group in groups}
    transformation = training.shrink(traced, sizes, 5, rate=0.5)
    params, state = variables["params"], None
    state, nothing = transformation.init(params), jax.tree.map(jnp.zeros_like, params)
    update = jax.jit(transformation.update)
    for _ in range(45):
        updates, state = update(nothing, state, params)
        params = optax.apply_updates(params, updates)
    after = {**variables, "params": params}
    plan = {}
    for group in groups:
        scales = params[group.name]["bn1"]["scale"]
        before = variables["params"][group.name]["bn1"]["scale"]
        kept = np.flatnonzero(scales == before)
        assert len(kept) == sizes[group.name]
        plan[group.name] = ispasp_jax.graph.Cut(group.width, kept)
    dense = network.apply(after, x)
    small = ispasp_jax.narrow(network.apply, traced, plan)(traced.take(plan, after), x)
    np.testing.assert_allclose(small, dense, atol=1e-5 * float(jnp.abs(dense).max()))


def test_a_channel_that_training_pulls_back_is_let_go():
    variables, x = drawn()
    transformation = shrunk(ispasp_jax.trace(function, variables, x), optax.identity())
    state, nothing = (
        transformation.init(variables),
        jax.tree.map(jnp.zeros_like, variables),
    )
    now = variables
    for _ in range(STEPS):
        updates, state = transformation.update(nothing, state, now)
        now = optax.apply_updates(now, updates)
    touched = np.asarray(now["shift"] != variables["shift"])
    assert touched.sum() == WIDTH - STAY
    (place, *_), still = np.flatnonzero(touched), nothing
    pull = {**still, "a": still["a"].at[:, place].set(100.0)}
    updates, state = transformation.update(pull, state, now)
    assert (updates["a"][:, place] == 100).all() and updates["shift"][place] == 0
    freed = np.flatnonzero(np.asarray(updates["shift"]))
    assert len(freed) == WIDTH - STAY and place not in freed


def test_the_weakest_of_equals_are_as_many():
    assert weakest(jnp.zeros(5), jnp.asarray(2)).sum() == 2


@pytest.mark.parametrize("sizes", [{"b": 3}, {"a": 0}, {"a": WIDTH + 1}])
def test_other_groups_and_sizes_are_refused(sizes):
    variables, x = drawn()
    traced = ispasp_jax.trace(function, variables, x)
    with pytest.raises(InputError, match="cannot shrink group"):
        training.shrink(traced, sizes, 1)


def test_parameters_are_asked_for():
    variables, x = drawn()
    transformation = shrunk(ispasp_jax.trace(function, variables, x))
    with pytest.raises(ValueError, match="parameters"):
        transformation.update(variables, transformation.init(variables))


def test_a_stopped_training_goes_on(tmp_path):
    network, recipe, steps = NETWORKS["mlp"], training.Recipe(4), 3
    variables, images = variables_of(network), images_of(8)
    traced = ispasp_jax.trace(network, variables, images)
    last = training.shrink(traced, {"hidden.0": 6}, 6)
    chain = optax.chain(training.optimizer(recipe, steps), last)
    states = training.States(tmp_path / "states")

    def batches(epoch):
        labels = np.arange(8) % 4
        return [Batch(images + epoch, labels, np.ones(8, np.float32))] * steps

    def fitted(resume=None, **more):
        return training.fit(
            network, variables, batches, steps, recipe,
            transformation=chain, resume=resume, **more,
        )  # fmt: skip

    def keep(epoch, state, loss):
        if epoch == 1:
            states.save(epoch, state)

    whole = fitted(after_epoch=keep)
    start = training.start(network, recipe, chain, variables)
    resumed = fitted(states.latest(start))
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


def test_a_network_that_was_shrunk_loses_nothing_by_the_cut(tmp_path, capsys):
    weights, out = tmp_path / "weights", tmp_path / "out"
    flags = ["--model=mlp", "--epochs=8", "--shrink=0.1"]
    assert train.main([*flags, f"--out={weights}"]) == 0
    assert json.loads((weights / "training.json").read_text())["shrink"] == 0.1
    how = ["--method=l1", "--repair=none", "--keep=0.1", "--finetune-epochs=0"]
    flags = ["--model=mlp", f"--weights={weights}", f"--out={out}", *how]
    assert prune.main(flags) == 0
    dense, pruned = json.loads((out / "report.json").read_text())["stages"][:2]
    assert dense["top1"] > 0.9 and abs(dense["top1"] - pruned["top1"]) < 0.02
    assert train.main(["--model=mlp", "--shrink=1"]) == 2
    assert "between 0 and 1" in capsys.readouterr().err
