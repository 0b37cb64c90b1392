"""Hidden states between two blocks: on the device while they fit, or offloaded to the CPU or the disk."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ecoflap.models.offload.placement import Placement

_numbers = count()


class OffloadedTensor:
    """One tensor in the storage that a placement names.

    Attributes:
        device: the device that ``read`` returns the tensor on.
        shape: of the tensor.
        file: the file that holds it; None where memory does.
    """

    def __init__(self, tensor: Tensor, placement: Placement) -> None:
        """Store a tensor; ``read`` returns it bit for bit.

        Args:
            tensor: any shape and dtype.
            placement: where it is stored; kind ``none`` leaves it on its device, and so do others while
                there is room.
        """
        self.device, self.shape, self._placement = tensor.device, tensor.shape, placement
        self.file: Path | None = None
        self._tensor: Tensor | None = tensor
        self._taken = 0  # of the placement's room
        if placement.kind == "none":
            return
        if tensor.nbytes <= placement.room:
            self._taken = tensor.nbytes
            placement.room -= self._taken
        elif placement.kind == "cpu":
            self._tensor = tensor.cpu()
        else:
            assert placement.folder is not None
            placement.folder.mkdir(parents=True, exist_ok=True)
            self.file, self._tensor = placement.folder / f"hidden-{next(_numbers)}.safetensors", None
            save_file({"hidden": tensor.detach().cpu().contiguous()}, self.file)

    def read(self) -> Tensor:
        """The tensor, on its device."""
        if self._tensor is not None:
            return self._tensor.to(self.device)
        with safe_open(str(self.file), framework="pt") as file:
            return torch.clone(file.get_tensor("hidden")).to(self.device)

    def __del__(self) -> None:
        """Delete the file, or make room."""
        self._placement.room += self._taken
        if self.file is not None:
            self.file.unlink(missing_ok=True)
