"""Weights in and out: every naming against an independent float64 network, round trips
bit for bit, and every sentence that a user may get to read.
"""

import json
import re
import sys
import types

import hypothesis
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy_networks as reference
import pytest
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import ispasp_jax
from ispasp_jax import data, export, graph, models, weights
from ispasp_jax.cli import loading
from ispasp_jax.errors import InputError
from ispasp_jax.graph.check import random_plan
from ispasp_jax.weights import files, hub

SIZE, CLASSES = 64, 7
DEPTHS = {"18": (2, 2, 2, 2), "34": (3, 4, 6, 3), "50": (3, 4, 6, 3), "20": (3, 3, 3)}


def make_state(model):
    rng = np.random.default_rng(0)
    if model.endswith("mobilenetv2"):
        return reference.make_mobilenetv2(rng, CLASSES)
    depth = model.removeprefix("flax_").removeprefix("resnet")
    return reference.make_resnet(
        rng, DEPTHS[depth], CLASSES, bottleneck=depth == "50", cifar=depth == "20"
    )


def reference_logits(model, state, images):
    forward = (
        reference.mobilenetv2 if model.endswith("mobilenetv2") else reference.resnet
    )
    same = model.startswith(("tf_", "flax_"))
    return forward(state, images.astype(np.float64).transpose(0, 3, 1, 2), same)


def load(arrays, model, **options):
    network = models.create(model, CLASSES)
    shape = (SIZE, SIZE, 3)
    return network, weights.to_variables(arrays, network, shape, **options)


def images(count=2, size=SIZE):
    rng = np.random.default_rng(1)
    return rng.standard_normal((count, size, size, 3)).astype(np.float32)


def assert_same_function(model, state, arrays):
    network, variables = load(arrays, model)
    logits = jax.jit(network.apply)(variables, images())
    wanted = reference_logits(model, state, images())
    assert np.abs(wanted).max() > 0.5
    np.testing.assert_allclose(logits, wanted, atol=1e-4 * np.abs(wanted).max())


def timm_name(name):
    """timm's name of an array of torchvision's MobileNetV2."""
    for ours, theirs in {
        r"features\.0\.0": "conv_stem",
        r"features\.0\.1": "bn1",
        r"features\.18\.0": "conv_head",
        r"features\.18\.1": "bn2",
        r"classifier\.1": "classifier",
    }.items():
        if re.match(ours + r"\.[a-z]", name):
            return re.sub(ours, theirs, name, count=1)
    index, layer, leaf = re.fullmatch(
        r"features\.(\d+)\.conv\.([\d.]+)\.(\w+)", name
    ).groups()
    stage_ends = (1, 3, 6, 10, 13, 16, 17)
    stage = next(s for s, end in enumerate(stage_ends) if int(index) <= end)
    block = int(index) - (stage_ends[stage - 1] if stage else 0) - 1
    layers = ["0.0", "0.1", "1.0", "1.1", "2", "3"]
    names = ["conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"]
    if stage == 0:
        block, layers = 0, ["0.0", "0.1", "1", "2"]
        names = ["conv_dw", "bn1", "conv_pw", "bn2"]
    return f"blocks.{stage}.{block}.{names[layers.index(layer)]}.{leaf}"


def flax_arrays(state, depths, bottleneck):
    """The arrays as flax/examples/imagenet names and lays them out."""
    modules = {"conv1": "conv_init", "bn1": "bn_init", "fc": "Dense_0"}
    kind, blocks = "BottleneckResNetBlock" if bottleneck else "ResNetBlock", 0
    for stage, depth in enumerate(depths, 1):
        for i in range(depth):
            for layer in (1, 2, 3):
                conv, norm = f"Conv_{layer - 1}", f"BatchNorm_{layer - 1}"
                modules[f"layer{stage}.{i}.conv{layer}"] = f"{kind}_{blocks}/{conv}"
                modules[f"layer{stage}.{i}.bn{layer}"] = f"{kind}_{blocks}/{norm}"
            modules[f"layer{stage}.{i}.downsample.0"] = f"{kind}_{blocks}/conv_proj"
            modules[f"layer{stage}.{i}.downsample.1"] = f"{kind}_{blocks}/norm_proj"
            blocks += 1
    arrays = {}
    for name, array in state.items():
        module, _, leaf = name.rpartition(".")
        path = modules[module]
        if leaf.startswith("running_"):
            arrays[f"batch_stats/{path}/{leaf.removeprefix('running_')}"] = array
        elif array.ndim == 1:
            leaf = {"weight": "scale"}.get(leaf, leaf)
            arrays[f"params/{path}/{leaf}"] = array
        else:
            order = (2, 3, 1, 0) if array.ndim == 4 else (1, 0)
            kernel = np.ascontiguousarray(array.transpose(order))
            arrays[f"params/{path}/kernel"] = kernel
    return arrays


def nested(arrays):
    tree = {}
    for path, array in arrays.items():
        *folders, leaf = path.split("/")
        branch = tree
        for folder in folders:
            branch = branch.setdefault(folder, {})
        branch[leaf] = array
    return tree


@pytest.mark.parametrize(
    "model", ["resnet34", "resnet50", "resnet20", "mobilenetv2", "tf_mobilenetv2"]
)
def test_torchvision_names_and_numbers(model):
    state = make_state(model)
    assert_same_function(model, state, state)


def test_timm_names():
    state = make_state("mobilenetv2")
    renamed = {timm_name(name): array for name, array in state.items()}
    assert len(renamed) == len(state) and not renamed.keys() & state.keys()
    assert_same_function("mobilenetv2", state, renamed)


@pytest.mark.parametrize("depth", ["18", "50"])
def test_flax_names(depth):
    state = make_state(f"flax_resnet{depth}")
    arrays = flax_arrays(state, DEPTHS[depth], depth == "50")
    assert_same_function(f"flax_resnet{depth}", state, arrays)


def test_flax_names_are_refused_where_the_padding_is_torchs():
    arrays = flax_arrays(make_state("resnet18"), DEPTHS["18"], False)
    with pytest.raises(InputError, match="unexpected: conv_init"):
        load(arrays, "resnet18")


@pytest.mark.parametrize("kind", ["safetensors", "msgpack", "old", "orbax"])
def test_flax_files(tmp_path, kind):
    arrays = flax_arrays(make_state("flax_resnet18"), DEPTHS["18"], False)
    tree = {"step": np.int32(3), "opt_state": {}, **nested(arrays)}
    path = tmp_path / "checkpoint_3"
    if kind == "safetensors":
        path = tmp_path / "a.safetensors"
        save_file(arrays, path)
    elif kind == "orbax":
        import orbax.checkpoint as ocp

        ocp.PyTreeCheckpointer().save(path, jax.tree.map(jnp.asarray, tree))
    else:
        from flax import serialization

        if kind == "old":
            target = {"params": tree["params"]}
            state = {"batch_stats": tree["batch_stats"]}
            tree = {"optimizer": {"target": target}, "model_state": state}
        path.write_bytes(serialization.msgpack_serialize(tree))
    found, _ = weights.read(path)
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    load(found, "flax_resnet18")


def state_with_average(step):
    """A training state's arrays: the weights are 1, their average is 2."""
    return {
        "params": {"fc": {"kernel": np.full((2, 2), 1, np.float32)}},
        "ema_params": {"fc": {"kernel": np.full((2, 2), 2, np.float32)}},
        "step": np.int32(step),
    }


@pytest.fixture(scope="module")
def managed(tmp_path_factory):
    """Folders of Orbax's CheckpointManager: one item, a named one, several."""
    import orbax.checkpoint as ocp

    root = tmp_path_factory.mktemp("orbax")
    save = ocp.args.StandardSave
    states = {
        "one": lambda step: save(state_with_average(step)),
        "named": lambda step: ocp.args.Composite(
            state=save(state_with_average(step)), about=ocp.args.JsonSave({"a": 1})
        ),
        "several": lambda step: ocp.args.Composite(
            a=save(state_with_average(step)), b=save(state_with_average(step))
        ),
    }
    for name, state in states.items():
        with ocp.CheckpointManager(root / name) as manager:
            for step in (2, 10):
                manager.save(step, args=state(step))
            manager.wait_until_finished()
    return root


@pytest.mark.parametrize(
    "place, taken",
    [
        ("one", "one/10/default"),
        ("one/2", "one/2/default"),
        ("one/2/default", ""),
        ("named", "named/10/state"),
        ("several/10/b", ""),
    ],
)
def test_folders_of_orbaxs_manager(place, taken, managed):
    for ema, value in ((False, 1), (True, 2)):
        arrays, about = weights.read(managed / place, ema=ema)
        assert arrays["params/fc/kernel"].max() == value and len(arrays) == 1
        assert taken in about["taken"]
        which = "moving average" if ema else "weights themselves, not the moving av"
        assert which in about["taken"]


def test_folders_of_orbaxs_manager_that_leave_a_choice(managed, tmp_path):
    with pytest.raises(InputError, match=r"several states \(a, b\).*several/10"):
        weights.read(managed / "several")
    with pytest.raises(InputError, match="not a Flax checkpoint"):
        weights.read(managed / "named/2/about")
    (tmp_path / "7").mkdir()
    with pytest.raises(InputError, match="not a Flax checkpoint"):
        weights.read(tmp_path)


def test_a_checkpoint_that_announces_more_than_it_holds(tmp_path, monkeypatch):
    """Orbax would fill a terabyte with zeros."""
    import orbax.checkpoint as ocp

    zeros = {"params": {"fc": {"kernel": np.zeros((2000, 1000), np.float32)}}}
    ocp.PyTreeCheckpointer().save(tmp_path / "a", zeros)
    assert weights.read(tmp_path / "a")[0]["params/fc/kernel"].shape == (2000, 1000)
    monkeypatch.setattr(files, "_SMALL", 2**20)
    with pytest.raises(InputError, match="it announces 8000000 bytes of arrays and"):
        weights.read(tmp_path / "a")


@hypothesis.settings(max_examples=80)
@hypothesis.given(data=st.data())
def test_flipped_and_cut_msgpack(data, tmp_path_factory):
    from flax import serialization

    path = tmp_path_factory.getbasetemp() / "fuzz.msgpack"
    content = bytearray(serialization.msgpack_serialize(state_with_average(1)))
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= data.draw(st.integers(1, 255))
    else:
        del content[place : place + data.draw(st.integers(1, len(content)))]
    path.write_bytes(content)
    try:
        arrays, _ = weights.read(path)
    except InputError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert all(
            a.dtype == np.float32 and np.isfinite(a).all() for a in arrays.values()
        )


def test_an_average_that_is_not_there(tmp_path):
    from flax import serialization

    state = state_with_average(1)
    del state["ema_params"]
    (tmp_path / "a.msgpack").write_bytes(serialization.msgpack_serialize(state))
    assert "taken" not in weights.read(tmp_path / "a.msgpack")[1]
    with pytest.raises(InputError, match="no moving average of weights"):
        weights.read(tmp_path / "a.msgpack", ema=True)


@pytest.mark.parametrize("model", ["resnet18", "mobilenetv2"])
def test_what_comes_in_goes_out(tmp_path, model):
    state = make_state(model)
    network, variables = load(state, model)
    weights.save_safetensors(tmp_path / "a.safetensors", variables, {"model": model})
    saved = load_file(tmp_path / "a.safetensors")
    assert saved.keys() == state.keys()
    assert all(np.array_equal(saved[name], state[name]) for name in state)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("model", ["resnet20", "mobilenetv2", "mlp"])
def test_a_pruned_network_survives_the_round_trip(tmp_path, model):
    network, shape = models.create(model, CLASSES), (32, 32, 3)
    variables = jax.jit(network.init)(jax.random.key(0), images(1, 32))
    traced = graph.trace(network, variables, images(2, 32))
    plan = random_plan(traced)
    small = traced.take(plan, variables)
    widths = {name: len(one.kept) for name, one in plan.items()}
    path = tmp_path / "pruned.safetensors"
    about = {"model": model, "widths": widths, "note": "half"}
    weights.save_safetensors(path, small, about)

    arrays, metadata = weights.read(str(path))
    assert metadata["note"] == "half" and metadata["widths"] == widths
    expected = traced.take(graph.widths.first(traced, widths), traced.variables)
    loaded = weights.to_variables(arrays, network, shape, expected=expected)
    assert jax.tree.structure(loaded) == jax.tree.structure(small)
    jax.tree.map(np.testing.assert_array_equal, loaded, small)

    with pytest.raises(InputError, match="of another shape: .* instead of"):
        weights.to_variables(arrays, network, shape)


def test_names_of_the_first_version():
    """Its perceptron's layers were dense.0, dense.1, ..."""
    network = models.create("mlp", CLASSES, hidden=[5, 4])
    variables = jax.jit(network.init)(jax.random.key(0), images(1, 8))
    arrays = weights.to_torchvision(variables)
    renamed = {"hidden.0": "dense.0", "hidden.1": "dense.1", "output": "dense.2"}
    earlier = {
        f"{renamed[layer]}.{leaf}": array
        for (layer, _, leaf), array in zip(
            (name.rpartition(".") for name in arrays), arrays.values(), strict=True
        )
    }
    found = weights.to_variables(earlier, network, (8, 8, 3))
    jax.tree.map(np.testing.assert_array_equal, found, dict(variables))


def test_an_interrupted_save_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    network, variables = load(make_state("resnet20"), "resnet20")
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"before")

    def stop(arrays, temporary, metadata):
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.numpy.save_file", stop)
    with pytest.raises(KeyboardInterrupt):
        weights.save_safetensors(path, variables, {"model": "resnet20"})
    assert path.read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 1


def test_half_precision_prefixes_and_counters(tmp_path):
    state = make_state("resnet20")
    for name, dtype in (("conv1.weight", np.float16), ("bn1.bias", ml_dtypes.bfloat16)):
        state[name] = state[name].astype(dtype)
    wrapped = {f"module.{name}": array for name, array in state.items()}
    wrapped["module.bn1.num_batches_tracked"] = np.zeros(1, np.int64)
    save_file(wrapped, tmp_path / "a.safetensors")
    arrays, _ = weights.read(tmp_path / "a.safetensors")
    assert arrays.keys() == state.keys()
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(arrays["bn1.bias"], state["bn1.bias"].astype("f4"))
    load(arrays, "resnet20")


def test_aliases_are_written_as_they_are_read(tmp_path):
    network, variables = load(make_state("resnet20"), "resnet20")
    names = {n.rpartition(".")[0] for n in make_state("resnet20")}
    theirs = {f"net.{name}": name for name in names}
    weights.save_safetensors(tmp_path / "a.safetensors", variables, {}, theirs)
    arrays, _ = weights.read(tmp_path / "a.safetensors")
    assert {n.rpartition(".")[0] for n in arrays} == theirs.keys()
    found = weights.to_variables(arrays, network, (32, 32, 3), aliases=theirs)
    jax.tree.map(np.testing.assert_array_equal, found, variables)
    with pytest.raises(InputError, match="two arrays would be called bn1.weight"):
        weights.to_torchvision(variables, {"bn1": "conv1"})


def test_own_aliases():
    state = make_state("resnet20")
    state = {name.replace("bn1", "norm_one", 1): a for name, a in state.items()}
    names = {m.rpartition(".")[0] for m in state if "norm_one" in m}
    load(state, "resnet20", aliases={m: m.replace("norm_one", "bn1") for m in names})


def test_the_last_layer_may_be_called_fc_or_linear():
    state = make_state("resnet20")
    load({name.replace("linear", "fc"): a for name, a in state.items()}, "resnet20")


def test_a_wrong_model_is_told_from_both_sides():
    state = make_state("resnet20")
    del state["bn1.bias"]
    state |= {f"extra.{i}.weight": np.zeros(1, np.float32) for i in range(9)}
    state["conv1.weight"] = np.zeros((16, 1, 3, 3), np.float32)
    with pytest.raises(InputError) as error:
        load(state, "resnet20", source="a.safetensors")
    message = str(error.value)
    assert message.startswith("a.safetensors: not the weights of this network")
    assert "missing: bn1.bias;" in message
    assert "unexpected: extra.0.weight," in message and "(9 in all)" in message
    assert "conv1.weight (16, 1, 3, 3) instead of (16, 3, 3, 3)" in message
    assert "give the model" in message and "extra.5" not in message


def test_another_number_of_classes_wants_a_new_head():
    state = make_state("resnet20")
    state["linear.weight"] = np.zeros((5, 64), np.float32)
    state["linear.bias"] = np.zeros(5, np.float32)
    with pytest.raises(InputError, match="for 5 classes, but 7 are wanted.*new_head"):
        load(state, "resnet20")
    network, variables = load(state, "resnet20", new_head=True)
    fresh = jax.jit(network.init)(jax.random.key(0), images(1))
    for leaf in ("kernel", "bias"):
        head = [tree["params"]["linear"][leaf] for tree in (variables, fresh)]
        np.testing.assert_allclose(*head, rtol=1e-6)
    kernel = variables["params"]["conv1"]["kernel"]
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), state["conv1.weight"])


def test_no_classifier_wants_a_new_head():
    state = make_state("mobilenetv2")
    state = {name: a for name, a in state.items() if "classifier" not in name}
    with pytest.raises(InputError, match="classifier is missing.*new_head"):
        load(state, "mobilenetv2")
    load(state, "mobilenetv2", new_head=True)


def test_unusable_files(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        weights.read(tmp_path / "none.safetensors")
    for name, sentence in (
        ("a.safetensors", "not a readable .safetensors file"),
        ("a.onnx", "unknown kind of file"),
        ("a.msgpack", "not a Flax checkpoint"),
    ):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1")
        with pytest.raises(InputError, match=sentence):
            weights.read(tmp_path / name)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="not a Flax checkpoint"):
        weights.read(tmp_path / "folder")


def test_nan_is_refused_by_name(tmp_path):
    state = make_state("resnet20")
    state["layer2.0.bn1.bias"][3] = np.nan
    state["conv1.weight"][0, 0, 0, 0] = np.inf
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="NaN or infinity in") as error:
        weights.read(tmp_path / "a.safetensors")
    assert "layer2.0.bn1.bias" in str(error.value) and "conv1" in str(error.value)


class Tensor:
    """As much of torch's as is used."""

    def __init__(self, array):
        self.array = array

    @property
    def dtype(self):
        return f"torch.{self.array.dtype}"

    def float(self):
        return Tensor(self.array.astype(np.float32))

    def detach(self):
        return self

    def numpy(self):
        return self.array


def test_pth(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    path.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="PyTorch is not installed.*s.save_file"):
        weights.read(path)

    state = make_state("resnet20")
    holds = {"epoch": 3, "state_dict": {f"module.{n}": Tensor(state[n]) for n in state}}

    def torch_load(file, *, map_location, weights_only):
        assert weights_only and map_location == "cpu"
        if isinstance(holds, Exception):
            raise holds
        return holds

    torch = types.SimpleNamespace(load=torch_load, Tensor=Tensor)
    monkeypatch.setitem(sys.modules, "torch", torch)
    arrays, metadata = weights.read(path)
    assert arrays.keys() == state.keys() and metadata == {}
    average = {name: Tensor(2 * array) for name, array in state.items()}
    holds = {**holds, "state_dict_ema": average}
    for ema in (False, True):
        arrays, metadata = weights.read(path, ema=ema)
        name = "bn1.weight"
        np.testing.assert_array_equal(arrays[name], state[name] * (1 + ema))
        assert "average" in metadata["taken"]
    holds = {"epoch": 3}
    with pytest.raises(InputError, match="no state dict in it"):
        weights.read(path)
    holds = RuntimeError("Unsupported global: resnet.ResNet\nmore")
    with pytest.raises(InputError, match=r"refuses it \(Unsupported .*ResNet\); save"):
        weights.read(path)


TIMM = {
    "architecture": "mobilenetv2_100",
    "num_classes": CLASSES,
    "pretrained_cfg": {
        "num_classes": 1000,
        "input_size": [3, 224, 224],
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    },
}


def test_preprocessing_of_the_hub():
    found = hub.preprocessing(TIMM, "a")
    assert found == {
        "architecture": "mobilenetv2_100",
        "num_classes": CLASSES,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "image_size": 224,
        "resize": 256,
    }
    assert hub.preprocessing({}, "a") == {}


#: What timm's config may hold, and what the sentence about it has to.
HUBS = {
    "a list": ([1], "cannot be followed"),
    "no object": ({"pretrained_cfg": "x"}, "cannot be followed"),
    "mean": ({"mean": "abc"}, "mean is ('a', 'b', 'c')"),
    "one mean": ({"mean": 3}, "cannot be followed"),
    "std": ({"std": [0.0, 0.0, 0.0]}, "std is (0.0, 0.0, 0.0)"),
    "size": ({"input_size": [3, 10**9, 10**9]}, "image_size is 1000000000"),
    "no size": ({"input_size": []}, "input_size without numbers"),
    "tiny crop": ({"input_size": [3, 8, 8], "crop_pct": 1e-320}, "cannot be followed"),
    "odd crop": ({"input_size": [3, 8, 8], "crop_pct": "1"}, "cannot be followed"),
    "classes": ({"num_classes": -1}, "num_classes is -1"),
    "name": ({"architecture": 3}, "architecture is 3"),
}


@pytest.mark.parametrize("config, words", HUBS.values(), ids=HUBS)
def test_a_hubs_config_that_cannot_be(config, words, tmp_path):
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    calls = [
        lambda: hub.preprocessing(config, "a"),
        lambda: weights.read(tmp_path / "model.safetensors"),
    ]
    for call in calls[isinstance(config, list) :]:
        with pytest.raises(InputError, match="config.json cannot be followed") as error:
            call()
        assert words in str(error.value)


def test_a_local_copy_of_a_hubs_repository_has_its_preprocessing(tmp_path):
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(TIMM))
    _, about = weights.read(tmp_path / "model.safetensors")
    assert about == hub.preprocessing(TIMM, "a")
    (tmp_path / "config.json").write_text('{"epochs": 3}')  # of anything else
    assert weights.read(tmp_path / "model.safetensors")[1] == {}


@pytest.mark.parametrize(
    "model, theirs, words",
    [
        ("mobilenetv2", "mobilenetv2_100", None),
        ("resnet50", "resnet50", None),
        ("resnet50", None, None),
        ("tf_mobilenetv2", "mobilenetv2_100", "not a tf_mobilenetv2; give --model mob"),
        ("resnet50", "resnetaa50", "holds a resnetaa50 by its config.json, not a res"),
        ("resnet20", "resnet18", "give --model resnet18 or other weights"),
        ("mlp", "a\nb", "holds a 'a\\nb' by"),
    ],
)
def test_another_architecture_by_the_hubs_config(model, theirs, words):
    about = {"architecture": theirs} if theirs else {}
    if words is None:
        loading._check_hub("hf:some/one", model, about)
        return
    with pytest.raises(InputError, match=re.escape(words)):
        loading._check_hub("hf:some/one", model, about)


def test_another_interpolation_is_said(capsys):
    model = "resnet50"
    loading._check_hub("hf:some/one", model, {"interpolation": "bilinear"})
    assert capsys.readouterr().err == ""
    loading._check_hub("hf:some/one", model, {"interpolation": "bicubic"})
    assert "resized by bicubic interpolation" in capsys.readouterr().err


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """huggingface_hub with its download replaced: files in `cached`, then `online`."""
    package = pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants, errors

    fake = types.SimpleNamespace(cached={}, online={}, asked=[])

    def download(repo, name, *, revision, local_files_only=False):
        fake.asked.append((repo, name, revision, local_files_only))
        there = fake.cached if local_files_only else fake.online
        if isinstance(there.get(name), Exception):
            raise there[name]
        if name not in there:
            kinds = (errors.EntryNotFoundError, errors.LocalEntryNotFoundError)
            raise kinds[local_files_only](name)
        return str(there[name])

    monkeypatch.setattr(package, "hf_hub_download", download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_reachable", lambda endpoint: True)
    fake.file = tmp_path / "model.safetensors"
    save_file(make_state("resnet20"), fake.file)
    fake.config = tmp_path / "config.json"
    fake.config.write_text(json.dumps(TIMM))
    return fake


def test_hub_download_and_cache(fake_hub):
    fake_hub.online = {"model.safetensors": fake_hub.file}
    arrays, metadata = weights.read("hf:timm/some@v1")
    assert len(arrays) == len(make_state("resnet20")) and "mean" not in metadata
    assert fake_hub.asked[0] == ("timm/some", "model.safetensors", "v1", True)
    assert fake_hub.asked[1] == ("timm/some", "model.safetensors", "v1", False)
    fake_hub.cached = fake_hub.online | {"config.json": fake_hub.config}
    fake_hub.asked.clear()
    _, metadata = weights.read("hf:timm/some")
    assert metadata["resize"] == 256
    assert {asked[2:] for asked in fake_hub.asked} == {(None, True)}


def test_hub_errors(fake_hub, monkeypatch):
    from huggingface_hub import errors

    with pytest.raises(InputError, match="the repository has no model.safetensors"):
        weights.read("hf:timm/some")
    fake_hub.online = {"model.safetensors": OSError("disk full")}
    with pytest.raises(InputError, match="download failed .disk full."):
        weights.read("hf:timm/some")
    fake_hub.online = {
        "model.safetensors": fake_hub.file,
        "config.json": RuntimeError("timed out"),
    }
    with pytest.raises(InputError, match="download failed .timed out."):
        weights.read("hf:timm/some")
    fake_hub.config.write_text("<html>")
    fake_hub.online["config.json"] = fake_hub.config
    with pytest.raises(InputError, match="config.json is not JSON"):
        weights.read("hf:timm/some")
    missing = errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError)
    fake_hub.online = {"model.safetensors": missing}
    with pytest.raises(InputError, match="no such repository or revision"):
        weights.read("hf:timm/some")
    fake_hub.cached = {"model.safetensors": errors.HFValidationError("bad")}
    with pytest.raises(InputError, match="is no name of a repository"):
        weights.read("hf:a//b")
    fake_hub.cached = {}
    monkeypatch.setattr(hub, "_reachable", lambda endpoint: False)
    with pytest.raises(InputError, match="cannot be reached and its cache has no"):
        weights.read("hf:timm/some")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'ispasp_jax\[hub\]'"):
        weights.read("hf:timm/some")


def test_an_unreachable_hub_is_found_out_without_the_package(monkeypatch):
    for name in ("https_proxy", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert not hub._reachable("http://127.0.0.1:9")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert hub._reachable("http://127.0.0.1:9")


@pytest.mark.parametrize("depth, correct", [(20, 915), (56, 926)])
def test_published_accuracy_on_cifar10(data_folder, depth, correct):
    """91.50 % and 92.60 % of the first 1,000 test images, as in PyTorch."""
    source = f"{data_folder}/weights/cifar10_resnet{depth}.safetensors"
    network = models.create(f"resnet{depth}", 10)
    arrays, _ = weights.read(source)
    variables = weights.to_variables(arrays, network, (32, 32, 3), source=source)
    with np.load(f"{data_folder}/cifar10/cifar10_lossless.npz") as file:
        x, y = file["x_test"], file["y_test"].ravel()
    x = (x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    predict = jax.jit(lambda x: network.apply(variables, x).argmax(-1))
    labels = np.concatenate([predict(b.astype(np.float32)) for b in np.split(x, 4)])
    assert (labels == y).sum() == correct


def test_the_header_is_json_under_one_key(tmp_path):
    network, variables = load(make_state("resnet20"), "resnet20")
    given = {"model": "resnet20", "widths": {"layer1.0": 3}}
    weights.save_safetensors(tmp_path / "a", variables, given)
    with safe_open(tmp_path / "a", "numpy") as file:
        about = json.loads(file.metadata()["ispasp_jax"])
    assert about == given


def test_a_published_network_comes_back_from_the_hub(fake_hub, tmp_path):
    """Written as it would be uploaded, and read through the package's cache: narrower
    than the architecture, with the widths that its config says."""
    network = models.create("resnet20", 10)
    x = jnp.zeros((2, 32, 32, 3))
    held = jax.jit(network.init)(jax.random.key(0), x)
    found = ispasp_jax.prune(network, held, [x + 0.1], 0.5, repair="none")
    prep = data.Preprocessing(32, None, (0.0,) * 3, (1.0,) * 3)
    dense = ispasp_jax.Model("resnet20", network, held, prep)
    small = dense.cut(found.plan, found.variables)
    ispasp_jax.save(tmp_path / "result" / "model", small)
    report = {"stages": [{"stage": "dense", "top1": 0.915, "loss": 0.4}], "seed": 3}
    report |= {"method": "obs", "data": "digits", "versions": {"ispasp_jax": "0.2"}}
    report |= {name: {"macs": 1, "params": 2} for name in ("dense", "pruned")}
    (tmp_path / "result" / "report.json").write_text(json.dumps(report))
    place = tmp_path / "hub"
    assert export.push(tmp_path / "result", f"folder:{place}") == str(place)
    card = (place / "README.md").read_text()
    assert "91.50" in card and "by obs on digits, seed 3" in card
    fake_hub.cached = {path.name: path for path in place.iterdir()}
    loaded = ispasp_jax.load("hf:someone/resnet20")
    kept = {name: len(cut.kept) for name, cut in found.plan.items()}
    assert kept.items() <= loaded.widths.items() and len(kept) == 9
    np.testing.assert_array_equal(loaded(x), small(x))
    with pytest.raises(InputError, match="is there already; give a new folder"):
        export.push(tmp_path / "result", f"folder:{place}")
    with pytest.raises(InputError, match="holds no result: expected model/config.json"):
        export.push(tmp_path / "nowhere", "someone/else")
