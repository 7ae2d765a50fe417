"""A perceptron with ReLU: the paper's two-layer network, and deeper ones."""

import flax.linen as nn
from jaxtyping import Array, Float

from ispasp_jax.models.layers import Dense


class MLP(nn.Module):
    """A perceptron.

    Attributes:
      num_classes: length of the logits.
      hidden: neurons of each hidden layer.
    """

    num_classes: int = 10
    hidden: tuple[int, ...] = (256,)

    @nn.compact
    def __call__(self, x: Float[Array, "n ..."], train: bool = False):
        x = x.reshape(x.shape[0], -1)
        for layer, size in enumerate(self.hidden):
            x = nn.relu(Dense(size, name=f"hidden.{layer}")(x))
        return Dense(self.num_classes, name="output")(x)


def earlier_names(network: MLP) -> dict[str, str]:
    """The layers' names in version 0.1.0."""
    names = [f"hidden.{layer}" for layer in range(len(network.hidden))]
    return {f"dense.{i}": name for i, name in enumerate([*names, "output"])}


def create(num_classes: int, hidden: tuple[int, ...] = (256,)) -> MLP:
    """The paper's two-layer network for one hidden size, a deep one for several."""
    if min(hidden, default=1) < 1:
        raise ValueError("a hidden layer without neurons")
    return MLP(num_classes, tuple(hidden))


MODELS = {"mlp": create}
ALIASES = {MLP: earlier_names}
