"""A model's function as a program: it runs, and is differentiated, without its code."""

import importlib
import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import flax.linen as nn
import graph_models as models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import ispasp_jax
from ispasp_jax.errors import InputError
from ispasp_jax.weights import stablehlo


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A pruned function, and the folder that it was saved in."""
    model, x = models.Flatten(), models.images(4)
    pruned = ispasp_jax.prune(
        model, models.variables(model, x), [x], 0.5, repair="none"
    )
    folder = tmp_path_factory.mktemp("saved") / "model"
    pruned.save(folder)
    return pruned, folder


@pytest.mark.parametrize("count", [1, 3, 8])
def test_it_gives_the_same_for_any_batch(saved, count):
    pruned, folder = saved
    loaded, x = ispasp_jax.load(folder), models.images(count)
    expected = pruned.apply(pruned.variables, x)
    np.testing.assert_allclose(loaded(x), expected, rtol=1e-5, atol=1e-6)
    assert loaded.network.inputs == [((None, *x.shape[1:]), x.dtype)]


def test_it_is_differentiated(saved):
    pruned, folder = saved
    loaded, x = ispasp_jax.load(folder), models.images(3)

    def loss(apply):
        return lambda v: jnp.square(apply(v, x)).sum()

    found = jax.grad(loss(loaded.network.apply))(loaded.variables)
    expected = jax.grad(loss(pruned.apply))(pruned.variables)
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        own = found[ispasp_jax.graph.key_path(path)]
        np.testing.assert_allclose(own, leaf, rtol=1e-4, atol=1e-5)


def test_it_is_for_every_platform(saved):
    _, folder = saved
    assert ispasp_jax.load(folder).network.exported.platforms == stablehlo.PLATFORMS


def test_what_was_loaded_is_saved_again(saved, tmp_path):
    loaded, x = ispasp_jax.load(saved[1]), models.images(2)
    ispasp_jax.save(tmp_path / "again", loaded)
    np.testing.assert_array_equal(ispasp_jax.load(tmp_path / "again")(x), loaded(x))


def test_the_plan_lies_beside(saved):
    pruned, folder = saved
    name, plan = ispasp_jax.plan.from_json(
        json.loads((folder / "plan.json").read_text())
    )
    assert name == "function" and plan.keys() == pruned.plan.keys()


OWN = """
import flax.linen as nn

class Net(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(6, (3, 3), strides=2)(x))
        return nn.Dense(self.num_classes)(x.mean((1, 2)))

def make(num_classes):
    return Net(num_classes)
"""


def test_a_folder_of_ones_own_programwork_runs_without_its_code(tmp_path, monkeypatch):
    (tmp_path / "own_program.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    network = ispasp_jax.models.create("own_program:make", 3)
    x = models.images(2)
    variables = network.init(jax.random.key(0), x)
    preprocessing = ispasp_jax.data.Preprocessing(8, None, (0.5,) * 3, (0.5,) * 3)
    model = ispasp_jax.Model("own_program:make", network, variables, preprocessing)
    ispasp_jax.save(tmp_path / "model", model)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", model(x))
    program = """
    import sys
    import numpy as np, ispasp_jax
    loaded = ispasp_jax.load("model")
    np.testing.assert_allclose(loaded(np.load("x.npy")), np.load("y.npy"), rtol=1e-5)
    assert "own_program" not in sys.modules
    """
    own = tmp_path / "own_program.py"
    shutil.move(own, tmp_path / "away.txt")
    root = str(ispasp_jax.__path__[0]).rpartition("/")[0]
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": root, "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin"},
        timeout=120,
    )
    named = ispasp_jax.load(tmp_path / "model", "own_program:make")
    assert isinstance(named.network, nn.Module) and "Conv_0" in named.traced


def test_a_call_out_of_the_program_is_refused(tmp_path):
    def function(x):
        like = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.ffi.ffi_call("anything_at_all", like)(x)

    allowed = export.DisabledSafetyCheck.custom_call("anything_at_all")
    x = jax.ShapeDtypeStruct((2, 3), "float32")
    made = export.export(jax.jit(function), disabled_checks=[allowed])(x)
    (tmp_path / "program").write_bytes(made.serialize())
    with pytest.raises(InputError, match="calls anything_at_all, which is no arith"):
        stablehlo.read(tmp_path / "program")


@pytest.mark.parametrize("file", ["model.stablehlo", "model.safetensors"])
def test_damage_is_said_in_a_sentence(saved, tmp_path, file):
    folder = tmp_path / "model"
    shutil.copytree(saved[1], folder)
    content = bytearray((folder / file).read_bytes())
    content[-20] ^= 0xFF
    (folder / file).write_bytes(content)
    with pytest.raises(InputError, match="is not as it was written"):
        ispasp_jax.load(folder)
    (tmp_path / "noise").write_bytes(b"noise")
    with pytest.raises(InputError, match="is no StableHLO program"):
        stablehlo.read(tmp_path / "noise")


def test_a_model_of_one_batch_size_says_so():
    def apply(variables, x):
        return x.reshape(2, -1) @ variables["w"]

    shapes = {"w": jax.ShapeDtypeStruct((12, 3), "float32")}
    x = jax.ShapeDtypeStruct((2, 12), "float32")
    with pytest.raises(InputError, match="cannot be written for a batch of any size"):
        stablehlo.stored(apply, shapes, x)


#: A model as its author has it, in a file of this machine.
PRIVATE = """
import jax


def net(v, x):
    return jax.nn.relu(x @ v["in"]) @ v["out"]
"""


def test_no_program_says_where_its_code_lies(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "secret_place.py").write_text(PRIVATE)
    net = importlib.import_module("secret_place").net
    arrays = {"in": np.ones((3, 6), "float32"), "out": np.ones((6, 2), "float32")}
    x = np.ones((4, 3), "float32")
    pruned = ispasp_jax.prune(net, arrays, [x], keep=0.5)
    pruned.save(tmp_path / "saved")
    shape = [jax.ShapeDtypeStruct(x.shape, x.dtype)]
    ispasp_jax.export.stablehlo(net, tmp_path / "a.stablehlo", arrays, shape)
    written = [tmp_path / "a.stablehlo", *(tmp_path / "saved").iterdir()]
    assert len(written) > 3
    package = str(Path(ispasp_jax.__file__).parent).encode()
    for path in written:
        content = path.read_bytes()
        for place in (str(tmp_path).encode(), b"secret_place.py", package):
            assert place not in content, path
