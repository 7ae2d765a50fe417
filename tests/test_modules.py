"""A framework's own module takes the arrays that a plan leaves, or says why not."""

import chex
import equinox as eqx
import graph_models as models
import haiku as hk
import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
from flax import nnx

from ispasp_jax import graph
from ispasp_jax.graph import linen, modules
from ispasp_jax.graph.check import random_plan
from ispasp_jax.graph.modules import Unfit, narrower


def planned(traced, kinds=None):
    """Half of every group; those that a cut makes another function of stay whole."""
    plan = random_plan(traced)
    kinds = kinds or {group.kind for group in traced.groups} - {"product"}
    return {name: one for name, one in plan.items() if traced[name].kind in kinds}


LINEN = (
    *(models.Flatten, models.UNet, models.SqueezeExcite, models.ViT, models.Scanned),
    *(models.DenseNet, models.MaskedLanguage, models.Trained),
)


@pytest.mark.parametrize("make", LINEN)
def test_a_linen_module_gives_what_the_masked_one_gives(make):
    model = make()
    x = models.images()
    if make is models.MaskedLanguage:
        x = jnp.arange(12).reshape(2, 6) % 11
    variables = models.variables(model, x)
    traced = graph.trace(model, variables, x)
    plan = planned(traced)
    small = traced.take(plan, variables)
    module = narrower(model, traced, plan, small)
    same = linen.Narrower(make(), module.blocks)
    assert module == same and hash(module) == hash(same)
    masked = jax.jit(model.apply)(traced.mask(plan, variables), x)
    found = jax.jit(module.apply)(small, x)
    scale = float(jnp.abs(masked).max())
    np.testing.assert_allclose(found, masked, rtol=0, atol=1e-5 * scale)
    # Fields are the author's again, and at full width it is the author's module.
    own, wrapped = (
        modules.program(jax.make_jaxpr(m.apply)(variables, x)) for m in (model, module)
    )
    assert modules._equal(own, wrapped)
    again = graph.trace(module, small, x)
    assert narrower(module, again, {}, small) is module


def test_a_linen_module_trains_with_moments_and_dropout():
    model, x = models.Trained(), models.images(4)
    variables = models.variables(model, x)
    traced = graph.trace(model, variables, x)
    plan = planned(traced)
    small = traced.take(plan, variables)
    module = narrower(model, traced, plan, small)

    def train(network):
        def loss(params, statistics, x, key):
            given = {"params": params, **statistics}
            logits, moved = network.apply(
                given, x, train=True, mutable=["batch_stats"], rngs={"dropout": key}
            )
            return (
                optax.softmax_cross_entropy_with_integer_labels(
                    logits, jnp.arange(4)
                ).mean(),
                moved,
            )

        return jax.jit(jax.grad(loss, has_aux=True))

    own, key = {"batch_stats": small["batch_stats"]}, jax.random.key(2)
    found, moved = train(module)(small["params"], own, x, key)
    chex.assert_trees_all_equal_shapes(found, small["params"])
    chex.assert_trees_all_equal_shapes(moved["batch_stats"], small["batch_stats"])

    def loss(variables, x, key):
        logits, moved = model.apply(
            variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )
        return (
            optax.softmax_cross_entropy_with_integer_labels(
                logits, jnp.arange(4)
            ).mean(),
            moved,
        )

    function = jax.grad(graph.narrow(loss, traced, plan), has_aux=True)
    gradient, statistics = jax.jit(function)(small, x, key)
    chex.assert_trees_all_close(found, gradient["params"], rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(moved, statistics, rtol=1e-5)


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_the_shipped_networks_are_the_same_equations(name, monkeypatch):
    """So that nothing is compiled to find out."""
    network = networks.NETWORKS[name]
    variables = networks.variables_of(network)
    x = networks.images_of(2)
    traced = graph.trace(network, variables, x)
    plan = planned(traced, {"inner"})
    small = traced.take(plan, variables)
    monkeypatch.setattr(jax, "jit", None)
    module = narrower(network, traced, plan, small)
    again = graph.trace(module, small, x)
    assert [g.name for g in again.groups] == [g.name for g in traced.groups]
    assert {n: again[n].width for n in plan} == {
        n: len(c.kept) for n, c in plan.items()
    }
    assert module.num_classes == 4 and modules.whole(module) is network


class Mixed(nnx.Module):
    """NNX's layers that keep sizes beside their arrays."""

    def __init__(self, rngs):
        self.layers = nnx.List(
            [
                nnx.Conv(3, 8, (3, 3), rngs=rngs),
                nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=rngs),
                nnx.GroupNorm(8, num_groups=4, rngs=rngs),
                nnx.ConvTranspose(8, 6, (2, 2), rngs=rngs),
            ]
        )
        self.attention = nnx.MultiHeadAttention(
            num_heads=2, in_features=6, qkv_features=8, decode=False, rngs=rngs
        )
        self.head = nnx.Linear(6, 5, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.relu(layer(x))
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        return self.head(self.attention(x).mean(1))


@pytest.mark.parametrize("make", [models.Residual, Mixed])
def test_an_nnx_module_carries_the_cut_arrays(make):
    model, x = make(nnx.Rngs(0)), models.images()
    traced = graph.trace(model, None, x)
    plan = planned(traced)
    # The library of NNX wants values as wide as keys.
    plan = {name: one for name, one in plan.items() if not name.endswith("value.2")}
    assert plan
    state = nnx.state(model)
    module = narrower(model, traced, plan, traced.take(plan, state))
    masked = traced.function(traced.mask(plan, state), x)
    np.testing.assert_allclose(module(x), masked, rtol=1e-4, atol=1e-5)
    assert type(module) is make
    if make is Mixed:
        deep = module.layers[1]
        assert deep.feature_group_count == deep.in_features == deep.out_features == 4
        assert model.layers[1].feature_group_count == 8
        assert module.layers[2].num_groups == 2 and module.attention.num_heads == 1
        step = nnx.grad(lambda m: m(x).sum())(module)
        chex.assert_shape(step["layers"][0]["kernel"].get_value(), (3, 3, 3, 4))


class Tree(eqx.Module):
    """Equinox's layers that keep sizes beside their arrays."""

    layers: list
    attention: eqx.nn.MultiheadAttention
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 6)
        self.layers = [
            eqx.nn.Conv2d(3, 8, 3, key=keys[0]),
            eqx.nn.Conv2d(8, 8, 3, groups=8, key=keys[1]),
            eqx.nn.GroupNorm(4, 8),
            jax.nn.relu,
            eqx.nn.Conv2d(8, 6, 1, key=keys[2]),
        ]
        self.attention = eqx.nn.MultiheadAttention(2, 6, key=keys[3])
        self.head = eqx.nn.Linear(6, 5, key=keys[4])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        x = x.reshape(x.shape[0], -1).T
        return self.head(self.attention(x, x, x).mean(0))


def test_an_equinox_module_holds_the_cut_arrays():
    model, x = Tree(jax.random.key(0)), jnp.moveaxis(models.images(), -1, 1)
    traced = graph.trace(model, None, x)
    plan = planned(traced)
    assert {traced[name].kind for name in plan} >= {"shared", "head"} or len(plan) > 2
    module = narrower(model, traced, plan, traced.take(plan, model))
    masked = jax.vmap(traced.mask(plan, model))(x)
    np.testing.assert_allclose(jax.vmap(module)(x), masked, rtol=1e-4, atol=1e-5)
    deep, norm = module.layers[1], module.layers[2]
    assert deep.groups == deep.in_channels == deep.out_channels == 4
    assert (norm.groups, norm.channels) == (2, 4)
    assert model.layers[1].groups == 8 and model.layers[2].groups == 4


def test_what_cannot_be_narrower_says_why():
    model, x = models.Fused(), models.images()
    variables = models.variables(model, x)
    traced = graph.trace(model, variables, x)
    plan = planned(traced, {"head"})
    with pytest.raises(Unfit, match="its code does not run at the cut widths .TypeErr"):
        narrower(model, traced, plan, traced.take(plan, variables))

    transform = hk.transform(lambda x: hk.Linear(3)(jax.nn.relu(hk.Linear(6)(x))))
    x = jnp.ones((2, 4))
    params = transform.init(jax.random.key(0), x)
    for model in (transform, lambda v, x: transform.apply(v, None, x)):
        traced = graph.trace(model, params, x)
        with pytest.raises(Unfit, match="it is no module"):
            narrower(model, traced, {}, params)


def test_another_function_is_found_out():
    """A module that goes by the width of what it is given, and so changes when cut."""
    model, x = models.ViT(), models.images()
    variables = models.variables(model, x)
    traced = graph.trace(model, variables, x)
    plan = planned(traced, {"product"})
    with pytest.raises(Unfit, match="its outputs are .* from the cut function's"):
        narrower(model, traced, plan, traced.take(plan, variables))


def test_programs_are_compared_by_value():
    def made(function, *arrays):
        return modules.program(jax.make_jaxpr(function)(*arrays))

    x, y = jnp.ones(3), jnp.ones(3)
    one = made(lambda x, y: jnp.sin(x) - y * 2.0, x, y)
    assert modules._equal(one, made(lambda x, y: jnp.sin(x) - y * 2.0, x, y))
    for other in (
        lambda x, y: jnp.sin(y) - x * 2.0,
        lambda x, y: jnp.cos(x) - y * 2.0,
        lambda x, y: jnp.sin(x) - y * 3.0,
        lambda x, y: y * 2.0 - jnp.sin(x),
        lambda x, y: jnp.sin(x) - (y * 2.0).astype("bfloat16"),
    ):
        assert not modules._equal(one, made(other, x, y))
