"""EfficientNet-Lite0 with its published weights, pruned to 80 % of its multiply-adds.

The network is a plain Linen module: inverted residual blocks without squeeze-excite,
ReLU6, batch norm, TensorFlow's padding. XLA's CPU backend is slow at depthwise
convolutions, so they go through `ispasp_jax.models.layers.convolve`, which gives the
same numbers; on a GPU or TPU that hook can be left out.

    ISPASP_DATA=DIR python examples/efficientnet_lite0.py --macs 80%

DIR holds weights/efficientnet_lite0.safetensors (names of the PyTorch port) and
imagenet/train and imagenet/val, each with a labels.csv (file, class_index). 1,000
training images choose the channels, nothing is trained.
"""

import argparse
import csv
import os
import re
from pathlib import Path

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from safetensors.numpy import load_file

import ispasp_jax
from ispasp_jax.models.layers import convolve

#: Blocks, kernel, stride, expansion and output channels of every stage.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class ConvNorm(nn.Module):
    """A convolution without a bias, and batch norm."""

    features: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            self.stride,
            feature_group_count=self.groups,
            use_bias=False,
            conv_general_dilated=convolve,
            name="conv",
        )(x)
        return nn.BatchNorm(not train, momentum=0.99, epsilon=1e-3, name="bn")(x)


class MBConv(nn.Module):
    """Expand, filter each channel by itself, project."""

    features: int
    kernel: int
    stride: int
    expansion: int

    @nn.compact
    def __call__(self, x, train=False):
        wide = x.shape[-1] * self.expansion
        y = x
        if self.expansion > 1:
            y = nn.relu6(ConvNorm(wide, name="expand")(y, train))
        y = ConvNorm(wide, self.kernel, self.stride, wide, name="depthwise")(y, train)
        y = ConvNorm(self.features, name="project")(nn.relu6(y), train)
        return x + y if x.shape == y.shape else y


class EfficientNetLite(nn.Module):
    stages: tuple = STAGES
    stem: int = 32
    head: int = 1280
    classes: int = 1000

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu6(ConvNorm(self.stem, 3, 2, name="stem")(x, train))
        block = 0
        for count, kernel, stride, expansion, features in self.stages:
            for place in range(count):
                step = stride if place == 0 else 1
                name = f"blocks_{block}"
                x = MBConv(features, kernel, step, expansion, name=name)(x, train)
                block += 1
        x = nn.relu6(ConvNorm(self.head, name="head")(x, train))
        return nn.Dense(self.classes, name="fc")(x.mean((1, 2)))


#: Modules of the PyTorch port, and where their arrays lie here.
MODULES = {
    r"_conv_stem": "stem/conv",
    r"_bn0": "stem/bn",
    r"_blocks\.(\d+)\._expand_conv": r"blocks_\1/expand/conv",
    r"_blocks\.(\d+)\._bn0": r"blocks_\1/expand/bn",
    r"_blocks\.(\d+)\._depthwise_conv": r"blocks_\1/depthwise/conv",
    r"_blocks\.(\d+)\._bn1": r"blocks_\1/depthwise/bn",
    r"_blocks\.(\d+)\._project_conv": r"blocks_\1/project/conv",
    r"_blocks\.(\d+)\._bn2": r"blocks_\1/project/bn",
    r"_conv_head": "head/conv",
    r"_bn1": "head/bn",
    r"_fc": "fc",
}
ARRAYS = {
    "running_mean": "batch_stats/{}/mean",
    "running_var": "batch_stats/{}/var",
    "bias": "params/{}/bias",
}


def from_torch(arrays):
    """The port's arrays as this module's variables."""
    variables = {}
    for key, array in arrays.items():
        module, _, name = key.rpartition(".")
        old = next(old for old in MODULES if re.fullmatch(old, module))
        place = ARRAYS.get(name, "params/{}/" + ("kernel", "scale")[array.ndim == 1])
        if array.ndim == 4:  # OIHW
            array = array.transpose(2, 3, 1, 0)
        elif array.ndim == 2:
            array = array.T
        path = place.format(re.sub(old, MODULES[old], module))
        variables[path] = jnp.asarray(array)
    return flax.traverse_util.unflatten_dict(variables, sep="/")


def read(folder: Path, size: int = 224):
    """Images in 0..255, cropped in the centre, and their classes."""
    with open(folder / "labels.csv", newline="") as table:
        rows = list(csv.DictReader(table))
    images = np.empty((len(rows), size, size, 3), np.uint8)
    for image, row in zip(images, rows, strict=True):
        with Image.open(folder / row["file"]) as file:
            picture = file.convert("RGB")
        scale = size / min(picture.size)
        if scale > 1:
            picture = picture.resize([round(scale * side) for side in picture.size])
        left, top = ((side - size) // 2 for side in picture.size)
        image[:] = picture.crop((left, top, left + size, top + size))
    return images, np.array([int(row["class_index"]) for row in rows])


def batches(images, size: int = 50):
    """As the network wants them: (rgb - 127) / 128."""
    for start in range(0, len(images), size):
        yield (images[start : start + size].astype(np.float32) - 127) / 128


def accuracy(apply, variables, images, labels) -> float:
    found = [jnp.argmax(apply(variables, x), -1) for x in batches(images)]
    return float(np.mean(np.concatenate(found) == labels))


def count(variables) -> int:
    return sum(array.size for array in jax.tree.leaves(variables["params"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--macs", default="80%", help="multiply-adds to be left")
    parser.add_argument("--scope", default="inner", choices=("inner", "all"))
    options = parser.parse_args()
    data = Path(os.environ["ISPASP_DATA"])

    model = EfficientNetLite()
    variables = from_torch(load_file(data / "weights/efficientnet_lite0.safetensors"))
    images, labels = read(data / "imagenet/val")
    dense = accuracy(jax.jit(model.apply), variables, images, labels)
    print(f"dense: top-1 {dense:.2%}, {count(variables):,} parameters")

    calibration, _ = read(data / "imagenet/train")
    traced = ispasp_jax.trace(model, variables, next(batches(calibration)))
    print(traced)
    pruned = ispasp_jax.prune(
        model,
        variables,
        batches(calibration),
        keep=ispasp_jax.Budget(macs=options.macs),
        criterion=ispasp_jax.criteria.create("obs"),
        repair="lsq",
        scope=options.scope,
        ignore="head",  # the classifier's inputs: nothing behind them evens errors out
    )
    small = accuracy(jax.jit(pruned.apply), pruned.variables, images, labels)
    print(f"pruned: top-1 {small:.2%}, {count(pruned.variables):,} parameters")
    print(f"{small / dense:.1%} of the dense top-1, {pruned.seconds}")


if __name__ == "__main__":
    main()
