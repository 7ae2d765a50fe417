"""A limit on the memory of activations moves them, and changes no result."""

import gc
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import NETWORKS, images_of, variables_of

import ispasp_jax
from ispasp_jax import budget, devices, walk
from ispasp_jax.cli import prune
from ispasp_jax.selection import criteria
from ispasp_jax.walk import engine, flat, streams
from ispasp_jax.walk.batches import Lazy
from ispasp_jax.walk.sites import Site

#: Images a batch, and batches; no other array here begins with 16.
BATCH, BATCHES = 16, 3


def batches():
    return np.split(images_of(BATCH * BATCHES), BATCHES)


def nbytes(activations):
    return sum(array.nbytes for array in activations)


def prepared(name):
    """A network traced on batches of these, its variables, and half of each group."""
    network = NETWORKS[name]
    variables = variables_of(network)
    traced = ispasp_jax.trace(network, variables, batches()[0])
    groups = ispasp_jax.graph.scope(traced.groups, "inner", ())
    return traced, variables, budget.sizes(groups, 0.5)


@pytest.fixture
def kinds(monkeypatch):
    """Whether what lies before a consumer is Lazy: of all its live values."""
    seen, real = [], streams.Stream.hidden

    def hidden(self, place, watch=None):
        found = real(self, place, watch)
        seen.append({isinstance(a, Lazy) for a in found.live.values()})
        return found

    monkeypatch.setattr(streams.Stream, "hidden", hidden)
    return seen


@pytest.mark.parametrize(
    "name, repair, method, mesh",
    [
        ("basic", "none", "ispasp", None),
        ("basic", "lsq", "ispasp", 8),
        pytest.param("bottleneck", "lsq", "obs", None, marks=pytest.mark.slow),
        ("cifar", "bn", "ispasp", None),
        ("mlp", "lsq", "ispasp", None),
    ],
)
def test_the_walk_is_the_same_bit_for_bit(name, repair, method, mesh, kinds):
    traced, variables, sizes = prepared(name)
    mesh = mesh and devices.mesh(mesh)
    carried = 2 if repair == "lsq" or method == "obs" else 1
    program = flat.flatten(traced)
    most = max(program.size(place) for place in range(len(program.equations)))
    limit = carried * most * BATCHES / (mesh.size if mesh else 1)

    def walked(memory):
        kinds.clear()
        found = walk.walk(
            traced,
            variables,
            batches(),
            sizes,
            criteria.create(method),
            options=walk.Options(repair=repair, mesh=mesh, memory=memory),
        )
        return found, set().union(*kinds)

    whole, where = walked(None)
    assert where == {False}
    some, where = walked(int(limit / 2))
    assert where == {True, False} or name == "mlp"
    host, where = walked(0)
    assert where == {True}
    for found in (some, host):
        for a, b in zip(found.groups, whole.groups, strict=True):
            np.testing.assert_array_equal(a.cut.kept, b.cut.kept)
            assert (a.relative_residual, a.drift) == (b.relative_residual, b.drift)
        jax.tree.map(np.testing.assert_array_equal, found.variables, whole.variables)


def test_a_stream_is_selected_the_same_bit_for_bit():
    traced, variables, _ = prepared("basic")
    sizes = budget.sizes(traced.groups, 0.5)
    whole, limited = (
        walk.walk(
            traced,
            variables,
            batches(),
            sizes,
            options=walk.Options(memory=memory, repair="lsq"),
        )
        for memory in (None, 0)
    )
    assert "stream.conv1" in whole.plan
    jax.tree.map(np.testing.assert_array_equal, whole.variables, limited.variables)


def test_curves_are_the_same_bit_for_bit():
    traced, variables, _ = prepared("bottleneck")
    whole, limited = (
        walk.measure_curves(traced, variables, batches(), traced.groups, memory=memory)
        for memory in (None, 0)
    )
    assert len(whole) == len(traced)
    jax.tree.map(np.testing.assert_array_equal, whole, limited)


def test_tuning_between_groups_starts_from_the_images_again():
    traced, variables, sizes = prepared("basic")

    def tune(plan, variables):
        return jax.tree.map(lambda a: a * 1.01, variables)

    whole, limited = (
        walk.walk(
            traced,
            variables,
            batches(),
            sizes,
            options=walk.Options(tune=tune, memory=memory),
        )
        for memory in (None, 0)
    )
    jax.tree.map(np.testing.assert_array_equal, whole.variables, limited.variables)


def test_what_is_alive_before_a_consumer_is_kept_as_long_as_there_is_room():
    """What the waist on the way there holds counts, too."""
    traced, variables, _ = prepared("basic")
    program = flat.flatten(traced)
    weights = flat.arrays(program, variables)
    (site,) = walk.sites.of_leaf(walk.sites.sites(program), traced["layer1.0"].atom)
    start = streams.start(program, weights, batches())
    stream = start.to(program.waist(0, site.place))
    there = stream.hidden(site.place)
    alive = {id(a): a for s in (stream, there) for a in s.live.values()}
    needed = sum(nbytes(a) for a in alive.values())
    kept = stream._replace(memory=needed).hidden(site.place).live[site.hidden]
    lazy = stream._replace(memory=needed - 1).hidden(site.place).live[site.hidden]
    assert isinstance(kept, list) and isinstance(lazy, Lazy) and len(lazy) == BATCHES
    for a, b in zip(lazy, kept, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(IndexError):
        lazy[BATCHES]


def test_a_stream_of_its_own_spends_no_batch_of_another():
    """What others hold stays whole, and it comes to the same."""
    traced, variables, _ = prepared("basic")
    program = flat.flatten(traced)
    weights, end = flat.arrays(program, variables), len(program.equations)
    entry = streams.start(program, weights, batches())
    (images,), own = entry.live.values(), entry.own()
    ends = [stream.to(end, program.outputs) for stream in (own, entry)]
    for a, b in zip(*(stream.live[program.outputs[0]] for stream in ends), strict=True):
        np.testing.assert_array_equal(a, b)
    assert nbytes(images) == nbytes(batches())
    assert nbytes(own.live[program.inputs[0]]) == 0


@pytest.mark.parametrize(
    "value, fails", [(2e38, False), (np.inf, True), (-2e38, False)]
)
def test_a_sum_that_overflows_is_no_number_that_does(value, fails):
    traced = ispasp_jax.trace(
        lambda v, x: x + v["b"], {"b": np.zeros(8)}, np.ones((2, 8))
    )
    program = flat.flatten(traced)
    weights = flat.arrays(program, {"b": jnp.full(8, value)})
    start = streams.start(program, weights, [np.ones((2, 8), np.float32)] * 3)
    if fails:
        with pytest.raises(FloatingPointError, match="the input: its activations"):
            start.to(len(program.equations), program.outputs)
        return
    stream = start.to(len(program.equations), program.outputs)
    (made, *_), *_ = stream.live.values()
    assert np.isfinite(made).all() and np.isinf(np.sum(made))


@pytest.mark.parametrize(
    "name", ["basic", "mlp", pytest.param("bottleneck", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("repair", ["none", "lsq"])
def test_the_estimate_is_what_a_walk_holds(name, repair, monkeypatch):
    """Within a factor of two: live arrays of activations, at every selection."""
    traced, variables, sizes = prepared(name)
    images, held = batches(), []

    def activations():
        gc.collect()
        arrays = [a for a in jax.live_arrays() if a.ndim > 1 and a.shape[0] == BATCH]
        return nbytes(arrays)

    before, real = activations(), engine.select

    def select(*arguments):
        held.append(activations() - before)
        return real(*arguments)

    monkeypatch.setattr(engine, "select", select)
    walk.walk(traced, variables, images, sizes, options=walk.Options(repair=repair))
    count = BATCH * BATCHES
    # Of two networks, if repaired; second moments are on the host.
    estimated = walk.estimate(traced, count, least_squares=False)
    estimated *= 2 if repair == "lsq" else 1
    assert estimated / 2 <= max(held) <= 2 * estimated
    assert walk.estimate(traced, count, least_squares=False, limit=1000) == 1000
    assert activations() == before


@pytest.mark.parametrize(
    "repair", ["none", pytest.param("lsq", marks=pytest.mark.slow)]
)
def test_the_walk_lets_go_of_what_it_has_passed(repair):
    """Between two steps it holds what is alive at the one before, and nothing of what
    came earlier."""
    traced, variables, sizes = prepared("bottleneck")
    carried, program = 2 if repair == "lsq" else 1, flat.flatten(traced)

    def alive():
        gc.collect()
        arrays = [a for a in jax.live_arrays() if a.ndim > 1 and a.shape[0] == BATCH]
        return nbytes(arrays)

    before, most = alive(), []

    def progress(steps):
        allowed = nbytes(batches())
        for step in steps:
            most.append((alive() - before, allowed))
            yield step
            places = [step.place, getattr(step.where, "end", step.place)]
            allowed = sum(program.size(place) for place in places[:carried]) * BATCHES
            if carried == 2 and isinstance(step.where, Site):  # drift is against that
                target = step.where.target
                allowed += 4 * int(np.prod(target.shape)) * BATCHES

    walk.walk(
        traced,
        variables,
        batches(),
        sizes,
        options=walk.Options(repair=repair, progress=progress),
    )
    for held, allowed in most:
        assert held <= allowed * 1.2, most
    assert len(most) > 3 and alive() == before


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
