"""Named arrays: as safetensors in files, and what makes them weights.

Weights are floating-point, finite, also as float32, and a variance is not negative:
anything else would be computed with and give numbers that mean nothing.
"""

import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ispasp_jax import files
from ispasp_jax.errors import InputError
from ispasp_jax.graph.by_hand import Tree, leaves

#: The types of weights, as numpy and ml_dtypes call them.
KINDS = ("float16", "bfloat16", "float32", "float64")


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a .safetensors file by name, and its header's own words.

    Raises:
      InputError: it cannot be read.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, "numpy") as file:
            stored = {name: file.get_slice(name).get_dtype() for name in file.keys()}
            strange = [n for n, kind in stored.items() if kind.startswith(("F4", "F8"))]
            if strange:
                raise InputError(_sentence(str(path), _KIND, strange))
            arrays = {name: file.get_tensor(name) for name in stored}
            return arrays, dict(file.metadata() or {})
    except InputError:
        raise
    except Exception as error:  # of many kinds where a file is damaged
        raise InputError(f"{path} cannot be read ({error})") from error


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a .safetensors file's arrays by name; no array is read.

    Raises:
      InputError: it cannot be read.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, "numpy") as file:
            return {n: tuple(file.get_slice(n).get_shape()) for n in file.keys()}
    except Exception as error:  # of many kinds where a file is damaged
        raise InputError(f"{path} cannot be read ({error})") from error


def write(
    path: Path, arrays: Mapping[str, Any], metadata: dict[str, str] | None = None
) -> None:
    """Writes arrays by name.

    Raises:
      OSError: the disk is full, or the like.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    # safetensors silently writes wrong data for arrays that are not C-contiguous.
    contiguous = {name: np.asarray(leaf, order="C") for name, leaf in arrays.items()}
    try:
        save_file(contiguous, path, metadata)
    except SafetensorError as error:  # its own type for a full disk and the like
        raise OSError(f"{path} cannot be written ({error})") from error


def is_key(leaf: Any) -> bool:
    """Whether it is a random key, as an NNX module's dropout holds."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jax.numpy.issubdtype(dtype, jax.dtypes.prng_key)


def fingerprint(variables: Tree) -> str:
    """A checksum of every array's path, type and content."""
    crc = 0
    for path, leaf in leaves(jax.device_get(variables)):
        leaf = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
        crc = zlib.crc32(f"{path} {leaf.dtype} {leaf.shape}".encode(), crc)
        crc = zlib.crc32(leaf.tobytes(), crc)
    return f"{crc:08x}"


def write_whole(
    path: str | os.PathLike, arrays: Mapping[str, Any], metadata: dict[str, str]
) -> None:
    """Writes arrays by name; a file that is there is replaced at once or not at all.

    Raises:
      InputError: the path is a folder or a symbolic link.
      OSError: nothing can be written there; what was there is as it was.
    """
    with files.new_file(path) as new:
        write(new, arrays, metadata)


def unwritable(path: Path, error: Exception) -> str:
    """The sentence for what cannot be written."""
    why = getattr(error, "strerror", None) or error
    return (
        f"{printable(str(path))} cannot be written ({why}), and nothing was; give "
        "another place, or make room."
    )


_KIND = "arrays that are not floating-point numbers of 16, 32 or 64 bits"
_NUMBERS = "NaN or infinity"
_RANGE = "numbers beyond float32"
_VARIANCE = "negative variances"


def as_weights(arrays: Mapping[str, Any], source: str) -> dict[str, np.ndarray]:
    """The arrays as float32.

    Args:
      arrays: by torch's names or by Flax's "/"-joined paths.
      source: what the sentence begins with.

    Raises:
      InputError: they are no weights; the arrays are named.
    """
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    strange = [name for name, a in arrays.items() if a.dtype.name not in KINDS]
    if strange:
        raise InputError(_sentence(source, _KIND, strange))
    result = {name: as_float32(array) for name, array in arrays.items()}
    broken = [name for name, array in result.items() if not np.isfinite(array).all()]
    beyond = [name for name in broken if np.isfinite(arrays[name]).all()]
    negative = [n for n, a in result.items() if _is_variance(n) and (a < 0).any()]
    faults = {
        _NUMBERS: [name for name in broken if name not in beyond],
        _RANGE: beyond,
        _VARIANCE: negative,
    }
    for fault, names in faults.items():
        if names:
            raise InputError(_sentence(source, fault, names))
    return result


def _is_variance(name: str) -> bool:
    if name.startswith("batch_stats/"):
        return name.endswith("/var")
    return name.rpartition(".")[2] == "running_var"


def _sentence(source: str, fault: str, names: list[str]) -> str:
    return (
        f"{source}: {fault} in {some(names)}; that is no trained network's (its file "
        "is damaged, it was quantised, or its training diverged), so give other "
        "weights."
    )


def as_float32(array: np.ndarray) -> np.ndarray:
    """Any floating type as float32; other types as they are."""
    # bfloat16 is no floating type to numpy, but to jax it is.
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(np.float32, copy=False)


def some(names: Iterable[str], shown: int = 5) -> str:
    """The first few names, and how many there are."""
    names = list(names)
    more = f", ... ({len(names)} in all)" if len(names) > shown else ""
    return ", ".join(map(printable, names[:shown])) + more


def printable(name: str) -> str:
    """A name that somebody else chose, such that it can be shown on one line."""
    short = name if len(name) <= 120 else f"{name[:117]}..."
    return short if short.isprintable() else ascii(short)
