"""What a walk is given and cannot use gets one sentence, whatever is asked of it."""

import jax.numpy as jnp
import numpy as np
import pytest
from networks import NETWORKS, images_of, variables_of

from ispasp_jax import budget, criteria, curves, inputs, pruning
from ispasp_jax.errors import InputError

NETWORK = NETWORKS["basic"]  # 8 x 7 images of 3 channels


def with_nan(images, value=np.nan):
    images = images.copy()
    images[1, 2, 3, 0] = value
    return images


IMAGES = images_of(4)


@pytest.mark.parametrize(
    "images, words",
    [
        (IMAGES, r"one array of shape \(4, 7, 8, 3\).*write \[images\]"),
        (None, "images are None; expected batches"),
        (7, "of type int; expected batches"),
        ({"x": IMAGES}, "of type dict; expected batches"),
        ("images.npz", "of type str; expected batches"),
        ([IMAGES.tolist()], "batch 0 of the images is of type list"),
        ([IMAGES, None], "batch 1 of the images is None"),
        ([IMAGES[:0]], r"empty \(shape \(0, 7, 8, 3\)\)"),
        ([IMAGES, IMAGES[:0]], "batch 1 of the images is empty"),
        ([np.zeros((4, 7, 8, 3), np.uint8)], r"holds uint8; .*\(images / 255 - mean\)"),
        ([np.zeros((4, 7, 8, 3), bool)], "holds bool"),
        ([np.zeros((4, 7, 8, 3), np.int64)], "holds int64"),
        ([IMAGES[..., :1]], r"does not take images of shape \(4, 7, 8, 1\)"),
        ([IMAGES.transpose(0, 3, 1, 2)], r"images\.transpose\(0, 2, 3, 1\)"),
        ([IMAGES[0]], r"image\[None\]"),
        ([IMAGES[..., 0]], r"does not take images of shape \(4, 7, 8\)"),
        ([IMAGES, IMAGES[:, :5]], r"shape \(5, 8, 3\), batch 0 of \(7, 8, 3\)"),
    ],
)
def test_what_is_no_batches_of_images(images, words):
    with pytest.raises(InputError, match=words) as caught:
        list(inputs.checked_images(images, NETWORK, variables_of(NETWORK)))
    assert "--" not in str(caught.value) and str(caught.value).endswith(".")


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
        ({"layer9.0": 4}, "'layer9.0', which this network does not have"),
        ({"layer1.0": 99}, "99 channels of group 'layer1.0'.* 1 to its width, 10"),
        ({"layer1.0": 0}, "0 channels of group"),
        ({"layer1.0": -3}, "-3 channels of group"),
        ({"layer1.0": 0.4}, "0.4 channels of group"),
        ({"layer1.0": True}, "True channels of group"),
        ({"layer1.0": None}, "None channels of group"),
    ],
)
def test_sizes_that_a_network_does_not_have(sizes, words):
    with pytest.raises(InputError, match=words):
        inputs.checked_sizes(NETWORK, sizes)
    if all(type(size) is int for size in sizes.values()):
        with pytest.raises(InputError, match=words):
            pruning.walk(NETWORK, variables_of(NETWORK), [IMAGES], sizes)


def test_sizes_of_numpy_are_sizes():
    assert inputs.checked_sizes(NETWORK, {"layer1.0": np.int32(4)}) == {"layer1.0": 4}


@pytest.mark.parametrize("variables", [None, [], {"conv1": np.zeros(3)}])
def test_what_is_no_variables(variables):
    with pytest.raises(InputError, match="what network.init returns"):
        inputs.check_variables(NETWORK, variables)


METHODS = [(name, "none") for name in criteria.CRITERIA]
METHODS += [("random", "bn"), ("l1", "lsq"), ("obs", "lsq")]


def walk(network, variables, images, method, repair="none"):
    return pruning.walk(
        network,
        variables,
        [images[:2], images[2:]],
        budget.sizes(network, 0.5),
        criteria.create(method),
        labels=[np.array([0, 1])] * 2,
        repair=repair,
    )


@pytest.mark.parametrize("method, repair", METHODS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_images_that_are_not_finite_stop_every_criterion_and_repair(
    method, repair, value
):
    """And so do weights, of whatever array."""
    variables = variables_of(NETWORK)
    with pytest.raises(FloatingPointError, match="batch 0 of the calibration images"):
        walk(NETWORK, variables, with_nan(IMAGES, value), method, repair)
    stats = variables["batch_stats"]["layer2.0"]["downsample"]["1"]
    stats["var"] = stats["var"].at[0].set(value)
    words = r"part 'layer2.0': its array 'layer2.0/downsample/1/var' holds NaN"
    with pytest.raises(FloatingPointError, match=words):
        walk(NETWORK, variables, IMAGES, method, repair)


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
    with pytest.raises(FloatingPointError, match="part 'layer1.1': its activations"):
        pruning.walk(
            NETWORK,
            variables,
            [IMAGES],
            budget.sizes(NETWORK, 0.5),
            criteria.create(method),
            repair=repair,
            memory=memory,
        )


def test_curves_refuse_the_same():
    variables = variables_of(NETWORK)
    with pytest.raises(FloatingPointError, match="batch 1 of the calibration images"):
        curves.measure_curves(NETWORK, variables, [IMAGES, with_nan(IMAGES)])
    with pytest.raises(InputError, match="holds uint8"):
        curves.measure_curves(NETWORK, variables, [IMAGES.astype(np.uint8)])


def test_half_precision_and_devices_arrays_are_images():
    found = inputs.checked_images(
        [jnp.asarray(IMAGES, jnp.bfloat16)], NETWORK, variables_of(NETWORK)
    )
    assert len(list(found)) == 1
