"""--weights for a model of the user's: arrays by key path, however they were saved."""

import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from safetensors.numpy import save_file

from ispasp_jax import data, models
from ispasp_jax.cli import loading
from ispasp_jax.cli.config import Data, Network, Weights
from ispasp_jax.errors import InputError
from ispasp_jax.graph import adapters
from ispasp_jax.graph.by_hand import leaves

OWN = """
import flax.linen as nn
import equinox as eqx
import jax
from flax import nnx

class Linen(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(5)(x))
        return nn.Dense(self.num_classes)(nn.relu(x).mean((1, 2)))

class Nnx(nnx.Module):
    def __init__(self, num_classes, rngs):
        self.first = nnx.Linear(1, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(5, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.last = nnx.Linear(5, num_classes, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(nnx.relu(self.norm(self.first(x)))).mean((1, 2)))

class Equinox(eqx.Module):
    layers: list

    def __init__(self, num_classes, key):
        keys = jax.random.split(key)
        self.layers = [eqx.nn.Linear(64, 5, key=keys[0])]
        self.layers += [eqx.nn.Linear(5, num_classes, key=keys[1])]

    def __call__(self, x):
        first, last = self.layers
        return last(jax.nn.relu(first(x.reshape(-1))))

def linen(num_classes):
    return Linen(num_classes)

def of_nnx(num_classes, seed=0):
    return Nnx(num_classes, nnx.Rngs(seed))

def equinox(num_classes, seed=0):
    return Equinox(num_classes, jax.random.key(seed))
"""

IMAGES = Data("digits", *[None] * 7)


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    """A module of the user's, to be imported."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_networks.py").write_text(OWN)
    sys.path.append(str(folder))
    yield
    sys.path.remove(str(folder))


def orbax(folder, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, tree)
    return folder


def trained(name):
    """Variables that are not what the function draws."""
    if name == "linen":
        made = models.create("own_networks:linen", 10)
        variables = made.init(jax.random.key(5), np.zeros((1, 8, 8, 1)))
    else:
        made = models.create(f"own_networks:{name}", 10, seed=5)
        variables = adapters.function(made)[1]
    return jax.tree.map(lambda a: a + 0.25 if a.dtype == "float32" else a, variables)


def without_keys(state):
    """An NNX state as people save it: parameters and statistics alone."""
    return nnx.filter_state(state, nnx.Any(nnx.Param, nnx.BatchStat))


SAVED = {
    "linen": lambda folder, v: orbax(folder, v),
    "linen, of a training": lambda folder, v: orbax(folder, {**v, "step": np.ones(3)}),
    "of_nnx": lambda folder, v: orbax(folder, without_keys(v)),
    "of_nnx, pure": lambda folder, v: orbax(folder, nnx.to_pure_dict(without_keys(v))),
    "equinox": lambda folder, v: orbax(folder, v),
    "equinox, of a training": lambda folder, v: orbax(
        folder, {"model": v, "moments": v, "step": np.int32(3)}
    ),
    "equinox, safetensors": lambda folder, v: save_file(
        {name: np.asarray(a) for name, a in leaves(v)},
        folder.with_suffix(".safetensors"),
    ),
}


def load(name, path):
    network = Network(f"own_networks:{name}", None, Weights(str(path)))
    source = data.open_source("digits")
    return loading.load(network.start, network, IMAGES, source)


@pytest.mark.parametrize("case", SAVED)
def test_weights_of_ones_own_model_come_by_key_path(case, module, tmp_path):
    name = case.partition(",")[0]
    expected = trained(name)
    SAVED[case](tmp_path / "saved", expected)
    (path,) = tmp_path.iterdir()
    found = dict(leaves(load(name, path).variables))
    counted = 0
    for key, array in leaves(expected):
        if array.dtype == "float32":
            np.testing.assert_array_equal(found[key], array, err_msg=key)
            counted += 1
    assert counted >= 4


def test_weights_of_another_model_are_one_sentence(module, tmp_path):
    path = orbax(tmp_path / "saved", trained("equinox"))
    with pytest.raises(InputError, match=r"(?s)saved: not the weights .*first/kernel"):
        load("of_nnx", path)
    with pytest.raises(InputError, match="no such file"):
        load("of_nnx", Path("nowhere"))
