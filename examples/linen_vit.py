"""A Linen vision transformer on handwritten digits: heads and neurons are cut.

What LayerNorm reads cannot be cut, so the residual stream stays. What can: the neurons
of every perceptron, the heads, and the value width within a head (`scope="all"`). The
query-key width has no weights that read it, and stays as well.

    python examples/linen_vit.py        # about 40 s on two cores

Twelve groups, four a layer; one of each four is a product, which no scope cuts. Dense
it has 102,666 parameters and reads 93 % of the digits; 60,822 parameters stay.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import ispasp_jax


class Encoder(nn.Module):
    """Attention and a perceptron, each normalised before."""

    heads: int
    neurons: int

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(name="norm1")(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, name="attention")(y)
        y = nn.LayerNorm(name="norm2")(x)
        y = nn.gelu(nn.Dense(self.neurons, name="expand")(y))
        return x + nn.Dense(x.shape[-1], name="project")(y)


class ViT(nn.Module):
    width: int = 64
    depth: int = 3
    heads: int = 4
    neurons: int = 128
    patch: int = 2

    @nn.compact
    def __call__(self, x):
        side = (self.patch, self.patch)
        x = nn.Conv(self.width, side, strides=side, padding="VALID", name="embed")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        token = self.param("token", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)
        small = nn.initializers.normal(0.02)
        x = x + self.param("places", small, (1, x.shape[1], self.width))
        for layer in range(self.depth):
            x = Encoder(self.heads, self.neurons, name=f"layer{layer}")(x)
        return nn.Dense(10, name="classify")(nn.LayerNorm(name="norm")(x[:, 0]))


def digits():
    """8x8 images and labels to learn from, and to test with."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype(np.float32) / 16
    return train_test_split(images, labels, test_size=400, random_state=0)


def train(model, images, labels, steps):
    variables = model.init(jax.random.key(0), images[:1])
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0, 2e-3, 50, steps))
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
        rows = draw.integers(len(images), size=64)
        variables, state = step(variables, state, images[rows], labels[rows])
    return variables


def accuracy(apply, variables, images, labels) -> float:
    return float(np.mean(np.argmax(apply(variables, images), -1) == labels))


def count(variables) -> int:
    return sum(array.size for array in jax.tree.leaves(variables))


def main(steps: int = 400):
    images, test_images, labels, test_labels = digits()
    model = ViT()
    variables = train(model, images, labels, steps)
    print(ispasp_jax.trace(model, variables, images[:2]))

    batches = [images[start : start + 128] for start in range(0, 1280, 128)]
    keep = {"*": 0.5, "*.attention*": 0.75}  # neurons; heads and their value widths
    pruned = ispasp_jax.prune(model, variables, batches, keep=keep, scope="all")

    for name, apply, arrays in (
        ("dense", model.apply, variables),
        ("pruned", pruned.apply, pruned.variables),
    ):
        right = accuracy(apply, arrays, test_images, test_labels)
        print(f"{name}: {count(arrays):,} parameters, accuracy {right:.1%}")


if __name__ == "__main__":
    main()
