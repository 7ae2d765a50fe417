"""Layers in a scan, rematerialised: each keeps neurons of its own, all as many.

Scanned layers are one layer whose arrays have one more dimension. A group of them has a
width and a number of layers; a plan has a row of channels for each.

    python examples/linen_scan.py       # about 25 s on two cores

One group of 4 x 128 neurons; the stream is normalised over its channels, and stays.
Dense it has 103,434 parameters and reads 97 % of the digits; 29,706 parameters stay.
"""

import flax.linen as nn
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import ispasp_jax


class Layer(nn.Module):
    """A gated perceptron beside the stream."""

    neurons: int

    @nn.compact
    def __call__(self, x, _):
        y = nn.RMSNorm(name="norm")(x)
        gate = nn.silu(nn.Dense(self.neurons, use_bias=False, name="gate")(y))
        y = gate * nn.Dense(self.neurons, use_bias=False, name="up")(y)
        return x + nn.Dense(x.shape[-1], use_bias=False, name="down")(y), None


class Perceptron(nn.Module):
    width: int = 64
    neurons: int = 128
    depth: int = 4

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width, name="embed")(x.reshape(x.shape[0], -1))
        layers = nn.scan(
            nn.remat(Layer, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.depth,
        )
        x, _ = layers(self.neurons, name="layers")(x, None)
        return nn.Dense(10, name="classify")(nn.RMSNorm(name="norm")(x))


def digits():
    """8x8 images and labels to learn from, and to test with."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype(np.float32) / 16
    return train_test_split(images, labels, test_size=400, random_state=0)


def train(model, images, labels, steps):
    variables = model.init(jax.random.key(0), images[:1])
    optimizer = optax.adam(1e-3)
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
        rows = draw.integers(len(images), size=128)
        variables, state = step(variables, state, images[rows], labels[rows])
    return variables


def accuracy(apply, variables, images, labels) -> float:
    return float(np.mean(np.argmax(apply(variables, images), -1) == labels))


def count(variables) -> int:
    return sum(array.size for array in jax.tree.leaves(variables))


def main(steps: int = 500):
    images, test_images, labels, test_labels = digits()
    model = Perceptron()
    variables = train(model, images, labels, steps)
    print(ispasp_jax.trace(model, variables, images[:2]))

    batches = [images[start : start + 128] for start in range(0, 1280, 128)]
    pruned = ispasp_jax.prune(model, variables, batches, keep=0.25)

    for name, apply, arrays in (
        ("dense", model.apply, variables),
        ("pruned", pruned.apply, pruned.variables),
    ):
        right = accuracy(apply, arrays, test_images, test_labels)
        print(f"{name}: {count(arrays):,} parameters, accuracy {right:.1%}")


if __name__ == "__main__":
    main()
