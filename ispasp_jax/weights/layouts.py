"""Where torch keeps the numbers of Flax's arrays: its names, its order of axes, and
heads that are rows of one matrix.

    Flax                                    torch
    kernel (h, w, in, out)                  weight (out, in, h, w)
    kernel (in, out)                        weight (out, in)
    query/kernel (in, heads, width)         query.weight (heads · width, in)
    proj/kernel (heads, width, out)         proj.weight (out, heads · width)
    query/bias (heads, width)               query.bias (heads · width)
    embedding (tokens, width)               weight (tokens, width)
"""

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Shaped

#: Flax's name of an array in its module -> torch's.
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
#: What TensorFlow called them, in the oldest files of BERT -> torch's.
EARLIER = {"gamma": "weight", "beta": "bias"}

#: The layers that make heads, in the order in which timm has them in one.
_HEADS = ("query", "key", "value")
#: The layers that read heads, by how their names end.
_READERS = ("out", "proj", "attention.output.dense")


def name(path: str) -> str:
    """Torch's name: of params/fc/kernel, it is fc.weight."""
    *module, leaf = path.split("/")[1:]
    return ".".join((*module, LEAVES.get(leaf, leaf)))


def to_torch(path: str, array: Shaped[np.ndarray, "..."]) -> np.ndarray:
    """The array of a "/"-joined path, as torch has it."""
    axes = _axes(path, len(array.shape))
    return array.transpose(axes).reshape(torch_shape(path, array.shape))


def torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that torch has of such an array."""
    moved = tuple(shape[axis] for axis in _axes(path, len(shape)))
    low, high = _merged(path, len(shape))
    one = (math.prod(moved[low:high]),) if high > low else ()
    return (*moved[:low], *one, *moved[high:])


def to_flax(
    path: str, array: Shaped[np.ndarray, "..."], shape: tuple[int, ...]
) -> np.ndarray:
    """The inverse of `to_torch`, for an array of that shape."""
    axes = _axes(path, len(shape))
    whole = array.reshape([shape[axis] for axis in axes])
    return whole.transpose(np.argsort(axes))


def _layer(path: str) -> tuple[str, str]:
    """The last module of a path, and its array."""
    *modules, leaf = path.split("/")
    return (modules or [""])[-1], leaf


def _reads_heads(path: str, rank: int) -> bool:
    return rank == 3 and _layer(path)[0].endswith(_READERS)


def _axes(path: str, rank: int) -> tuple[int, ...]:
    """Flax's axes in torch's order: HWIO to OIHW, depthwise HW1C to C1HW, IO to OI."""
    module, leaf = _layer(path)
    if leaf != "kernel" or rank < 2:
        return tuple(range(rank))
    if rank == 3 and module in _HEADS:
        return (1, 2, 0)
    if _reads_heads(path, rank):
        return (2, 0, 1)
    return (rank - 1, rank - 2, *range(rank - 2))


def _merged(path: str, rank: int) -> tuple[int, int]:
    """From where to where of the moved axes are one in torch: heads and width."""
    module, leaf = _layer(path)
    if module in _HEADS and (leaf, rank) in (("kernel", 3), ("bias", 2)):
        return (0, 2)
    return (1, 3) if leaf == "kernel" and _reads_heads(path, rank) else (0, 0)


def apart(
    arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """The arrays, timm's queries, keys and values each by themselves.

    Args:
      arrays: by torch's names.
      expected: shapes of what is looked for; others stay as they are.
    """
    result = {}
    for key, array in arrays.items():
        names = [key.replace(".qkv.", f".{part}.") for part in _HEADS]
        sizes = [expected[n][0] for n in names if n in expected and n != key]
        if len(sizes) == 3 and len(array) == sum(sizes):
            parts = np.split(array, np.cumsum(sizes)[:2])
            result.update(zip(names, parts, strict=True))
        else:
            result[key] = array
    return result


def together(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays, queries, keys and values in one where timm has them so."""
    result: dict[str, np.ndarray] = {}
    for key, array in arrays.items():
        part = next((part for part in _HEADS if f".attn.{part}." in key), None)
        if part is None:
            result[key] = array
        elif part == _HEADS[0]:
            parts = [arrays[key.replace(f".{part}.", f".{other}.")] for other in _HEADS]
            result[key.replace(f".{part}.", ".qkv.")] = np.concatenate(parts)
    return result
