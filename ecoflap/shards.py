"""Reading a saved model one tensor at a time, from one safetensors file or from shards."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class Checkpoint:
    """An open checkpoint folder, as ``save_pretrained`` writes it. Files are opened when first needed; a tensor is read when asked for.

    Attributes:
        folder: The checkpoint's folder.
    """

    def __init__(self, folder: Path) -> None:
        """Find the file of every tensor.

        Raises:
            FileNotFoundError: The folder holds no safetensors model.
        """
        self.folder = Path(folder)
        self._open: dict[str, Any] = {}
        self._stack = ExitStack()
        index = self.folder / "model.safetensors.index.json"
        # transformers prefers the single file too, when both are there.
        self._single = "model.safetensors" if (self.folder / "model.safetensors").is_file() else None
        if self._single is None and not index.is_file():
            raise FileNotFoundError(f"no model.safetensors and no {index.name} in {self.folder}: the run's checkpoint was moved or never saved")
        self._shards: dict[str, str] = {} if self._single else json.loads(index.read_text(encoding="utf-8"))["weight_map"]

    def tensor(self, name: str) -> Tensor:
        """Read one tensor to the CPU.

        Raises:
            KeyError: The checkpoint has no such tensor.
            FileNotFoundError: A shard is missing.
            safetensors.SafetensorError: A file is damaged.
        """
        file = self._file(self._single or self._shards[name])
        if name not in file.keys():  # noqa: SIM118 - a safetensors handle is not a mapping
            raise KeyError(name)
        tensor: Tensor = file.get_tensor(name)
        return tensor

    def names(self) -> list[str]:
        """The names of all tensors."""
        return sorted(self._shards) if self._shards else sorted(self._file(self._single or "").keys())

    def _file(self, shard: str) -> Any:
        """The open handle of one file."""
        from safetensors import safe_open

        if shard not in self._open:
            self._open[shard] = self._stack.enter_context(safe_open(str(self.folder / shard), framework="pt"))
        return self._open[shard]

    def __enter__(self) -> Checkpoint:
        """Keep the files open for the length of a ``with`` block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close every file."""
        self._stack.close()
