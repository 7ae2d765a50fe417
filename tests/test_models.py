"""Every architecture: cut equals masked, consumers are affine where they say so, blocks
are their steps, networks are their chain, and costs are the published ones.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, images_of, randomised, variables_of

from ispasp_jax import cost, groups, models
from ispasp_jax.errors import InputError
from ispasp_jax.models import layers
from ispasp_jax.models.network import Block, graft, group_names, subtree
from ispasp_jax.models.resnet import BasicBlock

pytestmark = pytest.mark.usefixtures("strict")

SMALL = (4, 4, 3)


def small(name):
    """A registered architecture at its own widths, for images of 4x4 pixels."""
    options = {"stem": "small"} if "stem" in models.options(name) else {}
    if name == "mlp":
        options = {"hidden": (32, 20, 11)}
    return models.create(name, 5, **options)


@functools.partial(jax.jit, static_argnums=0)
def run_part(module, own, x):
    with jax.default_matmul_precision("highest"):
        return module.apply(own, x)


def run_chain(network, variables, x):
    """The network part after part, so that equal blocks compile once."""
    for part in network.chain():
        x = run_part(part.module, subtree(variables, part), x)
    return np.asarray(x)


def cut_and_mask(network, variables, ratio, seed=0):
    """The network cut to random channels of every group, and the masked variables."""
    rng = np.random.default_rng(seed)
    cut, masked, widths = variables, variables, {}
    for name, group in network.groups().items():
        width = groups.width(variables, group)
        widths[name] = max(1, int(ratio * width))
        kept = np.sort(rng.choice(width, widths[name], replace=False))
        cut = groups.take(cut, group, kept)
        masked = groups.mask(masked, group, kept)
    return network.narrowed(widths), cut, masked


@pytest.mark.parametrize("name", models.MODELS)
def test_every_architecture_cut_equals_masked(name):
    network = small(name)
    variables = variables_of(network, SMALL)
    x = jnp.asarray(images_of(2, SMALL))
    widths = network.group_widths()
    assert widths == {
        group: groups.width(variables, data) for group, data in network.groups().items()
    }
    dense = run_chain(network, variables, x)
    assert np.isfinite(dense).all() and np.abs(dense).max() > 1e-3
    narrow, cut, masked = cut_and_mask(network, variables, 0.4)
    taken, zeroed = run_chain(narrow, cut, x), run_chain(network, masked, x)
    scale = np.abs(zeroed).max()
    np.testing.assert_allclose(taken, zeroed, rtol=0, atol=1e-4 * scale)
    assert np.abs(taken - dense).max() > 1e-3 * scale
    assert models.shapes(narrow, SMALL).keys() == cut.keys()
    wanted = jax.tree.map(jnp.shape, models.shapes(narrow, SMALL))
    assert jax.tree.map(jnp.shape, cut) == wanted


@pytest.mark.parametrize("name", NETWORKS)
def test_one_channel_groups(name):
    network = NETWORKS[name]
    variables, x = variables_of(network), jnp.asarray(images_of(3))
    narrow, cut, masked = cut_and_mask(network, variables, 0)
    assert set(narrow.group_widths().values()) == {1}
    taken, zeroed = run_chain(narrow, cut, x), run_chain(network, masked, x)
    np.testing.assert_allclose(taken, zeroed, rtol=0, atol=1e-5 * np.abs(zeroed).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_the_chain_of_its_parts(name):
    network = NETWORKS[name]
    variables, x = variables_of(network), jnp.asarray(images_of(3))
    whole = jax.jit(network.apply)(variables, x)
    np.testing.assert_allclose(
        whole, run_chain(network, variables, x), rtol=1e-4, atol=1e-5
    )
    rebuilt = jax.tree.map(jnp.zeros_like, variables)
    paths = []
    for part in network.chain():
        own = subtree(variables, part)
        paths += [id(leaf) for leaf in jax.tree.leaves(own)]
        rebuilt = graft(rebuilt, part, own)
    assert sorted(paths) == sorted(map(id, jax.tree.leaves(variables)))
    jax.tree.map(np.testing.assert_array_equal, rebuilt, variables)


def blocks():
    """Every kind of block, its variables, and an input, from the small networks."""
    for name, network in NETWORKS.items():
        variables, x = variables_of(network), jnp.asarray(images_of(3))
        for part in network.chain():
            own = subtree(variables, part)
            if isinstance(part.module, Block):
                yield f"{name}-{part.name}", part.module, own, x
            x = run_part(part.module, own, x)


BLOCKS = {
    f"{n}-{p.name}": (n, p.name)
    for n, net in NETWORKS.items()
    for p in net.chain()
    if isinstance(p.module, Block)
}


@functools.cache
def prepared():
    return {name: rest for name, *rest in blocks()}


def superposition(consumer, shape, seed=0):
    """c(a + b) - c(a) - c(b) + c(0), relative to the largest c."""
    rng = np.random.default_rng(seed)
    a, b = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
    zero = jnp.zeros_like(a)
    gap = consumer(a + b) - consumer(a) - consumer(b) + consumer(zero)
    return float(jnp.abs(gap).max() / jnp.abs(consumer(a)).max())


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def call(block, own, x, i, method):
    return block.apply(own, x, i, method=method)


@pytest.mark.parametrize("name", BLOCKS)
def test_declared_affine_consumers_are_affine(name):
    block, own, x = prepared()[name]
    assert sum(bool(group.axes) for group in block.groups) == len(block.widths)
    for i, group in enumerate(block.groups):
        hidden = call(block, own, x, i, "reach")
        assert not group.axes or hidden.shape[-1] == block.widths[i]
        assert group.affine
        consumer = functools.partial(call, block, own, i=i, method="consumer")
        assert superposition(lambda h, f=consumer: f(h), hidden.shape) < 1e-5
        alone = consumer(hidden[1:2])
        np.testing.assert_allclose(alone, consumer(hidden)[1:2], rtol=1e-4, atol=1e-5)


class Activated(BasicBlock):
    def consumer(self, h, i, train=False):
        return nn.relu(super().consumer(h, i, train))


def test_superposition_tells_a_consumer_that_is_not_affine():
    block = Activated((6,), features=5, parent=None)
    x = jnp.asarray(images_of(2, (4, 4, 5)))
    own = randomised(jax.eval_shape(block.init, jax.random.key(0), x))
    hidden = call(block, own, x, 0, "reach")
    consumer = functools.partial(call, block, own, i=0, method="consumer")
    assert superposition(consumer, hidden.shape) > 0.1


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("train", [False, True])
def test_a_block_is_its_steps(name, train):
    """__call__ is join(x, consumer(hidden(...))) pair after pair, training as well."""
    block, own, x = prepared()[name]

    def steps(module, x):
        u = x
        for i in range(len(module.groups)):
            u = module.consumer(module.hidden(u, i, train), i, train)
        return module.join(x, u, train)

    mutable = ["batch_stats"] if train else False
    apply = functools.partial(block.apply, own, x, mutable=mutable)
    whole = jax.jit(lambda: apply(train=train))()
    parts = jax.jit(lambda: apply(method=steps))()
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, whole, parts)
    if train and own.get("batch_stats"):
        changed = jax.tree.map(
            lambda a, b: bool(jnp.any(a != b)),
            whole[1]["batch_stats"],
            own["batch_stats"],
        )
        assert all(jax.tree.leaves(changed))


def test_equal_blocks_are_equal():
    """What lets the walk compile a shape once."""
    chain = small("resnet34").chain()
    modules = [part.module for part in chain if group_names(part)]
    assert len(modules) == 16 and len(set(modules)) == 7


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("resnet34", 3_663_761_408),
        ("mobilenetv2", 300_774_272),
        ("resnet50", 4_089_184_256),
    ],
)
def test_multiply_adds_are_the_published_ones(name, published):
    network = models.create(name, 1000)
    shapes = models.shapes(network, (224, 224, 3))
    assert cost.macs(network, shapes, (224, 224, 3)) == published


@pytest.mark.parametrize(
    ("name", "published"),
    [("resnet34", 21_797_672), ("resnet50", 25_557_032), ("mobilenetv2", 3_504_872)],
)
def test_parameters_are_the_published_ones(name, published):
    shapes = models.shapes(models.create(name, 1000), (224, 224, 3))
    assert cost.parameters(shapes) == published


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


def test_multiply_adds_fall_by_the_channels_cut():
    network = NETWORKS["basic"]
    narrow = network.narrowed({"layer1.0": 4})
    before, after = (
        cost.macs(net, models.shapes(net, networks.SHAPE), networks.SHAPE)
        for net in (network, narrow)
    )
    assert before - after == 2 * 7 * 8 * 9 * 10 * 6


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
    with pytest.raises(InputError, match="returned Counter"):
        models.create("test_models:not_a_network", 10)


def not_a_network(num_classes):
    import collections

    return collections.Counter()


def test_papers_groups_exist():
    for name, ratios in models.PAPER.items():
        assert ratios.keys() <= small(name).group_widths().keys()
    assert len(models.PAPER["resnet34"]) == 7


def test_group_names_are_unique():
    for name in models.MODELS:
        chain = small(name).chain()
        names = [
            g for p in chain if isinstance(p.module, Block) for g in group_names(p)
        ]
        assert len(names) == len(set(names)) == len(small(name).groups())
