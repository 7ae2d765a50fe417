"""Groups from the jaxpr: the right ones are found, and cut equals masked."""

import re

import chex
import equinox as eqx
import flax.linen as nn
import graph_models as models
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.ad_checkpoint import checkpoint_name

from ispasp_jax import graph
from ispasp_jax.errors import InputError
from ispasp_jax.graph import Cut
from ispasp_jax.graph.check import random_plan

#: Model, and the kind and width of every group that a person finds in it.
FOUND = {
    models.Flatten: {
        "Conv_0": ("inner", 6),
        "Conv_1": ("inner", 8),
        "Dense_0": ("inner", 12),
    },
    models.UNet: {
        "Conv_0": ("concatenated", 6),
        "Conv_1": ("inner", 8),
        "ConvTranspose_0": ("concatenated", 6),
        "Conv_2": ("inner", 6),
    },
    # Channels go in fours of a group norm's group; two of each here.
    models.SqueezeExcite: {
        "Conv_2": ("shared", 4),
        "Conv_1": ("inner", 4),
        "Conv_3": ("inner", 8),
    },
    models.ViT: {
        "Encoder_0.MultiHeadDotProductAttention_0.key": ("product", 4),
        "Encoder_0.MultiHeadDotProductAttention_0.value.1": ("head", 2),
        "Encoder_0.MultiHeadDotProductAttention_0.value.2": ("inner", 4),
        "Encoder_0": ("inner", 12),
    },
    models.Fused: {
        "Dense_0.1": ("product", 4),
        "Dense_0.2": ("head", 3),
        "Dense_2": ("linear", 6),
    },
    models.Scanned: {
        "stream.Dense_0": ("stream", 6),
        "ScanCheckpointLayer_0": ("inner", 10),
    },
    models.DenseNet: {
        "Conv_0": ("concatenated", 4),
        "Conv_1": ("concatenated", 4),
        "Conv_2": ("concatenated", 4),
    },
}


def inputs(model):
    if model is models.MaskedLanguage:
        return jnp.arange(12).reshape(2, 6) % 11
    return models.images()


@pytest.mark.parametrize("make", [*FOUND, models.MaskedLanguage])
def test_groups_are_found_and_cut_equals_masked(make):
    model, x = make(), inputs(make)
    variables = models.variables(model, x)
    traced = graph.trace(model, variables, x)
    if make in FOUND:
        assert {g.name: (g.kind, g.width) for g in traced.groups} == FOUND[make]
    assert graph.check(traced, variables, x) < 1e-5
    cut = traced.take(random_plan(traced), variables)
    assert sum(a.size for a in jax.tree.leaves(cut)) < 0.9 * sum(
        a.size for a in jax.tree.leaves(variables)
    )


def test_an_nnx_module_carries_its_variables():
    module = models.Residual(nnx.Rngs(0))
    traced = graph.trace(module, None, models.images())
    assert {g.name: (g.kind, g.width) for g in traced.groups} == {
        "stream.stem": ("stream", 6),
        "grow": ("inner", 8),
    }
    state = nnx.state(module)
    assert graph.check(traced, state, models.images()) < 1e-5
    cut = traced.take({"grow": Cut(8, np.array([1, 4, 5]))}, state)
    assert type(cut) is type(state)
    chex.assert_shape(cut["grow"]["kernel"].get_value(), (3, 3, 6, 3))


def test_an_equinox_module_is_mapped_over_examples():

    class Net(eqx.Module):
        layers: list

        def __init__(self, key):
            a, b = jax.random.split(key)
            self.layers = [
                eqx.nn.Conv2d(3, 6, 3, key=a),
                jax.nn.relu,
                jnp.ravel,
                eqx.nn.Linear(6 * 36, 5, key=b),
            ]

        def __call__(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    module = Net(jax.random.key(0))
    x = jnp.moveaxis(models.images(), -1, 1)
    traced = graph.trace(module, None, x)
    assert {g.name: (g.kind, g.width) for g in traced.groups} == {
        "layers.0": ("inner", 6)
    }
    cut = traced.take({"layers.0": Cut(6, np.array([0, 5]))}, module)
    masked = traced.mask({"layers.0": Cut(6, np.array([0, 5]))}, module)
    chex.assert_trees_all_close(jax.vmap(cut)(x), jax.vmap(masked)(x), rtol=1e-4)


def test_a_haiku_transform_with_averages_that_nothing_reads():

    def forward(x, train=False):
        x = hk.Conv2D(6, 3)(x)
        x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(x, train))
        return hk.Linear(5)(x.mean((1, 2)))

    net, x = hk.transform_with_state(forward), models.images()
    variables = net.init(jax.random.key(0), x, True)
    traced = graph.trace(net, variables, x)
    assert [(g.name, g.kind, g.width) for g in traced.groups] == [
        ("conv2_d", "inner", 6)
    ]
    plan = random_plan(traced)
    _, state = traced.take(plan, variables)
    assert state["batch_norm/~/mean_ema"]["hidden"].shape[-1] == 3
    assert graph.check(traced, variables, x) < 1e-5


def test_what_is_left_alone_says_why():
    def model(v, x):
        h = x @ v["a"]
        return (h / jnp.linalg.norm(h, axis=-1, keepdims=True)) @ v["b"]

    variables = {"a": jnp.ones((3, 6)), "b": jnp.ones((6, 2))}
    traced = graph.trace(model, variables, jnp.ones((4, 3)))
    assert not traced.groups
    printed = str(traced)
    assert "a[1], b[0]" in printed and "reduce_sum" in printed
    assert "test_graph.py" in printed and "an output" in printed


def test_positions_are_not_left_alone_and_a_reason_names_its_module():
    """A pooled map that is flattened, scanned layers, a norm over channels."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.max_pool(nn.relu(nn.Conv(6, (3, 3))(x)), (2, 2), (2, 2))
            x = nn.Dense(8)(x.reshape(len(x), -1))
            layers = nn.scan(
                models.Layer,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=3,
            )
            x = nn.LayerNorm(name="norm")(
                layers(name="layers")(nn.Dense(6)(x), None)[0]
            )
            return nn.Dense(5, name="out")(x)

    model = Net()
    x = models.images()
    traced = graph.trace(model, models.variables(model, x), x)
    *others, normalised = [(one.axes, one.reason) for one in traced.whole]
    assert {reason for _, reason in others} == {"an input", "an output"}
    carried = {(axis.path, axis.axis) for axis in normalised[0]}
    assert ("params/layers/Dense_0/kernel", 2) in carried
    assert ("params/layers/Dense_0/kernel", 0) not in carried
    assert re.match(r"reduce_sum \(Net/norm, flax/linen/normali.+:\d+\)", normalised[1])


def test_an_unknown_primitive_freezes_what_it_touches_and_a_rule_frees_it():
    def model(v, x):
        return jax.lax.linalg.cholesky((x @ v["a"]).reshape(-1, 6, 6)) @ v["b"]

    variables = {"a": jnp.ones((3, 36)), "b": jnp.ones((6, 2))}
    traced = graph.trace(model, variables, jnp.ones((4, 3)))
    assert not traced.groups and "no rule for cholesky" in str(traced)

    fake = jax.extend.core.Primitive("a_users_own")
    fake.def_abstract_eval(lambda aval: aval)
    fake.def_impl(lambda x: x)
    jax.interpreters.mlir.register_lowering(fake, lambda ctx, x: [x])
    own = {"a": jnp.ones((3, 6)), "b": jnp.ones((6, 2))}

    def used(v, x):
        return fake.bind(x @ v["a"]) @ v["b"]

    assert not graph.trace(used, own, jnp.ones((4, 3))).groups
    graph.rule("a_users_own")(
        lambda eqn: graph.rules.same(eqn, eqn.inputs[0], eqn.outputs[0])
    )
    try:
        assert graph.check(used, own, jnp.ones((4, 3))) == 0
        assert len(graph.trace(used, own, jnp.ones((4, 3)))) == 1
    finally:
        graph.RULES.pop("a_users_own")


def losses(model):
    """The loss of a training step with moments and dropout."""

    def loss(variables, x, labels, key):
        logits, moved = model.apply(
            variables, x, True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return each.mean(), moved

    return loss


def trained():
    model, x = models.Trained(), models.images(4)
    variables = models.variables(model, x)
    traced = graph.trace(model, variables, x)
    plan = random_plan(traced)
    return model, x, variables, traced, plan


def test_narrow_trains_inside_and_outside_of_the_gradient():
    model, x, variables, traced, plan = trained()
    loss, labels, key = losses(model), jnp.arange(4), jax.random.key(5)
    optimizer = optax.adam(0.1)

    def train(variables, state, x, labels, key):
        gradient, moved = jax.grad(loss, has_aux=True)(variables, x, labels, key)
        steps, state = optimizer.update(gradient["params"], state)
        params = optax.apply_updates(variables["params"], steps)
        return {"params": params, **moved}, state, gradient

    small = traced.take(plan, variables)
    state = traced.take(plan, optimizer.init(variables["params"]))
    chex.assert_trees_all_equal_shapes(state, optimizer.init(small["params"]))

    inside = jax.jit(graph.narrow(train, traced, plan))
    after, moments, gradient = inside(small, state, x, labels, key)
    outside = jax.jit(jax.grad(graph.narrow(loss, traced, plan), has_aux=True))
    same, moved = outside(small, x, labels, key)
    chex.assert_trees_all_close(gradient["params"], same["params"], rtol=1e-4)
    chex.assert_trees_all_equal_shapes(gradient, small)
    chex.assert_trees_all_equal_shapes(after, small)
    chex.assert_trees_all_equal_shapes(moments, state)
    chex.assert_trees_all_close(after["batch_stats"], moved["batch_stats"], rtol=1e-4)


def test_narrow_gives_the_gradients_of_the_masked_model():
    model, x, variables, traced, plan = trained()

    def loss(v, x):
        return jnp.square(model.apply(v, x)).sum()

    masked = jax.grad(loss)(traced.mask(plan, variables), x)
    small = jax.grad(graph.narrow(loss, traced, plan))(traced.take(plan, variables), x)
    chex.assert_trees_all_close(
        small["params"], traced.take(plan, masked)["params"], rtol=1e-3, atol=1e-3
    )


def test_narrow_composes_with_jit_vmap_and_export_and_any_batch():
    _, _, variables, traced, plan = trained()
    small = traced.take(plan, variables)
    apply = graph.narrow(traced.function, traced, plan)
    x = models.images(6)
    expected = apply(small, x)
    chex.assert_trees_all_close(jax.jit(apply)(small, x), expected, rtol=1e-4)
    mapped = jax.vmap(lambda one: apply(small, one[None])[0])(x)
    chex.assert_trees_all_close(mapped, expected, rtol=1e-4, atol=1e-5)
    (batch,) = jax.export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)
    exported = jax.export.export(jax.jit(apply))(small, shape)
    chex.assert_trees_all_close(
        exported.call(small, x[:5]), expected[:5], rtol=1e-4, atol=1e-5
    )


def test_narrow_keeps_derivatives_that_a_model_writes_itself():
    @jax.custom_vjp
    def straight(x):
        return jnp.round(x)

    straight.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))

    @jax.custom_jvp
    def doubled(x):
        return x * 1.0

    @doubled.defjvp
    def _(primals, tangents):
        return primals[0], tangents[0] * jnp.full(primals[0].shape, 2.0)

    def model(v, x):
        return (doubled(straight(x @ v["a"])) @ v["b"]).sum()

    a = jax.random.normal(jax.random.key(0), (3, 6))
    variables = {"a": a, "b": a.T[:, :2]}
    x = jax.random.normal(jax.random.key(1), (4, 3))
    traced = graph.trace(model, variables, x)
    (group,) = traced.groups
    plan = {group.name: Cut(6, np.array([0, 2, 3]))}
    small = jax.grad(graph.narrow(model, traced, plan))(traced.take(plan, variables), x)
    whole = traced.take(plan, jax.grad(model)(traced.mask(plan, variables), x))
    chex.assert_trees_all_close(small, whole, rtol=1e-5)
    assert float(jnp.abs(small["a"]).max()) > 0


def test_optimizer_states_are_taken_by_their_paths():
    _, _, variables, traced, plan = trained()
    optimizer = optax.chain(optax.clip(1.0), optax.adam(0.1))
    state = optimizer.init(variables["params"])
    cut = traced.take(plan, {"params": variables["params"], "state": state})
    expected = optimizer.init(cut["params"])
    moments = traced.take(plan, optimizer.init({"params": variables["params"]}))
    chex.assert_trees_all_equal_shapes(
        jax.tree.leaves(moments), jax.tree.leaves(expected)
    )


@pytest.mark.parametrize(
    ("name", "cut", "words"),
    [
        ("nothing", Cut(6, np.array([0])), "which this model does not have"),
        ("a", Cut(7, np.array([0])), "expects 7 channels"),
        ("a", Cut(6, np.array([], int)), "at least one"),
        ("a", Cut(6, np.array([2, 1])), "ascending"),
        ("a", Cut(6, np.array([0, 6])), "[0, 6)"),
        ("a", Cut(6, np.array([-1, 2])), "[0, 6)"),
        ("a", Cut(6, np.array([0.5])), "integers"),
        ("a", Cut(6, np.array([[0, 1]])), "ascending integers"),
    ],
)
def test_a_plan_that_does_not_fit_is_one_sentence(name, cut, words):
    variables = {"a": {"w": jnp.ones((3, 6))}, "b": {"w": jnp.ones((6, 2))}}
    traced = graph.trace(lambda v, x: x @ v["a"]["w"] @ v["b"]["w"], variables, 
                         jnp.ones((4, 3)))  # fmt: skip
    with pytest.raises(InputError, match=re.escape(words)):
        traced.take({name: cut}, variables)


def test_a_function_that_joins_groups_of_the_plan_says_so():
    variables = {"a": jnp.ones((3, 6)), "b": jnp.ones((6, 6)), "c": jnp.ones((6, 2))}
    traced = graph.trace(
        lambda v, x: x @ v["a"] @ v["b"] @ v["c"], variables, jnp.ones((4, 3))
    )
    plan = {g.name: Cut(6, np.array([i])) for i, g in enumerate(traced.groups)}
    both = graph.narrow(lambda v: (v["b"] + v["b"].T).sum(), traced, plan)
    with pytest.raises(InputError, match="makes two groups of 6 channels one"):
        both(traced.take(plan, variables))


W = jax.random.normal(jax.random.key(2), (12, 12))
#: An operation on hidden (4, 5, 12), and the widths of the groups that are left.
OPERATIONS = {
    "nothing": (lambda h: h, {12}),
    "elementwise": (lambda h: jnp.tanh(h) * 2 + h**3, {12}),
    "ones": (lambda h: h * h.sum(1, keepdims=True), {12}),
    "constant": (lambda h: h * jnp.asarray(np.arange(12.0)), {12}),
    "select": (lambda h: jnp.where(h > 0, h, 0.1 * h), {12}),
    "split heads": (lambda h: h.reshape(4, 5, 3, 4).reshape(4, 5, 12), {3, 4}),
    "merge": (lambda h: h.reshape(20, 12).reshape(4, 5, 12), {12}),
    "transpose": (lambda h: h.transpose(1, 2, 0).transpose(2, 0, 1), {12}),
    "concatenate": (lambda h: jnp.concatenate([h, h * 2], -1)[..., 6:18], {6}),
    "pieces": (lambda h: jnp.concatenate([h[..., 4:], h[..., :4]], -1), {4, 8}),
    "split": (lambda h: jnp.concatenate(jnp.split(h, 3, -1)[::-1], -1), {4}),
    "stack": (lambda h: jnp.stack([h, 2 * h], 1).sum(1), {12}),
    "interleave": (
        lambda h: jnp.stack(jnp.split(h, 2, -1), -1).reshape(4, 5, 12),
        {6},
    ),
    "unstack": (
        lambda h: jnp.concatenate(jnp.unstack(h.reshape(4, 5, 2, 6), axis=2), -1),
        {6},
    ),
    "pad": (lambda h: jnp.pad(h, ((0, 0), (0, 0), (1, 2)))[..., 1:13], {12}),
    "tile": (lambda h: jnp.tile(h, (1, 1, 2))[..., :12], {12}),
    "cumulate positions": (lambda h: jnp.cumsum(h, 1), {12}),
    "cumulate channels": (lambda h: jnp.cumsum(h, -1), set()),
    "sort positions": (lambda h: jnp.sort(h, 1), {12}),
    "sort channels": (lambda h: jnp.sort(h, -1), set()),
    "turn positions": (lambda h: h[:, ::-1], {12}),
    "turn channels": (lambda h: h[..., ::-1], set()),
    "every second": (lambda h: jnp.repeat(h[..., ::2], 2, -1), set()),
    "softmax": (lambda h: jax.nn.softmax(h, -1), set()),
    "largest": (
        lambda h: jnp.moveaxis(jax.lax.top_k(h.swapaxes(1, 2), 5)[0], 2, 1),
        {12},
    ),
    "gather": (lambda h: jnp.take(h, np.array([3, 0, 2, 2, 1]), 1), {12}),
    "slice": (lambda h: jax.lax.dynamic_slice_in_dim(h, 1, 5, 1), {12}),
    "update": (lambda h: jax.lax.dynamic_update_slice_in_dim(h, h[:, :2], 1, 1), {12}),
    "scatter": (lambda h: h.at[:, np.array([0, 2])].add(h[:, :2]), {12}),
    "scatter all ways": (
        lambda h: h.at[:, 0].max(0.1).at[:, 1].min(0.1).at[:, 2].multiply(2.0),
        {12},
    ),
    "fourier of positions": (lambda h: jnp.fft.fft(h, axis=1).real, {12}),
    "fourier of channels": (lambda h: jnp.fft.fft(h).real, set()),
    "name": (lambda h: checkpoint_name(h, "hidden"), {12}),
    "look": (lambda h: jax.debug.callback(lambda a: None, h) or h, {12}),
    "pool": (lambda h: nn.max_pool(h, (2,), (1,), "SAME"), {12}),
    "mix": (lambda h: h @ W, {12}),
    "gram": (lambda h: jnp.einsum("npc,nqc,nqd->npd", h, h, h), {12}),
    "branch": (
        lambda h: jax.lax.cond(jnp.ones(3).sum() > 2, jnp.sin, jnp.cos, h),
        {12},
    ),
    "loop": (lambda h: jax.lax.fori_loop(0, 3, lambda i, a: a * 0.5 + h, h), {12}),
    "while": (
        lambda h: jax.lax.while_loop(
            lambda a: jnp.abs(a).sum() > 1e3, lambda a: a / 2, h
        ),
        set(),  # the condition adds up all channels
    ),
    "scan": (lambda h: jax.lax.scan(lambda c, a: (c + a, c), h[0], h)[1], {12}),
    "remat": (jax.checkpoint(lambda h: jnp.sin(h) ** 2), {12}),
    "jit": (jax.jit(lambda h: jax.nn.relu(h)), {12}),
    "barrier": (lambda h: jax.lax.optimization_barrier((h, 2 * h))[1], {12}),
    "bits": (
        lambda h: jax.lax.bitcast_convert_type(
            jax.lax.bitcast_convert_type(h, jnp.uint16), jnp.float32
        ),
        set(),
    ),
    "platform": (
        lambda h: jax.lax.platform_dependent(
            h, cpu=lambda h: jnp.tanh(h), default=lambda h: jnp.tanh(h)
        ),
        {12},
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_rule_by_itself(name):
    operation, widths = OPERATIONS[name]

    def model(v, x):
        return operation(jnp.tanh(x @ v["make"] + v["shift"])) @ v["read"]

    a, b, c, d = jax.random.split(jax.random.key(0), 4)
    variables = {
        "make": jax.random.normal(a, (3, 12)),
        "shift": jax.random.normal(b, (12,)),
        "read": jax.random.normal(c, (12, 2)),
    }
    x = jax.random.normal(d, (4, 5, 3))
    traced = graph.trace(model, variables, x)
    assert {group.width for group in traced.groups} == widths, str(traced)
    for seed in range(2 if widths else 0):
        plan = random_plan(traced, 0.6, seed)
        apart = graph.check(traced, variables, x, plan=plan, tolerance=1e-5)
        assert apart <= 1e-5


#: Layers of random networks: hidden (n, 6, 6, 8) to the same shape.
LAYERS = [
    lambda v, h: jax.nn.relu(h @ v["square"]),
    lambda v, h: h + jax.nn.relu(h @ v["up"]) @ v["down"],
    lambda v, h: jnp.concatenate([h[..., :4], jnp.tanh(h @ v["half"])], -1),
    lambda v, h: h * jax.nn.sigmoid(h.mean((1, 2), keepdims=True) @ v["square"]),
    lambda v, h: (h @ v["up"]).reshape(*h.shape[:3], 4, 3).max(-1) @ v["wide"],
    lambda v, h: jax.lax.conv_general_dilated(
        h, v["depth"], (1, 1), "SAME", feature_group_count=8,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ),
    lambda v, h: jax.lax.conv_general_dilated(
        h, v["grouped"], (1, 1), "SAME", feature_group_count=2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ),
    lambda v, h: nn.avg_pool(h, (3, 3), (1, 1), "SAME") * v["scale"],
    lambda v, h: jnp.pad(h[:, ::2, ::2] @ v["half"], ((0, 0), (0, 3), (0, 3), (2, 2))),
]  # fmt: skip
SHAPES = {
    "square": (8, 8),
    "up": (8, 12),
    "down": (12, 8),
    "half": (8, 4),
    "wide": (4, 8),
    "depth": (3, 3, 1, 8),
    "grouped": (3, 3, 4, 8),
    "scale": (8,),
}


@settings(max_examples=12, deadline=None)
@given(st.lists(st.sampled_from(range(len(LAYERS))), min_size=1, max_size=5), st.data())
def test_random_networks(chosen, data):
    layers = [LAYERS[i] for i in chosen]

    def model(v, x):
        h = x @ v["in"]
        for layer, own in zip(layers, v["layers"], strict=True):
            h = layer(own, h)
        return h.mean((1, 2)) @ v["out"]

    draw = np.random.default_rng(data.draw(st.integers(0, 1000)))

    def array(*shape):
        return jnp.asarray(draw.normal(size=shape), jnp.float32)

    variables = {
        "in": array(3, 8),
        "layers": [{k: array(*s) for k, s in SHAPES.items()} for _ in layers],
        "out": array(8, 5),
    }
    x = array(2, 6, 6, 3)
    traced = graph.trace(model, variables, x)
    plan = random_plan(traced, 0.5, data.draw(st.integers(0, 1000)))
    graph.check(traced, variables, x, plan=plan, tolerance=1e-4)
