"""Consumers as users write them: repaired rightly, or said not to be reached."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import images_of, randomised

from ispasp_jax import InputError, graph, prune
from ispasp_jax.selection import criteria
from ispasp_jax.walk import measure_curves, walk

SHAPE = (4, 4, 6)


class Scale(nn.Module):
    """LayerScale: a trained factor a channel."""

    @nn.compact
    def __call__(self, x):
        return x * self.param("scale", nn.initializers.constant(0.3), x.shape[-1:])


class Bounded(nn.Module):
    """A dense layer whose kernel is computed before it is used."""

    @nn.compact
    def __call__(self, x):
        shape = (x.shape[-1], 6)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        return x @ jnp.tanh(kernel)


class Own(nn.Module):
    """relu(up(x)) and then something that a user wrote.

    Attributes:
      kind: what.
      wide: channels inside.
    """

    kind: str = "dense"
    wide: int = 24

    @nn.compact
    def __call__(self, x, train=False):
        kind = self.kind
        h = nn.relu(nn.Dense(self.wide, name="up")(x))
        bias = "without bias" not in kind
        if "half of h" in kind:
            h = 0.5 * h
        if "pooled" in kind:
            h = nn.avg_pool(h, (2, 2), (2, 2))
        if "every second" in kind:
            h = h[:, ::2, ::2]
        self.sow("seen", "h", h)
        if "conv" in kind:
            stride = (2, 2) if "stride" in kind else (1, 1)
            down = nn.Conv(6, (3, 3), stride, padding=1, use_bias=bias, name="down")
        elif "bounded" in kind:
            down = Bounded(name="down")
        else:
            down = nn.Dense(6, use_bias=bias, name="down")
        u = down(h)
        if "batch norm" in kind:
            norm = nn.BatchNorm(
                not train,
                use_bias="no β" not in kind,
                use_scale="no γ" not in kind,
                epsilon=1e-3 if "1e-3" in kind else 1e-5,
                name="norm",
            )
            u = norm(u)
        if "again" in kind:
            u = u + norm(down(0.3 * h)) if "norm" in kind else u + down(0.3 * h)
        if "layer norm" in kind:
            u = nn.LayerNorm(name="norm")(u)
        if "layer scale" in kind:
            u = Scale(name="factor")(u)
        if "tanh" in kind:
            u = jnp.tanh(u)
        if "by place" in kind:
            u = u * jnp.arange(1, 5)[:, None, None]
        return 3 - 2 * u if "3 − 2 u" in kind else u


def problem(kind):
    """A model, its variables, and batches to calibrate it on."""
    model = Own(kind)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *SHAPE)))
    variables = randomised({k: v for k, v in shapes.items() if k != "seen"})
    if "1e-3" in kind:  # where an epsilon counts
        stats = variables["batch_stats"]["norm"]
        stats["var"] = 2e-3 * stats["var"]
        kernel = variables["params"]["down"]["kernel"]
        variables["params"]["down"]["kernel"] = 0.05 * kernel
    images = images_of(200, SHAPE)
    return model, variables, [images[:80], images[80:160], images[160:]]


def windows(h, stride):
    """What a 3x3 convolution padded by one pixel sees, taps before channels."""
    padded = np.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)))
    seen = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    seen = seen[:, ::stride, ::stride]  # n h w c a b
    return np.moveaxis(seen, 3, 5).reshape(*seen.shape[:3], -1)


REPAIRED = (
    *("dense without bias", "conv stride", "half of h layer scale"),
    *("conv batch norm 1e-3", "batch norm no β", "without bias batch norm no β no γ"),
    *("batch norm 1e-3 layer scale 3 − 2 u", "pooled", "every second"),
)
SLOW = (
    *("dense", "conv", "conv without bias", "dense layer scale", "half of h"),
    *("3 − 2 u", "batch norm", "batch norm 1e-3", "conv without bias batch norm"),
    *("batch norm no γ", "batch norm no β no γ", "without bias batch norm no β"),
)
slowly = [pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW]


@pytest.mark.parametrize("kind", [*REPAIRED, *slowly])
def test_what_is_affine_is_repaired(kind):
    """To what an independent float64 least squares leaves, up to the ridge."""
    model, variables, batches = problem(kind)
    images = np.concatenate(batches)
    dense, seen = model.apply(variables, images, mutable=["seen"])
    errors = {}
    for repair in ("none", "lsq"):
        found = prune(model, variables, batches, 0.5, repair=repair)
        ours = found.apply(found.variables, images)
        errors[repair] = float(jnp.square(ours - dense).mean())
        assert found.groups[0].unrepaired is None and not found.unrepaired
    (h,) = seen["seen"]["h"]
    P = np.asarray(h, np.float64)[..., found.plan["up"].kept]
    if "conv" in kind:
        P = windows(P, 2 if "stride" in kind else 1)
    P, T = P.reshape(-1, P.shape[-1]), np.asarray(dense, np.float64).reshape(-1, 6)
    if "without bias" not in kind or "norm" in kind:
        P = np.concatenate([P, np.ones((len(P), 1))], 1)
    best = np.square(T - P @ np.linalg.lstsq(P, T)[0]).mean()
    assert best <= errors["lsq"] * 1.001
    assert errors["lsq"] < 1.1 * best + 0.02 * errors["none"], (best, errors)
    assert errors["lsq"] < 0.5 * errors["none"]


@pytest.mark.parametrize("kind", ["layer norm", "tanh"])
def test_a_consumer_ends_before_what_is_not_affine(kind):
    """It is refitted to what goes into the norm or the activation."""
    model, variables, batches = problem(kind)
    plain = problem("dense")[0]
    params = {"params": {k: variables["params"][k] for k in ("up", "down")}}
    found = prune(model, variables, batches, 0.5)
    alone = prune(plain, params, batches, 0.5)
    assert found.groups[0].unrepaired is None
    for name in ("up", "down"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            found.variables["params"][name],
            alone.variables["params"][name],
        )


UNREACHED = {
    "bounded": "its kernel is made by tanh .*, not a variable",
    "bounded batch norm": "its kernel is made by tanh",
    "by place": "its scale or shift differs from place to place",
}


@pytest.mark.parametrize("kind", UNREACHED)
def test_what_is_not_reached_says_so_and_is_left_as_cut(kind):
    model, variables, batches = problem(kind)
    as_cut = prune(model, variables, batches, 0.5, repair="none")
    found = prune(model, variables, batches, 0.5, repair="lsq")
    (group,) = found.groups
    assert np.array_equal(group.cut.kept, as_cut.groups[0].cut.kept)
    assert found.unrepaired == {"up": group.unrepaired}
    assert re.search(UNREACHED[kind], group.unrepaired)
    jax.tree.map(
        np.testing.assert_array_equal,
        found.variables["params"],
        as_cut.variables["params"],
    )
    if "norm" in kind:  # its moments are measured again instead
        kernel = found.variables["params"]["down"]["kernel"]
        images = np.concatenate(batches)
        z = Bounded().apply(
            {"params": {"kernel": kernel}}, hidden(model, found, images)
        )
        stats = found.variables["batch_stats"]["norm"]
        np.testing.assert_allclose(stats["mean"], z.mean((0, 1, 2)), rtol=1e-3)
        np.testing.assert_allclose(stats["var"], z.var((0, 1, 2)), rtol=1e-3)
    traced = graph.trace(model, variables, batches[0])
    with pytest.raises(InputError, match="group 'up': no least squares .* another"):
        walk(traced, variables, batches, {"up": 12}, criteria.create("obs"))
    assert not measure_curves(traced, variables, batches, traced.groups)


def hidden(model, found, images):
    """What the narrower model's consumer reads."""
    narrow = dataclasses.replace(model, wide=found.plan["up"].size)
    _, seen = narrow.apply(found.variables, images, mutable=["seen"])
    return seen["seen"]["h"][0]


def test_training_goes_on_from_a_repaired_batch_norm():
    """Its moments are those of what it is given, whatever its epsilon: the same batch
    gives the same outputs in training.
    """
    model, variables, batches = problem("conv batch norm 1e-3 layer scale")
    images = jnp.concatenate(batches)
    found = prune(model, variables, batches, 0.5)
    evaluated = found.apply(found.variables, images)
    narrow = dataclasses.replace(model, wide=12)
    trained, _ = narrow.apply(found.variables, images, True, mutable=["batch_stats"])
    size = float(jnp.abs(evaluated).max())
    np.testing.assert_allclose(trained, evaluated, atol=2e-3 * size)
    z = nn.Conv(6, (3, 3), padding=1).apply(
        {"params": found.variables["params"]["down"]}, hidden(model, found, images)
    )
    stats = found.variables["batch_stats"]["norm"]
    np.testing.assert_allclose(stats["mean"], z.mean((0, 1, 2)), atol=1e-3)
    np.testing.assert_allclose(stats["var"], z.var((0, 1, 2)), rtol=1e-2)


def test_weights_that_two_places_share_are_not_written():
    """A layer that is called twice has two consumers' worth of one kernel, and a norm
    behind both is no norm of either."""
    cut = {"up": graph.Cut(24, np.arange(0, 24, 2))}
    for kind in ("dense again", "batch norm again"):
        model, variables, batches = problem(kind)
        traced = graph.trace(model, variables, batches[0])
        found = prune(model, variables, batches, plan=cut, repair="lsq")
        jax.tree.map(
            np.testing.assert_array_equal,
            found.variables["params"],
            traced.take(cut, variables)["params"],
        )
