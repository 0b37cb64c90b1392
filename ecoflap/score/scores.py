"""What the coarse stage measures: how much the end-to-end loss depends on each layer."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ecoflap.errors import NumericalError, UserError, nearest
from ecoflap.models.core.towers import Tower

log = logging.getLogger(__name__)


GRANULARITIES = LAYER, BLOCK, TOWER = "layer", "block", "tower"  # from fine to coarse
IMPORTANCE = "importance"


@dataclass(frozen=True)
class Scores:
    """What was measured of each layer, or of each group of layers.

    Attributes:
        method: how it was measured.
        importance: {layer, block or tower: mean over samples}.
        standard_error: the same of the standard error of that mean.
        details: the parameters of the measurement and its cost.
        granularity: what has one number: layer, block or tower.
        kind: what the numbers are. ``importance``: never negative, the larger the more weights are kept, and
            those of several layers may be added up. Scorers and allocators may agree on other kinds.
    """

    method: str
    importance: dict[str, float]
    standard_error: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)
    granularity: str = LAYER
    kind: str = IMPORTANCE

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Scores:
        """The inverse of ``to_json``; older records hold importance of layers, and don't say so."""
        return cls(**value)

    def by_layer(self, towers: Sequence[Tower]) -> dict[str, str]:
        """{layer: the layer, block or tower whose number is its own}.

        Raises:
            UserError: there is no number for one of them.
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
    """Weighted mean and standard error of a stream of numbers."""

    values: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def add(self, value: float, weight: float, where: str) -> None:
        """Take one more number.

        Raises:
            NumericalError: it is NaN or infinite.
        """
        if not math.isfinite(value):
            raise NumericalError(
                f"the score of {where} is {value}; the loss overflows there. Use model.dtype=float32, or a"
                " smaller score.eps"
            )
        self.values.append(value)
        self.weights.append(weight)

    @property
    def mean(self) -> float:
        """The weighted mean."""
        return math.fsum(w * v for w, v in zip(self.weights, self.values, strict=True)) / math.fsum(
            self.weights
        )

    @property
    def standard_error(self) -> float:
        """The standard error of the mean; 0 where one number is all there is."""
        count, total, mean = len(self.values), math.fsum(self.weights), self.mean
        if count < 2:
            return 0.0
        spread = math.fsum(w * w * (v - mean) ** 2 for w, v in zip(self.weights, self.values, strict=True))
        return math.sqrt(spread * count / (count - 1)) / total


def count_untouched(averages: dict[str, Average]) -> None:
    """Say which layers the loss was found not to depend on, and give them their importance, 0.

    Raises:
        UserError: it depends on none.
    """
    untouched = [name for name, average in averages.items() if not any(average.values)]
    if len(untouched) == len(averages):
        raise depends_on_none()
    if untouched:
        log.warning(
            "score: the loss does not depend on %d layers, such as %s: their importance is 0",
            len(untouched),
            untouched[0],
        )
    for name in untouched:
        averages[name].add(0.0, 1.0, name)


def depends_on_none() -> UserError:
    """The error of a loss that depends on none of the layers."""
    return UserError(
        "the loss depends on none of the layers; leave their towers out of towers, or choose another"
        " model.loss"
    )


def collect(method: str, averages: dict[str, Average], details: dict[str, Any]) -> Scores:
    """Turn running averages into scores."""
    importance = {name: average.mean for name, average in averages.items()}
    return Scores(
        method, importance, {name: average.standard_error for name, average in averages.items()}, details
    )
