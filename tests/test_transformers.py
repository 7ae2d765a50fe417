"""ViT and BERT: the published networks, number by number, and their files."""

import fnmatch
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ispasp_jax import check, models, trace, weights
from ispasp_jax.data import Preprocessing, Text
from ispasp_jax.errors import InputError
from ispasp_jax.graph.by_hand import leaves
from ispasp_jax.graph.widths import first
from ispasp_jax.models.bert import BERT
from ispasp_jax.models.vit import ViT

sys.path.append(str(Path(__file__).parent / "golden"))
import published as golden  # noqa: E402

GOLDEN = json.loads(golden.PLACE.read_text())
SIZES = {"width": golden.WIDTH, "heads": golden.HEADS, "depth": golden.DEPTH}
IMAGE, TEXT = (golden.SIDE, golden.SIDE, 3), (len(golden.TOKENS[0]),)


def vit(**options) -> ViT:
    return ViT(golden.CLASSES, golden.PATCH, **SIZES, **options)


def bert() -> BERT:
    return BERT(
        golden.CLASSES, **SIZES, vocabulary=golden.WORDS, positions=golden.POSITIONS,
        separator=golden.SEPARATOR,
    )  # fmt: skip


def file_of(network, shape, theirs=str) -> dict[str, np.ndarray]:
    """A file of the network with the golden numbers, by the names of others."""
    variables = jax.tree.map(lambda a: np.zeros(a.shape), models.shapes(network, shape))
    arrays = weights.to_torchvision(variables)
    named = {theirs(name): array.shape for name, array in arrays.items()}
    return {name: golden.draw(name, shape) for name, shape in named.items()}


def hugging_face(network: ViT):
    """Ours of the ViT -> Hugging Face's: queries, keys and values apart."""
    names = {ours: theirs for theirs, ours in models.aliases(network).items()}

    def theirs(name):
        module, _, leaf = name.rpartition(".")
        return names.get(name) or f"{names[module]}.{leaf}"

    return theirs


def apart(network: ViT) -> dict[str, np.ndarray]:
    theirs, result = hugging_face(network), {}
    for name, array in file_of(network, IMAGE).items():
        parts = {name: array}
        if ".qkv." in name:
            names = [name.replace("qkv", part) for part in ("query", "key", "value")]
            parts = dict(zip(names, np.split(array, 3), strict=True))
        for one, part in parts.items():
            result[theirs(one)] = golden.draw(theirs(one), part.shape)
    return result


def logits(network, shape, arrays, x):
    variables = weights.to_variables(arrays, network, shape)
    return jax.jit(network.apply)(variables, x)


@pytest.mark.parametrize("name", ["timm token", "timm avg", "vit", "bert"])
def test_logits_are_the_published_networks(name):
    x, shape = golden.images(), IMAGE
    network = vit(pooling="mean" if name == "timm avg" else "token")
    if name == "bert":
        network, x, shape = bert(), jnp.array(golden.TOKENS), TEXT
    arrays = apart(network) if name == "vit" else file_of(network, shape)
    result = logits(network, shape, arrays, x)
    expected = np.array(GOLDEN[name])
    np.testing.assert_allclose(result, expected, atol=1e-4 * np.abs(expected).max())


def test_older_files_of_bert_have_other_names():
    network = bert()
    arrays = file_of(network, TEXT)
    older = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array
        for name, array in arrays.items()
    }
    older["cls.predictions.bias"] = np.zeros(golden.WORDS, np.float32)
    older["bert.embeddings.position_ids"] = np.arange(golden.POSITIONS)
    expected, result = (weights.to_variables(a, network, TEXT) for a in (arrays, older))
    jax.tree.map(np.testing.assert_array_equal, expected, result)
    bare = {name.removeprefix("bert."): array for name, array in arrays.items()}
    result = weights.to_variables(bare, network, TEXT)
    jax.tree.map(np.testing.assert_array_equal, expected, result)


CUTS = {"*.mlp": 5, "*.dense": 5, "*.value.1": 2, "*.value.2": 3, "*.key": 2}


def some_cut(traced):
    """A plan that leaves of every group what it may."""

    sizes = {
        group: size
        for glob, size in CUTS.items()
        for group in traced
        if fnmatch.fnmatch(group, glob)
    }
    return first(traced, sizes)


@pytest.mark.parametrize("make, shape", [(vit, IMAGE), (bert, TEXT)])
def test_a_cut_network_goes_through_files_bit_by_bit(make, shape, tmp_path):
    network = make()
    arrays = file_of(network, shape)
    variables = weights.to_variables(arrays, network, shape)
    x = models.inputs(shape, 2)
    traced = trace(network, variables, x)
    plan = some_cut(traced)
    assert len(plan) > 4 * golden.DEPTH - 1
    small = traced.take(plan, variables)
    path = tmp_path / "small.safetensors"
    weights.save_safetensors(path, small, {"model": "x"})
    back, _ = weights.read(path)
    expected = traced.take(plan, models.shapes(network, shape))
    result = weights.to_variables(back, network, shape, expected=expected)
    jax.tree.map(np.testing.assert_array_equal, small, result)
    heads = dict(leaves(small))
    assert any(2 in array.shape for array in heads.values())


@pytest.mark.parametrize("make, shape", [(vit, IMAGE), (bert, TEXT)])
def test_cut_is_masked(make, shape):
    network = make()
    variables = weights.to_variables(file_of(network, shape), network, shape)
    x = golden.images() if len(shape) == 3 else jnp.array(golden.TOKENS)
    traced = trace(network, variables, x)
    assert check(traced, variables, x, plan=some_cut(traced)) < 1e-5
    reasons = " ".join(one.reason for one in traced.whole)
    assert "reduce_sum" in reasons  # LayerNorm goes over the residual stream


@pytest.mark.parametrize("longer", [0, 1, 5])
def test_padding_changes_nothing(longer):
    network = bert()
    variables = weights.to_variables(file_of(network, TEXT), network, TEXT)
    tokens = jnp.array(golden.TOKENS)
    expected = network.apply(variables, tokens)
    result = network.apply(variables, jnp.pad(tokens, [(0, 0), (0, longer)]))
    np.testing.assert_allclose(result, expected, atol=1e-5)
    alone = network.apply(variables, tokens[3:, :2])
    np.testing.assert_allclose(alone, expected[3:], atol=1e-5)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_small_patch32_224", "deit_base_patch16_224"]
)
def test_registry_has_timms_sizes(name):
    network = models.create(name, 1000)
    count = sum(a.size for a in jax.tree.leaves(models.shapes(network, (224, 224, 3))))
    known = {  # timm's
        "vit_tiny_patch16_224": 5_717_416,
        "vit_small_patch32_224": 22_878_952,
        "deit_base_patch16_224": 86_567_656,
    }
    assert count == known[name]


@pytest.mark.parametrize(
    "name, count", [("bert_tiny", 4_385_920), ("bert_base", 109_482_240)]
)
def test_registry_has_berts_sizes(name, count):
    network = models.create(name, 2)
    made = models.shapes(network, (16,))
    head = 2 * network.width + 2
    assert sum(a.size for a in jax.tree.leaves(made)) == count + head


def saved(tmp_path, network, shape, plan_of):
    """A cut network as a folder for transformers: its config and its arrays."""
    prep = Preprocessing(golden.SIDE, None, (0.5,) * 3, (0.5,) * 3)
    prep = prep if len(shape) == 3 else Text(shape[0], "{}")
    variables = weights.to_variables(file_of(network, shape), network, shape)
    model = weights.Model("x", network, variables, prep)
    plan = first(model.traced, plan_of(model.traced))
    model = model.cut(plan, model.traced.take(plan, variables))
    weights.save_transformers(tmp_path / "out", model)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    arrays, _ = weights.read(tmp_path / "out" / "model.safetensors")
    return model, config, arrays


def sized(globs):
    """Sizes of the groups that match."""
    return lambda traced: {
        group: size
        for glob, size in globs.items()
        for group in fnmatch.filter(traced, glob)
    }


@pytest.mark.parametrize("make, shape", [(vit, IMAGE), (bert, TEXT)])
def test_transformers_read_neurons_and_heads(make, shape, tmp_path):
    network = make()
    cut = {"*mlp": 5, "*intermediate*": 5, "*.0*.value.1": 1}
    model, config, arrays = saved(tmp_path, network, shape, sized(cut))
    assert config["intermediate_size"] == 5
    assert config["pruned_heads"] == {"0": [1, 2]}
    assert config["hidden_size"] == golden.WIDTH
    name = "encoder.layer.0.intermediate.dense.weight"
    prefix = config["model_type"]
    assert arrays[f"{prefix}.{name}"].shape == (5, golden.WIDTH)
    assert not any(".attn." in name or "qkv" in name for name in arrays)
    back = weights.to_variables(arrays, network, shape, expected=model.variables)
    jax.tree.map(np.testing.assert_array_equal, back, model.variables)


@pytest.mark.parametrize(
    "cut, said",
    [
        ({"*.0.mlp": 5}, "one number for all"),
        ({"*.value.2": 2}, "heads are narrower"),
    ],
)
def test_widths_that_transformers_cannot_have_are_refused(cut, said, tmp_path):
    with pytest.raises(InputError, match=said):
        saved(tmp_path, vit(), IMAGE, sized(cut))
