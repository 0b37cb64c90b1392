"""What a calibration set is before it is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ecoflap.data.calibration_set import CalibrationSet

if TYPE_CHECKING:
    from ecoflap.models.core.prunable import PrunableModel


class Calibration(Protocol):
    """Draws the samples that scores and statistics are measured on.

    Before any weight is read it may refuse, as a task may (see ``ecoflap.evaluate.protocol``): in
    ``check_data(group)`` data that are missing, in ``check_model(model)`` a model that can't read them.

    Attributes:
        name: shown in logs and written to result files.
        samples: how many are drawn; null for all.
    """

    name: str
    samples: int | None

    def load(self, model: PrunableModel, seed: int) -> CalibrationSet:
        """Draw the samples, and turn them into the model's inputs.

        Raises:
            UserError: the data are not there, or the model can't read them.
        """
