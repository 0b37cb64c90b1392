"""Allocators that give layers sparsities of their own without scores."""

from __future__ import annotations

from typing_extensions import override

from ecoflap.allocate.protocol import Allocator, Requires
from ecoflap.prune.protocol import LayerPruner


class Uneven(Allocator):
    """An allocator that takes no scores, and needs a pruner whose mask lets sparsities differ."""

    @property
    @override
    def requires(self) -> Requires:
        """No scores, and nothing but the model's shapes."""
        return Requires("none")

    @override
    def check_pruner(self, pruner: LayerPruner) -> None:
        """Refuse N:M masks, which fix the sparsity of every layer."""
        pruner.rule.require_uneven()
