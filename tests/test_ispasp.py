"""Algorithm 1 against float64 NumPy, and the identities that it must satisfy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_algorithm
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from numpy_algorithm import MARGIN

from ispasp_jax.errors import InputError
from ispasp_jax.selection.algorithm_1 import algorithm_1, ispasp, μ
from ispasp_jax.selection.problem import Problem, Selection, batch_sum, checked, largest

pytestmark = pytest.mark.usefixtures("strict")

seeds = st.integers(0, 2**31)


def dense(h, W1):
    return jnp.matmul(h, W1.T)


def convolution(h, kernel, scale, shift, stride):
    out = jax.lax.conv_general_dilated(
        h,
        kernel,
        (stride, stride),
        [(1, 1), (1, 1)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return out * scale + shift


@functools.partial(jax.jit, static_argnames=("T",))
def select_dense(H, W1, s, T=20):
    return algorithm_1(H, lambda h: dense(h, W1), s, T)


@functools.partial(jax.jit, static_argnames=("stride",))
def select_convolution(H, kernel, scale, shift, s, stride):
    return algorithm_1(H, lambda h: convolution(h, kernel, scale, shift, stride), s)


def two_layer(seed, n, d, d_out):
    """Hidden activations after a ReLU, (n, d), and W1, (d_out, d)."""
    rng = np.random.default_rng(seed)
    H = np.maximum(rng.normal(size=(n, d)) + rng.normal(size=d), 0) * rng.exponential(
        size=d
    )
    return H.astype(np.float32), rng.normal(size=(d_out, d)).astype(np.float32)


def convolved(seed, n, side, d, d_out):
    """Hidden maps (n, side, side + 1, d), and kernel, scale and shift."""
    rng = np.random.default_rng(seed)
    H = np.maximum(rng.normal(size=(n, side, side + 1, d)) + rng.normal(size=d), 0)
    kernel = rng.normal(size=(3, 3, d, d_out))
    scale, shift = rng.uniform(0.5, 1.5, d_out), rng.normal(size=d_out)
    return tuple(a.astype(np.float32) for a in (H, kernel, scale, shift))


def assert_answers(selection: Selection, answer: numpy_algorithm.Answer):
    np.testing.assert_array_equal(selection.support, answer.support)
    np.testing.assert_allclose(
        selection.residuals, answer.half_squares, rtol=2e-4, atol=1e-9
    )
    assert bool(selection.finite)


@settings(max_examples=60)
@given(
    seeds,
    st.sampled_from([1, 6]),
    st.sampled_from([1, 2, 5, 12, 23]),
    st.sampled_from([1, 4]),
    st.data(),
)
def test_dense_equals_numpy(seed, n, d, d_out, data):
    s = data.draw(st.integers(1, d))
    H, W1 = two_layer(seed, n, d, d_out)
    answer = numpy_algorithm.algorithm_1(H, numpy_algorithm.Dense(W1), s)
    assume(answer.margin > MARGIN)
    assert answer.half_squares[-1] == answer.half_squares[-2]
    full = select_dense(H, W1, s)
    np.testing.assert_array_equal(full.support, answer.support)
    scale = 0.5 * np.square(H.astype(np.float64) @ W1.T).sum()
    np.testing.assert_allclose(full.residuals, answer.half_squares, atol=1e-5 * scale)
    summed = select_dense(batch_sum(jnp.asarray(H)), W1, s)
    np.testing.assert_array_equal(summed.support, answer.support)


@settings(max_examples=14)
@given(
    seeds,
    st.sampled_from([(2, 3, 7, 3), (3, 2, 12, 5)]),
    st.sampled_from([1, 2]),
    st.data(),
)
def test_convolution_equals_numpy(seed, sizes, stride, data):
    n, side, d, d_out = sizes
    s = data.draw(st.integers(1, d))
    H, kernel, scale, shift = convolved(seed, n, side, d, d_out)
    answer = numpy_algorithm.algorithm_1(
        H, numpy_algorithm.Convolution(kernel, scale, shift, stride), s, T=8
    )
    assume(answer.margin > MARGIN)
    full = select_convolution(H, kernel, scale, shift, s, stride)
    np.testing.assert_array_equal(full.support, answer.support)
    summed = select_convolution(
        batch_sum(jnp.asarray(H)), kernel, scale, shift, s, stride
    )
    np.testing.assert_array_equal(summed.support, answer.support)


@pytest.mark.parametrize("stride", [1, 2])
def test_numpy_convolution_equals_jax(stride):
    """The explicit loops and their transpose are the convolution and its gradient."""
    H, kernel, scale, shift = convolved(0, 2, 5, 4, 3)
    ours = numpy_algorithm.Convolution(kernel, scale, shift, stride)
    out, pullback = jax.vjp(
        lambda h: convolution(h, kernel, scale, shift, stride), jnp.asarray(H)
    )
    np.testing.assert_allclose(out, [ours.forward(h) for h in H], rtol=1e-4, atol=1e-4)
    (back,) = pullback(out)
    expected = [ours.pullback(h, np.asarray(v)) for h, v in zip(H, out, strict=True)]
    np.testing.assert_allclose(back, expected, rtol=1e-3, atol=1e-3)


def test_importance_of_the_first_iteration_is_the_transpose():
    """grad ½‖V‖² through the consumer is W1ᵀ V, and its sum W1ᵀ Σ V."""
    H, W1 = two_layer(3, 5, 8, 4)
    half_square = lambda h: 0.5 * jnp.square(dense(h, W1)).sum()  # noqa: E731
    Y = jax.grad(half_square)(jnp.asarray(H))
    V = H.astype(np.float64) @ W1.T
    np.testing.assert_allclose(Y, V @ W1, rtol=1e-4, atol=1e-5)
    answer = numpy_algorithm.algorithm_1(H, numpy_algorithm.Dense(W1), 2, T=1)
    np.testing.assert_allclose(answer.importances[0], μ(Y), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_finds_a_planted_support(seed):
    """The channels that carry U are found, though others are more active."""
    rng = np.random.default_rng(seed)
    n, d, d_out, s = 16, 24, 6, 5
    places = rng.permutation(d)
    planted, decoys = places[:s], places[s : 2 * s]
    H = rng.uniform(0.01, 0.02, (n, d))
    W1 = rng.uniform(0.01, 0.02, (d_out, d))
    H[:, planted] = rng.uniform(1, 2, (n, s))
    W1[:, planted] = rng.uniform(1, 2, (d_out, s))
    H[:, decoys] = rng.uniform(5, 6, (n, s))  # active, but nobody listens
    W1[:, decoys] = 0
    selection = select_dense(H.astype(np.float32), W1.astype(np.float32), s)
    assert set(np.flatnonzero(selection.support)) == set(planted)
    assert set(np.argsort(H.sum(0))[-s:]) == set(decoys)


def test_keeping_half_or_more_is_the_top_of_the_activity():
    for seed, d in ((0, 9), (1, 10), (2, 16)):
        H, W1 = two_layer(seed, 7, d, 3)
        activity = H.astype(np.float64).sum(0)
        for s in range(-(-d // 2), d + 1):
            expected = np.isin(np.arange(d), np.argsort(-activity)[:s])
            selection = select_dense(H, W1, s)
            np.testing.assert_array_equal(selection.support, expected)


def test_below_half_the_loop_matters():
    """Some supports are not the most active channels: the loop is not decoration."""
    differ = 0
    for seed in range(20):
        H, W1 = two_layer(seed, 5, 40, 3)
        most_active = np.isin(np.arange(40), np.argsort(-H.sum(0))[:3])
        differ += not np.array_equal(select_dense(H, W1, 3).support, most_active)
    assert differ > 10


@pytest.mark.parametrize("seed", range(6))
def test_activity_never_falls_and_reaches_a_fixed_point(seed):
    H, W1 = two_layer(seed, 6, 40, 8)
    s, activity = 6, H.astype(np.float64).sum(0)
    selections = [select_dense(H, W1, s, T=T) for T in (1, 2, 3, 4, 5, 6, 20, 100)]
    sums = [activity[np.asarray(chosen.support)].sum() for chosen in selections]
    assert all(after >= before for before, after in zip(sums, sums[1:], strict=False))
    long, longer = selections[-2:]
    np.testing.assert_array_equal(long.support, longer.support)
    assert int(long.iterations) == int(longer.iterations) < 20
    after = np.asarray(longer.residuals[int(longer.iterations) - 1 :])
    assert (after == after[0]).all()


def test_reports_every_iteration_as_numpy_does():
    """Iterations, and the support and residual after each of them."""
    H, W1 = two_layer(11, 6, 40, 8)
    answer = numpy_algorithm.algorithm_1(H, numpy_algorithm.Dense(W1), 6)
    assert answer.margin > MARGIN
    for T in range(1, 7):
        assert_answers(
            select_dense(H, W1, 6, T=T),
            answer._replace(
                support=answer.supports[T - 1], half_squares=answer.half_squares[:T]
            ),
        )
    changes = [
        not np.array_equal(a, b)
        for a, b in zip(
            [np.zeros(40, bool), *answer.supports], answer.supports, strict=False
        )
    ]
    assert sum(changes) > 1
    assert int(select_dense(H, W1, 6).iterations) == sum(changes) + 1


def test_jit_eager_vmap_traced_and_static_agree():
    H, W1 = two_layer(5, 6, 14, 4)
    H, sizes = jnp.asarray(H), jnp.arange(1, 15)
    consumer = functools.partial(dense, W1=W1)
    many = jax.vmap(lambda s: algorithm_1(H, consumer, s))(sizes)
    criterion = ispasp()
    for s in (1, 3, 6, 13):
        index = s - 1
        eager = algorithm_1(H, consumer, s)
        static = jax.jit(lambda h, s=s: algorithm_1(h, consumer, s))(H)
        with jax.disable_jit():
            plain = algorithm_1(H, consumer, s)
        asked = criterion(Problem(consumer=consumer, hidden=H), s)
        for other in (
            static,
            plain,
            asked,
            jax.tree.map(lambda a, i=index: a[i], many),
        ):
            np.testing.assert_array_equal(other.support, eager.support)
            assert int(other.iterations) == int(eager.iterations)
            np.testing.assert_allclose(
                other.residuals, eager.residuals, rtol=1e-4, atol=1e-4
            )
        assert int(eager.support.sum()) == s


def test_vmaps_over_problems():
    problems = [two_layer(seed, 4, 9, 3) for seed in range(6)]
    H, W1 = (np.stack(arrays) for arrays in zip(*problems, strict=True))
    many = jax.vmap(lambda h, w: algorithm_1(h, lambda x: dense(x, w), 3))(H, W1)
    for index, (h, w) in enumerate(problems):
        one = select_dense(h, w, 3)
        np.testing.assert_array_equal(many.support[index], one.support)
        assert int(many.iterations[index]) == int(one.iterations)


def test_sharded_over_eight_devices():
    """Examples spread over a mesh give the support of one device, full and summed."""
    assert jax.device_count() == 8
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    H, kernel, scale, shift = convolved(2, 16, 4, 20, 5)
    spread = jax.device_put(H, NamedSharding(mesh, PartitionSpec("batch")))
    assert len({shard.device for shard in spread.addressable_shards}) == 8
    weights = jax.device_put(
        (kernel, scale, shift), NamedSharding(mesh, PartitionSpec())
    )
    for s in (3, 8):
        one = select_convolution(H, kernel, scale, shift, s, 1)
        many = select_convolution(spread, *weights, s, 1)
        np.testing.assert_array_equal(many.support, one.support)
        summed = select_convolution(batch_sum(spread), *weights, s, 1)
        np.testing.assert_array_equal(summed.support, one.support)
        assert many.support.sharding.is_fully_replicated


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["hidden", "weights"])
def test_nan_and_infinity_are_reported(bad, where):
    H, W1 = two_layer(0, 4, 10, 3)
    for place in ((0, 0), (-1, 9 if where == "hidden" else -1)):
        h, w = H.copy(), W1.copy()
        (h if where == "hidden" else w)[place] = bad
        selection = select_dense(h, w, 3)
        assert not bool(selection.finite)
        with pytest.raises(FloatingPointError, match="'layer7'"):
            checked(selection, "layer7")


def test_overflow_is_reported_and_a_sound_selection_passes():
    H, W1 = two_layer(0, 4, 10, 3)
    assert not bool(select_dense(H * np.float32(1e30), W1, 3).finite)
    sound = select_dense(H, W1, 3)
    assert checked(sound, "layer7") is sound


@pytest.mark.parametrize("form", [numpy_algorithm.Tanh, numpy_algorithm.Relu])
@pytest.mark.parametrize("seed", range(4))
def test_a_consumer_that_is_not_affine(form, seed):
    """The full form serves any consumer: its gradient is taken at H."""
    H, W1 = two_layer(seed, 6, 15, 4)
    W1 = (0.3 * W1).astype(np.float32)
    b = np.random.default_rng(seed).normal(size=4).astype(np.float32)
    f = jnp.tanh if form is numpy_algorithm.Tanh else jax.nn.relu
    answer = numpy_algorithm.algorithm_1(H, form(W1, b), 4)
    assert answer.margin > MARGIN
    selection = algorithm_1(jnp.asarray(H), lambda h: f(dense(h, W1) + b), 4)
    assert_answers(selection, answer)


def test_one_channel_all_channels_and_more():
    H, W1 = two_layer(0, 3, 1, 2)
    for s in (1, jnp.asarray(1)):
        assert algorithm_1(jnp.asarray(H), lambda h: dense(h, W1), s).support.all()
    H, W1 = two_layer(0, 3, 6, 2)
    for s in (6, jnp.asarray(6)):
        whole = algorithm_1(jnp.asarray(H), lambda h: dense(h, W1), s)
        assert whole.support.all() and float(whole.residuals[-1]) == 0


def test_equal_channels_keep_the_lower_index():
    H = np.ones((3, 8), np.float32)
    W1 = np.ones((2, 8), np.float32)
    for s in range(1, 9):
        np.testing.assert_array_equal(select_dense(H, W1, s).support, np.arange(8) < s)
    static = algorithm_1(jnp.asarray(H), lambda h: dense(h, W1), 3)
    np.testing.assert_array_equal(static.support, np.arange(8) < 3)


def test_dead_channels_tie_whatever_the_sign_of_zero():
    H = np.zeros((2, 5), np.float32)
    H[:, :2] = -0.0
    W1 = -np.ones((3, 5), np.float32)
    for zeros in (H, -H):
        support = select_dense(zeros, W1, 2).support
        np.testing.assert_array_equal(support, np.arange(5) < 2)


@settings(max_examples=60)
@given(
    st.lists(
        st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1.0, np.inf, -np.inf]),
        min_size=6,
        max_size=6,
    ),
    st.integers(0, 9),
)
def test_largest_equals_a_stable_sort(values, r):
    v = jnp.asarray(values, jnp.float32)
    order = sorted(range(6), key=lambda i: (-values[i], i))
    expected = np.isin(np.arange(6), order[:r])
    np.testing.assert_array_equal(largest(v, r), expected)
    np.testing.assert_array_equal(largest(v, jnp.asarray(r)), expected)


def test_bfloat16_activations_are_summed_in_float32():
    H, kernel, scale, shift = convolved(4, 64, 4, 20, 5)
    half = jnp.asarray(H).astype(jnp.bfloat16)
    selection = select_convolution(half, kernel, scale, shift, 5, 1)
    assert selection.residuals.dtype == jnp.float32
    exact = select_convolution(half.astype(jnp.float32), kernel, scale, shift, 5, 1)
    np.testing.assert_array_equal(selection.support, exact.support)
    np.testing.assert_array_equal(selection.residuals, exact.residuals)


def test_a_shift_of_the_consumer_changes_nothing():
    """The first residual is U - W(0): the constant has no part in the importance."""
    H, kernel, scale, shift = convolved(6, 3, 4, 20, 5)
    for s in (2, 5):
        one, other = (
            select_convolution(H, kernel, scale, k * shift, s, 1) for k in (0, 1)
        )
        np.testing.assert_array_equal(one.support, other.support)
        np.testing.assert_allclose(one.residuals, other.residuals, rtol=1e-4)


H2 = jnp.ones((4, 6))
MATRIX = np.ones((6, 3), np.float32)


def listening(h):
    return h @ MATRIX


BAD = {
    "a ratio": ((H2, listening, 0.4), "from 1 to 6; got 0.4"),
    "none": ((H2, listening, 0), "from 1 to 6; got 0"),
    "negative": ((H2, listening, -2), "from 1 to 6; got -2"),
    "more than there are": ((H2, listening, 7), "from 1 to 6; got 7"),
    "a truth": ((H2, listening, True), "from 1 to 6; got True"),
    "several": ((H2, listening, jnp.arange(2)), "from 1 to 6"),
    "an array of none": ((H2, listening, jnp.asarray(0)), "from 1 to 6"),
    "no iterations": ((H2, listening, 2, 0), "T must be an integer of 1 or more"),
    "negative iterations": ((H2, listening, 2, -1), "T must be.*got -1"),
    "half an iteration": ((H2, listening, 2, 1.5), "T must be.*got 1.5"),
    "integers": ((jnp.ones((4, 6), int), listening, 2), "floating.*got dtype int"),
    "pixels": ((np.ones((4, 6), np.uint8), listening, 2), "floating.*got dtype uint8"),
    "a list": (([[1.0, 2.0]], listening, 2), "floating-point numbers; got list"),
    "one example": ((jnp.ones(6), listening, 2), r"shape \(examples, .*got \(6,\)"),
    "no examples": ((jnp.ones((0, 6)), listening, 2), r"none of them 0; got \(0, 6\)"),
    "a matrix": ((H2, MATRIX, 2), "must be a function.*got ndarray"),
    "another matrix": ((H2, lambda h: h @ MATRIX.T, 2), r"of shape \(4, 6\): "),
    "two outputs": ((H2, lambda h: (h, h), 2), "must give one array"),
    "a number": ((H2, lambda h: h.sum(), 2), "must give one array"),
}


@pytest.mark.parametrize("given, words", BAD.values(), ids=BAD)
def test_what_is_no_problem_is_refused_in_one_sentence(given, words, unchecked):
    with pytest.raises(InputError, match=words) as caught:
        algorithm_1(*given)
    assert "\n" not in str(caught.value) and "--" not in str(caught.value)


def test_a_traced_size_is_an_integer(unchecked):
    select = jax.jit(lambda s: algorithm_1(H2, listening, s).support)
    assert int(select(2).sum()) == 2
    with pytest.raises(InputError, match="from 1 to 6"):
        select(0.4)


@pytest.mark.parametrize(
    "given, words",
    [
        ((np.ones((3, 4), np.uint8),), "floating"),
        ((jnp.ones(4),), "shape"),
        ((jnp.ones((3, 4)), jnp.ones(4)), "one weight for each of 3 examples"),
        ((jnp.ones((3, 4)), jnp.ones((3, 1))), r"of shape \(3, 1\)"),
    ],
)
def test_what_cannot_be_summed_is_refused(given, words, unchecked):
    with pytest.raises(InputError, match=words):
        batch_sum(*given)
