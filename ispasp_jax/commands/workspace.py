"""The hidden folder beside a result, where a run keeps what it has finished: a stopped
run with the same settings goes on from there, any other starts anew. With several hosts
the first process writes, and all of them read.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from ispasp_jax import checkpoints, devices
from ispasp_jax.checkpoints import Model
from ispasp_jax.errors import InputError
from ispasp_jax.report import say

_SETTINGS = "settings.json"


class Workspace:
    """A run's folder.

    Attributes:
      folder: where to write.
      resumed: whether a stopped run with the same settings left it.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], resume: bool):
        """Opens the folder for `out`; nothing is written before `begin`.

        Raises:
          InputError: asked to resume a run that had other settings, or the place cannot
            be written to.
        """
        above = next(path for path in out.absolute().parents if path.exists())
        if not (above.is_dir() and os.access(above, os.W_OK)):
            raise InputError(f"--out {out}: {above} is not a folder to write in.")
        self.folder = out.absolute().with_name(f".{out.name}.partial")
        self._settings = json.loads(json.dumps(settings, default=str))
        before = self.read(_SETTINGS) if resume else None
        if before is not None and before != self._settings:
            changed = [k for k, v in self._settings.items() if before.get(k) != v]
            raise InputError(
                f"--resume: the stopped run had other settings ({', '.join(changed)}); "
                "give the same ones, or leave --resume out to start anew."
            )
        self.resumed = bool(devices.agree(before is not None))
        if resume and not self.resumed:
            say("--resume: nothing to go on from, starting anew")

    def begin(self) -> None:
        """Clears what a run with other settings left, and writes these."""
        if not self.resumed:
            self.remove()
            self.write(_SETTINGS, self._settings)
        devices.barrier("begin")

    def read(self, name: str) -> Any | None:
        """A JSON file of the folder; None if it is not there or damaged."""
        try:
            return json.loads((self.folder / name).read_text())
        except (OSError, ValueError):
            return None

    def write(self, name: str, content: Any) -> None:
        """Writes a JSON file in the folder, whole or not at all."""
        if not devices.is_first():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        new = self.folder / f"{name}.new"
        new.write_text(json.dumps(content, indent=1) + "\n")
        new.replace(self.folder / name)

    def deliver(self, names: Iterable[str], out: Path) -> None:
        """Puts copies of the named files and folders in the result's place, at once."""
        with replacing(out, self.folder) as new:
            for name in names if new else ():
                source = self.folder / name
                if source.is_dir():
                    shutil.copytree(source, new / name)
                elif source.exists():
                    shutil.copy2(source, new / name)
        self.remove()

    def remove(self) -> None:
        """Deletes the folder; what a kill leaves of it is nothing to go on from."""
        if devices.is_first():
            (self.folder / _SETTINGS).unlink(missing_ok=True)
            shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def replacing(folder: Path, aside: Path | None = None) -> Iterator[Path | None]:
    """checkpoints.replacing in the first process; the others get None and wait until
    the folder is in its place.
    """
    if devices.is_first():
        with checkpoints.replacing(folder, aside) as new:
            yield new
    else:
        yield None
    devices.barrier(f"{folder.name} is in its place")


def written(folder: Path | None, model: Model) -> Model:
    """Writes a model into a folder of `replacing`, and gives every process what can be
    read back from there.
    """
    if folder is not None:
        checkpoints.write(folder, model)
        model = checkpoints.load(folder)
    return model.replace(model.network, jax.device_put(devices.agree(model.variables)))
