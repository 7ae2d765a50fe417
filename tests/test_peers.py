"""The benchmark beside Torch-Pruning: without its packages it says so, with them the
networks are the same and the supports are whole.
"""

import importlib
import importlib.util

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

import ispasp_jax
from benchmarks.networks import peers
from benchmarks.timings.cases import example
from ispasp_jax import weights
from ispasp_jax.models.mobilenetv2 import MobileNetV2
from ispasp_jax.models.resnet import ResNet


@pytest.fixture
def side():
    pytest.importorskip("torch")
    pytest.importorskip("torch_pruning")
    return peers.torch_side()


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"torch is missing; .*ispasp_jax\[peers\]"):
        peers.torch_side()


def test_budgets_are_a_share_or_a_number():
    assert peers._limit("47%", 200.0) == 94
    assert peers._limit("247M", 1e9) == 247e6


def row(**changed):
    stages = {
        stage: {"top1": 50.0, "agreement": 60.0} for stage in peers.REPAIRS.values()
    }
    name = "resnet56 47%, L1 uniform"
    own = peers.ROWS[name]._asdict()
    return {"row": name, **own, "macs_share": 0.4649, "scores": stages, **changed}


def test_the_table_names_who_chose():
    ours = row(row="resnet56 47%, obs", side="ispasp_jax", method="obs")
    elsewhere = row(case="tf_mobilenetv2")
    _, *lines = peers.columns([ours, row(everywhere=True), elsewhere], "resnet56")
    assert [line[0] for line in lines] == [
        "L1, global, Torch-Pruning",
        "obs, this project",
    ]
    assert lines[0][1:3] == ["47% (46.5%)", "50.0 (60.0)"]


def test_equal_supports_are_counted_by_share():
    found = {
        "groups": {"0.1": 3, "0.5": 3},
        "equal": {"evaluation": {"0.1": 1, "0.5": 3}},
    }
    head, line = peers.equal([found, row()])
    assert head[1:] == ["keep 0.1", "keep 0.5", "together"]
    assert line == ["evaluation", "1 of 3", "3 of 3", "4 of 6"]


SMALL_STAGES = ((1, 3, 1, 1, 16), (2, 5, 2, 6, 24))
NETWORKS = {
    "bottleneck": ResNet(4, depths=(1, 2), base=8, bottleneck=True),
    "efficientnet": example("efficientnet_lite0").EfficientNetLite(
        SMALL_STAGES, 16, 32, 4
    ),
    "resnet": ResNet(
        4, depths=(1, 2), base=8, stem="small", shortcut="pad", dense="linear"
    ),
    "mobilenetv2": MobileNetV2(
        4, padding="SAME", stages=((1, 8, 1, 1), (6, 8, 2, 2)), channels=(16, 32)
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_networks_are_the_same(side, name):
    network, shape = NETWORKS[name], (16, 16, 3)
    variables = networks.variables_of(network, shape)
    model = side.networks.twin(network, weights.to_torchvision(variables))
    images = networks.images_of(3, shape)
    expected = network.apply(variables, jnp.asarray(images))
    np.testing.assert_allclose(
        side.networks.logits(model, images), expected, rtol=1e-4, atol=1e-4
    )


def test_a_narrower_network_is_the_same(side):
    network, shape = NETWORKS["mobilenetv2"], (16, 16, 3)
    variables = networks.variables_of(network, shape)
    images = jnp.asarray(networks.images_of(4, shape))
    small = ispasp_jax.prune(network, variables, [images], keep=0.5)
    arrays = weights.to_torchvision(small.variables)
    model = side.networks.twin(network, arrays)
    expected = small.apply(small.variables, images)
    np.testing.assert_allclose(
        side.networks.logits(model, images), expected, rtol=1e-4, atol=1e-4
    )
    with pytest.raises(ValueError, match="no array is"):
        side.networks.twin(NETWORKS["bottleneck"], arrays)


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("importance", ["L1", "group norm", "Taylor"])
def test_supports_of_a_share(side, importance, everywhere):
    network, shape = NETWORKS["resnet"], (16, 16, 3)
    variables = networks.variables_of(network, shape)
    model = side.networks.twin(network, weights.to_torchvision(variables))
    roots = {f"layer{k}": f"layer{k}.conv1" for k in ("1.0", "2.0", "2.1")}
    labelled = [(networks.images_of(3, shape), np.arange(3))]
    kept = side.supports(model, importance, everywhere, roots, labelled, shape)
    half, more = kept(0.5), kept(0.25)
    assert half.keys() == more.keys() == roots.keys()
    if not everywhere:
        assert [len(own) for own in half.values()] == [4, 8, 8]
    assert sum(map(len, half.values())) == 20 < sum(map(len, more.values()))
    assert all({*half[name]} <= {*more[name]} for name in roots)
    if importance == "L1" and not everywhere:
        size = np.abs(variables["params"]["layer2.0"]["conv1"]["kernel"]).sum((0, 1, 2))
        np.testing.assert_array_equal(half["layer2.0"], np.sort(np.argsort(-size)[:8]))


def test_the_authors_routine_without_the_constant_is_algorithm_1(side):
    rng = np.random.default_rng(0)
    hidden = np.maximum(rng.normal(size=(3, 20, 5, 6)), 0).astype(np.float32)
    hidden *= rng.uniform(0.1, 1, (1, 20, 1, 1)).astype(np.float32)
    kernel = rng.normal(size=(7, 20, 3, 3)).astype(np.float32)
    norm = [*rng.normal(size=(1, 7)), *rng.uniform(0.5, 2, (2, 7)), rng.normal(size=7)]
    norm = [array.astype(np.float32) for array in norm]
    scale = norm[2] / np.sqrt(norm[1] + 1e-5)

    def consumer(h):
        u = jax.lax.conv_general_dilated(
            h, np.moveaxis(kernel, (0, 1), (-1, -2)), (1, 1), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        return u * scale

    channels_last = jnp.asarray(np.moveaxis(hidden, 1, -1))
    for size in (2, 5, 10):
        own = peers.algorithm_1(channels_last, consumer, size).support
        ways = [side.authors(hidden, kernel, norm, size, how) for how in side.NORMS]
        np.testing.assert_array_equal(ways[0], own)
        assert all(way.sum() == size for way in ways)
