"""What a walk is given and cannot use gets one sentence, whatever is asked of it."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from networks import NETWORKS, images_of, variables_of

import ispasp_jax
from ispasp_jax import budget
from ispasp_jax.errors import InputError
from ispasp_jax.selection import criteria
from ispasp_jax.walk import Options, inputs, measure_curves, walk

NETWORK = NETWORKS["basic"]  # 8 x 7 images of 3 channels


def with_nan(images, value=np.nan):
    images = images.copy()
    images[1, 2, 3, 0] = value
    return images


IMAGES = images_of(4)
VARIABLES = variables_of(NETWORK)
TRACED = ispasp_jax.trace(NETWORK, VARIABLES, IMAGES)


@pytest.mark.parametrize(
    "images, words",
    [
        ([], "no calibration images"),
        (IMAGES, r"one array of shape \(4, 7, 8, 3\).*write \[images\]"),
        (None, "images are None; expected batches"),
        (7, "of type int; expected batches"),
        ({"x": IMAGES}, "of type dict; expected batches"),
        ("images.npz", "of type str; expected batches"),
        ([IMAGES.tolist()], "batch 0 of the images is of type list"),
        ([IMAGES, None], "batch 1 of the images is None"),
        ([IMAGES[:0]], r"empty \(shape \(0, 7, 8, 3\)\)"),
        ([IMAGES, IMAGES[:0]], "batch 1 of the images is empty"),
        ([np.zeros((4, 7, 8, 3), np.uint8)], r"hold uint8; .*\(images / 255 - mean\)"),
        ([IMAGES[..., :1]], r"does not take inputs of shape \(4, 7, 8, 1\)"),
        ([IMAGES.transpose(0, 3, 1, 2)], r"images\.transpose\(0, 2, 3, 1\)"),
        ([IMAGES[0]], r"image\[None\]"),
        ([IMAGES[..., 0]], r"does not take inputs of shape \(4, 7, 8\)"),
        ([IMAGES, IMAGES[:, :5]], r"\(5, 8, 3\) float32, batch 0 of \(7, 8, 3\)"),
    ],
)
def test_what_is_no_batches_of_images(images, words, unchecked):
    runs = [
        lambda: walk(TRACED, VARIABLES, images, {}),
        lambda: measure_curves(TRACED, VARIABLES, images, TRACED.groups),
    ]
    if images is not None:  # prune has a sentence of its own for that
        runs.append(lambda: ispasp_jax.prune(NETWORK, VARIABLES, images))
    for run in runs:
        with pytest.raises(InputError, match=words) as caught:
            run()
        text = str(caught.value)
        assert "--" not in text and text.endswith(".") and "\n" not in text


@pytest.mark.parametrize(
    "labels, words",
    [
        (np.arange(4), r"write \[labels\]"),
        ([np.arange(4)[:, None]], r"shape \(4, 1\)"),
        ([np.full(4, 0.5)], "dtype float64"),
        ([np.eye(4)], r"shape \(4, 4\)"),
        ([[0, 1, 2, 3]], "batch 0 of the labels is of type list"),
        ([np.array([0, 4])], "values from 0 to 4; .* from 0 to 3"),
        ([np.array([0]), np.array([-1])], "batch 1 .* from -1 to -1"),
    ],
)
def test_what_is_no_batches_of_labels(labels, words):
    with pytest.raises(InputError, match=words):
        list(inputs.checked_labels(labels, 4))


@pytest.mark.parametrize(
    "sizes, words",
    [
        ({"layer9.0": 4}, "'layer9.0', which this model does not have"),
        ({"layer1.0": 99}, "99 channels of group 'layer1.0'.* 0 to its width, 10"),
        ({"layer2.0": 0}, "0 channels of group 'layer2.0'.* 1 to its width, 20"),
        ({"layer1.0": -3}, "-3 channels of group"),
        ({"layer1.0": 0.4}, "0.4 channels of group"),
        ({"layer1.0": True}, "True channels of group"),
        ({"layer1.0": None}, "None channels of group"),
    ],
)
def test_sizes_that_a_network_does_not_have(sizes, words, unchecked):
    with pytest.raises(InputError, match=words):
        walk(TRACED, VARIABLES, [IMAGES], sizes)


def test_sizes_of_numpy_are_sizes():
    widths = {"layer1.0": 10}
    assert inputs.checked_sizes(widths, {"layer1.0": np.int32(4)}) == {"layer1.0": 4}


class Trains(nn.Module):
    """As users write it whose module is told how it is used when it is made."""

    train: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=not self.train)(nn.Conv(6, (3, 3))(x))
        x = nn.Dropout(0.5, deterministic=not self.train)(nn.relu(x))
        return nn.Dense(4)(nn.relu(nn.Conv(6, (3, 3))(x)).mean((1, 2)))


def refused(*arguments, **more):
    """What prune says of it."""
    with pytest.raises(InputError) as caught:
        ispasp_jax.prune(*arguments, **more)
    text = str(caught.value)
    assert "--" not in text and text.endswith(".") and "\n" not in text
    return text


def test_params_without_batch_stats_are_named():
    variables = {"params": VARIABLES["params"]}
    for given in (variables, VARIABLES["params"]):
        text = refused(NETWORK, given, [IMAGES])
        assert '{"params": ..., "batch_stats": ...}' in text


def test_a_module_in_training_mode_is_named():
    """What it would give depends on the batch, or on keys."""
    variables = variables_of(Trains())
    assert ispasp_jax.prune(Trains(), variables, [IMAGES], repair="none").plan
    assert "training" in refused(Trains(train=True), variables, [IMAGES])


def test_a_module_without_its_variables_and_variables_without_images():
    assert "prune needs images" in refused(NETWORK, VARIABLES)
    assert "variables" in refused(NETWORK, None, [IMAGES])


INNER = budget.sizes(ispasp_jax.graph.scope(TRACED.groups, "inner", ()), 0.5)
SIZES = budget.sizes(TRACED.groups, 0.5)  # the streams', too
METHODS = [(name, "none") for name in criteria.CRITERIA]
METHODS += [("random", "bn"), ("l1", "lsq"), ("obs", "lsq")]


def walked(variables, images, method, repair="none"):
    return walk(
        TRACED,
        variables,
        [images[:2], images[2:]],
        SIZES,
        criteria.create(method),
        labels=[np.array([0, 1])] * 2,
        options=Options(repair=repair),
    )


@pytest.mark.parametrize("method, repair", METHODS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_images_that_are_not_finite_stop_every_criterion_and_repair(
    method, repair, value
):
    """And so do weights, of whatever array."""
    variables = variables_of(NETWORK)
    with pytest.raises(FloatingPointError, match="batch 0 of the calibration images"):
        walked(variables, with_nan(IMAGES, value), method, repair)
    stats = variables["batch_stats"]["layer2.0"]["downsample"]["1"]
    stats["var"] = stats["var"].at[0].set(value)
    words = r"variable 'batch_stats/layer2.0/downsample/1/var' holds NaN"
    with pytest.raises(FloatingPointError, match=words):
        walked(variables, IMAGES, method, repair)


@pytest.mark.parametrize(
    "method, repair",
    [("random", "none"), ("random", "bn"), ("l1", "lsq"), ("gfs", "none")],
)
@pytest.mark.parametrize("memory", [None, 0])
def test_activations_that_overflow_stop_the_walk(method, repair, memory):
    """Every number given is finite; what they make together is not."""
    variables = variables_of(NETWORK)
    kernel = variables["params"]["layer1.1"]["conv1"]["kernel"]
    variables["params"]["layer1.1"]["conv1"]["kernel"] = kernel * 1e38
    scale = variables["params"]["layer1.1"]["bn1"]["scale"]
    variables["params"]["layer1.1"]["bn1"]["scale"] = scale * 1e3
    # Where nobody reads them, and without room, it is seen later.
    read = memory is None and (method, repair) != ("random", "none")
    words = r"layer1\.1.*: its activations" if read else ": its activations"
    with pytest.raises(FloatingPointError, match=words):
        walk(
            TRACED,
            variables,
            [IMAGES],
            INNER,
            criteria.create(method),
            options=Options(repair=repair, memory=memory),
        )


def test_curves_refuse_the_same():
    variables = variables_of(NETWORK)
    with pytest.raises(FloatingPointError, match="batch 1 of the calibration images"):
        measure_curves(TRACED, variables, [IMAGES, with_nan(IMAGES)], TRACED.groups)
    variables["params"]["fc"]["bias"] = np.full(4, np.nan)
    with pytest.raises(FloatingPointError, match="'params/fc/bias' holds NaN"):
        measure_curves(TRACED, variables, [IMAGES], TRACED.groups)


def test_half_precision_and_devices_arrays_are_images():
    found = inputs.checked_images([jnp.asarray(IMAGES, jnp.bfloat16)])
    assert len(list(found)) == 1
