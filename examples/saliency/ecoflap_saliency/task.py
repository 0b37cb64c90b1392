"""Saliency: how far a pruned model's maps agree with those of the dense model, on held-out pictures."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ecoflap.data.sources import picture_sources
from ecoflap.errors import NumericalError, require_positive
from ecoflap.evaluate.inputs import spread
from ecoflap.evaluate.prediction_log import IN_MEMORY, PredictionLog
from ecoflap.models.core.prunable import PrunableModel
from ecoflap_saliency.calibration import (
    HELD_OUT,
    picture_files,
    read_pixels,
    require_saliency_model,
    saliency_maps,
)


@dataclass(frozen=True)
class Saliency:
    """Compare maps with those of the dense model, which it draws when the task is loaded.

    Attributes:
        path: a folder of pictures that are not in the calibration set; null for the second half of
            scikit-image's.
        limit: number of pictures, evenly spaced; null for all.
        batch_size: pictures per forward pass; changes nothing beyond rounding.
        name: shown in logs and written to result files.
    """

    path: str | None = None
    limit: int | None = None
    batch_size: int = 8
    name: str = "saliency"

    def __post_init__(self) -> None:
        require_positive("task", self, "limit", "batch_size")

    def check_data(self, group: str) -> None:
        """Refuse missing pictures.

        Raises:
            UserError: if pictures are missing.
        """
        self.chosen(group)

    def check_model(self, model: PrunableModel) -> None:
        """Refuse a model that makes no saliency maps.

        Raises:
            UserError: if the model makes no saliency maps.
        """
        require_saliency_model(model, f"task={self.name}")

    def chosen(self, group: str) -> list[Path]:
        """The pictures to compare.

        Raises:
            UserError: if there are none, or the limit is out of range.
        """
        return spread(picture_files(self.path, HELD_OUT, group), self.limit, "pictures")

    def load(self, model: PrunableModel) -> SaliencyEvaluation:
        """Read the pictures and draw the dense maps.

        Raises:
            UserError: if the model returns no saliency maps, or there are no pictures.
        """
        self.check_model(model)
        files = self.chosen("task")
        pixels = read_pixels(model, files)
        return SaliencyEvaluation(
            pixels,
            saliency_maps(model, pixels, self.batch_size),
            self.batch_size,
            picture_sources(map(str, files)),
        )


@dataclass
class SaliencyEvaluation:
    """Pictures [pictures, 3, height, width], dense maps [pictures, height, width]; call it with a model."""

    pixels: Tensor
    dense: Tensor
    batch_size: int
    sources: frozenset[str] = frozenset()

    def identity(self) -> dict[str, Any]:
        """Everything that the metrics depend on beside the model."""
        digest = hashlib.blake2b(self.pixels.numpy().tobytes() + self.dense.numpy().tobytes(), digest_size=16)
        return {"metric": "agreement with the dense maps", "pictures and maps": digest.hexdigest()}

    def __call__(self, model: PrunableModel, prediction_log: PredictionLog = IN_MEMORY) -> dict[str, float]:
        """Mean overlap of the maps above one half, mean absolute error and mean correlation.

        Raises:
            NumericalError: if a map is not finite.
        """
        maps = saliency_maps(model, self.pixels, self.batch_size)
        if not torch.isfinite(maps).all():
            raise NumericalError(
                f"{model.name} draws a saliency map that is not finite; use model.dtype=float32 or bfloat16,"
                " or prune less"
            )
        return {
            "iou": overlap(maps > 0.5, self.dense > 0.5).mean().item(),
            "mae": (maps - self.dense).abs().mean().item(),
            "correlation": correlation(maps, self.dense).mean().item(),
            "pictures": len(maps),
        }


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of masks [pictures, height, width], [pictures]; two empty masks are equal."""
    intersection, union = (one & other).sum(dim=(1, 2)), (one | other).sum(dim=(1, 2))
    return torch.where(union == 0, 1.0, intersection / union)


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's correlation of maps [pictures, height, width], [pictures]; zero for a constant map."""
    one, other = (maps.double().flatten(1) - maps.double().mean(dim=(1, 2))[:, None] for maps in (one, other))
    product = one.norm(dim=1) * other.norm(dim=1)
    return torch.where(product == 0, 0.0, (one * other).sum(dim=1) / product)
