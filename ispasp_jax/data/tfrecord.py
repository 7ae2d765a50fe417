"""TFRecord files read at random without TensorFlow: TFDS writes them by default."""

import functools
import os
import struct
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from jaxtyping import Int64

from ispasp_jax.data.crc32c import checksum

#: Around a record's bytes: length (u64) and its checksum (u32); behind, their checksum.
_HEAD, _TAIL = 12, 4


class TfRecords:
    """The examples of a split.

    Args:
      parts: TFDS's file instructions: filename, skip, take, examples_in_shard.
      parse: from the bytes of a record to an example.
    """

    def __init__(self, parts: Sequence, parse: Callable[[bytes], Any]):
        self._parts, self._parse = list(parts), parse
        self._ends = list(accumulate(part.take for part in self._parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, i: int) -> Any:
        """Example i.

        Raises:
          ValueError: the file was cut off, or holds other than what TFDS recorded.
        """
        k = bisect_right(self._ends, i)
        part = self._parts[k]
        starts = _starts(part.filename)
        if len(starts) != part.examples_in_shard:
            raise ValueError(
                f"{part.filename} holds {len(starts)} whole records of "
                f"{part.examples_in_shard}"
            )
        with open(part.filename, "rb") as file:
            file.seek(int(starts[part.skip + i - (self._ends[k] - part.take)]))
            (length,) = struct.unpack("<Q", file.read(_HEAD)[:8])
            record, tail = file.read(length), file.read(_TAIL)
        if struct.pack("<I", checksum(record)) != tail:
            raise ValueError(f"a record of {part.filename} is spoilt")
        return self._parse(record)


@functools.lru_cache(maxsize=4096)
def _starts(filename: str) -> Int64[np.ndarray, " n"]:
    """Where every whole record of a file begins; their lengths have checksums, too, so
    that a spoilt one does not lead into the middle of another record.
    """
    size, position, starts = os.path.getsize(filename), 0, []
    with open(filename, "rb") as file:
        while position + _HEAD + _TAIL <= size:
            file.seek(position)
            head = file.read(_HEAD)
            length, result = struct.unpack("<QI", head)
            if result != checksum(head[:8]):
                raise ValueError(f"{filename} is spoilt at byte {position}")
            following = position + _HEAD + length + _TAIL
            if following <= size:
                starts.append(position)
            position = following
    return np.array(starts, np.int64)
