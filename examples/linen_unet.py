"""A Linen U-Net that segments discs and squares, pruned to 60 % of its channels.

Transposed convolutions go up, and every level's map is concatenated with the one that
comes from below, so a skip's channels are read in two places. `scope="all"` cuts those,
too.

    python examples/linen_unet.py       # about 40 s on two cores

Twelve groups, four of them concatenated. Dense it has 116,787 parameters and a mean
overlap of 93 %; 40,844 parameters stay.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import ispasp_jax


class Twice(nn.Module):
    """Two convolutions."""

    features: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(self.features, (3, 3))(x))
        return nn.relu(nn.Conv(self.features, (3, 3))(x))


class UNet(nn.Module):
    features: tuple = (16, 32, 64)
    classes: int = 3

    @nn.compact
    def __call__(self, x):
        *levels, bottom = self.features
        skips = []
        for level, features in enumerate(levels):
            x = Twice(features, name=f"down{level}")(x)
            skips.append(x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = Twice(bottom, name="bottom")(x)
        for level, features in reversed([*enumerate(levels)]):
            x = nn.ConvTranspose(features, (2, 2), (2, 2), name=f"grow{level}")(x)
            x = jnp.concatenate([skips[level], x], axis=-1)
            x = Twice(features, name=f"up{level}")(x)
        return nn.Conv(self.classes, (1, 1), name="classify")(x)


def shapes(count: int, seed: int, side: int = 24):
    """Noisy images of a disc and a square, and the class of every pixel: 0 ground, 1
    disc, 2 square."""
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    labels = np.zeros((count, side, side), np.int32)
    for label in labels:
        y, x, radius = draw.integers(6, side - 6, 2).tolist() + [draw.integers(3, 7)]
        label[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = 1
        y, x, half = draw.integers(6, side - 6, 2).tolist() + [draw.integers(3, 6)]
        label[np.maximum(abs(rows - y), abs(columns - x)) <= half] = 2
    noise = draw.normal(0, 0.3, labels.shape)
    return ((labels > 0) + noise)[..., None].astype(np.float32), labels


def train(model, images, labels, steps):
    variables = model.init(jax.random.key(0), images[:1])
    optimizer = optax.adam(4e-3)
    state = optimizer.init(variables)

    def loss(variables, x, y):
        logits = model.apply(variables, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(variables, state, x, y):
        updates, state = optimizer.update(jax.grad(loss)(variables, x, y), state)
        return optax.apply_updates(variables, updates), state

    draw = np.random.default_rng(0)
    for _ in range(steps):
        rows = draw.integers(len(images), size=16)
        variables, state = step(variables, state, images[rows], labels[rows])
    return variables


def overlap(apply, variables, images, labels, classes: int = 3) -> float:
    """Intersection over union, the mean over classes."""
    found = np.argmax(apply(variables, images), -1)
    pairs = [(found == one, labels == one) for one in range(classes)]
    return float(np.mean([(a & b).sum() / (a | b).sum() for a, b in pairs]))


def count(variables) -> int:
    return sum(array.size for array in jax.tree.leaves(variables))


def main(steps: int = 400):
    (images, labels), (test_images, test_labels) = shapes(512, 0), shapes(128, 1)
    model = UNet()
    variables = train(model, images, labels, steps)
    print(ispasp_jax.trace(model, variables, images[:2]))

    batches = [images[start : start + 32] for start in range(0, 256, 32)]
    pruned = ispasp_jax.prune(model, variables, batches, keep=0.6, scope="all")

    for name, apply, arrays in (
        ("dense", model.apply, variables),
        ("pruned", pruned.apply, pruned.variables),
    ):
        score = overlap(apply, arrays, test_images, test_labels)
        print(f"{name}: {count(arrays):,} parameters, mean overlap {score:.1%}")


if __name__ == "__main__":
    main()
