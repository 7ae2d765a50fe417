"""Optimizers' states: cut as the parameters are, or refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx
from test_groups import GROUP, KEPT, assert_cut, tree

from ispasp_jax.errors import InputError
from ispasp_jax.graph import by_hand
from ispasp_jax.graph.by_hand import Group
from ispasp_jax.graph.optimizers import take_optimizer


def only_kernels(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


OPTIMIZERS = {
    "sgd": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(1e-2),
    "adamw, masked, scheduled": optax.adamw(
        optax.cosine_decay_schedule(1e-2, 10), weight_decay=1e-2, mask=only_kernels
    ),
    "chain": optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.add_decayed_weights(1e-2, mask=only_kernels),
        optax.sgd(optax.linear_schedule(0.1, 0, 5), momentum=0.9),
    ),
    "ema": optax.chain(optax.scale_by_rms(), optax.ema(0.9), optax.scale(-0.1)),
    "injected": optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
    "accumulated": optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
    "masked": optax.masked(optax.adam(1e-2), only_kernels),
    "masked sub-tree": optax.masked(
        optax.adam(1e-2), {"block": True, "block2": False, "fc": True}
    ),
    "adamw": optax.adamw(1e-2),
    "lion": optax.lion(1e-3),
    "lamb": optax.lamb(1e-3),
    "finite": optax.apply_if_finite(optax.adam(1e-2), 3),
    "schedule-free": optax.contrib.schedule_free_adamw(1e-2),
    "ademamix": optax.contrib.ademamix(1e-2),
    "unfactored adafactor": optax.adafactor(
        1e-2, multiply_by_parameter_scale=False, clipping_threshold=None
    ),
    "partition": optax.partition(
        {"train": optax.adam(1e-2), "freeze": optax.set_to_zero()},
        {"block": "train", "block2": "train", "fc": "freeze"},
    ),
}


def step(optimizer, params, state, gradients):
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_states(name):
    """Cut, then a step, is a masked step, then a cut; the moments are the slices."""
    optimizer = OPTIMIZERS[name]
    params = by_hand.mask(tree(0), GROUP, KEPT)
    state = optimizer.init(params)
    for seed in (1, 2, 3):
        gradients = by_hand.mask(tree(seed), GROUP, KEPT)
        params, state = step(optimizer, params, state, gradients)
    cut_params = by_hand.take(params, GROUP, KEPT)
    cut_state = take_optimizer(optimizer, state, params, GROUP, KEPT)
    fresh = optimizer.init(cut_params)
    assert jax.tree.structure(cut_state) == jax.tree.structure(fresh)
    assert jax.tree.map(jnp.shape, cut_state) == jax.tree.map(jnp.shape, fresh)

    gradients = by_hand.mask(tree(4), GROUP, KEPT)
    then_params, then_state = step(optimizer, params, state, gradients)
    cut_then, cut_then_state = step(
        optimizer, cut_params, cut_state, by_hand.take(gradients, GROUP, KEPT)
    )
    close = dict(rtol=1e-5, atol=1e-6)
    expected = by_hand.take(then_params, GROUP, KEPT)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **close), cut_then, expected
    )
    expected = take_optimizer(optimizer, then_state, then_params, GROUP, KEPT)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **close), cut_then_state, expected
    )


def test_adam_moments_are_the_slices():
    optimizer = optax.adam(1e-2)
    params, state = step(optimizer, tree(0), optimizer.init(tree(0)), tree(1))
    cut = take_optimizer(optimizer, state, params, GROUP, KEPT)
    assert_cut(cut[0].mu, state[0].mu)
    assert_cut(cut[0].nu, state[0].nu)
    assert int(cut[0].count) == 1


FULL = {"up": jnp.ones((200, 256)), "bias": jnp.ones(256), "down": jnp.ones((256, 10))}
WIDE = Group("wide", axes=(("up", -1), ("bias", -1), ("down", -2)))
HALF = np.arange(0, 256, 2)
SUMS = {
    "adafactor": (optax.adafactor(1e-2), "FactoredState.*sums over channels at"),
    "in a chain": (
        optax.chain(optax.clip(1.0), optax.adafactor(1e-2), optax.add_noise(0, 0, 0)),
        "FactoredState.*'1/0/v_.*/up'",
    ),
    "accumulated": (
        optax.MultiSteps(optax.adafactor(1e-2), 2).gradient_transformation(),
        "FactoredState",
    ),
    "sm3": (optax.sm3(1e-2), "ScaleBySM3State.*does not keep one array"),
    "novograd": (optax.novograd(1e-2), r"NovogradState.*'0/nu/bias' \(shape \(\)\)"),
    "line search": (optax.lbfgs(), "ScaleByLBFGSState"),
    "lbfgs": (optax.scale_by_lbfgs(), "ScaleByLBFGSState"),
    "flattened": (optax.flatten(optax.adam(1e-2)), "ScaleByAdamState"),
}


@pytest.mark.parametrize("optimizer, words", SUMS.values(), ids=SUMS)
def test_sums_over_channels_are_refused_by_name(optimizer, words):
    with pytest.raises(InputError, match=words) as caught:
        take_optimizer(optimizer, optimizer.init(FULL), FULL, WIDE, HALF)
    assert "start it anew" in str(caught.value) and "\n" not in str(caught.value)


def adam(params):
    return optax.adam(1e-2).init(params)


NARROW = by_hand.take(FULL, WIDE, HALF)
BAD = {
    "another optimizer": (
        optax.sgd(0.1, 0.9).init(FULL),
        FULL,
        HALF,
        "expected ScaleByA",
    ),
    "other widths": (
        adam(FULL),
        NARROW,
        HALF[:64],
        r"shape \(256,\) at '0/mu/bias'",
    ),
    "other parameters": (
        adam(FULL),
        {**FULL, "x": jnp.ones(1)},
        HALF,
        "not of this opt",
    ),
    "no state": (None, FULL, HALF, "not of this optimizer.*got NoneType"),
    "descending": (adam(FULL), FULL, [1, 0], "group 'wide': indices must be ascending"),
    "no group": (adam(tree()), tree(), [0], "group 'wide': no array matches 'up'"),
}


@pytest.mark.parametrize("state, params, kept, words", BAD.values(), ids=BAD)
def test_what_does_not_belong_together_is_refused(state, params, kept, words):
    with pytest.raises(InputError, match=words) as caught:
        take_optimizer(optax.adam(1e-2), state, params, WIDE, kept)
    assert "\n" not in str(caught.value)


def test_both_axes_of_a_moment_are_cut():
    optimizer, params = optax.adam(1e-2), {"w": jnp.ones((6, 6))}
    group = Group("g", axes=(("w", 0), ("w", 1)))
    mask = np.isin(np.arange(6), KEPT)
    cut = take_optimizer(optimizer, optimizer.init(params), params, group, mask)
    assert cut[0].mu["w"].shape == cut[0].nu["w"].shape == (3, 3)


def test_states_of_nnx_parameters():
    params = nnx.state(nnx.Linear(3, 6, rngs=nnx.Rngs(0)), nnx.Param)
    group = Group("g", axes=(("*/value", -1),))
    optimizer = optax.adam(1e-2)
    cut = take_optimizer(optimizer, optimizer.init(params), params, group, KEPT)
    fresh = optimizer.init(by_hand.take(params, group, KEPT))
    assert jax.tree.map(jnp.shape, cut) == jax.tree.map(jnp.shape, fresh)
