"""The protocol of a calibrator, which draws a calibration set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ecoflap.data.calibration_set import CalibrationSet

if TYPE_CHECKING:
    from ecoflap.models.core.prunable import PrunableModel


class Calibration(Protocol):
    """Draws the samples for scores and statistics.

    Before any weight is loaded it may refuse, as a task may (see ``ecoflap.evaluate.protocol``): in
    ``check_data(group)`` missing data, in ``check_model(model)`` a model that can't read them, and in
    ``check_rows(model, seed)`` samples among those that it will draw. ``read_files(model, seed)`` may name
    the files that ``load`` reads, so that a stored set is not taken for that of other contents; files and
    folders that its options name need not be among them.

    Attributes:
        name: shown in logs and written to result files.
        samples: the number of samples to draw; None for all.
    """

    name: str
    samples: int | None

    def load(self, model: PrunableModel, seed: int) -> CalibrationSet:
        """Draw the samples and encode them as the model's inputs.

        Raises:
            UserError: if the data are missing, or the model can't read them.
        """
