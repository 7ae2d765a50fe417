"""The walk's store on disk: a file for every part, written aside, then renamed.

A part's file holds its arrays and, in the header, what became of its groups. After
fine-tuning the whole network is kept beside, since the walk then goes on from there;
an older one is of no use any more and goes.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

from ispasp_jax import checkpoints, devices
from ispasp_jax.commands import content
from ispasp_jax.commands.workspace import check_there
from ispasp_jax.groups import leaves, nested
from ispasp_jax.models.network import Variables
from ispasp_jax.plan import Cut
from ispasp_jax.resume import Done, Store
from ispasp_jax.selecting import GroupResult


def open_store(folder: Path, resumed: bool) -> tuple[Store, int]:
    """The store in a folder, and how many parts it has to go on from.

    Args:
      folder: where; made when the first part is kept.
      resumed: whether to look for parts at all.
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
                for g in done.groups
            ],
            "whole": done.whole,
            "seconds": done.seconds,
            "tuned": done.tuned is not None,
        }
        _save(_part(folder, index), done.own, record)
        for older in range(index if done.tuned is not None else 0):
            _tuned(folder, older).unlink(missing_ok=True)

    return Store(read, write), count


def _part(folder: Path, index: int) -> Path:
    return folder / f"part-{index:03d}.safetensors"


def _tuned(folder: Path, index: int) -> Path:
    return folder / f"network-{index:03d}.safetensors"


def _records(folder: Path) -> list[dict]:
    """The headers of the parts to go on from."""
    found: list[dict] = []
    while (record := _record(_part(folder, len(found)))) is not None:
        found.append(record)
    tuned = [index for index, record in enumerate(found) if record["tuned"]]
    if tuned and _record(_tuned(folder, tuned[-1])) is None:
        return []
    return found


def _record(path: Path) -> dict | None:
    """A file's header; None if it is not there or damaged."""
    try:
        with safe_open(path, "numpy") as file:
            about, sum = (file.metadata()[key] for key in ("about", "sum"))
        return json.loads(about) if sum == _sum(load_file(path), about) else None
    except Exception:  # whatever safetensors raises on a damaged file
        return None


def _save(path: Path, variables: Variables, record: dict) -> None:
    new, about = path.with_suffix(".new"), json.dumps(record)
    header = {"about": about, "sum": _sum(dict(leaves(variables)), about)}
    checkpoints.write_arrays(new, variables, header)
    new.replace(path)


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
        nested(load_file(_part(folder, index))),
        record["whole"],
        tuple(record["seconds"]),
        jax.device_put(nested(load_file(path))) if tuned else None,
    )
