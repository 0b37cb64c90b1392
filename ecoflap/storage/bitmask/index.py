"""The index of a bitmask checkpoint, its last file to be written: without it there is no checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ecoflap.storage.file_names import BITMASK_INDEX
from ecoflap.storage.files import read_json, replacing
from ecoflap.storage.stored_tensor import DTYPES

FORMAT, VERSION = "ecoflap-bitmask", 1
SHARD = re.compile(r"bitmask-\d{5}-of-\d{5}\.safetensors")
DIGEST = 16  # bytes


@dataclass(frozen=True)
class Entry:
    """How a tensor is stored.

    Attributes:
        dtype: its dtype, in the words of safetensors.
        shape: its shape.
        encoding: dense, bitmask, or N:4.
        coded: whether its parts are coded.
        blake2b: BLAKE2b of its dense bytes, of 16 bytes, in hexadecimal.
    """

    dtype: str
    shape: tuple[int, ...]
    encoding: str
    coded: bool
    blake2b: str


@dataclass(frozen=True)
class Shard:
    """A file of tensors.

    Attributes:
        bytes: its size.
        blake2b: BLAKE2b of the file, of 16 bytes, in hexadecimal.
        tensors: how each tensor in it is stored, by name.
    """

    bytes: int
    blake2b: str
    tensors: dict[str, Entry]


Index = dict[str, Shard]
"""Each shard by its file's name."""


def shard_name(number: int, of: int) -> str:
    """The name of a shard, counted from 1; a name that ``from_pretrained`` doesn't look for."""
    return f"bitmask-{number:05d}-of-{of:05d}.safetensors"


def digest(data: Any) -> str:
    """BLAKE2b of some bytes."""
    return blake2b(data, digest_size=DIGEST).hexdigest()


def write_index(folder: Path, index: Index) -> None:
    """Write the index, atomically."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "shards": {file: asdict(shard) for file, shard in index.items()},
    }
    with replacing(folder / BITMASK_INDEX) as temporary:
        temporary.write_text(_compact({**content, "blake2b": _own_digest(content)}) + "\n", encoding="utf-8")


def read_index(folder: Path) -> Index:
    """Read and check the index of a folder.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, or of another version.
    """
    path = folder / BITMASK_INDEX
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {BITMASK_INDEX}, so its bitmask checkpoint was not finished, or not copied"
            " whole; save or copy it again"
        )
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is not an index of a bitmask checkpoint, or is damaged; copy it anew")
    if content.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {content.get('version')}, and this release reads version {VERSION}; install"
            " the release that wrote it"
        )
    if content.pop("blake2b", None) != _own_digest(content):
        raise ValueError(f"{path} is damaged: its BLAKE2b is another; copy it anew")
    with _damage_of(str(path)):
        return {_file_name(path, file): _shard(shard) for file, shard in content["shards"].items()}


def entries_to_text(entries: Mapping[str, Entry]) -> str:
    """The entries of a shard, for its own header."""
    return _compact({name: asdict(entry) for name, entry in entries.items()})


def entries_from_text(text: str) -> dict[str, Entry]:
    """The entries in a shard's own header.

    Raises:
        ValueError: if they are damaged.
    """
    with _damage_of("a shard's header"):
        return {name: _entry(values) for name, values in json.loads(text).items()}


@contextmanager
def _damage_of(what: str) -> Iterator[None]:
    """Report fields that are missing or of another kind as damage of a file."""
    try:
        yield
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{what} is damaged ({error!r})") from error


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _own_digest(content: Mapping[str, Any]) -> str:
    return digest(json.dumps(content, sort_keys=True).encode())


def _file_name(path: Path, file: str) -> str:
    if not SHARD.fullmatch(file):
        raise ValueError(f"{path} names the file {file!r}, which is not a shard")
    return file


def _shard(values: Mapping[str, Any]) -> Shard:
    tensors = {name: _entry(entry) for name, entry in values["tensors"].items()}
    return Shard(values["bytes"], values["blake2b"], tensors)


def _entry(values: Mapping[str, Any]) -> Entry:
    if values["dtype"] not in DTYPES:
        raise ValueError(f"there is a tensor of dtype {values['dtype']}; known are {', '.join(DTYPES)}")
    return Entry(**{**values, "shape": tuple(values["shape"])})
