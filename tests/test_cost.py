"""Costs by the groups' sizes against counting narrower programs, and timings."""

import graph_models
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ispasp_jax import graph, models
from ispasp_jax.budget import cost, latency
from ispasp_jax.graph.check import random_plan


def grouped(v, x):
    """A grouped and a depthwise convolution, a flatten and a stream."""

    def conv(x, kernel, groups=1):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=numbers,
            feature_group_count=groups,
        )  # fmt: skip

    x = jax.nn.relu(conv(x, v["first"]))
    x = x + jax.nn.relu(conv(x, v["depthwise"], 12))
    x = jax.nn.relu(conv(x, v["grouped"], 4))
    return jnp.tanh(x.reshape(x.shape[0], -1) @ v["wide"]) @ v["last"]


GROUPED = {
    "first": jnp.ones((3, 3, 3, 12)),
    "depthwise": jnp.ones((3, 3, 1, 12)),
    "grouped": jnp.ones((3, 3, 3, 8)),
    "wide": jnp.ones((8 * 8 * 8, 6)),
    "last": jnp.ones((6, 5)),
}


def scanned(v, x):
    """Layers in a scan inside of a branch, and one more for every position."""
    layer = lambda c, w: (c + jnp.tanh(c @ w["up"]) @ w["down"], None)  # noqa: E731
    through = lambda x: jax.lax.scan(layer, x, v["layers"])[0]  # noqa: E731
    x = jax.lax.cond(x.sum() > 0, through, lambda x: x, x.reshape(x.shape[0], -1))
    return jax.lax.map(lambda row: jnp.tanh(row @ v["up"]) @ v["down"], x)


SCANNED = {
    "layers": {"up": jnp.ones((3, 192, 10)), "down": jnp.ones((3, 10, 192))},
    "up": jnp.ones((192, 7)),
    "down": jnp.ones((7, 5)),
}


def linen(make):
    x = graph_models.images()
    if make is graph_models.MaskedLanguage:
        x = jnp.arange(12).reshape(2, 6) % 11
    shapes = jax.eval_shape(make().init, jax.random.key(0), x)
    return graph.trace(make(), shapes, x)


LINEN = (
    *(graph_models.Flatten, graph_models.UNet, graph_models.SqueezeExcite),
    *(graph_models.ViT, graph_models.Fused, graph_models.Scanned),
    *(graph_models.DenseNet, graph_models.Trained, graph_models.MaskedLanguage),
)
CASES = {
    **{make.__name__: lambda make=make: linen(make) for make in LINEN},
    "NNX": lambda: graph.trace(
        graph_models.Residual(nnx.Rngs(0)), None, graph_models.images()
    ),
    "grouped": lambda: graph.trace(grouped, GROUPED, graph_models.images()),
    "scanned": lambda: graph.trace(scanned, SCANNED, graph_models.images()),
}


def shipped(name, side, classes=10):
    network, shape = models.create(name, classes), (side, side, 3)
    x = jax.ShapeDtypeStruct((2, *shape), "float32")
    return graph.trace(network, models.shapes(network, shape), x)


def arrays(traced, variables):
    """Sizes of the parameters' arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return sum(a.size for p, a in leaves if graph.key_path(p) in traced.parameters)


def assert_counted(traced):
    """By size equals counting, of a batch of one, at full width and narrower."""
    macs, params = cost.macs_by_size(traced), cost.parameters_by_size(traced)
    inputs = [jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for x in traced.inputs]

    def counted(function, variables):
        return cost.multiply_adds(function, variables, *inputs)

    assert cost.macs(traced) == macs.full == counted(traced.function, traced.variables)
    assert cost.parameters(traced) == params.full == arrays(traced, traced.variables)
    for seed, keep in enumerate((0.3, 0.7)):
        plan = random_plan(traced, keep, seed)
        sizes = {name: cut.size for name, cut in plan.items()}
        small = traced.take(plan, traced.variables)
        narrow = graph.narrow(traced.function, traced, plan)
        assert macs.total(sizes) == counted(narrow, small) < macs.full
        assert params.total(sizes) == arrays(traced, small) < params.full
    for by_size in (macs, params):
        for name, marginal in by_size.marginal(sizes).items():
            less = {**sizes, name: sizes[name] - 1}
            assert marginal == by_size.total(sizes) - by_size.total(less)


@pytest.mark.parametrize("name", CASES)
def test_costs_by_size_are_those_of_the_narrow_program(name):
    traced = CASES[name]()
    assert len(traced) >= 2
    assert_counted(traced)


@pytest.mark.parametrize(
    "name", ["resnet20", pytest.param("mobilenetv2", marks=pytest.mark.slow)]
)
def test_costs_by_size_of_the_shipped_models(name):
    assert_counted(shipped(name, 32))


@pytest.mark.parametrize(
    ("name", "macs", "params"),
    [
        ("resnet34", 3_663_761_408, 21_797_672),
        ("resnet50", 4_089_184_256, 25_557_032),
        ("mobilenetv2", 300_774_272, 3_504_872),
    ],
)
def test_costs_are_the_published_ones(name, macs, params):
    traced = shipped(name, 224, 1000)
    assert (cost.macs(traced), cost.parameters(traced)) == (macs, params)


def test_multiply_adds_by_part_are_those_of_its_layers():
    stage = 32 * 32 * 9 * 16 * 16  # a convolution, the same at every resolution
    parts = cost.macs_by_part(shipped("resnet20", 32))
    assert parts == {
        "conv1": 32 * 32 * 9 * 3 * 16,
        "layer1": 6 * stage,
        "layer2": 5 * stage + stage // 2,
        "layer3": 5 * stage + stage // 2,
        "linear": 64 * 10,
    }

    def attends(v, x):
        a = x @ v["first"]["kernel"]
        return a @ a.swapaxes(1, 2) @ x @ v["last.0"]

    held = {"first": {"kernel": jnp.ones((6, 5))}, "last.0": jnp.ones((6, 4))}
    parts = cost.macs_by_part(graph.trace(attends, held, jnp.ones((2, 7, 6))))
    assert parts == {"first": 7 * 6 * 5 + 7 * 7 * 5 + 7 * 7 * 6, "last": 7 * 6 * 4}


def test_three_groups_may_multiply():
    """Heads, the width of each, and what reads both."""
    terms = cost.macs_by_size(linen(graph_models.Fused)).terms
    assert max(map(len, terms)) == 3


def test_multiply_adds_of_loops_and_branches():
    x, w = jnp.ones((3, 4)), jnp.ones((4, 4))
    one = 3 * 4 * 4
    assert cost.multiply_adds(jnp.matmul, x, w) == one

    def loop(x, w):
        return jax.lax.scan(lambda c, _: (jnp.matmul(c, w), None), x, length=5)[0]

    assert cost.multiply_adds(loop, x, w) == 5 * one
    assert cost.multiply_adds(lambda x, w: loop(loop(x, w), w), x, w) == 10 * one
    assert cost.multiply_adds(jax.jit(jax.checkpoint(loop)), x, w) == 5 * one

    def branch(x, w):
        twice = lambda c: jnp.matmul(jnp.matmul(c, w), w)  # noqa: E731
        return jax.lax.cond(x[0, 0] > 0, twice, lambda c: jnp.matmul(c, w), x)

    assert cost.multiply_adds(branch, x, w) == 2 * one
    batch = jnp.ones((7, 3, 4))
    assert cost.multiply_adds(jax.vmap(loop, (0, None)), batch, w) == 35 * one


def test_parameters_are_what_training_moves():
    """Of every framework; moving averages, counters and keys are none."""

    def net(x, is_training=False):
        x = hk.Conv2D(6, 3)(x)
        x = hk.BatchNorm(True, True, 0.9)(x, is_training)
        return hk.Linear(5)(jax.nn.relu(x).mean((1, 2)))

    model, x = hk.transform_with_state(net), graph_models.images()
    start = lambda key, x: model.init(key, x, True)  # noqa: E731
    variables = jax.eval_shape(start, jax.random.key(0), x)
    count = 3 * 9 * 6 + 6 + 2 * 6 + 6 * 5 + 5
    assert cost.parameters(graph.trace(model, variables, x)) == count
    module = graph_models.Residual(nnx.Rngs(0))
    wanted = sum(a.size for a in jax.tree.leaves(nnx.state(module, nnx.Param)))
    assert cost.parameters(graph.trace(module, None, x)) == wanted
    linen = {"params": {"w": jnp.ones((3, 4))}, "batch_stats": {"mean": jnp.ones(4)}}
    read = lambda v, x: x @ v["params"]["w"] + v["batch_stats"]["mean"]  # noqa: E731
    assert cost.parameters(graph.trace(read, linen, x)) == 12
    own = {"w": jnp.ones((3, 4)), "step": jnp.ones((), int)}
    assert cost.parameters(graph.trace(lambda v, x: x @ v["w"], own, x)) == 12


def test_equal_pieces_are_timed_once(monkeypatch):
    """Of ResNet32's 15 groups five differ: at full width, and at half."""
    seen = []
    monkeypatch.setattr(
        latency, "seconds", lambda function, *a, **k: seen.append(function) or 1e-3
    )
    traced = shipped("resnet32", 32)
    found = latency.latency_by_size(traced, 4, graph.scope(traced.groups))
    assert len(found.widths) == 15
    assert len({id(function) for function in seen}) == 2 + 2 * 5


@pytest.mark.parametrize("seed", range(3))
def test_latencies_by_size_are_times_however_noisy_the_clock(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(latency, "seconds", lambda *_, **__: rng.exponential())
    traced = linen(graph_models.Flatten)
    found = latency.latency_by_size(traced, 2)
    widths = {group.name: group.width for group in traced.groups}
    assert found.total(widths) == found.full > 0
    ones = found.total(dict.fromkeys(widths, 1))
    assert 0 <= ones <= found.full
    assert all(marginal >= 0 for marginal in found.marginal(widths).values())


def test_latencies_by_size_are_exact_where_times_are(monkeypatch):
    """With a clock that counts multiply-adds, linear in groups of separate blocks."""

    def counted(forward, *_, **__):
        return cost.multiply_adds(forward.func, *forward.args) / 1e3

    monkeypatch.setattr(latency, "seconds", counted)
    traced = shipped("resnet20", 16)
    found = latency.latency_by_size(traced, 4, graph.scope(traced.groups))
    macs, rng = cost.macs_by_size(traced), np.random.default_rng(0)
    for low in (1, 8):
        sizes = {n: int(rng.integers(low, w + 1)) for n, w in found.widths.items()}
        assert found.total(sizes) == pytest.approx(4 * macs.total(sizes))


def test_latencies_take_turns():
    apply = lambda v, x: x @ v  # noqa: E731
    pairs = [(apply, jnp.ones((3, 4))), (apply, jnp.ones((3, 2)))]
    times = latency.latencies(pairs, (8, 8, 3), 2, repeats=3)
    assert len(times) == 2 and all(each > 0 for each in times)
