"""Read a bitmask checkpoint one tensor at a time; whatever is read has been checked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ecoflap.storage.bitmask.index import Entry, read_index
from ecoflap.storage.bitmask.shards import ShardReader, open_shard
from ecoflap.storage.stored_tensor import DTYPES


class BitmaskCheckpoint:
    """The tensors of a folder that has a bitmask index.

    A shard is checked as a whole when it is first read from, a tensor when it is decoded. The last tensor
    stays in memory, for readers of its rows.

    Attributes:
        entries: how each tensor is stored, by name.
    """

    def __init__(self, folder: Path) -> None:
        """Read the index.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is damaged, or of another version.
        """
        self.folder, self._index = folder, read_index(folder)
        self._file_of = {name: file for file, shard in self._index.items() for name in shard.tensors}
        self.entries: dict[str, Entry] = {}
        for shard in self._index.values():
            self.entries |= shard.tensors
        self._open: dict[str, ShardReader] = {}
        self._last: tuple[str, Tensor] | None = None

    def names(self) -> list[str]:
        """The names of all tensors, sorted."""
        return sorted(self.entries)

    def tensor(self, name: str, start: int | None = None, stop: int | None = None) -> Tensor:
        """Decode a tensor, and take some of its first dimension."""
        if self._last is None or self._last[0] != name:
            self._last = None  # before the next one is made
            self._last = name, self._shard(self._file_of[name]).tensor(name)
        return self._last[1] if start is None else self._last[1][start:stop]

    def read(self, name: str) -> Tensor:
        """Decode a tensor."""
        return self.tensor(name)

    def shapes(self) -> dict[str, Tensor]:
        """Each tensor on the meta device, by name."""
        return {
            name: torch.empty(entry.shape, dtype=DTYPES[entry.dtype], device="meta")
            for name, entry in self.entries.items()
        }

    def damage(self) -> Iterator[str]:
        """The shards whose size or checksum is another than in the index."""
        for file in self._index:
            try:
                self._shard(file)
            except ValueError as error:
                yield str(error)

    def close(self) -> None:
        """Nothing stays open."""

    def _shard(self, file: str) -> ShardReader:
        if file not in self._open:
            self._open[file] = open_shard(self.folder / file, self._index[file])
        return self._open[file]
