"""Time on the present device: what is measured, and what is made of it. No test asks
how long anything takes.
"""

import json
import math
import re

import jax
import pytest
from networks import NETWORKS, images_of, variables_of

import ispasp_jax
from ispasp_jax.budget import latency, rounding
from ispasp_jax.errors import InputError


def test_a_model_is_timed_beside_the_dense_one():
    network, variables = NETWORKS["mlp"], variables_of(NETWORKS["mlp"])
    pruned = ispasp_jax.prune(network, variables, [images_of(4)], 0.5, repair="none")
    inputs = [jax.typeof(images_of(2))]
    found = ispasp_jax.latency(pruned, (1, 3), repeats=3)
    assert [row.batch_size for row in found] == [1, 3]
    own = {"variables": variables, "inputs": inputs, "repeats": 3}
    (row,) = ispasp_jax.latency(network, [2], dense=pruned, **own)
    for each in (*found, row, row.dense):
        assert 0 < each.low <= each.milliseconds <= each.high and each.compilation >= 0
    assert row.dense.batch_size == 2 and found[0].dense is None
    with pytest.raises(InputError, match="the inputs are not known: give examples"):
        ispasp_jax.latency(network, variables=variables)


@pytest.mark.parametrize("step", [1, 8, 64])
def test_widths_are_rounded_to_the_steps_that_the_device_takes(step):
    """Time grows with the width in steps: the smallest multiple that loses nothing."""
    widths = {
        rounding._up(width, multiple)
        for width in rounding.WANTED
        for multiple in rounding.MULTIPLES
    }
    assert rounding.best({w: math.ceil(w / step) * step for w in widths}) == 1
    # where a ragged width is slower than the next that is whole
    ragged = {w: math.ceil(w / step) * step + 50 * (w % step > 0) for w in widths}
    assert rounding.best(ragged) == step


def test_a_kind_of_device_is_measured_once(tmp_path, monkeypatch):
    asked = []

    def times(widths):
        asked.append({*widths})
        return {w: math.ceil(w / 16) + 9 * (w % 16 > 0) for w in widths}

    monkeypatch.setattr(rounding, "times", times)
    cache = tmp_path / "deep" / "rounding.json"
    assert rounding.measured(cache) == rounding.measured(cache) == 16
    assert len(asked) == 1 and {64, 57, 128} <= asked[0]
    (kind,) = json.loads(cache.read_text())
    assert jax.devices()[0].device_kind in kind and jax.__version__ in kind
    cache.write_text("{broken")
    assert rounding.measured(cache) == 16 and len(asked) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert ispasp_jax.Budget(macs="50%", round_to="auto").asked.round_to == 16
    assert (tmp_path / "ispasp_jax" / "rounding.json").exists()


def test_times_of_convolutions_are_positive():
    assert all(time > 0 for time in rounding.times([3, 5]).values())


def test_groups_that_do_not_pay_are_named_with_a_width_that_does(monkeypatch):
    """24 channels cut to 10, on a device that is slow unless they are whole eights."""
    network, variables = NETWORKS["mlp"], variables_of(NETWORKS["mlp"])
    traced = ispasp_jax.trace(network, variables, images_of(2))

    class Timed:
        def __call__(self, piece):
            return tuple(map(self.time, piece))

        def time(self, closed):
            found = {int(n) for n in re.findall(r"f32\[4,(\d+)\]", str(closed.jaxpr))}
            (width,) = found - {168, 18}  # the images, the next layer
            return width if width % 8 == 0 else 30

    monkeypatch.setattr(latency, "_Timed", Timed)
    (found,) = latency.unpaid(traced, {"hidden.0": 10}, 4)
    assert found == ("hidden.0", 24, 10, (24, 30), 8)
    assert not latency.unpaid(traced, {"hidden.0": 16, "hidden.1": 18}, 4)
