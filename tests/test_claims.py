"""What the benchmarks of the paper's claims rest on, at small sizes: compressible
networks and their decay, and greedy forward selection against plain loops in NumPy.
"""

import json

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

import benchmarks
from benchmarks.benchmark import RESULTS, read
from benchmarks.paper import against_gfs, gfs_report, greedy, synthetic_decay
from ispasp_jax import data, models


@pytest.mark.parametrize("name", benchmarks.ROOMS["networks"])
def test_results_are_of_the_commands_that_the_benchmark_has_now(name):
    benchmark = benchmarks.module(name).BENCHMARK
    found = {row["row"]: row for row in read(RESULTS / benchmark.file)}
    assert found.keys() == benchmark.full.keys()
    for key, asked in benchmark.full.items():
        flags = getattr(asked, "flags", asked)  # a row may be more than its flags
        if isinstance(flags, list):
            assert found[key]["command"] == f"python prune.py {' '.join(flags)}"
        elif isinstance(flags, tuple) and "command" in found[key]:
            assert found[key]["command"].endswith(" ".join(flags))
        else:
            assert {**found[key], **json.loads(json.dumps(asked._asdict()))} == found[
                key
            ]


def test_the_synthetic_networks_are_compressible():
    H, W1 = synthetic_decay.network(30, 0.5, seed=3)
    assert H.min() >= 0 and W1.shape == (30, 30)
    mu = np.sort(H.sum(0))[::-1]
    np.testing.assert_allclose(mu, np.arange(1.0, 31) ** -2, rtol=1e-12)


def test_the_synthetic_decay():
    result = synthetic_decay.measure(2, (24,), (0.3, 0.6, 0.9))
    result = json.loads(json.dumps(result))
    curves = np.array([row["median"] for row in result["rows"]])
    assert (curves[:, -1] == 0).all()  # nothing is cut
    assert (curves[:, 1:] <= 1.05 * curves[:, :-1]).all()
    assert (np.diff(curves[:, :-1], axis=0) > 0).all()  # ordered by p
    assert curves[0, -2] < 1e-9  # float32 relative to the head could not show it
    for row in result["rows"]:
        assert row["measured"] == pytest.approx(row["finite_tail"], rel=0.15)
        # From s = d/2 on, i-SpaSP keeps the s largest of μ(H), to the last bit.
        np.testing.assert_array_equal(row["median"][11:], row["median_largest"][11:])
    assert len(synthetic_decay.columns(result)) == 4


def test_slope_and_tail():
    curve = 3 * np.arange(1.0, 41) ** -2.5
    assert synthetic_decay.slope(curve, 3, 30) == pytest.approx(-2.5)
    direct = [sum(i**-4.0 for i in range(s + 1, 11)) for s in range(10)]
    np.testing.assert_allclose(synthetic_decay.tail(10, 0.5), direct)


def layer_and_images(name):
    """A layer of a small random network, and images as far as it."""
    network, part = {
        "basic": (networks.NETWORKS["basic"], "layer2.0"),
        "mlp": (models.create("mlp", 3, hidden=(12,)), "hidden.0"),
    }[name]
    variables = networks.variables_of(network)
    image = jnp.asarray(networks.images_of(7))
    layer = greedy.find(network, variables, part, image.shape[1:])
    return network, variables, layer, image


@pytest.mark.parametrize("name", ["basic", "mlp"])
def test_the_layer_within_its_network(name):
    network, variables, layer, image = layer_and_images(name)
    x, h = greedy.reach(layer, image)
    out = greedy.logits(layer, jnp.ones(layer.d), x, h)
    np.testing.assert_allclose(out, network.apply(variables, image), rtol=1e-4)


@pytest.mark.parametrize("name", ["basic", "mlp"])
def test_the_gram_matrix_gives_every_residual(name):
    _, _, layer, image = layer_and_images(name)
    _, h = greedy.reach(layer, image)
    K = greedy.gram(layer, h, batch_size=3)
    rng = np.random.default_rng(0)
    weights = rng.uniform(size=(3, layer.d)) * (rng.uniform(size=(3, layer.d)) < 0.5)

    def consumed(h):
        return np.asarray(greedy.consumer(layer, h), np.float64)

    shift = consumed(jnp.zeros_like(h))
    U = consumed(h) - shift
    direct = [
        np.linalg.norm(U - consumed(h * w.astype(np.float32)) + shift)
        / np.linalg.norm(U)
        for w in weights
    ]
    np.testing.assert_allclose(greedy.relative_residual(K, weights), direct, rtol=1e-4)


def test_greedy_on_the_gram_matrix_is_brute_force():
    rng = np.random.default_rng(5)
    H, W1 = np.maximum(rng.normal(size=(40, 9)), 0), rng.normal(size=(9, 4))
    kept, expected = [], []
    while len(kept) < 9:
        lost = {}
        for c in set(range(9)) - set(kept):
            cut = [k for k in range(9) if k not in (*kept, c)]
            lost[c] = ((H[:, cut] @ W1[cut]) ** 2).sum()
        kept.append(min(lost, key=lost.get))
        expected.append(min(lost.values()))
    K = (W1 @ W1.T) * (H.T @ H)
    order = np.asarray(greedy.gram_forward(jnp.asarray(K, jnp.float32)))
    assert order.tolist() == kept
    masks = greedy.nested(order, np.arange(1, 10), 9)
    found = greedy.relative_residual(K, masks) ** 2 * K.sum()
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("scaled", [True, False])
def test_gfs_is_the_plain_loop(scaled):
    """With all images in the mini-batch nothing is random."""
    _, variables, layer, image = layer_and_images("mlp")
    label = jnp.arange(7) % 3
    images = greedy.Images(*greedy.reach(layer, image), label)
    order = greedy.gfs(
        layer, images, jax.random.key(0), steps=5, scaled=scaled, at_once=5
    )
    H = np.asarray(images.h, np.float64)
    dense = {
        k: np.asarray(v, np.float64) for k, v in variables["params"]["output"].items()
    }
    kept = []
    for size in range(1, 6):
        loss = {}
        for c in set(range(layer.d)) - set(kept):
            S, weight = [*kept, c], layer.d / size if scaled else 1
            z = weight * H[:, S] @ dense["kernel"][S] + dense["bias"]
            right = z[np.arange(7), label]
            loss[c] = (np.log(np.exp(z).sum(1)) - right).mean()
        kept.append(min(loss, key=loss.get))
    assert order.tolist() == kept


def test_passes():
    assert greedy.passes(5, 5) == 15
    assert greedy.passes(512, 512) == 512 * 513 // 2
    assert greedy.passes(512, 3, 50) == 150
    assert greedy.passes(5, 5, 2) == 2 + 2 + 2 + 2 + 1


def test_against_gfs():
    source = data.open_source("digits")
    network = models.create("mlp", 10, hidden=(16,))
    variables = networks.variables_of(network, source.preprocessing.shape)
    case = against_gfs.Case(
        network, variables, "hidden.0", source, (2, 4, 8, 16), 8, 8, calibration=32
    )
    row = {"row": "digits", **against_gfs.measure(case)}
    row = json.loads(json.dumps(row))
    assert row["curves"].keys() == {"ispasp", "gfs", "gfs_plain", "gram", "random"}
    for name, curve in row["curves"].items():
        whole = name in ("ispasp", "gram", "random")
        assert len(curve["top1"]) == (4 if whole else 3)
        if whole:  # at full width nothing is lost
            assert curve["top1"][-1] == pytest.approx(row["dense_top1"], abs=1e-4)
            assert curve["relative_residual"][-1] < 1e-3
    spent = row["costs"]["one_size"]
    assert spent["ispasp"]["images"] == 32
    assert spent["gfs"]["images"] == greedy.passes(16, 8) * 8
    # 64 pixels, 16 neurons, 10 classes: a pass is 64 * 16 + 16 * 10.
    assert spent["gfs"]["multiply_adds"] == spent["gfs"]["images"] * 1184
    assert spent["ispasp"]["multiply_adds"] == 32 * 1024 + 20 * 3 * 160
    assert len(gfs_report.verdicts(row)) == 3
    assert len(gfs_report.columns([row])) == 6


def curve(*top1):
    return {"top1": list(top1), "relative_residual": [0.5] * len(top1)}


@pytest.mark.parametrize(
    ("theirs", "macs", "cheaper", "same"),
    [
        ((0.5, 0.9), 1e9, "cheaper confirmed", "quality confirmed,"),
        ((0.8, 0.9), 1e9, "cheaper confirmed", "quality not confirmed,"),
        ((0.5, 0.9), 5e7, "cheaper not confirmed", "quality confirmed,"),
        ((0.1, 0.1), 1e9, "cheaper confirmed", "quality confirmed (random channels"),
    ],
)
def test_verdicts(theirs, macs, cheaper, same):
    spent = {"ispasp": {"multiply_adds": 1e6}, "gfs": {"multiply_adds": macs}}
    row = {
        "row": "layer",
        "curves": {
            "ispasp": curve(0.5, 0.9),
            "gfs": curve(*theirs),
            "random": curve(0.1, 0.2),
        },
        "sizes": [4, 8],
        "one_size": 4,
        "costs": {"one_size": spent},
        "seconds": {"ispasp": {"one_size": 1}, "gfs": {"one_size": 9}},
    }
    (sentence,) = gfs_report.verdicts(row)
    assert cheaper in sentence and same in sentence
