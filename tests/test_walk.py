"""The walk against a naive one in float64, and what comes with it."""

import equinox as eqx
import flax.linen as nn
import graph_models as models
import jax
import jax.numpy as jnp
import naive_walk
import numpy as np
import pytest
from naive_walk import Read, View
from networks import NETWORKS, images_of, variables_of

import ispasp_jax
from ispasp_jax import graph
from ispasp_jax.graph import Cut, plans
from ispasp_jax.graph.check import random_plan
from ispasp_jax.selection import criteria
from ispasp_jax.selection.algorithm_1 import ispasp
from ispasp_jax.selection.criterion import Criterion
from ispasp_jax.walk import Options, pieces, walk

#: By group its width and who reads it; written down by hand, in order.
GROUPS = {
    "basic": {
        "layer1.0": (10, Read("layer1.0/conv2", "layer1.0/bn2")),
        "layer1.1": (10, Read("layer1.1/conv2", "layer1.1/bn2")),
        "layer2.0": (20, Read("layer2.0/conv2", "layer2.0/bn2")),
    },
    "bottleneck": {
        f"layer{s}.0.conv{i}": (
            10 * s,
            Read(f"layer{s}.0/conv{i + 1}", f"layer{s}.0/bn{i + 1}"),
        )
        for s in (1, 2)
        for i in (1, 2)
    },
    "mobile": {
        "features.1": (12, Read("features.1/conv.1", "features.1/conv.2")),
        "features.1.conv.1": (5, Read("features.2/conv.0/0", "features.2/conv.0/1")),
        "features.2": (20, Read("features.2/conv.2", "features.2/conv.3")),
        "features.3": (24, Read("features.3/conv.2", "features.3/conv.3")),
        "features.4.0": (16, Read("classifier.1")),
    },
    "mlp": {
        "hidden.0": (24, Read("hidden.1")),
        "hidden.1": (18, Read("hidden.2")),
        "hidden.2": (12, Read("output")),
    },
    "flatten": {
        "Conv_0": (6, Read("Conv_1")),
        "Conv_1": (8, Read("Dense_0")),
        "Dense_0": (12, Read("Dense_1")),
    },
}


def problem(name, n=12):
    """A model, what is known of it, its variables and images."""
    images = images_of(n)
    if name == "flatten":
        images = np.asarray(models.images(n))
        model = models.Flatten()
        variables = models.variables(model, images)
    else:
        model = NETWORKS[name]
        variables = variables_of(model)
    return model, graph.trace(model, variables, images[:1]), variables, images


def sizes_of(name, ratio):
    return {group: max(1, int(ratio * w)) for group, (w, *_) in GROUPS[name].items()}


def assert_plan(found, kept):
    assert found.keys() == kept.keys()
    for name, cut in found.items():
        np.testing.assert_array_equal(cut.kept, kept[name], err_msg=name)


def assert_equal(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize("name", GROUPS)
def test_the_walk_equals_a_naive_one(name):
    model, traced, variables, images = problem(name)
    sizes = sizes_of(name, 0.3)
    found = walk(traced, variables, np.split(images, 3), sizes)
    kept, _ = naive_walk.walk(model, variables, images, GROUPS[name], sizes)
    assert_plan(found.plan, kept)
    assert [group.name for group in found.groups] == [*sizes]
    assert_equal(found.variables, traced.take(found.plan, variables))


def test_only_some_groups():
    """Groups that keep all their channels are left alone, and their arrays too."""
    model, traced, variables, images = problem("basic")
    sizes = {"layer1.0": 10, "layer1.1": 4}
    found = walk(traced, variables, [images], sizes)
    kept, _ = naive_walk.walk(model, variables, images, GROUPS["basic"], sizes)
    assert_plan(found.plan, kept)
    first, second = found.groups
    assert first.name == "layer1.0" and first.relative_residual is None
    assert first.cut.kept.tolist() == list(range(10))
    assert second.name == "layer1.1" and second.relative_residual > 0
    assert_equal(found.variables, traced.take(found.plan, variables))


class Convolutions(eqx.Module):
    """An Equinox network of one example: kernels OIHW, channels first."""

    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    last: eqx.nn.Linear

    def __init__(self, key):
        a, b, c = jax.random.split(key, 3)
        self.first = eqx.nn.Conv2d(3, 8, 3, key=a)
        self.second = eqx.nn.Conv2d(8, 7, 2, stride=2, key=b)
        self.last = eqx.nn.Linear(7 * 9, 5, key=c)

    def __call__(self, x):
        x = jax.nn.relu(self.second(jax.nn.relu(self.first(x))))
        return self.last(jnp.ravel(x))


def convolve(x, layer, stride=1):
    """NCHW in float64."""
    kernel, bias = (np.asarray(a, np.float64) for a in (layer.weight, layer.bias))
    seen = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], (2, 3))
    seen = seen[:, :, ::stride, ::stride]
    return np.einsum("nchwij,ocij->nohw", seen, kernel) + bias


def test_an_equinox_network_under_vmap():
    module = Convolutions(jax.random.key(0))
    images = np.moveaxis(np.asarray(models.images(10)), -1, 1)
    found = ispasp_jax.prune(module, None, [images[:6], images[6:]], 0.4, repair="none")

    def view(h, linear):
        """Channels last, then as in the model again."""
        n, c, *sides = h.shape
        channels_last = np.moveaxis(h.reshape(n, c, -1), 1, -1)

        def back(flat):
            return linear(np.moveaxis(flat, -1, 1).reshape(-1, c, *sides))

        matrix = naive_walk.matrix_of(back, channels_last.shape[1:])
        return View(channels_last, matrix)

    h = np.maximum(convolve(images.astype(np.float64), module.first), 0)
    first = naive_walk.select([view(h, lambda h: convolve(h, module.second, 2))], 3)
    h = h * np.isin(np.arange(8), first)[:, None, None]
    h = np.maximum(convolve(h, module.second, 2), 0)
    weight = np.asarray(module.last.weight, np.float64)
    second = naive_walk.select([view(h, lambda h: h.reshape(len(h), -1) @ weight.T)], 2)
    assert_plan(found.plan, {"first": first, "second": second})
    expected = weight.reshape(5, 7, 9)[:, second].reshape(5, -1)
    assert_equal(found.variables.last.weight, np.float32(expected))


def test_every_layer_of_a_scan_has_channels_of_its_own():
    model, images = models.Scanned(), models.images(10)
    variables = models.variables(model, images)
    (group,) = (g for g in graph.trace(model, variables, images).groups if g.layers)
    found = ispasp_jax.prune(
        model, variables, [images[:7], images[7:]], {group.name: 0.4}, repair="none"
    )
    exact = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    stem, layers = exact["Dense_0"], exact[group.name]
    x = np.asarray(images, np.float64).reshape(10, -1) @ stem["kernel"] + stem["bias"]
    kept = []
    for layer in range(3):
        into, out = (
            jax.tree.map(lambda a, k=layer: a[k], layers[name])
            for name in ("Dense_1", "Dense_0")  # Linen names the outer one first
        )
        h = np.maximum(x @ into["kernel"] + into["bias"], 0)
        kept.append(naive_walk.select([View(h[:, None], out["kernel"])], 4))
        h = h * np.isin(np.arange(10), kept[-1])
        x = x + h @ out["kernel"] + out["bias"]
    assert len({tuple(row) for row in kept}) > 1
    assert_plan(found.plan, {group.name: np.array(kept)})
    assert_equal(found.variables, found.traced.take(found.plan, variables))


@pytest.mark.parametrize("repair", ["none", "lsq"])
def test_what_a_scan_gives_for_every_layer_goes_on(repair):
    """As in the same network written out."""

    def layer(x, w):
        x = x + jax.nn.relu(x @ w["in"]) @ w["out"]
        return x, x.mean(-1)

    def scanned(v, x):
        x, each = jax.lax.scan(layer, x @ v["stem"], v["layers"])
        return x @ v["last"] + each.T @ v["beside"]

    def written_out(v, x):
        x, each = x @ v["stem"], []
        for w in v["layers"]:
            x, more = layer(x, w)
            each.append(more)
        return x @ v["last"] + jnp.stack(each).T @ v["beside"]

    rng = np.random.default_rng(0)
    shapes = {"stem": (6, 5), "last": (5, 3), "beside": (3, 3)}
    own = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    shapes = {"in": (3, 5, 9), "out": (3, 9, 5)}
    layers = {name: 0.5 * rng.normal(size=shape) for name, shape in shapes.items()}
    one = jax.tree.map(jnp.float32, {**own, "layers": layers})
    unstacked = [jax.tree.map(lambda a, k=k: a[k], one["layers"]) for k in range(3)]
    x = jnp.asarray(rng.normal(size=(40, 6)), jnp.float32)
    found, expected = (
        ispasp_jax.prune(function, v, [x[:24], x[24:]], keep=0.5, repair=repair)
        for function, v in ((scanned, one), (written_out, {**one, "layers": unstacked}))
    )
    ((_, rows),) = found.plan.values()
    for row, (_, kept) in zip(rows, expected.plan.values(), strict=True):
        np.testing.assert_array_equal(row, kept)
    np.testing.assert_allclose(
        found.apply(found.variables, x), expected.apply(expected.variables, x),
        rtol=1e-3, atol=1e-3,
    )  # fmt: skip


@pytest.mark.parametrize("T", [1, 2])
def test_iterations_are_an_option(T):
    model, traced, variables, images = problem("mlp")
    sizes = sizes_of("mlp", 0.15)
    found = walk(traced, variables, [images], sizes, ispasp(T))
    kept, _ = naive_walk.walk(model, variables, images, GROUPS["mlp"], sizes, T)
    assert_plan(found.plan, kept)
    assert all(group.iterations <= T for group in found.groups)


@pytest.mark.parametrize(
    "name", [pytest.param("basic", marks=pytest.mark.slow), "flatten"]
)
def test_how_images_are_batched_changes_nothing(name):
    _, traced, variables, _ = problem(name)
    images = np.asarray(problem(name, 40)[-1])
    sizes = sizes_of(name, 0.3)
    first, *others = (
        walk(
            traced,
            variables,
            np.split(images, places),
            sizes,
            options=Options(carry_dense=True),
        )
        for places in ([], [24], [16])
    )
    for other in others:
        assert_plan(other.plan, {n: cut.kept for n, cut in first.plan.items()})
        for a, b in zip(first.groups, other.groups, strict=True):
            np.testing.assert_allclose(
                [a.relative_residual, a.drift],
                [b.relative_residual, b.drift],
                rtol=1e-4,
            )


def behind(variables, images):
    """What is added up in every block of the basic ResNet, before the activation."""
    seen = {}

    def catch(call, arguments, options, context):
        made = call(*arguments, **options)
        seen["/".join(context.module.path)] = arguments[0], made
        return made

    with nn.intercept_methods(catch):
        NETWORKS["basic"].apply(variables, jnp.asarray(images))
    skips = {
        "layer1.0": seen["layer1.0"][0],
        "layer1.1": seen["layer1.1"][0],
        "layer2.0": seen["layer2.0/downsample/1"][1],
    }
    return {name: seen[f"{name}/bn2"][1] + skip for name, skip in skips.items()}


def apart(x, y):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return np.linalg.norm(x - y) / np.linalg.norm(y)


def test_relative_residual_and_drift_equal_numpy():
    model, traced, variables, images = problem("basic")
    groups, sizes = GROUPS["basic"], sizes_of("basic", 0.3)
    found = walk(
        traced,
        variables,
        [images],
        sizes,
        options=Options(carry_dense=True, residual_images=5),
    )
    kept: dict = {}
    dense = behind(variables, images)
    for group in found.groups:
        width, read = groups[group.name]
        now = naive_walk.silenced(variables, groups, kept)
        view = naive_walk.view_of(model, now, images, read, width)
        H = view.hidden[:5]
        gone = H * ~np.isin(np.arange(width), group.cut.kept)
        U, V = (h.reshape(5, -1) @ view.matrix for h in (H, gone))
        relative = np.linalg.norm(V) / np.linalg.norm(U)
        np.testing.assert_allclose(group.relative_residual, relative, rtol=1e-4)
        kept[group.name] = group.cut.kept
        pruned = behind(naive_walk.silenced(variables, groups, kept), images)
        drift = apart(pruned[group.name], dense[group.name])
        assert drift > 1e-3
        np.testing.assert_allclose(group.drift, drift, rtol=1e-4)


def test_without_a_dense_stream_or_residual_images_there_is_none():
    model, _, variables, images = problem("mlp")
    found = ispasp_jax.prune(
        model, variables, [images], 0.4, repair="none", residual_images=0
    )
    for group in found.groups:
        assert group.drift is None and group.relative_residual is None
        assert 1 <= group.iterations <= 20


def shaken(variables):
    """Training, as far as the walk can tell: every parameter changes, before and
    behind the group that was cut."""
    changed = jax.tree.map(lambda a: a + 0.2 * jnp.sin(10 * a + 1), variables["params"])
    return {**variables, "params": changed}


def test_tuning_moves_everything_and_leaves_the_dense_network_dense():
    """After tune, activations come from the trained network, its stem included; the
    drift is against the network that was given."""
    model, traced, variables, images = problem("basic")
    groups, sizes = GROUPS["basic"], sizes_of("basic", 0.3)
    seen = []

    def tune(plan, left):
        seen.append(list(plan))
        expected = jax.tree.map(jnp.shape, traced.take(plan, variables))
        assert jax.tree.map(jnp.shape, left) == expected
        return shaken(left)

    batches = np.split(images, 2)
    found = walk(
        traced, variables, batches, sizes, options=Options(tune=tune, carry_dense=True)
    )
    kept, full = naive_walk.walk(model, variables, images, groups, sizes, tune=shaken)
    assert_plan(found.plan, kept)
    assert seen == [[*groups][:k] for k in (1, 2, 3)]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        found.variables,
        traced.take(found.plan, full),
    )
    untuned = walk(traced, variables, batches, sizes).plan
    assert any(list(untuned[n].kept) != list(kept[n]) for n in list(kept)[1:])
    last = found.groups[-1]
    drift = apart(behind(full, images)[last.name], behind(variables, images)[last.name])
    np.testing.assert_allclose(last.drift, drift, rtol=1e-4)


slow = pytest.mark.slow


@pytest.mark.parametrize(
    "make", [pytest.param(models.ViT, marks=slow), models.Scanned, models.UNet]
)
def test_a_plan_that_is_given_is_cut_and_nothing_is_selected(make):
    """Groups that nobody could select, too: a product, heads, layers of a scan."""
    model, images = make(), models.images(6)
    variables = models.variables(model, images)
    traced = graph.trace(model, variables, images)
    drawn = random_plan(traced, 0.5, 1)
    decided = {name: cut for name, cut in drawn.items() if cut.size < cut.width}
    assert len(decided) >= len(traced) - 1

    def select(hidden, least_squares, size):
        raise AssertionError("nothing is to be selected")

    criterion = Criterion(select)
    for repair in ("none", "lsq"):
        found = ispasp_jax.prune(
            model,
            variables,
            [images],
            plan=decided,
            criterion=criterion,
            repair=repair,
        )
        assert_plan(found.plan, {name: cut.kept for name, cut in decided.items()})
        expected = traced.take(decided, variables)
        if repair == "none":
            assert_equal(found.variables, expected)
            masked = model.apply(traced.mask(decided, variables), images)
            made = found.apply(found.variables, images)
            np.testing.assert_allclose(made, masked, rtol=1e-3, atol=1e-4)
        else:
            shapes = jax.tree.map(jnp.shape, expected)
            assert jax.tree.map(jnp.shape, found.variables) == shapes


def test_pruning_twice_composes():
    model, traced, variables, images = problem("bottleneck")
    one = ispasp_jax.prune(model, variables, [images], 0.6, repair="none")
    two = ispasp_jax.prune(one.apply, one.variables, [images], 0.5, repair="none")
    assert two.plan.keys() == GROUPS["bottleneck"].keys()
    for name, cut in two.plan.items():
        width = int(0.6 * traced[name].width)
        assert (cut.width, cut.size) == (width, width // 2)
    at_once = plans.apply(plans.compose(one.plan, two.plan), traced, variables)
    assert_equal(at_once, two.variables)


def test_other_criteria_walk_the_same_way():
    model, _, variables, images = problem("basic")

    def found(method, seed, batches):
        return ispasp_jax.prune(
            model,
            variables,
            batches,
            0.5,
            criterion=criteria.create(method),
            key=jax.random.key(seed),
            repair="none",
        ).plan

    for name, cut in found("l1", 0, [images]).items():
        kernel = variables["params"][name]["conv1"]["kernel"]
        norms = np.abs(np.asarray(kernel, np.float64)).sum((0, 1, 2))
        np.testing.assert_array_equal(cut.kept, np.sort(np.argsort(-norms)[: cut.size]))
    one, other = found("random", 0, [images]), found("random", 1, [images])
    again = found("random", 0, np.split(images, 2))
    assert_plan(one, {name: cut.kept for name, cut in again.items()})
    assert any(list(one[n].kept) != list(other[n].kept) for n in one)
    assert list(one["layer1.0"].kept) != list(one["layer1.1"].kept)


class Deep(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth):
            x = x + nn.Dense(6)(nn.relu(nn.Dense(9)(x)))
        return nn.Dense(3)(x)


@pytest.mark.parametrize("repair", ["none", "lsq"])
def test_blocks_of_equal_shape_compile_once(repair):
    x, counts = images_of(5, (6,)), []
    for depth in (3, 6):
        model = Deep(depth)
        pieces._COMPILED.clear()
        ispasp_jax.prune(
            model, model.init(jax.random.key(0), x), [x, x[:2]], 0.4, repair=repair
        )
        counts.append(len(pieces._COMPILED))
    assert counts[0] == counts[1]


def test_the_walk_leaves_its_arguments_alone():
    model, _, variables, images = problem("mlp")
    before, given = jax.tree.map(np.array, variables), images.copy()
    decided = {"hidden.0": Cut(24, np.arange(3))}
    ispasp_jax.prune(model, variables, [images], 0.4)
    ispasp_jax.prune(model, variables, [images], plan=decided)
    assert_equal(before, variables)
    np.testing.assert_array_equal(images, given)
