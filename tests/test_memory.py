"""A limit on the memory of activations moves them, and changes no result."""

import gc
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import NETWORKS, SHAPE, images_of, variables_of

from ispasp_jax import budget, criteria, curves, devices, memory, pruning, streams
from ispasp_jax.commands import prune
from ispasp_jax.models.network import subtree
from ispasp_jax.streams import Lazy

#: Images a batch, and batches; no other array here begins with 16.
BATCH, BATCHES = 16, 3


def batches():
    return np.split(images_of(BATCH * BATCHES), BATCHES)


def nbytes(activations):
    return sum(array.nbytes for array in activations)


def largest_inputs(network, variables):
    """Bytes that a stream needs where no hidden activations are kept."""
    stream, most = streams.start(batches()), 0
    for part in network.chain():
        stream = stream.enter(part.module, subtree(variables, part))
        before, u = nbytes(stream.x), 0
        for i in range(len(getattr(part.module, "groups", ()))):
            behind = stream.pass_pair(i)
            most = max(most, before + u + nbytes(behind.u))
            stream, u = behind, nbytes(behind.u)
        stream = stream.leave()
        most = max(most, before + u + nbytes(stream.x))
    return most


@pytest.fixture
def kinds(monkeypatch):
    """What the walk kept: (pair inputs, hidden) are Lazy."""
    seen, real = [], streams.Stream.hidden

    def hidden(self, i):
        found = real(self, i)
        seen.append((isinstance(self.u, Lazy), isinstance(found, Lazy)))
        return found

    monkeypatch.setattr(streams.Stream, "hidden", hidden)
    return seen


@pytest.mark.parametrize(
    "name, repair, method, mesh",
    [
        ("basic", "none", "ispasp", None),
        ("basic", "lsq", "ispasp", 8),
        ("bottleneck", "lsq", "obs", None),
        ("tf_mobile", "bn", "ispasp", None),
        ("mlp", "lsq", "ispasp", None),
    ],
)
def test_the_walk_is_the_same_bit_for_bit(name, repair, method, mesh, kinds):
    network = NETWORKS[name]
    variables, sizes = variables_of(network), budget.sizes(network, 0.5)
    mesh = mesh and devices.mesh(mesh)
    carried = 2 if repair == "lsq" or method == "obs" else 1
    limit = carried * largest_inputs(network, variables) / (mesh.size if mesh else 1)

    def walk(memory):
        kinds.clear()
        found = pruning.walk(
            network,
            variables,
            batches(),
            sizes,
            criteria.create(method),
            repair=repair,
            mesh=mesh,
            memory=memory,
        )
        return found, set(kinds)

    whole, where = walk(None)
    assert where == {(False, False)}
    some, where = walk(int(limit / 2))
    assert len(where) > 1 and ((False, True) in where or name == "mlp")
    host, where = walk(0)
    assert where == {(True, True)}
    for found in (some, host):
        for a, b in zip(found.groups, whole.groups, strict=True):
            np.testing.assert_array_equal(a.cut.kept, b.cut.kept)
            assert (a.relative_residual, a.drift) == (b.relative_residual, b.drift)
        jax.tree.map(
            np.testing.assert_array_equal, dict(found.variables), dict(whole.variables)
        )


def test_curves_are_the_same_bit_for_bit():
    network = NETWORKS["bottleneck"]
    variables, mesh = variables_of(network), devices.mesh(8)
    whole, limited = (
        curves.measure_curves(network, variables, batches(), memory=memory, mesh=mesh)
        for memory in (None, 0)
    )
    jax.tree.map(np.testing.assert_array_equal, whole, limited)


def test_tuning_between_blocks_starts_from_the_images_again():
    network = NETWORKS["basic"]
    variables, sizes = variables_of(network), budget.sizes(network, 0.5)

    def tune(network, variables):
        return jax.tree.map(lambda a: a * 1.01, variables)

    whole, limited = (
        pruning.walk(network, variables, batches(), sizes, tune=tune, memory=memory)
        for memory in (None, 0)
    )
    jax.tree.map(np.testing.assert_array_equal, whole.variables, limited.variables)


def test_hidden_activations_are_kept_as_long_as_there_is_room():
    """The bound is that of input, hidden activations and what their consumer makes."""
    network = NETWORKS["basic"]
    variables, (stem, part, *_) = variables_of(network), network.chain()
    stream = streams.start(batches()).enter(stem.module, subtree(variables, stem))
    stream = stream.leave().enter(part.module, subtree(variables, part))
    hidden = stream.hidden(0)
    needed = nbytes(stream.x) + nbytes(hidden) + nbytes(stream.pass_pair(0).u)
    kept = stream._replace(memory=needed).hidden(0)
    lazy = stream._replace(memory=needed - 1).hidden(0)
    assert isinstance(kept, list) and isinstance(lazy, Lazy) and len(lazy) == BATCHES
    assert streams.width(lazy) == streams.width(kept) == 10
    for a, b in zip(lazy, kept, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(IndexError):
        lazy[BATCHES]


@pytest.mark.parametrize("name", ["basic", "mobile", "mlp"])
def test_the_estimate_is_what_the_stream_holds(name):
    """Without least squares, at the pair that needs most; with them about twice."""
    network = NETWORKS[name]
    variables, count = variables_of(network), BATCH * BATCHES
    stream, most = streams.start(batches()), largest_inputs(network, variables)
    for part in network.chain():
        stream = stream.enter(part.module, subtree(variables, part))
        for i in range(len(getattr(part.module, "groups", ()))):
            hidden = stream.hidden(i)
            behind = stream.consume(i, hidden)
            held = nbytes(stream.x) + nbytes(hidden) + nbytes(behind.u)
            held += 0 if stream.u is stream.x else nbytes(stream.u)
            most, stream = max(most, held), behind
        stream = stream.leave()

    def estimated(**options):
        return memory.estimate(network, variables, SHAPE, count, **options)

    assert estimated(least_squares=False) == most
    assert most < estimated() < 2 * most + 8 * 5 * 200**2
    assert estimated(least_squares=False, limit=1000) == 1000
    assert 2 * estimated(least_squares=False, dtype=jnp.bfloat16) == most


@pytest.mark.parametrize("repair", ["none", "lsq"])
def test_the_walk_lets_go_of_what_it_has_passed(repair, monkeypatch):
    """Live arrays of activations: block inputs at a boundary; and inside, what the
    pair's selection needs, and nothing of the pairs and blocks before.
    """
    network = NETWORKS["bottleneck"]
    variables, images = variables_of(network), batches()
    streams_carried = 2 if repair == "lsq" else 1

    def alive():
        gc.collect()
        shapes = [a.shape for a in jax.live_arrays() if a.ndim > 1]
        return sum(shape[0] == BATCH for shape in shapes) / BATCHES - before

    before = 0
    before = alive()
    boundary, inside, real = [], [], pruning.select

    def select(name, i, *rest):
        inside.append((i, alive()))
        return real(name, i, *rest)

    def progress(parts):
        for part in parts:
            boundary.append(alive())
            yield part

    monkeypatch.setattr(pruning, "select", select)
    sizes = budget.sizes(network, 0.5)
    pruning.walk(network, variables, images, sizes, repair=repair, progress=progress)
    assert boundary[0] <= 1  # both streams share the images
    assert set(boundary[1:]) == {streams_carried}
    # Block inputs, the pair's hidden activations, and u: of the pair before (not the
    # first's, which are the block's), and the dense network's behind this pair.
    dense = 1 if repair == "lsq" else 0
    for i, count in inside:
        assert count <= streams_carried + 1 + (i > 0) + dense
    assert alive() == 0


def test_prune_with_a_limit_gives_the_same_arrays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--model=mlp", "--calibration-images=200"]
    assert prune.main([*flags, "--out=a", "--calibration-memory=0.0001"]) == 0
    assert prune.main([*flags, "--out=b"]) == 0
    a, b = (Path(out, "model/model.safetensors").read_bytes() for out in "ab")
    assert a == b
    a, b = (json.loads(Path(out, "report.json").read_text()) for out in "ab")
    assert a["groups"] == b["groups"]
    assert prune.main([*flags, "--calibration-memory=-1"]) == 2
