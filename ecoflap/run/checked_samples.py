"""Check the calibration set that a part of the user's own has drawn."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.data.protocol import Calibration
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.storage.cache.code import in_package

IDS, MASK = "input_ids", "attention_mask"


def checked_samples(calibrator: Calibration, model: PrunableModel, seed: int) -> CalibrationSet:
    """Draw a calibration set, and refuse one of another form; sets of this package have the right one.

    Raises:
        UserError: if it is no calibration set, a sample is no dict of tensors, or it has a batch dimension or
            padding that the loss does not declare.
    """
    drawn: object = calibrator.load(model, seed)
    part = f"calibration={calibrator.name}"
    if not isinstance(drawn, CalibrationSet):
        raise UserError(f"{part} returned a {type(drawn).__name__}; correct it: load returns CalibrationSet")
    if in_package(type(calibrator).__module__):
        return drawn
    for number, sample in enumerate(drawn.samples):
        if wrong := _wrong(sample, model):
            raise UserError(f"sample {number} of {part} {wrong}")
    return drawn


def _wrong(sample: object, model: PrunableModel) -> str | None:
    """What is wrong with a sample; None if nothing is."""
    if not isinstance(sample, Mapping):
        return f"is a {type(sample).__name__}; give a dict of tensors, such as input_ids"
    for name, value in sample.items():
        if not isinstance(value, Tensor):
            return f"has a {type(value).__name__} as {name}; give a tensor, or leave it out"
    ids, mask = sample.get(IDS), sample.get(MASK)
    if ids is not None and ids.dim() == 2 and len(ids) == 1:
        return f"has {IDS} {list(ids.shape)} with a batch dimension; leave it out, as by {IDS}[0]"
    declares = not in_package(getattr(model.loss_function, "__module__", ""))
    if declares or hasattr(model.interface, "pad_token_id") or mask is None or ids is None:
        return None
    if mask.shape == ids.shape and not bool(mask.all()):
        return (
            f"is padded: {MASK} has zeros, and statistics would count these tokens; give each sample without"
            f" them, as by {IDS}[{MASK}.bool()]"
        )
    return None
