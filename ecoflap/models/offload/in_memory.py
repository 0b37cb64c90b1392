"""Weights in the CPU's memory: blocks are loaded from tensors that stay there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from typing_extensions import override

from ecoflap.models.offload.offloaded import Offloaded


class InMemory:
    """A source that holds the tensors themselves."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def read(self, names: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
        """The tensors; those that have the dtype already are not copied."""
        return {name: self.tensors[name].to(dtype) for name, dtype in names.items()}

    def write(self, block: str, tensors: Mapping[str, Tensor]) -> None:
        """Replace some tensors."""
        self.tensors.update(tensors)


class OnCpu(Offloaded):
    """Blocks are stored in the CPU's memory."""

    @contextmanager
    @override
    def all_in_place(self) -> Iterator[None]:
        """Load all blocks on the CPU for this context."""
        self.store_changes()
        self._drop(self._coming)
        self._coming = None
        self._loaded.clear()
        for name, mine in self.parameters.items():
            for full, tensor in self.source.read(self.dtypes[name]).items():
                mine[full].data = tensor
        try:
            yield
        finally:
            for name in self.parameters:
                self._release(name)
