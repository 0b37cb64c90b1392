"""The protocol of a calibrator, which draws a calibration set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ecoflap.data.calibration_set import CalibrationSet
from ecoflap.data.classes import Classes
from ecoflap.data.example import Example
from ecoflap.data.sources import picture_sources
from ecoflap.models.core.encoding import encode_all, require_encoder
from ecoflap.models.core.prunable import PrunableModel


class Calibration(Protocol):
    """Draws the samples for scores and statistics.

    Like a task (see ``ecoflap.evaluate.protocol``), it may refuse before any weight is loaded: missing data
    in ``check_data(group)``, a model that can't read the data in ``check_model(model)``, and samples that it
    would draw in ``check_rows(model, seed)``. ``read_files(model, seed)`` may name the files that ``load``
    reads, so that the stored set is not used for other contents; files and folders that its options name may
    be omitted.

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


class ShowsPictures:
    """What calibration sets of pictures share: the check of a model, and how examples become a set."""

    name: str

    def check_model(self, model: PrunableModel) -> None:
        """Refuse a model that reads no pictures with a target.

        Raises:
            UserError: if the model reads none.
        """
        require_encoder(model, f"calibration={self.name}", pictures=True)

    def encoded(
        self, model: PrunableModel, examples: Sequence[Example], classes: Classes | None = None
    ) -> CalibrationSet:
        """The examples as a calibration set, whose sources are their pictures.

        Raises:
            UserError: if the model can't encode such examples.
        """
        samples = encode_all(model, examples, f"calibration={self.name}", classes)
        sources = picture_sources(image for one in examples for image in one.images)
        return CalibrationSet(self.name, samples, sources)
