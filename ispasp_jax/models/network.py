"""The protocol of a network that can be pruned, followed by the shipped models and by a
user's own: a chain of parts, some of which are blocks with hidden channels.

A block is a chain of pairs between its input x and its output:

    u = x;  for each pair i:  h = hidden(u, i);  u = consumer(h, i)
    y = join(x, u) = finish(u + skip(x))

hidden(·, i) ends at the channels of groups[i], consumer(·, i) at the next sum or
activation. A basic block is one pair, a bottleneck two, a perceptron one a layer. A
group without axes cannot be cut: its pair is there for the repair, which refits every
consumer. The walk, masks, repair and curves use these steps and nothing else of a
model.

An own model is a `Block` or two and a `Network` that lists them (README, "Your own").
"""

from collections import Counter
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ispasp_jax.errors import InputError
from ispasp_jax.groups import Group
from ispasp_jax.models.layers import Dense

Variables = Mapping[str, Mapping]


class Block(nn.Module):
    """A part with hidden channels. Subclasses give groups, hidden and consumer, and
    where they differ from nothing at all, skip, finish and patches.

    Attributes:
      groups: one for each pair, in the block's own names: paths inside its sub-tree;
        the group's name is appended to the part's ("" for a block with one pair).
      widths: the number of hidden channels of each group that can be cut; static, as
        shapes are.
    """

    groups: ClassVar[tuple[Group, ...]]

    widths: tuple[int, ...] = ()

    def hidden(self, x: Float[Array, "n ..."], i: int, train: bool = False):
        """The i-th hidden activations, from the block's input or the pair before."""
        raise NotImplementedError

    def consumer(self, h: Float[Array, "n ..."], i: int, train: bool = False):
        """What the next layer makes of them, up to the next sum or activation."""
        raise NotImplementedError

    def skip(self, x: Float[Array, "n ..."], train: bool = False):
        """What is added to the last consumer's output."""
        return jnp.zeros((), x.dtype)

    def finish(self, z: Float[Array, "n ..."]):
        """The activation after the sum."""
        return z

    def patches(self, h: Float[Array, "n ..."], i: int, step: int = 1):
        """What the consumer's kernel, as a matrix (-1, features), is multiplied with,
        at every `step`-th row and column of its output: for a 1x1 convolution or a
        dense layer the hidden activations themselves.
        """
        return h if step == 1 else h[:, ::step, ::step]

    def join(self, x: Float[Array, "n ..."], u: Float[Array, "n ..."], train=False):
        """The block's output, from its input and its last consumer's output."""
        return self.finish(u + self.skip(x, train))

    def reach(self, x: Float[Array, "n ..."], i: int, train: bool = False):
        """The i-th hidden activations from the block's input, through all pairs
        before.
        """
        u = x
        for j in range(i):
            u = self.consumer(self.hidden(u, j, train), j, train)
        return self.hidden(u, i, train)

    def __call__(self, x: Float[Array, "n ..."], train: bool = False):
        last = len(self.groups) - 1
        u = self.consumer(self.reach(x, last, train), last, train)
        return self.join(x, u, train)


class Head(Block):
    """Mean over positions, then a dense layer; nothing to cut, something to refit.

    Attributes:
      num_classes: length of the logits.
      name_of_dense: its key in the parameter tree.
    """

    num_classes: int = 1000
    name_of_dense: str = "fc"

    @property
    def groups(self):
        return (Group("", axes=(), consumer=(self.name_of_dense,)),)

    def setup(self):
        self.dense = Dense(self.num_classes, name=self.name_of_dense)

    def hidden(self, x, i, train=False):
        return x.mean((1, 2))

    def consumer(self, h, i, train=False):
        return self.dense(h)


class Part(NamedTuple):
    """One link of the chain.

    Attributes:
      name: its key at the root of the parameter tree, and its prefix in group names.
      module: called as module(x, train); without a parent, so that equal parts are
        equal and compile once.
      keys: for a part whose arrays do not hang below its name: the keys at the root
        that are its own.
    """

    name: str
    module: nn.Module
    keys: tuple[str, ...] = ()


class Network(nn.Module):
    """A chain of parts. Subclasses give `parts`; `widths` makes them narrower.

    Attributes:
      num_classes: length of the logits.
      widths: ((group name, channels), ...) where they differ from the architecture's.
    """

    num_classes: int = 1000
    widths: tuple[tuple[str, int], ...] = ()

    @nn.nowrap
    def parts(self) -> tuple[Part, ...]:
        """The parts from input to output, at the architecture's own widths.

        Every module must be made with `parent=None`.
        """
        raise NotImplementedError

    @nn.nowrap
    def chain(self) -> tuple[Part, ...]:
        """The parts from input to output, at this network's widths.

        Raises:
          InputError: two groups have one name, or a part not a width for each group.
        """
        widths, parts = dict(self.widths), self.parts()
        names = Counter(name for part in parts for name in group_names(part))
        if twice := [name for name, count in names.items() if count > 1]:
            raise InputError(
                f"two groups have the name {twice[0]!r}; give every part, and every "
                "group of a part, a name of its own."
            )

        def narrow(part):
            own, given = group_names(part), getattr(part.module, "widths", ())
            if not own:
                return part
            if len(own) != len(given):
                raise InputError(
                    f"part {part.name!r} has {len(own)} groups that can be cut "
                    f"({', '.join(own)}) and the widths {tuple(given)}; give one for "
                    "each of them, and none for a group without axes."
                )
            module = part.module.clone(widths=tuple(map(widths.get, own, given)))
            return part._replace(module=module)

        return tuple(narrow(part) for part in parts)

    @nn.nowrap
    def groups(self) -> dict[str, Group]:
        """Every group by name, with paths from the root of the parameter tree."""
        return {
            name: group.within("" if part.keys else part.name, name)
            for part in self.parts()
            for name, group in zip(group_names(part), cuttable(part), strict=True)
        }

    @nn.nowrap
    def group_widths(self) -> dict[str, int]:
        """How many channels each group has."""
        return {
            name: channels
            for part in self.chain()
            if group_names(part)
            for name, channels in zip(
                group_names(part), part.module.widths, strict=True
            )
        }

    @nn.nowrap
    def narrowed(self, widths: Mapping[str, int]) -> "Network":
        """This network with other widths for some groups."""
        return self.clone(widths=tuple({**dict(self.widths), **widths}.items()))

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n ..."] | Float[np.ndarray, "n ..."],
        train: bool = False,
    ):
        for part in self.chain():
            # A part with keys of its own at the root shares the network's scope.
            place = (
                {"parent": self.scope}
                if part.keys
                else {"parent": self, "name": part.name}
            )
            x = part.module.clone(**place)(x, train)
        return x


def cuttable(part: Part) -> tuple[Group, ...]:
    """A part's groups that can be cut, in the block's own names."""
    if not isinstance(part.module, Block):
        return ()
    return tuple(group for group in part.module.groups if group.axes)


def group_names(part: Part) -> tuple[str, ...]:
    """The full names of a part's groups that can be cut."""
    return tuple(
        f"{part.name}.{group.name}" if group.name else part.name
        for group in cuttable(part)
    )


def subtree(variables: Variables, part: Part) -> dict[str, dict]:
    """The part's own variables: what `part.module.apply` takes."""

    def cut(tree):
        if part.keys:
            return {key: tree[key] for key in part.keys if key in tree}
        return tree.get(part.name, {})

    return {name: cut(tree) for name, tree in variables.items()}


def graft(variables: Variables, part: Part, own: Variables) -> dict[str, dict]:
    """The variables with a part's own replaced: the inverse of `subtree`."""

    def put(tree, branch):
        if part.keys:
            return {**tree, **branch}
        return {**tree, part.name: branch} if branch else dict(tree)

    return {name: put(tree, own.get(name, {})) for name, tree in variables.items()}


def shapes(network: Network, input_shape: tuple[int, ...]) -> dict:
    """The network's variables as jax.ShapeDtypeStruct, without computing anything.

    Args:
      network: any network.
      input_shape: (height, width, channels) of one image.
    """
    image = jax.ShapeDtypeStruct((1, *input_shape), "float32")
    return jax.eval_shape(network.init, jax.random.key(0), image)
