"""Allocators with one free parameter: a number, or ``auto``, which tries several on the calibration set."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
from typing_extensions import override

from ecoflap.allocate.allocation import Allocation, keep_total
from ecoflap.allocate.choose import CountsAt, Losses, choose
from ecoflap.allocate.groups import layers_of, parts, split
from ecoflap.allocate.options import AUTO, Parameter
from ecoflap.allocate.protocol import Context, Requires, compute_unstored
from ecoflap.allocate.uneven import Uneven
from ecoflap.blocks.footprint import Footprint
from ecoflap.blocks.input_statistics import InputStatistics
from ecoflap.blocks.layer_calls import require_calls
from ecoflap.blocks.statistics import Statistic
from ecoflap.blocks.walk import walk
from ecoflap.data.batch import Batch
from ecoflap.errors import NumericalError, UserError, require_positive
from ecoflap.models.core.forward_modes import quiet_forward
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.models.core.towers import Block, Tower
from ecoflap.prune.protocol import LayerPruner
from ecoflap.score.scores import BLOCK, Scores

Values = Mapping[str, float]
"""{block or layer: what was measured of it}."""


class Parametric(Uneven):
    """An allocator that measures blocks of the dense model, and turns the values into counts.

    A free parameter says how much the counts differ; 0 stands for a uniform sparsity.

    Attributes:
        scope: one budget for the whole model (model), or each tower reaches the target by itself (tower).
        samples: how many samples of the calibration set are compared at each candidate of ``auto``.
        parameter: the name of the option that holds the free parameter.
        statistic: of the layers' inputs, which ``measure_block`` reads; None for none.
        reads_weights: whether it measures anything.
    """

    scope: str
    samples: int
    parameter: ClassVar[str]
    statistic: ClassVar[type[Statistic] | None] = None
    reads_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("allocation", self, "samples")
        value, key = self.given, f"allocation.{self.parameter}"
        if value is None or value == AUTO:
            return
        if not isinstance(value, int | float):
            raise UserError(f"{key}={value} is neither a number nor {AUTO}")
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"{key}={value} must be a number of at least 0 (uniform), or {AUTO}")

    @property
    def given(self) -> Parameter | None:
        """The free parameter as it is given; None for the published value."""
        value: Parameter | None = getattr(self, self.parameter)
        return value

    @property
    def sparsity_per(self) -> str:
        """What has a sparsity of its own: a block, or a layer."""
        return BLOCK

    @property
    @override
    def requires(self) -> Requires:
        """No scores; samples where it looks at activations or tries candidates."""
        tries = self.given == AUTO
        return Requires(
            "none", weights=self.reads_weights or tries, calibration=self.statistic is not None or tries
        )

    @property
    @override
    def footprint(self) -> Footprint | None:
        """Statistics of one block; for ``auto``, a forward pass beside the dense weights."""
        if self.given == AUTO:
            return Footprint("forward", trials=1)
        return None if self.statistic is None else Footprint("blocks", statistic=self.statistic, layers=2)

    @override
    def __call__(
        self,
        model: PrunableModel,
        scores: Scores | None,
        sparsity: float,
        context: Context | None = None,
    ) -> Allocation:
        self.check(sparsity)
        values = self._values(model, context)
        counts = partial(self._counts, model, values, sparsity)
        parameter, losses = self._parameter(model, sparsity, context, counts)
        keep, sizes = counts(parameter), model.sizes
        details = {"values": values, self.parameter: parameter}
        if losses:
            details["losses"] = {f"{candidate:g}": loss for candidate, loss in losses.items()}
        return Allocation(
            {name: keep[name] for name in sizes},
            sizes,
            sparsity,
            self.sparsity_per,
            details=details,
            in_trials=self.in_trials,
        )

    def published(self, sparsity: float, pruner: LayerPruner | None) -> float:
        """The published value of the free parameter; only of allocators whose option may be null."""
        raise NotImplementedError

    @abstractmethod
    def candidates(self, model: PrunableModel, sparsity: float) -> Sequence[float]:
        """The values of the free parameter that ``auto`` tries; the first of equal ones wins."""

    def measure_block(self, block: Block, statistics: InputStatistics | None) -> dict[str, float]:
        """{block or layer: its value} of one block of the dense model."""
        return {}

    @abstractmethod
    def counts(self, towers: Sequence[Tower], values: Values, total: int, parameter: float) -> dict[str, int]:
        """Share a budget of ``total`` kept weights among the layers of some towers."""

    def _values(self, model: PrunableModel, context: Context | None) -> dict[str, float]:
        """What was measured; runs with other targets or pruners recall it."""
        if not self.reads_weights:
            return {}
        recall = compute_unstored if context is None else context.recall
        measure = partial(self._measured, model, context)
        found: dict[str, float] = recall({"result": "values"}, measure, dense=True)
        return found

    @torch.no_grad()
    def _measured(self, model: PrunableModel, context: Context | None) -> dict[str, float]:
        """The values of all blocks, or of their layers, in pruning order.

        Raises:
            UserError: if no sample reaches a layer.
            NumericalError: if a value is not finite.
        """
        batches: Sequence[Batch] = []
        if self.statistic is not None:
            assert context is not None
            batches = context.samples.batches(context.batch_size)
            require_calls(model, batches, every_layer=True)
        found: dict[str, float] = {}
        tokens = "all" if context is None else context.tokens
        with quiet_forward(model.module):
            for visit in walk(model, model.towers, batches, "allocate", tokens=tokens):
                statistics = visit.measure(self.statistic, leave=bool(batches))
                if visit.block.layers:
                    with model.placement.using(visit.block):
                        found |= self.measure_block(visit.block, statistics)
        for name, value in found.items():
            if not math.isfinite(value):
                raise NumericalError(
                    f"{name}: what the allocation measures there is {value}; check the weights, and the"
                    " activations on the calibration data"
                )
        return found

    def _counts(
        self, model: PrunableModel, values: Values, sparsity: float, parameter: float
    ) -> dict[str, int]:
        """{layer: how many weights it keeps} at a value of the free parameter.

        At 0 these are the counts of the uniform allocation, to the weight, so that the two compare as equal.
        """
        if not parameter:
            return split(model.layers, keep_total([layer.size for layer in model.layers], sparsity))
        keep: dict[str, int] = {}
        for towers in parts(model, self.scope):
            total = keep_total([layer.size for layer in layers_of(towers)], sparsity)
            keep |= self.counts(towers, values, total, parameter)
        return keep

    def _parameter(
        self, model: PrunableModel, sparsity: float, context: Context | None, counts: CountsAt
    ) -> tuple[float, Losses]:
        """The free parameter, and the losses of the candidates if any were tried."""
        given = self.given
        if given == AUTO:
            assert context is not None
            name = {"result": "loss", "parameter": self.parameter, "sparsity": sparsity}
            return choose(model, context, self.candidates(model, sparsity), counts, name, self.samples)
        if given is None:
            return self.published(sparsity, None if context is None else context.pruner), {}
        return float(given), {}
