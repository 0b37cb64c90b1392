"""The protocols of pruners: of single layers, to the counts of an allocation, or of a whole model.

A new pruner derives from ``LayerPruner`` or ``ModelPruner``, whose defaults fit most.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple, Protocol

from torch import Tensor

from ecoflap.allocate.allocation import Allocation
from ecoflap.blocks.footprint import Footprint
from ecoflap.blocks.statistics import Statistic
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.errors import UserError
from ecoflap.models.core.layers import Layer
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.ops import Keep, Part
from ecoflap.prune.masks import MaskRule
from ecoflap.prune.report import PruneReport


class Pruned(NamedTuple):
    """A pruned layer.

    Attributes:
        weight: [rows, cols], exactly zero where pruned.
        mask: [rows, cols], True where kept.
        note: a warning to log, or None.
    """

    weight: Tensor
    mask: Tensor
    note: str | None = None


class LayerPruner(Protocol):
    """Removes weights from one layer at a time.

    Attributes:
        name: shown in logs and written to result files.
        allocates: False, as an allocation decides how many weights each layer keeps.
    """

    name: str
    allocates: ClassVar[Literal[False]] = False

    @property
    def statistic(self) -> type[Statistic] | None:
        """The statistic of a layer's inputs that it reads; by default None, for a pruner without data."""
        return None

    @property
    def rule(self) -> MaskRule:
        """Which weights of a layer compete with each other."""
        return MaskRule("matrix")

    @property
    def corrects(self) -> bool:
        """Whether it may change the weights that it keeps; by default, it may."""
        return True

    @abstractmethod
    def __call__(self, weight: Tensor, statistic: Statistic | None, keep: Keep) -> Pruned:
        """Prune a weight [rows, cols] to ``keep`` weights, or each of its rows to its own count.

        Counts of rows [rows] are given only to a pruner with ``pruner.mask=row`` that ``weighs_rows``.
        """

    @property
    def solves_rows(self) -> bool:
        """Whether it can prune some rows of a layer, see ``together``; by default, it can't."""
        return False

    def together(
        self,
        weights: Sequence[Tensor],
        statistic: Statistic | None,
        keeps: Sequence[Keep],
        parts: Sequence[Part] | None = None,
    ) -> list[Pruned]:
        """Prune layers that read the same input; by default, one by one.

        Args:
            weights: of the layers, [rows, cols] each.
            statistic: of their input.
            keeps: the number of weights that each layer, or each of its rows, keeps.
            parts: given only to a pruner with ``solves_rows``: the weights are these rows of the layers, and
                other processes prune the others at the same time.
        """
        return [self(weight, statistic, keep) for weight, keep in zip(weights, keeps, strict=True)]

    @property
    def weighs_rows(self) -> bool:
        """Whether the rows of a layer can have weights; by default, they can't.

        With the mask ``row``, it then takes a count for each row. With ``matrix``, it prunes rows that are
        scaled by factors like the unscaled rows, but rows with larger factors keep more.
        """
        return False

    def check_rows(self, allocation: Allocation) -> None:
        """Refuse counts or weights of rows that the mask can't have, before any work is done.

        Raises:
            UserError: if rows have counts and the mask is not ``row``, or weights and it is not ``matrix`` or
                the pruner can't weigh rows.
        """
        if allocation.rows:
            self.rule.require("row")
        if allocation.row_weights:
            self.rule.require("matrix")
        if (allocation.rows or allocation.row_weights) and not self.weighs_rows:
            raise UserError(
                f"the allocation weighs rows, and pruner={self.name} pruner.mask={self.rule.name} can't;"
                " allocate for this pruner, or with allocation.rows=even"
            )

    @property
    def for_trials(self) -> LayerPruner:
        """The pruner of trials at which an allocation is searched; by default, this one.

        It reads the same statistic and has the same mask and the same rules for rows.
        """
        return self

    @property
    def requires_calibration(self) -> bool:
        """Whether it uses calibration data."""
        return self.statistic is not None

    @property
    def footprint(self) -> Footprint:
        """What it keeps in memory: a layer's dense weight, its pruned weight, the metric and the mask."""
        return Footprint("blocks", statistic=self.statistic, layers=4)

    def check(self, sparsity: float, uneven: bool) -> None:
        """Refuse a target that the mask rules out, before any work is done.

        Args:
            sparsity: the requested sparsity.
            uneven: whether layers get sparsities of their own.

        Raises:
            UserError: if the mask fixes another sparsity, or one for all layers.
        """
        self.rule.check(sparsity, uneven)

    def fitted(self, allocation: Allocation) -> Allocation:
        """The allocation with counts that the mask can have, as near as possible.

        Raises:
            UserError: if there are none, or ``check_rows`` refuses its rows.
        """
        self.check_rows(allocation)
        return self.rule.fitted(allocation)

    def check_layers(self, layers: Sequence[Layer]) -> None:
        """Refuse layers that can't have the mask.

        Raises:
            UserError: if the mask does not divide a layer's columns.
        """
        self.rule.check_layers(layers)


class ModelPruner(Protocol):
    """Prunes all layers of a model at once, in place.

    Attributes:
        name: shown in logs and written to result files.
        allocates: True, as it decides itself how many weights each layer keeps.
        trains: whether it uses the training split of the calibration data instead of the calibration set.
        requires_calibration: whether it uses data.
        removes_units: whether matrices become smaller (``total=UNITS``), so that a model can't be pruned to
            the same sparsity twice; ``ecoflap plan`` then measures it with sparsity 0.
    """

    name: str
    allocates: ClassVar[Literal[True]] = True
    trains: ClassVar[bool] = False
    removes_units: ClassVar[bool] = False
    requires_calibration: ClassVar[bool] = True

    @property
    def footprint(self) -> Footprint:
        """What it keeps in memory: by default, a layer's metric, the bits that rank it, and the mask."""
        return Footprint("blocks", layers=4)

    def check_model(self, model: PrunableModel, sparsity: float) -> None:
        """Refuse a model that it can't prune to a sparsity, by its shapes; by default, none.

        Raises:
            UserError: if it can't.
        """
        return  # a body of its own: type checkers take a method of a protocol without one for abstract

    @abstractmethod
    def prune(
        self, model: PrunableModel, calibration: CalibrationSet | None, sparsity: float, seed: int = 0
    ) -> tuple[Allocation, PruneReport]:
        """Remove the share ``sparsity`` of the weights, in place.

        Args:
            model: dense.
            calibration: the samples, or the training split if it trains; None for a pruner that uses no data.
            sparsity: the target.
            seed: the run's seed, for a pruner that draws random numbers.

        Returns:
            How many weights each layer keeps, in all ``keep_total`` of the sizes or with ``total=UNITS``; and
            a report with a bool mask in the shape of each layer's weight, True where it is kept. What the
            masks remove is zero. ``prune_whole`` checks this.

        Raises:
            UserError: if it can't prune the model.
            NumericalError: if a loss, a gradient, a score or a weight is NaN or infinite.
        """


Pruner = LayerPruner | ModelPruner
