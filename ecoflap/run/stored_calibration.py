"""Calibration sets in the stage cache: drawn once, and read by all runs of a sweep."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.data.protocol import Calibration
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.run.checked_samples import checked_samples
from ecoflap.storage.cache.entries import AS_TENSORS
from ecoflap.storage.cache.store import Store
from ecoflap.storage.results.sources import stamp

SOURCES = "sources"


def stored_calibration(
    store: Store,
    calibrator: Calibration,
    model: PrunableModel,
    seed: int,
    key: Mapping[str, Any],
) -> tuple[CalibrationSet, bool]:
    """Draw a calibration set, or read it from the store.

    Args:
        store: the stage cache.
        calibrator: draws the set.
        model: its processor encodes the samples.
        seed: seed of the draw.
        key: what else the set depends on; among it ``calibration`` and ``processor``, the configs of the set
            and of what encodes it, whose values may be files or folders.

    Returns:
        The set, and whether it came from the store.

    Raises:
        UserError: if the data are missing, the model can't read them, or the set is of another form.
    """
    # Drawing the set tells such a model its classes; reading a stored set would not.
    if hasattr(model.interface, "set_classes"):
        return checked_samples(calibrator, model, seed), False
    files = states_of_files(calibrator, model, seed, [key["calibration"], key["processor"]])
    tensors, cached = store.get_or_compute(
        "calibration",
        {"version": 2, **key, "files": files, "seed": seed},
        lambda: _to_tensors(checked_samples(calibrator, model, seed)),
        AS_TENSORS,
    )
    sources = json.loads(bytes(tensors.pop(SOURCES).tolist()))
    return CalibrationSet(calibrator.name, tuple(_samples(tensors)), frozenset(sources)), cached


def _to_tensors(drawn: CalibrationSet) -> dict[str, Tensor]:
    """The tensors of the samples as number/position/field, and their sources as the bytes of a JSON list."""
    sources = torch.tensor(list(json.dumps(sorted(drawn.sources)).encode()), dtype=torch.uint8)
    samples = {
        f"{index:06d}/{place:02d}/{field}": tensor
        for index, sample in enumerate(drawn.samples)
        for place, (field, tensor) in enumerate(sample.items())
    }
    return {SOURCES: sources, **samples}


def _samples(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The samples, in order."""
    by_number: dict[str, dict[str, Tensor]] = {}
    for name in sorted(tensors):
        number, _, field = name.split("/", 2)
        by_number.setdefault(number, {})[field] = tensors[name]
    yield from by_number.values()


def states_of_files(
    calibrator: Calibration, model: PrunableModel, seed: int, options: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """{path: hash of names, sizes and times} of the files that a calibrator reads.

    Args:
        calibrator: may name them, with ``read_files``.
        model: the model that reads the samples.
        seed: seed of the draw.
        options: those whose values may be files or folders.
    """
    read: Iterable[Path] = getattr(calibrator, "read_files", lambda *_: ())(model, seed)
    return _files(list(options)) | {str(path): stamp(path, whole=True) for path in read}


def _files(value: Any) -> dict[str, str]:
    """{path: hash of its files} of each existing file or folder that a config names."""
    if isinstance(value, Mapping | list):
        found: dict[str, str] = {}
        for inner in value.values() if isinstance(value, Mapping) else value:
            found |= _files(inner)
        return found
    exists = isinstance(value, str) and 0 < len(value) < 4096 and Path(value).expanduser().exists()
    return {value: stamp(Path(value).expanduser(), whole=True)} if exists else {}
