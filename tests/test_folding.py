"""Batch norms folded into kernels: the same outputs, from fewer equations."""

from typing import Any

import flax.linen as nn
import graph_models
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

import ispasp_jax
from ispasp_jax import export
from ispasp_jax.export.equations import equations
from ispasp_jax.graph.program import program


def drawn(variables, seed=0):
    """Moments and scales as a trained network's: none is 0 or 1."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: jnp.asarray(draw.uniform(0.4, 1.6, a.shape) * np.sign(a + 0.1),
                              a.dtype),
        variables,
    )  # fmt: skip


def count(function, variables, x):
    """Live equations: what is left when weights are constants."""
    whole = equations(function, variables, [jax.ShapeDtypeStruct(x.shape, x.dtype)])
    return sum(eqn.outputs[0].live for eqn in whole.equations)


def test_a_shipped_network():
    model = networks.NETWORKS["mobile"]
    x = jax.random.normal(jax.random.key(1), (3, 16, 16, 3))
    variables = drawn(model.init(jax.random.key(0), x))
    shape = jax.ShapeDtypeStruct((2, 16, 16, 3), "float32")
    folded = export.fold(model, variables, [shape])
    assert not any("mean" in path or "scale" in path for path in folded.variables)
    norms = sum("mean" in path for path, _ in flat(variables))
    before = count(model.apply, variables, x)
    after = count(folded.function, folded.variables, x)
    assert after <= before - 2 * norms
    ours = folded.function(folded.variables, x)
    right = model.apply(variables, x)
    scale = float(jnp.abs(right).max())
    np.testing.assert_allclose(ours, right, atol=1e-5 * scale)
    jitted = jax.jit(folded.function)(folded.variables, x[:1])
    np.testing.assert_allclose(jitted, right[:1], atol=1e-5 * scale)


def flat(tree):
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in pairs]


def test_a_pruned_network_as_onnx(tmp_path):
    onnx = pytest.importorskip("onnx")
    model, x = graph_models.Flatten(), graph_models.images(8)
    variables = drawn(graph_models.variables(model, x))
    pruned = ispasp_jax.prune(model, variables, [x], keep=0.5)
    plain = export.onnx(pruned, tmp_path / "plain.onnx")
    folded = export.onnx(pruned, tmp_path / "folded.onnx", fold=True)
    assert folded.nodes <= plain.nodes and folded.largest_difference < 1e-5
    names = {a.name for a in onnx.load(folded.path).graph.initializer}
    assert any(name.startswith("params/") for name in names)
    small = export.fold(pruned)
    (timed,) = ispasp_jax.latency(small, [2], repeats=1)
    assert timed.milliseconds > 0


class Odd(nn.Module):
    """What must not be folded: a kernel that two read, a scale that differs from place
    to place, a product that is read before its norm."""

    @nn.compact
    def __call__(self, x):
        twice = nn.Dense(6, name="twice")
        x = nn.BatchNorm(True, name="bn0")(twice(x))
        x = nn.BatchNorm(True, name="bn1")(nn.relu(twice(x)))
        places = self.param("places", nn.initializers.normal(), (4, 6))
        x = nn.Dense(6, use_bias=False, name="before")(x) * places + 2
        y = nn.Dense(6, name="forked")(x)
        x = nn.BatchNorm(True, name="bn2")(y) + y
        return (3 - nn.Dense(5, name="turned")(x)) / 7


def test_what_cannot_be_folded_is_left(tmp_path):
    model: Any = Odd()
    x = np.random.default_rng(0).normal(size=(3, 4, 6)).astype("float32")
    variables = drawn(model.init(jax.random.key(0), x))
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    folded = export.fold(model, variables, [shape])
    shifts = {path for path in folded.variables if path.endswith("/shift")}
    assert {path.split("/")[1] for path in shifts} == {"twice", "turned"}
    ours, right = folded.function(folded.variables, x), model.apply(variables, x)
    np.testing.assert_allclose(ours, right, rtol=1e-5, atol=1e-5)
    for name in ("places", "bn1/mean", "bn2/mean"):
        assert any(name in path for path in folded.variables), name
    file = tmp_path / "odd.stablehlo"
    written = export.stablehlo(model, file, variables, [shape], fold=True)
    assert written.largest_difference < 1e-5


def test_layers_of_a_scan_are_folded_each():
    def layer(h, weights):
        return jax.nn.relu(h @ weights["k"] * weights["g"] + weights["b"]), None

    def function(v, x):
        return jax.lax.scan(layer, x, v)[0]

    draw = np.random.default_rng(0)
    shapes = {"k": (3, 5, 5), "g": (3, 5), "b": (3, 5)}
    v = {n: draw.normal(size=s).astype("float32") for n, s in shapes.items()}
    x = draw.normal(size=(4, 5)).astype("float32")
    folded = export.fold(function, v, [jax.ShapeDtypeStruct(x.shape, x.dtype)])
    assert len(folded.variables) == 6
    np.testing.assert_allclose(
        folded.function(folded.variables, x), function(v, x), rtol=1e-5, atol=1e-6
    )
    closed = jax.make_jaxpr(folded.function)(folded.variables, x)
    assert [e.name for e in program(closed).equations].count("mul") == 0
