"""States of running training, on disk."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ispasp_jax.errors import InputError
from ispasp_jax.weights.tensors import fingerprint, is_key, write_whole


class States:
    """The last training state in a folder: a file of arrays, written aside, then
    renamed to the number of its epoch.
    """

    def __init__(self, folder: str | os.PathLike):
        self._folder = Path(folder).absolute()

    def save(self, epoch: int, state: Any) -> None:
        """Saves the state after an epoch; when this returns, it is kept and the one
        before is gone.
        """
        arrays = _by_path(state)
        self._folder.mkdir(exist_ok=True)
        write_whole(self._folder / str(epoch), arrays, {"sum": _sum(arrays)})
        for other in self._epochs() - {epoch}:
            (self._folder / str(other)).unlink()

    def latest(self, like: Any) -> Any | None:
        """The last state saved; None if none.

        Args:
          like: a state of the same structure, shapes and types.

        Raises:
          InputError: it is damaged, or of another structure.
        """
        epoch = max(self._epochs(), default=None)
        if epoch is None:
            return None
        arrays = _read_summed(self._folder / str(epoch))
        pairs, structure = jax.tree_util.tree_flatten_with_path(_plain(like))
        expected = {jax.tree_util.keystr(path): leaf for path, leaf in pairs}
        if _kinds(arrays) != _kinds(expected):
            raise InputError(
                f"{self._folder / str(epoch)} is the state of another training."
            )
        result = [arrays[path].reshape(like.shape) for path, like in expected.items()]
        state = jax.device_put(jax.tree.unflatten(structure, result))
        return jax.tree.map(
            lambda leaf, own: jax.random.wrap_key_data(leaf) if is_key(own) else leaf,
            state,
            like,
        )

    def _epochs(self) -> set[int]:
        epochs = self._folder.iterdir() if self._folder.is_dir() else ()
        return {int(path.name) for path in epochs if path.name.isdecimal()}


def _plain(tree: Any) -> Any:
    """The tree with the numbers of its random keys."""
    return jax.tree.map(lambda a: jax.random.key_data(a) if is_key(a) else a, tree)


def _kinds(arrays: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    """What has to agree for arrays to be restored."""
    return {path: (int(a.size), str(a.dtype)) for path, a in arrays.items()}


def _by_path(tree: Any) -> dict[str, np.ndarray]:
    """A tree's arrays by their paths, as a file has them: no shape is ()."""
    result = jax.tree_util.tree_leaves_with_path(jax.device_get(_plain(tree)))
    return {jax.tree_util.keystr(path): np.atleast_1d(leaf) for path, leaf in result}


def _sum(arrays: Mapping[str, np.ndarray]) -> str:
    return fingerprint(dict(sorted(arrays.items())))


def _read_summed(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file that names its own fingerprint.

    Raises:
      InputError: it is damaged.
    """
    from safetensors import safe_open
    from safetensors.numpy import load_file

    try:
        with safe_open(path, "numpy") as file:
            expected = file.metadata()["sum"]
        arrays = load_file(path)
        if _sum(arrays) == expected:
            return arrays
    except Exception:  # whatever safetensors raises on a damaged file
        pass
    raise InputError(f"{path} is damaged.")
