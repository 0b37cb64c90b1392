"""Lossless coding of values: byte by byte, with a Huffman code where that is shorter.

Trained weights differ little in size, so their exponents have 1 to 3 bits of entropy; signs and mantissas are
close to random. Each value is rotated left by one bit, which moves the exponent of bf16 and fp32 into one
byte and the sign to the end. The k-th bytes of all values form plane k, the most significant first.

A Huffman code is what an exponent can use: its neighbours say nothing about it. That of deflate without
matches comes with Python, and codes such planes shorter than zstandard does.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecoflap.storage.bitmask.groups import Bytes

SAMPLE = 2**16  # bytes of a plane that are coded to see whether it is worth it
WORTH = 63 / 64


def planes_of(values: NDArray[Any]) -> list[Bytes]:
    """The planes of unsigned integers [count], each [count]."""
    width = values.itemsize
    rotated = (values << 1) | (values >> (8 * width - 1))
    apart = rotated.view(np.uint8).reshape(-1, width)
    return [np.ascontiguousarray(apart[:, width - 1 - place]) for place in range(width)]


def values_of(planes: Sequence[Bytes], dtype: Any) -> NDArray[Any]:
    """The unsigned integers [count] whose planes, each [count], these are."""
    width = len(planes)
    apart = np.empty((len(planes[0]), width), np.uint8)
    for place, plane in enumerate(planes):
        apart[:, width - 1 - place] = plane
    rotated = apart.reshape(-1).view(dtype)
    return (rotated >> 1) | (rotated << (8 * width - 1))


def squeeze(plane: Bytes) -> Bytes:
    """The code of a plane, or the plane itself where its code would not be shorter."""
    sample = plane[:SAMPLE]
    if len(_code(sample)) > WORTH * len(sample):
        return plane
    coded = np.frombuffer(_code(plane), np.uint8)
    return coded if len(coded) < len(plane) else plane


def restore(stored: Bytes, count: int) -> Bytes:
    """The plane [count] of which ``squeeze`` made this.

    Raises:
        ValueError: if it is not a code of such a plane.
    """
    if len(stored) == count:
        return stored
    decoder = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plane = decoder.decompress(stored.tobytes(), count + 1)
    except zlib.error as error:
        raise ValueError(f"a code in it can't be read ({error})") from error
    if len(plane) != count:
        raise ValueError(f"a code in it is of {len(plane):,} bytes instead of {count:,}")
    return np.frombuffer(plane, np.uint8)


def _code(plane: Bytes) -> bytes:
    """The plane in deflate's format (RFC 1951), of which only the Huffman codes are used."""
    coder = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_HUFFMAN_ONLY)
    return coder.compress(plane.tobytes()) + coder.flush()
