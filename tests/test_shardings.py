"""A narrowed function on many devices gives what it gives on one."""

import chex
import graph_models as models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ispasp_jax import graph
from ispasp_jax.graph.check import random_plan
from ispasp_jax.graph.widths import first

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def mesh():
    assert len(jax.devices()) == 8
    return Mesh(np.array(jax.devices()), ("d",))


def put(mesh, tree, *spec):
    return jax.device_put(tree, NamedSharding(mesh, P(*spec)))


def test_the_batch_may_lie_on_many_devices(mesh):
    """Outputs and gradients, of arrays cut before and after they were copied."""
    model, x, rng = models.Trained(), models.images(16), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    variables = jax.tree.map(
        lambda a: jnp.asarray(rng.uniform(0.1, 0.3, a.shape), a.dtype), shapes
    )
    traced = graph.trace(model, shapes, x[:2])
    plan = random_plan(traced)
    narrow = graph.narrow(traced.function, traced, plan)
    run = jax.jit(jax.value_and_grad(lambda v, x: jnp.tanh(narrow(v, x)).mean()))
    small = traced.take(plan, variables)
    many = run(put(mesh, small), put(mesh, x, "d"))
    assert len(jax.tree.leaves(many)[1].sharding.device_set) == 8
    chex.assert_trees_all_close(many, run(small, x), **CLOSE)
    copied = traced.take(plan, put(mesh, variables))
    chex.assert_trees_all_close(copied, small)


def test_weights_may_lie_on_many_devices(mesh):
    """Channels spread as in tensor parallelism, and a constraint inside."""
    rng = np.random.default_rng(0)
    variables = {
        "up": jnp.asarray(rng.normal(size=(6, 32)), jnp.float32),
        "down": jnp.asarray(rng.normal(size=(32, 5)), jnp.float32),
    }
    x = jnp.asarray(rng.normal(size=(16, 6)), jnp.float32)

    def net(v, x):
        h = jnp.tanh(x @ v["up"])
        h = jax.lax.with_sharding_constraint(h, NamedSharding(mesh, P(None, "d")))
        return h @ v["down"]

    traced = graph.trace(net, variables, x)
    assert [group.width for group in traced.groups] == [32]
    plan = first(traced, dict.fromkeys(traced, 16))
    small = traced.take(plan, variables)
    run = jax.jit(graph.narrow(net, traced, plan))
    spread = {
        "up": put(mesh, small["up"], None, "d"),
        "down": put(mesh, small["down"], "d"),
    }
    hidden = jnp.tanh(x @ variables["up"][:, :16])
    expected = hidden @ variables["down"][:16]
    chex.assert_trees_all_close(run(spread, x), expected, **CLOSE)
    text = run.lower(spread, x).compile().as_text()
    assert "f32[16,2]" in text  # two of sixteen channels on each device
