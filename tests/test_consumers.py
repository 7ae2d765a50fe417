"""Consumers as users write them: repaired rightly, or said not to be reached."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import images_of, randomised

from ispasp_jax import (
    Block,
    Group,
    Head,
    InputError,
    Network,
    Part,
    algorithm_1,
    budget,
    criteria,
    curves,
    prune,
    pruning,
)
from ispasp_jax.groups import leaves

SHAPE = (4, 4, 6)


class Scale(nn.Module):
    """LayerScale: a trained factor a channel."""

    @nn.compact
    def __call__(self, x):
        return x * self.param("scale", nn.initializers.constant(0.3), x.shape[-1:])


class Standardised(nn.Module):
    """A dense layer whose kernel is normalised before it is used."""

    @nn.compact
    def __call__(self, x):
        shape = (x.shape[-1], 6)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        return x @ (kernel - kernel.mean(0)) / kernel.std(0)


class Own(Block):
    """relu(up(x)) and then something that a user wrote.

    Attributes:
      kind: which.
    """

    kind: str = "dense"

    groups = (
        Group(
            "",
            axes=(("up/*", -1), ("down/kernel", -2)),
            consumer=("down", "norm", "factor"),
        ),
    )

    def setup(self):
        kind = self.kind
        self.up = nn.Dense(self.widths[0])
        bias = "without bias" not in kind
        if "conv" in kind:
            stride = (2, 2) if "stride" in kind else (1, 1)
            self.down = nn.Conv(6, (3, 3), stride, padding=1, use_bias=bias)
        elif "standardised" in kind:
            self.down = Standardised()
        else:
            self.down = nn.Dense(6, use_bias=bias)
        options = {
            "use_bias": "no β" not in kind,
            "use_scale": "no γ" not in kind,
            "epsilon": 1e-3 if "1e-3" in kind else 1e-5,
        }
        if "batch norm" in kind:
            self.norm = nn.BatchNorm(**options)
        elif "layer norm" in kind:
            self.norm = nn.LayerNorm()
        elif "group norm" in kind:
            self.norm = nn.GroupNorm(2)
        if "layer scale" in kind:
            self.factor = Scale()

    def hidden(self, x, i, train=False):
        return nn.relu(self.up(x))

    def consumer(self, h, i, train=False):
        kind = self.kind
        if "half of h" in kind:
            h = 0.5 * h
        if "channels weighed" in kind:
            h = h * jnp.arange(1, h.shape[-1] + 1) / h.shape[-1]
        if "pooled" in kind:
            h = nn.avg_pool(h, (2, 2), (2, 2))
        if "blurred" in kind:
            h = nn.avg_pool(h, (3, 3), (1, 1), "SAME")
        if "every second" in kind:
            h = h[:, ::2, ::2]
        u = self.down(h)
        if "batch norm" in kind:
            u = self.norm(u, use_running_average=not train)
        elif "norm" in kind:
            u = self.norm(u)
        if "layer scale" in kind:
            u = self.factor(u)
        if "tanh" in kind:
            u = jnp.tanh(u)
        return 3 - 2 * u if "3 − 2 u" in kind else u

    def patches(self, h, i, step=1):
        if "conv" not in self.kind or "no patches" in self.kind:
            return super().patches(h, i, step)
        every = 2 * step if "stride" in self.kind else step
        padded = jnp.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)))
        n, m = (h.shape[1], h.shape[2])
        return jnp.concatenate(
            [
                padded[:, a : a + n : every, b : b + m : every]
                for a in range(3)
                for b in range(3)
            ],
            -1,
        )


class Net(Network):
    kind: str = "dense"

    @nn.nowrap
    def parts(self):
        block = Own((24,), kind=self.kind, parent=None)
        head = Head(num_classes=self.num_classes, parent=None)
        return Part("own", block), Part("head", head, keys=("fc",))


def problem(kind):
    """A network, its variables, and batches to calibrate it on."""
    network = Net(5, kind=kind)
    image = jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), image)
    variables = randomised(shapes)
    for path, leaf in leaves(variables):
        if path.endswith("norm/var"):  # where an epsilon counts
            stats = variables["batch_stats"]["own"]["norm"]
            stats["var"] = 2e-3 * leaf
            own = variables["params"]["own"]
            own["down"]["kernel"] = 0.05 * own["down"]["kernel"]
    images = images_of(256, SHAPE)
    return network, variables, [images[:100], images[100:200], images[200:]]


def branch(network, variables, images):
    """What the block makes of the images."""
    part = network.chain()[0]
    own = {c: tree["own"] for c, tree in variables.items() if "own" in tree}
    return part.module.apply(own, jnp.asarray(images))


REPAIRED = (
    *("dense without bias", "conv stride", "half of h layer scale"),
    *("conv batch norm 1e-3", "batch norm no β", "without bias batch norm no β no γ"),
    "batch norm 1e-3 layer scale 3 − 2 u",
)
SLOW = (
    *("dense", "conv", "conv without bias", "dense layer scale", "half of h"),
    *("3 − 2 u", "batch norm", "batch norm 1e-3", "conv without bias batch norm"),
    *("batch norm no γ", "batch norm no β no γ", "without bias batch norm no β"),
)

UNREACHED = {
    "layer norm": "a norm over its input",
    "group norm": "a norm over its input",
    "tanh": "an activation",
    "channels weighed": "its output is not its kernel times the patches",
    "pooled": "16 patches of 24 numbers do not give its 4 outputs",
    "every second": "16 patches of 24 numbers do not give its 4 outputs",
    "conv stride no patches": "16 patches of 24 numbers do not give its 4 outputs",
    "conv no patches": "by a kernel of shape",
    "blurred": "stride or pooling that Block.patches does not have",
    "standardised": "",
}


@pytest.mark.parametrize(
    "kind", [*REPAIRED, *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)]
)
def test_what_is_affine_is_repaired(kind):
    """To what an independent float64 least squares leaves, up to the ridge."""
    network, variables, batches = problem(kind)
    images = np.concatenate(batches)
    dense = branch(network, variables, images)
    errors = {}
    for repair in ("none", "lsq"):
        found = prune(network, variables, batches, 0.5, repair=repair)
        ours = branch(found.network, found.variables, images)
        errors[repair] = float(jnp.square(ours - dense).mean())
        assert found.groups[0].unrepaired is None
    part = network.chain()[0]
    own = {c: tree["own"] for c, tree in variables.items() if "own" in tree}
    h = part.module.apply(own, jnp.asarray(images), 0, method="reach")[
        ..., found.plan["own"].kept
    ]
    # Patches do not look at the width, so the block gives them of fewer channels, too.
    P = np.asarray(part.module.patches(h, 0), np.float64)
    P, T = P.reshape(-1, P.shape[-1]), np.asarray(dense, np.float64).reshape(-1, 6)
    if "without bias" not in kind or "norm" in kind:
        P = np.concatenate([P, np.ones((len(P), 1))], 1)
    best = np.square(T - P @ np.linalg.lstsq(P, T)[0]).mean()
    assert best <= errors["lsq"] * 1.001
    assert errors["lsq"] < 1.1 * best + 0.02 * errors["none"], (best, errors)
    assert errors["lsq"] < 0.5 * errors["none"]


@pytest.mark.parametrize("kind", UNREACHED)
def test_what_is_not_reached_says_so_and_is_left_as_cut(kind):
    network, variables, batches = problem(kind)
    as_cut = prune(network, variables, batches, 0.5)
    found = prune(network, variables, batches, 0.5, repair="lsq")
    assert UNREACHED[kind] in found.groups[0].unrepaired
    assert found.unrepaired == {"own": found.groups[0].unrepaired}
    for (path, ours), (_, expected) in zip(
        leaves(found.variables["params"]["own"]),
        leaves(as_cut.variables["params"]["own"]),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, expected, err_msg=path)
    with pytest.raises(InputError, match="group 'own': no least squares .* another"):
        sizes = budget.sizes(network, 0.5)
        pruning.walk(network, variables, batches, sizes, criteria.create("obs"))
    assert not curves.measure_curves(network, variables, batches)


@pytest.mark.parametrize("kind", ["layer norm", "tanh", "batch norm"])
def test_i_spasp_sums_images_only_where_that_is_exact(kind):
    """Whatever the group declares: the support is that of all images, one by one."""
    network, variables, batches = problem(kind)
    part = network.chain()[0]
    own = {c: tree["own"] for c, tree in variables.items() if "own" in tree}
    images = jnp.asarray(np.concatenate(batches))
    H = part.module.apply(own, images, 0, method="reach")

    def consumer(h):
        return part.module.apply(own, h, 0, method="consumer")

    for size in (3, 5, 8):
        found = pruning.walk(network, variables, batches, {"own": size})
        expected = algorithm_1(H, consumer, size).support
        np.testing.assert_array_equal(
            found.plan["own"].kept, np.flatnonzero(expected), err_msg=str(size)
        )


def test_training_goes_on_from_a_repaired_batch_norm():
    """Its moments are those of what it is given, whatever its epsilon: the same batch
    gives the same outputs in training.
    """
    network, variables, batches = problem("conv batch norm 1e-3 layer scale")
    images = np.concatenate(batches)
    found = prune(network, variables, batches, 0.5, repair="lsq")
    evaluated = branch(found.network, found.variables, images)
    own = {c: found.variables[c]["own"] for c in ("params", "batch_stats")}
    module = found.network.chain()[0].module
    trained, _ = module.apply(own, jnp.asarray(images), True, mutable=["batch_stats"])
    size = float(jnp.abs(evaluated).max())
    np.testing.assert_allclose(trained, evaluated, atol=2e-3 * size)
