"""Where a consumer is added to a skip: what least squares has to give there."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from programs import draw, sites_of

from ispasp_jax.walk import measurement, streams

key = jax.random.key(0)


class Branch(nn.Module):
    """Residual sums; `kind` says which. In a pair (branch, rest) comes what the layer
    "down" gives and what is added to it."""

    kind: str

    @nn.compact
    def __call__(self, x):
        up, down = nn.Dense(7, name="up"), nn.Dense(6, name="down")
        x = nn.Dense(6, name="stem")(x)
        if self.kind == "pre-activation":
            u, rest = down(nn.relu(up(nn.relu(x)))), x
        elif self.kind == "skip behind":
            u = down(nn.relu(up(x)))
            rest = nn.Dense(6, name="skip")(x)
        elif self.kind == "three":
            u, rest = down(nn.relu(up(x))), nn.Dense(6, name="skip")(x)
            self.sow("pairs", "pair", (u, rest))
            return nn.relu(u + rest + x)
        else:
            x = nn.relu(x)
            u, rest = down(nn.relu(up(x))), x
        self.sow("pairs", "pair", (u, rest))
        return nn.relu(rest + u if self.kind == "skip first" else u + rest)


KINDS = ("basic", "pre-activation", "skip behind", "skip first", "three")


@pytest.mark.parametrize("kind", KINDS)
def test_the_target_is_the_dense_sum_less_the_pruned_skip(kind):
    """The moments are those of float64 numpy, folds and padding included."""
    model, x = Branch(kind), draw(11, 5)
    variables = model.init(key, x)
    variables = {"params": variables["params"]}
    others = jax.tree.map(lambda a: a + 0.3 * draw(*a.shape, seed=3), variables)
    found, dense = sites_of(model, variables, x[:4])
    (site,) = (site for site in found if "down" in site.name)
    pruned = dict(zip(dense, jax.tree.leaves(others), strict=True))
    batches = [x[:4], x[4:8], x[8:]]
    here = streams.start(site.flat, pruned, batches).hidden(site.place)
    behind = streams.start(site.flat, dense, batches).to(site.end, [site.target])
    folds = measurement.measure(site, here, behind, np.arange(7)).folds

    def sums(variables):
        _, state = model.apply(
            variables, x, mutable=["pairs", "intermediates"], capture_intermediates=True
        )
        ((u, rest),) = state["pairs"]["pair"]
        up = state["intermediates"]["up"]["__call__"][0]
        return (np.asarray(a, np.float64) for a in (u, rest, nn.relu(up)))

    (u, rest, _), (_, skip, P) = sums(variables), sums(others)
    T = u + rest - skip
    assert np.abs(rest - skip).max() > 0.1
    halves = (P[::2], T[::2]), (P[1::2], T[1::2])
    for fold, (a, b) in zip(folds, halves, strict=True):
        assert fold.count == len(a)
        da, db = a - a.mean(0), b - b.mean(0)
        expected = a.mean(0), b.mean(0), da.T @ da, da.T @ db, (db * db).sum()
        for ours, theirs in zip([*vars(fold).values()][1:], expected, strict=True):
            size = np.abs(theirs).max()
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * size)


def test_both_sides_of_a_sum_are_each_others_skip():
    model, x = Branch("skip behind"), draw(4, 5)
    found, _ = sites_of(model, {"params": model.init(key, x)["params"]}, x)
    down, skip = (next(s for s in found if n in s.name) for n in ("down", "skip"))
    assert down.join is skip.join and down.join is not None
    assert down.skip is skip.out and skip.skip is down.out
    assert down.end == skip.end == down.flat.made[down.join] + 1
    (up,) = (site for site in found if "up" in site.name)
    assert up.join is None and up.target is up.out
