"""ispasp-compare: the table, Pareto marks, files, and folders that are no runs."""

import copy
import json
import random
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest

from ispasp_jax.cli import compare as command
from ispasp_jax.report import compare

#: A report.json with the fields that prune.py writes.
REPORT = {
    "model": "resnet20",
    "method": "ispasp",
    "data": "digits",
    "seed": 0,
    "versions": {"ispasp_jax": "0.2.0", "jax": "0.10.2"},
    "device": "2 CPU cores",
    "stages": [
        {"stage": "dense", "top1": 0.9150000214576721, "loss": 0.38, "seconds": 0.2},
        {"stage": "pruned", "top1": 0.2319999933242798, "loss": 5.1, "seconds": 8.0},
        {"stage": "repaired", "top1": 0.7889999747276306, "loss": 1.0, "seconds": 12},
    ],
    "seconds": {"dense_forward": 1.1, "selection": 8.0, "repair": 11.9, "total": 30.7},
    "notes": [],
    "groups": [
        {
            **{"name": "layer1.0", "width": 16, "kept": 8},
            **{"relative_residual": 0.297, "iterations": 2},
        }
    ],
    "dense": {
        **{"params": 269722, "macs": 40551040, "latency_ms": 34.4, "batch_size": 32},
        "macs_by_part": {"conv1": 442368},
    },
    "pruned": {
        **{"params": 135754, "macs": 20497024, "latency_ms": 24.4, "batch_size": 32},
        "macs_by_part": {"conv1": 442368},
    },
    "command": "python prune.py --model resnet20 --keep 0.5",
}


def changed(top1=None, pruned=(), **fields):
    report = copy.deepcopy({**REPORT, **fields})
    report["pruned"].update(pruned)
    if top1 is not None:
        report["stages"][-1]["top1"] = top1
    return report


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def left(folder, report=REPORT):
    """A run's folder."""
    Path(folder).mkdir()
    text = report if isinstance(report, str) else json.dumps(report)
    Path(folder, "report.json").write_text(text)
    return folder


def lines(out):
    """The table's lines by run."""
    rows = out.splitlines()[2 : out.splitlines().index("")]
    return {row.split()[0]: row.split()[1:] for row in rows}


def test_the_table_says_what_the_reports_say(here, capsys):
    left("a")
    left("b", changed(0.7, {"macs": 30_000_000, "latency_ms": 20.0}, method="obs"))
    assert command.main(["a", "b"]) == 0
    said = capsys.readouterr()
    assert said.err == "" and [p.name for p in sorted(here.iterdir())] == ["a", "b"]
    assert lines(said.out) == {
        "a": "resnet20 ispasp 91.50 23.20 78.90 20,497,024 * 135,754 24.4 *".split(),
        "b": "resnet20 obs 91.50 23.20 70.00 30,000,000 135,754 20.0 *".split(),
    }
    assert "on different data" not in said.out and "of different dev" not in said.out


def by_definition(points):
    def beats(a, b):
        return a[0] <= b[0] and a[1] >= b[1] and a != b

    return [not any(beats(a, b) for a in points) for b in points]


@pytest.mark.parametrize("seed", range(50))
def test_pareto_points_are_those_that_nothing_beats(seed):
    rng = random.Random(seed)
    size = rng.choice([2, 4, 100])  # ties, and points that are equal
    count = rng.randrange(25)
    points = [
        (float(rng.randrange(size)), rng.randrange(size) / 8) for _ in range(count)
    ]
    assert compare.pareto(points) == by_definition(points)


def test_only_what_can_be_is_held_against_each_other(here, capsys):
    left("a", changed(0.9, {"macs": 10, "latency_ms": 1.0}))
    left("b", changed(0.8, {"macs": 20, "latency_ms": 2.0}, data="npz:other"))
    left("c", changed(0.8, {"macs": 20, "latency_ms": 2.0}, device="H100"))
    left("d", changed(0.8, {"macs": 20, "latency_ms": 2.0, "batch_size": 1}))
    left("e", changed(0.8, {"macs": 20, "latency_ms": 2.0}))
    assert command.main([*"abcde", "--out=o"]) == 0
    found = json.loads(Path("o/compare.json").read_text())["runs"]
    marks = {run["name"]: (*run["pareto"].values(),) for run in found}
    assert marks == {
        **{"a": (True, True), "b": (True, True)},
        **{"c": (False, True), "d": (False, True), "e": (False, False)},
    }
    said = capsys.readouterr().out
    assert "on different data" in said and "of different devices" in said


def test_out_holds_the_numbers_and_a_picture_that_is_the_same_twice(here, capsys):
    pytest.importorskip("matplotlib")
    left("a$_run")
    left("b", changed(0.7))
    for out in ("x/y", "z"):
        assert command.main(["a$_run", "b", "--out", out]) == 0
        assert sorted(p.name for p in Path(out).iterdir()) == [
            "compare.json",
            "compare.svg",
        ]
    run = json.loads(Path("x/y/compare.json").read_text())["runs"][0]
    assert run["name"] == "a$_run" and run["top1"] == REPORT["stages"][-1]["top1"]
    assert run["dense_top1"] == REPORT["stages"][0]["top1"]
    assert run["pruned"]["macs"] == 20497024 and run["dense"]["params"] == 269722
    pictures = [Path(out, "compare.svg").read_text() for out in ("x/y", "z")]
    assert pictures[0] == pictures[1]
    assert xml.etree.ElementTree.fromstring(pictures[0]).tag.endswith("svg")


def test_without_matplotlib_there_are_the_numbers_and_a_sentence(
    here, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "ispasp_jax.report.plots", None)
    monkeypatch.delattr("ispasp_jax.report.plots", raising=False)
    left("a")
    assert command.main(["a", "--out=o"]) == 0
    assert [p.name for p in Path("o").iterdir()] == ["compare.json"]
    sentence = "no compare.svg: install the [plots] extra (matplotlib)\n"
    assert capsys.readouterr().err == sentence


def without(*keys):
    """The report without a field."""
    report = copy.deepcopy(REPORT)
    place = report
    for key in keys[:-1]:
        place = place[key]
    del place[keys[-1]]
    return report


BAD = {
    "broken": ('{"model": ', "is not JSON"),
    "a list": ("[]", "is without stages"),
    "no number": ('{"model": NaN}', "NaN is no number"),
    "not text": (None, "not even text"),
    "no model": (without("model"), "is without model"),
    "stages of another kind": (changed(stages={}), "another kind of stages"),
    "no stages": (changed(stages=[]), "without the stage 'dense'"),
    "no cut": (changed(stages=REPORT["stages"][:1]), "without the stage 'pruned'"),
    "a stage that is none": (changed(stages=[1]), "without stages.stage"),
    "top-1 in percent": (changed(78.9), "78.9 as stages.top1"),
    "no costs": (without("pruned"), "is without pruned"),
    "no macs": (without("dense", "macs"), "is without dense.macs"),
    "macs of True": (changed(pruned={"macs": True}), "True as pruned.macs"),
    "macs in text": (changed(pruned={"macs": "1"}), "another kind of pruned.macs"),
    "endless macs": (changed(pruned={"macs": 10**400}), "as pruned.macs"),
    "no time": (changed(pruned={"latency_ms": 0}), "0 as pruned.latency_ms"),
    "endless": (json.dumps(REPORT).replace("24.4", "1e999"), "inf as pruned.latency"),
}


@pytest.mark.parametrize(("report", "why"), BAD.values(), ids=BAD)
def test_what_is_no_report_is_one_sentence(report, why, here, capsys):
    left("good")
    left("bad", report or "")
    if report is None:
        Path("bad/report.json").write_bytes(b"\xff\xfe")
    assert command.main(["good", "bad", "--out=o"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and not Path("o").exists()
    assert said.err.startswith("bad/report.json is ") and why in said.err
    assert said.err.count("\n") == 1 and "; expected the report.json" in said.err


@pytest.mark.parametrize("run", ["nowhere", "empty", "file"])
def test_what_is_no_run_is_one_sentence(run, here, capsys):
    Path("empty").mkdir()
    Path("file").write_text("")
    assert command.main([run]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{run}/report.json cannot be read (")
    assert said.count("\n") == 1 and said.endswith("give such a folder.\n")


def test_a_file_in_the_place_of_out_stays(here, capsys):
    left("a")
    Path("o").write_text("mine")
    assert command.main(["a", "--out=o"]) == 2
    assert "--out o is a file" in capsys.readouterr().err
    assert Path("o").read_text() == "mine"
