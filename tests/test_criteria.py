"""The criteria beside i-SpaSP, and what the walk hands to a criterion."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import regressions
from networks import NETWORKS, images_of, variables_of

from ispasp_jax import graph, selection
from ispasp_jax import prune as prune_model
from ispasp_jax.cli import methods, prune
from ispasp_jax.errors import InputError
from ispasp_jax.models.mlp import MLP
from ispasp_jax.selection import criteria
from ispasp_jax.selection.criterion import Criterion, criterion
from ispasp_jax.selection.problem import Problem, Unsuited, by_score
from ispasp_jax.walk import Options, walk

pytestmark = pytest.mark.usefixtures("strict")


def producer(seed, shape=(3, 3, 4, 10)):
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=shape).astype(np.float32)
    return {
        "bn1/scale": jnp.asarray(rng.normal(size=shape[-1]), jnp.float32),
        "conv1/kernel": jnp.asarray(kernel),
        "depthwise/kernel": jnp.asarray(rng.normal(size=(3, 3, 1, 10)), jnp.float32),
    }, kernel


@pytest.mark.parametrize("seed", range(3))
def test_l1_keeps_the_largest_filters_of_the_first_kernel(seed):
    arrays, kernel = producer(seed)
    norms = [sum(abs(w) for w in kernel[..., c].ravel().tolist()) for c in range(10)]
    for size in range(1, 11):
        expected = np.isin(np.arange(10), np.argsort(norms)[::-1][:size])
        for s in (size, jnp.asarray(size)):
            selection = criteria.l1()(Problem(producer=arrays), s)
            np.testing.assert_array_equal(selection.support, expected)
        assert selection.residuals.shape == (0,) and int(selection.iterations) == 0
        assert bool(selection.finite)


def test_l1_reports_nan():
    arrays, _ = producer(0)
    arrays["conv1/kernel"] = arrays["conv1/kernel"].at[0, 0, 0, 7].set(jnp.nan)
    assert not bool(criteria.l1()(Problem(producer=arrays), 3).finite)


def distances(kernel):
    """Of every filter to all others, summed."""
    columns = kernel.reshape(-1, 10).T.astype(float)
    return [sum(np.linalg.norm(a - b) for b in columns) for a in columns]


FROM_PRODUCER = {
    "l2": lambda arrays, kernel: [np.linalg.norm(kernel[..., c]) for c in range(10)],
    "fpgm": lambda arrays, kernel: distances(kernel),
    "bn_scale": lambda arrays, kernel: np.abs(arrays["bn1/scale"]),
}


@pytest.mark.parametrize("name", FROM_PRODUCER)
def test_scores_of_the_arrays_that_make_the_channels(name):
    for seed in range(3):
        arrays, kernel = producer(seed)
        order = np.argsort(FROM_PRODUCER[name](arrays, kernel))[::-1]
        for size in (1, 4, 9):
            selection = criteria.create(name)(Problem(producer=arrays), size)
            assert set(np.flatnonzero(selection.support)) == set(order[:size])


def test_bn_scale_takes_the_last_norm_and_says_where_there_is_none():
    arrays, _ = producer(0)
    arrays["bn2/scale"] = jnp.arange(10, dtype=jnp.float32) - 3
    selection = criteria.bn_scale()(Problem(producer=arrays), 2)
    assert np.flatnonzero(selection.support).tolist() == [8, 9]
    with pytest.raises(Unsuited, match="no batch norm normalises.*dense.0/kernel"):
        criteria.bn_scale()(Problem(producer={"dense.0/kernel": jnp.ones((3, 4))}), 2)
    network = NETWORKS["mlp"]
    with pytest.raises(InputError, match="group 'hidden.0': no batch norm.*l1"):
        prune_model(
            network,
            variables_of(network),
            [images_of(4)],
            criterion=criteria.bn_scale(),
        )


@pytest.mark.parametrize(
    "name, group, expected",
    [
        ("basic", "layer1.0", ["conv1/kernel", "bn1/scale", "bn1/bias"]),
        ("mlp", "hidden.1", ["kernel", "bias"]),
    ],
)
def test_a_producer_is_the_arrays_that_make_the_channels(name, group, expected):
    """Kernels first, those that read the channels left out, channels last."""
    network = NETWORKS[name]
    variables, seen = variables_of(network), {}

    def select(producer, size):
        seen.update(producer)
        d = next(iter(producer.values())).shape[-1]
        return by_score(jnp.arange(d, dtype=jnp.float32), size)

    criterion = Criterion(select)
    traced = graph.trace(network, variables, images_of(1))
    walk(traced, variables, [images_of(2)], {group: 2}, criterion)
    assert [*seen][0] == expected[0] and {*expected} <= {*seen}
    assert not any("conv2" in path or "bn2" in path for path in seen)
    assert {array.shape[-1] for array in seen.values()} == {traced[group].width}


def test_activation_keeps_what_is_most_active():
    H = np.random.default_rng(0).normal(size=(6, 3, 3, 10)).astype(np.float32)
    expected = np.argsort(H.astype(float).sum((0, 1, 2)))[-4:]
    selection = criteria.activation()(Problem(hidden=jnp.asarray(H)), 4)
    assert set(np.flatnonzero(selection.support)) == set(expected)


@pytest.mark.parametrize("seed, d, taps", [(0, 12, 1), (1, 12, 1), (2, 7, 9)])
def test_gfs_adds_whichever_channel_helps_most(seed, d, taps):
    rng = np.random.default_rng(seed)
    P = rng.normal(size=(300, taps * d)) @ rng.normal(size=(taps * d, taps * d))
    P -= P.mean(0)
    W = rng.normal(size=(taps * d, 5))
    moments = regressions.single((P.T @ P / 300, P.T @ P @ W / 300, W))
    channel = np.arange(taps * d) % d

    def error(kept):
        return np.square(P @ (W * ~np.isin(channel, kept)[:, None])).sum() / 300

    problem = Problem(least_squares=moments, producer={"k": jnp.zeros((2, d))})
    selections = jax.vmap(lambda s: criteria.gfs()(problem, s))(jnp.arange(d + 1))
    kept = []
    for s in range(d + 1):
        assert set(np.flatnonzero(selections.support[s])) == set(kept)
        np.testing.assert_allclose(
            selections.residuals[s, 0], error(kept) / 2, rtol=1e-3, atol=1e-3
        )
        left = [c for c in range(d) if c not in kept]
        kept += [min(left, key=lambda c: error([*kept, c]))] if left else []


def test_random_keeps_the_largest_draws():
    arrays, _ = producer(0)
    for seed in range(4):
        key = jax.random.key(seed)
        draws = np.asarray(jax.random.uniform(key, (10,)))
        expected = np.isin(np.arange(10), np.argsort(draws)[-4:])
        selection = criteria.random()(Problem(key=key, producer=arrays), 4)
        np.testing.assert_array_equal(selection.support, expected)


def test_random_is_uniform():
    arrays, _ = producer(0)
    select = criteria.random()
    keys = jax.random.split(jax.random.key(1), 4000)
    supports = jax.vmap(lambda k: select(Problem(key=k, producer=arrays), 3).support)(
        keys
    )
    assert (np.asarray(supports).sum(1) == 3).all()
    deviation = np.sqrt(0.3 * 0.7 / 4000)
    np.testing.assert_allclose(np.mean(supports, axis=0), 0.3, atol=5 * deviation)


def test_create_passes_the_options_that_the_factory_names():
    H, W1 = np.ones((2, 6), np.float32), np.ones((3, 6), np.float32)
    problem = Problem(consumer=lambda h: h @ W1.T, hidden=jnp.asarray(H))
    chosen = criteria.create("ispasp", num_iters=3)(problem, 2)
    assert chosen.residuals.shape == (3,)
    assert criteria.create("ispasp")(problem, 2).residuals.shape == (20,)
    assert criteria.create("l1").needs == {"producer"}


def test_create_names_what_there_is():
    with pytest.raises(ValueError, match="unknown method 'l3'.*ispasp.*l1.*random"):
        criteria.create("l3")
    assert set(criteria.CRITERIA) >= {"ispasp", "random", "l1"}
    for name in criteria.CRITERIA:
        criterion = criteria.create(name)
        assert criterion.needs <= set(Problem._fields)
        assert criterion == criteria.create(name)  # so that nothing compiles again
        assert criterion.labels == (name in ("taylor", "sosp"))


def test_the_help_names_every_method_and_which_need_labels():
    """`--help` may not import them, so its text is its own."""
    (flag,) = (a for a in prune.parser()._actions if "--method" in a.option_strings)
    without, labelled = flag.help.split("labels:")[-2:]
    for name in criteria.CRITERIA:
        words = labelled if criteria.create(name).labels else without
        assert re.search(rf"\b{name}\b", words), name


@pytest.mark.parametrize("name", criteria.CRITERIA)
def test_every_criterion_prunes(name):
    """On the activations, moments and derivatives that the walk gathers."""
    network = NETWORKS["basic"]
    found = prune_model(
        network,
        variables_of(network),
        np.split(images_of(8), 2),
        0.5,
        criterion=criteria.create(name),
        labels=np.split(np.arange(8) % 4, 2),
        repair="none",
    )
    assert {n: (c.width, c.size) for n, c in found.plan.items()} == {
        **{"layer1.0": (10, 5), "layer1.1": (10, 5), "layer2.0": (20, 10)}
    }
    for group in found.groups:
        assert 0 < group.relative_residual < 2


@pytest.mark.parametrize("residual_images", [0, 3])
@pytest.mark.parametrize(
    "needs",
    [(), ("hidden",), ("producer",), ("key",), ("consumer", "hidden"), Problem._fields],
    ids="+".join,
)
def test_the_walk_gathers_what_is_needed_and_nothing_else(needs, residual_images):
    network = MLP(3, hidden=(6, 7))
    images = np.random.default_rng(0).normal(size=(4, 4, 4, 3)).astype(np.float32)
    variables = network.init(jax.random.key(0), jnp.asarray(images))
    seen, wanted = [], needs

    class Recording(Criterion):
        needs = frozenset(wanted)

        def __call__(self, problem, size):
            given = {k for k, v in problem._asdict().items() if v is not None}
            seen.append(given)
            d = 7 if problem.hidden is None else problem.hidden.shape[-1]
            if problem.producer is not None:
                d = next(iter(problem.producer.values())).shape[-1]
            return by_score(jnp.arange(min(d, 6), dtype=jnp.float32), size)

    criterion = Recording(lambda size: None)
    walk(
        graph.trace(network, variables, images),
        variables,
        [images],
        {"hidden.0": 2},
        criterion,
        labels=[np.arange(4) % 3],
        options=Options(residual_images=residual_images),
    )
    assert seen and all(given == set(needs) for given in seen)


SAME = {
    "ispasp": [lambda f: f(), lambda f: f(20), lambda f: f(num_iters=np.int64(20))],
    "cosamp": [lambda f: f(), lambda f: f(20), lambda f: f(ridge=1e-3, num_iters=20)],
    "obs": [lambda f: f(), lambda f: f(1e-3), lambda f: f(ridge=np.float64(1e-3))],
}


@pytest.mark.parametrize("name", criteria.CRITERIA)
def test_equal_criteria_are_equal(name):
    factory = criteria.CRITERIA[name]
    ways = SAME.get(name, [lambda f: f(), lambda f: criteria.create(name)])
    assert len({way(factory) for way in (*ways, criteria.of)}) == 1
    assert factory.__doc__ and (name in SAME) == bool(factory.defaults)
    assert criteria.of(name) == factory() and str(factory()).startswith(name)
    assert len({make() for make in criteria.CRITERIA.values()}) == len(
        criteria.CRITERIA
    )


def test_the_command_lists_every_criterion():
    """Without importing them."""
    expected = {name: make().labels for name, make in criteria.CRITERIA.items()}
    assert methods.named() == expected and [*methods.named()] == [*expected]
    assert all(name in methods.listed() for name in expected)


def test_equal_criteria_compile_once():
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def select(criterion, hidden):
        traces.append(criterion)
        return criterion(Problem(hidden=hidden, consumer=lambda h: h @ h[0]), 2)

    for equal in (criteria.ispasp(), criteria.ispasp(20), criteria.ispasp(20)):
        select(equal, jnp.ones((2, 6)))
    assert len(traces) == 1
    select(criteria.ispasp(3), jnp.ones((2, 6)))
    assert len(traces) == 2


HIDDEN = Problem(hidden=jnp.ones((2, 6)))
BAD = {
    "option": (lambda: criteria.create("l1", num_iters=3), "l1 has no option 'num_it"),
    "misspelt": (lambda: criteria.create("obs", rigde=1), "'rigde'; it has ridge"),
    "name": (lambda: criteria.create("l3"), "unknown method 'l3'; expected one of"),
    "no iterations": (lambda: criteria.ispasp(0), "num_iters must be an integer of 1"),
    "1.5": (lambda: criteria.cosamp(1.5), "num_iters must be.*got 1.5"),
    "text": (lambda: criteria.ispasp("20"), "num_iters must be.*got '20'"),
    "ridge": (lambda: criteria.obs(-1), "ridge must be a finite number of 0 or more"),
    "nan": (lambda: criteria.cosamp(ridge=np.nan), "ridge must be.*got nan"),
    "needs": (
        lambda: Criterion(lambda hiden, producer, size: None),
        "cannot ask for 'hiden'; a problem has consumer, hidden, producer",
    ),
    "no size": (lambda: criterion(lambda hidden: None), "has to take size"),
    "function": (lambda: Criterion(3), "is a function of.*got 3"),
    "no criterion": (lambda: criteria.of(3), "expected a criterion.*got 3"),
    "no problem": (
        lambda: criteria.ispasp()(HIDDEN, 2),
        "needs consumer, hidden; the problem has no consumer",
    ),
    "a ratio": (lambda: criteria.activation()(HIDDEN, 0.4), "from 1 to 6; got 0.4"),
    "too many": (lambda: criteria.activation()(HIDDEN, 7), "from 1 to 6; got 7"),
    "producer": (
        lambda: criteria.l1()(Problem(producer={"kernel": jnp.ones((3, 4))}), 5),
        "from 1 to 4; got 5",
    ),
    "no kernel": (
        lambda: criteria.l2()(Problem(producer={"norm/scale": jnp.ones(4)}), 2),
        r"no kernel makes its channels \(norm/scale\)",
    ),
}


@pytest.mark.parametrize("make, words", BAD.values(), ids=BAD)
def test_what_is_no_criterion_is_refused(make, words, unchecked):
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert isinstance(caught.value, InputError | Unsuited)
    assert "\n" not in str(caught.value) and "--" not in str(caught.value)


def test_a_criterion_is_written_as_one_function(tmp_path, monkeypatch):
    """What it takes says what it needs; a file of the package is found by name."""

    @criterion
    def least(hidden, size, *, power: int = 1):
        """The smallest sums of powers."""
        return by_score(-(hidden**power).sum(0), size)

    assert least().needs == {"hidden"} and least(2) != least() == least(power=1)
    hidden = Problem(hidden=jnp.asarray([[3.0, -4, 1, 2]]))
    assert np.flatnonzero(least()(hidden, 2).support).tolist() == [1, 2]
    assert np.flatnonzero(least(2)(hidden, 2).support).tolist() == [2, 3]
    (tmp_path / "another.py").write_text(
        "from ispasp_jax.selection import by_score, criterion\n"
        "@criterion\n"
        "def loudest(hidden, size):\n"
        "    return by_score(abs(hidden).sum(0), size)\n"
    )
    path = [*selection.__path__, str(tmp_path)]
    monkeypatch.setattr(selection, "__path__", path)
    found = criteria._found()
    assert {*found} - {*criteria.CRITERIA} == {"loudest"}
    assert np.flatnonzero(found["loudest"]()(hidden, 1).support).tolist() == [1]
