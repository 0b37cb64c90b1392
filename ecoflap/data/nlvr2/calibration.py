"""NLVR2's training split as calibration data; its other splits hold other pictures."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from ecoflap.data.calibration_set import CalibrationSet, draw, require_train
from ecoflap.data.folder import require_images
from ecoflap.data.nlvr2.options import Nlvr2CalibrationOptions
from ecoflap.data.nlvr2.reading import OBTAIN, read_pairs
from ecoflap.data.protocol import ShowsPictures
from ecoflap.errors import require_positive
from ecoflap.models.core.protocols import Classifies, require
from ecoflap.models.core.prunable import PrunableModel


@dataclass(frozen=True)
class Nlvr2(Nlvr2CalibrationOptions, ShowsPictures):
    """Sentences about two pictures, and whether they are true."""

    def __post_init__(self) -> None:
        require_positive("calibration", self, "samples")
        require_train(self.split)

    def check_data(self, group: str) -> None:
        """Refuse sentences that are missing or damaged.

        Raises:
            UserError: if sentences are missing or damaged.
        """
        read_pairs(self.path, self.split, group)

    @override
    def check_model(self, model: PrunableModel) -> None:
        """Refuse a model that does not classify; one that writes would read the first picture only.

        Raises:
            UserError: if the model does not classify.
        """
        require(model, Classifies, f"calibration={self.name}")

    def load(self, model: PrunableModel, seed: int) -> CalibrationSet:
        """Draw sentences and encode them.

        Raises:
            UserError: if files or pictures are missing, or the model does not classify.
        """
        self.check_model(model)
        pairs = read_pairs(self.path, self.split, "calibration")
        chosen = [pairs[index] for index in draw(len(pairs), self.samples, seed)]
        images = (image for one in chosen for image in one.images)
        require_images(images, f"calibration={self.name}", OBTAIN)
        return self.encoded(model, chosen)
