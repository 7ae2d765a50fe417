"""Files for other runtimes: every model's outputs there are its outputs here."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from graph_models import (
    DenseNet,
    Flatten,
    Fused,
    MaskedLanguage,
    Residual,
    Scanned,
    SqueezeExcite,
    UNet,
    ViT,
    images,
    variables,
)
from networks import NETWORKS, images_of, variables_of

import ispasp_jax
from ispasp_jax import export, models
from ispasp_jax.cli import export as command
from ispasp_jax.data import Preprocessing
from ispasp_jax.errors import InputError
from ispasp_jax.export import emission, onnx_file
from ispasp_jax.weights import Model

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
x = images(3)


def run(path, *inputs):
    session = onnxruntime.InferenceSession(str(path))
    names = [value.name for value in session.get_inputs()]
    arrays = [np.asarray(array) for array in inputs]
    return session.run(None, dict(zip(names, arrays, strict=True)))[0]


@pytest.mark.parametrize(
    "make", [Flatten, UNet, SqueezeExcite, ViT, Fused, Scanned, DenseNet]
)
def test_models_of_every_kind_give_the_same_outputs(make, tmp_path):
    model, path = make(), tmp_path / "model.onnx"
    held = variables(model, x)
    written = export.onnx(model, path, held, [jax.typeof(x)])
    assert written.largest_difference < 1e-5
    expected = model.apply(held, x)
    np.testing.assert_allclose(run(path, x), expected, rtol=1e-4, atol=1e-5)
    assert [*tmp_path.iterdir()] == [path]


def test_constants_that_are_too_large_lie_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "LIMIT", 1000)
    model, path = Flatten(), tmp_path / "model.onnx"
    held = variables(model, x)
    export.onnx(model, path, held, [jax.typeof(x)])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "model.onnx",
        "model.onnx.data",
    ]
    assert path.stat().st_size < path.with_name("model.onnx.data").stat().st_size
    moved = tmp_path.rename(tmp_path.with_name("moved")) / "model.onnx"
    np.testing.assert_allclose(
        run(moved, x), model.apply(held, x), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in ("mobile", "same")))
        for name in NETWORKS
    ],
)
def test_shipped_networks_are_as_small_there(name, tmp_path):
    """Pruned: the constants are the arrays that are left, and nothing is transposed but
    the images."""
    network, held = NETWORKS[name], variables_of(NETWORKS[name])
    pruned = ispasp_jax.prune(network, held, [images_of(4)], keep=0.5, repair="none")
    path = tmp_path / "pruned.onnx"
    export.onnx(pruned, path)
    expected = pruned.apply(pruned.variables, images_of(5))
    np.testing.assert_allclose(run(path, images_of(5)), expected, rtol=1e-4, atol=1e-5)
    graph = onnx.load(path).graph
    stored = sum(onnx.numpy_helper.to_array(a).size for a in graph.initializer)
    arrays = sum(a.size for a in jax.tree.leaves(pruned.variables))
    assert stored < 1.05 * arrays + 100
    assert sum(node.op_type == "Transpose" for node in graph.node) <= 1


def test_tokens_are_read_as_integers(tmp_path):
    model = MaskedLanguage()
    tokens = jax.random.randint(jax.random.key(0), (3, 6), 0, 11)
    held = variables(model, tokens)
    path = tmp_path / "model.onnx"
    export.onnx(model, path, held, [tokens])
    expected = model.apply(held, tokens)
    np.testing.assert_allclose(run(path, tokens), expected, rtol=1e-4, atol=1e-5)


def test_an_nnx_module_brings_its_own_variables(tmp_path):
    model = Residual(nnx.Rngs(0))
    export.onnx(model, tmp_path / "model.onnx", inputs=[jax.typeof(x)])
    model.eval()
    expected = model(x)
    found = run(tmp_path / "model.onnx", x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


A = jnp.asarray(np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32))
ONE = {
    "exp2": lambda x: jnp.exp2(x),
    "log1p": lambda x: jnp.log1p(jnp.abs(x)),
    "erfc": lambda x: jax.lax.erfc(x),
    "power 3": lambda x: x**3,
    "clip": lambda x: jnp.clip(x, -0.5, 0.5),
    "relu6": jax.nn.relu6,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "softmax": lambda x: jax.nn.softmax(x, -2),
    "minus a constant": lambda x: 1 - (x - A[0, 0]),
    "reverse": lambda x: x[:, ::-1],
    "every other": lambda x: x[:, ::2, 1:],
    "split": lambda x: jnp.concatenate(jnp.split(x, 2, 1)[::-1], 1),
    "pad": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 0), (3, 0))),
    "tile": lambda x: jnp.tile(x.mean((1, 2), keepdims=True), (1, 3, 1, 2)),
    "rows": lambda x: jnp.take(x, jnp.asarray([2, 0, 2]), 1),
    "argmax": lambda x: jax.nn.one_hot(x.argmax(-1), 3) * x,
    "order": lambda x: x.transpose(0, 3, 1, 2).reshape(len(x), -1, 4),
    "outer": lambda x: jnp.einsum("nhwc,nhvc->nhwv", x, 2 * x),
    "two sums": lambda x: jnp.einsum("nhwc,whk->nck", x, jnp.ones((8, 8, 2)) / 9),
    "cumsum": lambda x: jnp.cumsum(x, 2),
    "variance": lambda x: x.var((1, 3)) / x.max((1, 3)),
    "where": lambda x: jnp.where((x > 0) & (x < 1), x, -x),
    "max pool": lambda x: _pool(x, -jnp.inf, jax.lax.max, "SAME"),
    "padded max pool": lambda x: _pool(x - 9, -jnp.inf, jax.lax.max, ((2, 1), (1, 2))),
    "sum pool": lambda x: _pool(x, 0.0, jax.lax.add, "SAME"),
    "transposed": lambda x: _spread(x, "SAME"),
    "transposed valid": lambda x: _spread(x, "VALID"),
    "dilated": lambda x: _conv(x, (1, 1), "SAME", rhs_dilation=(2, 1)),
    "padded": lambda x: _conv(x, (2, 3), ((2, 1), (0, 2))),
    "channels first": lambda x: _conv(x, (1, 1), "VALID", ("NCHW", "OIHW", "NHWC")),
}


def _pool(x, start, reduce, padding):
    if not isinstance(padding, str):
        padding = ((0, 0), *padding, (0, 0))
    return jax.lax.reduce_window(x, start, reduce, (1, 3, 3, 1), (1, 2, 2, 1), padding)


def _kernel(shape):
    return jnp.asarray(np.random.default_rng(2).normal(size=shape).astype(np.float32))


def _conv(x, strides, padding, numbers=("NHWC", "HWIO", "NHWC"), **options):
    shape = (3, 2, 3, 4) if numbers[1] == "HWIO" else (4, 8, 3, 2)
    options["dimension_numbers"] = numbers
    kernel = _kernel(shape)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)


def _spread(x, padding):
    return jax.lax.conv_transpose(x, _kernel((3, 3, 3, 4)), (2, 2), padding)


@pytest.mark.parametrize("function", ONE.values(), ids=ONE)
def test_every_rule_by_itself(function, tmp_path):
    path = tmp_path / "one.onnx"
    given = jax.random.normal(jax.random.key(3), x.shape)
    export.onnx(lambda _, x: function(x), path, {}, [jax.typeof(given)])
    expected = jax.jit(function)(given)
    np.testing.assert_allclose(run(path, given), expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_written_is_named_and_a_file_that_is_there_stays(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("before")
    shape = [jax.typeof(x)]
    with pytest.raises(InputError, match=r"^sort \(.* as ONNX: no rule"):
        export.onnx(lambda _, x: jnp.sort(x, 1), path, {}, shape)
    with pytest.raises(InputError, match="the inputs are not known: give examples"):
        export.onnx(Flatten(), path, variables(Flatten(), x))
    with pytest.raises(InputError, match="is a folder, which the new file"):
        export.onnx(lambda _, x: x, tmp_path, {}, shape)
    assert path.read_text() == "before" and [*tmp_path.iterdir()] == [path]


def test_a_wrong_rule_leaves_no_file(tmp_path, monkeypatch):
    def wrong(out, step):
        (a, _) = step.eqn.inputs
        return out.made("Relu", out.as_it_is(a), shape=step.shape)

    monkeypatch.setitem(emission.EMITTERS, "add", wrong)
    with pytest.raises(InputError, match="other outputs than the network in JAX"):
        export.onnx(lambda _, x: x + 1, tmp_path / "m.onnx", {}, [jax.typeof(x)])
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("inside", [True, False])
def test_a_program_runs_without_the_model(inside, tmp_path):
    """In a process that has jax and the file alone; for any batch."""
    model, path = UNet(), tmp_path / "model.stablehlo"
    held = variables(model, x)
    written = export.stablehlo(
        model, path, held, [jax.typeof(x)], inside=inside, platforms=["cpu"]
    )
    assert written.largest_difference < 1e-5 and written.platforms == ("cpu",)
    given, made = tmp_path / "x.npy", tmp_path / "y.npy"
    np.save(given, np.asarray(images(5)))
    program = f"""
import sys
import numpy as np
from jax import export
from safetensors.numpy import load_file
f = export.deserialize(bytearray(open({str(path)!r}, "rb").read()))
arrays = load_file({str(written.arrays)!r}) if not {inside} else {{}}
np.save({str(made)!r}, f.call(arrays, np.load({str(given)!r})))
assert "flax" not in sys.modules and "ispasp_jax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    expected = model.apply(held, images(5))
    np.testing.assert_allclose(
        np.load(tmp_path / "y.npy"), expected, rtol=1e-4, atol=1e-5
    )


def test_a_program_for_one_size_of_the_batch_has_no_other(tmp_path):
    model, path = UNet(), tmp_path / "model.stablehlo"
    held = variables(model, x)
    given = [jax.typeof(x)]
    export.stablehlo(model, path, held, given, platforms=["cpu"], batch=4)
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    assert "tensor<?" not in program.mlir_module()
    expected = model.apply(held, images(4))
    np.testing.assert_allclose(
        program.call({}, images(4)), expected, rtol=1e-4, atol=1e-5
    )
    with pytest.raises(InputError, match="for a batch of -1"):
        export.stablehlo(model, path, held, given, batch=-1)


def test_the_command_writes_a_saved_network(tmp_path, capsys):
    network = models.create("mlp", 4)
    held, prep = variables(network, x), Preprocessing(8, None, (0.0,) * 3, (1.0,) * 3)
    ispasp_jax.save(tmp_path / "model", Model("mlp", network, held, prep))
    for kind in ("onnx", "stablehlo"):
        out = tmp_path / f"network.{kind}"
        assert command.main([str(tmp_path / "model"), "--out", str(out)]) == 0
        assert out.exists() and "largest difference" in capsys.readouterr().out
    expected, found = network.apply(held, x), run(tmp_path / "network.onnx", x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--out", "x.tflite"], "neither .onnx nor .stablehlo"),
        (["--out", "x.onnx", "--platforms", "cpu"], "are for .stablehlo; leave"),
        (["--out", "x.stablehlo", "--platforms", "gpu"], "gpu: expected cpu, cuda"),
        (["--out", "x.onnx"], "config.json"),
    ],
)
def test_the_command_refuses_in_one_sentence(flags, words, tmp_path, capsys):
    assert command.main([str(tmp_path), *flags]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said and "\n" not in said and not [*tmp_path.iterdir()]
