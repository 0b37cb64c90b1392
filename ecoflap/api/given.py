"""Refuse arguments that a step can't take, and make options plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import UnsupportedValueType

from ecoflap.allocate.allocation import check_sparsity
from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.distributed.collectives import require_same
from ecoflap.errors import UserError
from ecoflap.models.core.prunable import PrunableModel
from ecoflap.storage.results.identity import rounded_sparsity


def require(value: Any, kind: type, made_by: str) -> None:
    """Refuse an argument that isn't what a step makes.

    Args:
        value: what was given.
        kind: what is needed.
        made_by: what makes one, such as ``ecoflap.load(...)``.

    Raises:
        UserError: if the value is of another kind.
    """
    if isinstance(value, type) or not isinstance(value, kind):
        given = getattr(value, "__name__", None) or type(value).__name__
        raise UserError(f"{given} was given where a {kind.__name__} is needed; give what {made_by} returns")


def require_same_given(model: PrunableModel, data: CalibrationSet) -> None:
    """Refuse processes of a run that give different models or samples to a step.

    Raises:
        UserError: if their weights, settings or samples differ.
    """
    require_same(model.fingerprint, "models (weights or settings)")
    require_same(data.fingerprint, "calibration samples")


def requested_sparsity(sparsity: Any) -> float:
    """The requested sparsity as a number, rounded as that of a run is; of NumPy's, the decimal that it shows.

    Raises:
        UserError: if there is none, or it is not a number in [0, 1).
    """
    if sparsity is None:
        raise UserError(
            "sparsity is missing: the share of the prunable weights to remove, such as sparsity=0.6"
        )
    try:
        found = rounded_sparsity(float(str(sparsity) if isinstance(sparsity, np.floating) else sparsity))
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"sparsity={sparsity!r} is not a number, such as sparsity=0.6") from None
    check_sparsity(found)
    return found


def as_config(group: str, options: Mapping[str, Any]) -> DictConfig:
    """The options of a part as a config, with numbers of NumPy and dtypes of torch as plain values.

    Args:
        group: its config group, for the message.
        options: the options of a part.

    Raises:
        UserError: if a value is one that a config can't hold.
    """
    try:
        return OmegaConf.create({name: _plain(value) for name, value in options.items()})
    except UnsupportedValueType as error:
        unfit = str(error.msg or error).splitlines()[0]  # such as: Value 'Tensor' is not a supported ...
        raise UserError(
            f"{group}.{error.full_key} can't be used ({unfit}); give a number, a text, or a list of them"
        ) from None


def _plain(value: Any) -> Any:
    """A number of NumPy as that of Python, and a dtype of torch as its name, as configs take no others."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return value.item() if isinstance(value, np.generic) else value
