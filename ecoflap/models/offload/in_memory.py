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

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """A tensor; one that has the dtype already is not copied."""
        return self.tensors[name].to(dtype)

    def write(self, block: str, tensors: Mapping[str, Tensor]) -> None:
        """Replace some tensors."""
        self.tensors.update(tensors)


class OnCpu(Offloaded):
    """Blocks are stored in the CPU's memory."""

    kind = "cpu"

    @contextmanager
    @override
    def all_in_place(self) -> Iterator[None]:
        """Load all blocks on the CPU for this context."""
        self.store_changes()
        self._drop(self._coming)
        self._coming = None
        self._loaded.clear()
        for name, mine in self.parameters.items():
            for full, parameter in mine.items():
                parameter.data = self.source.read(full, self.dtypes[name][full])
        try:
            yield
        finally:
            for name in self.parameters:
                self._release(name)
