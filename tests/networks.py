"""Small networks of every shipped kind, and weights with no trivial statistic."""

import jax
import jax.numpy as jnp
import numpy as np

from ispasp_jax.graph.by_hand import leaves
from ispasp_jax.models.mlp import MLP
from ispasp_jax.models.mobilenetv2 import MobileNetV2
from ispasp_jax.models.resnet import ResNet

SHAPE = (7, 8, 3)


#: Three blocks of MobileNetV2: one with a stride, one with a skip.
TINY = {"stages": ((1, 5, 1, 1), (4, 6, 2, 2)), "channels": (12, 16)}

NETWORKS = {
    "basic": ResNet(4, depths=(2, 1), base=10, stem="small"),
    "bottleneck": ResNet(4, depths=(1, 1), base=10, stem="small", bottleneck=True),
    "same": ResNet(4, depths=(1, 1), base=10, padding="SAME"),
    "cifar": ResNet(
        4, depths=(1, 1), base=10, stem="small", shortcut="pad", dense="linear"
    ),
    "mobile": MobileNetV2(4, **TINY),
    "tf_mobile": MobileNetV2(4, padding="SAME", **TINY),
    "mlp": MLP(4, hidden=(24, 18, 12)),
}


def blocks(num_classes):
    """Three residual blocks, as a user names them: networks:blocks."""
    return ResNet(num_classes, depths=(3,), base=8, stem="small")


def randomised(tree, seed=0):
    """Arrays of the tree's shapes: kernels that keep the variance, statistics as
    training leaves them, some scales negative.
    """
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        last = path.rsplit("/", 1)[-1]
        if last == "kernel":
            return rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))
        if last == "var":
            return rng.uniform(0.5, 2, shape)
        if last == "scale":
            return rng.uniform(0.4, 1.0, shape) * rng.choice([1, 1, 1, -1], shape)
        return 0.3 * rng.normal(size=shape)

    flat = {path: leaf.shape for path, leaf in leaves(tree)}
    drawn = {path: jnp.asarray(draw(path, s), jnp.float32) for path, s in flat.items()}

    def rebuild(branch, prefix=""):
        return {
            key: rebuild(value, f"{prefix}{key}/")
            if isinstance(value, dict)
            else drawn[f"{prefix}{key}"]
            for key, value in branch.items()
        }

    return rebuild(tree)


def variables_of(network, shape=SHAPE, seed=0):
    """Random variables of a network on images of this shape."""
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return randomised(jax.eval_shape(network.init, jax.random.key(0), image), seed)


def images_of(n, shape=SHAPE, seed=0):
    """Random images, continuous, so that no scores tie."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, *shape)).astype(np.float32)
