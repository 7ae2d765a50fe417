"""Whatever stops a run, and wherever: going on gives what would have come of it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import FLAGS
from networks import NETWORKS, images_of, variables_of

import ispasp_jax
from ispasp_jax import budget, files
from ispasp_jax.cli import prune, train, walk_store
from ispasp_jax.graph import scope
from ispasp_jax.selection import criteria
from ispasp_jax.walk import Options, engine, walk
from ispasp_jax.weights import folders

ROOT = Path(__file__).parents[1]


class Stopped(Exception):
    """What interrupts a walk here."""


def stopping(after):
    """A `progress` that lets so many steps pass and then stops the walk."""

    def progress(steps):
        for index, step in enumerate(steps):
            if index == after:
                raise Stopped
            yield step

    return progress


def shaken(plan, variables):
    """A `tune` that moves every parameter, and needs no data."""
    params = jax.tree.map(lambda a: a * 1.01 + 0.003, variables["params"])
    return {**variables, "params": params}


def assert_equal(ours, expected):
    """Of two Walked: all but the seconds, bit for bit."""
    for a, b in zip(ours.groups, expected.groups, strict=True):
        assert list(a.cut.kept) == list(b.cut.kept)
        assert a._replace(cut=None) == b._replace(cut=None)
    jax.tree.map(np.testing.assert_array_equal, ours.variables, expected.variables)


def prepared(name, which="inner"):
    """A traced network, its variables, and half of each group but the last."""
    network = NETWORKS[name]
    variables = variables_of(network)
    traced = ispasp_jax.trace(network, variables, images_of(8))
    sizes = budget.sizes(scope(traced.groups, which, ()), 0.5)
    if len(sizes) > 2:  # one that loses nothing after one that was cut and tuned
        last = [*sizes][-1]
        sizes[last] = traced[last].width
    return traced, variables, sizes


CASES = [
    ("basic", "inner", "ispasp", "none", None),
    ("basic", "inner", "ispasp", "lsq", None),
    pytest.param("basic", "all", "obs", "lsq", None, marks=pytest.mark.slow),
    ("cifar", "inner", "ispasp", "bn", None),
    ("mlp", "inner", "obs", "none", None),
    ("basic", "inner", "obs", "lsq", shaken),
    pytest.param("bottleneck", "all", "l1", "none", shaken, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(
    "name, which, method, repair, tune",
    CASES,
    ids=[
        "-".join([*case[:4], *(["tune"] if case[4] else [])])
        for case in (getattr(case, "values", case) for case in CASES)
    ],
)
def test_a_walk_goes_on_after_any_step(name, which, method, repair, tune, tmp_path):
    traced, variables, sizes = prepared(name, which)
    images = [images_of(8), images_of(5, seed=1)]
    options = {"num_iters": 4} if method == "ispasp" else {}
    criterion = criteria.create(method, **options)

    def walked(**more):
        options = dict(repair=repair, tune=tune, carry_dense=repair == "bn") | more
        return walk(
            traced, variables, images, sizes, criterion, options=Options(**options)
        )

    store, _ = walk_store.open_store(tmp_path / "whole", resumed=False)
    whole, files = walked(store=store), [*(tmp_path / "whole").glob("step-*")]
    assert_equal(whole, walked())
    counts = []
    for after in range(100):
        folder = tmp_path / str(after)
        store, _ = walk_store.open_store(folder, resumed=False)
        try:
            walked(store=store, progress=stopping(after))
            break
        except Stopped:
            pass
        # What a kill in the middle of writing leaves behind is no step.
        (folder / f".step-{after:03d}.new").parent.mkdir(exist_ok=True)
        (folder / f".step-{after:03d}.new").write_bytes(b"half")
        store, count = walk_store.open_store(folder, resumed=True)
        if count in counts:  # nothing was to be done at this step
            continue
        counts.append(count)
        assert_equal(walked(store=store), whole)
        assert len(list(folder.glob("network-*"))) <= 1
    assert counts == [*range(counts[0], len(files))]
    assert counts[0] == (which == "all")


def test_a_walk_goes_on_from_inside_a_step(tmp_path, monkeypatch):
    """Between selecting and keeping, and while the network is being tuned."""
    traced, variables, sizes = prepared("bottleneck")
    images, criterion = [images_of(8)], criteria.create("l1")

    def walked(**more):
        options = {"tune": shaken, **more}
        return walk(
            traced, variables, images, sizes, criterion, options=Options(**options)
        )

    whole, real = walked(), engine.select

    def stopped(call, calls):
        def maybe(*arguments):
            if next(calls) == 0:
                raise Stopped
            return call(*arguments)

        return maybe

    store, _ = walk_store.open_store(tmp_path / "walk", resumed=False)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(engine, "select", stopped(real, iter((3, 2, 0))))
        walked(store=store)
    store, count = walk_store.open_store(tmp_path / "walk", resumed=True)
    assert count == 2
    with pytest.raises(Stopped):
        walked(tune=stopped(shaken, iter((0,))), store=store)
    store, count = walk_store.open_store(tmp_path / "walk", resumed=True)
    assert count == 2
    assert_equal(walked(store=store), whole)


def test_steps_that_are_damaged_are_made_again(tmp_path):
    traced, variables, sizes = prepared("basic")
    images, criterion = [images_of(8)], criteria.create("l1")

    def walked(store):
        return walk(
            traced,
            variables,
            images,
            sizes,
            criterion,
            options=Options(tune=shaken, store=store),
        )

    store, _ = walk_store.open_store(tmp_path / "walk", resumed=False)
    whole = walked(store)
    steps = sorted((tmp_path / "walk").glob("step-*"))
    assert len(steps) == sum(size < traced[name].width for name, size in sizes.items())
    steps[1].write_bytes(steps[1].read_bytes()[:-8])
    # The network of a later step cannot serve for step 0, so all is made again.
    store, count = walk_store.open_store(tmp_path / "walk", resumed=True)
    assert count == 0
    assert_equal(walked(store), whole)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A perceptron trained on digits for an epoch."""
    folder = tmp_path_factory.mktemp("trained") / "mlp"
    assert train.main(["--model", "mlp", "--epochs", "1", "--out", str(folder)]) == 0
    return folder


def stop_walk(*_, **__):
    raise KeyboardInterrupt


def test_curves_and_sizes_are_kept(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--model=mlp", f"--weights={trained}", "--target=macs=60%", "--out=a"]
    with monkeypatch.context() as patch:
        patch.setattr(budget, "solve", stop_walk)
        assert prune.main(flags) == 130
    held = json.loads(Path(".a.partial/curves.json").read_text())
    assert not Path(".a.partial/sizes.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr("ispasp_jax.cli.budgets.measure_curves", None)
        patch.setattr("ispasp_jax.cli.cuts.walk", stop_walk)
        assert prune.main([*flags, "--resume"]) == 130
    with monkeypatch.context() as patch:
        patch.setattr("ispasp_jax.cli.budgets.measure_curves", None)
        patch.setattr(budget, "solve", None)
        assert prune.main([*flags, "--resume"]) == 0
    assert json.loads(Path("a/curves.json").read_text()) == held
    report = json.loads(Path("a/report.json").read_text())
    assert report["budget"]["curves"] == "measured"
    assert prune.main([*flags[:-1], "--out=b"]) == 0
    names = ("plan.json", "curves.json", "model/model.safetensors")
    for name in names:
        assert Path("a", name).read_bytes() == Path("b", name).read_bytes()


def test_another_networks_parts_are_left_alone(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "weights")
    flags = ["--model=mlp", "--weights=weights", "--out=a"]
    with monkeypatch.context() as patch:
        patch.setattr("ispasp_jax.graph.plans.verify", stop_walk)
        assert prune.main(flags) == 130
    assert list(Path(".a.partial/walk").iterdir())
    model = folders.load(trained)
    changed = jax.tree.map(lambda a: a * 1.1, model.variables)
    folders.save("weights", model.replace(model.network, changed))
    assert prune.main([*flags, "--resume"]) == 0
    assert "the weights are not the stopped run's" in capsys.readouterr().err
    assert prune.main([*flags[:-1], "--out=b"]) == 0
    ours, whole = (Path(out, "model/model.safetensors") for out in "ab")
    assert ours.read_bytes() == whole.read_bytes()


#: A network with more than one block that compiles in no time, and the command, keeping
#: a state after every epoch.
NETWORK = """
from ispasp_jax.models.resnet import ResNet

def create(num_classes, stem="small"):
    return ResNet(num_classes, depths=(2, 1), base=8, stem=stem, shortcut="pad")
"""
COMMAND = """
import sys
from ispasp_jax.cli import learning, prune

learning.SECONDS_BETWEEN_STATES = 0
sys.exit(prune.main(sys.argv[1:]))
"""


FLAGS_OF_RUN = ("--keep=0.5", "--finetune-epochs=3")


def start(here, *flags):
    """prune.py in a process of its own."""
    here.mkdir(exist_ok=True)
    (here / "small_network.py").write_text(NETWORK)
    command = [sys.executable, "-c", COMMAND, "--model=small_network:create", *flags]
    return subprocess.Popen(
        [*command, "--calibration-images=64", "--batch-size=256", "--out=out"],
        cwd=here,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{here}",
            "XLA_FLAGS": " ".join(FLAGS[1:]),  # one device: eight take long to compile
        },
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def finish(here, *flags):
    """The command's stderr, once it has ended well."""
    process = start(here, *flags)
    said = process.communicate()[1]
    assert process.returncode == 0, said
    return said


def kill(here, pattern, *flags):
    """Kills the command as soon as a file of that pattern is there."""
    process = start(here, *flags)
    while process.poll() is None and not list(here.glob(pattern)):
        time.sleep(0.002)
    process.kill()
    said = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, said
    return said


def results(here):
    """All that two runs of the same command have in common."""
    report = json.loads((here / "out/report.json").read_text())
    stages = [(s["stage"], s["top1"], s["loss"]) for s in report["stages"]]
    names = ("plan.json", "model/model.safetensors")
    files = [(here / "out" / name).read_bytes() for name in names]
    config = json.loads((here / "out/model/config.json").read_text())
    for key in ("program", "sums"):  # a program says where in the sources it was made
        del config[key]
    return stages, report["groups"], files, config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Where a run ended that was killed in training, in the walk and in fine-tuning;
    and where one ended that was not.
    """
    folder = tmp_path_factory.mktemp("processes")
    flags, killed, whole = [*FLAGS_OF_RUN], folder / "killed", folder / "whole"
    training = "runs/.small_network_create-digits-dense.partial/states/[0-9]"
    kill(killed, training, *flags)
    assert not (killed / "out").exists()
    flags.append("--resume")
    kill(killed, ".out.partial/walk/step-001.safetensors", *flags)
    said = kill(killed, ".out.partial/states/[0-9]", *flags)
    assert "of the network's parts are from a stopped run" in said
    assert "fine-tuning: resuming after epoch" in finish(killed, *flags)
    finish(whole, *FLAGS_OF_RUN)
    return killed, whole


def test_a_run_killed_again_and_again_gives_the_same(run):
    killed, whole = run
    assert results(killed) == results(whole)
    assert not list(killed.glob(".*")) and not list(killed.glob("runs/.*"))


@pytest.mark.slow
def test_a_run_killed_with_fine_tuning_between_blocks_gives_the_same(run):
    """From the network trained before; until the end the result is the one before."""
    flags = ["--keep=0.4", "--block-finetune-epochs=1", "--finetune-epochs=0"]
    killed, whole = run
    before = results(killed)
    kill(killed, ".out.partial/walk/step-001.safetensors", *flags)
    kill(killed, ".out.partial/walk/network-002.safetensors", *flags, "--resume")
    assert results(killed) == before
    finish(killed, *flags, "--resume")
    finish(whole, *flags)
    assert results(killed) == results(whole) != before


#: Delivers a result over another, in forked processes that kill themselves at the
#: first, second, ... change of the disk, and looks at what is there afterwards.
DELIVERY = """
import os, shutil, signal, sys
from pathlib import Path
import jax
from ispasp_jax import files
from ispasp_jax.cli.workspace import Workspace

jax.devices()
if sys.argv[1] == "renaming":
    files._swap = lambda a, b: False
OUT, FILES = Path("out"), {"report.json": "{}", "model/config.json": "[]"}
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "ctypes.dlsym", "shutil")

def fill(folder, text):
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

def content(folder):
    return {p.read_text() for p in folder.rglob("*.json")}, len(list(folder.rglob("*")))

def die(event, _, left=[0]):
    if event.startswith(CHANGES):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

kills, swapped = 0, 0
while True:
    shutil.rmtree(OUT, ignore_errors=True)
    fill(OUT, "old")
    work = Workspace(OUT, {}, False)
    work.begin()
    fill(work.folder, "new")
    child = os.fork()
    if not child:
        sys.addaudithook(lambda e, a, left=[kills + 1]: die(e, a, left))
        work.deliver(["report.json", "model"], OUT)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if not status:
        break
    kills += 1
    after = Workspace(OUT, {}, True)
    if OUT.exists():
        assert content(OUT) in (({"old"}, 3), ({"new"}, 3)), content(OUT)
    else:  # without swapping, between two renamings
        assert sys.argv[1] == "renaming" and after.resumed
        swapped += 1
    if not after.resumed:
        assert content(OUT)[0] == {"new"}
    after.begin()
    if after.resumed:
        after.deliver(["report.json", "model"], OUT)
    after.remove()
    assert content(OUT) == ({"new"}, 3)
    hidden = list(Path().glob(".*"))
    assert not hidden or sys.argv[1] == "renaming", hidden
assert kills > 8, kills
assert swapped <= 1
"""


@pytest.mark.parametrize("how", ["swapping", "renaming"])
def test_a_kill_while_delivering_leaves_the_old_or_the_new(how, tmp_path):
    if how == "swapping":
        for name in "ab":
            (tmp_path / name).mkdir()
        if not files._swap(tmp_path / "a", tmp_path / "b"):
            pytest.skip("this disk cannot exchange two folders")
    command = [sys.executable, "-W", "ignore", "-c", DELIVERY, how]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, cwd=tmp_path, env=env)
