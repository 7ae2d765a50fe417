"""What docs/scale.md says devices tell each other is what compiled programs do."""

import functools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import ispasp_jax
from benchmarks.timings import collectives, scale
from ispasp_jax import devices, walk
from ispasp_jax.graph.widths import first
from ispasp_jax.walk import moments


@pytest.mark.parametrize("how", scale.REPAIRS)
@pytest.mark.parametrize("name", [name for name in scale.SMALL if name != "resnet50"])
def test_the_formulas_are_what_eight_devices_say(name, how):
    assert len(jax.devices()) == 8
    read = scale.check(name, how)
    found = dict(read.found)
    looks = found.pop("forward")
    assert found == read.expected
    assert not read.other, "examples leave the devices where they lie"
    assert 0 < looks < 200, "a scalar for each value that is looked at"
    assert bool(found["moments"]) == (how == "lsq") and found["sum"]


def test_moments_of_several_batches_are_summed_in_one_go(monkeypatch):
    one = scale.check("perceptron", "lsq")
    monkeypatch.setattr(moments, "_AT_ONCE_ON_DEVICES", 1)
    two = scale.check("perceptron", "lsq")
    assert two.found["moments"] == two.expected["moments"] == 2 * one.found["moments"]


@pytest.mark.parametrize(("count", "at_once"), [(8, 1), (8, 2**25)])
def test_moments_of_the_devices_are_the_hosts(count, at_once, monkeypatch):
    """Batches of odd numbers of images, so that folds begin anew."""
    monkeypatch.setattr(moments, "_AT_ONCE_ON_DEVICES", at_once)
    network = networks.NETWORKS["basic"]
    variables = networks.variables_of(network)
    images = [networks.images_of(n, seed=n) for n in (20, 11, 19, 20, 20)]
    traced = ispasp_jax.trace(network, variables, images[0])
    plan = first(traced, dict.fromkeys(traced, 5))
    options = walk.Options(repair="lsq", mesh=devices.mesh(count))
    walked = functools.partial(
        walk.walk, traced, variables, images, {}, plan=plan, options=options
    )
    expected = walked().variables
    with collectives.recorded() as record:
        found = walked().variables
    calls = sum(n for (kind, _), n in record.calls.items() if kind == "moments")
    assert calls == 8 * (5 if at_once == 1 else 3)
    for ours, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3 * np.abs(theirs).max())


def test_batches_whose_shares_are_odd_are_filled_up():
    """The folds are every second image, so a share is even, whatever was given."""
    read = scale.check("perceptron", "lsq", share=3)
    assert read.found["moments"] == read.expected["moments"]
    assert {kind.partition(":")[0] for kind in read.other} <= {"squares"}


def test_collectives_are_found_in_a_program():
    mesh = devices.mesh(8)
    spread, copied = (NamedSharding(mesh, P(*spec)) for spec in (("batch",), ()))
    x = jax.device_put(jnp.ones((16, 3)), spread)

    def compiled(function):
        return collectives.of(jax.jit(function).lower(x).compile().as_text() or "")

    def gathered(x):
        return jax.lax.with_sharding_constraint(2 * x, copied)

    assert compiled(lambda x: 2 * x) == []
    assert compiled(lambda x: x.sum(0)) == [("all-reduce", 12)]
    assert compiled(gathered) == [("all-gather", 16 * 3 * 4)]
    text = "%a = (f32[2,3]{1,0}, /*index=1*/bf16[5]{0}) all-reduce-start(%b, %c)"
    assert collectives.of(text) == [("all-reduce", 34)]


def test_the_table_is_linear_in_the_images():
    row = scale.on_paper("resnet50", "lsq")
    one, two = (scale._run(row, images, 8) for images in (256, 512))
    assert one["batches"] == 1 and two["batches"] == 2
    assert one["to_host"] < one["reduced"] <= two["reduced"] <= 2 * one["reduced"]
    assert (
        row["stops"] == 34 and row["groups"] == 32
    )  # + a last one, and the classifier
