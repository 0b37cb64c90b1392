"""Read a saved model one tensor at a time: safetensors, a bitmask checkpoint, or a file in LAVIS' format."""

from __future__ import annotations

import json
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecoflap.storage.file_names import BITMASK_INDEX, BITMASK_SHARDS, WEIGHTS_FILE, WEIGHTS_INDEX

if TYPE_CHECKING:
    from torch import Tensor

    from ecoflap.storage.bitmask.reader import BitmaskCheckpoint
    from ecoflap.storage.stored_tensor import StoredTensor


LAVIS = "model.pth"
WEIGHTS = (WEIGHTS_INDEX, WEIGHTS_FILE, "model-*.safetensors", BITMASK_INDEX, BITMASK_SHARDS)
"""Patterns of the files with weights, except in LAVIS' format."""


class Checkpoint:
    """An open checkpoint folder, as ``save_pretrained``, ``ecoflap.save`` or LAVIS writes it.

    Files are opened when first needed; a tensor is read when asked for.

    Attributes:
        folder: The checkpoint's folder.
    """

    def __init__(self, folder: Path) -> None:
        """Find the file of every tensor.

        Raises:
            FileNotFoundError: if the folder holds no model, or an unfinished one.
            ValueError: if the index of a bitmask checkpoint is damaged, or of another version.
        """
        self.folder = Path(folder)
        self._open: dict[str, Any] = {}
        self._stack = ExitStack()
        index = self.folder / WEIGHTS_INDEX
        # Of a single file and shards, transformers prefers the single file, too.
        self._single = WEIGHTS_FILE if (self.folder / WEIGHTS_FILE).is_file() else None
        has_safetensors = self._single is not None or index.is_file()
        self._bitmask = None if has_safetensors else _open_bitmask(self.folder)
        has_safetensors |= self._bitmask is not None
        self._mapped = None if has_safetensors else _map_lavis(self.folder / LAVIS)
        if not has_safetensors and self._mapped is None:
            raise FileNotFoundError(
                f"no model.safetensors and no {index.name} in {self.folder}: the run's checkpoint was moved"
                " or never saved"
            )
        self._shards: dict[str, str] = {}
        if not self._single and not self._mapped and not self._bitmask:
            self._shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]

    def tensor(self, name: str, start: int | None = None, stop: int | None = None) -> Tensor:
        """Read one tensor to the CPU, or some of its first dimension.

        Args:
            name: Its name.
            start: The first row to read; None for the whole tensor.
            stop: The row behind the last; None for the whole tensor.

        Raises:
            KeyError: if the checkpoint has no such tensor.
            FileNotFoundError: if a shard is missing.
            safetensors.SafetensorError: if a file is damaged.
            ValueError: if a file of a bitmask checkpoint is damaged.
        """
        if self._bitmask is not None:
            return self._bitmask.tensor(name)[start:stop] if start is not None else self._bitmask.tensor(name)
        if self._mapped is not None:
            return self._mapped[name][start:stop] if start is not None else self._mapped[name]
        file = self._file(self._single or self._shards[name])
        if name not in file.keys():  # noqa: SIM118 - a safetensors handle is not a mapping
            raise KeyError(name)
        whole = start is None
        tensor: Tensor = file.get_tensor(name) if whole else file.get_slice(name)[start:stop]
        return tensor

    def names(self) -> list[str]:
        """The names of all tensors."""
        if self._bitmask is not None:
            return sorted(self._bitmask.entries)
        if self._mapped is not None:
            return sorted(self._mapped)
        return sorted(self._shards) if self._shards else sorted(self._file(self._single or "").keys())

    @property
    def in_lavis_format(self) -> bool:
        """Whether it is a file in LAVIS' format."""
        return self._mapped is not None

    def shapes(self) -> dict[str, Tensor]:
        """Each tensor on the meta device, by name, in the order of the files.

        Raises:
            OSError: if a file is missing or damaged, or holds tensors of other dtypes.
        """
        if self._bitmask is not None:
            return self._bitmask.shapes()
        if self._mapped is not None:
            return {name: tensor.to("meta") for name, tensor in self._mapped.items()}
        return {name: tensor.on_meta() for name, tensor in self._stored.items()}

    def read(self, name: str) -> Tensor:
        """Read one tensor into memory of its own; as ``tensor``, which maps its file, in all else."""
        if self._bitmask is not None or self._mapped is not None:
            return self.tensor(name)
        return self._stored[name].read()

    @cached_property
    def _stored(self) -> dict[str, StoredTensor]:
        """The tensors of the safetensors files, in their order."""
        from ecoflap.storage.stored_tensor import stored_tensors  # it imports torch

        files = [self._single] if self._single else sorted(set(self._shards.values()))
        return {name: one for file in files for name, one in stored_tensors(self.folder / file).items()}

    def _file(self, shard: str) -> Any:
        """The open handle of one file."""
        from safetensors import safe_open

        if shard not in self._open:
            self._open[shard] = self._stack.enter_context(safe_open(str(self.folder / shard), framework="pt"))
        return self._open[shard]

    def __enter__(self) -> Checkpoint:
        """Keep the files open for the duration of a ``with`` block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close every file."""
        self._stack.close()


def weight_bytes(folder: Path) -> int:
    """Bytes of the files with weights in a checkpoint folder."""
    return sum(path.stat().st_size for pattern in WEIGHTS for path in Path(folder).glob(pattern))


def _open_bitmask(folder: Path) -> BitmaskCheckpoint | None:
    """The bitmask checkpoint of a folder; None if there is none.

    Raises:
        FileNotFoundError: if it is unfinished.
        ValueError: if its index is damaged, or of another version.
    """
    if not (folder / BITMASK_INDEX).is_file() and not any(folder.glob(BITMASK_SHARDS)):
        return None
    from ecoflap.storage.bitmask.reader import BitmaskCheckpoint  # it imports torch

    return BitmaskCheckpoint(folder)


def _map_lavis(file: Path) -> dict[str, Tensor] | None:
    """The tensors of a file in LAVIS' format, memory-mapped; None if there is no such file."""
    if not file.is_file():
        return None
    import torch

    state: dict[str, Tensor] = torch.load(file, map_location="cpu", mmap=True, weights_only=True)["model"]
    return state
