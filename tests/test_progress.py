"""What a run tells: to a terminal, a log, a program, TensorBoard."""

import io
import itertools
import json
import struct

import pytest

from ispasp_jax import report
from ispasp_jax.cli import prune, train
from ispasp_jax.report import listeners, progress
from ispasp_jax.report.events import Event


@pytest.fixture
def clock(monkeypatch):
    """A clock that is four seconds on whenever it is asked."""
    ticks = itertools.count(0, 4)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: float(next(ticks)))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def walk_and_tune():
    """A stage of three steps with one inside it, as `--block-finetune-epochs` has."""
    for part in report.track(range(3), "pruning"):
        if part == 1:
            with report.stage("fine-tuning", 4) as step:
                step()
                report.tell("epoch", stage="fine-tuning", epoch=1, epochs=2, loss=0.5)
                step()
        report.say(f"part {part}")


def test_events_nest_and_know_the_time_that_is_left(clock):
    heard = []
    with report.audience(heard.append):
        walk_and_tune()
    outer, inner = (
        [(e.kind, e.values.get("done")) for e in heard if e.values.get("stage") == name]
        for name in ("pruning", "fine-tuning")
    )
    assert outer == [("begin", 0), ("step", 1), ("step", 2), ("step", 3), ("end", 3)]
    steps = [("begin", 0), ("step", 1), ("epoch", None), ("step", 2), ("end", 2)]
    assert inner == steps
    first = next(e.values for e in heard if e.kind == "step")
    assert first == {
        "stage": "pruning", "depth": 0, "done": 1, "total": 3, "seconds": 4.0,
        "left": 8.0,
    }  # fmt: skip
    depths = {e.values["stage"]: e.values["depth"] for e in heard if e.kind == "begin"}
    assert depths == {"pruning": 0, "fine-tuning": 1}


def test_what_a_stopped_run_has_done_takes_no_time(clock):
    heard = []
    with report.audience(heard.append), report.stage("training", 10, done=8) as step:
        step()
    assert heard[1].values["left"] == heard[1].values["seconds"] == 4.0


def test_a_log_has_plain_lines_now_and_then(clock, capsys):
    with report.audience(listeners.lines()):
        walk_and_tune()
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "part 0",
        "fine-tuning: epoch 1/2, loss 0.500",
        "part 1",
        "  pruning: 2/3, 24.0 s, 12.0 s left",
        "part 2",
        "  pruning: 3/3, 32.0 s",
    ]


def test_a_terminal_has_a_line_a_stage(monkeypatch, clock):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with report.audience(listeners.words()):
        walk_and_tune()
    shown = terminal.getvalue()
    assert "pruning:  33%" in shown and "fine-tuning:  25%" in shown
    assert "loss 0.500" in shown and "part 2\n" in shown
    left = [line for line in shown.splitlines() if "100%" in line]
    assert len(left) == 1 and "pruning: 100%" in left[0]  # the inner one has gone


def test_a_program_has_json_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--model=mlp", "--json"]
    assert train.main([*flags, "--epochs=2", "--out=dense"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    events = [json.loads(line) for line in said.out.splitlines()]
    assert [e["epoch"] for e in events if e["event"] == "epoch"] == [1, 2]

    flags += ["--weights=dense", "--finetune-epochs=1", "--out=out"]
    flags += ["--calibration-images=64"]
    assert prune.main([*flags, "--dry-run"]) == 0
    (plan,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert plan["event"] == "plan" and plan["pruned"]["macs"] < plan["dense"]["macs"]
    assert prune.main(flags) == 0
    said = capsys.readouterr()
    assert said.err == ""
    events = [json.loads(line) for line in said.out.splitlines()]
    begun = [e["stage"] for e in events if e["event"] == "begin"]
    ended = [e["stage"] for e in events if e["event"] == "end"]
    assert sorted(begun) == sorted(ended) and {"pruning", "fine-tuning"} <= {*begun}
    (found,) = (e for e in events if e["event"] == "report")
    kept = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found == {"event": "report", "out": "out", **kept}
    scores = [e["stage"] for e in events if e["event"] == "score"]
    assert scores == [stage["stage"] for stage in kept["stages"]]


def test_errors_are_a_sentence_on_stderr(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert prune.main(["--model=mlp", "--weights=nowhere", "--json"]) == 2
    said = capsys.readouterr()
    assert "nowhere" in said.err and said.err.count("\n") == 1
    assert all(map(json.loads, said.out.splitlines()))
    assert prune.main(["--json", "--quiet"]) == 2
    assert "not allowed with argument" in capsys.readouterr().err


def test_a_programs_steps_are_one_a_second(capsys):
    hear = listeners.json_lines()
    values = {"stage": "pruning", "total": 9}
    for done in range(9):
        kind = "step" if done else "begin"
        hear(Event(kind, {**values, "done": done, "seconds": done * 0.3}))
    told = [json.loads(line)["done"] for line in capsys.readouterr().out.splitlines()]
    assert told == [0, 4, 8]


def records(content):
    """Those of a TFRecord file: length and its checksum, bytes and theirs."""
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        yield content[12 : 12 + length]
        content = content[16 + length :]


def test_tensorboard_has_losses_scores_and_costs(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event as Summary

    costs = {"macs": 4, "params": 2, "latency_ms": 1.0}
    with listeners.scalars(tmp_path / "logs") as hear, report.audience(hear):
        for epoch in (1, 2):
            report.tell("epoch", stage="tuning", epoch=epoch, epochs=2, loss=1 / epoch)
        report.tell("score", stage="dense", top1=0.5, loss=1.5, seconds=1.0)
        report.say("nothing for a curve")
        report.tell("report", dense=costs, pruned=costs)
    (path,) = (tmp_path / "logs").iterdir()
    found = {}
    for event in map(Summary.FromString, records(path.read_bytes())):
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
    assert found["loss/tuning", 1] == 1 and found["loss/tuning", 2] == 0.5
    assert found["top1/dense", 0] == 0.5 and found["macs/pruned", 0] == 4


def test_what_is_missing_for_tensorboard_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(listeners.importlib.util, "find_spec", lambda name: None)
    assert train.main(["--model=mlp", f"--logdir={tmp_path}"]) == 2
    assert "pip install 'ispasp_jax[tensorboard]'" in capsys.readouterr().err
