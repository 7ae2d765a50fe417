"""Modules that hold their arrays, NNX's and Equinox's: what they say of sizes beside
the arrays, brought to what a plan leaves of these."""

from collections.abc import Callable, Iterator
from typing import Any

from ispasp_jax.graph import cut
from ispasp_jax.graph.cut import Masks, Plan
from ispasp_jax.graph.traced import Traced


class _Layer:
    """A node of a module, and what the plan leaves of its arrays."""

    def __init__(self, traced: Traced, masks: Masks, path: str):
        self._traced, self._masks, self._path = traced, masks, path

    def _dims(self, name: str):
        below = f"{self._path}/{name}" if self._path else name
        for path in (below, f"{below}/value"):
            if path in self._traced.dims:
                return self._traced.dims[path]
        return None

    def shape(self, *names: str) -> tuple[int, ...] | None:
        """Of the first of these arrays that there is."""
        for name in names:
            if (dims := self._dims(name)) is not None:
                return tuple(cut.size(atom, self._masks) for atom in dims)
        return None

    def blocks(self, axis: int, count: int, *names: str) -> int:
        """How many of `count` equal blocks of an axis are there still."""
        for name in names:
            if (dims := self._dims(name)) is not None:
                mask = cut.of(dims[axis], self._masks)
                if mask is not None:
                    rows = mask.reshape(-1, mask.shape[-1])[0]
                    return int(rows.reshape(count, -1).any(1).sum())
        return count


def corrected(module: Any, traced: Traced, plan: Plan) -> Any:
    """The module, its layers' own words of sizes set in place."""
    masks = traced.masks(plan)
    for path, node in _nodes(module, traced):
        of = _HOLDERS.get(_kind(node))
        for name, value in of(node, _Layer(traced, masks, path)).items() if of else ():
            if hasattr(node, name) and getattr(node, name) != value:
                object.__setattr__(node, name, value)
    return module


def _nodes(module: Any, traced: Traced) -> Iterator[tuple[str, Any]]:
    """All that holds arrays, at any depth, by path."""
    seen = set()
    for path in traced.dims:
        node, keys = module, path.split("/")
        for depth, key in enumerate(keys):
            above = "/".join(keys[:depth])
            if above not in seen:
                seen.add(above)
                yield above, node
            if depth < len(keys) - 1:
                node = _child(node, key)


def _child(node: Any, key: str) -> Any:
    if hasattr(node, key):
        return getattr(node, key)
    if isinstance(node, dict):
        return node[key] if key in node else node[int(key)]
    return node[int(key)] if hasattr(node, "__getitem__") else None


def _kind(node: Any) -> str:
    """Framework and class of a layer, of the framework's own ones."""
    for kind in type(node).__mro__:
        for framework in ("flax.nnx", "equinox"):
            if kind.__module__.startswith(framework):
                return f"{framework}.{kind.__name__}"
    return ""


def _nnx_linear(node, layer):
    ins, outs = layer.shape("kernel")
    return {"in_features": ins, "out_features": outs}


def _nnx_general(node, layer):
    shape = layer.shape("kernel")
    ins, outs = len(node.in_features), len(node.out_features)
    first = len(shape) - ins - outs
    return {"in_features": shape[first:-outs], "out_features": shape[-outs:]}


def _nnx_conv(node, layer):
    shape = layer.shape("kernel")
    groups = layer.blocks(-1, node.feature_group_count, "kernel")
    return {
        "in_features": shape[-2] * groups,
        "out_features": shape[-1],
        "feature_group_count": groups,
        "kernel_shape": shape,
    }


def _nnx_transposed(node, layer):
    shape = layer.shape("kernel")
    ins, outs = (-1, -2) if node.transpose_kernel else (-2, -1)
    sizes = {"in_features": shape[ins], "out_features": shape[outs]}
    return {**sizes, "kernel_shape": shape}


def _nnx_norm(node, layer):
    shape = layer.shape("scale", "bias", "mean")
    if shape is None:
        return {}
    sizes = {"num_features": shape[-1]}
    if hasattr(node, "num_groups"):
        sizes["num_groups"] = layer.blocks(-1, node.num_groups, "scale", "bias")
    return sizes


def _nnx_attention(node, layer):
    ins, heads, width = layer.shape("query/kernel")
    return {
        "in_features": ins,
        "num_heads": heads,
        "num_kv_heads": layer.shape("key/kernel")[1],
        "head_dim": width,
        "qkv_features": heads * width,
        "out_features": layer.shape("out/kernel")[-1],
    }


def _tree_conv(node, layer):
    shape = layer.shape("weight")
    groups = layer.blocks(0, node.groups, "weight")
    sizes = {"in_channels": shape[1] * groups, "out_channels": shape[0]}
    return {**sizes, "groups": groups}


def _tree_linear(node, layer):
    outs, ins = layer.shape("weight")
    sizes = {"out_features": outs, "in_features": ins}
    return {n: size for n, size in sizes.items() if getattr(node, n) != "scalar"}


def _tree_group_norm(node, layer):
    shape = layer.shape("weight", "bias")
    if shape is None:
        return {}
    groups = layer.blocks(0, node.groups, "weight", "bias")
    return {"channels": shape[0], "groups": groups}


def _tree_norm(node, layer):
    shape = layer.shape("weight", "bias")
    return {} if shape is None else {"shape": shape}


def _tree_attention(node, layer):
    heads = layer.blocks(0, node.num_heads, "query_proj/weight")
    values = layer.blocks(0, node.num_heads, "value_proj/weight")
    return {
        "num_heads": min(heads, values),
        "query_size": layer.shape("query_proj/weight")[1],
        "key_size": layer.shape("key_proj/weight")[1],
        "value_size": layer.shape("value_proj/weight")[1],
        "output_size": layer.shape("output_proj/weight")[0],
        "qk_size": layer.shape("query_proj/weight")[0] // heads,
        "vo_size": layer.shape("value_proj/weight")[0] // values,
    }


def _embedding(*names: str):
    def sizes(node, layer):
        shape = layer.shape("embedding", "weight")
        return {} if shape is None else dict(zip(names, shape, strict=True))

    return sizes


_HOLDERS: dict[str, Callable[[Any, _Layer], dict[str, Any]]] = {
    "flax.nnx.Linear": _nnx_linear,
    "flax.nnx.LinearGeneral": _nnx_general,
    "flax.nnx.Einsum": lambda node, layer: {"kernel_shape": layer.shape("kernel")},
    "flax.nnx.Conv": _nnx_conv,
    "flax.nnx.ConvTranspose": _nnx_transposed,
    "flax.nnx.BatchNorm": _nnx_norm,
    "flax.nnx.LayerNorm": _nnx_norm,
    "flax.nnx.RMSNorm": _nnx_norm,
    "flax.nnx.InstanceNorm": _nnx_norm,
    "flax.nnx.GroupNorm": _nnx_norm,
    "flax.nnx.MultiHeadAttention": _nnx_attention,
    "flax.nnx.Embed": _embedding("num_embeddings", "features"),
    "equinox.Linear": _tree_linear,
    **{f"equinox.Conv{rank}": _tree_conv for rank in ("", "1d", "2d", "3d")},
    "equinox.GroupNorm": _tree_group_norm,
    "equinox.LayerNorm": _tree_norm,
    "equinox.RMSNorm": _tree_norm,
    "equinox.MultiheadAttention": _tree_attention,
    "equinox.Embedding": _embedding("num_embeddings", "embedding_size"),
}
