"""CRC-32C, TFRecord's checksum, in numpy: cheaper than to decode the same picture.

A checksum is linear in the state before a block of bytes and in each of the bytes. So a
block's own share is the exclusive or of one table entry a byte, and the state before is
carried over the block by one table entry for each of its four bytes.
"""

import functools

import numpy as np
from jaxtyping import UInt32

_POLYNOMIAL, _BLOCK = 0x82F63B78, 256


def checksum(data: bytes) -> int:
    """The checksum as TFRecord stores it: rotated and shifted."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """The checksum as everybody else has it."""
    single, places, (a, b, c, d) = _tables()
    whole = len(data) // _BLOCK * _BLOCK
    blocks = np.frombuffer(data, np.uint8, whole).reshape(-1, _BLOCK)
    shares = np.bitwise_xor.reduce(places[np.arange(_BLOCK), blocks], axis=1)
    state = 0xFFFFFFFF
    for share in shares.tolist():
        carried = a[state & 255] ^ b[state >> 8 & 255] ^ c[state >> 16 & 255]
        state = share ^ carried ^ d[state >> 24]
    for byte in data[whole:]:
        state = single[(state ^ byte) & 255] ^ state >> 8
    return state ^ 0xFFFFFFFF


@functools.cache
def _tables() -> tuple[list[int], UInt32[np.ndarray, "place 256"], list[list[int]]]:
    """What one byte does to a state of zero; what it does at each place in a block; and
    what becomes of each byte of a state over a block.
    """
    single = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        single = np.where(single & 1, single >> 1 ^ np.uint32(_POLYNOMIAL), single >> 1)

    def over_zero(state: UInt32[np.ndarray, "256"]) -> UInt32[np.ndarray, "256"]:
        return single[state & 255] ^ state >> 8

    places = [single]
    for _ in range(_BLOCK - 1):
        places.append(over_zero(places[-1]))
    carried = [np.arange(256, dtype=np.uint32) << np.uint32(8 * k) for k in range(4)]
    for _ in range(_BLOCK):
        carried = [over_zero(state) for state in carried]
    return single.tolist(), np.stack(places[::-1]), [c.tolist() for c in carried]
