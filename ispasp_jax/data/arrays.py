"""Arrays from .npz and idx files, which are believed only as far as their bytes go:
nothing is allocated on the word of a head.
"""

import contextlib
import gzip
import io
import math
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Shaped, UInt8

from ispasp_jax.data.splits import reason
from ispasp_jax.errors import InputError

#: Bytes that deflate, of zip and gzip, makes of one at most.
_DEFLATE = 1032

#: The head of an .npy file whose length has two bytes: all but structured arrays have.
_MAGIC = b"\x93NUMPY\x01\x00"


def npz_head(file: str, key: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of one array, from its head, which the file bears out.

    Raises:
      InputError: of the file, the array, or its head.
    """
    with _npz_entry(file, key) as (_, shape, dtype):
        return shape, dtype


def npz_array(file: str, key: str) -> Shaped[np.ndarray, "..."]:
    """One array.

    Raises:
      InputError: as `npz_head`, or its checksum is wrong.
    """
    with _npz_entry(file, key) as (array, *_):
        return np.lib.format.read_array(array, allow_pickle=False)


def idx_array(place: str, name: str) -> UInt8[np.ndarray, "n *hw"]:
    """An idx file of bytes, `name` or `name`.gz.

    Raises:
      InputError: neither is there, or it is no such file.
    """
    result = [f for f in (Path(place, name), Path(place, f"{name}.gz")) if f.is_file()]
    if not result:
        raise InputError(
            f"{place} has neither {name} nor {name}.gz; expected MNIST's four files "
            "there."
        )
    zipped = result[0].suffix == ".gz"
    try:
        with (gzip.open if zipped else open)(result[0], "rb") as file:
            most = os.path.getsize(result[0]) * (_DEFLATE if zipped else 1)
            return _idx_content(file, int(name.split("-")[2][3]), most)
    except Exception as error:  # of gzip and zlib, or said here
        raise InputError(
            f"{result[0]} cannot be read ({reason(error)}); fetch it again."
        ) from error


def _idx_content(
    file: io.BufferedIOBase, axes: int, most: int
) -> UInt8[np.ndarray, "..."]:
    # Magic number 0, 0, 8 (bytes), axes; then the length of every axis, big-endian.
    head = file.read(4 + 4 * axes)
    if head[:4] != bytes((0, 0, 8, axes)) or len(head) < 4 + 4 * axes:
        raise ValueError(
            f"no idx file of {axes} axes: it starts with {head[:4].hex(' ')}"
        )
    shape = np.frombuffer(head[4:], ">u4").tolist()
    count = math.prod(shape)
    _affordable(count)
    data = file.read(min(count, most) + 1)
    if len(data) != count:
        more = "more than" if len(data) > count else f"{len(data)} bytes of"
        raise ValueError(f"{more} the {count} bytes that its head announces")
    return np.frombuffer(data, np.uint8).reshape(shape)


@contextlib.contextmanager
def _npz_entry(
    file: str, key: str
) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype]]:
    """One array of an .npz file as a stream, with what its head says; what is wrong
    with it, in the body too, is an InputError.
    """
    try:
        if os.path.exists(file) and not os.path.isfile(file):
            raise ValueError("not a file")
        with zipfile.ZipFile(file) as archive:
            if f"{key}.npy" not in archive.namelist():
                raise InputError(
                    f"{file} has no array {key}; expected x_train, y_train, x_test and "
                    "y_test."
                )
            info = archive.getinfo(f"{key}.npy")
            with archive.open(info) as array:
                head = _npy_head(array, info, os.path.getsize(file))
            with archive.open(info) as array:
                yield array, *head
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise nearly anything
        raise InputError(
            f"{file}: {key} cannot be read ({reason(error)}); expected an .npz file "
            "with x_train, y_train, x_test and y_test."
        ) from error


def _npy_head(
    array: IO[bytes], info: zipfile.ZipInfo, size: int
) -> tuple[tuple[int, ...], np.dtype]:
    if array.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("no array of numbers as numpy saves it")
    shape, _, dtype = np.lib.format.read_array_header_1_0(array)
    if dtype.hasobject:
        raise ValueError("an array of Python objects, which could run code")
    if dtype.kind == "V":
        raise ValueError(f"an array of {dtype}")
    ratio = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: _DEFLATE}
    most = min(info.compress_size, size) * ratio.get(info.compress_type, 0)
    there, wanted = info.file_size - array.tell(), math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or wanted != there or info.file_size > most:
        raise ValueError(
            f"its head announces {dtype} {shape}, and there are other than {wanted} "
            "bytes"
        )
    _affordable(wanted)
    return shape, dtype


def _affordable(count: int) -> None:
    """Raises ValueError for more bytes than the machine has memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if count > memory:
        raise ValueError(f"{count} bytes, and this machine's memory has {memory}")
