"""Padding of texts weighs nothing: in what is selected, repaired and measured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ispasp_jax import Budget, prune, trace
from ispasp_jax.errors import InputError
from ispasp_jax.models.bert import BERT
from ispasp_jax.walk import flat, places, sites, streams

NETWORK = BERT(3, 8, 2, 1, 12, 16, separator=3)


def texts(seed: int = 0, count: int = 24, length: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 12, (count, length))


def weights(tokens):
    drawn = NETWORK.init(jax.random.key(1), jnp.asarray(tokens[:2]))
    scale = lambda a: 4 * a if a.ndim > 1 else a + 0.1  # noqa: E731
    return jax.tree.map(scale, drawn)


def longer(tokens, by: int = 3) -> np.ndarray:
    return np.pad(tokens, [(0, 0), (0, by)])


def batches(tokens):
    return [tokens[:10], tokens[10:20], tokens[20:]]


@pytest.mark.parametrize("criterion", ["ispasp", "obs", "activation"])
@pytest.mark.parametrize("scope", ["inner", "all"])
def test_a_padded_text_counts_as_the_text(criterion, scope):
    tokens = texts()
    variables = weights(tokens)
    options = {"criterion": criterion, "scope": scope, "repair": "lsq", "keep": 0.5}
    expected = prune(NETWORK, variables, batches(tokens), **options)
    padded = batches(longer(tokens))
    real = [batch != 0 for batch in padded]
    result = prune(NETWORK, variables, padded, real=real, **options)
    assert result.plan.keys() == expected.plan.keys()
    for name, cut in expected.plan.items():
        np.testing.assert_array_equal(result.plan[name].kept, cut.kept)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3),
        result.variables,
        expected.variables,
    )
    for one, other in zip(result.groups, expected.groups, strict=True):
        assert one.relative_residual == pytest.approx(other.relative_residual, 1e-3)
    blind = prune(NETWORK, variables, padded, **options)
    apart = [
        np.abs(r.variables["params"]["bert.encoder.layer.0"]["output.dense"]["kernel"])
        for r in (blind, expected)
    ]
    assert np.abs(apart[0] - apart[1]).max() > 1e-2


def test_a_budget_is_met_by_what_texts_say():
    tokens = texts()
    variables, keep = weights(tokens), Budget(params="95%", round_to=1)
    expected = prune(NETWORK, variables, batches(tokens), keep)
    padded = batches(longer(tokens))
    result = prune(
        NETWORK, variables, padded, keep, real=[batch != 0 for batch in padded]
    )
    assert {n: c.size for n, c in result.plan.items()} == {
        n: c.size for n, c in expected.plan.items()
    }


def opened(function, variables, x):
    traced = trace(function, variables, x)
    program = flat.flatten(traced)
    arrays = flat.arrays(program, jax.tree.map(jnp.asarray, variables))
    entry = streams.start(program, arrays, [x])
    return program, places.start(entry, [np.asarray(x[..., 0] != 0)], None)


def as_it_is(v, x):
    return jax.nn.relu(x @ v["in"]) @ v["out"]


def turned(v, x):
    x = x.transpose(1, 0, 2)
    return (jax.nn.relu(x @ v["in"]) @ v["out"]).transpose(1, 0, 2)


def flattened(v, x):
    n, t, c = x.shape
    return (jax.nn.relu(x.reshape(n * t, c) @ v["in"]) @ v["out"]).reshape(n, t, -1)


@pytest.mark.parametrize("function", [as_it_is, turned, flattened])
def test_padding_is_found_in_every_layout(function):
    draw = np.random.default_rng(0).normal
    v = {"in": draw(size=(3, 5)).astype("f"), "out": draw(size=(5, 2)).astype("f")}
    x = draw(size=(4, 6, 3)).astype("f")
    x[1, 4:] = x[2, 1:] = 0
    program, entry = opened(function, v, jnp.asarray(x))
    site = sites.suited(program)[0]
    here = entry.to(site.place)
    ones = here._replace(live={site.hidden: [jnp.ones(site.hidden.shape)]})
    masked = places.hidden(ones, site)[0]
    rows = places.rows(here, site, 0)
    assert float(masked.sum()) == 3 * (x[..., 0] != 0).sum()
    assert float(rows.sum()) == (x[..., 0] != 0).sum()


@pytest.mark.parametrize(
    "real, said",
    [
        ([np.ones((24, 6), bool)], "real has batches of shapes"),
        ([np.ones((10, 5), bool)] * 2, "real has batches of shapes"),
        ([np.zeros((n, 6), bool) for n in (10, 10, 4)], "all padding"),
    ],
)
def test_what_is_no_mask_is_refused(real, said):
    tokens = texts()
    with pytest.raises(InputError, match=said):
        prune(NETWORK, weights(tokens), batches(tokens), real=real)
