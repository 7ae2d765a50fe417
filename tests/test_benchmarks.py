"""The benchmarks' runner, and the timings on networks that are small enough: they say
what they are to say; no times are tested.
"""

import json
import subprocess
import sys
from pathlib import Path

import jax
import networks
import numpy as np
import pytest

import benchmarks
from benchmarks import __main__ as command
from benchmarks import benchmark
from benchmarks.benchmark import Benchmark
from benchmarks.timings import cases, core, latency, selection_cost, walk_steps
from ispasp_jax.selection.algorithm_1 import ispasp

ROOT = Path(benchmarks.__file__).parent


def basic(num_classes):
    return networks.NETWORKS["basic"].clone(num_classes=num_classes)


def mobile(num_classes):
    return networks.NETWORKS["mobile"].clone(num_classes=num_classes)


BASIC, MOBILE = "test_benchmarks:basic", "test_benchmarks:mobile"
TIMED = {"first_call_s", "compile_s", "seconds", "min", "max", "all"}


def test_selection_cost_and_that_the_naive_loop_agrees():
    case = cases.Case(BASIC, 8, 8, 4)
    mobile_case = cases.Case(MOBILE, 8, 8, 4)
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
    assert "equal in 4 of 4 groups" in selection_cost.text(result)


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
    made, criterion = cases.ready(cases.Case(BASIC, 8, 8, 4)), ispasp(20)
    plan, spent = walk_steps.by_hand(made, criterion)
    walked = made.walk(criterion).plan
    assert {n: list(c.kept) for n, c in plan.items()} == {
        n: list(c.kept) for n, c in walked.items()
    }
    assert tuple(spent) == walk_steps.STEPS and all(s > 0 for s in spent.values())


@pytest.mark.slow
def test_latency():
    case = latency.Case(MOBILE, 8, (2,))
    result = json.loads(json.dumps(latency.measure(latency.Settings((case,), case, 1))))
    assert [row["keep"] for row in result["latency"]] == list(latency.KEEPS)
    assert all(row["macs_over_dense"] < 1 for row in result["latency"])
    whats = [row["what"] for row in result["depthwise"]]
    assert whats == ["forward", "training step"]


def test_the_plain_twin_computes_the_same_another_way():
    network, shape = networks.NETWORKS["mobile"], (8, 8, 3)
    own = cases.random_variables(network, shape)
    nested = {kind: {"network": tree} for kind, tree in own.items()}
    (images,) = cases.random_batches(2, 2, shape)
    ways = (network, own), (latency.Plain(network), nested)
    shifted, plain = (str(jax.make_jaxpr(m.apply)(v, images)) for m, v in ways)
    assert "platform_index" in shifted and "platform_index" not in plain
    outputs = [jax.jit(model.apply)(tree, images) for model, tree in ways]
    np.testing.assert_allclose(*outputs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("ratio", "macs", "verdict"),
    [(1.1, 0.5, "slower"), (0.7, 0.5, "not paid"), (0.55, 0.5, "paid")],
)
def test_verdicts(ratio, macs, verdict):
    assert latency.verdict(ratio, macs) == verdict


ROWS = Benchmark(
    "rows.jsonl",
    full={"a": 1, "b": 2, "other": 3},
    small={"a": 1},
    measure=lambda x: {"square": x * x},
    tables={"squares": lambda rows: [["row"], *([r["row"]] for r in rows)]},
)


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path)
    return tmp_path


def test_rows_that_are_known_are_not_measured_again(results, capsys):
    benchmark.run("rows", ROWS, only=["b", "other"])
    counted = []
    again = ROWS._replace(measure=lambda x: counted.append(x) or ROWS.measure(x))
    rows = benchmark.run("rows", again)
    assert counted == [1]
    assert rows == [{"row": n, "square": x * x} for n, x in ROWS.full.items()]
    assert benchmark.read(results / "rows.jsonl") == rows
    assert capsys.readouterr().out.splitlines()[-3:] == ["a    ", "b    ", "other"]


def test_a_row_that_fails_leaves_those_before(results):
    broken = ROWS._replace(measure=lambda x: {"inverse": 1 / (x - 3)})
    with pytest.raises(ZeroDivisionError):
        benchmark.run("rows", broken)
    assert [r["row"] for r in benchmark.read(results / "rows.jsonl")] == ["a", "b"]


def test_a_small_run_leaves_the_results_alone(results):
    benchmark.run("rows", ROWS, small=True)
    assert not [*results.iterdir()]
    record = Benchmark("x.json", 2, 1, lambda x: {"is": x}, text=str)
    benchmark.run("core", record, small=True, out=results / "folder" / "small.json")
    found = benchmark.read(results / "folder" / "small.json")
    assert found["versions"]["jax"] and found["is"] == 1
    assert found["command"] == "python benchmarks/core.py --small"


def test_every_benchmark_has_results_and_a_script():
    for name in benchmarks.NAMES:
        found = benchmarks.module(name).BENCHMARK
        assert isinstance(found, Benchmark) and benchmarks.module(name).__doc__
        assert (ROOT / "results" / found.file).exists()
        assert (ROOT / f"{name}.py").exists()


def test_a_script_and_the_package_are_the_same_command(capsys):
    with pytest.raises(SystemExit):
        command.main(["traces", "--help"])
    script = [sys.executable, str(ROOT / "traces.py"), "--help"]
    said = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    assert said == capsys.readouterr().out and "How the residual falls" in said
