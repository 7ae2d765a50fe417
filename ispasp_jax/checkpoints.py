"""What is kept on disk: self-describing model folders and states of running training.

A model folder is config.json (architecture, widths, preprocessing) and
model.safetensors (every array under its "/"-joined path): no pickle, no original
network needed.
"""

import contextlib
import ctypes
import dataclasses
import functools
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from ispasp_jax import data, models
from ispasp_jax.data import Preprocessing
from ispasp_jax.errors import InputError
from ispasp_jax.groups import leaves, nested
from ispasp_jax.models.network import Network, Variables

CONFIG, ARRAYS = FILES = "config.json", "model.safetensors"
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Model:
    """A network with its variables and all that is needed to use it.

    Attributes:
      name: of the architecture, as `--model` takes it.
      network: the Linen module, at its present widths.
      variables: its variables.
      preprocessing: how images become inputs.
      options: of the architecture, such as {"stem": "small"}.
    """

    name: str
    network: Network
    variables: Variables
    preprocessing: Preprocessing
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of an input."""
        return self.preprocessing.shape

    def replace(self, network: Network, variables: Variables) -> "Model":
        """The same model with another network, as after pruning or training."""
        return dataclasses.replace(self, network=network, variables=variables)

    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        """Logits of preprocessed images."""
        return _logits(self.network, self.variables, images)


def save(folder: str | os.PathLike, model: Model) -> None:
    """Saves a model folder; one that is there is replaced at once or not at all.

    Raises:
      InputError: the folder holds other files.
    """
    there = Path(folder)
    names = {path.name for path in there.iterdir()} if there.is_dir() else set()
    if names and not names <= {CONFIG, ARRAYS, "training.json"}:
        raise InputError(
            f"{folder} holds other files ({', '.join(sorted(names)[:3])}); give a new "
            "folder, or a model's."
        )
    with replacing(folder) as new:
        write(new, model)


def write(folder: Path, model: Model) -> None:
    """Writes config.json and model.safetensors into a folder that is there."""
    config = {
        "format": _FORMAT,
        "model": model.name,
        "num_classes": model.network.num_classes,
        "options": dict(model.options),
        "widths": model.network.group_widths(),
        "preprocessing": data.to_json(model.preprocessing),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
    write_arrays(folder / ARRAYS, model.variables)


def write_arrays(
    path: Path, variables: Variables, metadata: dict[str, str] | None = None
) -> None:
    """Writes every array under its path in the tree, as safetensors."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    # safetensors silently writes wrong data for arrays that are not C-contiguous.
    arrays = {
        path: np.ascontiguousarray(leaf)
        for path, leaf in leaves(jax.device_get(variables))
    }
    try:
        save_file(arrays, path, metadata)
    except SafetensorError as error:  # its own type for a full disk and the like
        raise OSError(f"{path} cannot be written ({error})") from error


def fingerprint(variables: Variables) -> str:
    """A checksum of every array's path, type and content."""
    crc = 0
    for path, leaf in leaves(jax.device_get(variables)):
        leaf = np.asarray(leaf)
        crc = zlib.crc32(f"{path} {leaf.dtype} {leaf.shape}".encode(), crc)
        crc = zlib.crc32(leaf.tobytes(), crc)
    return f"{crc:08x}"


def load(folder: str | os.PathLike) -> Model:
    """The model that train.py or prune.py left in a folder (or in its `model/`).

    Raises:
      InputError: not such a folder, or one that is damaged.
    """
    folder = Path(folder)
    if not (folder / CONFIG).exists() and (folder / "model" / CONFIG).exists():
        folder = folder / "model"
    config = _read_config(folder)
    try:
        name, options = config["model"], dict(config["options"])
        widths = {group: int(width) for group, width in config["widths"].items()}
        if min(widths.values(), default=1) < 1 or int(config["num_classes"]) < 1:
            raise ValueError("a width or number of classes below 1")
        preprocessing = data.from_json(config["preprocessing"])
        network = models.create(name, int(config["num_classes"]), **options)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{folder / CONFIG} is not a model's config ({error}); expected one "
            "written by train.py or prune.py."
        ) from error
    unknown = sorted(set(widths) - set(network.group_widths()))
    if unknown:
        raise InputError(
            f"{folder / CONFIG} gives widths for {', '.join(unknown)}, which "
            f"{name} does not have."
        )
    network = network.narrowed(widths)
    model = Model(name, network, {}, preprocessing, options)
    shapes = models.shapes(network, model.input_shape)
    return model.replace(network, _read_arrays(folder / ARRAYS, shapes))


def _read_config(folder: Path) -> dict:
    try:
        config = json.loads((folder / CONFIG).read_text())
    except OSError as error:
        raise InputError(
            f"{folder} is not a model folder ({CONFIG}: {error.strerror}); expected "
            "one written by train.py or prune.py."
        ) from error
    except ValueError as error:
        raise InputError(f"{folder / CONFIG} is not JSON: {error}.") from error
    if not isinstance(config, dict) or config.get("format") != _FORMAT:
        raise InputError(
            f"{folder / CONFIG} is not of format {_FORMAT}; expected a folder written "
            "by train.py or prune.py of this version."
        )
    return config


def _read_arrays(path: Path, shapes: dict) -> dict:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); the folder is damaged, make it again."
        ) from error
    expected = {address: leaf.shape for address, leaf in leaves(shapes)}
    found = {address: array.shape for address, array in arrays.items()}
    if found != expected:
        wrong = sorted(set(found.items()) ^ set(expected.items()))[:4]
        raise InputError(
            f"{path} does not hold the arrays that its config describes, for example "
            f"{', '.join(f'{a} {s}' for a, s in wrong)}; the folder is damaged."
        )
    bad = [address for address, array in arrays.items() if not np.isfinite(array).all()]
    if bad:
        raise InputError(f"{path} holds NaN or infinity in {', '.join(bad[:4])}.")
    return jax.device_put(nested(arrays))


@functools.partial(jax.jit, static_argnums=0)
def _logits(network, variables, images):
    return network.apply(variables, images)


@contextlib.contextmanager
def replacing(folder: str | os.PathLike, aside: Path | None = None) -> Iterator[Path]:
    """A new, empty folder that takes `folder`'s place when the block ends well; until
    then it lies in the folder `aside`, or beside.
    """
    folder = Path(folder).absolute()
    if folder.is_symlink():
        raise InputError(
            f"{folder} is a symbolic link, which the new folder would replace; give "
            "the folder that it names, or another."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = (aside or folder.parent) / f".{folder.name}.new-{os.getpid()}"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        move(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def move(new: Path, folder: Path) -> None:
    """Renames a finished folder to its place; the one that was there goes.

    Where the system cannot swap two folders, there is an instant in which the old one
    has left and the new one has not come; a kill then leaves both, hidden.
    """
    if folder.exists() and _swap(new, folder):
        shutil.rmtree(new, ignore_errors=True)
        return
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _swap(a: Path, b: Path) -> bool:
    """Exchanges two folders in one step; False where Linux or the disk cannot."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0


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
        new = self._folder / f".{epoch}.new"
        write_arrays(new, arrays, {"sum": _sum(arrays)})
        new.replace(self._folder / str(epoch))
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
        pairs, structure = jax.tree_util.tree_flatten_with_path(like)
        expected = {jax.tree_util.keystr(path): leaf for path, leaf in pairs}
        if _kinds(arrays) != _kinds(expected):
            raise InputError(
                f"{self._folder / str(epoch)} is the state of another training."
            )
        found = [arrays[path].reshape(like.shape) for path, like in expected.items()]
        return jax.device_put(jax.tree.unflatten(structure, found))

    def close(self) -> None:
        """Nothing is left open: kept for those who call it."""

    def _epochs(self) -> set[int]:
        found = self._folder.iterdir() if self._folder.is_dir() else ()
        return {int(path.name) for path in found if path.name.isdecimal()}


def _kinds(arrays: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    """What has to agree for arrays to be restored."""
    return {path: (int(a.size), str(a.dtype)) for path, a in arrays.items()}


def _by_path(tree: Any) -> dict[str, np.ndarray]:
    """A tree's arrays by their paths, as a file has them: no shape is ()."""
    found = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return {jax.tree_util.keystr(path): np.atleast_1d(leaf) for path, leaf in found}


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
