"""Write and read the files of a bitmask checkpoint, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ecoflap.errors import UserError
from ecoflap.storage.bitmask.coding import planes_of, squeeze
from ecoflap.storage.bitmask.encoding import DENSE, LEAST, Encoded, bits_of, decode, encode
from ecoflap.storage.bitmask.index import DIGEST, Entry, Shard, digest, entries_from_text, entries_to_text
from ecoflap.storage.files import replacing
from ecoflap.storage.stored_tensor import DTYPES, NAMES, PART, StoredTensor, stored_tensors, write_in_parts

ENTRIES, CODED = "tensors", "coded"
"""The keys of a shard's metadata: the entries of its tensors, and whether values were to be coded."""
BETWEEN = ":"
"""What is between the name of a tensor and that of its part."""


def write_shard(path: Path, names: Iterable[str], tensor: Callable[[str], Tensor], coded: bool) -> None:
    """Encode tensors and write them into one file, atomically.

    The encoded tensors of the shard are in memory, and one that is encoded.

    Args:
        path: the file.
        names: of the tensors.
        tensor: returns a tensor on the CPU by its name.
        coded: whether to code values where that is shorter.

    Raises:
        UserError: if a tensor has a dtype that can't be stored, or a name with a colon.
    """
    parts: dict[str, Tensor] = {}
    entries: dict[str, Entry] = {}
    for name in names:
        entries[name], own = _encoded(name, tensor(name), coded)
        parts |= own
    metadata = {ENTRIES: entries_to_text(entries), CODED: str(coded)}
    with replacing(path) as temporary:
        write_in_parts(temporary, parts, lambda part: [parts[part]], metadata)


def _encoded(name: str, tensor: Tensor, coded: bool) -> tuple[Entry, dict[str, Tensor]]:
    """A tensor's entry, and its parts by their names in the file."""
    if tensor.dtype not in NAMES or BETWEEN in name:
        raise UserError(
            f"{name} ({tensor.dtype}) can't be stored in a bitmask checkpoint, whose dtypes are"
            f" {', '.join(DTYPES)} and whose names have no {BETWEEN!r}; save it in the form dense"
        )
    one, dtype = encode(tensor), NAMES[tensor.dtype]
    parts = {f"{name}{BETWEEN}{place}": _bytes(part) for place, part in one.places.items()}
    if one.encoding == DENSE:
        parts[name] = tensor
    else:
        parts[f"{name}{BETWEEN}values"] = _bytes(one.values).view(tensor.dtype)
    if coded:
        shorter = _coded(name, one)
        coded = _size(shorter) + LEAST < _size(parts)
        parts = shorter if coded else parts
    entry = Entry(dtype, tuple(tensor.shape), one.encoding, coded, digest(bits_of(tensor)))
    return entry, parts


def _coded(name: str, one: Encoded) -> dict[str, Tensor]:
    """The coded parts of a tensor, by their names in the file."""
    planes = dict(one.places) | {
        f"values.{place}": plane for place, plane in enumerate(planes_of(one.values))
    }
    return {f"{name}{BETWEEN}{part}": _bytes(squeeze(plane)) for part, plane in planes.items()}


def _size(parts: Mapping[str, Tensor]) -> int:
    return sum(part.nbytes for part in parts.values())


def _bytes(array: NDArray[Any]) -> Tensor:
    """The bytes of an array as a tensor, without a copy where it can be written to."""
    own = array.view(np.uint8)
    return torch.from_numpy(own if own.flags.writeable else own.copy())


@dataclass(frozen=True)
class ShardReader:
    """A shard whose tensors are decoded one at a time.

    Attributes:
        path: the file.
        entries: how each tensor is stored.
    """

    path: Path
    entries: Mapping[str, Entry]

    def tensor(self, name: str) -> Tensor:
        """Decode a tensor, and check its bytes.

        Raises:
            KeyError: if the shard has no such tensor.
            ValueError: if it is damaged.
        """
        entry = self.entries[name]
        try:
            read = partial(self._part, name)
            found = decode(entry.encoding, entry.coded, entry.shape, DTYPES[entry.dtype], read)
        except (OSError, ValueError) as error:
            raise ValueError(f"{name} in {self.path} is damaged: {error}; copy the file anew") from error
        if digest(bits_of(found)) != entry.blake2b:
            raise ValueError(f"{name} in {self.path} is damaged: its BLAKE2b is another; copy the file anew")
        return found

    @cached_property
    def _stored(self) -> dict[str, StoredTensor]:
        return stored_tensors(self.path)

    def _part(self, name: str, part: str) -> NDArray[Any]:
        """The bits of a part of a tensor; "" is the tensor itself."""
        full = f"{name}{BETWEEN}{part}" if part else name
        if full not in self._stored:
            raise ValueError(f"it has no part {part or name}")
        return bits_of(self._stored[full].read())


def open_shard(path: Path, shard: Shard) -> ShardReader:
    """Check a whole file against its entry in the index, reading a few megabytes at a time.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, which the checkpoint's index names; copy it there")
    if path.stat().st_size != shard.bytes or file_digest(path) != shard.blake2b:
        raise ValueError(f"{path} is damaged: its size or its BLAKE2b is another; copy the file anew")
    return ShardReader(path, shard.tensors)


def found_shard(path: Path) -> Shard:
    """A file's entry for the index, by the file alone.

    Raises:
        ValueError: if it is not a shard.
    """
    return Shard(path.stat().st_size, file_digest(path), entries_from_text(_metadata(path)[ENTRIES]))


def is_coded(path: Path) -> bool:
    """Whether a shard's values were coded where that was shorter.

    Raises:
        ValueError: if it is not a shard.
    """
    return _metadata(path)[CODED] == str(True)


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(str(path), framework="pt") as file:
            found: dict[str, str] = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({error})") from error
    if not {ENTRIES, CODED} <= found.keys():
        raise ValueError(f"{path} is not a shard of a bitmask checkpoint")
    return found


def file_digest(path: Path) -> str:
    """BLAKE2b of a file."""
    found = blake2b(digest_size=DIGEST)
    for chunk in _chunks(path):
        found.update(chunk)
    return found.hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(PART):
            yield chunk
