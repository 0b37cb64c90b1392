"""NeuronAL (Cunegatti et al., TMLR 2025), block step: a linear ramp that keeps activations most alike.

Block b of the B blocks of a tower keeps the share 1 - s + 2 lambda (u_b - mean of u), with
u_b = (B - b) / (B - 1). For each lambda the pruner of the fine stage prunes the model, block by block as
published. The lambda wins whose pruned blocks leave the relative sizes of their layers' inputs most as they
were.

Three things differ from the authors' code. A tower of unequal blocks meets the target in weights, and a ramp
that leaves 0..1 is clipped there and shifted until it does, instead of being clipped to 0.01..0.99. Each
tower has a lambda of its own. The row step, which gives the rows of a layer sparsities of their own, is left
out: an allocation holds one count per layer. Their code skips that step with SparseGPT, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ecoflap.allocate.allocation import Allocation, keep_total
from ecoflap.allocate.misalignment import measure_misalignment
from ecoflap.allocate.options import NeuronalOptions
from ecoflap.allocate.protocol import Allocator, Context, Requires
from ecoflap.blocks.footprint import Footprint
from ecoflap.errors import UserError, require_choices, require_positive
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Tower
from ecoflap.ops import proportional, ramp
from ecoflap.score.scores import Scores

PUBLISHED = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.12, 0.15, 0.2)
BELOW_80_PERCENT = 0.25


@dataclass(frozen=True)
class Neuronal(NeuronalOptions, Allocator):
    """A linear ramp over the blocks, as steep as keeps activations most alike."""

    def __post_init__(self) -> None:
        require_choices("allocation", self)
        require_positive("allocation", self, "samples")
        if self.spreads is not None and not (
            self.spreads and all(math.isfinite(spread) and spread >= 0 for spread in self.spreads)
        ):
            raise UserError(
                f"allocation.spreads={self.spreads}: give at least one, each 0 or more (published: 0.01 to"
                " 0.25)"
            )

    @property
    def requires(self) -> Requires:
        """No scores: it runs the calibration set through the pruned model itself."""
        return Requires("none", weights=True, calibration=True)

    @property
    def footprint(self) -> Footprint:
        """The fine stage's, beside the dense weights."""
        return Footprint("blocks", layers=4, copies=1)

    def __call__(
        self,
        model: PrunableModel,
        scores: Scores | None,
        sparsity: float,
        context: Context | None = None,
    ) -> Allocation:
        """Decide how many weights each layer keeps.

        Raises:
            UserError: if the target is outside [0, 1), or the calibration set never reaches a layer.
            NumericalError: if pruning makes weights that are not finite.
        """
        self.check(sparsity)
        assert context is not None
        towers = [tower for tower in model.towers if tower.layers]
        measured = {
            spread: context.recall(
                {"misalignment": spread, "sparsity": sparsity},
                partial(self._measure, model, context, towers, sparsity, spread),
            )
            for spread in self._candidates(sparsity)
        }
        keep: dict[str, int] = {}
        chosen: dict[str, float] = {}
        for part in self._parts(towers):
            names = [tower.name for tower in part]
            best = min(measured, key=partial(_total, measured, names))
            chosen |= dict.fromkeys(names, best)
            keep |= _ramp(part, sparsity, best)
        details = {
            "spread": chosen,
            "misalignment": {str(spread): value for spread, value in measured.items()},
        }
        sizes = {layer.name: layer.size for layer in model.layers}
        return Allocation({name: keep[name] for name in sizes}, sizes, sparsity, "block", details=details)

    def _candidates(self, sparsity: float) -> Sequence[float]:
        if self.spreads is not None:
            return self.spreads
        return (*PUBLISHED, BELOW_80_PERCENT) if sparsity < 0.8 else PUBLISHED

    def _parts(self, towers: Sequence[Tower]) -> list[Sequence[Tower]]:
        """The towers over which one line runs."""
        return [towers] if self.scope == "model" else [[tower] for tower in towers]

    def _measure(
        self, model: PrunableModel, context: Context, towers: Sequence[Tower], sparsity: float, spread: float
    ) -> dict[str, float]:
        """The misalignment of each tower when all towers have the same lambda."""
        keep: dict[str, int] = {}
        for part in self._parts(towers):
            keep |= _ramp(part, sparsity, spread)
        sizes = {layer.name: layer.size for layer in model.layers}
        batches = context.samples.take(self.samples).batches(context.batch_size)
        return measure_misalignment(
            model, context.pruner, batches, Allocation(keep, sizes, sparsity, "block")
        )


def _ramp(towers: Sequence[Tower], sparsity: float, spread: float) -> dict[str, int]:
    """The counts of the layers of some towers: the first block keeps the largest share."""
    blocks = [block.layers for tower in towers for block in tower.blocks if block.layers]
    sizes = [sum(layer.size for layer in layers) for layers in blocks]
    falling = list(range(len(blocks), 0, -1))
    total = keep_total([layer.size for layers in blocks for layer in layers], sparsity)
    keep: dict[str, int] = {}
    for layers, budget in zip(blocks, ramp(sizes, falling, total, spread), strict=True):
        counts = proportional([layer.size for layer in layers], budget)
        keep |= {layer.name: count for layer, count in zip(layers, counts, strict=True)}
    return keep


def _total(measured: Mapping[float, Mapping[str, float]], towers: Sequence[str], spread: float) -> float:
    """The misalignment over some towers; NaN never wins."""
    total = sum(measured[spread][name] for name in towers)
    return math.inf if math.isnan(total) else total
