"""Refuse arguments that a step can't take, and make NumPy's numbers plain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

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


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with NumPy's numbers as those of Python, as configs and JSON take no others."""
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in options.items()}
