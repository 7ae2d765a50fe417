"""Branches: found in the equations, and gone without a trace."""

import graph_models as models
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import NETWORKS, images_of, variables_of

import ispasp_jax
from ispasp_jax import budget, graph, walk
from ispasp_jax.budget import cost
from ispasp_jax.errors import InputError
from ispasp_jax.graph import Cut
from ispasp_jax.graph.check import difference, random_plan
from ispasp_jax.models.resnet import ResNet
from ispasp_jax.walk.curves import measure_curves

NOTHING = np.zeros(0, int)


def a_network(name):
    if name == "vit":
        model, x = models.ViT(), models.images(3)
        return model, models.variables(model, x), x
    if name == "bottlenecks":
        network = ResNet(4, depths=(2, 1), base=6, stem="small", bottleneck=True)
    else:
        network = NETWORKS[name]
    return network, variables_of(network), images_of(3)


#: What a person would call a block that can be left out.
BRANCHES = {
    "basic": {"layer1.0": 1, "layer1.1": 1},
    "bottlenecks": {"layer1.1": 2},
    "mobile": {"features.3": 1},
    "mlp": {},
    "vit": {"Encoder_0.MultiHeadDotProductAttention_0": 3, "Encoder_0": 1},
}


@pytest.mark.parametrize("name", BRANCHES)
def test_branches_are_found_and_go(name):
    """Their sums are what was added to, and no equation of theirs is left."""
    network, variables, x = a_network(name)
    traced = graph.trace(network, variables, x)
    found = {n: len(branch.groups) for n, branch in traced.branches.items()}
    assert found == BRANCHES[name]
    for one, branch in traced.branches.items():
        plan = traced.without(one)
        assert one in str(traced)
        assert difference(traced, variables, plan, x) < 1e-6
        others = {**random_plan(traced), **plan}
        assert difference(traced, variables, others, x) < 1e-5
        small = traced.take(plan, variables)
        own = {*branch.paths}
        for path, leaf in jax.tree_util.tree_leaves_with_path(small):
            assert (leaf.size == 0) == (graph.key_path(path) in own)
        jaxpr = jax.make_jaxpr(graph.narrow(traced.function, traced, plan))(small, x)
        read = {v for eqn in jaxpr.eqns for v in eqn.invars if not hasattr(v, "val")}
        given = dict(zip(traced.dims, jaxpr.jaxpr.invars, strict=False))
        assert not read & {given[path] for path in own}


def by_hand(variables, x):
    """Two branches: of one group, and of none."""
    a, b, c, d = (variables[name] for name in "abcd")
    x = x @ a
    x = x + jnp.tanh(x @ b) @ c
    x = x + (x @ d)
    return x @ variables["e"]


def shapes_by_hand(rng):
    sizes = {"a": (5, 6), "b": (6, 7), "c": (7, 6), "d": (6, 6), "e": (6, 3)}
    return {n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in sizes.items()}


def test_removing_is_leaving_out():
    """The numbers are those of the function written without the branch, and so are its
    derivatives."""
    rng = np.random.default_rng(0)
    variables, x = shapes_by_hand(rng), jnp.asarray(rng.normal(size=(4, 5)))
    traced = graph.trace(by_hand, variables, x)
    assert [*traced.branches] == ["c"] or [*traced.branches] == ["b"]
    (name,) = traced.branches
    plan = traced.without(name)

    def loss(variables, x, function):
        return (function(variables, x) ** 2).sum()

    def left(variables, x):
        x = x @ variables["a"]
        x = x + (x @ variables["d"])
        return x @ variables["e"]

    small = traced.take(plan, variables)
    inside = graph.narrow(
        lambda v, x: jax.value_and_grad(loss)(v, x, by_hand), traced, plan
    )
    value, moved = inside(small, x)
    outside = graph.narrow(by_hand, traced, plan)
    expected = jax.value_and_grad(loss)(variables, x, left)
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    for gradients in (moved, jax.grad(loss)(small, x, outside)):
        for key in "ade":
            np.testing.assert_allclose(gradients[key], expected[1][key], rtol=1e-4)
        assert gradients["b"].size == gradients["c"].size == 0


def test_a_training_step_goes_on_without_the_branch():
    """With batch statistics, momentum and a relu whose derivative is its own."""
    network = NETWORKS["basic"]
    variables, x = variables_of(network), jnp.asarray(images_of(4))
    traced = graph.trace(network, variables, x)
    plan = traced.without("layer1.0")
    optimizer = optax.sgd(0.1, 0.9)

    def step(variables, state, x):
        def loss(params):
            given = {**variables, "params": params}
            y, new = network.apply(given, x, train=True, mutable=["batch_stats"])
            return (y**2).mean(), new["batch_stats"]

        gradients, stats = jax.grad(loss, has_aux=True)(variables["params"])
        moved, state = optimizer.update(gradients, state)
        params = optax.apply_updates(variables["params"], moved)
        return {"params": params, "batch_stats": stats}, state

    small = traced.take(plan, variables)
    state = optimizer.init(small["params"])
    narrow = jax.jit(graph.narrow(step, traced, plan))
    for _ in range(2):
        small, state = narrow(small, state, x)
    assert small["params"]["layer1.0"]["conv1"]["kernel"].size == 0
    masked, state = traced.mask(plan, variables), optimizer.init(variables["params"])
    whole = jax.jit(step)
    for _ in range(2):
        masked, state = whole(masked, state, x)
        masked, state = traced.mask(plan, masked), traced.mask(plan, state)
    left = traced.take(plan, masked)
    for ours, theirs in zip(jax.tree.leaves(small), jax.tree.leaves(left), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-4)


def test_half_a_branch_is_refused():
    network, variables, x = a_network("bottlenecks")
    traced = graph.trace(network, variables, x)
    half = {"layer1.1.conv1": Cut(6, NOTHING)}
    with pytest.raises(InputError, match="keep none of layer1.1.conv1, layer1.1.conv2"):
        traced.take(half, variables)
    with pytest.raises(InputError, match="lies in no branch"):
        traced.masks({"layer2.0.conv1": Cut(12, NOTHING)})
    with pytest.raises(InputError, match="there is no branch 'x'"):
        traced.without("x")
    sizes = {"layer1.1.conv1": 0, "layer1.1.conv2": 3}
    with pytest.raises(InputError, match="nothing is left of the branch"):
        walk.walk(traced, variables, [x], sizes)


@pytest.mark.parametrize("name", ["basic", "bottlenecks", "vit"])
def test_the_walk_repairs_behind_a_branch_that_is_gone(name):
    """What it leaves is what the plan takes, and with least squares the next consumers
    make up for a part of it."""
    network, variables, x = a_network(name)
    images = [images_of(16, seed=s) if name != "vit" else models.images(16)
              for s in range(3)]  # fmt: skip
    traced = graph.trace(network, variables, images[0])
    gone = [*traced.branches][0]
    plan = {n: Cut(c.width, c.kept) for n, c in traced.without(gone).items()}
    sizes = dict.fromkeys(plan, 0)
    errors = {}
    expected = traced.function(variables, jnp.asarray(images[0]))
    for repair in ("none", "lsq"):
        options = walk.Options(repair=repair)
        result = walk.walk(traced, variables, images, sizes, options=options)
        assert {n: c.size for n, c in result.plan.items()} == sizes
        again = walk.walk(traced, variables, images, {}, plan=plan, options=options)
        for one, two in zip(
            jax.tree.leaves(result.variables),
            jax.tree.leaves(again.variables),
            strict=True,
        ):
            np.testing.assert_array_equal(one, two)
        small = graph.narrow(traced.function, traced, plan)
        y = small(result.variables, images[0])
        errors[repair] = float(jnp.square(y - expected).mean())
        if repair == "none":
            for one, two in zip(
                jax.tree.leaves(result.variables),
                jax.tree.leaves(traced.take(plan, variables)),
                strict=True,
            ):
                np.testing.assert_array_equal(one, two)
    assert errors["lsq"] < errors["none"]


@pytest.mark.parametrize("name", ["basic", "mobile"])
def test_costs_know_what_goes_with_a_branch(name):
    """Counted by size they are those of the network without it."""
    network, variables, x = a_network(name)
    traced = graph.trace(network, variables, x)
    one = [*traced.branches][0]
    plan = traced.without(one)
    small = graph.trace(
        graph.narrow(traced.function, traced, plan), traced.take(plan, variables), x
    )
    sizes = dict.fromkeys(plan, 0)
    assert cost.macs_by_size(traced).total(sizes) == cost.macs(small)
    params = sum(
        a.size for a in jax.tree.leaves(traced.take(plan, variables)["params"])
    )
    assert cost.parameters_by_size(traced).total(sizes) == params


def test_a_budget_removes_what_costs_least():
    """Branches that nearly give nothing go first; without `depth` none does."""
    network = ResNet(4, depths=(3,), base=8, stem="small")
    variables = variables_of(network)
    for block in ("layer1.0", "layer1.2"):
        scale = variables["params"][block]["bn2"]["scale"]
        variables["params"][block]["bn2"]["scale"] = 1e-3 * scale
    images = [images_of(32)]
    traced = graph.trace(network, variables, images[0])
    curves = measure_curves(traced, variables, images, traced.groups)
    costs = {"macs": cost.macs_by_size(traced)}
    widths = budget.widths_of(graph.scope(traced.groups))
    asked = budget.Asked((budget.target("macs=60%"),), round_to=4)
    sizes = budget.solve(curves, costs, widths, asked)
    assert 0 not in sizes.values()
    deep = asked._replace(removable=frozenset(widths))
    deep = deep._replace(targets=(budget.target("macs=45%"),))
    sizes = budget.solve(curves, costs, widths, deep)
    assert sizes == {"layer1.0": 0, "layer1.1": 8, "layer1.2": 0}
    wanted = ispasp_jax.Budget(macs="45%", round_to=4, depth=True)
    pruned = ispasp_jax.prune(network, variables, images, wanted)
    assert {g.name: g.cut.size for g in pruned.groups} == sizes
    x = jnp.asarray(images[0])
    apart = pruned.apply(pruned.variables, x) - network.apply(variables, x)
    assert float(jnp.abs(apart).max()) < 0.05
