"""The examples at small sizes: the groups that a person finds in each model, cut equal
to masked, and prune.
"""

import fnmatch
import importlib.util
import os
from pathlib import Path

import jax
import numpy as np
import pytest

import ispasp_jax
from ispasp_jax import graph
from ispasp_jax.graph import adapters

FOLDER = Path(__file__).parents[1] / "examples"


def example(name):
    """The example's module, imported by its path; skips where its framework is not
    installed."""
    framework = name.partition("_")[0]
    if framework in ("equinox", "haiku"):
        pytest.importorskip(framework)
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def linen(model, x):
    return model, random(jax.eval_shape(model.init, jax.random.key(0), x)), x


def random(shapes):
    """Arrays of these shapes, none of them zero; statistics' variances are positive."""
    draw = np.random.default_rng(0)

    def array(path, leaf):
        positive = "var" in str(path[-1]) or "scale" in str(path[-1])
        made = draw.normal(size=leaf.shape) / max(1, leaf.size) ** 0.25
        return (np.abs(made) + 0.5 if positive else made).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(array, shapes)


def images(side=8, channels=1, count=4):
    draw = np.random.default_rng(1)
    return draw.normal(size=(count, side, side, channels)).astype(np.float32)


def linen_cnn():
    return linen(example("linen_cnn").CNN((6, 8), 12), images())


def linen_unet():
    return linen(example("linen_unet").UNet((4, 6, 8)), images(16))


def nnx_resnet():
    from flax import nnx

    model = example("nnx_resnet").ResNet((4, 6), (1, 2), rngs=nnx.Rngs(0))
    model.eval()
    return model, None, images()


def equinox_cnn():
    model = example("equinox_cnn").CNN(jax.random.key(0), (4, 6, 8), 12)
    return model, None, np.moveaxis(images(), -1, 1)


def haiku_mobilenetv1():
    model, x = example("haiku_mobilenetv1").mobilenet(4, ((6, 1), (8, 2))), images()
    return model, model.init(jax.random.key(0), x, True), x


def linen_vit():
    model = example("linen_vit").ViT(8, depth=2, heads=2, neurons=12, patch=4)
    return linen(model, images())


def linen_densenet():
    return linen(example("linen_densenet").DenseNet((2, 1), growth=4), images())


def linen_squeeze_excite():
    model = example("linen_squeeze_excite").Network(8, 12, depth=2, group=2)
    return linen(model, images())


def linen_scan():
    return linen(example("linen_scan").Perceptron(6, 10, depth=3), images())


def linen_masked_lm():
    module = example("linen_masked_lm")
    return linen(module.MaskedLM(8, 1, 2, 12), module.sentences(4, 0)[0])


def efficientnet_lite0():
    module = example("efficientnet_lite0")
    stages = ((1, 3, 1, 1, 4), (2, 5, 2, 2, 6))
    return linen(module.EfficientNetLite(stages, 8, 12, 5), images(16, 3))


#: Of every example: each group's name, kind and width, in the order of the network.
GROUPS = {
    linen_cnn: """
        Conv_0 inner 6
        Conv_1 inner 8
        Dense_0 inner 12
    """,
    # Of each pair of convolutions, the first is read by the second alone. The second is
    # read below and, beside what grows up again, above; the bottom's below alone.
    linen_unet: """
        down0 inner 4
        down0.Conv_1 concatenated 4
        down1 inner 6
        down1.Conv_1 concatenated 6
        bottom inner 8
        bottom.Conv_1 inner 8
        grow1 concatenated 6
        up1 inner 6
        up1.Conv_1 inner 6
        grow0 concatenated 4
        up0 inner 4
        up0.Conv_1 inner 4
    """,
    nnx_resnet: """
        stream.stem stream 4
        blocks.0 inner 4
        blocks.1 inner 6
        stream.blocks.1 stream 6
        blocks.2 inner 6
    """,
    equinox_cnn: """
        convs.0 inner 4
        convs.1 inner 6
        convs.2 inner 8
        hidden inner 12
    """,
    # The stem runs through the first depthwise convolution, and so on; the last
    # pointwise one is read by the classifier.
    haiku_mobilenetv1: """
        separable_0 inner 4
        separable_1 inner 6
        separable_1.pointwise inner 8
    """,
    linen_vit: """
        layer0.attention.key product 4
        layer0.attention.value.1 head 2
        layer0.attention.value.2 inner 4
        layer0 inner 12
        layer1.attention.key product 4
        layer1.attention.value.1 head 2
        layer1.attention.value.2 inner 4
        layer1 inner 12
    """,
    linen_densenet: """
        stem concatenated 8
        block0_layer0 inner 16
        block0_layer0.conv2 concatenated 4
        block0_layer1 inner 16
        block0_layer1.conv2 concatenated 4
        shrink1 concatenated 8
        block1_layer0 inner 16
        block1_layer0.conv2 concatenated 4
    """,
    # Channels go in twos, a group of the group norm: 8 and 12 of them are 4 and 6.
    linen_squeeze_excite: """
        stream.stem stream 4
        block0 shared 6
        block0.gate inner 3
        block1 shared 6
        block1.gate inner 3
    """,
    linen_scan: "layers inner 10",
    linen_masked_lm: """
        layer0.attention.key product 4
        layer0.attention.value.1 head 2
        layer0.attention.value.2 inner 4
        layer0 inner 12
    """,
    efficientnet_lite0: """
        blocks_0 inner 8
        blocks_0.project linear 4
        blocks_1 inner 8
        stream.blocks_1 stream 6
        blocks_2 inner 12
        head inner 12
    """,
}


@pytest.mark.parametrize("make", GROUPS, ids=lambda make: make.__name__)
def test_the_groups_are_found_and_cut_equals_masked(make):
    model, variables, x = make()
    traced = graph.trace(model, variables, x)
    found = {group.name: (group.kind, str(group.width)) for group in traced.groups}
    lines = (line.split() for line in GROUPS[make].strip().splitlines())
    assert found == {name: (kind, width) for name, kind, width in lines}, str(traced)
    assert [group.layers for group in traced.groups if group.layers] == (
        [3] if make is linen_scan else []
    )
    _, carried = adapters.function(model, variables)
    assert graph.check(traced, carried, x) <= 1e-4


#: Examples whose `prune` cuts more than inner groups.
ALL = (linen_unet, nnx_resnet, linen_vit, linen_densenet, linen_squeeze_excite)
ALL += (linen_masked_lm,)


#: Whose programs compile in seconds.
QUICK = (linen_cnn, linen_vit, linen_scan, linen_masked_lm)


@pytest.mark.parametrize(
    "make",
    [pytest.param(m, marks=[pytest.mark.slow][m in QUICK :]) for m in GROUPS],
    ids=lambda make: make.__name__,
)
def test_prune_gives_narrower_arrays_and_the_function_of_masked_ones(make):
    model, variables, x = make()
    scope = "all" if make in ALL else "inner"
    pruned = ispasp_jax.prune(
        model, variables, [x, x[::-1]], keep=0.5, repair="none", scope=scope
    )
    traced = graph.trace(model, variables, x)
    cuttable = {group.name for group in graph.scope(traced.groups, scope)}
    assert cuttable and set(pruned.plan) == cuttable
    function, carried = adapters.function(model, variables)
    assert size(pruned.variables) < size(carried)
    expected = function(traced.mask(pruned.plan, carried), x)
    found = pruned.apply(pruned.variables, x)
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found / largest, expected / largest, atol=1e-4)


def size(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_every_example_is_tried_and_says_what_it_is():
    names = {make.__name__ for make in GROUPS}
    files = {path.stem: path.read_text() for path in FOLDER.glob("*.py")}
    assert set(files) == names
    for name, text in files.items():
        assert f"python examples/{name}.py" in text.partition('"""\n\nimport')[0]
        assert text.endswith('if __name__ == "__main__":\n    main()\n')


#: Where `keep` or `ignore` of an example names groups, of its full-sized model.
GLOBS = {
    haiku_mobilenetv1: ["*", "separable_3"],
    linen_vit: ["*", "*.attention*"],
    linen_masked_lm: ["*", "*.attention*"],
    linen_squeeze_excite: ["stream.*"],
}


def test_globs_of_the_examples_match_groups():
    for make, globs in GLOBS.items():
        text = (FOLDER / f"{make.__name__}.py").read_text()
        names = [line.split()[0] for line in GROUPS[make].strip().splitlines()]
        names.append("separable_3")  # the small one has fewer layers
        for glob in globs:
            assert f'"{glob}"' in text and fnmatch.filter(names, glob)


def test_the_weights_of_efficientnet_lite0_fit(data_folder):
    from safetensors.numpy import load_file

    module = example("efficientnet_lite0")
    file = os.path.join(data_folder, "weights", "efficientnet_lite0.safetensors")
    variables = module.from_torch(load_file(file))
    model = module.EfficientNetLite()
    x = jax.ShapeDtypeStruct((2, 224, 224, 3), np.float32)
    expected = jax.eval_shape(model.init, jax.random.key(0), x)
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), variables)
    assert shapes == jax.tree.map(lambda a: (a.shape, a.dtype), expected)
    assert module.count(variables) == 4_652_008
    traced = graph.trace(model, variables, x)
    assert len(traced) == 24
    expanded = 96 + 2 * 144 + 2 * 240 + 3 * 480 + 3 * 672 + 4 * 1152
    inner = graph.scope(traced.groups)
    assert sum(group.width for group in inner) == 32 + expanded + 1280
