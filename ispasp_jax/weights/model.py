"""A network with its variables and all that is needed to use it."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Shaped

from ispasp_jax import models, walk
from ispasp_jax.data import Inputs
from ispasp_jax.errors import InputError
from ispasp_jax.graph import (
    Plan,
    Traced,
    adapters,
    modules,
    trace,
    widths,
)
from ispasp_jax.weights import stablehlo


@dataclasses.dataclass(frozen=True)
class Model:
    """A network with its variables and all that is needed to use it.

    Attributes:
      name: of the architecture, as `--model` takes it.
      network: a model of any framework that takes the variables (of graph.modules,
        where they are fewer than the architecture's), or a program (of stablehlo).
      variables: its variables, a program's by key path; their shapes, of an
        architecture alone.
      preprocessing: how images become inputs; None where nobody said.
      options: of the architecture, such as {"stem": "small"}.
    """

    name: str
    network: Any
    variables: Any
    preprocessing: Inputs | None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(height, width, channels) of an image, or (tokens,) of a text."""
        if self.preprocessing is None:
            return self.network.inputs[0][0][1:]
        return self.preprocessing.shape

    @property
    def images(self) -> Inputs:
        """How images, or texts, become inputs.

        Raises:
          InputError: nobody said.
        """
        if self.preprocessing is None:
            raise InputError(
                f"nobody said how images become inputs of {self.name}; give it a "
                "preprocessing."
            )
        return self.preprocessing

    @functools.cached_property
    def traced(self) -> Traced:
        """What the network's equations say of its channels, on a batch of two."""
        inputs = [models.inputs(self.input_shape, 2)]
        if isinstance(self.network, stablehlo.Stored):
            inputs = [
                jax.ShapeDtypeStruct((2, *shape[1:]), dtype)
                for shape, dtype in self.network.inputs
            ]
        return trace(self.network, self.variables, *inputs)

    @functools.cached_property
    def unselectable(self) -> dict[str, str]:
        """Groups that no criterion can be asked of, and why."""
        return walk.unselectable(self.traced)

    @property
    def widths(self) -> dict[str, int]:
        """How many channels each group has."""
        return {group.name: group.width for group in self.traced.groups}

    @property
    def dense_widths(self) -> dict[str, int]:
        """How many channels are here of each group of the architecture; one that is cut
        to a single channel is a group there only."""
        return widths.counted(self.dense, self.variables, self._known)

    @property
    def _known(self) -> dict[str, int]:
        """Widths that the network itself knows."""
        if not isinstance(self.network, modules.Evaluated):
            return {}
        return {n: one.kept.shape[-1] for n, one in self.network.plan.items()}

    @functools.cached_property
    def dense(self) -> Traced:
        """What the equations of the architecture, at its own widths, say of them."""
        network = modules.whole(self.network)
        if isinstance(self.network, modules.Evaluated):
            return self.network.traced
        if isinstance(self.network, stablehlo.Stored):
            return self.traced
        if not isinstance(network, nn.Module):
            made = models.create(self.name, self.num_classes, **self.options)
            return of(self.name, made, self.preprocessing, self.options).traced
        if network is self.network and self.variables:
            return self.traced
        shapes = models.shapes(network, self.input_shape)
        return trace(network, shapes, models.inputs(self.input_shape, 2))

    @property
    def num_classes(self) -> int:
        """Length of the logits."""
        known = getattr(self.network, "num_classes", None)
        return known or self.traced.program.outputs[0].shape[-1]

    def resize(self, variables: Any, known: Mapping[str, int] | None = None) -> "Model":
        """The architecture with variables that any plan, or several, left of it.

        Args:
          variables: what is left.
          known: channels of groups of which the arrays do not tell how many there are.

        Raises:
          InputError: they are not this architecture's, cut; or it closes over arrays of
            which it matters which channels stay.
        """
        network = modules.whole(self.network)
        counts = widths.counted(self.dense, variables, known)
        plan = widths.first(self.dense, counts)
        plan = {n: one for n, one in plan.items() if one.kept.shape[-1] < one.width}
        if plan:
            network = modules.applicable(network, self.dense, plan, variables)
        if isinstance(network, modules.Evaluated):
            if not widths.by_number(self.dense, plan):
                raise InputError(
                    f"{self.name} holds arrays that are not its variables, and its "
                    "widths do not say which places of them stay; prune it again."
                )
        return self.replace(network, variables)

    def cut(self, plan: Plan, variables: Any) -> "Model":
        """This model with the variables that a plan leaves of it."""
        if not plan:
            return self.replace(self.network, variables)
        module = modules.whole(self.network)
        if module is self.network:
            network = modules.applicable(module, self.traced, plan, variables)
            return self.replace(network, variables)
        known = {n: one.kept.shape[-1] for n, one in plan.items()}
        return self.resize(variables, self.dense_widths | known)

    def replace(self, network: Any, variables: Any) -> "Model":
        """The same model with another network, as after pruning or training."""
        return dataclasses.replace(self, network=network, variables=variables)

    def __call__(self, images: Shaped[Array, "n ..."]) -> Float[Array, "n classes"]:
        """Logits of preprocessed images, or of texts' tokens."""
        return _logits(adapters.learner(self.network), self.variables, images)


def of(
    name: str,
    made: Any,
    preprocessing: Inputs | None,
    options: Mapping[str, Any],
) -> Model:
    """An architecture, as `models.create` made it; Linen's has no arrays yet.

    Raises:
      InputError: of Linen's, where nobody said what its inputs are.
    """
    if isinstance(made, tuple):
        network, variables = made
    elif isinstance(made, nn.Module):
        if preprocessing is None:
            raise InputError(f"nobody said of what size {name}'s inputs are")
        network, variables = made, models.shapes(made, preprocessing.shape)
    else:
        network, variables = made, adapters.function(made)[1]
    return Model(name, network, variables, preprocessing, options)


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, variables, images):
    return model.evaluate(variables, images)
