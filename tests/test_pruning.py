"""The walk against a naive one, and what comes with it: plans, budgets, own models."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy_algorithm
import pytest
from networks import NETWORKS, SHAPE, images_of, variables_of
from numpy_algorithm import MARGIN

from ispasp_jax import budget, cost, criteria, models, plan, pruning
from ispasp_jax.errors import InputError
from ispasp_jax.groups import Group
from ispasp_jax.ispasp import ispasp
from ispasp_jax.models.mlp import MLP
from ispasp_jax.models.network import Block, Head, Network, Part, group_names, subtree
from ispasp_jax.models.resnet import BasicBlock, ResNet

pytestmark = pytest.mark.usefixtures("strict")


class Whole:
    """A block's consumer as numpy_algorithm takes it, with all examples as one."""

    def __init__(self, block, own, i):
        def consumer(h):
            with jax.default_matmul_precision("highest"):
                return block.apply(own, h, i, method="consumer")

        self.run = jax.jit(consumer)
        self.back = jax.jit(lambda h, v: jax.vjp(consumer, h)[1](v)[0])

    def forward(self, h):
        return np.asarray(self.run(np.float32(h)), np.float64)

    def pullback(self, h, v):
        return np.asarray(self.back(np.float32(h), np.float32(v)), np.float64)


def all_hidden(network, variables, images):
    """Every hidden activation, by group, caught in a pass of the whole network."""
    caught = {}

    def catch(call, arguments, options, context):
        out = call(*arguments, **options)
        if context.method_name == "hidden" and context.module.widths:
            caught[(context.module.name, arguments[1])] = out
        return out

    @jax.jit
    def run(variables, images):
        caught.clear()
        with nn.intercept_methods(catch):
            network.apply(variables, images)
        return list(caught.values())

    values = run(variables, images)
    names = [
        name
        for part in network.chain()
        if group_names(part)
        for name in group_names(part)
    ]
    assert len(values) == len(names)
    return dict(zip(names, map(np.asarray, values), strict=True))


def cut_by_hand(tree, group, kept):
    """take, written again: flat names, numpy, one axis at a time."""

    def visit(branch, prefix):
        out = {}
        for key, value in branch.items():
            path = f"{prefix}{key}"
            if isinstance(value, dict):
                out[key] = visit(value, f"{path}/")
                continue
            out[key] = value
            for pattern, axis in group.axes:
                folder = pattern.removesuffix("*")
                if path == pattern or (folder != pattern and path.startswith(folder)):
                    out[key] = jnp.asarray(np.take(np.asarray(value), kept, axis))
        return out

    return {name: visit(collection, "") for name, collection in tree.items()}


def naive_walk(network, variables, images, sizes, T=20, tune=None):
    """For each group: the whole network as pruned so far, on all images at once; then
    Algorithm 1 in its full form on the full H; then the cut.
    """
    kept = {}
    for part in network.parts():
        if not group_names(part):
            continue
        changed = False
        for i, name in enumerate(group_names(part)):
            hidden = all_hidden(network, variables, images)[name]
            if sizes[name] < hidden.shape[-1]:
                now = {p.name: p for p in network.chain()}[part.name]
                consumer = Whole(now.module, subtree(variables, now), i)
                answer = numpy_algorithm.algorithm_1([hidden], consumer, sizes[name], T)
                assert answer.margin > MARGIN, "a tie: draw other images"
                kept[name] = np.flatnonzero(answer.support)
                group = network.groups()[name]
                variables = cut_by_hand(variables, group, kept[name])
                network = network.narrowed({name: sizes[name]})
                changed = True
        if changed and tune is not None:
            variables = tune(network, variables)
    return kept, network, variables


def assert_plan(found, kept):
    assert found.keys() == kept.keys()
    for name, cut in found.items():
        np.testing.assert_array_equal(cut.kept, kept[name], err_msg=name)


@functools.cache
def problem(name, n=12):
    network = NETWORKS[name]
    return network, variables_of(network), images_of(n)


@pytest.mark.parametrize("name", ["basic", "bottleneck", "mobile", "mlp"])
def test_the_walk_equals_a_naive_one(name):
    network, variables, images = problem(name)
    sizes = budget.sizes(network, 0.3)
    pruned = pruning.walk(network, variables, np.split(images, 3), sizes)
    kept, narrow, cut = naive_walk(network, variables, images, sizes)
    assert_plan(pruned.plan, kept)
    assert pruned.network.group_widths() == narrow.group_widths() == sizes
    jax.tree.map(np.testing.assert_array_equal, dict(pruned.variables), cut)
    assert pruned.network.widths and pruned.seconds > 0
    again = jax.tree.map(jnp.shape, models.shapes(pruned.network, SHAPE))
    assert again == jax.tree.map(jnp.shape, cut)


def test_the_first_and_only_some_groups():
    """Groups that keep all their channels are left alone, and their arrays too."""
    network, variables, images = problem("basic")
    sizes = budget.sizes(network, {"layer1.1": 0.4})
    pruned = pruning.walk(network, variables, [images], sizes)
    kept, _, cut = naive_walk(network, variables, images, sizes)
    assert_plan(pruned.plan, kept)
    assert list(pruned.plan) == ["layer1.1"]
    jax.tree.map(np.testing.assert_array_equal, dict(pruned.variables), cut)
    results = {group.name: group for group in pruned.groups}
    assert results.keys() == network.group_widths().keys()
    assert results["layer1.0"].relative_residual is None
    assert results["layer1.0"].cut.kept.tolist() == list(range(10))


class Squashed(BasicBlock):
    """A basic block whose consumer ends in tanh: not affine, and says so."""

    groups = (BasicBlock.groups[0]._replace(affine=False),)

    def consumer(self, h, i, train=False):
        return jnp.tanh(super().consumer(h, i, train))


class SquashedNet(Network):
    @nn.nowrap
    def parts(self):
        block = Squashed((20,), features=3, parent=None)
        head = Head(num_classes=self.num_classes, parent=None)
        return Part("a", block), Part("b", block), Part("head", head, keys=("fc",))


def test_a_consumer_that_is_not_affine_runs_the_full_form():
    network = SquashedNet(4)
    variables, images = variables_of(network), images_of(10)
    sizes = {"a": 4, "b": 3}
    pruned = pruning.walk(network, variables, [images[:7], images[7:]], sizes)
    kept, _, _ = naive_walk(network, variables, images, sizes)
    assert_plan(pruned.plan, kept)


TRACES = []


class Counted(BasicBlock):
    def hidden(self, x, i, train=False):
        TRACES.append("hidden")
        return super().hidden(x, i, train)

    def consumer(self, h, i, train=False):
        TRACES.append("consumer")
        return super().consumer(h, i, train)


class CountedNet(Network):
    depth: int = 2

    @nn.nowrap
    def parts(self):
        block = Counted((8,), features=3, parent=None)
        return tuple(Part(f"block{i}", block) for i in range(self.depth))


def test_blocks_of_equal_shape_are_traced_once():
    """Five equal blocks cost no trace more than one does."""
    counts = []
    for depth in (1, 2, 5):
        network = CountedNet(depth=depth)
        variables, images = variables_of(network), images_of(5)
        jax.clear_caches()
        TRACES.clear()
        pruning.walk(
            network, variables, [images, images[:2]], budget.sizes(network, 0.4)
        )
        counts.append(list(TRACES))
    assert counts[0] == counts[1] == counts[2]


@pytest.mark.parametrize(("name", "residual_images"), [("basic", 30), ("mlp", 256)])
def test_how_images_are_batched_changes_nothing(name, residual_images):
    network, variables, _ = problem(name)
    images = images_of(100)
    sizes = budget.sizes(network, 0.3)
    found = [
        pruning.walk(
            network,
            variables,
            np.split(images, places),
            sizes,
            carry_dense=True,
            residual_images=residual_images,
        )
        for places in ([], [64], [50], [36])
    ]
    first = found[0]
    for other in found[1:]:
        assert_plan(other.plan, {name: cut.kept for name, cut in first.plan.items()})
        for a, b in zip(first.groups, other.groups, strict=True):
            np.testing.assert_allclose(
                [a.relative_residual, a.drift],
                [b.relative_residual, b.drift],
                rtol=1e-4,
            )


def norm(array):
    return np.sqrt(np.square(np.asarray(array, np.float64)).sum())


def test_relative_residual_and_drift_equal_numpy():
    network, variables, images = problem("basic")
    sizes = budget.sizes(network, 0.3)
    pruned = pruning.walk(
        network, variables, [images], sizes, carry_dense=True, residual_images=5
    )
    dense = x = jnp.asarray(images)
    chains = zip(network.chain(), pruned.network.chain(), strict=True)
    results = {group.name: group for group in pruned.groups}
    for before, after in chains:
        own, cut = subtree(variables, before), subtree(pruned.variables, after)
        if group_names(before):
            block, result = before.module, results[before.name]
            H = np.asarray(block.apply(own, x, 0, method="reach"))[:5]
            mask = np.isin(np.arange(H.shape[-1]), result.cut.kept)
            zero = np.zeros_like(H)

            def consumer(h, block=block, own=own):
                return np.asarray(
                    block.apply(own, jnp.asarray(h), 0, method="consumer"), np.float64
                )

            U, V = consumer(H) - consumer(zero), consumer(H) - consumer(H * mask)
            np.testing.assert_allclose(
                result.relative_residual, norm(V) / norm(U), rtol=1e-4
            )
        dense, x = before.module.apply(own, dense), after.module.apply(cut, x)
        if group_names(before):
            drift = norm(x - dense) / norm(dense)
            assert drift > 1e-3
            np.testing.assert_allclose(result.drift, drift, rtol=1e-4)


def test_without_a_dense_stream_or_residual_images_there_is_none():
    network, variables, images = problem("mlp")
    pruned = pruning.prune(network, variables, [images], 0.4, residual_images=0)
    for group in pruned.groups:
        assert group.drift is None and group.relative_residual is None
        assert 1 <= group.iterations <= 20


def shaken(network, variables):
    """Training, as far as the walk can tell: every parameter changes, before and
    after the block that was cut.
    """
    return {
        **variables,
        "params": jax.tree.map(
            lambda a: a + 0.2 * jnp.sin(10 * a + 1), variables["params"]
        ),
    }


def test_tuning_moves_the_boundary():
    """After tune, activations come from the trained network, its stem included."""
    network, variables, images = problem("basic")
    sizes, seen = budget.sizes(network, 0.3), []

    def tune(network, variables):
        seen.append(network.group_widths())
        assert all(
            jax.tree.leaves(
                jax.tree.map(
                    lambda a, b: a.shape == b.shape,
                    models.shapes(network, SHAPE),
                    dict(variables),
                )
            )
        )
        return shaken(network, variables)

    pruned = pruning.walk(network, variables, np.split(images, 2), sizes, tune=tune)
    kept, _, cut = naive_walk(network, variables, images, sizes, tune=shaken)
    assert_plan(pruned.plan, kept)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        dict(pruned.variables),
        cut,
    )
    untuned = pruning.walk(network, variables, [images], sizes).plan
    assert any(list(untuned[n].kept) != list(kept[n]) for n in list(kept)[1:])
    expected = network.group_widths()
    for widths, group in zip(seen, kept, strict=True):
        expected[group] = sizes[group]
        assert widths == expected


def test_tuning_leaves_the_dense_stream_dense():
    """The drift is against the network that was given, whatever tuning did since."""
    network, variables, images = problem("basic")
    sizes = budget.sizes(network, 0.3)
    pruned = pruning.walk(
        network, variables, [images], sizes, tune=shaken, carry_dense=True
    )
    first, *_, last = (p for p in network.chain() if group_names(p))
    dense = x = jnp.asarray(images)
    for before, after in zip(network.chain(), pruned.network.chain(), strict=True):
        dense = before.module.apply(subtree(variables, before), dense)
        x = after.module.apply(subtree(pruned.variables, after), x)
        if before.name == last.name:
            break
    drifts = {group.name: group.drift for group in pruned.groups}
    np.testing.assert_allclose(
        drifts[last.name], norm(x - dense) / norm(dense), rtol=1e-4
    )


def test_pruning_twice_composes():
    network, variables, images = problem("bottleneck")
    one = pruning.prune(network, variables, [images], 0.6)
    two = pruning.prune(one.network, one.variables, [images], 0.5)
    for name, width in network.group_widths().items():
        assert one.network.group_widths()[name] == int(0.6 * width)
        assert two.network.group_widths()[name] == int(0.5 * int(0.6 * width))
        assert two.plan[name].width == int(0.6 * width)
    network_1, variables_1 = plan.apply(one.plan, network, variables)
    network_2, variables_2 = plan.apply(two.plan, network_1, variables_1)
    assert network_2.group_widths() == two.network.group_widths()
    jax.tree.map(np.testing.assert_array_equal, variables_2, dict(two.variables))
    composed = plan.compose(one.plan, two.plan)
    _, at_once = plan.apply(composed, network, variables)
    jax.tree.map(np.testing.assert_array_equal, at_once, variables_2)


@pytest.mark.parametrize("method", ["l1", "random"])
def test_other_criteria_walk_the_same_way(method):
    network, variables, images = problem("basic")

    def walked(seed, batches):
        return pruning.prune(
            network,
            variables,
            batches,
            0.5,
            criterion=criteria.create(method),
            key=jax.random.key(seed),
        ).plan

    one = walked(0, [images])
    assert_plan(one, {n: c.kept for n, c in walked(0, np.split(images, 2)).items()})
    if method == "l1":
        for name, cut in one.items():
            stage, block = name.split(".")
            kernel = variables["params"][f"{stage}.{block}"]["conv1"]["kernel"]
            norms = np.abs(np.asarray(kernel, np.float64)).sum((0, 1, 2))
            expected = np.sort(np.argsort(-norms)[: len(cut.kept)])
            np.testing.assert_array_equal(cut.kept, expected)
    else:
        other = walked(1, [images])
        assert any(list(one[n].kept) != list(other[n].kept) for n in one)
        same_width = [cut.kept for cut in one.values() if cut.width == 10]
        assert any(list(a) != list(same_width[0]) for a in same_width[1:])


def test_nan_names_the_group():
    network, variables, images = problem("basic")
    broken = jax.tree.map(lambda a: a, variables)
    kernel = broken["params"]["layer1.1"]["conv1"]["kernel"]
    broken["params"]["layer1.1"]["conv1"]["kernel"] = kernel.at[0, 0, 0, 0].set(jnp.nan)
    with pytest.raises(FloatingPointError, match="'layer1.1'"):
        pruning.prune(network, broken, [images], 0.4)


def test_no_images_is_an_error():
    network, variables, _ = problem("basic")
    with pytest.raises(ValueError, match="no calibration images"):
        pruning.prune(network, variables, [], 0.4)


def test_the_walk_leaves_its_arguments_alone():
    network, variables, images = problem("mlp")
    before = jax.tree.map(np.array, variables)
    given = images.copy()
    pruning.prune(network, variables, [images], 0.4)
    jax.tree.map(np.testing.assert_array_equal, before, variables)
    np.testing.assert_array_equal(images, given)


# Plans.


def a_plan(network, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: plan.Cut(width, np.sort(rng.choice(width, 1 + width // 3, replace=False)))
        for name, width in network.group_widths().items()
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_verify_passes_every_kind_of_network(name):
    network, variables, images = problem(name)
    decided = a_plan(network)
    assert plan.verify(decided, network, variables, images) < 1e-5
    narrow, cut = plan.apply(decided, network, variables)
    assert narrow.group_widths() == {n: len(c.kept) for n, c in decided.items()}
    shapes = models.shapes(narrow, SHAPE)
    assert cost.macs(narrow, shapes, SHAPE) < cost.macs(network, variables, SHAPE)
    assert cost.parameters(cut) == cost.parameters(shapes)


class Forgetful(BasicBlock):
    """Its group omits the batch norm."""

    groups = (
        Group("", axes=(("conv1/*", -1), ("conv2/kernel", -2)), consumer=("conv2",)),
    )


class Shuffled(BasicBlock):
    """Its consumer reads the channels in another order than they are made."""

    def consumer(self, h, i, train=False):
        return super().consumer(h[..., ::-1], i, train)


class OneBlock(Network):
    block: type[Block] = BasicBlock

    @nn.nowrap
    def parts(self):
        block = self.block((6,), features=3, parent=None)
        return Part("a", block), Part(
            "h", Head(num_classes=4, parent=None), keys=("fc",)
        )


@pytest.mark.parametrize("block", [Forgetful, Shuffled])
def test_verify_finds_groups_that_are_wrong(block):
    images = images_of(3)
    good, bad = OneBlock(4), OneBlock(4, block=block)
    variables = variables_of(good)
    decided = {"a": plan.Cut(6, np.array([0, 1]))}
    assert plan.verify(decided, good, variables, images) < 1e-5
    with pytest.raises(AssertionError):
        plan.verify(decided, bad, variables, images)


def test_plans_survive_json():
    network, variables, images = problem("bottleneck")
    decided = pruning.prune(network, variables, [images], 0.4).plan
    text = json.dumps(plan.to_json(decided, "resnet50"))
    assert json.loads(text)["format"] == 1
    name, read = plan.from_json(json.loads(text))
    assert name == "resnet50" and list(read) == list(decided)
    for group, cut in read.items():
        assert cut.width == decided[group].width
        np.testing.assert_array_equal(cut.kept, decided[group].kept)
    jax.tree.map(
        np.testing.assert_array_equal,
        plan.apply(read, network, variables)[1],
        plan.apply(decided, network, variables)[1],
    )


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"format": 2, "model": "x", "groups": []},
        {"format": 1, "groups": []},
        {"format": 1, "model": "x", "groups": [{"name": "a", "kept": [0]}]},
        {
            "format": 1,
            "model": "x",
            "groups": [{"name": "a", "width": 2, "kept": ["b"]}],
        },
        {"format": 1, "model": "x", "groups": 3},
    ],
)
def test_what_is_no_plan_is_refused(data):
    with pytest.raises(InputError, match="not a plan of format 1"):
        plan.from_json(data)


@pytest.mark.parametrize(
    ("name", "width", "kept", "message"),
    [
        ("layer9.9", 10, [0], "does not have.*layer1.0"),
        ("layer1.0", 11, [0], "expects 11 channels.*has 10"),
        ("layer1.0", 10, [1, 0], "ascending"),
        ("layer1.0", 10, [1, 1], "ascending"),
        ("layer1.0", 10, [], "ascending"),
        ("layer1.0", 10, [-1, 2], r"\[0, 10\)"),
        ("layer1.0", 10, [2, 10], r"\[0, 10\)"),
    ],
)
def test_plans_that_do_not_fit_are_refused(name, width, kept, message):
    network, variables, _ = problem("basic")
    wrong = {name: plan.Cut(width, np.array(kept, int))}
    for use in (plan.apply, plan.mask):
        with pytest.raises(InputError, match=message):
            use(wrong, network, variables)


# Budgets.


@pytest.mark.parametrize(
    ("ratio", "width", "size"),
    [
        (0.3, 10, 3),
        (0.7, 10, 7),
        (0.1, 10, 1),
        (0.05, 10, 1),
        (0.29, 100, 29),
        (0.57, 100, 57),
        (0.58, 50, 29),
        (0.999, 10, 9),
        (1.0, 7, 7),
        (1.0, 1, 1),
        (1e-9, 1, 1),
    ],
)
def test_sizes_round_down_but_not_by_float_error(ratio, width, size):
    assert budget.sizes(MLP(2, hidden=(width,)), ratio) == {"hidden.0": size}


def test_sizes_by_glob_the_last_match_wins():
    network = ResNet(4, depths=(2, 2), base=10, stem="small")
    keep = {"layer1.*": 0.5, "layer2.1": 0.2, "*.0": 0.3}
    expected = {"layer1.0": 3, "layer1.1": 5, "layer2.0": 6, "layer2.1": 4}
    assert budget.sizes(network, keep) == expected
    assert budget.sizes(network, {"layer1.0": 0.5})["layer2.1"] == 20
    assert budget.sizes(network, {"layer2.*": 0.5, "*": 1.0}) == network.group_widths()
    narrow = network.narrowed({"layer1.0": 4})
    assert budget.sizes(narrow, 0.5)["layer1.0"] == 2


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.01, float("nan"), float("inf")])
def test_ratios_outside_are_refused(ratio):
    for keep in (ratio, {"hidden.*": ratio}):
        with pytest.raises(InputError, match="not a ratio"):
            budget.sizes(MLP(2, hidden=(4,)), keep)


def test_a_glob_without_a_group_is_refused():
    with pytest.raises(InputError, match=r"'layer7\*' matches no group.*hidden.0"):
        budget.sizes(MLP(2, hidden=(4,)), {"layer7*": 0.5})


# A user's own model.

OWN = '''
import flax.linen as nn

from ispasp_jax.groups import Group
from ispasp_jax.models import Block, Network, Part


class Mixer(Block):
    """A gated layer: two producers of the same channels, whose product is hidden."""

    features: int = 8

    groups = (
        Group(
            "",
            axes=(("value/*", -1), ("gate/*", -1), ("out/kernel", -2)),
            consumer=("out",),
        ),
    )

    def setup(self):
        self.value = nn.Dense(self.widths[0])
        self.gate = nn.Dense(self.widths[0])
        self.out = nn.Dense(self.features)

    def hidden(self, x, i, train=False):
        return nn.relu(self.value(x)) * nn.sigmoid(self.gate(x))

    def consumer(self, h, i, train=False):
        return self.out(h)

    def join(self, x, u, train=False):
        return x + u


class Flat(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(8, name="embed")(x.reshape(x.shape[0], -1))


class Own(Network):
    wide: int = 30

    @nn.nowrap
    def parts(self):
        mixers = (Part(f"mix{i}", Mixer((self.wide,), parent=None)) for i in range(2))
        head = nn.Dense(self.num_classes, parent=None)
        return (Part("flat", Flat(parent=None)), *mixers, Part("head", Last(head)))


class Last(nn.Module):
    layer: nn.Module

    @nn.compact
    def __call__(self, x, train=False):
        return self.layer(x)


def make(num_classes, wide=30):
    return Own(num_classes, wide=wide)
'''


def test_a_users_own_model(tmp_path, monkeypatch):
    (tmp_path / "own_model.py").write_text(
        OWN.replace("Last(head)", "Last(head, parent=None)")
    )
    monkeypatch.syspath_prepend(tmp_path)
    network = models.create("own_model:make", 3, wide=24, stem=None)
    assert network.num_classes == 3
    assert network.group_widths() == {"mix0": 24, "mix1": 24}
    assert models.options("own_model:make") == ("wide",)
    with pytest.raises(InputError, match="no option deep.*wide"):
        models.create("own_model:make", 3, deep=2)
    with pytest.raises(InputError, match="cannot be imported"):
        models.create("own_model:absent", 3)
    variables, images = variables_of(network), images_of(9)
    sizes = budget.sizes(network, 0.25)
    pruned = pruning.walk(network, variables, [images[:5], images[5:]], sizes)
    kept, _, cut = naive_walk(network, variables, images, sizes)
    assert_plan(pruned.plan, kept)
    jax.tree.map(np.testing.assert_array_equal, dict(pruned.variables), cut)
    assert plan.verify(pruned.plan, network, variables, images) < 1e-5


def test_iterations_are_an_option():
    """T = 1 and T = 20 as Algorithm 1 gives them, through the walk."""
    network, variables, images = problem("mlp")
    sizes = budget.sizes(network, 0.15)
    for T in (1, 2):
        pruned = pruning.walk(network, variables, [images], sizes, ispasp(T))
        kept, _, _ = naive_walk(network, variables, images, sizes, T)
        assert_plan(pruned.plan, kept)
        assert all(group.iterations <= T for group in pruned.groups)
