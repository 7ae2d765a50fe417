"""Every architecture: the groups that are found are those that people name, cut equals
masked, what a name makes is a model, and layers compute what the plain ones do.
"""

import collections
import functools
import re

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, images_of, variables_of

from ispasp_jax import graph, models
from ispasp_jax.errors import InputError
from ispasp_jax.graph.check import random_plan
from ispasp_jax.models import layers

pytestmark = pytest.mark.usefixtures("strict")

SMALL = (8, 8, 3)


def small(name):
    """A registered architecture at its own widths, for images of 8x8 pixels."""
    options = {"stem": "small"} if "stem" in models.options(name) else {}
    if name == "mlp":
        options = {"hidden": (32, 20, 11)}
    return models.create(name, 5, **options)


def shape_of(name):
    if name.startswith("bert"):
        return (8,)
    return (32, 32, 3) if name.startswith(("vit", "deit")) else SMALL


@functools.cache
def traced_of(name):
    network, shape = small(name), shape_of(name)
    return graph.trace(network, models.shapes(network, shape), models.inputs(shape, 2))


def inner(traced):
    return {g.name: g.width for g in traced.groups if g.kind == "inner"}


#: By depth, blocks of each stage.
DEPTHS = {
    **{
        "18": (2, 2, 2, 2),
        "34": (3, 4, 6, 3),
        "50": (3, 4, 6, 3),
        "101": (3, 4, 23, 3),
    },
    **{str(6 * n + 2): (n,) * 3 for n in (3, 5, 7, 9, 18)},
}
#: Channels inside MobileNetV2's blocks, features.1 to features.17.
#: Of transformers, width, blocks and heads.
SIZES = {
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "bert_tiny": (128, 2, 2),
    "bert_mini": (256, 4, 4),
    "bert_small": (512, 4, 8),
    "bert_medium": (512, 8, 8),
    "bert_base": (768, 12, 12),
}
MOBILE = [32, 96, 144, 144, *[192] * 3, *[384] * 4, *[576] * 3, *[960] * 3]


def expected_groups(name):
    """Hidden channels by the names that people know, and their number."""
    if name == "mlp":
        return {"hidden.0": 32, "hidden.1": 20, "hidden.2": 11}
    if name.endswith("mobilenetv2"):
        blocks = {f"features.{i}": width for i, width in enumerate(MOBILE, 1)}
        return {**blocks, "features.18.0": 1280}
    if name.startswith(("vit", "deit", "bert")):
        return neurons(name)
    depths = DEPTHS[name.rpartition("resnet")[2]]
    base = 64 if len(depths) == 4 else 16
    layers = (".conv1", ".conv2") if name.endswith(("50", "101")) else ("",)
    return {
        f"layer{stage}.{index}{layer}": base * 2 ** (stage - 1)
        for stage, depth in enumerate(depths, 1)
        for index in range(depth)
        for layer in layers
    }


def neurons(name):
    """Of a transformer's layers the neurons, and the width of a head's values."""
    kind, size, *_ = name.split("_")
    width, depth, heads = SIZES[f"{kind.replace('deit', 'vit')}_{size}"]
    result = {}
    for i in range(depth):
        if name.startswith("bert"):
            layer = f"bert.encoder.layer.{i}"
            result[f"{layer}.attention.self.value.2"] = width // heads
            result[f"{layer}.intermediate.dense"] = 4 * width
        else:
            result[f"blocks.{i}.attn.value.2"] = width // heads
            result[f"blocks.{i}.mlp"] = 4 * width
    return result | ({"bert.pooler.dense": width} if name.startswith("bert") else {})


#: What takes long to trace, and is a smaller one's, deeper or wider.
LARGE = re.compile(".*(101|110|base|small)")
NAMES = [
    pytest.param(name, marks=[pytest.mark.slow] * bool(LARGE.match(name)))
    for name in models.MODELS
]


@pytest.mark.parametrize("name", NAMES)
def test_groups_have_the_names_that_people_know(name):
    assert inner(traced_of(name)) == expected_groups(name)


@pytest.mark.parametrize(
    ("name", "group", "arrays"),
    [
        ("mlp", "hidden.1", "hidden.1/kernel-1 hidden.1/bias hidden.2/kernel-0"),
        (
            "resnet20",
            "layer2.0",
            "layer2.0/conv1/kernel-3 layer2.0/bn1 layer2.0/conv2/kernel-2",
        ),
        (
            "resnet50",
            "layer3.1.conv2",
            "layer3.1/conv2/kernel-3 layer3.1/bn2 layer3.1/conv3/kernel-2",
        ),
        (
            "mobilenetv2",
            "features.1",
            "features.0/0/kernel-3 features.0/1 features.1/conv.0/0/kernel-3 "
            "features.1/conv.0/1 features.1/conv.1/kernel-2",
        ),
        (
            "mobilenetv2",
            "features.6",
            "features.6/conv.0/0/kernel-3 features.6/conv.0/1 "
            "features.6/conv.1/0/kernel-3 features.6/conv.1/1 "
            "features.6/conv.2/kernel-2",
        ),
    ],
)
def test_a_group_is_these_arrays(name, group, arrays):
    """As they were written by hand before anything was traced."""
    expected = set()
    for word in arrays.split():
        path, _, axis = word.partition("-")
        if axis:
            expected.add((f"params/{path}", int(axis)))
        elif path.endswith("bias"):
            expected.add((f"params/{path}", 0))
        else:
            expected |= {(f"params/{path}/{leaf}", 0) for leaf in ("scale", "bias")}
            expected |= {(f"batch_stats/{path}/{leaf}", 0) for leaf in ("mean", "var")}
    found = traced_of(name)[group].axes
    assert {(axis.path, axis.axis) for axis in found} == expected


@pytest.mark.parametrize("keep", [0.0, 0.4])
@pytest.mark.parametrize("name", NETWORKS)
def test_cut_equals_masked(name, keep):
    network = NETWORKS[name]
    variables, x = variables_of(network), jnp.asarray(images_of(3))
    traced = graph.trace(network, variables, x)
    plan = random_plan(traced, keep)
    assert keep or all(len(one.kept) == 1 for one in plan.values())
    assert graph.check(traced, variables, x, plan=plan) < 1e-5
    dense = jax.jit(network.apply)(variables, x)
    assert np.isfinite(dense).all() and np.abs(dense).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", models.MODELS)
def test_every_architecture_cut_equals_masked(name):
    variables = variables_of(small(name), SMALL)
    assert graph.check(traced_of(name), variables, images_of(2, SMALL)) < 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_training_moves_every_statistic(name):
    network = NETWORKS[name]
    variables, x = variables_of(network), jnp.asarray(images_of(3))
    logits, moved = jax.jit(
        lambda v, x: network.apply(v, x, train=True, mutable=["batch_stats"])
    )(variables, x)
    assert logits.shape == (3, 4)
    if "batch_stats" not in variables:
        return
    changed = jax.tree.map(
        lambda a, b: bool(jnp.any(a != b)),
        moved["batch_stats"],
        variables["batch_stats"],
    )
    assert all(jax.tree.leaves(changed))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_ignored_by_default(name):
    groups = traced_of(name).groups
    kept = graph.scope(groups, ignore=models.IGNORE.get(name, ()))
    left = expected_groups(name).keys() - {group.name for group in kept}
    values = {group for group in left if group.endswith(".value.2")}
    assert bool(values) == name.startswith(("vit", "deit", "bert"))
    others = {"mobilenetv2": {"features.18.0"}, "bert": {"bert.pooler.dense"}}
    expected = (v for k, v in others.items() if k in name)
    assert left - values == next(expected, set())


plain = functools.partial(
    jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC")
)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def both_convolutions(x, kernel, strides, padding, channels):
    """Output and gradients of the library's convolution, and of the plain one."""

    def run(convolution):
        def loss(x, kernel):
            y = convolution(x, kernel)
            return jnp.sin(y).sum(), y

        (_, y), back = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, kernel)
        return y, back

    options = {"feature_group_count": channels}
    return (
        run(
            lambda x, k: layers.convolve(
                x,
                k,
                strides,
                padding,
                dimension_numbers=jax.lax.conv_dimension_numbers(
                    x.shape, k.shape, ("NHWC", "HWIO", "NHWC")
                ),
                **options,
            )
        ),
        run(lambda x, k: plain(x, k, strides, padding, **options)),
    )


def assert_convolves(seed, size, taps, strides, padding, depthwise):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(2, *size, 3)), jnp.float32)
    shape = (*taps, 1, 3) if depthwise else (*taps, 3, 4)
    kernel = jnp.asarray(rng.normal(size=shape), jnp.float32)
    ours, theirs = both_convolutions(x, kernel, strides, padding, 3 if depthwise else 1)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, ours, theirs)


@pytest.mark.parametrize("depthwise", [True, False])
@pytest.mark.parametrize("padding", ["SAME", ((1, 1), (1, 1))])
@pytest.mark.parametrize(("side", "stride"), [(1, 1), (2, 1), (2, 2), (4, 2), (5, 2)])
def test_convolve_on_tiny_maps(side, stride, padding, depthwise):
    assert_convolves(0, (side, side), (3, 3), (stride, stride), padding, depthwise)


pads = st.tuples(st.integers(0, 2), st.integers(0, 2))


@settings(max_examples=15)
@given(
    st.integers(0, 999),
    st.tuples(st.integers(3, 7), st.integers(3, 7)),
    st.sampled_from([(3, 3), (1, 3), (2, 3), (1, 1)]),
    st.sampled_from([(1, 1), (2, 2), (1, 2), (3, 2)]),
    st.one_of(st.sampled_from(["SAME", "VALID"]), st.tuples(pads, pads)),
    st.booleans(),
)
def test_convolve_equals_the_plain_convolution(
    seed, size, taps, strides, padding, deep
):
    assert_convolves(seed, size, taps, strides, padding, deep)


def test_the_cpu_path_is_taken_on_cpu():
    """Depthwise and tiny maps run as shifted products: no convolution is compiled."""

    def compiled(size, depthwise):
        kernel = (3, 3, 1, 8) if depthwise else (3, 3, 8, 8)
        layer = layers.Conv(8, 3, depthwise=depthwise)
        x, k = jnp.ones((1, *size, 8)), {"params": {"kernel": jnp.ones(kernel)}}
        return jax.jit(layer.apply).lower(k, x).compile().as_text()

    assert "convolution(" not in compiled((8, 8), True)
    assert "convolution(" not in compiled((2, 2), False)
    assert "convolution" in compiled((8, 8), False)


def test_registry_errors_name_what_there_is():
    with pytest.raises(InputError, match="unknown model 'resnet35'.*resnet34"):
        models.create("resnet35", 10)
    with pytest.raises(InputError, match="no option depth.*stem"):
        models.create("resnet34", 10, depth=3)
    with pytest.raises(InputError, match="cannot be imported"):
        models.create("no_such_package.module:make", 10)
    for odd, kind in (("counter", "Counter"), ("routine", "function")):
        with pytest.raises(InputError, match=f"returned {kind}; expected a Linen, NNX"):
            models.create(f"test_models:{odd}", 10)


def counter(num_classes):
    return collections.Counter()


def routine(num_classes):
    return lambda variables, x: x  # without its variables


def linen(num_classes):
    return models.create("mlp", num_classes)


def an_nnx(num_classes):
    return nnx.Linear(3, num_classes, rngs=nnx.Rngs(0))


def an_equinox(num_classes):
    return eqx.nn.Linear(3, num_classes, key=jax.random.key(0))


def a_haiku(num_classes):
    transform = hk.transform(lambda x: hk.Linear(num_classes)(x))
    return transform, transform.init(jax.random.key(0), jnp.ones((1, 3)))


def a_pair(num_classes):
    return (lambda v, x: x @ v["w"]), {"w": jnp.ones((3, num_classes))}


@pytest.mark.parametrize("make", [linen, an_nnx, an_equinox, a_haiku, a_pair])
def test_a_users_function_may_return_a_model_of_any_framework(make):
    made = models.create(f"test_models:{make.__name__}", 4)
    model, variables = made if isinstance(made, tuple) else (made, None)
    if make is linen:
        variables = models.shapes(model, (1, 1, 3))
    traced = graph.trace(model, variables, jnp.ones((2, 3)))
    assert traced.program.outputs[0].shape == (2, 4)


def test_papers_groups_exist():
    for name, ratios in models.PAPER.items():
        assert ratios.keys() <= inner(traced_of(name)).keys()
    assert len(models.PAPER["resnet34"]) == 7
