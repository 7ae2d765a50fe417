"""Derivatives of the loss by a group's gates against those of the whole network, and
the criteria that read them.
"""

import fnmatch

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import NETWORKS, images_of, variables_of

from ispasp_jax import criteria, devices, gates, groups, pruning, streams
from ispasp_jax.errors import InputError
from ispasp_jax.models.network import Block, cuttable, group_names, subtree

pytestmark = pytest.mark.usefixtures("strict")


def found(network, variables, images, labels, mesh=None):
    """By group's name, as the walk asks for them where nothing is cut."""
    stream, by_name = streams.start(images, mesh), {}
    targets = gates.aligned(labels, 4, stream, mesh)
    for index, part in enumerate(network.chain()):
        stream = stream.enter(part.module, subtree(variables, part))
        names = dict(zip(cuttable(part), group_names(part), strict=True))
        rest = gates.rest(network, variables, index, targets)
        pairs = part.module.groups if isinstance(part.module, Block) else ()
        for i, group in enumerate(pairs):
            hidden = stream.hidden(i)
            if group in names:
                both = gates.derivatives(i, stream, hidden, rest, True)
                by_name[names[group]] = both
            stream = stream.consume(i, hidden)
        stream = stream.leave()
    return by_name


def expected(network, variables, images, labels, name):
    """The same by scaling the consumer's kernel, through the network as a whole."""
    ((path, _),) = (pair for pair in network.groups()[name].axes if pair[1] == -2)

    def scaled(tree, z, prefix=""):
        return {
            key: scaled(leaf, z, f"{prefix}{key}/")
            if isinstance(leaf, dict)
            else leaf * z[:, None]
            if fnmatch.fnmatchcase(f"{prefix}{key}", path)
            else leaf
            for key, leaf in tree.items()
        }

    def losses(z):
        params = scaled(variables["params"], z)
        logits = network.apply({**variables, "params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    one = jnp.ones(network.group_widths()[name])
    return jax.jit(lambda: jax.jvp(jax.jacrev(losses), (one,), (one,)))()


@pytest.mark.parametrize("name", ["basic", "bottleneck", "mobile", "mlp"])
def test_derivatives_are_those_of_the_whole_network(name):
    network, labels = NETWORKS[name], jnp.asarray([3, 0, 1, 2, 2])
    variables, images = variables_of(network), jnp.asarray(images_of(5))
    batches = [[images[:3], images[3:]], [labels[:3], labels[3:]]]
    by_name = found(network, variables, *batches)
    assert list(by_name) == list(network.group_widths())
    for group in list(by_name)[:2]:
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
def test_the_walk_keeps_the_largest_scores(name):
    network, labels = NETWORKS["basic"], jnp.asarray([3, 0, 1, 2, 2])
    variables, images = variables_of(network), jnp.asarray(images_of(5))
    group = next(iter(network.group_widths()))
    g, Hv = expected(network, variables, images, labels, group)
    g, Hv = np.asarray(g, float), np.asarray(Hv, float)
    scores = {
        "taylor": (g**2).mean(0),
        "sosp": abs(g.mean(0)) + abs(Hv.mean(0)) / 2,
    }[name]
    size = len(scores) // 2
    cut = pruning.walk(
        network,
        variables,
        [images],
        {group: size},
        criteria.create(name),
        labels=[labels],
    )
    kept = cut.plan[group].kept
    assert set(kept.tolist()) == set(np.argsort(scores)[-size:].tolist())


def test_a_dead_channel_is_worth_nothing():
    network = NETWORKS["basic"]
    variables, images = variables_of(network), images_of(5)
    group, width = next(iter(network.group_widths().items()))
    alive = np.delete(np.arange(width), 4)
    variables = groups.mask(variables, network.groups()[group], alive)
    for derivative in found(network, variables, [images], [np.arange(5) % 4])[group]:
        assert not derivative[:, 4].any() and derivative[:, 3].any()


def test_labels_are_asked_for_and_have_to_fit():
    network = NETWORKS["mlp"]
    variables, images = variables_of(network), images_of(6)

    def walk(labels):
        return pruning.prune(
            network, variables, [images], criterion=criteria.taylor(), labels=labels
        )

    with pytest.raises(ValueError, match="needs labels; give `labels`"):
        walk(None)
    ones = np.ones(6, int)
    for wrong, words in (
        ([ones[:5]], "one label for each image"),
        ([ones[:3], ones[3:]], "one label for each image"),
        ([4 * ones], "from 0 to 3"),
        ([-ones], "from 0 to 3"),
        ([ones[:0]], "is empty"),
    ):
        with pytest.raises(InputError, match=words):
            walk(wrong)
    ours = pruning.prune(network, variables, [images], criterion=criteria.l1())
    assert ours.plan  # which asks for none
