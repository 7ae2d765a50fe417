"""What docs/scale.md says devices tell each other is what compiled programs do."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.timings import collectives, scale
from ispasp_jax import devices


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


def test_batches_whose_shares_are_odd_are_exchanged():
    """The folds are every second image: docs/scale.md says to give even shares."""
    read = scale.check("perceptron", "lsq", share=3)
    assert {kind for kind, nbytes in read.other.items() if nbytes} == {
        "moments: collective-permute"
    }


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
    assert one["batches"] == 1 and two["reduced"] == 2 * one["reduced"]
    assert one["to_host"] < one["reduced"]
    assert (
        row["stops"] == 34 and row["groups"] == 32
    )  # + a last one, and the classifier
