"""A slow and obvious decoder, from docs/checkpoint_format.md and not from the code, and tensors to store."""

from __future__ import annotations

import json
import zlib
from itertools import combinations
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


def raw(tensor: Tensor) -> bytes:
    """Its bytes."""
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and raw(one) == raw(other)


def pruned(shape: tuple[int, ...], density: float, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Random bits of every kind, of which a share is not zero."""
    generator = torch.Generator().manual_seed(seed)
    size = (*shape, dtype.itemsize)
    high = 2 if dtype == torch.bool else 256
    bits = torch.randint(0, high, size, generator=generator, dtype=torch.uint8)
    bits[torch.rand(shape, generator=generator) >= density] = 0
    return bits.reshape(-1).view(dtype).reshape(shape)


def decode_by_hand(folder: Path) -> dict[str, bytes]:
    """The dense bytes of every tensor of a bitmask checkpoint."""
    index = json.loads((folder / "bitmask.index.json").read_text())
    assert (index["format"], index["version"]) == ("ecoflap-bitmask", 1)
    found = {}
    for file, shard in index["shards"].items():
        with safe_open(str(folder / file), "pt") as opened:
            parts = {name: raw(opened.get_tensor(name)) for name in opened.keys()}  # noqa: SIM118
        for name, entry in shard["tensors"].items():
            own = {
                part.removeprefix(f"{name}:"): data
                for part, data in parts.items()
                if part.startswith(f"{name}:")
            }
            found[name] = _dense(own, entry) if own else parts[name]
    return found


def _dense(parts: dict[str, bytes], entry: dict[str, Any]) -> bytes:
    width = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2}.get(entry["dtype"], 1)
    count = prod(entry["shape"])
    mask = [True] * count
    if entry["encoding"] == "bitmask":
        packed = _plane(parts["mask"], -(-count // 8))
        mask = [bool(packed[i // 8] >> (7 - i % 8) & 1) for i in range(count)]
    elif entry["encoding"] != "dense":
        mask = _from_codes(parts["codes"], int(entry["encoding"][0]), count)
    values = parts.get("values") or _from_planes(parts, width, sum(mask))
    dense, at = b"", 0
    for kept in mask:
        dense += values[at : at + width] if kept else bytes(width)
        at += width * kept
    return dense


def _plane(stored: bytes, count: int) -> bytes:
    return stored if len(stored) == count else zlib.decompress(stored, -15)


def _from_codes(stored: bytes, n: int, count: int) -> list[bool]:
    choices = list(combinations(range(4), n))
    digits = 3 if n == 2 else 4
    numbers = []
    for byte in _plane(stored, -(-count // 4 // digits)):
        numbers += [byte // len(choices) ** place % len(choices) for place in reversed(range(digits))]
    return [place in choices[number] for number in numbers[: count // 4] for place in range(4)]


def _from_planes(parts: dict[str, bytes], width: int, kept: int) -> bytes:
    if f"values.{width - 1}" not in parts:
        return b""
    planes = [_plane(parts[f"values.{place}"], kept) for place in range(width)]
    values, bits = b"", 8 * width
    for each in zip(*planes, strict=True):
        rotated = int.from_bytes(bytes(each), "big")
        values += (rotated >> 1 | (rotated & 1) << (bits - 1)).to_bytes(width, "little")
    return values
