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

from ispasp_jax import budget, checkpoints, criteria, curves, pruning
from ispasp_jax.commands import prune, train, walk_store
from ispasp_jax.groups import leaves

ROOT = Path(__file__).parents[1]


class Stopped(Exception):
    """What interrupts a walk here."""


def stopping(after):
    """A `progress` that lets so many parts pass and then stops the walk."""

    def progress(parts):
        for index, part in enumerate(parts):
            if index == after:
                raise Stopped
            yield part

    return progress


def shaken(network, variables):
    """A `tune` that moves every parameter, and needs no data."""
    params = jax.tree.map(lambda a: a * 1.01 + 0.003, variables["params"])
    return {**variables, "params": params}


def assert_equal(ours, expected):
    """Of two Pruned: all but the seconds, bit for bit."""
    assert ours.network == expected.network
    for a, b in zip(ours.groups, expected.groups, strict=True):
        assert list(a.cut.kept) == list(b.cut.kept)
        assert a._replace(cut=None) == b._replace(cut=None)
    pairs = zip(leaves(ours.variables), leaves(expected.variables), strict=True)
    for (path, array), (other, whole) in pairs:
        assert path == other
        np.testing.assert_array_equal(array, whole, err_msg=path)


CASES = [
    ("basic", "ispasp", "none", None),
    ("basic", "ispasp", "lsq", None),
    ("bottleneck", "obs", "lsq", None),
    ("mobile", "ispasp", "bn", None),
    ("mlp", "obs", "none", None),
    ("basic", "obs", "lsq", shaken),
    ("bottleneck", "ispasp", "none", shaken),
]


@pytest.mark.parametrize(
    "name, method, repair, tune",
    CASES,
    ids=["-".join([*c[:3], *(["tune"] if c[3] else [])]) for c in CASES],
)
def test_a_walk_goes_on_after_any_part(name, method, repair, tune, tmp_path):
    network, variables = NETWORKS[name], variables_of(NETWORKS[name])
    images = [images_of(8), images_of(5, seed=1)]
    sizes = budget.sizes(network, 0.5)
    # A part that loses nothing after one that was cut and tuned.
    sizes |= {list(sizes)[-1]: network.group_widths()[list(sizes)[-1]]}
    options = {"num_iters": 4} if method == "ispasp" else {}
    criterion = criteria.create(method, **options)

    def walk(**more):
        options = dict(repair=repair, tune=tune, carry_dense=repair == "bn") | more
        return pruning.walk(network, variables, images, sizes, criterion, **options)

    whole, parts = walk(), len(network.chain())
    for after in range(1, parts + 1):
        folder = tmp_path / str(after)
        store, _ = walk_store.open_store(folder, resumed=False)
        try:
            walk(store=store, progress=stopping(after))
        except Stopped:
            pass
        # What a kill in the middle of writing leaves behind is no part.
        (folder / f"part-{after:03d}.new").parent.mkdir(exist_ok=True)
        (folder / f"part-{after:03d}.new").write_bytes(b"half")
        store, count = walk_store.open_store(folder, resumed=True)
        assert count == after
        assert_equal(walk(store=store), whole)
        assert len(list(folder.glob("network-*"))) <= 1


def test_a_walk_goes_on_from_inside_a_part(tmp_path, monkeypatch):
    """Between a block's two groups, and while the network is being tuned."""
    network, variables = NETWORKS["bottleneck"], variables_of(NETWORKS["bottleneck"])
    images, sizes = [images_of(8)], budget.sizes(network, 0.5)
    whole = pruning.walk(network, variables, images, sizes, tune=shaken)
    real = pruning.select

    def stopped(call, calls):
        def maybe(*arguments):
            if next(calls) == 0:
                raise Stopped
            return call(*arguments)

        return maybe

    store, _ = walk_store.open_store(tmp_path / "walk", resumed=False)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(pruning, "select", stopped(real, iter((3, 2, 1, 0))))
        pruning.walk(network, variables, images, sizes, tune=shaken, store=store)
    store, count = walk_store.open_store(tmp_path / "walk", resumed=True)
    assert count == 2
    with pytest.raises(Stopped):
        tune = stopped(shaken, iter((0,)))
        pruning.walk(network, variables, images, sizes, tune=tune, store=store)
    store, count = walk_store.open_store(tmp_path / "walk", resumed=True)
    assert count == 2
    done = pruning.walk(network, variables, images, sizes, tune=shaken, store=store)
    assert_equal(done, whole)


def test_parts_that_are_damaged_are_made_again(tmp_path):
    network, variables = NETWORKS["basic"], variables_of(NETWORKS["basic"])
    images, sizes = [images_of(8)], budget.sizes(network, 0.5)
    store, _ = walk_store.open_store(tmp_path / "walk", resumed=False)
    whole = pruning.walk(network, variables, images, sizes, tune=shaken, store=store)
    parts = sorted((tmp_path / "walk").glob("part-*"))
    assert len(parts) == len(network.chain())
    parts[2].write_bytes(parts[2].read_bytes()[:-8])
    # The network of a later part cannot serve for part 1, so all is made again.
    store, count = walk_store.open_store(tmp_path / "walk", resumed=True)
    assert count == 0
    again = pruning.walk(network, variables, images, sizes, tune=shaken, store=store)
    assert_equal(again, whole)


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
        patch.setattr(curves, "measure_curves", None)
        patch.setattr(pruning, "walk", stop_walk)
        assert prune.main([*flags, "--resume"]) == 130
    with monkeypatch.context() as patch:
        patch.setattr(curves, "measure_curves", None)
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
        patch.setattr("ispasp_jax.plan.verify", stop_walk)
        assert prune.main(flags) == 130
    assert list(Path(".a.partial/walk").iterdir())
    model = checkpoints.load(trained)
    changed = jax.tree.map(lambda a: a * 1.1, model.variables)
    checkpoints.save("weights", model.replace(model.network, changed))
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
from ispasp_jax.commands import dense, prune

dense.SECONDS_BETWEEN_STATES = 0
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
    names = ("plan.json", "model/model.safetensors", "model/config.json")
    files = [(here / "out" / name).read_bytes() for name in names]
    return stages, report["groups"], files


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
    kill(killed, ".out.partial/walk/part-001.safetensors", *flags)
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
    kill(killed, ".out.partial/walk/part-001.safetensors", *flags)
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
from ispasp_jax import checkpoints
from ispasp_jax.commands.workspace import Workspace

jax.devices()
if sys.argv[1] == "renaming":
    checkpoints._swap = lambda a, b: False
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
        if not checkpoints._swap(tmp_path / "a", tmp_path / "b"):
            pytest.skip("this disk cannot exchange two folders")
    command = [sys.executable, "-W", "ignore", "-c", DELIVERY, how]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, cwd=tmp_path, env=env)
