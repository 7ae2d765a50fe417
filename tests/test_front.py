"""Branches and the front from the command line and from Python, on digits."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import ispasp_jax
from ispasp_jax import budget
from ispasp_jax.budget import Point, cost
from ispasp_jax.cli import prune, train
from ispasp_jax.errors import InputError
from ispasp_jax.walk.curves import Curve

MODEL = "--model=networks:blocks"
QUICK = ("--calibration-images=64", "--finetune-epochs=0", "--latency-batch-size=2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("weights") / "a"
    assert train.main([MODEL, "--epochs=1", f"--out={out}"]) == 0
    return out


def pruned(weights, out, *flags):
    code = prune.main([MODEL, f"--weights={weights}", f"--out={out}", *QUICK, *flags])
    assert code == 0
    return json.loads((out / "report.json").read_text())


def test_sglp_removes_branches(trained, tmp_path):
    """The result is loaded from disk without them, and is pruned again."""
    out = tmp_path / "out"
    report = pruned(trained, out, "--method=sglp", "--keep=0.67")
    kept = {group["name"]: group["kept"] for group in report["groups"]}
    assert [*kept.values()] == [0]
    (gone,) = kept
    assert report["pruned"]["macs"] < 0.75 * report["dense"]["macs"]
    model = ispasp_jax.load(out / "model", architecture="networks:blocks")
    assert gone not in model.traced.branches and len(model.traced.branches) == 2
    assert model(jnp.zeros((2, *model.input_shape))).shape == (2, 10)
    plan = json.loads((out / "plan.json").read_text())
    assert [group["kept"] for group in plan["groups"]] == [[]]
    again = pruned(trained, tmp_path / "again", f"--plan={out / 'plan.json'}")
    assert again["pruned"]["macs"] == report["pruned"]["macs"]
    twice = pruned(out / "model", tmp_path / "twice", "--keep=0.5")
    assert twice["pruned"]["macs"] < report["pruned"]["macs"]


def test_a_front_is_cut_and_gone_on_with(trained, tmp_path):
    out = tmp_path / "out"
    report = pruned(trained, out, "--pareto", "--depth", "--pick=2", "--round-to=4")
    front = json.loads((out / "front.json").read_text())
    points, solved = front["points"], front["solved"]
    assert len(solved) >= len(points) > 2 and 0 <= front["knee"] < len(points)
    macs = [point["macs"] for point in points]
    losses = [point["predicted_loss"] for point in points]
    assert macs == sorted(macs) and losses == sorted(losses, reverse=True)
    assert points[0]["removed"] and not points[-1]["removed"]
    picked = points[1]
    assert report["budget"]["reached"]["macs"] == pytest.approx(picked["macs"])
    assert report["pruned"]["macs"] == picked["macs"]
    kept = {group["name"]: group["kept"] for group in report["groups"]}
    assert kept == picked["sizes"]
    (repaired,) = (s for s in report["stages"] if s["stage"] == "repaired")
    assert repaired["top1"] == pytest.approx(picked["top1"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--depth"], "--depth is for --target"),
        (["--pick=3"], "--pick is for --pareto"),
        (["--pareto", "--keep=0.5"], "were both given"),
        (["--pareto", "--dry-run"], "leave one out"),
        (["--method=sglp", "--target=macs=50%"], "give --depth"),
        (["--method=sglp", "--keep=a=0.5"], "by one --keep"),
    ],
)
def test_flags_that_exclude_each_other(flags, words, tmp_path, capsys):
    assert prune.main([MODEL, f"--out={tmp_path / 'x'}", *flags]) == 2
    assert words in capsys.readouterr().err


def test_no_point_of_a_front_beats_another():
    rng, widths = np.random.default_rng(0), {"a": 8, "b": 6}
    curves = {}
    for name, d in widths.items():
        damage = np.append(np.cumsum(rng.exponential(size=d))[::-1], 0)
        curves[name] = Curve(np.sqrt(damage / damage[0]), damage, np.arange(d))
    costs = {"macs": cost.BySize(widths, {("a",): 2.0, ("a", "b"): 1.0})}
    points = budget.front(curves, costs, widths, count=30)
    for one, two in zip(points, points[1:], strict=False):
        assert one.costs["macs"] < two.costs["macs"] and one.damage > two.damage
    for point in points:
        target = (budget.Target("macs", point.costs["macs"], False),)
        again = budget.solve(curves, costs, widths, budget.Asked(target))
        assert costs["macs"].total(again) <= point.costs["macs"]
    few = budget.spread(points, 4)
    assert few[0] is points[0] and few[-1] is points[-1] and len(few) == 4
    with pytest.raises(InputError, match="none of macs"):
        budget.front(curves, costs, widths, kind="latency")


def test_the_knee_is_where_it_bends():
    losses = {1: 10.0, 2: 9.0, 3: 1.0, 4: 0.5, 5: 0.0}
    points = [Point({}, {"macs": float(m)}, loss) for m, loss in losses.items()]
    assert budget.knee(points) == 2
    assert budget.knee(points[:1]) == 0
    with pytest.raises(InputError, match="without points"):
        budget.knee([])
