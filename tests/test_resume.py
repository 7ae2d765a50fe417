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
from networks import NETWORKS, SHAPE, images_of, variables_of

from ispasp_jax import budget, checkpoints, criteria, curves, pruning
from ispasp_jax.commands import prune, train, walk_store
from ispasp_jax.commands.workspace import Workspace
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


def stopping_criterion(criterion, after):
    """A criterion that stops the walk when it is asked once more than that."""
    asked = []

    def stop(problem, size):
        if len(asked) == after:
            raise Stopped
        asked.append(size)
        return criterion(problem, size)

    return criterion._replace(select=stop)


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
    criterion = criteria.create(method, num_iters=4)

    def walk(**more):
        options = dict(repair=repair, tune=tune, carry_dense=repair == "bn") | more
        return pruning.walk(network, variables, images, sizes, criterion, **options)

    whole, parts = walk(), len(network.chain())
    for after in range(parts + 1):
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
