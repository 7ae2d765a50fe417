"""Derivatives of the loss by a group's gates against those of the whole network, and
the criteria that read them.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import NETWORKS, images_of, variables_of

import ispasp_jax
from ispasp_jax import devices, walk
from ispasp_jax.errors import InputError
from ispasp_jax.graph import Cut
from ispasp_jax.selection import criteria
from ispasp_jax.walk import flat, gates, sites, streams
from ispasp_jax.walk.batches import examples

pytestmark = pytest.mark.usefixtures("strict")


class Stream(nn.Module):
    """A residual stream that three layers read, each in its own way."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3))(x))
        x = x + nn.Conv(6, (3, 3))(nn.relu(nn.Conv(8, (3, 3))(x)))
        return nn.Dense(4)(jnp.concatenate([x.mean((1, 2)), x.max((1, 2))], -1))


def found(network, variables, images, labels, mesh=None, names=None):
    """By group's name, as the walk asks for them where nothing is cut."""
    count = examples(images[0], mesh)  # of a padded batch
    shape = jax.ShapeDtypeStruct((count, *images[0].shape[1:]), images[0].dtype)
    traced = ispasp_jax.trace(network, variables, shape)
    program = flat.flatten(traced)
    weights = flat.arrays(program, variables)
    start = streams.start(program, weights, images, mesh)
    targets = gates.aligned(labels, start, mesh)
    every, by_name = [*sites.sites(program)], {}
    for name in names or [n for n, g in traced.items() if g.kind == "inner"]:
        reads = [*sites.of_leaf(every, traced[name].atom)]
        here = start.hidden(min(site.place for site in reads))
        both = gates.derivatives(reads, traced[name], here, targets, True)
        by_name[name] = both["gradient"], both["curvature"]
    return by_name


def expected(network, variables, images, labels, name):
    """The same by scaling the consumers' kernels, through the network as a whole, each
    example on its own."""
    group = ispasp_jax.trace(network, variables, images)[name]

    def scaled(z):
        leaves, tree = jax.tree_util.tree_flatten_with_path(variables)
        axes = {axis.path: axis.axis for axis in group.axes}

        def factor(path, leaf):
            path = ispasp_jax.graph.key_path(path)
            if path not in group.consumers:
                return leaf
            own = jnp.tile(z, leaf.shape[axes[path]] // len(z))
            return leaf * jnp.expand_dims(
                own, [i for i in range(leaf.ndim) if i != axes[path]]
            )

        return jax.tree.unflatten(tree, [factor(*pair) for pair in leaves])

    def losses(z):
        logits = network.apply(scaled(z), images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    one = jnp.ones(group.width)
    return jax.jit(lambda: jax.jvp(jax.jacrev(losses), (one,), (one,)))()


CASES = [
    *((NETWORKS[name], None) for name in ("basic", "bottleneck", "mobile", "mlp")),
    (Stream(), "stream.Conv_0"),
]


@pytest.mark.parametrize("network, name", CASES)
def test_derivatives_are_those_of_the_whole_network(network, name):
    labels = jnp.asarray([3, 0, 1, 2, 2])
    variables, images = variables_of(network), jnp.asarray(images_of(5))
    batches = [[images[:3], images[3:]], [labels[:3], labels[3:]]]
    by_name = found(network, variables, *batches, names=name and [name])
    for group in [*by_name][:2]:
        for ours, theirs in zip(
            by_name[group],
            expected(network, variables, images, labels, group),
            strict=True,
        ):
            scale = float(jnp.abs(theirs).max())
            assert scale > 1e-4
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-4 * scale)


def test_devices_and_padding_change_nothing():
    network, labels = NETWORKS["mlp"], np.arange(10) % 4
    variables, images = variables_of(network), images_of(10)
    one = found(network, variables, [images], [labels])
    many = found(
        network,
        variables,
        [images[:6], images[6:]],
        [labels[:6], labels[6:]],
        devices.mesh(4),
    )
    for group in one:
        for a, b in zip(one[group], many[group], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["taylor", "sosp"])
@pytest.mark.parametrize(
    "network, group", [(NETWORKS["basic"], "layer1.0"), (Stream(), "stream.Conv_0")]
)
def test_the_walk_keeps_the_largest_scores(network, group, name):
    labels = jnp.asarray([3, 0, 1, 2, 2])
    variables, images = variables_of(network), jnp.asarray(images_of(5))
    g, Hv = expected(network, variables, images, labels, group)
    g, Hv = np.asarray(g, float), np.asarray(Hv, float)
    scores = {
        "taylor": (g**2).mean(0),
        "sosp": abs(g.mean(0)) + abs(Hv.mean(0)) / 2,
    }[name]
    size = len(scores) // 2
    traced = ispasp_jax.trace(network, variables, images)
    criterion = criteria.create(name)
    sizes = {group: size}
    cut = walk.walk(traced, variables, [images], sizes, criterion, labels=[labels])
    kept = cut.plan[group].kept
    assert set(kept.tolist()) == set(np.argsort(scores)[-size:].tolist())


def test_a_dead_channel_is_worth_nothing():
    network = NETWORKS["basic"]
    variables, images = variables_of(network), images_of(5)
    traced, name = ispasp_jax.trace(network, variables, images), "layer1.0"
    width = traced[name].width
    alive = Cut(width, np.delete(np.arange(width), 4))
    variables = traced.mask({name: alive}, variables)
    labels = [np.arange(5) % 4]
    for derivative in found(network, variables, [images], labels, names=[name])[name]:
        assert not derivative[:, 4].any() and derivative[:, 3].any()


def test_labels_are_asked_for_and_have_to_fit():
    network = NETWORKS["mlp"]
    variables, images = variables_of(network), images_of(6)

    def prune(labels, criterion=None):
        return ispasp_jax.prune(
            network,
            variables,
            [images],
            criterion=criterion or criteria.taylor(),
            labels=labels,
            repair="none",
        )

    with pytest.raises(InputError, match="needs labels; give `labels`"):
        prune(None)
    ones = np.ones(6, int)
    for wrong, words in (
        ([ones[:5]], "one label for each image"),
        ([ones[:3], ones[3:]], "one label for each image"),
        ([4 * ones], "from 0 to 3"),
        ([-ones], "from 0 to 3"),
        ([ones[:0]], "is empty"),
    ):
        with pytest.raises(InputError, match=words):
            prune(wrong)
    assert prune(None, criteria.l1()).plan  # which asks for none


def test_a_model_that_gives_no_logits_is_one_sentence():
    class Maps(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Conv(4, (3, 3))(nn.relu(nn.Conv(6, (3, 3))(x)))

    network, images = Maps(), images_of(3)
    with pytest.raises(InputError, match="a row of logits for every image; the mod"):
        ispasp_jax.prune(
            network,
            variables_of(network),
            [images],
            criterion=criteria.taylor(),
            labels=[np.zeros(3, int)],
        )
