"""An NNX ResNet on handwritten digits, pruned to half its multiply-adds.

The module carries its own variables, so `prune` takes it alone. With `scope="all"` the
residual streams are cut beside the channels inside of blocks.

    python examples/nnx_resnet.py       # about 50 s on two cores

Seven groups, three of them streams. Dense it reads 99 % of the digits.
"""

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import ispasp_jax


class Block(nnx.Module):
    """Two convolutions beside a shortcut, which is a convolution where shapes
    change."""

    def __init__(self, given: int, made: int, stride: int, *, rngs: nnx.Rngs):
        def conv(given, kernel, stride):
            return nnx.Conv(
                given, made, (kernel, kernel), stride, use_bias=False, rngs=rngs
            )

        self.conv1 = conv(given, 3, stride)
        self.norm1 = nnx.BatchNorm(made, rngs=rngs)
        self.conv2 = conv(made, 3, 1)
        self.norm2 = nnx.BatchNorm(made, rngs=rngs)
        self.shortcut = conv(given, 1, stride) if given != made else None

    def __call__(self, x):
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nnx.Module):
    def __init__(self, widths=(16, 32, 64), blocks=(1, 1, 2), *, rngs: nnx.Rngs):
        self.stem = nnx.Conv(1, widths[0], (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(widths[0], rngs=rngs)
        layers, given = [], widths[0]
        for stage, (made, count) in enumerate(zip(widths, blocks, strict=True)):
            for place in range(count):
                stride = 2 if stage and not place else 1
                layers.append(Block(given, made, stride, rngs=rngs))
                given = made
        self.blocks = nnx.List(layers)
        self.classify = nnx.Linear(given, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.classify(x.mean((1, 2)))


def digits():
    """8x8 images and labels to learn from, and to test with."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype(np.float32) / 16
    return train_test_split(images, labels, test_size=400, random_state=0)


def train(model, images, labels, steps):
    model.train()
    optimizer = nnx.Optimizer(model, optax.adam(2e-3), wrt=nnx.Param)

    def loss(model, x, y):
        logits = model(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @nnx.jit
    def step(model, optimizer, x, y):
        optimizer.update(model, nnx.grad(loss)(model, x, y))

    draw = np.random.default_rng(0)
    for _ in range(steps):
        rows = draw.integers(len(images), size=64)
        step(model, optimizer, images[rows], labels[rows])
    model.eval()


def accuracy(apply, images, labels) -> float:
    return float(np.mean(np.argmax(apply(images), -1) == labels))


def count(variables) -> int:
    return sum(array.size for array in jax.tree.leaves(variables))


def main(steps: int = 200):
    images, test_images, labels, test_labels = digits()
    model = ResNet(rngs=nnx.Rngs(0))
    train(model, images, labels, steps)
    print(ispasp_jax.trace(model, None, images[:2]))
    right = accuracy(model, test_images, test_labels)
    print(f"dense: {count(nnx.state(model)):,} numbers, accuracy {right:.1%}")

    batches = [images[start : start + 128] for start in range(0, 1280, 128)]
    pruned = ispasp_jax.prune(
        model, images=batches, keep=ispasp_jax.Budget(macs="50%"), scope="all"
    )
    small = pruned.module  # an nnx.Module, to be called, trained or saved as any other
    right = accuracy(small, test_images, test_labels)
    print(f"pruned: {count(nnx.state(small)):,} numbers, accuracy {right:.1%}")


if __name__ == "__main__":
    main()
