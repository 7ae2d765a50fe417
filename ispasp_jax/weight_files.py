"""Files of trained weights: safetensors, and what torch and Flax write.

torch, huggingface_hub and Orbax are imported only where a source needs them.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ispasp_jax.errors import InputError
from ispasp_jax.groups import leaves
from ispasp_jax.hub import fetch

#: What torch's wrappers put before every name.
PREFIXES = ("module.", "_orig_mod.")
#: The key in a file's header under which `weights.save_safetensors` puts the widths.
HEADER = "ispasp_jax"


def read(source: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays by the names they have in the source, and what the source says of itself.

    Args:
      source: a .safetensors file; a .pth or .pt file (needs torch); a .msgpack file or
        an Orbax folder that Flax wrote; or hf:REPO[@REVISION] (needs huggingface_hub;
        what is in its cache is used without asking the network).

    Returns:
      The arrays, float32 where they were floating; and metadata: the file's own, with
      "model", "num_classes" and "widths" where `save_safetensors` wrote it, and with
      "architecture", "num_classes", "mean", "std", "image_size", "resize" and
      "interpolation" where the Hub's config.json (timm's) gives them.

    Raises:
      InputError: nothing readable there, a package is missing, or NaN or infinity.
    """
    path, metadata = Path(source), {}
    if str(source).startswith("hf:"):
        path, metadata = fetch(str(source))
    elif not path.exists():
        raise InputError(
            f"weights {source}: no such file; give an existing .safetensors file, a "
            "folder written by train.py or prune.py, or hf:REPO[@REVISION]."
        )
    if path.suffix == ".safetensors":
        arrays, header = _read_safetensors(path)
        metadata = {**header, **metadata}
    elif path.suffix in (".pth", ".pt", ".th", ".bin", ".tar"):
        arrays = _read_torch(path)
    elif (
        path.suffix == ".msgpack" or path.is_dir() or path.name.startswith("checkpoint")
    ):
        arrays = _read_flax(path)
    else:
        raise InputError(
            f"weights {source}: unknown kind of file; expected .safetensors, .pth or "
            ".pt, or Flax's .msgpack or Orbax folder."
        )
    arrays = {
        _without_prefix(name): as_float32(array)
        for name, array in arrays.items()
        if not name.endswith("num_batches_tracked")
    }
    broken = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise InputError(
            f"weights {source}: NaN or infinity in {some(broken)}; the file is "
            "damaged or its training diverged, so give other weights."
        )
    return arrays, metadata


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    import safetensors

    try:
        with safetensors.safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}
            header = dict(file.metadata() or {})
        return arrays, header | json.loads(header.pop(HEADER, "{}"))
    except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise InputError(
            f"weights {path}: not a readable .safetensors file ({error}); it may be "
            "cut short or a Git LFS pointer, so fetch it again."
        ) from error


def _without_prefix(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name


def as_float32(array: np.ndarray) -> np.ndarray:
    """Any floating type as float32; other types as they are."""
    # bfloat16 is no floating type to numpy, but to jax it is.
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    return array.astype(np.float32, copy=False) if floating else array


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    """A state dict, bare or under "state_dict" or "model", without running any code.

    Raises:
      InputError: torch is missing, or the file holds more than arrays.
    """
    try:
        import torch
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
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    tensors = isinstance(state, dict) and {
        name: tensor
        for name, tensor in state.items()
        if isinstance(tensor, torch.Tensor)
    }
    if not tensors:
        raise InputError(
            f"weights {path}: no state dict in it; expected one, bare or under "
            "'state_dict' or 'model'."
        )
    return {
        name: (t.float() if t.is_floating_point() else t).detach().numpy()
        for name, t in tensors.items()
    }


def _read_flax(path: Path) -> dict[str, np.ndarray]:
    """What flax.training.checkpoints or Orbax saved of params and batch statistics.

    Raises:
      InputError: not such a checkpoint.
    """
    try:
        tree = _restore_orbax(path) if path.is_dir() else _restore_msgpack(path)
        # The old flax.optim kept the parameters as its target.
        params = tree["params"] if "params" in tree else tree["optimizer"]["target"]
        statistics = {**tree, **tree.get("model_state", {})}.get("batch_stats", {})
        params = params.get("params", params)
        both = {"params": params, "batch_stats": statistics}
        return {name: np.asarray(leaf) for name, leaf in leaves(both)}
    except Exception as error:  # both libraries' errors are of many kinds
        raise InputError(
            f"weights {path}: not a Flax checkpoint with params ({error!r:.200}); "
            "expected a .msgpack file, an Orbax folder of one step, or a folder "
            "written by train.py or prune.py."
        ) from error


def _restore_msgpack(path: Path) -> dict:
    from flax import serialization

    return serialization.msgpack_restore(path.read_bytes())


def _restore_orbax(path: Path) -> dict:
    import jax
    import orbax.checkpoint as ocp

    checkpointer = ocp.PyTreeCheckpointer()
    tree = checkpointer.metadata(path.resolve()).item_metadata.tree
    # Into numpy, so that it does not matter on which devices it was saved.
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return checkpointer.restore(path.resolve(), restore_args=arguments)


def some(names: Iterable[str], shown: int = 5) -> str:
    """The first few names, and how many there are."""
    names = list(names)
    more = f", ... ({len(names)} in all)" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
