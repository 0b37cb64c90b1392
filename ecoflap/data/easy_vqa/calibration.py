"""Calibration on Easy-VQA: pictures, questions and answers of its training split (package ``easy-vqa``)."""

from __future__ import annotations

from dataclasses import dataclass

from ecoflap.data.calibration_set import CalibrationSet, draw
from ecoflap.data.easy_vqa.options import EasyVqaCalibrationOptions
from ecoflap.data.easy_vqa.reading import read_questions
from ecoflap.data.protocol import ShowsPictures
from ecoflap.errors import require_positive
from ecoflap.models.core.prunable import PrunableModel


@dataclass(frozen=True)
class EasyVqa(EasyVqaCalibrationOptions, ShowsPictures):
    """Questions of the training split, with their answers."""

    def __post_init__(self) -> None:
        require_positive("calibration", self, "samples")

    def load(self, model: PrunableModel, seed: int) -> CalibrationSet:
        """Draw questions and encode them.

        Raises:
            UserError: if the model reads no questions.
        """
        questions = read_questions("train")
        return self.encoded(model, [questions[index] for index in draw(len(questions), self.samples, seed)])
