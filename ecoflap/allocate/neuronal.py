"""NeuronAL (Cunegatti et al., TMLR 2025), block step: the linear ramp that changes activations least.

Block b of the B blocks of a tower keeps the share 1 - s + 2 lambda (u_b - mean of u), with
u_b = (B - b) / (B - 1). For each lambda the pruner of the fine stage prunes the model, block by block as
published. The lambda wins whose pruned blocks leave the relative sizes of their layers' inputs most as they
were.

Three things differ from the authors' code. A tower of unequal blocks meets the target in weights, and a ramp
that leaves 0..1 is clipped there and shifted until it does, instead of being clipped to 0.01..0.99. Each
tower has a lambda of its own. The row step, which gives the rows of a layer sparsities of their own, is left
out; in-context allocation has rows of another kind. Their code skips that step with SparseGPT, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from typing_extensions import override

from ecoflap.allocate.allocation import Allocation, keep_total
from ecoflap.allocate.groups import blocks_of, parts, size_of, split_all
from ecoflap.allocate.misalignment import measure_misalignment
from ecoflap.allocate.options import NeuronalOptions
from ecoflap.allocate.protocol import Context, Requires
from ecoflap.allocate.uneven import Uneven
from ecoflap.blocks.footprint import Footprint
from ecoflap.errors import NumericalError, UserError, require_positive
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Tower
from ecoflap.ops import ramp
from ecoflap.score.scores import BLOCK, Scores

PUBLISHED = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.12, 0.15, 0.2)
BELOW_80_PERCENT = 0.25


@dataclass(frozen=True)
class Neuronal(NeuronalOptions, Uneven):
    """Sparsities on a straight line over the blocks, with the slope that changes activations least."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("allocation", self, "samples")
        given = self.spreads
        if given is not None and not (given and all(_is_spread(one) for one in given)):
            raise UserError(
                f"allocation.spreads={given}: give at least one number, each 0 (uniform) or more (published:"
                " 0.01 to 0.25)"
            )

    @property
    @override
    def requires(self) -> Requires:
        """No scores: it runs the calibration set through the pruned model itself."""
        return Requires("none", weights=True, calibration=True)

    @property
    @override
    def footprint(self) -> Footprint:
        """The fine stage's, beside the dense weights."""
        return Footprint("blocks", layers=4, copies=1)

    @override
    def passes(self, samples: int, sparsity: float) -> float:
        """The most time goes into passes that read ``samples`` of the calibration set."""
        return min(samples, self.samples)

    @override
    def __call__(
        self,
        model: PrunableModel,
        scores: Scores | None,
        sparsity: float,
        context: Context | None = None,
    ) -> Allocation:
        self.check(sparsity)
        assert context is not None
        key = {"result": "misalignment", "sparsity": sparsity, "towers": [one.name for one in model.towers]}
        measured = {
            spread: context.recall(
                {**key, "spread": spread},
                partial(self._measure, model, context, sparsity, spread),
            )
            for spread in dict.fromkeys(self._candidates(sparsity))
        }
        keep: dict[str, int] = {}
        chosen: dict[str, float] = {}
        for towers in parts(model, self.scope):
            names = [tower.name for tower in towers]
            best = _best(measured, names)
            chosen |= dict.fromkeys(names, best)
            keep |= _ramp(towers, sparsity, best)
        details = {"spread": chosen, "misalignment": {f"{one:g}": value for one, value in measured.items()}}
        sizes = model.sizes
        return Allocation({name: keep[name] for name in sizes}, sizes, sparsity, BLOCK, details=details)

    def _candidates(self, sparsity: float) -> Sequence[float]:
        if self.spreads is not None:
            return self.spreads
        return (*PUBLISHED, BELOW_80_PERCENT) if sparsity < 0.8 else PUBLISHED

    def _measure(
        self, model: PrunableModel, context: Context, sparsity: float, spread: float
    ) -> dict[str, float | None]:
        """The misalignment of each tower when all towers have the same lambda; None if it is not finite."""
        keep: dict[str, int] = {}
        for towers in parts(model, self.scope):
            keep |= _ramp(towers, sparsity, spread)
        batches = context.samples.take(self.samples).batches(context.batch_size)
        trial = context.pruner.fitted(Allocation(keep, model.sizes, sparsity, BLOCK))
        found = measure_misalignment(model, context.pruner, batches, trial, context.tokens)
        return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _is_spread(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0


def _ramp(towers: Sequence[Tower], sparsity: float, spread: float) -> dict[str, int]:
    """The counts of the layers of some towers: the first block keeps the largest share."""
    groups = [block.layers for block in blocks_of(towers)]
    sizes = [size_of(layers) for layers in groups]
    falling = range(len(groups), 0, -1)
    return split_all(groups, ramp(sizes, falling, keep_total(sizes, sparsity), spread))


def _best(measured: Mapping[float, Mapping[str, float | None]], towers: Sequence[str]) -> float:
    """The lambda of the smallest misalignment over some towers; of equal ones, the first.

    Raises:
        NumericalError: if it is finite at none.
    """
    totals: dict[float, float] = {}
    for spread, found in measured.items():
        values = [value for name in towers if (value := found[name]) is not None]
        if len(values) == len(towers):
            totals[spread] = sum(values)
    if not totals:
        raise NumericalError(
            f"the activations of tower {' and '.join(towers)} are finite at no trial; use model.dtype=float32"
            " or bfloat16"
        )
    return min(totals, key=totals.__getitem__)
