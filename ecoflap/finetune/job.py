"""The input and the result of a finetuner."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.models.core.prunable import PrunableModel

Point = dict[str, float]  # figures of one step of a curve


@dataclass(frozen=True)
class Job:
    """A pruned model to fine-tune, and what the run knows about it.

    Attributes:
        model: pruned; changed in place.
        masks: {layer: bool mask as the parameter is stored, True where kept}.
        read: reads the first samples of the training split behind the run's calibration set; None for all.
        calibration: the run's calibration set; None if it drew none.
        dense: loads the model before pruning.
        batch_size: samples per forward pass of the run's fine stage.
        seed: seed of the order of the samples, of new weights and of dropout.
        folder: the folder of checkpoints to resume from.
        identity: what a checkpoint depends on beside the method's own options.
        show: called with each point of the curve.
    """

    model: PrunableModel
    masks: Mapping[str, Tensor]
    read: Callable[[int | None], CalibrationSet]
    calibration: CalibrationSet | None
    dense: Callable[[], PrunableModel]
    batch_size: int
    seed: int
    folder: Path
    identity: dict[str, Any] = field(default_factory=dict)
    show: Callable[[Point], None] = lambda _: None


@dataclass(frozen=True)
class Training:
    """The training, as it is written beside the result.

    Attributes:
        method: its name.
        data: what was trained on: name and number of samples.
        trained: number of values that were changed.
        curve: losses as they were logged, by step, or by block where blocks are trained one by one.
    """

    method: str
    data: dict[str, Any]
    trained: int
    curve: list[Point]


def masks_fingerprint(masks: Mapping[str, Tensor]) -> str:
    """A hash of every mask, its name and its shape."""
    digest = hashlib.blake2b(digest_size=16)
    for name, mask in masks.items():
        digest.update(f"{name} {tuple(mask.shape)}".encode())
        digest.update(mask.contiguous().numpy().data)
    return digest.hexdigest()
