"""Encode a tensor as the places and the bits of what is not zero, and decode it.

Bits are compared, not numbers: zero is the value without a set bit. So a negative zero, NaN payloads and
every dtype survive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ecoflap.storage.bitmask import coding, groups

DENSE, BITMASK = "dense", "bitmask"
LEAST = 256  # bytes to save: a further tensor takes about 100 in the header of its file
UNSIGNED = {width: np.dtype(f"<u{width}") for width in (1, 2, 4, 8)}

Read = Callable[[str], NDArray[Any]]


@dataclass(frozen=True)
class Encoded:
    """An encoded tensor.

    Attributes:
        encoding: dense, bitmask, or N:4.
        values: the bits of its values, [kept]; of all of them if it is dense.
        places: where they are, by part: ``mask`` [ceil(weights / 8)], or ``codes`` [ceil(groups / digits)].
    """

    encoding: str
    values: NDArray[Any]
    places: Mapping[str, groups.Bytes] = field(default_factory=dict)


def bits_of(tensor: Tensor) -> NDArray[Any]:
    """The bits of a tensor on the CPU as unsigned integers, [weights]; a view where it is contiguous."""
    flat = tensor.detach().contiguous().reshape(-1)
    bits: NDArray[Any] = flat.view(torch.uint8).numpy().view(UNSIGNED[tensor.dtype.itemsize])
    return bits


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors on the CPU have the same dtype, shape and bits."""
    same_kind = one.dtype == other.dtype and one.shape == other.shape
    return same_kind and np.array_equal(bits_of(one), bits_of(other))


def encode(tensor: Tensor) -> Encoded:
    """The smallest encoding of a tensor; dense for vectors, and where zeros are too few to pay.

    Args:
        tensor: of any shape and dtype, on the CPU.
    """
    bits = bits_of(tensor)
    if tensor.dim() < 2 or not len(bits):
        return Encoded(DENSE, bits)
    mask = bits != 0
    nibbles = groups.nibbles_of(mask) if tensor.shape[-1] % groups.GROUP == 0 else None
    n = 0 if nibbles is None else int(groups.SIZES[nibbles].max())
    sizes = encoded_bytes(len(bits), int(mask.sum()), bits.itemsize, n)
    sizes[DENSE] -= LEAST
    encoding = min(sizes, key=sizes.__getitem__)
    if encoding == DENSE:
        return Encoded(DENSE, bits)
    if encoding == BITMASK or nibbles is None:
        return Encoded(BITMASK, np.compress(mask, bits), {"mask": np.packbits(mask)})
    chosen = groups.filled(nibbles, n)
    return Encoded(encoding, np.compress(groups.mask_of(chosen), bits), {"codes": groups.pack(chosen, n)})


def encoded_bytes(weights: int, values: int, width: int, n: int) -> dict[str, int]:
    """The bytes that the values of a tensor and their places take, by encoding.

    Args:
        weights: of the tensor, zeros or not.
        values: how many are not zero.
        width: bytes of a weight.
        n: the most values in any group of four; 0 if it has no such groups.
    """
    found = {DENSE: weights * width, BITMASK: -(-weights // 8) + values * width}
    if n in groups.DIGITS:
        number = weights // groups.GROUP
        found[f"{n}:4"] = groups.code_bytes(number, n) + number * n * width
    return found


def decode(encoding: str, coded: bool, shape: tuple[int, ...], dtype: torch.dtype, read: Read) -> Tensor:
    """The tensor that was encoded.

    Args:
        encoding: dense, bitmask, or N:4.
        coded: whether its values and places are coded.
        shape: its shape.
        dtype: its dtype.
        read: returns a stored part by its name; "" is a dense tensor that is not coded.

    Raises:
        ValueError: if the parts don't make such a tensor.
    """
    weights, unsigned = prod(shape), UNSIGNED[dtype.itemsize]
    if encoding == DENSE:
        bits = _values("values" if coded else "", read, coded, weights, unsigned)
    else:
        mask = _mask(encoding, read, coded, weights)
        at = np.flatnonzero(mask)
        bits = np.zeros(weights, unsigned)
        bits[at] = _values("values", read, coded, len(at), unsigned)
    return torch.from_numpy(bits.view(np.uint8)).view(dtype).reshape(shape)


def _mask(encoding: str, read: Read, coded: bool, weights: int) -> NDArray[np.bool_]:
    """The mask of a sparse tensor, [weights]."""
    if encoding == BITMASK:
        packed = _bytes("mask", read, coded, -(-weights // 8))
        return np.unpackbits(packed, count=weights).view(bool)
    n = next((n for n in groups.DIGITS if encoding == f"{n}:4"), None)
    if n is None or weights % groups.GROUP:
        raise ValueError(f"it has the encoding {encoding}, which does not exist for its shape")
    number = weights // groups.GROUP
    codes = _bytes("codes", read, coded, groups.code_bytes(number, n))
    return groups.mask_of(groups.unpack(codes, number, n))


def _values(part: str, read: Read, coded: bool, count: int, dtype: Any) -> NDArray[Any]:
    """The bits of values, [count]."""
    if coded:
        planes = [_bytes(f"{part}.{place}", read, coded, count) for place in range(dtype.itemsize)]
        return coding.values_of(planes, dtype)
    return _checked(part, read(part), count)


def _bytes(part: str, read: Read, coded: bool, count: int) -> groups.Bytes:
    """A part of bytes, [count]."""
    stored = read(part)
    return coding.restore(stored, count) if coded else _checked(part, stored, count)


def _checked(part: str, stored: NDArray[Any], count: int) -> NDArray[Any]:
    if len(stored) != count:
        raise ValueError(f"its {part or 'values'} are {len(stored):,} instead of {count:,}")
    return stored
