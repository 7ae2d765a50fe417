"""What the equations say of a consumer is what the model computes there."""

import itertools

import equinox as eqx
import flax.linen as nn
import graph_models as models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from programs import draw, sites_of, value

from ispasp_jax import graph
from ispasp_jax.walk import consumers, flat, layouts, sites


def linen(layer, *shape):
    """A Linen layer as a function of its variables, and these."""
    made = layer.init(jax.random.key(0), jnp.zeros(shape))
    variables = jax.tree.map(lambda a: 0.2 + jnp.abs(draw(*a.shape)), made)
    return layer.apply, variables, draw(*shape)


def mapped(layer, *shape):
    """An Equinox layer under vmap."""
    arrays, static = eqx.partition(layer, eqx.is_array)
    return lambda v, x: jax.vmap(eqx.combine(v, static))(x), arrays, draw(*shape)


def plain(function, x, **shapes):
    return function, {name: draw(*s, seed=1) for name, s in shapes.items()}, draw(*x)


def convolution(letters, x, kernel, strides=(1, 1), padding="SAME", **options):
    def function(v, x):
        return lax.conv_general_dilated(
            x, v["k"], strides, padding, dimension_numbers=letters, **options
        )

    return plain(function, x, k=kernel)


def in_rows(v, x):
    """Tokens as rows of one matrix, and back."""
    n, t, c = x.shape
    return (x.reshape(n * t, c) @ v["k"] + v["b"]).reshape(n, t, -1)


def normalised(v, x):
    k = v["k"]
    return x @ ((k - k.mean(0)) / k.std(0)) * v["s"] - v["b"]


def examples_inside(v, x):
    """Examples on the last axis going in, on the third coming out."""
    letters = ("HWCN", "HWIO", "HWNC")
    x = jnp.moveaxis(x, 0, -1)
    return lax.conv_general_dilated(
        x, v["k"], (1, 1), "SAME", dimension_numbers=letters
    )


def same(y):
    return y


def first(y):
    return jnp.moveaxis(y, 1, -1)


key = jax.random.key(0)
nhwc, nchw = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")

#: A layer, its variables and input, and its output as (n, *positions, o).
LAYERS = {
    "dense": (*linen(nn.Dense(5), 3, 4), same),
    "kernel first": (
        *plain(lambda v, x: jnp.einsum("io,ni->on", v["k"], x), (3, 4), k=(4, 5)),
        jnp.transpose,
    ),
    "inner axis": (
        *plain(lambda v, x: jnp.einsum("nct,co->not", x, v["k"]), (3, 4, 6), k=(4, 5)),
        first,
    ),
    "two axes": (*linen(nn.DenseGeneral(5, axis=(-2, -1)), 3, 6, 2, 4), same),
    "two axes swapped": (
        *plain(
            lambda v, x: jnp.einsum("nab,bao->no", x, v["k"]), (3, 4, 2), k=(2, 4, 5)
        ),
        same,
    ),
    "two features": (
        *linen(nn.DenseGeneral((2, 5)), 3, 6, 4),
        lambda y: y.reshape(3, 6, 10),
    ),
    "rows": (*plain(in_rows, (3, 4, 6), k=(6, 5), b=(5,)), same),
    "turned": (
        *plain(lambda v, x: 3 - (x @ v["k"]).T * v["s"] / 2, (3, 4), k=(4, 5), s=(1,)),
        jnp.transpose,
    ),
    "normalised kernel": (*plain(normalised, (3, 4), k=(4, 5), s=(5,), b=(5,)), same),
    "strides": (*linen(nn.Conv(5, (3, 3), (2, 2)), 2, 7, 6, 4), same),
    "dilation": (
        *linen(nn.Conv(5, (3, 2), kernel_dilation=(2, 1), padding="VALID"), 2, 7, 6, 4),
        same,
    ),
    "explicit padding": (
        *linen(nn.Conv(5, (3, 3), (2, 1), padding=((2, 0), (0, 3))), 2, 5, 6, 4),
        same,
    ),
    "transposed": (*linen(nn.ConvTranspose(5, (2, 2), (2, 2)), 2, 3, 4, 6), same),
    "transposed wide": (*linen(nn.ConvTranspose(5, (4, 3), (2, 3)), 2, 3, 4, 6), same),
    "channels first": (*convolution(nchw, (2, 4, 6, 5), (7, 4, 3, 3)), first),
    "examples inside": (
        *plain(examples_inside, (2, 6, 5, 4), k=(3, 3, 4, 7)),
        lambda y: jnp.moveaxis(y, 2, 0),
    ),
    "one side": (*linen(nn.Conv(5, (3,), (2,)), 2, 9, 4), same),
    "volume": (*linen(nn.Conv(5, (2, 2, 2)), 2, 3, 4, 3, 4), same),
    "kernel above map": (*linen(nn.Conv(5, (3, 3)), 2, 2, 2, 4), same),
    "patch": (*linen(nn.Conv(5, (4, 4), (4, 4), padding="VALID"), 2, 8, 8, 3), same),
    "vmap linear": (*mapped(eqx.nn.Linear(4, 5, key=key), 3, 4), same),
    "vmap conv": (
        *mapped(eqx.nn.Conv2d(4, 5, 3, 2, 1, key=key), 3, 4, 7, 6),
        first,
    ),
    "vmap conv 1d": (
        *mapped(eqx.nn.Conv1d(4, 5, 3, dilation=2, key=key), 3, 4, 9),
        first,
    ),
    "batch norm": (
        *linen(
            nn.Sequential([nn.Conv(5, (3, 3)), nn.BatchNorm(True, epsilon=1e-2)]),
            *(2, 5, 4, 3),
        ),
        same,
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_chain_is_the_function(name):
    function, variables, x, bring = LAYERS[name]
    (site,), weights = sites_of(function, variables, x)
    made = function(variables, x)
    y = np.asarray(bring(made))
    given, x = x, value(site, site.hidden, weights, x)
    h = layouts.as_hidden(site, x)
    kernel = consumers.kernel(site, weights)
    scale, shift = consumers.chain(site).ends(weights)
    matrix = kernel.reshape(-1, kernel.shape[-1])
    assert h.shape[-1] == site.width and len(h) == len(y)
    assert matrix.shape[-1] == y.shape[-1]
    close = {"rtol": 1e-4, "atol": 1e-4 * np.abs(y).max()}
    with jax.default_matmul_precision("highest"):
        patched = layouts.patches(site, h) @ matrix * scale + shift
        run = layouts.linear(site, h, kernel) * scale + shift
    np.testing.assert_allclose(patched, y, **close)
    np.testing.assert_allclose(run, y, **close)
    np.testing.assert_array_equal(layouts.as_out(site, made), y)
    few = np.array([0, site.width - 1])
    np.testing.assert_array_equal(
        layouts.patches(site, h, 2, few),
        layouts.thinned(layouts.patches(site, h[..., few]), 2),
    )
    # The kernel's operand comes back from the matrix.
    expected = value(site, site.kernel, weights, given)
    np.testing.assert_allclose(layouts.from_kernel(site, matrix), expected, rtol=1e-6)
    # A factor of every place of H, in the layout of the model.
    factor = draw(len(h), site.width)
    expected = h * factor.reshape(len(h), *[1] * (h.ndim - 2), -1)
    found = layouts.as_hidden(site, x * layouts.in_place(site, factor))
    np.testing.assert_array_equal(found, expected)


def loop(x, kernel, strides, pads, grown, apart):
    """A correlation of NHWC and HWIO, position by position, in float64."""
    n, *sides, _ = x.shape
    sides = [(s - 1) * g + 1 for s, g in zip(sides, grown, strict=True)]
    wide = np.zeros((n, *sides, x.shape[-1]))
    wide[:, :: grown[0], :: grown[1]] = x
    wide = np.pad(wide, ((0, 0), *pads, (0, 0)))
    out = [
        (size - (tap - 1) * a - 1) // stride + 1
        for size, tap, a, stride in zip(
            wide.shape[1:3], kernel.shape, apart, strides, strict=False
        )
    ]
    made = np.zeros((n, *out, kernel.shape[-1]))
    for i, j in itertools.product(*map(range, out)):
        for a, b in itertools.product(*map(range, kernel.shape[:2])):
            row, column = i * strides[0] + a * apart[0], j * strides[1] + b * apart[1]
            made[:, i, j] += wide[:, row, column] @ kernel[a, b]
    return made


pair = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=12)
@given(pair, pair, pair, st.booleans(), st.tuples(*[st.integers(0, 2)] * 4))
def test_any_convolution_is_patches_times_its_kernel(taps, strides, apart, grow, pads):
    pads = (pads[:2], pads[2:])
    strides, grown = ((1, 1), strides) if grow else (strides, (1, 1))
    x, kernel = draw(2, 7, 6, 2), draw(*taps, 2, 3)
    function, variables, _ = convolution(
        *(nhwc, x.shape, kernel.shape, strides, pads),
        lhs_dilation=grown,
        rhs_dilation=apart,
    )
    (site,), weights = sites_of(function, {"k": kernel}, x)
    found = layouts.patches(site, x) @ np.asarray(kernel, np.float64).reshape(-1, 3)
    expected = loop(
        *(np.asarray(a, np.float64) for a in (x, kernel)), strides, pads, grown, apart
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_what_has_no_form_says_why():
    grouped = linen(nn.Conv(4, (3, 3), feature_group_count=2), 2, 5, 5, 4)
    (site,), _ = sites_of(*grouped)
    assert not sites.is_suited(site) and "in groups" in sites.why(site)
    by_place = plain(
        lambda v, x: jnp.einsum("ntc,tco->nto", x, v["k"]), (3, 4, 5), k=(4, 5, 6)
    )
    (site,), _ = sites_of(*by_place)
    assert "from place to place" in sites.why(site)


def test_a_scans_sites_are_its_layers():
    """Each reads its own slice of the stacked kernels; Linen names the outer layer
    first."""
    model, x = models.Scanned(), models.images(3)
    variables = models.variables(model, x)
    found, weights = sites_of(model, variables, x)
    layers = variables["params"]["ScanCheckpointLayer_0"]
    inside = [site for site in found if site.layer is not None]
    assert [site.layer for site in inside] == [0, 0, 1, 1, 2, 2]
    for site, name in zip(inside, ["Dense_1", "Dense_0"] * 3, strict=True):
        kernel = layers[name]["kernel"][site.layer]
        np.testing.assert_array_equal(consumers.kernel(site, weights), kernel)
        scale, shift = consumers.chain(site).ends(weights)
        np.testing.assert_allclose(scale, np.ones_like(shift), rtol=1e-6)
        np.testing.assert_allclose(shift, layers[name]["bias"][site.layer], rtol=1e-6)
        assert (site.join is None) == (name == "Dense_1")


def test_places_of_channels_that_are_blocks():
    """A flattened map's channels, an attention's heads and their width."""
    x = models.images()
    model = models.Flatten()
    traced = graph.trace(model, models.variables(model, x), x)
    (site,) = sites.of_leaf(sites.sites(flat.flatten(traced)), traced["Conv_1"].atom)
    expected = np.arange(4 * 4 * 8).reshape(16, 8).T
    np.testing.assert_array_equal(sites.index(site, traced["Conv_1"].atom), expected)
    model = models.ViT()
    traced = graph.trace(model, models.variables(model, x), x)
    found = sites.sites(flat.flatten(traced))
    name = "Encoder_0.MultiHeadDotProductAttention_0.value"
    heads, wide = traced[f"{name}.1"].atom, traced[f"{name}.2"].atom
    (site,) = sites.of_leaf(found, heads)
    np.testing.assert_array_equal(
        sites.index(site, heads), [[0, 1, 2, 3], [4, 5, 6, 7]]
    )
    np.testing.assert_array_equal(
        sites.index(site, wide), [[0, 4], [1, 5], [2, 6], [3, 7]]
    )
