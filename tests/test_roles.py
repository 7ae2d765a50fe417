"""What a consumer's variables are, found by evaluating it."""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from programs import draw, sites_of

from ispasp_jax import graph
from ispasp_jax.walk import consumers, fits, flat, norms, roles, sites

X = draw(3, 5, 4, 6)


def positive(tree):
    """Arrays of the tree's shapes, all different and none near zero."""
    return jax.tree.map(lambda a: 0.3 + jnp.abs(draw(*a.shape, seed=5)), tree)


def linen(*layers):
    model = nn.Sequential([*layers])
    return model, positive(model.init(jax.random.key(0), X))


class Normed(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(6, 5, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(5, use_running_average=True, epsilon=1e-3, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.conv(x))


def haiku():
    def forward(x, train=False):
        x = hk.Conv2D(5, 3, with_bias=False, name="conv")(x)
        return hk.BatchNorm(True, True, 0.9, eps=1e-3, name="norm")(x, train)

    model = hk.without_apply_rng(hk.transform_with_state(forward))
    return model, positive(model.init(jax.random.key(0), X, True))


CONV, PLAIN = nn.Conv(5, (3, 3)), nn.Conv(5, (3, 3), use_bias=False)
params, stats = "params/layers_{}/{}", "batch_stats/layers_{}/{}"


def named(layer, *names):
    """Roles of a Linen batch norm's arrays by name."""
    where = {"scale": params, "bias": params, "mean": stats, "var": stats}
    return {name: where[name].format(layer, name) for name in names}


BEFORE = {"before": params.format(0, "bias")}

#: A model and what each of its arrays is.
MODELS = {
    "linen": (
        linen(PLAIN, nn.BatchNorm(True)),
        named(1, "scale", "bias", "mean", "var"),
    ),
    "conv bias, eps 1e-3": (
        linen(CONV, nn.BatchNorm(True, epsilon=1e-3)),
        named(1, "scale", "bias", "mean", "var") | BEFORE,
    ),
    "without scale": (
        linen(CONV, nn.BatchNorm(True, use_scale=False)),
        named(1, "bias", "mean", "var") | BEFORE,
    ),
    "without bias": (
        linen(CONV, nn.BatchNorm(True, use_bias=False)),
        named(1, "scale", "mean", "var") | BEFORE,
    ),
    "neither": (
        linen(PLAIN, nn.BatchNorm(True, use_scale=False, use_bias=False)),
        named(1, "mean", "var"),
    ),
    "dense": (linen(nn.Dense(5)), {"bias": params.format(0, "bias")}),
    "dense without bias": (linen(nn.Dense(5, use_bias=False)), {}),
    "nnx": (
        (Normed(), None),
        {
            **{name: f"norm/{name}/value" for name in ("scale", "bias", "mean", "var")},
            "before": "conv/bias/value",
        },
    ),
    "haiku": (
        haiku(),
        {
            **{"scale": "0/norm/scale", "bias": "0/norm/offset"},
            **{"mean": "1/norm/~/mean_ema/average", "var": "1/norm/~/var_ema/average"},
        },
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_roles_are_found(name):
    (model, variables), expected = MODELS[name]
    program = flat.flatten(graph.trace(model, variables, X))
    (site,) = sites.sites(program)
    found = roles.roles(consumers.chain(site))
    paths = {
        role: place.variable.origin
        for role, place in found._asdict().items()
        if place is not None
    }
    assert paths == expected
    assert (found.norm is not None) == {"scale", "mean", "var"}.issubset(expected)
    (norm,) = norms.norms(program) or [None]
    assert (norm is not None) == ("var" in expected)
    if norm:
        assert norm.roles == found
        assert norm.value is site.equation.outputs[0]


@pytest.mark.parametrize("name", ["linen", "conv bias, eps 1e-3", "nnx", "haiku"])
def test_writing_a_fit_gives_it(name):
    """U = P W + b on average `output`, and the moments are the new kernel's own."""
    (model, variables), expected = MODELS[name]
    if variables is None:
        variables = positive(nnx.state(model))
    (site,), weights = sites_of(model, variables, X)
    matrix = np.random.default_rng(0).normal(size=(9 * 6, 5))
    mean, var, output = (np.asarray(draw(5, seed=s)) for s in (1, 2, 3))
    var = np.abs(var) + 0.1
    weights = fits.store(site, weights, matrix, output, mean, var)
    scale, shift = consumers.chain(site).ends(weights)
    kernel = np.asarray(consumers.kernel(site, weights)).reshape(matrix.shape)
    np.testing.assert_allclose(kernel * scale, matrix, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(kernel, matrix, rtol=1e-5)  # unscaled
    np.testing.assert_allclose(mean * scale + shift, output, rtol=1e-3, atol=1e-3)
    arrays = {value.origin: array for value, array in weights.items()}
    np.testing.assert_allclose(np.ravel(arrays[expected["mean"]]), mean, rtol=1e-5)
    np.testing.assert_allclose(np.ravel(arrays[expected["var"]]), var, rtol=1e-5)
    if "before" in expected:
        assert not np.asarray(arrays[expected["before"]]).any()


def test_moments_of_a_norm_that_two_places_share_are_nobodys():
    def twice(v, x):
        def norm(y):
            return (y - v["mean"]) / jnp.sqrt(v["var"] + 1e-5) * v["scale"]

        return jax.nn.relu(norm(x @ v["a"])), norm(x @ v["b"]) + v["c"]

    shapes = {"a": (6, 5), "b": (6, 5), "mean": (5,), "var": (5,), "scale": (5,)}
    variables = {name: 0.3 + jnp.abs(draw(*s)) for name, s in shapes.items()}
    variables["c"] = draw(5, seed=7)
    found, weights = sites_of(twice, variables, X)
    one, other = (roles.roles(consumers.chain(site)) for site in found)
    assert one == roles.Roles()
    assert other._replace(bias=None) == roles.Roles()
    assert other.bias.variable.origin == "c"
    assert not norms.norms(found[0].flat)
    kernel = fits.stored_kernel(found[0])
    assert kernel.variable.origin == "a"
    (shared, _), _ = sites_of(
        lambda v, x: (x @ v["a"], jnp.tanh(x) @ v["a"]), variables, X
    )
    with pytest.raises(fits.Unreached, match="read at several places"):
        fits.stored_kernel(shared)
