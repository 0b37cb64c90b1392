"""Calibration on Easy-VQA's pictures, with captions made from their names."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ecoflap.data.calibration_set import CalibrationSet, draw
from ecoflap.data.classes import Classes, check_templates
from ecoflap.data.classification.class_names import own_labels
from ecoflap.data.easy_vqa.options import EasyPicturesOptions
from ecoflap.data.easy_vqa.reading import NAMES, read_pictures
from ecoflap.data.protocol import ShowsPictures
from ecoflap.errors import require_positive
from ecoflap.models.core.protocols import NamesClasses
from ecoflap.models.core.prunable import PrunableModel


@dataclass(frozen=True)
class EasyPictures(EasyPicturesOptions, ShowsPictures):
    """Pictures of the training split with captions."""

    def __post_init__(self) -> None:
        require_positive("calibration", self, "samples")
        check_templates([self.caption], "calibration.caption")
        check_templates(self.templates, "calibration.templates")

    def load(self, model: PrunableModel, seed: int) -> CalibrationSet:
        """Draw pictures and encode them.

        Raises:
            UserError: if the model reads no pictures, or is a classifier of other classes.
        """
        pictures = read_pictures("train")
        chosen = [pictures[index] for index in draw(len(pictures), self.samples, seed)]
        if isinstance(model.interface, NamesClasses):
            labels = own_labels(model.interface.names, NAMES, f"calibration={self.name}", indexed=False)
            return self.encoded(model, [replace(one, label=labels[one.label or 0]) for one in chosen])
        captioned = [replace(one, target=self.caption.format(one.target)) for one in chosen]
        return self.encoded(model, captioned, Classes(NAMES, tuple(self.templates)))
