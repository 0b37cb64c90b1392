"""Allocators that give layers sparsities of their own without scores."""

from __future__ import annotations

from typing_extensions import override

from ecoflap.allocate.protocol import Allocator, Requires
from ecoflap.errors import UserError
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
        if pruner.rule.n_of_m is not None:
            raise UserError(
                f"allocation={self.name}: pruner.mask={pruner.rule.name} fixes every layer's sparsity, so"
                " there is nothing to allocate; use allocation=auto score=auto, which are uniform then,"
                f" or pruner.mask=n:{pruner.rule.n_of_m[1]}"
            )
