"""Where hidden states wait for the next block: on the device, on the CPU or on the disk."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ecoflap.models.offload.placement import Placement

_numbers = count()


class Waiting:
    """One tensor that waits to be read."""

    def __init__(self, tensor: Tensor, placement: Placement) -> None:
        """Put it away. Reading gives it back on its device, bit for bit."""
        self.device = tensor.device
        self.file: Path | None = None
        self._tensor: Tensor | None = tensor
        if placement.kind == "cpu":
            self._tensor = tensor.cpu()
        elif placement.kind == "disk":
            assert placement.folder is not None
            placement.folder.mkdir(parents=True, exist_ok=True)
            self.file, self._tensor = placement.folder / f"hidden-{next(_numbers)}.safetensors", None
            save_file({"hidden": tensor.detach().cpu().contiguous()}, self.file)

    def read(self) -> Tensor:
        """The tensor."""
        if self._tensor is not None:
            return self._tensor.to(self.device)
        with safe_open(str(self.file), framework="pt") as file:
            return torch.clone(file.get_tensor("hidden")).to(self.device)

    def __del__(self) -> None:
        """Remove the file."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)
