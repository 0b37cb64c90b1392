"""Calibration sets in the store: drawn once, read by every run of a sweep."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from ecoflap.calibrate.samples import CalibrationSet
from ecoflap.models.prunable import PrunableModel
from ecoflap.store import AS_TENSORS, Store

LISTED = 20_000  # files of a data folder whose size and time count


def stored_calibration(
    store: Store, calibrator: Any, model: PrunableModel, fingerprint: str, config: Mapping[str, Any], processor: Mapping[str, Any], seed: int
) -> CalibrationSet:
    """The calibrator's set, from the store where a run has drawn it before.

    Args:
        store: the stage cache.
        calibrator: draws the set.
        model: whose processor makes the samples.
        fingerprint: of the model.
        config: of the calibration set.
        processor: of the model, whose prompt and files make the samples.
        seed: of the draw.

    Raises:
        UserError: the data aren't there, or the model can't read them.
    """
    if hasattr(model.interface, "set_classes"):  # the calibrator tells the model its classes, which a stored set can't
        drawn: CalibrationSet = calibrator.load(model, seed)
        return drawn
    key = {
        "version": 1,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "calibration": _located(config),
        "processor": _located(processor),
        "model": fingerprint,
        "seed": seed,
    }
    name = calibrator.name

    def draw() -> dict[str, Tensor]:
        samples = calibrator.load(model, seed).samples
        return {
            f"{index:06d}/{place:02d}/{field}": tensor for index, sample in enumerate(samples) for place, (field, tensor) in enumerate(sample.items())
        }

    tensors, _ = store.get_or_compute("calibration", key, draw, AS_TENSORS)
    return CalibrationSet(name, tuple(_samples(tensors)))


def _samples(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The samples, in order, of tensors named number/place/field."""
    by_number: dict[str, dict[str, Tensor]] = {}
    for name in sorted(tensors):
        number, _, field = name.split("/", 2)
        by_number.setdefault(number, {})[field] = tensors[name]
    yield from by_number.values()


def _located(value: Any) -> Any:
    """A config in which the name of a file or folder that is there is replaced by a hash of what it holds."""
    if isinstance(value, Mapping):
        return {name: _located(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_located(inner) for inner in value]
    there = isinstance(value, str) and 0 < len(value) < 4096 and Path(value).expanduser().exists()
    return _files_hash(Path(value).expanduser()) if there else value


def _files_hash(path: Path) -> str:
    """A hash of name, size and time of a file, or of the files in a folder, the first ``LISTED`` of them."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else (file for file in sorted(path.rglob("*")) if file.is_file())
    for _, file in zip(range(LISTED), files, strict=False):
        state = file.stat()
        digest.update(f"{file.relative_to(path)} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()
