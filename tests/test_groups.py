"""Cutting and masking of parameter trees, of NNX states and of optimizer states."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
from flax import nnx

from ispasp_jax.graph import by_hand
from ispasp_jax.graph.by_hand import Group

GROUP = Group(
    "block",
    axes=(("block/conv1/*", -1), ("block/bn1/*", -1), ("block/conv2/kernel", -2)),
)
KEPT = np.array([0, 2, 5])


def tree(seed=0, d=6):
    rng = np.random.default_rng(seed)

    def array(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "block": {
            "conv1": {"kernel": array(3, 3, 4, d), "bias": array(d)},
            "bn1": {"scale": array(d), "bias": array(d)},
            "conv2": {"kernel": array(3, 3, d, 7), "bias": array(7)},
        },
        "block2": {"conv1": {"kernel": array(3, d)}},
        "fc": {"kernel": array(d, d)},
    }


#: Written out by hand: what GROUP cuts, and where.
AXES = {
    "block/conv1/kernel": 3,
    "block/conv1/bias": 0,
    "block/bn1/scale": 0,
    "block/bn1/bias": 0,
    "block/conv2/kernel": 2,
}


def flat(nested):
    return dict(by_hand.leaves(nested))


def assert_cut(cut, full):
    assert flat(cut).keys() == flat(full).keys()
    for path, leaf in flat(full).items():
        expected = np.asarray(leaf)
        if path in AXES:
            expected = np.delete(expected, [1, 3, 4], AXES[path])
        np.testing.assert_array_equal(flat(cut)[path], expected)


def test_width_counts_channels():
    assert by_hand.width(tree(), GROUP) == 6
    assert by_hand.width(by_hand.take(tree(), GROUP, KEPT), GROUP) == 3


def test_width_names_a_pattern_without_an_array():
    lost = GROUP._replace(axes=(*GROUP.axes, ("block/bn7/*", -1)))
    with pytest.raises(ValueError, match=r"'block'.*'block/bn7/\*'.*block/bn1/scale"):
        by_hand.width(tree(), lost)


def test_width_shows_arrays_that_disagree():
    torn = tree()
    torn["block"]["bn1"]["scale"] = jnp.zeros(5)
    with pytest.raises(ValueError, match="disagree.*'block/bn1/scale': 5"):
        by_hand.width(torn, GROUP)


def test_take_cuts_these_arrays_and_no_others():
    full = tree()
    cut = by_hand.take(full, GROUP, KEPT)
    assert_cut(cut, full)
    assert cut["fc"]["kernel"] is full["fc"]["kernel"]


def test_take_keeps_numpy_numpy_and_contiguous():
    full = jax.tree.map(np.asarray, tree())
    cut = by_hand.take(full, GROUP, KEPT)
    assert_cut(cut, full)
    for leaf in flat(cut).values():
        assert isinstance(leaf, np.ndarray) and leaf.flags.c_contiguous


def test_mask_zeroes_what_take_cuts():
    full = tree()
    masked = by_hand.mask(full, GROUP, KEPT)
    for path, leaf in flat(full).items():
        expected = np.array(leaf)
        if path in AXES:
            expected = np.moveaxis(expected, AXES[path], 0)
            expected[[1, 3, 4]] = 0
            expected = np.moveaxis(expected, 0, AXES[path])
        np.testing.assert_array_equal(flat(masked)[path], expected)
    assert_cut(by_hand.take(masked, GROUP, KEPT), full)


def test_linen_variables_are_cut_in_every_collection():
    full = {
        "params": tree(),
        "batch_stats": {
            "block": {"bn1": {"mean": jnp.arange(6.0), "var": jnp.ones(6)}}
        },
    }
    assert by_hand.width(full, GROUP) == 6
    cut = by_hand.take(full, GROUP, KEPT)
    assert cut.keys() == full.keys()
    assert_cut(cut["params"], full["params"])
    np.testing.assert_array_equal(cut["batch_stats"]["block"]["bn1"]["mean"], KEPT)
    masked = by_hand.mask(full, GROUP, KEPT)
    np.testing.assert_array_equal(
        masked["batch_stats"]["block"]["bn1"]["mean"], [0, 0, 2, 0, 0, 5]
    )


class Perceptron(nnx.Module):
    def __init__(self, wide, rngs):
        self.layers = nnx.List([nnx.Linear(3, wide, rngs=rngs)])
        self.norm = nnx.BatchNorm(wide, use_running_average=True, rngs=rngs)
        self.out = nnx.Linear(wide, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.norm(self.layers[0](x))))


def test_nnx_states():
    """An NNX model is cut through its pure dict, and computes what its mask does."""
    group = Group(
        "hidden",
        axes=(("layers/0/*", -1), ("norm/*", -1), ("out/kernel", -2)),
    )
    model = Perceptron(6, nnx.Rngs(0))
    full = networks.randomised(nnx.to_pure_dict(nnx.state(model)))
    assert by_hand.width(full, group) == 6

    def logits(model, pure):
        graph, state = nnx.split(model)
        nnx.replace_by_pure_dict(state, pure)
        return nnx.merge(graph, state)(jnp.asarray(networks.images_of(5, (3,))))

    cut = logits(Perceptron(3, nnx.Rngs(0)), by_hand.take(full, group, KEPT))
    masked = logits(model, by_hand.mask(full, group, KEPT))
    np.testing.assert_allclose(cut, masked, rtol=1e-5, atol=1e-6)
    assert np.abs(cut - logits(model, full)).max() > 1e-3


def test_averaged_weights_are_a_tree_like_any_other():
    average = optax.incremental_update(tree(1), tree(0), 0.1)
    assert_cut(by_hand.take(average, GROUP, KEPT), average)
