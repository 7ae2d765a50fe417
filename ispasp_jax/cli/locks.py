"""One run a result: the place that a run writes to is locked while it runs."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ispasp_jax import devices
from ispasp_jax.cli import workspace
from ispasp_jax.errors import InputError

try:
    import fcntl
except ImportError:  # not on every system
    fcntl = None

#: What an error gets as its note where --resume has something to go on from.
RESUMABLE = "--resume goes on from here"


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Holds a result's place for this run; with several processes the first one does.

    The system gives up the lock of a process that has died, so nothing is left to clean
    up. Errors that end the block get a note where a run can go on from what is there.

    Raises:
      InputError: another run holds the place, or nothing can be written there.
    """
    check(out)
    file, made = None, []
    if devices.is_first():
        made = _make_folders(Path(out).absolute().parent)
        file, holder = _take(Path(out).absolute().with_name(f".{out.name}.lock"))
    else:
        holder = 0
    try:
        if holder := int(devices.agree(holder)):
            who = f"process {holder}" if holder > 0 else "which has just begun"
            raise InputError(
                f"{out} is in use by another run ({who}); wait until that has ended, "
                "or give another --out."
            )
        yield
    except BaseException as error:
        if workspace.finished(workspace.place(out)):
            error.add_note(RESUMABLE)
        raise
    finally:
        if file is not None:
            Path(file.name).unlink(missing_ok=True)
            file.close()
        for folder in made:
            with contextlib.suppress(OSError):  # it holds something by now
                folder.rmdir()


def check(out: Path) -> None:
    """Raises InputError where a result cannot be put."""
    if out.is_symlink():
        raise InputError(
            f"--out {out} is a symbolic link (to {os.readlink(out)}), which a result "
            "would replace; give the folder that it names, or another."
        )
    above = next(path for path in out.absolute().parents if path.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise InputError(f"--out {out}: {above} is not a folder to write in.")


def _make_folders(folder: Path) -> list[Path]:
    """Makes a folder; those that were not there, the innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _take(path: Path) -> tuple[IO | None, int]:
    """Locks a file: the open file, and 0; or the process that has it locked."""
    while True:
        file = path.open("a+")
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            result = file.read().split()
            file.close()
            return None, int(result[0]) if result and result[0].isdecimal() else -1
        except OSError:  # a disk without locks
            pass
        if _is_there(file, path):
            break
        file.close()  # its owner ended, and deleted it, as we opened it
    file.truncate(0)
    file.write(f"{os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file, 0


def _is_there(file: IO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
