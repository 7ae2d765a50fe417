"""A Linen module whose layers have the sizes of the arrays that they are given."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from flax.core import meta


class Narrower(nn.Module):
    """A Linen module whose layers have the sizes of the arrays that they are given.

    Attributes:
      original: the module as its author wrote it.
      blocks: by the path of every group norm, how many channels one of its groups has.
    """

    original: nn.Module
    blocks: tuple[tuple[str, int], ...] = ()

    def setup(self):
        nn.share_scope(self, self.original)  # so that no path changes

    def __call__(self, *args, **kwargs):
        sized = functools.partial(_sized, dict(self.blocks))
        with nn.intercept_methods(sized):
            return self.original(*args, **kwargs)

    @property
    def num_classes(self) -> int:
        """Of a classifier."""
        return self.original.num_classes


def group_sizes(function: Callable[..., Any], *shapes: Any) -> dict[str, int]:
    """By the path of every group norm, how many channels one of its groups has.

    Args:
      function: runs a module at full width.
      *shapes: of what it takes; nothing is computed.
    """
    sizes = {}

    def record(following, args, kwargs, context):
        module = context.module
        if isinstance(module, nn.GroupNorm) and module.num_groups:
            if context.method_name == "__call__":
                path = _path(module)
                sizes[path] = args[0].shape[-1] // module.num_groups
        return following(*args, **kwargs)

    with nn.intercept_methods(record):
        # A function of its own: jax does not run again what it has traced before.
        jax.eval_shape(lambda *arrays: function(*arrays), *shapes)
    return sizes


def _path(module: nn.Module) -> str:
    """Of a module that is running."""
    assert module.scope is not None
    return "/".join(module.scope.path)


def _sized(blocks, following, args, kwargs, context):
    """Calls a layer's method with its fields as its arrays have them."""
    module = context.module
    wanted = _fields(module, blocks, args)
    before = {name: getattr(module, name) for name in wanted}
    try:
        for name, value in wanted.items():
            object.__setattr__(module, name, value)
        return following(*args, **kwargs)
    finally:
        for name, value in before.items():
            object.__setattr__(module, name, value)


def _fields(module: nn.Module, blocks, args) -> dict[str, Any]:
    """What a layer's fields have to say, by the arrays that are there."""
    if isinstance(module, nn.GroupNorm):
        size = blocks.get(_path(module))
        return {"num_groups": args[0].shape[-1] // size} if size and args else {}
    of = next((of for kind, of in _LAYERS.items() if isinstance(module, kind)), None)
    if of is None:
        return {}
    name = "embedding" if isinstance(module, nn.Embed) else "kernel"
    if not module.has_variable("params", name):  # it is being initialised
        return {}
    shape = meta.unbox(module.get_variable("params", name)).shape
    return of(module, shape, args)


def _dense(module, shape, args):
    if isinstance(module.features, int):
        return {"features": shape[-1]}
    return {"features": tuple(shape[len(shape) - len(module.features) :])}


def _convolution(module, shape, args):
    if module.feature_group_count == 1 or not args:
        return {"features": shape[-1]}
    groups = args[0].shape[-1] // shape[-2]
    return {"features": shape[-1], "feature_group_count": groups}


_LAYERS: dict[type, Callable[..., dict[str, Any]]] = {
    nn.Dense: _dense,
    nn.DenseGeneral: _dense,
    nn.Conv: _convolution,
    nn.ConvLocal: lambda module, shape, args: {"features": shape[-1]},
    nn.ConvTranspose: lambda module, shape, args: {
        "features": shape[-2 if module.transpose_kernel else -1]
    },
    nn.Embed: lambda module, shape, args: dict(
        zip(("num_embeddings", "features"), shape, strict=True)
    ),
    nn.Einsum: lambda module, shape, args: {"shape": tuple(shape)},
}
