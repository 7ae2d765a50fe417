"""Model folders, self-describing: config.json (architecture, widths, preprocessing) and
model.safetensors (every array under its "/"-joined path): no pickle, no original
network needed. A network that is none of this package's lies beside them as a program,
model.stablehlo, which runs without its code.
"""

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from ispasp_jax import data, files, models
from ispasp_jax.data import Text
from ispasp_jax.errors import InputError
from ispasp_jax.graph import (
    Plan,
    adapters,
    key_path,
    plans,
)
from ispasp_jax.graph.by_hand import leaves, nested
from ispasp_jax.weights import descriptions, hub, stablehlo, tensors
from ispasp_jax.weights.descriptions import (
    ARRAYS,
    CONFIG,
    FILES,
    PROGRAM,
    TOKENIZER,
)
from ispasp_jax.weights.model import Model, of
from ispasp_jax.weights.tensors import as_weights, fingerprint, is_key, printable, some


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
        with files.new_folder(folder) as new:
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
    if isinstance(model.preprocessing, Text):
        (folder / TOKENIZER).write_text(model.preprocessing.tokenizer, "utf-8")
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
        image = models.inputs(model.input_shape, 2)
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
    result = {path: leaf for path, leaf in leaves(variables) if not is_key(leaf)}
    return jax.device_get(result)


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
    model.safetensors it is; of hf:REPO the Hub's, where this package has written it;
    None where it means something else.
    """
    if str(source).startswith("hf:"):
        return hub.folder(str(source))
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
      channels), or texts' tokens, or pruned and trained again; one that was saved as
      a program runs it.

    Raises:
      InputError: not such a folder, one that is damaged, or of another architecture.
    """
    folder = folder_of(folder) or Path(folder)
    path = folder / CONFIG
    config = descriptions.read(path)
    about = _with_tokenizer(descriptions.described(config, path), folder)
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


def _with_tokenizer(
    about: descriptions.Description, folder: Path
) -> descriptions.Description:
    """The description with the tokenizer that lies in the folder, of texts."""
    prep, path = about.preprocessing, folder / TOKENIZER
    if not isinstance(prep, Text):
        return about
    whole = None
    if path.is_file():
        whole = prep._replace(tokenizer=path.read_text("utf-8", "replace"))
    if whole is None or whole.sum != prep.tokenizer:
        raise InputError(
            f"{path} is not as it was written; the folder is damaged, make it again."
        )
    return about._replace(preprocessing=whole)


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
        inputs = about.preprocessing.shape if about.preprocessing else "any"
        raise InputError(
            f"it describes a network that cannot take {inputs} inputs ({reason:.200})"
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
        read_arrays = tensors.shapes(path)
    except InputError as error:
        raise InputError(f"{error}; the folder is damaged, make it again.") from error
    names = {_present(model, address): address for address in read_arrays}
    if len(names) == len(read_arrays):
        shapes = {names.get(address, address): leaf for address, leaf in shapes.items()}
    expected = {address: leaf.shape for address, leaf in shapes.items()}
    if read_arrays != expected:
        wrong = sorted(set(read_arrays.items()) ^ set(expected.items()))[:4]
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
