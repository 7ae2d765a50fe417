"""Files of trained weights: safetensors, and what torch and Flax write.

torch, huggingface_hub and Orbax are imported only where a source needs them.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ispasp_jax import json_text
from ispasp_jax.errors import InputError
from ispasp_jax.graph.by_hand import leaves
from ispasp_jax.weights import descriptions, tensors
from ispasp_jax.weights.descriptions import TOKENIZER
from ispasp_jax.weights.hub import fetch, preprocessing
from ispasp_jax.weights.tensors import as_weights, some

#: What torch's wrappers put before every name.
PREFIXES = ("module.", "_orig_mod.")
#: How names end of what counts and is no weight.
COUNTS = ("num_batches_tracked", "position_ids")
#: The key in a file's header under which `weights.save_safetensors` puts the widths.
HEADER = "ispasp_jax"


def read(
    source: str | os.PathLike, *, ema: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays by the names they have in the source, and what the source says of itself.

    Args:
      source: a .safetensors file; a .pth or .pt file (needs torch); a .msgpack file or
        an Orbax folder, of one step or of all, of a Flax training state or of any
        model's arrays; or hf:REPO[@REVISION] (needs huggingface_hub; what is in its
        cache is used without asking the network).
      ema: of a training state that holds the weights and their moving average, the
        average.

    Returns:
      The arrays as float32; and metadata: the file's own, with "model", "num_classes"
      and "widths" where `save_safetensors` wrote it, or what the model folder says in
      which it lies; with "architecture", "num_classes", "mean", "std", "image_size",
      "resize" and "interpolation" where the Hub's config.json (timm's) gives them; with
      "taken" in words where the source holds more than one network.

    Raises:
      InputError: nothing readable there, a package is missing, or it is no weights.
    """
    path, metadata = Path(source), None
    if str(source).startswith("hf:"):
        path, metadata = fetch(str(source))
    elif not os.path.exists(path):
        raise InputError(
            f"weights {source}: no such file; give an existing .safetensors file, a "
            "folder written by train.py or prune.py, or hf:REPO[@REVISION]."
        )
    taken = None
    if path.suffix == ".safetensors":
        arrays, header = _read_safetensors(path)
        metadata = {**header, **(_beside(path) if metadata is None else metadata)}
    elif path.suffix in (".pth", ".pt", ".th", ".bin", ".tar"):
        arrays, taken = _read_torch(path, ema)
    elif (
        path.suffix == ".msgpack" or path.is_dir() or path.name.startswith("checkpoint")
    ):
        arrays, taken = _read_flax(path, ema)
    else:
        raise InputError(
            f"weights {source}: unknown kind of file; expected .safetensors, .pth or "
            ".pt, or Flax's .msgpack or Orbax folder."
        )
    if ema and not (taken and taken.endswith(AVERAGE)):
        raise InputError(
            f"weights {source}: no moving average of weights in it; take the weights "
            "themselves."
        )
    said = {"taken": taken} if taken else {}
    return weights_of(arrays, f"weights {source}"), {**(metadata or {}), **said}


def weights_of(arrays: Mapping[str, Any], source: str) -> dict[str, np.ndarray]:
    """The arrays as float32, without torch's prefixes and batch counters.

    Raises:
      InputError: two arrays have one name, or an array is no weights.
    """
    result, twice = {}, []
    for name, array in arrays.items():
        bare = _without_prefix(name)
        if bare.endswith(COUNTS):
            continue
        twice += [bare] if bare in result else []
        result[bare] = array
    if twice:
        raise InputError(
            f"{source}: {some(twice)} more than once, with and without "
            f"{' or '.join(PREFIXES)}; keep one of both."
        )
    return as_weights(result, source)


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        arrays, header = tensors.read(path)
        ours = json_text.parse(header.pop(HEADER, "{}"))
        if not isinstance(ours, dict):
            raise InputError(f"{HEADER} in its header is no object")
        return arrays, header | descriptions.checked(ours)
    except InputError as error:
        raise InputError(
            f"weights {path}: not a readable .safetensors file ({error}); it may be "
            "cut short, a Git LFS pointer or of another kind, so fetch it again."
        ) from error


def _beside(path: Path) -> dict[str, Any]:
    """What config.json and tokenizer.json beside a file say of it; nothing where there
    is none."""
    config, words = (path.parent / n for n in (descriptions.CONFIG, TOKENIZER))
    said = {"tokenizer": words.read_text("utf-8")} if words.exists() else {}
    if not config.exists():
        return said
    if not descriptions.is_ours(config):
        return said | preprocessing(json_text.read(config), f"weights {path}")
    if path.name != descriptions.ARRAYS:
        raise InputError(
            f"weights {path}: it lies in the model folder {path.parent}, which says "
            f"nothing of it; give the folder, or the file in another place."
        )
    about = descriptions.described(descriptions.read(config), config)
    images = about.preprocessing._asdict() if about.preprocessing else {}
    result = {**about._asdict(), **images, "model": about.name}
    return {k: v for k, v in result.items() if k not in ("name", "preprocessing")}


def _without_prefix(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name


def _read_torch(path: Path, ema: bool) -> tuple[dict[str, np.ndarray], str | None]:
    """A state dict, bare or under "state_dict" or "model", without running any code;
    and which of several was taken.

    Raises:
      InputError: torch is missing, or the file holds more than arrays.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]  # not asked of anybody
    except ImportError as error:
        raise InputError(
            f"weights {path}: a PyTorch file, and PyTorch is not installed; install "
            'torch, or convert the file where PyTorch is: python -c "import torch, '
            f"safetensors.torch as s; s.save_file(torch.load('{path.name}', "
            f"weights_only=True), '{path.stem}.safetensors')\"."
        ) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler's errors are of many kinds
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise InputError(
            f"weights {path}: torch.load(weights_only=True) refuses it ({reason}); "
            "save the state dict alone, with torch.save(model.state_dict(), ...)."
        ) from error
    own, average = _both(state, _TORCH, _TORCH_AVERAGE)
    state, taken = _chosen(path, state if own is None else own, average, ema)
    result = isinstance(state, dict) and {
        name: tensor
        for name, tensor in state.items()
        if isinstance(tensor, torch.Tensor)
    }
    if not result:
        raise InputError(
            f"weights {path}: no state dict in it; expected one, bare or under "
            "'state_dict' or 'model'."
        )
    return {name: _as_numpy(path, name, t) for name, t in result.items()}, taken


def _as_numpy(path: Path, name: str, tensor) -> np.ndarray:
    try:  # numpy has no bfloat16
        half = str(tensor.dtype) == "torch.bfloat16"
        return (tensor.float() if half else tensor).detach().numpy()
    except (TypeError, RuntimeError) as error:
        raise InputError(
            f"weights {path}: {some([name])} is no plain array of numbers ({error}); "
            "save the network without quantisation."
        ) from error


#: Under which keys a training state holds the weights, and their moving average.
_TORCH = ("state_dict", "model_state_dict", "model")
_TORCH_AVERAGE = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_FLAX_AVERAGE = ("ema_params", "params_ema", "ema")
#: How "taken" ends where the average was.
AVERAGE = "the weights' moving average"


def _both(state: Any, own: Sequence[str], average: Sequence[str]) -> list[Any]:
    """A state's weights and their average; None for what it does not hold."""

    def first(keys):
        held = state if isinstance(state, Mapping) else {}
        return next((held[k] for k in keys if isinstance(held.get(k), Mapping)), None)

    return [first(own), first(average)]


def _chosen(path: Path, own: Any, average: Any, ema: bool) -> tuple[Any, str | None]:
    """One of both, and in words which, where there is a choice."""
    if average is None:
        return own, None
    if ema:
        return average, AVERAGE
    return own, f"the weights themselves, not the moving average that {path} holds too"


def _read_flax(path: Path, ema: bool) -> tuple[dict[str, np.ndarray], str | None]:
    """What flax.training.checkpoints or Orbax saved: params and batch statistics, or
    where there is no such thing all arrays by key path; and which of several was taken.

    Raises:
      InputError: not such a checkpoint.
    """
    try:
        step = None
        if path.is_dir():
            result, step = orbax_folder(path)
            tree = _restore_orbax(result)
        else:
            tree = _restore_msgpack(path)
        if not {"params", "optimizer"} & {*(tree if isinstance(tree, Mapping) else ())}:
            return _floating(tree), step
        average = _both(tree, (), _FLAX_AVERAGE)[1]
        # The old flax.optim kept the parameters as its target.
        own = tree["params"] if "params" in tree else tree["optimizer"]["target"]
        params, which = _chosen(path, own, average, ema)
        statistics = {**tree, **tree.get("model_state", {})}.get("batch_stats", {})
        statistics = params.get("batch_stats", statistics)
        params = params.get("params", params)
        both = {"params": params, "batch_stats": statistics}
        arrays = {name: np.asarray(leaf) for name, leaf in leaves(both)}
        return arrays, ": ".join(filter(None, (step, which))) or None
    except InputError:
        raise
    except Exception as error:  # both libraries' errors are of many kinds
        reason = " ".join(repr(error).split())
        raise InputError(
            f"weights {path}: not a Flax checkpoint with params ({reason:.200}); "
            "expected a .msgpack file, an Orbax folder, or a folder written by "
            "train.py or prune.py."
        ) from error


def _floating(tree: Any) -> dict[str, np.ndarray]:
    """A tree's arrays by key path, without what counts steps or draws numbers."""
    result = {name: np.asarray(leaf) for name, leaf in leaves(tree)}
    if not result:
        raise ValueError("it holds no arrays")
    return {n: a for n, a in result.items() if a.dtype.name in tensors.KINDS}


def orbax_folder(path: Path) -> tuple[Path, str | None]:
    """The folder of one state where a folder of Orbax's CheckpointManager is given: of
    the last step, and of the one item that holds arrays; and in words which.

    Raises:
      InputError: several items hold arrays.
    """
    result = path
    steps = {int(p.name): p for p in result.iterdir() if _is_step(p)}
    if steps and not (result / _TREE).exists():
        result = steps[max(steps)]
    if not (result / _TREE).exists():
        items = sorted(item.parent for item in result.glob(f"*/{_TREE}"))
        named = {item.name: item for item in items}
        if len(named) > 1 and "default" not in named:
            raise InputError(
                f"weights {path}: several states ({some(named)}) in {result}; give the "
                "folder of one."
            )
        result = named.get("default", items[0] if items else result)
    return result, None if result == path else f"{result}"


#: Bytes that are allocated whatever a checkpoint holds, and how often what it holds.
_SMALL, _DENSEST = 2**28, 100
#: The file that Orbax leaves beside the arrays of a tree.
_TREE = "_METADATA"


def _is_step(path: Path) -> bool:
    return path.name.isdecimal() and path.is_dir()


def _restore_msgpack(path: Path) -> dict:
    from flax import serialization

    result: Any = serialization.msgpack_restore(path.read_bytes())
    return result


def _restore_orbax(path: Path) -> dict:
    import jax
    import orbax.checkpoint as ocp

    checkpointer = ocp.PyTreeCheckpointer()
    metadata: Any = checkpointer.metadata(path.resolve())
    tree = metadata.item_metadata.tree
    announced = sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    held = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    # Orbax fills what is missing with zeros, and no trained network is mostly zeros.
    if announced > max(_SMALL, _DENSEST * held):
        raise InputError(
            f"weights {path}: it announces {announced} bytes of arrays and holds "
            f"{held}; it is damaged, so give another checkpoint."
        )
    # Into numpy, so that it does not matter on which devices it was saved.
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return checkpointer.restore(path.resolve(), restore_args=arguments)
