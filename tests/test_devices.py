"""Many devices and several processes give what one does: in training, evaluation, the
walk and the commands.
"""

import functools
import json
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import NETWORKS, images_of, variables_of
from safetensors.numpy import load_file

import ispasp_jax
from ispasp_jax import budget, devices, training
from ispasp_jax.cli import peers, prune, train
from ispasp_jax.data import Batch
from ispasp_jax.graph import scope
from ispasp_jax.graph.by_hand import leaves
from ispasp_jax.walk import Options, flat, streams, walk
from ispasp_jax.walk.sites import sites as walk_sites

ROOT = Path(__file__).parents[1]


def labelled(n, seed=0, real=None):
    """Random images and labels; those past the first `real` weigh nothing."""
    weight = np.arange(n) < (n if real is None else real)
    labels = np.random.default_rng(seed).integers(0, 4, n).astype(np.int32)
    return Batch(images_of(n, seed=seed), labels, weight.astype(np.float32))


def assert_close(ours, theirs, rtol):
    """Every array, relative to its own largest entry."""
    for (path, a), (_, b) in zip(leaves(ours), leaves(theirs), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(
            a, b, rtol=0, atol=rtol * max(np.abs(b).max(), 1e-30), err_msg=path
        )


@pytest.mark.parametrize("count", [1, 3, 8])
def test_placing_fills_up_with_rows_that_weigh_nothing(count):
    batch = labelled(10, real=9)
    placed = devices.place(devices.mesh(count), batch)
    assert len(placed.weight) == -(-10 // count) * count
    for ours, theirs in zip(placed, batch, strict=True):
        assert len(ours.sharding.device_set) == count
        np.testing.assert_array_equal(ours[:10], theirs)
        assert not np.asarray(ours[10:]).any()
    np.testing.assert_array_equal(
        devices.rows(placed.image, placed.weight), batch.image[:9]
    )


@pytest.mark.parametrize(
    ("name", "size"),
    [("basic", 16), ("mlp", 20), pytest.param("mobile", 20, marks=pytest.mark.slow)],
)
def test_a_training_step_is_the_same_on_eight_devices(name, size):
    """Batch norm's moments with it, and a batch that does not divide by eight."""
    network = NETWORKS[name]
    variables = variables_of(network)
    recipe = training.Recipe(1, 0.05, ema=0.9)
    transformation = training.optimizer(recipe, 3)
    step = functools.partial(training.train_step, network, transformation, recipe)
    batch = labelled(size, real=size - 3)
    start = training.start(network, recipe, transformation, variables)
    copies = (jax.tree.map(jnp.array, start) for _ in range(2))  # a step eats its state
    one, loss = step(next(copies), batch)
    mesh = devices.mesh(8)
    spread = devices.place(mesh, batch)
    many, spread_loss = step(devices.replicate(mesh, next(copies)), spread, None, size)
    np.testing.assert_allclose(spread_loss, loss, rtol=1e-5)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), one.variables, variables)
    assert all(jax.tree.leaves(moved.get("batch_stats", {})))
    assert any(jax.tree.leaves(moved["params"]))
    assert_close(many.variables, one.variables, 1e-5)
    assert_close(many.ema, one.ema, 1e-5)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(many))


def test_fitting_compiles_one_step_for_a_mesh():
    network, recipe = NETWORKS["cifar"], training.Recipe(2, 0.05)
    before = training.loop._train_step._cache_size()
    training.fit(
        network,
        variables_of(network),
        lambda epoch: [labelled(12, seed) for seed in (epoch, 7)],
        2,
        recipe,
        mesh=devices.mesh(8),
    )
    assert training.loop._train_step._cache_size() == before + 1


@pytest.mark.parametrize("count", [1, 3, 8])
def test_evaluation_is_the_same_on_many_devices(count):
    network = NETWORKS["mobile"]
    variables = variables_of(network)
    batches = [labelled(10), labelled(10, seed=1, real=3)]
    alone = training.evaluate(network, variables, batches)
    spread = training.evaluate(network, variables, batches, devices.mesh(count))
    assert spread.top1 == alone.top1
    assert spread.loss == pytest.approx(alone.loss, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "which", "repair"),
    [
        ("basic", "all", "bn"),
        pytest.param("bottleneck", "inner", "lsq", marks=pytest.mark.slow),
        ("mlp", "inner", "lsq"),
    ],
)
def test_the_walk_is_the_same_on_eight_devices(name, which, repair):
    """Of batches that do not divide by eight."""
    network = NETWORKS[name]
    variables, images = variables_of(network), [images_of(20), images_of(11, seed=1)]
    traced = ispasp_jax.trace(network, variables, images[0])
    sizes = budget.sizes(scope(traced.groups, which, ()), 0.5)
    walked = functools.partial(walk, traced, variables, images, sizes)
    one = walked(options=Options(repair=repair))
    many = walked(options=Options(repair=repair, mesh=devices.mesh(8)))
    for ours, theirs in zip(many.groups, one.groups, strict=True):
        np.testing.assert_array_equal(ours.cut.kept, theirs.cut.kept)
        assert ours.relative_residual == pytest.approx(
            theirs.relative_residual, rel=1e-4
        )
    assert_close(many.variables, one.variables, 1e-3)


def test_the_walk_takes_images_that_are_spread_already():
    network, mesh = NETWORKS["basic"], devices.mesh(8)
    variables, images = variables_of(network), [images_of(16), images_of(8, seed=1)]
    spread = [devices.place(mesh, array) for array in images]
    one, many = (
        ispasp_jax.prune(network, variables, x, 0.5, repair="none")
        for x in (images, spread)
    )
    assert_close(many.variables, one.variables, 1e-5)


@pytest.mark.parametrize("memory", [None, 0])
def test_activations_stay_spread_through_the_walk(memory):
    network, images = NETWORKS["basic"], images_of(16)
    variables = variables_of(network)
    program = flat.flatten(ispasp_jax.trace(network, variables, images))
    weights = flat.arrays(program, variables)
    here = streams.start(program, weights, [images], devices.mesh(8), memory)
    for site in walk_sites(program):
        here = here.hidden(site.place)
        for value, batches in here.live.items():
            if value.shape[:1] == (16,):
                shards = batches[0].addressable_shards
                assert [len(shard.data) for shard in shards] == [2] * 8


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A perceptron trained on digits by one device."""
    folder = tmp_path_factory.mktemp("trained") / "mlp"
    flags = ["--model=mlp", "--epochs=4", "--devices=1", f"--out={folder}"]
    assert train.main(flags) == 0
    return folder


@pytest.fixture(scope="module")
def pruned(trained, tmp_path_factory):
    """The same pruned and fine-tuned by one device."""
    out = tmp_path_factory.mktemp("pruned") / "one"
    assert prune.main([*flags_of(trained), f"--out={out}", "--devices=1"]) == 0
    return out


def flags_of(trained):
    return ["--model=mlp", f"--weights={trained}", "--keep=0.3", "--finetune-epochs=1"]


def assert_same_run(ours, theirs):
    """Same support, same accuracy but for an image or two, close weights."""
    assert (ours / "plan.json").read_text() == (theirs / "plan.json").read_text()
    reports = [json.loads((run / "report.json").read_text()) for run in (ours, theirs)]
    stages = [[stage["top1"] for stage in report["stages"]] for report in reports]
    np.testing.assert_allclose(*stages, atol=2.5 / 360)
    arrays = [load_file(run / "model" / "model.safetensors") for run in (ours, theirs)]
    assert_close(*arrays, 1e-3)


def test_three_devices_train_and_prune_as_one_does(trained, pruned, tmp_path):
    """Three do not divide the batch of 64."""
    flags = ["--model=mlp", "--epochs=4", "--devices=3", f"--out={tmp_path / 'dense'}"]
    assert train.main(flags) == 0
    assert_close(
        *(
            load_file(run / "model.safetensors")
            for run in (tmp_path / "dense", trained)
        ),
        1e-3,
    )
    assert (
        prune.main([*flags_of(trained), f"--out={tmp_path / 'a'}", "--devices=3"]) == 0
    )
    assert_same_run(tmp_path / "a", pruned)


@pytest.mark.parametrize("count", ["9", "0", "some"])
def test_a_bad_number_of_devices_is_one_sentence(count, tmp_path, capsys):
    for main in (train.main, prune.main):
        flags = ["--model=mlp", f"--devices={count}", f"--out={tmp_path / 'a'}"]
        assert main(flags) == 2
        said = capsys.readouterr().err
        wanted = "has 8 here; give fewer" if count == "9" else "not a whole number"
        assert wanted in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def started(count, flags, folder, environment=()):
    """`python prune.py FLAGS` in some processes, running."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [
        subprocess.Popen(
            [sys.executable, "-W", "error", str(ROOT / "prune.py"), *flags],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(number),
                **dict(environment),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]


def processes(*arguments):
    """What becomes of `started` processes: exit code, stdout and stderr of each."""
    running = started(*arguments)
    try:
        said = [process.communicate(timeout=240) for process in running]
    finally:
        for process in running:
            process.kill()
    return [
        (process.returncode, *both) for process, both in zip(running, said, strict=True)
    ]


def test_two_processes_prune_as_one_does(trained, pruned, tmp_path):
    flags = [*flags_of(trained), "--distributed", "--out=two"]
    first, second = processes(2, flags, tmp_path)
    assert first[0] == 0, first
    assert second[0] == 0, second
    assert "hidden.0" in first[1] and "saved in two" in first[2]
    assert not second[1] and not second[2]
    assert [path.name for path in tmp_path.iterdir()] == ["two"]
    assert_same_run(tmp_path / "two", pruned)


BAD = {
    "address": ({"JAX_COORDINATOR_ADDRESS": "localhost"}, "is not HOST:PORT"),
    "number": ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES=two is not"),
    "id": ({"JAX_PROCESS_ID": "7"}, "process_id=7"),
}


@pytest.mark.parametrize("case", BAD)
def test_processes_that_cannot_find_each_other_say_so(case, tmp_path):
    environment, message = BAD[case]
    flags = ["--model=mlp", "--distributed", "--out=a"]
    ((code, out, error),) = processes(1, flags, tmp_path, environment.items())
    assert code == 2 and message in error and not out
    assert not list(tmp_path.iterdir())


LOST = "--distributed: another process of this run has ended or cannot be reached"


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_loss_of_a_process_ends_the_others_with_a_sentence(
    victim, trained, tmp_path
):
    flags = [f"--weights={trained}", "--model=mlp", "--finetune-epochs=9999"]
    running = started(2, [*flags, "--distributed", "--out=two"], tmp_path)
    try:
        for line in running[0].stderr:
            if line.startswith("fine-tuning: epoch 1/"):
                break
        running[victim].kill()
        said = running[1 - victim].communicate(timeout=100)
    finally:
        for process in running:
            process.kill()
        running[victim].communicate()
    assert running[1 - victim].returncode == peers.LOST
    lines = [line for line in said[1].splitlines() if "fine-tuning" not in line]
    assert not said[0] and len(lines) == 1 and lines[0].startswith(LOST)


#: What a command does once it is guarded -> exit code, and what its stderr holds.
ENDS = {
    "aborted by jaxlib": (
        "os.write(2, b'F1125 client.h:80] distributed service detected fatal errors')\n"
        "os.abort()",
        3,
        LOST,
    ),
    "aborted by another": ("os.write(2, b'free(): bad')\nos.abort()", 134, "free()"),
    "left after an error": ("peers.tell(2)\nos.abort()", 2, ""),
    "left too late": ("peers.tell(3)\ntime.sleep(60)", 3, ""),
    "left, done": ("peers.tell(0)\nos.write(1, b'[Gloo] Rank 0')\nos.abort()", 0, ""),
    "own words": ("print('mine', file=sys.stderr)\npeers.tell(0)", 0, "mine"),
    "exit": ("sys.exit(7)", 7, ""),
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="it splits the process")
@pytest.mark.parametrize("case", ENDS)
def test_a_guarded_command_ends_as_it_says(case):
    does, code, words = ENDS[case]
    program = "\n".join(
        [
            "import argparse, os, sys, time",
            "from ispasp_jax.cli import peers",
            "peers.guard(argparse.Namespace(distributed=True))",
            does,
        ]
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == code and not ended.stdout
    assert words in ended.stderr and bool(words) == bool(ended.stderr)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer"), 1),
        (RuntimeError("INTERNAL: NCCL operation failed: remote process exited"), 1),
        (RuntimeError("UNAVAILABLE: Socket closed"), 1),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"), 0),
        (ValueError("no peer of mine"), 0),
        (KeyError("barrier"), 0),
    ],
)
def test_what_is_the_loss_of_a_process(error, lost, monkeypatch):
    assert not peers.is_loss(error)  # nobody waits for this one
    monkeypatch.setattr(peers, "_told", 0)
    assert peers.is_loss(error) == bool(lost)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it asks glibc")
def test_freed_memory_stays_with_the_process():
    """What 128 MB leave behind when they go: nothing, or all of it."""
    code = """
import numpy as np
from ispasp_jax import devices
{}
before = int(open("/proc/self/statm").read().split()[1])
np.ones(2**24)
print((int(open("/proc/self/statm").read().split()[1]) - before) * 4096)
"""
    left = [
        int(subprocess.check_output([sys.executable, "-c", code.format(first)]))
        for first in ("", "devices.keep_freed_memory()")
    ]
    assert left[0] < 2**25 < 2**26 < left[1]
