"""Read and write tensors of safetensors files without mapping the files into memory.

The pages of a mapped file count as the process's until the kernel reclaims them, so reading through a large
tensor would cost as much memory as holding it. Here a tensor, some of its rows, or one part after the other
is read into separate memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
PART = 2**22  # bytes


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        name: its name in the file.
        path: the file.
        start: offset of its first byte in the file.
        shape: its shape.
        dtype: its dtype.
    """

    name: str
    path: Path
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self) -> Tensor:
        """The whole tensor."""
        tensor = torch.empty(self.shape, dtype=self.dtype, device="cpu")
        with self.path.open("rb") as file:
            _fill(tensor, file, self.start)
        return tensor

    def mapped(self) -> Tensor:
        """A memory-mapped view: only the pages in use are loaded."""
        with safe_open(str(self.path), framework="pt") as file:
            return file.get_tensor(self.name)  # type: ignore[no-any-return]

    def on_meta(self) -> Tensor:
        """A tensor of its shape and dtype on the meta device."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")

    def rows(self, indices: Tensor) -> Tensor:
        """Some of its rows, [indices, ...]."""
        found = torch.empty((len(indices), *self.shape[1:]), dtype=self.dtype, device="cpu")
        width = prod(self.shape[1:]) * self.dtype.itemsize
        with self.path.open("rb") as file:
            for row, index in zip(found, indices.tolist(), strict=True):
                _fill(row, file, self.start + index * width)
        return found

    def parts(self) -> Iterator[Tensor]:
        """The whole tensor, flat, in parts of a few megabytes."""
        size, at = PART // self.dtype.itemsize, self.start
        with self.path.open("rb") as file:
            for done in range(0, prod(self.shape), size):
                part = torch.empty(min(size, prod(self.shape) - done), dtype=self.dtype, device="cpu")
                _fill(part, file, at)
                at += part.nbytes
                yield part


def _fill(tensor: Tensor, file: BinaryIO, start: int) -> None:
    file.seek(start)
    if tensor.numel() and file.readinto(raw(tensor)) != tensor.nbytes:  # type: ignore[attr-defined]
        raise OSError(f"{file.name} is cut off: {tensor.nbytes} bytes were to be read from {start} on")


def raw(tensor: Tensor) -> Any:
    """The bytes of a contiguous tensor on the CPU, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def read_header(path: Path) -> tuple[int, dict[str, Any]]:
    """Read the header of a safetensors file.

    The file begins with the length of the header in 8 bytes; the header in JSON and the data follow.

    Returns:
        The offset of the data in the file, and for each tensor its dtype, shape and offsets.

    Raises:
        OSError: if it is not a safetensors file, or is truncated.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        if start > size:
            raise OSError(f"{path.name} is not a safetensors file, or is cut off")
        try:
            header: dict[str, Any] = json.loads(file.read(start - 8))
            header.pop("__metadata__", None)
            end = start + max([_end(entry) for entry in header.values()], default=0)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise OSError(f"{path.name} is not a safetensors file, or its header is damaged") from error
    if end > size:
        raise OSError(f"{path.name} is cut off: it has {size:,} of {end:,} bytes")
    return start, header


def _end(entry: Mapping[str, Any]) -> int:
    """Where a tensor ends by its entry in the header.

    Raises:
        ValueError: if its dtype and shape take other bytes.
        LookupError, TypeError: if the entry is not one of a tensor.
    """
    start, end = entry["data_offsets"]
    numbers, dtype = prod(entry["shape"]), DTYPES.get(entry["dtype"])
    if dtype is not None and end - start != numbers * dtype.itemsize:
        raise ValueError(f"{end - start} bytes are no {numbers} numbers of {dtype}")
    return int(end)


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name.

    Raises:
        OSError: if it is not a safetensors file, is truncated, or holds tensors of other dtypes.
    """
    start, header = read_header(path)
    if unknown := {entry["dtype"] for entry in header.values()} - DTYPES.keys():
        raise OSError(
            f"{path.name} holds tensors of dtype {', '.join(sorted(unknown))}; known are {', '.join(DTYPES)}"
        )
    found = {}
    for name, entry in header.items():
        first = start + entry["data_offsets"][0]
        found[name] = StoredTensor(name, path, first, tuple(entry["shape"]), DTYPES[entry["dtype"]])
    return found


def write_in_parts(
    path: Path,
    shapes: Mapping[str, Tensor],
    parts: Callable[[str], Iterable[Tensor]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file with one part of it in memory at a time; safetensors copies all tensors first.

    Args:
        path: the file.
        shapes: for each name a tensor of the right shape and dtype; its values are not used.
        parts: returns the parts of a tensor by its name.
        metadata: further texts for the header.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name, like in shapes.items():
        start, end = end, end + like.numel() * like.dtype.itemsize
        header[name] = {"dtype": NAMES[like.dtype], "shape": list(like.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in shapes:
            for part in parts(name):
                file.write(raw(part.detach().cpu().contiguous()))
