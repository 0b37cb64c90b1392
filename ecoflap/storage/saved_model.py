"""Read a saved model one tensor at a time: one safetensors file, shards, or a file in LAVIS' format."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


LAVIS = "model.pth"


class Checkpoint:
    """An open checkpoint folder, as ``save_pretrained`` or LAVIS writes it.

    Files are opened when first needed; a tensor is read when asked for.

    Attributes:
        folder: The checkpoint's folder.
    """

    def __init__(self, folder: Path) -> None:
        """Find the file of every tensor.

        Raises:
            FileNotFoundError: if the folder holds no model.
        """
        self.folder = Path(folder)
        self._open: dict[str, Any] = {}
        self._stack = ExitStack()
        index = self.folder / "model.safetensors.index.json"
        # Of a single file and shards, transformers prefers the single file, too.
        self._single = "model.safetensors" if (self.folder / "model.safetensors").is_file() else None
        has_safetensors = self._single is not None or index.is_file()
        self._mapped = None if has_safetensors else _map_lavis(self.folder / LAVIS)
        if not has_safetensors and self._mapped is None:
            raise FileNotFoundError(
                f"no model.safetensors and no {index.name} in {self.folder}: the run's checkpoint was moved"
                " or never saved"
            )
        self._shards: dict[str, str] = {}
        if not self._single and not self._mapped:
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
        """
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
        if self._mapped is not None:
            return sorted(self._mapped)
        return sorted(self._shards) if self._shards else sorted(self._file(self._single or "").keys())

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


def _map_lavis(file: Path) -> dict[str, Tensor] | None:
    """The tensors of a file in LAVIS' format, memory-mapped; None if there is no such file."""
    if not file.is_file():
        return None
    import torch

    state: dict[str, Tensor] = torch.load(file, map_location="cpu", mmap=True, weights_only=True)["model"]
    return state
