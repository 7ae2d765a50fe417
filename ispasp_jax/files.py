"""Files and folders that are there whole or not at all: written aside, then renamed.

Whoever is killed while writing leaves in the place what was there, and beside it a
hidden name with ".new" in it, which nobody reads.
"""

import contextlib
import ctypes
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ispasp_jax.errors import InputError


@contextlib.contextmanager
def new_file(path: str | os.PathLike) -> Iterator[Path]:
    """Where to write a file that takes the place `path` when the block ends well.

    Raises:
      InputError: the place is a folder's or a symbolic link's.
      OSError: nothing can be written there; what was there is as it was.
    """
    path = Path(path)
    if os.path.islink(path) or os.path.isdir(path):
        what = "a symbolic link" if os.path.islink(path) else "a folder"
        raise InputError(
            f"{path} is {what}, which the new file would replace; give another name."
        )
    new = _aside(path, path.parent)
    try:
        yield new
        os.replace(new, path)
    finally:
        if os.path.lexists(new):
            new.unlink()


@contextlib.contextmanager
def new_folder(
    path: str | os.PathLike, aside: str | os.PathLike | None = None
) -> Iterator[Path]:
    """A new, empty folder that takes the place `path` when the block ends well.

    Args:
      path: the place; folders above it are made.
      aside: where the folder lies until then, on the same disk; None: beside.

    Raises:
      InputError: the place is a symbolic link's.
    """
    path = Path(path).absolute()
    if path.is_symlink():
        raise InputError(
            f"{path} is a symbolic link, which the new folder would replace; give "
            "the folder that it names, or another."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    new = _aside(path, Path(aside or path.parent))
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        _move(new, path)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text; see `new_file`."""
    with new_file(path) as new:
        new.write_text(text)


def is_whole(path: Path) -> bool:
    """Whether something was written to its end: no file's or folder's first half."""
    if path.name.startswith("."):
        return False
    return not path.is_dir() or any(map(is_whole, path.iterdir()))


def _aside(path: Path, folder: Path) -> Path:
    return folder / f".{path.name}.new-{os.getpid()}"


def _move(new: Path, path: Path) -> None:
    """Renames a finished folder to its place; the one that was there goes.

    Where the system cannot swap two folders, there is an instant in which the old one
    has left and the new one has not come; a kill then leaves both, hidden.
    """
    if path.exists() and _swap(new, path):
        shutil.rmtree(new, ignore_errors=True)
        return
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _swap(a: Path, b: Path) -> bool:
    """Exchanges two folders in one step; False where Linux or the disk cannot."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0
