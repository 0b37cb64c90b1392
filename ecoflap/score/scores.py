"""What the coarse stage measures: how much the end-to-end loss depends on each layer."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Any

from ecoflap.errors import NumericalError, UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """Importance of each layer.

    Attributes:
        method: how it was measured.
        importance: {layer: mean over samples}, never negative.
        standard_error: {layer: standard error of that mean}.
        details: the parameters of the measurement and its cost.
    """

    method: str
    importance: dict[str, float]
    standard_error: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "method": self.method,
            "importance": self.importance,
            "standard_error": self.standard_error,
            "details": self.details,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Scores:
        """The inverse of ``to_json``."""
        return cls(**value)


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
