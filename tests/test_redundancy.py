"""Ranks that are planted, found."""

import json

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from networks import NETWORKS, images_of, variables_of

import ispasp_jax
from ispasp_jax import walk
from ispasp_jax.cli import prune, train
from ispasp_jax.errors import InputError


def planted(rank, d=12, seed=0):
    """Two layers whose d hidden channels are sums of a few, and a constant."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(rank, d))
    variables = {
        "a": jnp.asarray(rng.normal(size=(20, rank)) @ mix, jnp.float32),
        "shift": jnp.asarray(rng.normal(size=d) * 10, jnp.float32),
        "b": jnp.asarray(rng.normal(size=(d, 4)), jnp.float32),
        "bias": jnp.zeros(4),
    }

    def function(variables, x):
        hidden = x @ variables["a"] + variables["shift"]
        return hidden @ variables["b"] + variables["bias"]

    return function, variables, jnp.asarray(rng.normal(size=(64, 20)), jnp.float32)


@pytest.mark.parametrize("rank", [1, 3, 12])
def test_planted_ranks_are_found(rank):
    function, variables, x = planted(rank)
    traced = ispasp_jax.trace(function, variables, x)
    (whole,) = ispasp_jax.redundancy(traced, variables, [x]).values()
    (parts,) = ispasp_jax.redundancy(traced, variables, [x[:40], x[40:]]).values()
    assert whole.width == 12 and whole.gradient is None
    assert whole.rank(1e-3) == parts.rank(1e-3) == rank
    h = np.asarray(x, np.float64) @ np.asarray(variables["a"], np.float64)
    expected = np.linalg.svd(h - h.mean(0), compute_uv=False) / 8
    np.testing.assert_allclose(whole.hidden, expected, atol=1e-3 * expected[0])


def test_as_many_channels_as_the_rank_lose_nothing():
    function, variables, x = planted(3)
    how = {"criterion": "obs", "scope": "all"}
    pruned = ispasp_jax.prune(function, variables, [x], "auto", **how)
    (group,) = pruned.groups
    assert len(group.cut.kept) <= 3  # at the default tolerance
    exact = ispasp_jax.prune(function, variables, [x], 3 / 12, **how)
    before, after = function(variables, x), exact.apply(exact.variables, x)
    np.testing.assert_allclose(after, before, atol=2e-3 * float(jnp.abs(before).max()))


@pytest.mark.parametrize("tolerance, rank", [(0.0, 3), (0.1, 3), (0.2, 2), (0.9, 1)])
def test_the_share_of_the_norm_that_a_rank_misses(tolerance, rank):
    assert walk.rank(np.array([1.0, 0.5, 0.125, 0.0]), tolerance) == rank
    assert walk.rank(np.zeros(4), tolerance) == 1


def test_a_tolerance_is_a_share():
    with pytest.raises(InputError, match=r"from 0 to below 1; got 1\.0"):
        walk.rank(np.ones(3), 1.0)


def test_the_covariance_is_that_of_the_channels_alone():
    """Of a convolution's input, whatever its positions and padding."""
    network = NETWORKS["basic"]
    variables, x = variables_of(network), images_of(10)
    traced = ispasp_jax.trace(network, variables, x)
    every = walk.redundancy(traced, variables, [x[:7], x[7:]])
    assert {name: found.width for name, found in every.items()} == {
        group.name: group.width for group in traced.groups
    }
    seen = {}

    def keep(next_, args, kwargs, context):
        if context.module.path[-2:] == ("layer1.0", "conv2"):
            seen["h"] = args[0]
        return next_(*args, **kwargs)

    with nn.intercept_methods(keep):
        network.apply(variables, jnp.asarray(x))
    h = np.asarray(seen["h"], np.float64).reshape(-1, traced["layer1.0"].width)
    values = np.linalg.svd(h - h.mean(0), compute_uv=False) / np.sqrt(len(h))
    np.testing.assert_allclose(every["layer1.0"].hidden, values, atol=1e-4 * values[0])
    few = walk.redundancy(traced, variables, [x], [traced["layer1.0"]])
    assert [*few] == ["layer1.0"]


def test_gradients_of_gates_on_all_groups_are_those_of_each():
    """The singular values of the loss's gradient by gates, against a matrix that numpy
    writes down: of a linear layer, (softmax − label) Bᵀ times the channels.
    """
    function, variables, x = planted(5)
    traced = ispasp_jax.trace(function, variables, x)
    labels = np.arange(64) % 4
    (found,) = walk.redundancy(
        traced, variables, [x[:40], x[40:]], labels=[labels[:40], labels[40:]]
    ).values()
    a, shift, b = (np.asarray(variables[n], np.float64) for n in ("a", "shift", "b"))
    h = np.asarray(x, np.float64) @ a + shift
    z = h @ b
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    gradient = (p - np.eye(4)[labels]) @ b.T * h
    values = np.linalg.svd(gradient, compute_uv=False) / 8
    assert found.gradient is not None
    np.testing.assert_allclose(found.gradient, values, atol=1e-3 * values[0])
    assert found.gradient_rank() == walk.rank(values)


def test_keep_auto_keeps_the_ranks(tmp_path, capsys):
    weights, out = tmp_path / "weights", tmp_path / "out"
    assert train.main(["--model=mlp", "--epochs=1", f"--out={weights}"]) == 0
    flags = ["--model=mlp", f"--weights={weights}", f"--out={out}", "--keep=auto"]
    assert prune.main([*flags, "--calibration-images=64", "--finetune-epochs=0"]) == 0
    report = json.loads((out / "report.json").read_text())
    for group in report["groups"]:
        assert group["kept"] == group["rank"] < group["width"]
    assert report["seconds"]["ranks"] > 0
    assert any("at most 10%" in note for note in report["notes"])
    assert " rank " in capsys.readouterr().out
    for more in (["--keep=0.5"], ["--dry-run"], ["--method=sglp"]):
        assert prune.main([*flags, *more]) == 2
        assert "give it alone" in capsys.readouterr().err.replace("\n", " ")
