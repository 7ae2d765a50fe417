"""A perceptron with ReLU: the paper's two-layer network, and deeper ones.

All its layers are one block with a pair for each hidden layer, layer k + 1 consuming
what layer k made.
"""

import flax.linen as nn

from ispasp_jax.groups import Group
from ispasp_jax.models.layers import Dense
from ispasp_jax.models.network import Block, Network, Part


def layer_groups(depth: int) -> tuple[Group, ...]:
    """A group for each of `depth` hidden layers."""
    return tuple(
        Group(
            str(i),
            axes=((f"dense.{i}/*", -1), (f"dense.{i + 1}/kernel", -2)),
            consumer=(f"dense.{i + 1}",),
        )
        for i in range(depth)
    )


class Layers(Block):
    """Dense layers with a ReLU between any two.

    Attributes:
      features: outputs of the last.
    """

    features: int = 10

    @property
    def groups(self):
        return layer_groups(len(self.widths))

    def setup(self):
        self.dense = [
            Dense(size, name=f"dense.{i}")
            for i, size in enumerate((*self.widths, self.features))
        ]

    def hidden(self, x, i, train=False):
        x = self.dense[0](x.reshape(x.shape[0], -1)) if i == 0 else x
        return nn.relu(x)

    def consumer(self, h, i, train=False):
        return self.dense[i + 1](h)


class MLP(Network):
    """A perceptron.

    Attributes:
      hidden: neurons of each hidden layer.
    """

    hidden: tuple[int, ...] = (256,)

    @nn.nowrap
    def parts(self):
        layers = Layers(self.hidden, self.num_classes, parent=None)
        keys = tuple(f"dense.{i}" for i in range(len(self.hidden) + 1))
        return (Part("hidden", layers, keys=keys),)


def create(num_classes: int, hidden: tuple[int, ...] = (256,)) -> MLP:
    """The paper's two-layer network for one hidden size, a deep one for several."""
    if min(hidden, default=1) < 1:
        raise ValueError("a hidden layer without neurons")
    return MLP(num_classes, hidden=tuple(hidden))


MODELS = {"mlp": create}
