"""The hidden folder beside a result, where a run keeps what it has finished: a stopped
run with the same settings goes on from there. With several hosts the first process
writes, and all of them read.
"""

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from ispasp_jax import devices, files
from ispasp_jax.cli import content, json_files
from ispasp_jax.errors import InputError
from ispasp_jax.report import say
from ispasp_jax.weights import folders
from ispasp_jax.weights.folders import Model

#: What was asked; which bytes were given; fingerprints of all files that `write` wrote.
_SETTINGS, _GIVEN, _SUMS = "settings.json", "given.json", "sums.json"


class Kept(InputError):
    """An error after which a stopped run's folder stays as it is."""


class Workspace:
    """A run's folder; as a context it is deleted where the run ends by bad input with
    nothing finished. An image that cannot be read costs no hours of training.

    Attributes:
      folder: where to write.
      resumed: whether a stopped run with the same settings left it.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], resume: bool):
        """Opens the folder for `out`; nothing is written before `begin`.

        Raises:
          InputError: asked to resume a run that had other settings; or not asked to,
            and a stopped run has finished something.
        """
        self.folder = place(out)
        self._settings = json.loads(json.dumps(settings, default=str))
        before = self.read(_SETTINGS) if resume else None
        if before is not None and before != self._settings:
            keys = {**before, **self._settings}
            changed = [k for k in keys if before.get(k) != self._settings.get(k)]
            raise Kept(
                f"--resume: the stopped run had other settings ({', '.join(changed)}); "
                f"give the same ones with --resume, or delete {self.folder} to start "
                "anew."
            )
        if not resume and devices.agree(bool(finished(self.folder))):
            raise Kept(
                f"{self.folder} holds what a stopped run has finished "
                f"({', '.join(finished(self.folder))}); give --resume to go on with "
                f"it, or delete {self.folder} to start anew."
            )
        self.resumed = bool(devices.agree(before is not None))
        if resume and not self.resumed:
            say(f"--resume: no stopped run in {self.folder}, starting anew")

    def begin(self, given: Mapping[str, str] | None = None) -> None:
        """Goes on with a stopped run that was given the very same; clears what any
        other has left, and writes the settings.

        Args:
          given: fingerprints by what they are of, such as "weights".
        """
        given = dict(given or {})
        if self.resumed:
            before = self.read(_GIVEN) or {}
            other = [name for name, sum in given.items() if before.get(name) != sum]
            self.resumed = bool(devices.agree(not other))
            if not self.resumed:
                names = " and the ".join(other)
                say(f"--resume: the {names} are not the stopped run's, starting anew")
        if not self.resumed:
            self.remove()
            if devices.is_first():
                self.folder.mkdir(parents=True, exist_ok=True)
            self.write(_GIVEN, given)
            self.write(_SETTINGS, self._settings)
        devices.barrier("begin")

    def read(self, name: str) -> Any | None:
        """What `write` wrote under that name; None if nothing did.

        Raises:
          Kept: the file is damaged.
        """
        try:
            text = (self.folder / name).read_text()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError):
            text = ""
        if content.of_text(text) not in self._sums().get(name, []):
            raise Kept(
                f"{self.folder / name} is damaged, so the stopped run cannot go on; "
                f"delete {self.folder} to start anew."
            )
        return json.loads(text)

    def write(self, name: str, data: Any) -> None:
        """Writes a JSON file in the folder, whole or not at all."""
        if not devices.is_first():
            return
        text, path = json_files.dump(data), self.path(name)
        # A kill in between leaves the old file, whose fingerprint therefore stays.
        before = [content.of_text(path.read_text())] if path.exists() else []
        sums = {**self._sums(), name: [content.of_text(text), *before]}
        files.write_text(self.folder / _SUMS, json_files.dump(sums))
        files.write_text(path, text)

    def path(self, name: str) -> Path:
        """Where something of that name is to be kept.

        Raises:
          Kept: the folder is gone.
        """
        check_there(self.folder)
        return self.folder / name

    def deliver(
        self, names: Iterable[str], out: Path, optional: Iterable[str] = ()
    ) -> list[str]:
        """Puts copies of files and folders in the result's place, at once.

        Args:
          names: what has to be there.
          out: the result's place.
          optional: what may be.

        Returns:
          What was put there.

        Raises:
          Kept: something is missing.
        """
        result = [*names, *(n for n in optional if (self.folder / n).exists())]
        missing = [name for name in result if not self.path(name).exists()]
        if devices.agree(bool(missing)):
            raise Kept(
                f"{', '.join(missing)} went missing from {self.folder} while the run "
                f"was going on, and {out} is as it was; --resume makes them again."
            )
        with replacing(out, self.folder) as new:
            if new is not None:
                for name in result:
                    _copy(self.folder / name, new / name)
        self.remove()
        return result

    def remove(self) -> None:
        """Deletes the folder; what a kill leaves of it is nothing to go on from."""
        if devices.is_first():
            (self.folder / _SETTINGS).unlink(missing_ok=True)
            shutil.rmtree(self.folder, ignore_errors=True)

    def _sums(self) -> dict[str, list[str]]:
        """Fingerprints that a file may have; none if they are damaged themselves."""
        try:
            result = json.loads((self.folder / _SUMS).read_text())
            return {name: list(sums) for name, sums in result.items()}
        except (OSError, ValueError, AttributeError, TypeError, RecursionError):
            return {}

    def __enter__(self) -> "Workspace":
        return self

    def __exit__(self, kind, error, _) -> None:
        ends = isinstance(error, InputError | OSError) and not isinstance(error, Kept)
        if ends and not finished(self.folder):
            self.remove()


def _copy(source: Path, target: Path) -> None:
    """Copies a file or a folder of files."""
    if not source.is_dir():
        shutil.copy2(source, target)
        return
    try:
        shutil.copytree(source, target)
    except shutil.Error as error:  # a list of what went wrong, file by file
        raise OSError(error.args[0][0][2]) from error


def check_there(folder: Path) -> None:
    """Raises Kept where a run's folder is gone."""
    if devices.is_first() and not folder.is_dir():
        raise Kept(
            f"{folder}, where this run keeps what it has finished, was deleted while "
            "it ran; start it again, and let the folder be."
        )


def place(out: Path) -> Path:
    """The folder beside a result's."""
    out = Path(out).absolute()
    return out.with_name(f".{out.name}.partial")


def finished(folder: Path) -> list[str]:
    """What a stopped run has finished in its folder, beyond having begun."""
    if not (folder / _SETTINGS).exists():
        return []
    names = {path.name for path in folder.iterdir() if files.is_whole(path)}
    return sorted(names - {_SETTINGS, _GIVEN, _SUMS})


@contextlib.contextmanager
def replacing(folder: Path, aside: Path | None = None) -> Iterator[Path | None]:
    """files.new_folder in the first process; the others get None and wait until the
    folder is in its place.
    """
    if devices.is_first():
        with files.new_folder(folder, aside) as new:
            yield new
    else:
        yield None
    devices.barrier(f"{folder.name} is in its place")


def written(folder: Path | None, model: Model) -> Model:
    """Writes a model into a folder of `replacing`, and gives every process what can be
    read back from there.
    """
    if folder is not None:
        folders.write(folder, model)
        model = folders.load(folder, model.name)
    return model.replace(model.network, jax.device_put(devices.agree(model.variables)))
