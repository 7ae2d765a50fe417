"""The walk's store on disk: a file for every step, whole or not at all.

A step's file holds the arrays that it changed and, in the header, what became of its
groups. After fine-tuning the whole network is kept beside, since the walk then goes on
from there; an older one is of no use any more and goes.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

from ispasp_jax import devices
from ispasp_jax.cli import content
from ispasp_jax.cli.workspace import check_there
from ispasp_jax.graph.plans import Cut
from ispasp_jax.walk import Done, GroupResult, Store
from ispasp_jax.weights import tensors


def open_store(folder: Path, resumed: bool) -> tuple[Store, int]:
    """The store in a folder, and how many steps it has to go on from.

    Args:
      folder: where; made when the first step is kept.
      resumed: whether to look for steps at all.
    """
    records = _records(folder) if resumed else []
    count = int(devices.agree(len(records)))
    if not count and devices.is_first():
        shutil.rmtree(folder, ignore_errors=True)

    def read(index: int) -> Done | None:
        return _done(folder, index, records[index]) if index < count else None

    def write(index: int, done: Done) -> None:
        if not devices.is_first():
            return
        check_there(folder.parent)
        folder.mkdir(exist_ok=True)
        if done.tuned is not None:
            _save(_tuned(folder, index), done.tuned, {})
        record = {
            "groups": [
                {**g._asdict(), "cut": [g.cut.width, g.cut.kept.tolist()]}
                for g in done.results
            ],
            "drifts": done.drifts,
            "missed": done.missed,
            "seconds": dict(done.seconds),
            "tuned": done.tuned is not None,
        }
        _save(_step(folder, index), done.changed, record)
        for older in range(index if done.tuned is not None else 0):
            _tuned(folder, older).unlink(missing_ok=True)

    return Store(read, write), count


def _step(folder: Path, index: int) -> Path:
    return folder / f"step-{index:03d}.safetensors"


def _tuned(folder: Path, index: int) -> Path:
    return folder / f"network-{index:03d}.safetensors"


def _records(folder: Path) -> list[dict]:
    """The headers of the steps to go on from."""
    result: list[dict] = []
    while (record := _record(_step(folder, len(result)))) is not None:
        result.append(record)
    tuned = [index for index, record in enumerate(result) if record["tuned"]]
    if tuned and _record(_tuned(folder, tuned[-1])) is None:
        return []
    return result


def _record(path: Path) -> dict | None:
    """A file's header; None if it is not there or damaged."""
    try:
        with safe_open(path, "numpy") as file:
            about, sum = (file.metadata()[key] for key in ("about", "sum"))
        return json.loads(about) if sum == _sum(load_file(path), about) else None
    except Exception:  # whatever safetensors raises on a damaged file
        return None


def _save(path: Path, arrays: Mapping[str, Any], record: dict) -> None:
    about = json.dumps(record)
    header = {"about": about, "sum": _sum(dict(arrays), about)}
    tensors.write_whole(path, jax.device_get(dict(arrays)), header)


def _sum(arrays: dict, about: str) -> str:
    """A fingerprint of all that a file holds."""
    return content.of_text(f"{content.of_tree(arrays)} {about}")


def _done(folder: Path, index: int, record: dict) -> Done:
    groups = [
        GroupResult(**{**g, "cut": Cut(g["cut"][0], np.asarray(g["cut"][1], np.int64))})
        for g in record["groups"]
    ]
    path = _tuned(folder, index)
    tuned = record["tuned"] and path.exists()
    return Done(
        tuple(groups),
        load_file(_step(folder, index)),
        tuple((name, layer, drift) for name, layer, drift in record["drifts"]),
        record["missed"],
        record["seconds"],
        jax.device_put(load_file(path)) if tuned else None,
    )
