"""Ranks that are planted, found."""

import json

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from networks import NETWORKS, images_of, variables_of

from ispasp_jax import graph, walk
from ispasp_jax.cli import prune, train


def planted(rank, d=12, seed=0):
    """Two layers whose d hidden channels are sums of a few."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(rank, d))
    variables = {
        "a": jnp.asarray(rng.normal(size=(20, rank)) @ mix, jnp.float32),
        "b": jnp.asarray(rng.normal(size=(d, 4)), jnp.float32),
    }

    def function(variables, x):
        return x @ variables["a"] @ variables["b"]

    x = jnp.asarray(rng.normal(size=(64, 20)), jnp.float32)
    return graph.trace(function, variables, x), variables, x


@pytest.mark.parametrize("rank", [1, 3, 12])
def test_planted_ranks_are_found(rank):
    traced, variables, x = planted(rank)
    label = np.arange(64) % 4
    whole = walk.redundancy(traced, variables, [x], tolerance=1e-3, labels=[label])
    parts = walk.redundancy(traced, variables, [x[:40], x[40:]], tolerance=1e-3)
    (name,) = traced
    assert whole[name].rank == parts[name].rank == rank
    assert parts[name].gradient_rank is None
    found = whole[name].gradient_rank
    assert found is not None and 1 <= found <= 12


def test_the_covariance_is_that_of_the_channels_alone():
    """Of a convolution's input, whatever its positions and padding."""
    network = NETWORKS["basic"]
    variables, x = variables_of(network), images_of(10)
    traced = graph.trace(network, variables, x)
    every = walk.redundancy(traced, variables, [x], tolerance=0.2)
    assert {n: r.width for n, r in every.items()} == {
        group.name: group.width for group in traced.groups
    }
    seen = {}

    def keep(next_, args, kwargs, context):
        if context.module.path[-2:] == ("layer1.0", "conv2"):
            seen["h"] = args[0]
        return next_(*args, **kwargs)

    with nn.intercept_methods(keep):
        network.apply(variables, jnp.asarray(x))
    h = np.asarray(seen["h"], np.float64).reshape(-1, 10)
    values = np.linalg.svd(h - h.mean(0), compute_uv=False)
    assert every["layer1.0"].rank == (values > 0.2 * values[0]).sum()
    few = walk.redundancy(traced, variables, [x], [traced["layer1.0"]])
    assert [*few] == ["layer1.0"] and few["layer1.0"].rank >= every["layer1.0"].rank


def test_keep_auto_keeps_the_ranks(tmp_path, capsys):
    weights, out = tmp_path / "weights", tmp_path / "out"
    assert train.main(["--model=mlp", "--epochs=1", f"--out={weights}"]) == 0
    flags = ["--model=mlp", f"--weights={weights}", f"--out={out}", "--keep=auto"]
    assert prune.main([*flags, "--calibration-images=64", "--finetune-epochs=0"]) == 0
    report = json.loads((out / "report.json").read_text())
    for group in report["groups"]:
        assert group["kept"] == group["rank"] <= group["width"]
    assert "rank" in capsys.readouterr().out
    for more in (["0.5"], ["--dry-run"]):
        assert prune.main([*flags, *more]) == 2
    assert "give it alone" in capsys.readouterr().err.replace("\n", " ")
