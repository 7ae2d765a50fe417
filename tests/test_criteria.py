"""The criteria beside i-SpaSP, and what the walk hands to a criterion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ispasp_jax import criteria, pruning
from ispasp_jax.models.mlp import MLP
from ispasp_jax.problem import Criterion, Problem, by_score

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
    chosen = criteria.create("ispasp", num_iters=3, nothing=0)(problem, 2)
    assert chosen.residuals.shape == (3,)
    assert criteria.create("ispasp")(problem, 2).residuals.shape == (20,)
    assert criteria.create("l1", num_iters=3).needs == {"producer"}


def test_create_names_what_there_is():
    with pytest.raises(ValueError, match="unknown method 'l2'.*ispasp.*random.*l1"):
        criteria.create("l2")
    assert set(criteria.CRITERIA) >= {"ispasp", "random", "l1"}
    for name in criteria.CRITERIA:
        assert criteria.create(name).needs <= set(Problem._fields)


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
    seen = []

    def select(problem, size):
        given = {k for k, v in problem._asdict().items() if v is not None}
        seen.append(given)
        d = 7 if problem.hidden is None else problem.hidden.shape[-1]
        if problem.producer is not None:
            d = next(iter(problem.producer.values())).shape[-1]
        return by_score(jnp.arange(min(d, 6), dtype=jnp.float32), size)

    criterion = Criterion(select, needs=frozenset(needs))
    one = {next(iter(network.group_widths())): 2}
    pruning.walk(
        network, variables, [images], one, criterion, residual_images=residual_images
    )
    assert seen and all(given == set(needs) for given in seen)
