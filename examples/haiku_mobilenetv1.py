"""A Haiku MobileNetV1 on handwritten digits, pruned with a ratio for each layer.

Depthwise convolutions keep their channels apart, so a pointwise convolution's channels
run through the depthwise one behind it and are read by the next pointwise one.

    python examples/haiku_mobilenetv1.py        # about 50 s on two cores

Five groups. Dense it has 18,826 parameters and reads 97 % of the digits; 4,943
parameters stay. Haiku's moving averages keep a copy that evaluation does not read; it
is cut as well.
"""

import haiku as hk
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import ispasp_jax


class Separable(hk.Module):
    """A depthwise and a pointwise convolution, each normalised."""

    def __init__(self, features: int, stride: int, name=None):
        super().__init__(name)
        self.features, self.stride = features, stride

    def __call__(self, x, training):
        x = hk.DepthwiseConv2D(
            1, 3, stride=self.stride, with_bias=False, name="depthwise"
        )(x)
        x = jax.nn.relu(norm("depthwise_norm")(x, training))
        x = hk.Conv2D(self.features, 1, with_bias=False, name="pointwise")(x)
        return jax.nn.relu(norm("pointwise_norm")(x, training))


def norm(name):
    return hk.BatchNorm(True, True, 0.9, name=name)


def mobilenet(stem: int = 16, layers=((32, 1), (64, 2), (64, 1), (128, 2))):
    """Stem, then features and stride of every separable convolution."""

    def forward(x, training=False):
        x = hk.Conv2D(stem, 3, with_bias=False, name="stem")(x)
        x = jax.nn.relu(norm("stem_norm")(x, training))
        for place, (features, stride) in enumerate(layers):
            x = Separable(features, stride, name=f"separable_{place}")(x, training)
        return hk.Linear(10, name="classify")(x.mean((1, 2)))

    return hk.transform_with_state(forward)


def digits():
    """8x8 images and labels to learn from, and to test with."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype(np.float32) / 16
    return train_test_split(images, labels, test_size=400, random_state=0)


def train(model, images, labels, steps):
    params, averages = model.init(jax.random.key(0), images[:1], True)
    optimizer = optax.adam(2e-3)
    state = optimizer.init(params)

    def loss(params, averages, x, y):
        logits, averages = model.apply(params, averages, None, x, True)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return each.mean(), averages

    @jax.jit
    def step(params, averages, state, x, y):
        gradients, averages = jax.grad(loss, has_aux=True)(params, averages, x, y)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), averages, state

    draw = np.random.default_rng(0)
    for _ in range(steps):
        rows = draw.integers(len(images), size=64)
        params, averages, state = step(
            params, averages, state, images[rows], labels[rows]
        )
    return params, averages


def accuracy(logits, labels) -> float:
    return float(np.mean(np.argmax(logits, -1) == labels))


def count(variables) -> int:
    return sum(array.size for array in jax.tree.leaves(variables))


def main(steps: int = 200):
    images, test_images, labels, test_labels = digits()
    model = mobilenet()
    variables = params, averages = train(model, images, labels, steps)
    print(ispasp_jax.trace(model, variables, images[:2]))
    logits, _ = model.apply(params, averages, None, test_images)
    right = accuracy(logits, test_labels)
    print(f"dense: {count(params):,} parameters, accuracy {right:.1%}")

    batches = [images[start : start + 128] for start in range(0, 1280, 128)]
    pruned = ispasp_jax.prune(
        model, variables, batches, keep={"*": 0.5, "separable_3": 0.4}
    )
    params, averages = pruned.variables
    right = accuracy(pruned.apply(pruned.variables, test_images), test_labels)
    print(f"pruned: {count(params):,} parameters, accuracy {right:.1%}")


if __name__ == "__main__":
    main()
