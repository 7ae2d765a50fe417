"""A run's place: who may write there, what an error leaves, what a stop keeps."""

import functools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ispasp_jax
from ispasp_jax import training
from ispasp_jax.cli import learning, locks, prune, train, walk_store, workspace
from ispasp_jax.graph import plans
from ispasp_jax.training import States
from ispasp_jax.weights import folders

ROOT = Path(__file__).parents[1]
PARTIAL = Path(".out.partial")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A perceptron trained on digits for an epoch."""
    folder = tmp_path_factory.mktemp("trained") / "mlp"
    assert train.main(["--model", "mlp", "--epochs", "1", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty present folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def flags_of(trained):
    small = ["--calibration-images=100", "--latency-batch-size=1"]
    return ["--model=mlp", f"--weights={trained}", "--out=out", *small]


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def said(capsys):
    """The one sentence that a command ended with."""
    return capsys.readouterr().err.strip().splitlines()[-1]


def calling(monkeypatch, where, action):
    """Does something right before a function is called for the first time."""
    module, name = where
    real, done = getattr(module, name), []

    def call(*arguments, **more):
        if not done:
            done.append(True)
            action()
        return real(*arguments, **more)

    monkeypatch.setattr(module, name, call)


HOLDER = """
import sys
from pathlib import Path
from ispasp_jax.cli import locks
with locks.locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_place_is_one_runs_until_it_ends_or_dies(trained, here, capsys):
    command = [sys.executable, "-W", "ignore", "-c", HOLDER, "out"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(command, env=env, **pipes) as other:
        assert other.stdout.readline() == "held\n"
        before = set(here.iterdir())
        for main in (prune.main, train.main):
            assert main(flags_of(trained)[: None if main is prune.main else 3]) == 2
            text = said(capsys)
            assert f"out is in use by another run (process {other.pid})" in text
        assert set(here.iterdir()) == before
        other.kill()
    assert Path(".out.lock").exists()  # a dead one's
    assert prune.main(flags_of(trained)) == 0
    assert {path.name for path in here.iterdir()} == {"out"}


def test_folders_that_only_a_lock_was_in_go_with_it(here):
    with pytest.raises(ispasp_jax.InputError), locks.locked(Path("a/b/out")):
        assert Path("a/b/.out.lock").exists()
        raise ispasp_jax.InputError("no")
    assert not list(here.iterdir())


@pytest.fixture
def interruptible():
    """Answers SIGINT as in the foreground; a background job of a shell ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Destructor:
    """Is interrupted where Python drops exceptions."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_in_a_destructor_is_not_lost(
    trained, here, monkeypatch, capsys, interruptible
):
    calling(monkeypatch, (folders, "load"), Destructor)
    assert prune.main(flags_of(trained)) == 130
    assert said(capsys) == "interrupted; nothing was finished yet"


@pytest.mark.parametrize(
    "number, where, ending",
    [
        (signal.SIGTERM, (folders, "load"), "nothing was finished yet"),
        (signal.SIGINT, (workspace.Workspace, "begin"), "nothing was finished yet"),
        (signal.SIGTERM, (plans, "verify"), "--resume goes on from here"),
    ],
    ids=["loading", "beginning", "after the walk"],
)
def test_signals_say_whether_there_is_something_to_resume(
    number, where, ending, trained, here, monkeypatch, capsys, interruptible
):
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        calling(patch, where, lambda: os.kill(os.getpid(), number))
        assert prune.main(flags_of(trained)) == 130
    assert said(capsys) == f"interrupted; {ending}"
    assert signal.getsignal(signal.SIGTERM) is before
    assert not Path(".out.lock").exists()
    if "resume" not in ending:  # and nothing has to be resumed or deleted
        workspace.Workspace(Path("out"), {}, False)
        return
    assert prune.main([*flags_of(trained), "--resume"]) == 0


def to_folder(path):
    Path("folder").mkdir()
    path.symlink_to("folder")


PLACES = {
    "link": (to_folder, "out is a symbolic link (to folder)"),
    "dangling link": (lambda p: p.symlink_to("gone"), "is a symbolic link (to gone)"),
    "loop": (lambda p: p.symlink_to("out"), "is a symbolic link (to out)"),
    "file": (lambda p: p.write_text("mine"), "holds other files"),
}


@pytest.mark.parametrize("make, words", PLACES.values(), ids=PLACES)
def test_a_place_that_is_no_new_folder_is_left_alone(
    make, words, trained, here, capsys
):
    make(Path("out"))
    before = {path.name: os.lstat(path).st_mtime_ns for path in here.iterdir()}
    for main in (prune.main, train.main):
        assert main(["--model=mlp", "--out=out"]) == 2
        assert words in said(capsys)
    assert {p.name: os.lstat(p).st_mtime_ns for p in here.iterdir()} == before
    if Path("out").is_symlink():
        model = folders.load(trained)
        with pytest.raises(ispasp_jax.InputError, match="symbolic link"):
            ispasp_jax.save("out", model)
        assert Path("out").is_symlink()


def fill_disk(bytes=100):
    """No file may be longer from here on, which is what a full disk looks like."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, resource.RLIM_INFINITY))


def free_disk():
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "where, resumable",
    [
        slow((workspace.Workspace, "begin"), False, id="settings"),
        ((walk_store, "_save"), False),
        slow((plans, "verify"), True, id="plan"),
        slow((folders, "write"), True, id="network"),
        ((States, "save"), True),
        slow((workspace.Workspace, "deliver"), True, id="result"),
    ],
)
def test_a_full_disk_is_a_sentence_and_costs_nothing(
    where, resumable, trained, here, monkeypatch, capsys
):
    monkeypatch.setattr(learning, "SECONDS_BETWEEN_STATES", 0)
    flags = [*flags_of(trained), "--finetune-epochs=2", "--repair=none"]
    try:
        with monkeypatch.context() as patch:
            calling(patch, where, fill_disk)
            assert prune.main(flags) == 2
    finally:
        free_disk()
    text = said(capsys)
    assert "give another place, or mend it" in text
    assert ("--resume then goes on from here" in text) is resumable
    assert not Path("out").exists() and PARTIAL.exists() is resumable
    if resumable:
        assert prune.main([*flags, "--resume"]) == 0
        assert listing(here) == ["out"]


@pytest.mark.parametrize(
    "gone, where, words",
    [
        ("", (plans, "verify"), "was deleted while it ran"),
        slow("", (walk_store, "_save"), "cannot be written"),
        slow("", (workspace.Workspace, "deliver"), "was deleted while it ran"),
        ("plan.json", (workspace.Workspace, "deliver"), "plan.json went missing"),
        slow("model", (workspace.Workspace, "deliver"), "model went missing"),
        slow("report.json", (workspace.Workspace, "deliver"), "report.json went"),
    ],
)
def test_what_goes_missing_on_the_way_is_an_error(
    gone, where, words, trained, here, monkeypatch, capsys
):
    def delete():
        path = PARTIAL / gone
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    with monkeypatch.context() as patch:
        calling(patch, where, delete)
        code = prune.main(flags_of(trained))
    assert code == 2 and words in said(capsys)
    assert not Path("out").exists()
    if gone:
        assert prune.main([*flags_of(trained), "--resume"]) == 0
        assert listing(Path("out")) == [
            "model",
            "plan.json",
            "report.html",
            "report.json",
        ]
        report = json.loads(Path("out/report.json").read_text())
        assert len(report["stages"]) == 3 and report["groups"]


def stop(*_, **__):
    raise KeyboardInterrupt


def test_a_stopped_runs_state_is_not_deleted_by_another(
    trained, here, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        patch.setattr(plans, "verify", stop)
        assert prune.main(flags_of(trained)) == 130
    before = {p: p.read_bytes() for p in PARTIAL.rglob("*") if p.is_file()}
    for other in ([], ["--keep=0.5"], ["--keep=0.5", "--resume"]):
        assert prune.main([*flags_of(trained), *other]) == 2
        text = said(capsys)
        assert "--resume" in text and f"delete {PARTIAL.absolute()}" in text
    assert {p: p.read_bytes() for p in PARTIAL.rglob("*") if p.is_file()} == before
    assert prune.main([*flags_of(trained), "--resume"]) == 0


def test_a_run_says_what_it_replaces_and_all_that_it_saves(trained, here, capsys):
    flags = [*flags_of(trained), "--target=macs=50%", "--torch"]
    assert prune.main(flags) == 0
    files = sorted(path.name for path in Path("out").iterdir())
    assert sorted(said(capsys).removeprefix("saved in out: ").split(", ")) == files
    assert {"curves.json", "torchvision.safetensors"} < set(files)
    assert prune.main([*flags_of(trained), "--keep=0.3", "--method=l1"]) == 0
    text = capsys.readouterr().err
    assert "out holds a run of ispasp on digits, seed 0, 9,610 parameters" in text
    assert "saved in out: model, plan.json, report.json" in text
    assert listing(Path("out")) == ["model", "plan.json", "report.html", "report.json"]


def test_training_that_starts_at_epoch_1_says_why(here, monkeypatch, capsys):
    flags = ["--model=mlp", "--epochs=2", "--out=out"]
    with monkeypatch.context() as patch:
        patch.setattr(training.loop, "train_step", stop)
        assert train.main(flags) == 130
    assert said(capsys) == "interrupted; nothing was finished yet"
    assert train.main([*flags, "--resume"]) == 0
    text = capsys.readouterr().err
    assert "starting at epoch 1, since the stopped run had not kept a state" in text
    assert train.main([*flags, "--resume"]) == 0
    text = capsys.readouterr().err
    assert "--resume: no stopped run in" in text
    assert "out holds an earlier training of mlp" in text


def test_a_damaged_state_is_not_trained_on(here, monkeypatch, capsys):
    monkeypatch.setattr(learning, "SECONDS_BETWEEN_STATES", 0)
    flags = ["--model=mlp", "--epochs=3"]
    assert train.main([*flags, "--out=whole"]) == 0

    def stopped():
        with monkeypatch.context() as patch:
            calling(patch, (workspace, "written"), stop)
            assert train.main([*flags, "--out=out"]) == 130

    stopped()
    (file,) = (PARTIAL / "states").iterdir()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert train.main([*flags, "--out=out", "--resume"]) == 0
    assert f"starting at epoch 1, since {file.absolute()} is damaged" in (
        capsys.readouterr().err
    )
    ours, whole = (Path(f, "model.safetensors").read_bytes() for f in ("out", "whole"))
    assert ours == whole


OWN = """
from ispasp_jax.models.mlp import MLP

def net(num_classes):
    return MLP(num_classes, hidden=(8,))
"""


@pytest.mark.parametrize("main", [prune.main, train.main])
def test_a_module_of_the_present_folder_is_found(main, here, monkeypatch, capsys):
    name = f"own_{main.__module__.rpartition('.')[2]}"
    Path(f"{name}.py").write_text(OWN)
    path = list(sys.path)
    monkeypatch.setattr(sys, "path", [p for p in path if Path(p) != here and p])
    flags = [f"--model={name}:net", "--out=out", "--data=nowhere"]
    assert main(flags) == 2 and "unknown data source" in said(capsys)
    flags = ["--dry-run", "--image-size=8", "--num-classes=3"]
    if main is prune.main:
        assert main([f"--model={name}:net", *flags]) == 0
        assert "hidden.0" in capsys.readouterr().out
    assert str(here) not in sys.path
    # Found after all others: a file here takes no other module's place.
    Path("json.py").write_text("raise SystemExit(3)")
    assert main([f"--model={name}:net", "--data=nowhere"]) == 2


def test_a_network_that_learned_nothing_is_named(here, capsys):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (80, 8, 8, 1), np.uint8)
    labels = np.arange(80) % 4
    names = dict(x_train=images, y_train=labels, x_test=images[::-1], y_test=labels)
    np.savez("own.npz", **names)
    flags = ["--model=mlp", "--data=npz:own.npz", "--out=out"]
    assert prune.main([*flags, "--finetune-epochs=0"]) == 0
    report = json.loads(Path("out/report.json").read_text())
    chance = report["stages"][0]["top1"] < 0.34
    assert any("no better than chance" in note for note in report["notes"]) is chance
    assert chance
