"""Model folders that a stranger wrote, damaged or in places that cannot be written:
the right network or one sentence, and no code of theirs.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import ispasp_jax
from ispasp_jax import InputError, data, graph, models, weights
from ispasp_jax.cli import prune
from ispasp_jax.data import Preprocessing
from ispasp_jax.graph.by_hand import leaves
from ispasp_jax.graph.by_hand import nested as tree_of
from ispasp_jax.graph.check import random_plan
from ispasp_jax.weights import folders, stablehlo, tensors

PREP = Preprocessing(4, None, (0.5,), (0.25,))


def make(name="mlp", prep=PREP, **options):
    network = models.create(name, 3, **options)
    variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, *prep.shape)))
    return folders.Model(name, network, variables, prep, options)


@pytest.fixture(scope="module")
def model():
    return make(hidden=[5, 2])


@pytest.fixture
def folder(tmp_path, model):
    """A model folder that was written well."""
    folders.save(tmp_path / "model", model)
    return tmp_path / "model"


def assert_same(found, model):
    assert found.dense_widths == model.dense_widths
    for (path, ours), (_, theirs) in zip(
        leaves(found.variables), leaves(model.variables), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs, err_msg=path)


def configure(folder, change, sums=False):
    """Changes a config by hand; its checksums go, or stay."""
    config = json.loads((folder / "config.json").read_text())
    config = config if sums else {k: v for k, v in config.items() if k != "sums"}
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def refuse(call, *words):
    with pytest.raises(InputError) as error:
        call()
    said = str(error.value).replace("\0", "")
    assert len(said.splitlines()) == 1 and said.endswith("."), said
    assert len(said) < 1200 and said.isprintable(), said
    for word in words:
        assert word in said, said


def cut(model, kinds):
    """The model with half of some kinds of groups, and the masked variables."""
    plan = random_plan(model.traced)
    plan = {n: c for n, c in plan.items() if model.traced[n].kind in kinds}
    small = model.traced.take(plan, model.variables)
    known = (
        {name: len(one.kept) for name, one in plan.items()} if "stream" in kinds else {}
    )
    return model.resize(small, known), model.traced.mask(plan, model.variables)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("mlp", {"inner"}),
        pytest.param("resnet20", {"inner"}, marks=pytest.mark.slow),
        ("resnet20", {"inner", "stream"}),
    ],
)
def test_a_narrower_network_comes_back(name, kinds, tmp_path):
    prep = Preprocessing(4, None, (0.5,) * 3, (0.25,) * 3)
    model = make(name, prep, **({"hidden": [6, 9]} if name == "mlp" else {}))
    small, masked = cut(model, kinds)
    folders.save(tmp_path / "model", small)
    found = folders.load(tmp_path / "model")
    assert_same(found, small)
    assert found.dense_widths != model.dense_widths and found.num_classes == 3
    x = np.random.default_rng(0).normal(size=(2, *prep.shape)).astype(np.float32)
    expected = model.replace(model.network, masked)(x)
    np.testing.assert_allclose(found(x), expected, rtol=1e-4, atol=1e-5)
    if kinds == {"inner"}:
        assert found.network == small.network
    if name == "mlp":
        again, _ = cut(found, kinds)  # from the widths that it has
        folders.save(tmp_path / "again", again)
        assert_same(folders.load(tmp_path / "again"), again)
        assert sum(again.dense_widths.values()) < sum(found.dense_widths.values())


def test_a_group_of_one_channel_is_one_of_the_architecture_still(tmp_path, model):
    small = model.traced.take(
        {"hidden.0": graph.Cut(5, np.array([3]))}, model.variables
    )
    small = model.resize(small)
    assert "hidden.0" not in small.widths
    assert small.dense_widths == {"hidden.0": 1, "hidden.1": 2}
    folders.save(tmp_path / "model", small)
    assert_same(folders.load(tmp_path / "model"), small)


def test_a_folder_of_the_first_version(folder, model):
    """Its perceptron's layers were dense.0, dense.1, ...; the sums are of these."""
    names = {"hidden.0": "dense.0", "hidden.1": "dense.1", "output": "dense.2"}

    def earlier(arrays):
        return {
            "/".join(names.get(key, key) for key in path.split("/")): array
            for path, array in arrays.items()
        }

    arrays = earlier(load_file(folder / "model.safetensors"))
    save_file(arrays, folder / "model.safetensors")
    refuse(lambda: folders.load(folder), "is not as it was written")
    config = json.loads((folder / "config.json").read_text())
    config["sums"]["arrays"] = tensors.fingerprint(tree_of(arrays))
    (folder / "config.json").write_text(json.dumps(config))
    assert_same(folders.load(folder), model)
    both = {**arrays, "params/hidden.0/bias": arrays["params/dense.0/bias"]}
    save_file(both, folder / "model.safetensors")
    refuse(lambda: folders.load(folder), "does not hold the arrays")


EVIL = "open('ran', 'w')\ndef make(num_classes, **more): open('ran', 'w')\n"


@pytest.mark.parametrize(
    "name",
    [
        *("evil_module:make", "evil_module", "evil_module:", ":make", "mlp:make", ""),
        *("torch.hub:load", "os:system", "antigravity:fly", "a\nb:c", "\ud800:x"),
    ],
)
@pytest.mark.parametrize("by", ["load", "read", "--weights"])
def test_code_that_a_folder_names_does_not_run(
    name, by, folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("evil_module.py").write_text(EVIL)
    options = {"command": "touch ran"}
    configure(folder, lambda c: c.update(model=name, options=options))
    before = set(sys.modules)
    if by == "load":
        refuse(lambda: folders.load(folder), "config.json")
    elif by == "read":
        _, about = weights.read(folder / "model.safetensors")
        assert about["model"] == name
    else:
        assert prune.main(["--model=mlp", f"--weights={folder}"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not Path("ran").exists()
    new = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert not new & {"evil_module", "torch", "antigravity", "hubconf"}
    if by != "--weights":  # which has data to open
        assert new <= {"ispasp_jax"} | set(sys.stdlib_module_names)


def test_an_architecture_that_the_caller_names_is_used(folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_net", raising=False)
    (tmp_path / "own_net.py").write_text(
        "from ispasp_jax.models.mlp import MLP\n"
        "def make(num_classes, sizes: tuple[int, ...]):\n"
        "    return MLP(num_classes, hidden=sizes)\n"
    )
    own = make("own_net:make", sizes=[4])
    folders.save(folder, own)
    monkeypatch.delitem(sys.modules, "own_net")
    program = folders.load(folder)  # beside it, which needs no code
    assert isinstance(program.network, stablehlo.Stored)
    assert "own_net" not in sys.modules
    configure(folder, lambda c: c.pop("program"))
    refuse(lambda: folders.load(folder), "'own_net:make'", "architecture=")
    refuse(lambda: folders.load(folder, "mlp"), "holds a own_net:make, not a mlp")
    assert_same(folders.load(folder, "own_net:make"), own)
    configure(folder, lambda c: c.update(options={"parent": 3}))
    refuse(lambda: folders.load(folder, "own_net:make"), "no option parent")


class Counted(nn.Module):
    """A layer with a scale without axes, and a count."""

    @nn.compact
    def __call__(self, x, train=False):
        self.variable("batch_stats", "count", lambda: jnp.zeros((), jnp.int32))
        return x * self.param("scale", nn.initializers.ones, ())


class Odd(nn.Module):
    num_classes: int = 10

    @nn.compact
    def __call__(self, x, train=False):
        x = Counted(name="first")(x, train)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16"])
def test_arrays_come_back_in_their_own_types(kind, tmp_path):
    model = make(f"{__name__}:Odd")
    as_kind = lambda a: a.astype(kind) if a.dtype == jnp.float32 else a  # noqa: E731
    model = model.replace(model.network, jax.tree.map(as_kind, model.variables))
    folders.save(tmp_path / "odd", model)
    found = folders.load(tmp_path / "odd", model.name)
    assert_same(found, model)
    types = [jax.tree.map(jnp.result_type, m.variables) for m in (found, model)]
    assert types[0] == types[1]
    arrays = load_file(tmp_path / "odd/model.safetensors")
    arrays["batch_stats/first/count"] = np.zeros((), np.float32)
    save_file(arrays, tmp_path / "odd/model.safetensors")
    refuse(lambda: folders.load(tmp_path / "odd", model.name), "count of another type")


def nested(depth):
    return "[" * depth + "]" * depth


#: What a config.json may be told to say, and what the sentence about it has to.
CONFIGS = {
    "huge image": (dict(preprocessing=dict(image_size=10**9)), "image_size is 1000"),
    "huge crop": (dict(preprocessing=dict(resize=10**9)), "resize is 1000000000"),
    "a flag for a size": (dict(preprocessing=dict(image_size=True)), "image_size is T"),
    "half a pixel": (dict(preprocessing=dict(image_size=4.5)), "image_size is 4.5"),
    "no image": (dict(preprocessing=dict(image_size=0)), "image_size is 0"),
    "another image": (dict(preprocessing=dict(image_size=7)), "params/hidden.0/kernel"),
    "huge mean": (dict(preprocessing=dict(mean=[10**400])), "mean is"),
    "tiny std": (dict(preprocessing=dict(std=[1e-300])), "std is [1e-300]"),
    "no std": (dict(preprocessing=dict(std=[])), "do not fit"),
    "more channels": (
        dict(preprocessing=dict(mean=[0.1] * 3, std=[0.1] * 3)),
        "params/hidden.0/kernel",
    ),
    "word for a mean": (dict(preprocessing=dict(mean="0")), "mean is '0'"),
    "odd preprocessing": (dict(preprocessing=[1]), "preprocessing is no object"),
    "more of it": (dict(preprocessing=dict(more=1)), "expected the fields"),
    "huge width": (dict(widths={"hidden.0": 2**63}), "widths is {'hidden.0': 9223"),
    "wider": (dict(widths={"hidden.0": 6}), "gives hidden.0 6 channels, and the arch"),
    "half a channel": (dict(widths={"hidden.0": 2.5}), "widths is {'hidden.0': 2.5"),
    "a negative width": (dict(widths={"hidden.0": -1}), "none below 0"),
    "no width": (dict(widths={"hidden.0": None}), "widths is"),
    "many widths": (dict(widths={str(i): 1 for i in range(5000)}), "widths is"),
    "strange group": (
        dict(widths={"a\n\ud800": 1}),
        r"'a\n\ud800', which do not exist",
    ),
    "huge head": (dict(num_classes=2**63), "num_classes is 9223372036854775808"),
    "endless head": (dict(num_classes=10**300), "more than 40 digits"),
    "no classes": (dict(num_classes=0), "num_classes is 0"),
    "classes in words": (dict(num_classes="3"), "num_classes is '3'"),
    "other classes": (dict(num_classes=4), "does not hold the arrays"),
    "unknown option": (dict(options=dict(command="ls")), "no option command"),
    "odd option": (dict(options={"a\n": 1}), r"no option 'a\n'"),
    "its own number": (dict(options=dict(num_classes=3)), "num_classes among the opt"),
    "huge option": (dict(options=dict(hidden=[2**62])), "options is"),
    "a large option": (
        dict(options=dict(hidden=[2**23, 2**23]), widths={}),
        "params/hidden.0",
    ),
    "no neuron": (dict(options=dict(hidden=[0])), "without neurons"),
    "minus one": (dict(options=dict(hidden=[-1])), "without neurons"),
    "many layers": (dict(options=dict(hidden=[1] * 10**5)), "options is"),
    "words": (dict(options=dict(hidden="ab")), "expected whole numbers"),
    "deep option": (dict(options=dict(hidden=[[1]])), "options is"),
    "no options": (dict(options=None), "options is None"),
    "other stem": (
        dict(model="resnet18", options=dict(stem="big"), widths={}),
        "stem='big'; expected 'imagenet' or 'small'",
    ),
    "other network": (
        dict(model="resnet20", options={}, widths={}),
        "does not hold the arrays",
    ),
    "no name": (dict(model=None), "name is None"),
    "other format": (dict(format=2), "not of format 1"),
}


@pytest.mark.parametrize("new, words", CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_cannot_be(new, words, folder):
    def change(config):
        for key, value in new.items():
            both = isinstance(value, dict) and key == "preprocessing"
            config[key] = {**config[key], **value} if both else value

    configure(folder, change)
    refuse(lambda: folders.load(folder), "config", words)


TEXTS = {
    "nested": (nested(100_000), "nested too deep"),
    "nested in it": ('{"format": 1, "widths": ' + nested(100_000), "nested too deep"),
    "infinity": ('{"format": 1, "num_classes": Infinity}', "Infinity is no number"),
    "NaN": ('{"format": NaN}', "NaN is no number"),
    "many digits": ("9" * 5000, "not JSON"),
    "empty": ("", "not JSON"),
    "null": ("null", "not of format 1"),
    "no field": ('{"format": 1}', "'model' is missing"),
    "half": ('{"format": 1, "model": "m', "not JSON"),
}


@pytest.mark.parametrize("text, words", TEXTS.values(), ids=TEXTS)
def test_a_config_that_is_none(text, words, folder):
    (folder / "config.json").write_text(text)
    refuse(lambda: folders.load(folder), "config.json", words)


def test_a_config_that_is_no_text(folder, tmp_path):
    config = folder / "config.json"
    config.write_bytes(b"\xff\xfe{}")
    refuse(lambda: folders.load(folder), "not even text")
    config.write_bytes(b" " * (2**24 + 1))
    refuse(lambda: folders.load(folder), "longer than")
    config.unlink()
    os.mkfifo(config)  # reading it would never end
    refuse(lambda: folders.load(folder), "it is no file")
    for name in ("none", "no\0name", "x" * 500):
        refuse(lambda name=name: folders.load(tmp_path / name), "not a model folder")


def test_checksums(folder, model):
    config, file = folder / "config.json", folder / "model.safetensors"
    configure(folder, lambda c: c["preprocessing"].update(mean=[0.4]), sums=True)
    refuse(lambda: folders.load(folder), "config.json is not as it was written")
    configure(folder, lambda c: None)
    assert folders.load(folder).preprocessing.mean == (0.4,)
    assert_same(folders.load(folder), model)  # as folders from before

    folders.save(folder, model)
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    refuse(lambda: folders.load(folder), "model.safetensors is not as it was")
    configure(folder, lambda c: c.update(sums=3), sums=True)
    refuse(lambda: folders.load(folder), str(config))


@pytest.mark.parametrize("place", ["", "..", "model.safetensors"])
def test_a_folder_by_any_of_its_names(folder, model, place):
    assert_same(folders.load((folder / place).resolve()), model)


def test_a_file_in_a_model_folder_has_its_preprocessing(folder, model, tmp_path):
    arrays, about = weights.read(folder / "model.safetensors")
    assert about["model"] == "mlp" and about["options"] == {"hidden": [5, 2]}
    assert {k: about[k] for k in PREP._fields} == PREP._asdict()
    variables = weights.to_variables(arrays, model.network, model.input_shape)
    assert_same(model.replace(model.network, variables), model)
    other = shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    refuse(lambda: weights.read(other), "other.safetensors", f"folder {folder}")
    alone = shutil.copy(other, tmp_path / "alone.safetensors")
    assert "mean" not in weights.read(alone)[1]
    (folder / "config.json").write_text("{")
    refuse(lambda: weights.read(folder / "model.safetensors"), "config.json is not JS")


def test_the_commands_take_the_file_for_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prep = Preprocessing(8, None, (0.1,), (0.7,))
    network = models.create("mlp", 10, hidden=[4])
    variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    options = {"hidden": [4]}
    folders.save("dense", folders.Model("mlp", network, variables, prep, options))
    flags = ["--model=mlp", "--weights=dense/model.safetensors", "--keep=1"]
    assert prune.main([*flags, "--repair=none", "--out=out"]) == 0
    assert ispasp_jax.load("out").preprocessing == prep


def with_first(change):
    def do(arrays):
        name, array = "params/hidden.0/kernel", arrays["params/hidden.0/kernel"]
        return {**arrays, name: change(array)}

    return do


def poked(value, kind="f4"):
    def do(array):
        array = array.astype(kind)
        array.flat[3] = value
        return array

    return do


#: What becomes of the first kernel, and what the sentence says of it.
KINDS = {
    "int8": (lambda a: a.astype("i1"), "not floating-point"),
    "uint16": (lambda a: a.astype("u2"), "not floating-point"),
    "int64": (lambda a: a.astype("i8"), "not floating-point"),
    "bool": (lambda a: a > 0, "not floating-point"),
    "complex": (lambda a: a.astype("c8"), "not floating-point"),
    "NaN": (poked(np.nan), "NaN or infinity"),
    "infinity": (poked(-np.inf, "f2"), "NaN or infinity"),
    "beyond float32": (poked(1e300, "f8"), "beyond float32"),
}


@pytest.mark.parametrize("change, words", KINDS.values(), ids=KINDS)
def test_arrays_that_are_no_weights(change, words, folder, model):
    file, change = folder / "model.safetensors", with_first(change)
    arrays = change(load_file(file))
    save_file(arrays, file)
    name = "params/hidden.0/kernel"
    refuse(lambda: folders.load(folder), str(file), words, name)
    refuse(lambda: weights.read(file), str(file), words, name)
    shape = model.input_shape
    refuse(lambda: weights.to_variables(arrays, model.network, shape), words, name)


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2"])
def test_float8_is_refused_by_name(kind, tmp_path):
    header = {"odd": {"dtype": kind, "shape": [4], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"1234")
    refuse(lambda: weights.read(path), "not floating-point", "odd")


def test_variances_and_names():
    zero, minus = np.zeros(2, "f4"), np.array([1, -1e-9], "f4")
    for name in ("bn1.running_var", "batch_stats/bn1/var"):
        assert tensors.as_weights({name: zero}, "a")[name].tolist() == [0, 0]
        refuse(
            lambda name=name: tensors.as_weights({name: minus}, "a"),
            f"a: negative variances in {name}",
        )
    tensors.as_weights({"bn1.running_mean": minus, "var.weight": minus}, "a")
    both = {"module.fc.weight": zero, "fc.weight": zero, "module._orig_mod.b": zero}
    refuse(lambda: weights.to_variables(both, None, None), "fc.weight more than once")


HEADERS = {
    "a list": ("[1]", "is no object"),
    "deep": (nested(100_000), "nested too deep"),
    "widths": ('{"widths": {"hidden.0": 1e99}}', "widths is"),
    "wider": ('{"widths": {"hidden.0": 300}}', "hidden.0 300 channels"),
    "other groups": ('{"widths": {"x": 3}}', "x, which do not exist"),
    "stem": ('{"options": 3}', "options is 3"),
    "mean": ('{"mean": 3}', "mean is 3"),
    "size": ('{"image_size": 1000000000}', "image_size is 1000000000"),
    "name": ('{"model": "evil_module:make"}', "evil_module:make"),
    "no string": ('{"model": 3}', "model is 3"),
}


@pytest.mark.parametrize("text, words", HEADERS.values(), ids=HEADERS)
def test_a_header_that_cannot_be(text, words, tmp_path, capsys):
    path = tmp_path / "a.safetensors"
    save_file({"dense.0.weight": np.zeros((2, 2), "f4")}, path, {"ispasp_jax": text})
    flags = ["--model=mlp", f"--weights={path}", f"--out={tmp_path}/out"]
    assert prune.main(flags) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1, said
    assert list(tmp_path.iterdir()) == [path]


TARGETS = {
    "a link": (lambda p: p.symlink_to(p.parent / "there"), "symbolic link"),
    "a dangling link": (lambda p: p.symlink_to(p.parent / "gone"), "symbolic link"),
    "a loop": (lambda p: p.symlink_to(p), "symbolic link"),
    "of the other kind": (None, "a f"),
    "below a file": ("below", "cannot be written"),
    "a long name": ("x" * 300, "cannot be written"),
}


@pytest.mark.parametrize("make_target, words", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_places_that_cannot_be_written(make_target, words, kind, tmp_path, model):
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("mine")
    target = tmp_path / "target"
    if make_target is None:
        target = tmp_path / ("file" if kind == "folder" else "there")
    elif make_target == "below":
        target = tmp_path / "file" / "target"
    elif isinstance(make_target, str):
        target = tmp_path / make_target
    else:
        make_target(target)
    before = sorted(tmp_path.rglob("*"))
    if kind == "folder":
        refuse(lambda: folders.save(target, model), words)
    else:
        # A command that could not write keeps its work: not the user's input.
        wanted = (OSError, InputError)[words != "cannot be written"]
        with pytest.raises(wanted, match=words if wanted is InputError else "."):
            weights.save_safetensors(target, model.variables, {})
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk(folder, model, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def fill(arrays, path, metadata):
        Path(path).write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left")

    monkeypatch.setattr("safetensors.numpy.save_file", fill)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    refuse(lambda: folders.save(folder, model), "cannot be written", "No space")
    new = tmp_path / "a.safetensors"
    with pytest.raises(OSError, match="cannot be written .*No space"):
        weights.save_safetensors(new, model.variables, {})
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_no_folder_is_written_that_cannot_be_loaded(tmp_path, model):
    broken = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), model.variables)
    broken = model.replace(model.network, broken)
    refuse(lambda: folders.save(tmp_path / "a", broken), "NaN or infinity")
    assert list(tmp_path.iterdir()) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def load_or_sentence(call):
    """What a call gives; None for an InputError of one line."""
    try:
        return call()
    except InputError as error:
        said = str(error)
        assert said and len(said.splitlines()) == 1 and said.isprintable(), said
        return None


@pytest.fixture(scope="module")
def written(tmp_path_factory, model):
    """A model folder whose files are put back before every change."""
    folder = tmp_path_factory.mktemp("fuzz") / "model"
    folders.save(folder, model)
    return folder, {path: path.read_bytes() for path in folder.iterdir()}


def restored(written):
    folder, contents = written
    for path, content in contents.items():
        path.write_bytes(content)
    return folder


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@settings(max_examples=120)
@given(data_=st.data())
def test_flipped_and_cut_bytes(name, data_, written, model):
    """The very same network, or a sentence: never another network."""
    path = restored(written) / name
    content = bytearray(path.read_bytes())
    place = data_.draw(st.integers(0, len(content) - 1))
    match data_.draw(st.sampled_from(["flip", "cut", "insert"])):
        case "flip":
            content[place] ^= data_.draw(st.integers(1, 255))
        case "cut":
            del content[place : place + data_.draw(st.integers(1, len(content)))]
        case "insert":
            content[place:place] = data_.draw(st.binary(min_size=1, max_size=9))
    path.write_bytes(content)
    found = load_or_sentence(lambda: folders.load(path.parent))
    if found is not None:
        assert_same(found, model)
        assert found.preprocessing == PREP
    load_or_sentence(lambda: weights.read(path.parent / "model.safetensors"))


@settings(max_examples=120)
@given(data_=st.data())
def test_any_json_in_a_config(data_, written, model):
    """With the checksums off: the arrays that are there, or a sentence."""
    folder = restored(written)
    key = data_.draw(
        st.sampled_from(
            ["model", "num_classes", "options", "widths", "preprocessing", "format"]
        )
    )

    def change(config):
        inner = config[key]
        if isinstance(inner, dict) and inner and data_.draw(st.booleans()):
            inner[data_.draw(st.sampled_from(sorted(inner)))] = data_.draw(JSON)
        else:
            config[key] = data_.draw(JSON)

    configure(folder, change)
    found = load_or_sentence(lambda: folders.load(folder))
    if found is not None:
        assert found.name == "mlp" and found.input_shape == model.input_shape
        assert data.checked(found.preprocessing)


@settings(max_examples=120)
@given(data_=st.data())
def test_any_json_in_a_header(data_, tmp_path_factory, model):
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    fields = ["model", "num_classes", "widths", "options", *PREP._fields]
    about = data_.draw(st.dictionaries(st.sampled_from(fields), JSON) | JSON)
    array = np.zeros((2, 2), "f4")
    save_file({"dense.0.weight": array}, path, {"ispasp_jax": json.dumps(about)})
    found = load_or_sentence(lambda: weights.read(path))
    assert found is None or found[0].keys() == {"dense.0.weight"}
