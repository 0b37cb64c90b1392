"""EvoPress (Sieberling et al., ICML 2025): an evolutionary search over the sparsities of layers.

A candidate is measured by pruning the model to it, with the pruner of the fine stage and statistics of
dense inputs, as the authors' database of SparseGPT's weights is made. The defaults are smaller than the
published numbers, which the options name: those ask for the loss of 180 million tokens.

What differs from the authors' code: only the weights in use are stored, as far as a cache holds them, and
others are pruned again; stages of selection count samples, not tokens; the divergence is over the targets of
the loss (for a language model, all tokens), and the dense predictions are computed again in each stage; each
tower reaches the target by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from typing_extensions import override

from ecoflap.allocate.allocation import Allocation
from ecoflap.allocate.distance import KL, Distance
from ecoflap.allocate.evolution import Draw, Evolution, Levels, Stage
from ecoflap.allocate.groups import layers_of, parts
from ecoflap.allocate.layer_trials import LayerTrials
from ecoflap.allocate.levels import Ladder, make_ladder
from ecoflap.allocate.options import EvoPressOptions
from ecoflap.allocate.protocol import Context, Requires
from ecoflap.allocate.trial import LazyTrial
from ecoflap.allocate.uneven import Uneven
from ecoflap.blocks.footprint import Footprint
from ecoflap.console.progress import track
from ecoflap.errors import NumericalError, UserError, require_positive
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.ops import seed_for
from ecoflap.score.scores import LAYER, Scores

STORED_EVERY = 10
"""Generations after which the search is stored, for a run that is stopped."""


@dataclass(frozen=True)
class EvoPress(EvoPressOptions, Uneven):
    """An evolutionary search over the sparsities of layers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("allocation", self, "generations", "offspring", "levels", "step")
        stages, falling = len(self.survivors), sorted(self.survivors, reverse=True)
        if not stages or self.survivors != falling or self.survivors[-1] != 1:
            raise UserError(
                f"allocation.survivors={self.survivors}: give one number per stage of selection, falling to 1"
                " (published: 8, 2, 1)"
            )
        if len(self.samples) != stages or min(self.samples) < 1:
            raise UserError(
                f"allocation.samples={self.samples}: give a number of samples, at least 1, for each of the"
                f" {stages} stages of allocation.survivors"
            )

    @property
    @override
    def requires(self) -> Requires:
        """No scores: it measures the pruned model itself."""
        return Requires("none", weights=True, calibration=True)

    @property
    @override
    def footprint(self) -> Footprint:
        """Forward passes beside the dense weights, those of a layer at its levels, and dense predictions."""
        tried = min(2 * self.levels + 1, 1 + self.generations * self.offspring)
        compared = max(self.samples) if self.fitness == KL else 0
        return Footprint("forward", trials=1, kept=tried, predictions=compared)

    @override
    def __call__(
        self,
        model: PrunableModel,
        scores: Scores | None,
        sparsity: float,
        context: Context | None = None,
    ) -> Allocation:
        """Decide by a search; refuse samples without predictions to compare."""
        self.check(sparsity)
        assert context is not None
        sharing = [layers_of(towers) for towers in parts(model, self.scope)]
        ladder = make_ladder(sharing, sparsity, self.levels, self.step)
        with LazyTrial(model, context) as trial:
            levels, trace = _Search(self, model, context, ladder, trial).run(sparsity)
        details = {"levels": dict(zip(ladder.layers, levels, strict=True)), "fitness": trace}
        return Allocation(
            ladder.counts(levels), model.sizes, sparsity, LAYER, details=details, in_trials=True
        )


class _Search:
    """The search for one model; it prunes nothing as long as every generation was recalled."""

    def __init__(
        self, options: EvoPress, model: PrunableModel, context: Context, ladder: Ladder, trial: LazyTrial
    ) -> None:
        self._options, self._model, self._context = options, model, context
        self._ladder, self._trial = ladder, trial
        self._evolution = Evolution(
            ladder.lowest,
            ladder.highest,
            ladder.parts,
            options.offspring,
            [Stage(*stage) for stage in zip(options.survivors, options.samples, strict=True)],
            len(context.samples),
        )

    @cached_property
    def _distance(self) -> Distance:
        trials = LayerTrials(self._trial.pruner)
        size, measure = self._context.batch_size, self._options.fitness
        return Distance(self._model, trials, self._context.samples, size, measure)

    def run(self, sparsity: float) -> tuple[Levels, list[float | None]]:
        """The levels of the last parent, and the fitness of each generation's, None where none is finite.

        Raises:
            NumericalError: if none ever is.
        """
        count = self._options.generations
        levels: Levels = (0,) * len(self._ladder.layers)
        trace: list[float | None] = []
        for first in track(range(0, count, STORED_EVERY), "allocate", total=-(-count // STORED_EVERY)):
            some = range(first, min(first + STORED_EVERY, count))
            name = {"result": "levels", "generations": [some.start, some.stop], "sparsity": sparsity}
            found = self._context.recall(name, partial(self._generations, levels, some))
            levels = tuple(found["levels"])
            trace += found["fitness"]
        if all(fitness is None for fitness in trace):
            raise NumericalError(
                f"no model pruned to sparsity={sparsity} has a finite loss; use model.dtype=float32 or"
                " bfloat16, or a lower sparsity"
            )
        return levels, trace

    def _generations(self, levels: Levels, numbers: Sequence[int]) -> dict[str, Any]:
        """Some generations in a row, from the levels of the first parent."""
        trace: list[float | None] = []
        for number in numbers:
            draw = draws(self._context.seed, number)
            levels, fitness = self._evolution.generation(levels, draw, self._fitness)
            trace.append(fitness if math.isfinite(fitness) else None)
        return {"levels": levels, "fitness": trace}

    def _fitness(self, candidates: Sequence[Levels], chosen: Sequence[int]) -> Sequence[float]:
        return self._distance([self._ladder.counts(levels) for levels in candidates], chosen)


def draws(seed: int, generation: int) -> Draw:
    """The random numbers of one generation, which depend on no other one."""
    generator = torch.Generator().manual_seed(seed_for(seed, "evopress", generation))
    return lambda count: int(torch.randint(count, (), generator=generator))
