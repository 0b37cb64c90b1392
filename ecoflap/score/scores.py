"""The scores of the coarse stage: how important each layer, or group of layers, is."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ecoflap.distributed.collectives import gathered
from ecoflap.errors import NumericalError, UserError, nearest
from ecoflap.models.core.towers import Tower
from ecoflap.storage.files import as_json

log = logging.getLogger(__name__)


GRANULARITIES = LAYER, BLOCK, TOWER = "layer", "block", "tower"  # from fine to coarse
IMPORTANCE = "importance"


@dataclass(frozen=True)
class Scores:
    """One score per layer, or per group of layers.

    Attributes:
        method: the name of the scorer.
        importance: {layer, block or tower: mean over samples}.
        standard_error: {layer, block or tower: standard error of that mean}.
        details: the parameters of the measurement and its cost.
        granularity: what has one score: layer, block or tower.
        kind: the meaning of the scores. ``importance``: not negative, additive over layers, and the larger it
            is, the more weights are kept. Scorers and allocators may agree on other kinds.
    """

    method: str
    importance: dict[str, float]
    standard_error: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)
    granularity: str = LAYER
    kind: str = IMPORTANCE

    @property
    def name(self) -> str:
        """The name of the scorer, as the scorer itself has it."""
        return self.method

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return as_json(asdict(self))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Scores:
        """The inverse of ``to_json``; without kind and granularity, it is the importance of layers."""
        return cls(**value)

    def by_layer(self, towers: Sequence[Tower]) -> dict[str, str]:
        """{layer: the layer, block or tower whose score applies to it}.

        Raises:
            UserError: if a layer has no score.
        """
        found: dict[str, str] = {}
        for tower in towers:
            for block in tower.blocks:
                for layer in block.layers:
                    group = {LAYER: layer.name, BLOCK: block.name, TOWER: tower.name}[self.granularity]
                    if group not in self.importance:
                        raise UserError(
                            f"score={self.method} has no number for {self.granularity} {group} "
                            f"(nearest: {nearest(group, self.importance)}); score the layers that are pruned"
                        )
                    found[layer.name] = group
        return found


@dataclass
class Average:
    """A weighted mean and its standard error, of numbers that are added one by one.

    Attributes:
        values: the numbers.
        weights: their weights.
        batches: the batches that they were measured on.
    """

    values: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def add(self, value: float, weight: float, where: str, batch: int | None = None) -> None:
        """Add a number.

        Args:
            value: the number.
            weight: its weight.
            where: the layer and the batch that it belongs to, for the message.
            batch: the index of the batch that it was measured on; None for one of its own.

        Raises:
            NumericalError: if it is NaN or infinite.
        """
        if not math.isfinite(value):
            raise NumericalError(
                f"the score of {where} is {value}; the loss overflows there. Use model.dtype=float32, or a"
                " smaller score.eps"
            )
        self.values.append(value)
        self.weights.append(weight)
        self.batches.append(len(self.batches) if batch is None else batch)

    @property
    def mean(self) -> float:
        """The weighted mean."""
        weighted = math.fsum(w * v for w, v in zip(self.weights, self.values, strict=True))
        return weighted / math.fsum(self.weights)

    @property
    def standard_error(self) -> float:
        """The standard error of the mean; 0 for a single number.

        Numbers of one batch are not independent, as they share its samples: the spread is that of the means
        of batches. Of a single batch, it is that of the numbers, and says nothing about other samples.
        """
        mean, deviations = self.mean, defaultdict[int, float](float)
        groups = self.batches if len(set(self.batches)) > 1 else range(len(self.values))
        for group, weight, value in zip(groups, self.weights, self.values, strict=True):
            deviations[group] += weight * (value - mean)
        if (count := len(deviations)) < 2:
            return 0.0
        spread = math.fsum(deviation**2 for deviation in deviations.values())
        return math.sqrt(spread * count / (count - 1)) / math.fsum(self.weights)


def combine(averages: dict[str, Average]) -> None:
    """Join what all processes have measured, each on its share of the batches, in the batches' order."""
    found = gathered(averages)
    for name in averages:
        averages[name] = Average(
            [value for one in found for value in one[name].values],
            [weight for one in found for weight in one[name].weights],
            [batch for one in found for batch in one[name].batches],
        )


def zero_independent(averages: dict[str, Average]) -> None:
    """Score the layers that the loss does not depend on with 0, and log how many there are.

    Raises:
        UserError: if the loss depends on none of the layers.
    """
    independent = [name for name, average in averages.items() if not any(average.values)]
    if len(independent) == len(averages):
        raise loss_is_independent()
    if independent:
        message = "score: the loss does not depend on %d layers, such as %s: their importance is 0"
        log.warning(message, len(independent), independent[0])
    for name in independent:
        averages[name].add(0.0, 1.0, name)


def loss_is_independent() -> UserError:
    """The error for a loss that depends on none of the layers."""
    return UserError(
        "the loss depends on none of the layers; leave their towers out of towers, or choose another"
        " model.loss. One that compares the samples of a batch, such as contrastive, needs two at least:"
        " give more samples, or a larger batch_size"
    )


def collect(method: str, averages: dict[str, Average], details: dict[str, Any]) -> Scores:
    """The scores of layers from their averages."""
    importance = {name: average.mean for name, average in averages.items()}
    standard_error = {name: average.standard_error for name, average in averages.items()}
    return Scores(method, importance, standard_error, details)
