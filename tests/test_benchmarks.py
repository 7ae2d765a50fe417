"""The timing benchmarks run, on networks that are small enough, and say what they are
to say; no times are tested.
"""

import json
import sys
from pathlib import Path

import networks
import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import core  # noqa: E402
import latency  # noqa: E402
import selection_cost  # noqa: E402
import timing  # noqa: E402
import walk_steps  # noqa: E402


def basic(num_classes):
    return networks.NETWORKS["basic"].clone(num_classes=num_classes)


def mobile(num_classes):
    return networks.NETWORKS["mobile"].clone(num_classes=num_classes)


BASIC, MOBILE = "test_benchmarks:basic", "test_benchmarks:mobile"
TIMED = {"first_call_s", "compile_s", "seconds", "min", "max", "all"}


def test_selection_cost_and_that_the_naive_loop_agrees():
    case = selection_cost.Case(BASIC, 8, 8, 4)
    mobile_case = selection_cost.Case(MOBILE, 8, 8, 4)
    settings = selection_cost.Settings(
        walk=(case,),
        images=(),
        iterations=case,
        sweep=(1, 20),
        naive=mobile_case,
        extrapolated_to=80,
        repeats=1,
        memory=False,
    )
    result = json.loads(json.dumps(selection_cost.measure(settings)))
    (row,) = result["walk"]
    assert row["dense"].keys() == row["walk"].keys() == TIMED
    assert row["over_dense"].keys() == {"walk", "walk_without_residual"}
    assert [row["num_iters"] for row in result["iterations"]["rows"]] == [1, 20]
    rows = {4: result["naive"], 3: selection_cost.naive_rows(case, 80, 1)}
    for groups, loop in rows.items():
        assert loop["different_supports"] == {"naive": [], "naive_to_fixed_point": []}
        assert loop["groups"] == groups
        measured, far = loop["measured_seconds"], loop["extrapolated"]["seconds"]
        assert far == {k: 10 * v for k, v in measured.items() if k in far}
        assert far.keys() == {"naive", "naive_to_fixed_point"}
    assert "equal in 4 of 4 groups" in selection_cost.tables(result)


def test_core():
    settings = core.Settings(
        widths=(16,), keeps=(0.25,), examples=(("dense", 8), ("conv 3x3", 2)), side=4
    )
    result = json.loads(json.dumps(core.measure(settings)))
    for row in result["rows"]:
        assert row["channels_different"] == 0
        assert all(row[kind].keys() == TIMED for kind in core.KINDS)
    assert [line[-1] for line in core.columns(result)[1:]] == [0, 0]


def test_the_steps_are_the_walk():
    case = selection_cost.Case(BASIC, 8, 8, 4)
    settings = walk_steps.Settings((case,))
    result = json.loads(json.dumps(walk_steps.measure(settings)))
    (row,) = result["rows"]
    assert row["steps"].keys() == walk_steps.STEPS.keys()
    assert all(seconds > 0 for seconds in row["steps"].values())
    assert 0 < sum(row["steps"].values()) < row["waited_for"]
    assert len(walk_steps.columns(result)[1]) == 4 + len(walk_steps.STEPS) + 1


def test_latency():
    case = latency.Case(MOBILE, 8, (2,))
    result = json.loads(json.dumps(latency.measure(latency.Settings((case,), case, 1))))
    assert [row["keep"] for row in result["latency"]] == list(latency.KEEPS)
    assert all(row["macs_over_dense"] < 1 for row in result["latency"])
    whats = [row["what"] for row in result["depthwise"]]
    assert whats == ["forward", "training step"]
    assert "plain ms" in latency.tables(result)


@pytest.mark.parametrize(
    ("ratio", "macs", "verdict"),
    [(1.1, 0.5, "slower"), (0.7, 0.5, "not paid"), (0.55, 0.5, "paid")],
)
def test_verdicts(ratio, macs, verdict):
    assert latency.verdict(ratio, macs) == verdict


def test_a_small_run_leaves_the_results_alone(tmp_path):
    assert timing.arguments("doc", "core", ["--small"]).out is None
    assert timing.arguments("doc", "core", []).out.name == "core.json"
    file = tmp_path / "folder" / "small.json"
    timing.write(file, timing.header("core", small=True))
    assert json.loads(file.read_text())["versions"]["jax"]
