"""Groups that several consumers read: streams, concatenated channels, heads."""

import flax.linen as nn
import graph_models as models
import jax
import jax.numpy as jnp
import naive_walk
import numpy as np
import pytest
import regressions
from naive_walk import Read, View
from networks import NETWORKS, images_of, variables_of
from programs import draw

from ispasp_jax import InputError, graph, prune
from ispasp_jax.selection import criteria, obs
from ispasp_jax.walk import walk

#: The ResNet's first stream is read by three blocks and a projection.
STREAM = [Read(f"layer{k}/conv1", f"layer{k}/bn1") for k in ("1.0", "1.1", "2.0")]
STREAM += [Read("layer2.0/downsample/0", "layer2.0/downsample/1")]
#: A DenseNet's channels lie beside those that others made.
DENSE = {
    "Conv_0": [Read("Conv_1", low=0), Read("Conv_2", low=0), Read("Dense_0", low=0)],
    "Conv_1": [Read("Conv_2", low=4), Read("Dense_0", low=4)],
}


def test_a_stream_is_selected_by_all_that_read_it_before_the_walk():
    """From the dense network, each consumer scaled by what it gives; then the walk."""
    model = NETWORKS["basic"]
    variables, images = variables_of(model), images_of(10)
    traced = graph.trace(model, variables, images[:1])
    sizes = {"stream.conv1": 3, "layer1.1": 4, "layer2.0": 5}
    found = walk(traced, variables, np.split(images, 2), sizes)
    groups = {
        "stream.conv1": (10, *STREAM),
        "layer1.1": (10, Read("layer1.1/conv2", "layer1.1/bn2")),
        "layer2.0": (20, Read("layer2.0/conv2", "layer2.0/bn2")),
    }
    kept, _ = naive_walk.walk(model, variables, images, groups, sizes)
    assert found.plan.keys() == kept.keys()
    for name, cut in found.plan.items():
        np.testing.assert_array_equal(cut.kept, kept[name], err_msg=name)
    jax.tree.map(
        np.testing.assert_array_equal,
        found.variables,
        traced.take(found.plan, variables),
    )
    # What is lost, of all consumers together.
    views = [naive_walk.view_of(model, variables, images, r, 10) for r in STREAM]
    view = naive_walk.stacked(views)
    gone = view.hidden * ~np.isin(np.arange(10), kept["stream.conv1"])
    V, U = (h.reshape(len(h), -1) @ view.matrix for h in (gone, view.hidden))
    (residual,) = (
        g.relative_residual for g in found.groups if g.name == "stream.conv1"
    )
    np.testing.assert_allclose(
        residual, np.linalg.norm(V) / np.linalg.norm(U), rtol=1e-4
    )


def test_concatenated_channels_are_selected_where_they_lie():
    model, images = models.DenseNet(), models.images(9)
    variables = models.variables(model, images)
    sizes = {"Conv_0": 1, "Conv_1": 2}
    found = walk(graph.trace(model, variables, images), variables, [images], sizes)
    for name, reads in DENSE.items():
        views = [naive_walk.view_of(model, variables, images, r, 4) for r in reads]
        kept = naive_walk.select(views, sizes[name])
        np.testing.assert_array_equal(found.plan[name].kept, kept, err_msg=name)


class Heads(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, name="embed")(x)
        layer = nn.MultiHeadDotProductAttention(
            4, qkv_features=12, name="attend", out_kernel_init=nn.initializers.normal()
        )
        return nn.Dense(3)(x + layer(x))


def test_a_head_is_a_block_of_what_the_projection_reads():
    model, x = Heads(), images_of(9, (5, 6))
    variables = models.variables(model, x)
    traced = graph.trace(model, variables, x)
    (name,) = (g.name for g in traced.groups if g.kind == "head")
    found = walk(traced, variables, [x[:5], x[5:]], {name: 2})
    view = naive_walk.view_of(model, variables, x, Read("attend/out"), 4)
    # Read as tokens, heads and their width: heads have to come last.
    H = view.hidden.reshape(9, 5, 4, 3).swapaxes(2, 3).reshape(9, 15, 4)
    M = view.matrix.reshape(5, 4, 3, -1).swapaxes(1, 2).reshape(60, -1)
    np.testing.assert_array_equal(
        found.plan[name].kept, naive_walk.select([View(H, M)], 2)
    )


def two_readers(v, x):
    """A stream that a branch and the head read, with biases."""
    s = jax.nn.relu(x @ v["stem"])
    s = s + jax.nn.relu(s @ v["up"] + v["c"]) @ v["down"]
    return s @ v["head"] + v["d"]


SHAPES = {"stem": (5, 7), "up": (7, 9), "c": (9,), "down": (9, 7), "head": (7, 4)}


def a_stream():
    variables = {n: draw(*s, seed=4) for n, s in ({**SHAPES, "d": (4,)}).items()}
    variables["head"] *= 20  # outputs of another size than the branch's
    x = draw(60, 5, seed=9)
    traced = graph.trace(two_readers, variables, x)
    (name,) = (g.name for g in traced.groups if g.kind == "stream")
    return variables, x, traced, name


def test_obs_takes_the_channel_that_refitting_all_consumers_misses_least():
    """Every elimination against refits of both consumers, afresh, in float64; errors
    count in parts of what each consumer gives."""
    variables, x, traced, name = a_stream()
    v = {n: np.asarray(a, np.float64) for n, a in variables.items()}
    s = np.maximum(np.asarray(x, np.float64) @ v["stem"], 0)
    t = s + np.maximum(s @ v["up"] + v["c"], 0) @ v["down"]
    problems = []
    for P, W in ((s, v["up"]), (t, v["head"])):
        P = P - P.mean(0)
        U = P @ W
        size = np.sqrt(np.square(U).sum() / len(U))
        problems.append((P.T @ P / len(P), P.T @ U / len(P) / size, W / size))

    def missed(kept):
        return sum(regressions.objective(p, kept, 7, obs.RIDGE)[0] for p in problems)

    kept, supports = {*range(7)}, {}
    while len(kept) > 1:
        ranked = sorted(kept, key=lambda c: missed(kept - {c}))
        gap = missed(kept - {ranked[1]}) - missed(kept - {ranked[0]})
        assert len(kept) == 2 or gap > 1e-5, "a tie"
        kept = kept - {ranked[0]}
        supports[len(kept)] = sorted(kept)
    for size in (1, 3, 5):
        found = walk(
            *(traced, variables, [x[:32], x[32:]], {name: size}, criteria.create("obs"))
        )
        np.testing.assert_array_equal(found.plan[name].kept, supports[size])


@pytest.mark.parametrize("method", criteria.CRITERIA)
def test_every_criterion_selects_from_a_stream(method):
    variables, x, traced, name = a_stream()
    criterion, labels = criteria.create(method), [np.arange(60) % 4]
    refused = {"bn_scale": "no batch norm", "cosamp": "several consumers read"}
    if method in refused:
        with pytest.raises(InputError, match=refused[method]):
            walk(traced, variables, [x], {name: 3}, criterion)
        return
    found = walk(traced, variables, [x], {name: 3}, criterion, labels=labels)
    assert found.plan[name].size == 3


def test_what_nothing_of_its_own_reads_cannot_be_selected():
    model, images = models.ViT(), models.images()
    variables = models.variables(model, images)
    traced = graph.trace(model, variables, images)
    (name,) = (g.name for g in traced.groups if g.kind == "product")
    with pytest.raises(InputError, match=r"key' \(product\) cannot be selected.*plan"):
        walk(traced, variables, [images], {name: 2})


def test_inner_leaves_streams_whole_and_all_does_not():
    variables, x, traced, name = a_stream()
    kinds = {group.name: group.kind for group in traced.groups}
    inner = prune(two_readers, variables, [x], 0.5, repair="none")
    assert [kinds[n] for n in inner.plan] == ["inner"]
    every = prune(two_readers, variables, [x], 0.5, scope="all", repair="none")
    assert sorted(kinds[n] for n in every.plan) == ["inner", "stream"]
    kept = every.plan[name].kept
    np.testing.assert_array_equal(
        every.variables["head"], np.asarray(variables["head"])[kept]
    )
    assert every.variables["stem"].shape == (5, 3)
    assert jnp.isfinite(every.apply(every.variables, x)).all()
