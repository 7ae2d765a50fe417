"""What is kept on disk: self-describing model folders, and (of training_states) states
of running training.

A model folder is config.json (architecture, widths, preprocessing) and
model.safetensors (every array under its "/"-joined path): no pickle, no original
network needed. A network that is none of this package's lies beside them as a program,
model.stablehlo, which runs without its code.
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

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from ispasp_jax import data, models, walk
from ispasp_jax.data import Preprocessing
from ispasp_jax.errors import InputError
from ispasp_jax.graph import (
    Plan,
    Traced,
    adapters,
    key_path,
    modules,
    plans,
    trace,
    widths,
)
from ispasp_jax.graph.by_hand import leaves, nested
from ispasp_jax.weights import descriptions, stablehlo, tensors
from ispasp_jax.weights.descriptions import ARRAYS, CONFIG, FILES, PROGRAM
from ispasp_jax.weights.tensors import as_weights, fingerprint, is_key, printable, some


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
    preprocessing: Preprocessing | None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of an input."""
        if self.preprocessing is None:
            return self.network.inputs[0][0][1:]
        return self.preprocessing.shape

    @functools.cached_property
    def traced(self) -> Traced:
        """What the network's equations say of its channels, on a batch of two."""
        inputs = [jax.ShapeDtypeStruct((2, *self.input_shape), "float32")]
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
        inputs = jax.ShapeDtypeStruct((2, *self.input_shape), "float32")
        return trace(network, shapes, inputs)

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

    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        """Logits of preprocessed images."""
        return _logits(adapters.learner(self.network), self.variables, images)


def of(
    name: str, made: Any, preprocessing: Preprocessing, options: Mapping[str, Any]
) -> Model:
    """An architecture, as `models.create` made it; Linen's has no arrays yet."""
    if isinstance(made, tuple):
        network, variables = made
    elif isinstance(made, nn.Module):
        network, variables = made, models.shapes(made, preprocessing.shape)
    else:
        network, variables = made, adapters.function(made)[1]
    return Model(name, network, variables, preprocessing, options)


def save(folder: str | os.PathLike, model: Model, plan: Plan | None = None) -> None:
    """Saves a model folder; one that is there is replaced at once or not at all.

    Args:
      folder: where.
      model: what to save.
      plan: how it came about, to lie beside as plan.json.

    Raises:
      InputError: the folder holds other files, nothing can be written there, or the
        variables are no weights.
    """
    there = Path(folder)
    try:
        names = {path.name for path in there.iterdir()} if there.is_dir() else set()
        if there.exists() and not there.is_dir():
            raise InputError(f"{folder} is a file; give a new folder, or a model's.")
        if not names <= {*FILES, "training.json", "plan.json"}:
            raise InputError(
                f"{folder} holds other files ({', '.join(sorted(names)[:3])}); give a "
                "new folder, or a model's."
            )
        with replacing(folder) as new:
            write(new, model)
            if plan is not None:
                text = json.dumps(plans.to_json(plan, model.name))
                (new / "plan.json").write_text(text + "\n")
    except InputError:
        raise
    except (OSError, ValueError) as error:  # a zero byte in the name is the latter
        raise InputError(tensors.unwritable(there, error)) from error


def write(folder: Path, model: Model) -> None:
    """Writes config.json and model.safetensors into a folder that is there.

    Raises:
      InputError: the variables are no weights.
    """
    arrays = _arrays(model.variables)
    as_weights(_floating(arrays), str(folder / ARRAYS))
    config = {
        "format": descriptions.FORMAT,
        "model": model.name,
        "num_classes": model.num_classes,
        "options": dict(model.options),
        "widths": model.dense_widths,
        "preprocessing": model.preprocessing and data.to_json(model.preprocessing),
    }
    program = _write_program(folder / PROGRAM, model)
    if program is not None:
        config["program"] = program
    sums = {"config": _sum_of(config), "arrays": fingerprint(nested(arrays))}
    text = json.dumps({**config, "sums": sums}, indent=1) + "\n"
    (folder / CONFIG).write_text(text)
    tensors.write(folder / ARRAYS, arrays)


def _write_program(path: Path, model: Model) -> str | None:
    """Writes the network as a program, if it is none of this package's; the checksum,
    or why there is none.
    """
    if model.name in models.MODELS:
        return None
    program = model.network
    if not isinstance(program, stablehlo.Stored):
        evaluate = adapters.learner(program).evaluate
        image = jax.ShapeDtypeStruct((2, *model.input_shape), "float32")
        try:
            program = stablehlo.stored(evaluate, model.variables, image)
        except InputError as why:
            return f"none: {why}"
    program.write(path)
    return _sum_of_file(path)


def _sum_of_file(path: Path) -> str:
    return f"{zlib.crc32(path.read_bytes()):08x}"


def _arrays(variables: Any) -> dict[str, Any]:
    """The arrays that a file holds, by path: all but random keys."""
    found = {path: leaf for path, leaf in leaves(variables) if not is_key(leaf)}
    return jax.device_get(found)


def _floating(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays that are weights; a network of the user's may count something, too."""
    counted = ("int", "uint", "bool")
    return {n: a for n, a in arrays.items() if not a.dtype.name.startswith(counted)}


def _sum_of(config: Mapping[str, Any]) -> str:
    """A checksum of all that a config says, but for its checksums."""
    said = {key: value for key, value in config.items() if key != "sums"}
    return f"{zlib.crc32(json.dumps(said, sort_keys=True).encode()):08x}"


def folder_of(source: str | os.PathLike) -> Path | None:
    """The model folder that a path means: itself, its `model/`, or the one whose
    model.safetensors it is; None where it means something else.
    """
    path = Path(source)
    try:
        if path.name == ARRAYS and not path.is_dir():
            return path.parent if descriptions.is_ours(path.parent / CONFIG) else None
        if not (path / CONFIG).exists() and (path / "model" / CONFIG).exists():
            return path / "model"
        return path if any((path / name).exists() for name in FILES) else None
    except InputError:
        raise
    except (OSError, ValueError):  # no path at all: too long, or with a zero byte
        return None


def architecture_of(folder: Path) -> str:
    """The name that a model folder gives; nothing of that name is imported.

    Raises:
      InputError: not such a folder.
    """
    path = folder / CONFIG
    return descriptions.described(descriptions.read(path), path).name


def load(folder: str | os.PathLike, architecture: str | None = None) -> Model:
    """The model that train.py or prune.py left in a folder (or in its `model/`).

    No code that the folder names runs, but for the architectures of this package and
    the one that the caller names.

    Args:
      folder: the folder, or the model.safetensors in it.
      architecture: the name that the folder has to give, "package.module:function"
        included; without it, one of this package's.

    Returns:
      The model, ready to be called with preprocessed images, (n, height, width,
      channels), or pruned and trained again; one that was saved as a program runs it.

    Raises:
      InputError: not such a folder, one that is damaged, or of another architecture.
    """
    folder = folder_of(folder) or Path(folder)
    path = folder / CONFIG
    config = descriptions.read(path)
    about = descriptions.described(config, path)
    if architecture is None and about.name not in models.MODELS and "program" in config:
        return _stored(folder, config, about)
    descriptions.allow(about.name, architecture, path)
    try:
        made = about.network()
        model = _described(about, made)
        plan = descriptions.plan(model.dense, about.widths)
    except InputError as error:
        why = str(error).removesuffix(".")
        raise InputError(f"{path} cannot be followed: {why}.") from error
    expected = model.dense.take(plan, model.dense.variables)
    shapes = {path: leaf for path, leaf in leaves(expected) if not is_key(leaf)}
    arrays = _read_arrays(folder / ARRAYS, model, shapes)
    _check_sums(config, arrays, folder)
    by_path = {_present(model, path): leaf for path, leaf in leaves(arrays)}
    keys = {path: leaf for path, leaf in leaves(model.variables) if is_key(leaf)}
    variables = jax.tree_util.tree_map_with_path(
        lambda path, _: ({**keys, **by_path})[key_path(path)], expected
    )
    known = {name: one.kept.shape[-1] for name, one in plan.items()}
    return model.resize(jax.device_put(variables), known)


def _stored(
    folder: Path, config: Mapping[str, Any], about: descriptions.Description
) -> Model:
    """The model whose program lies in the folder; no code but the program's."""
    path = folder / PROGRAM
    said = str(config["program"])
    if said.startswith("none"):
        raise InputError(
            f"{folder} holds no program ({printable(said[6:]).removesuffix('.')}); "
            "name its architecture to run its own code, if you trust it."
        )
    if not path.is_file() or _sum_of_file(path) != said:
        raise InputError(f"{path} is not as it was written; the folder is damaged.")
    network = stablehlo.read(path)
    model = Model(about.name, network, {}, about.preprocessing, about.options)
    arrays = _read_arrays(folder / ARRAYS, model, network.variables)
    _check_sums(config, arrays, folder)
    variables = jax.device_put(dict(leaves(arrays)))
    return model.replace(network, variables)


def _described(about: descriptions.Description, made: Any) -> Model:
    try:
        model = of(about.name, made, about.preprocessing, about.options)
        _ = model.dense
        return model
    except Exception as error:  # of many kinds: the network's own code
        reason = str(error).strip().partition("\n")[0].removesuffix(".")
        raise InputError(
            f"it describes a network that cannot take {about.preprocessing.shape} "
            f"inputs ({reason:.200})"
        ) from error


def _present(model: Model, path: str) -> str:
    """The path of an array that an earlier version may have named otherwise."""
    collection, _, below = path.partition("/")
    layer, _, leaf = below.rpartition("/")
    name = models.aliases(model.network).get(layer.replace("/", "."))
    return f"{collection}/{name}/{leaf}" if name else path


def _read_arrays(
    path: Path, model: Model, shapes: dict[str, jax.ShapeDtypeStruct]
) -> dict:
    """The variables, read only where all shapes are as expected; by the file's
    names."""
    try:
        found = tensors.shapes(path)
    except InputError as error:
        raise InputError(f"{error}; the folder is damaged, make it again.") from error
    names = {_present(model, address): address for address in found}
    if len(names) == len(found):
        shapes = {names.get(address, address): leaf for address, leaf in shapes.items()}
    expected = {address: leaf.shape for address, leaf in shapes.items()}
    if found != expected:
        wrong = sorted(set(found.items()) ^ set(expected.items()))[:4]
        raise InputError(
            f"{path} does not hold the arrays that its config describes, for example "
            f"{', '.join(f'{printable(a)} {s}' for a, s in wrong)}; the folder is "
            "damaged."
        )
    arrays, _ = tensors.read(path)
    counts = {a for a, leaf in shapes.items() if leaf.dtype.kind in "iub"}
    as_weights({a: v for a, v in arrays.items() if a not in counts}, str(path))
    other = [a for a in sorted(counts) if arrays[a].dtype != shapes[a].dtype]
    if other:
        raise InputError(
            f"{path}: {some(other)} of another type; the folder is damaged."
        )
    return nested(arrays)


def _check_sums(config: Mapping[str, Any], variables: Any, folder: Path) -> None:
    """Raises InputError where the files are not as they were written; folders of
    earlier versions do not say.
    """
    sums = config.get("sums")
    if sums is None:
        return
    if not isinstance(sums, dict) or sums.get("config") != _sum_of(config):
        raise InputError(
            f"{folder / CONFIG} is not as it was written: it is damaged, or was edited "
            'by hand; delete its "sums" if that was you.'
        )
    if sums.get("arrays") != fingerprint(variables):
        raise InputError(
            f"{folder / ARRAYS} is not as it was written; the folder is damaged, make "
            f'it again (or, if you changed the file, delete "sums" in {CONFIG}).'
        )


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, variables, images):
    return model.evaluate(variables, images)


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
